"""What each of two real processes does in test_integrations.py; its functions are spawned."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from batches import rows_of
from torch.utils.data import DataLoader, IterableDataset

from loaders import Batch, TrialStream
from loaders.integrations import prepare_stream, stream_module
from shards import InvalidSpecError

STOP = 3  # steps before a run is broken off
OPTIONS: dict[str, Any] = {"batch_size": 8, "seed": 3}


def open_stream(folder: Path, **options: Any) -> TrialStream:
    return TrialStream(folder / "store", **{**OPTIONS, **options})


def steps_of(batches: Iterable[Batch]) -> list[list[Any]]:
    """Return what was delivered, step by step: [epoch, step, [[trial, start], ...]]."""
    return [[b.epoch, b.step, [list(row) for row in rows_of([b])]] for b in batches]


class Dictionaries(IterableDataset[dict[str, torch.Tensor]]):
    """Batches as dictionaries, which Accelerate can cut and send; a Batch it cannot."""

    def __init__(self, stream: TrialStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.stream:
            yield {"trial": batch.trial, "start": batch.start}


def linear_module(seen: list[Batch], validated: list[Batch] | None = None) -> Any:
    """Return a LightningModule that keeps the batches it was trained and validated on."""
    import pytorch_lightning as pl

    class Linear(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch: Batch, index: int) -> torch.Tensor:
            seen.append(batch)
            return (self.layer(batch.values)[:, -1, 0] * batch.weights).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-6)

    if validated is not None:
        Linear.validation_step = lambda self, batch, index: validated.append(batch)
    return Linear()


def quiet_trainer(folder: Path, **options: Any) -> Any:
    import pytorch_lightning as pl

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "default_root_dir": folder}
    return pl.Trainer(**{**quiet, **options})


def fit(
    folder: Path, data: Any, *, resume: Path | None = None, **options: Any
) -> tuple[list[Batch], Any]:
    """Train with Lightning; return the batches trained on, and the trainer."""
    seen: list[Batch] = []
    trainer = quiet_trainer(folder, **options)
    name = "datamodule" if hasattr(data, "train_dataloader") else "train_dataloaders"
    trainer.fit(linear_module(seen), **{name: data}, ckpt_path=resume)
    return seen, trainer


def refusal(make: Callable[[], Iterable[Any]]) -> list[Any]:
    """Return the error of a loop over what `make` returns, or the rows that it delivered."""
    try:
        batches = list(make())
    except InvalidSpecError as error:
        return ["refused", str(error)]
    pairs = [(b["trial"].tolist(), b["start"].tolist()) for b in batches]
    return ["delivered", [[t, s] for pair in pairs for t, s in zip(*pair, strict=True) if t >= 0]]


def refusals(folder: Path) -> tuple[dict[str, list[Any]], list[Any]]:
    """Hand streams to wrappers that would divide them again; then once without the guard."""
    from accelerate import Accelerator
    from accelerate.data_loader import IterableDatasetShard

    def prepared(dataset: Any, method: str | None = None) -> Any:
        options = {"num_workers": int(method is not None), "multiprocessing_context": method}
        return Accelerator(cpu=True).prepare(DataLoader(dataset, batch_size=None, **options))

    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    cut = {"num_processes": n_ranks, "process_index": rank}
    done = {
        "sharded": refusal(lambda: IterableDatasetShard(open_stream(folder), **cut)),
        "dispatched": refusal(lambda: prepared(open_stream(folder))),
        "dispatched to spawned": refusal(lambda: prepared(open_stream(folder), "spawn")),
    }
    forked = prepared(open_stream(folder), "fork")
    if rank == 0:  # a forked worker refuses, and rank 1 asks rank 0, not its worker
        done["dispatched to forked"] = refusal(lambda: forked)
    dist.barrier()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loaders.epochs.refuse_second_sharding", lambda: None)
        unguarded = refusal(lambda: prepared(Dictionaries(open_stream(folder))))
    return done, unguarded


def accelerated(folder: Path, part: str) -> list[Any]:
    """Deliver 2 epochs with Accelerate: all, up to a saved state, or from it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    stream = open_stream(folder)
    loader = prepare_stream(accelerator, stream)
    assert accelerator.num_processes == dist.get_world_size()
    if part == "rest":
        accelerator.load_state(str(folder / "accelerate"))
    seen: list[Batch] = []
    while loader.state_dict()["epoch"] < 2:
        for batch in loader:
            seen.append(batch)
            if part == "first" and len(seen) == STOP:
                accelerator.save_state(str(folder / "accelerate"))
                accelerator.wait_for_everyone()
                return steps_of(seen)
    return steps_of(seen)


def lightning(folder: Path, part: str) -> list[Any]:
    """Deliver 2 epochs with a Lightning Trainer under DDP: all, some, or what follows."""
    import pytorch_lightning as pl

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == STOP and part == "first":
                trainer.save_checkpoint(path)
                trainer.should_stop = True

    path = folder / "lightning.ckpt"
    data = stream_module(open_stream(folder))
    seen, _ = fit(
        folder, data, resume=path if part == "rest" else None, max_epochs=2,
        strategy="ddp", devices=dist.get_world_size(), callbacks=[Save()],
    )  # fmt: skip
    return steps_of(seen)


def lightning_of_a_data_loader(folder: Path) -> list[Any]:
    """Hand Lightning the stream in a DataLoader, whose sampler it would replace if it could."""
    loader = DataLoader(open_stream(folder), batch_size=None)
    return steps_of(fit(folder, loader, max_epochs=1, strategy="ddp", devices=2)[0])


def plain(folder: Path) -> list[Any]:
    """Deliver an epoch through a DataLoader of spawned workers, which see no process group."""
    loader = DataLoader(
        open_stream(folder), batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    return steps_of(loader)


def run_rank(rank: int, n_ranks: int, folder: str) -> None:
    """Do all of it as one of `n_ranks` processes; write what came to `rank<r>.json`."""
    warnings.simplefilter("ignore")
    path = Path(folder)
    address = {"MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0}
    os.environ.update({name: str(value) for name, value in address.items()})
    os.environ["WORLD_SIZE"] = str(n_ranks)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=n_ranks
    )
    refused, unguarded = refusals(path)
    parts = ("all", "first", "rest")
    done = {
        "refusals": refused,
        "unguarded": unguarded,
        "plain": plain(path),
        "accelerate": {part: accelerated(path, part) for part in parts},
        "lightning": {part: lightning(path, part) for part in parts},
        "data loader": lightning_of_a_data_loader(path),
    }
    (path / f"rank{rank}.json").write_text(json.dumps(done))
    dist.barrier()
    dist.destroy_process_group()
