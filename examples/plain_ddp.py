"""DistributedDataParallel: torchrun --nproc-per-node 2 examples/plain_ddp.py store --out run

Each process makes the same stream, which finds out its rank by itself. The checkpoint of 2
processes may be continued by 1 or 3.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from model import Forecaster, batch_loss, open_stream
from torch.nn.parallel import DistributedDataParallel


def main(store: str, out: Path, epochs: int) -> None:
    """Train; the mean of the ranks' losses is that of the same step in one process."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    stream = open_stream(store)
    model = DistributedDataParallel(Forecaster(stream))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    last = out / "last.pt"
    if last.exists():
        saved = torch.load(last)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        stream.load_state_dict(saved["stream"])
    out.mkdir(parents=True, exist_ok=True)
    while stream.state_dict()["epoch"] < epochs:
        for batch in stream:
            loss = batch_loss(model, batch, world_size)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shown = loss.detach().clone()
            dist.all_reduce(shown)
            if rank == 0:
                print(f"epoch {batch.epoch} step {batch.step} loss {shown / world_size:.6f}")
                if batch.step % 10 == 9 or batch.step == len(stream) - 1:
                    state = {
                        "model": model.module.state_dict(), "optimizer": optimizer.state_dict(),
                        "stream": stream.state_dict(batch),
                    }  # fmt: skip
                    torch.save(state, out / "new.pt")
                    (out / "new.pt").replace(last)  # whole, or not there
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    main(**vars(parser.parse_args()))
