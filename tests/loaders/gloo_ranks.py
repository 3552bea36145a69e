"""python gloo_ranks.py STORES OUT WORLD_SIZE: four steps by real ranks, from a saved state.

Each rank sends its rows to rank 0, which writes down what the global batches were.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.multiprocessing
from streams import WAYS, ask, digest, join

from shards import Store

STEPS = 4


def run(rank: int, world_size: int, root: Path, out: Path, rendezvous: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    made = [Store(root / "a"), Store(root / "b")]
    for number, way in enumerate(WAYS):
        asked = {"request": {"batch_size": 7, **way}, "by": "proportional", "stop": "first"}
        stream = ask(made, asked)  # nobody tells it its rank: the process group does
        saved = out / str(number) / "state.json"
        stream.load_state_dict(json.loads(saved.read_text()))
        torch.distributed.barrier()
        mine = []
        while len(mine) < STEPS:
            for batch in stream:
                mine.append(batch)
                if len(mine) == STEPS:
                    break
        whole = [None] * world_size
        torch.distributed.all_gather_object(whole, mine)
        if rank == 0:
            with (out / str(number) / "got").open("a") as file:
                for parts in zip(*whole, strict=True):
                    file.write(digest(join(list(parts))) + "\n")
            saved.write_text(json.dumps(stream.state_dict(mine[-1])))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    root, out, world_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        args = (world_size, root, out, str(Path(folder) / "rendezvous"))
        torch.multiprocessing.spawn(run, args, nprocs=world_size)
