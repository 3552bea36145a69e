"""What each of two real processes does in test_integrations.py; its functions are spawned."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from batches import rows_of
from torch.utils.data import DataLoader, IterableDataset

from loaders import Batch, TrialStream
from loaders.integrations import StreamLoader, prepare_stream
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


def linear_module(seen: list[Batch], package: str = "pytorch_lightning") -> Any:
    """Return a LightningModule that keeps the batches it was trained on."""
    import importlib

    pl = importlib.import_module(package)

    class Linear(pl.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch: Batch, index: int) -> torch.Tensor:
            seen.append(batch)
            self.log("loss", 1.0, batch_size=len(batch))
            return (self.layer(batch.values)[:, -1, 0] * batch.weights).sum()

        def validation_step(self, batch: Batch, index: int) -> None:
            self.log("val", 1.0, batch_size=len(batch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    return Linear()


def fit(
    folder: Path, loader: Any, *, val: Any = None, resume: Path | None = None, **options: Any
) -> tuple[list[Batch], Any]:
    """Train with Lightning; return the batches trained on, and the trainer."""
    import pytorch_lightning as pl

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "default_root_dir": folder, "enable_checkpointing": False}
    if val is None:
        quiet |= {"limit_val_batches": 0}
    if "callbacks" in options:
        quiet["enable_checkpointing"] = True
    seen: list[Batch] = []
    trainer = pl.Trainer(**{**quiet, **options})
    trainer.fit(linear_module(seen), loader, val, ckpt_path=resume)
    return seen, trainer


def refusal(make: Callable[[], Iterable[Any]]) -> list[str]:
    """Return the error of a loop over what `make` returns, or the rows that it delivered."""
    try:
        batches = list(make())
    except InvalidSpecError as error:
        return ["refused", str(error)]
    return ["delivered", json.dumps([[b["trial"].tolist(), b["start"].tolist()] for b in batches])]


def refusals(folder: Path) -> dict[str, list[str]]:
    """Hand streams to wrappers that would divide them again."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    def prepared(n_workers: int, method: str | None, **config: Any) -> list[str]:
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**config))
        loader = DataLoader(
            Dictionaries(open_stream(folder)), batch_size=None, num_workers=n_workers,
            multiprocessing_context=method,
        )  # fmt: skip
        return refusal(lambda: accelerator.prepare(loader))

    def in_batches_of_one() -> list[str]:
        from accelerate.data_loader import IterableDatasetShard

        rank, n_ranks = dist.get_rank(), dist.get_world_size()
        shard = IterableDatasetShard(
            Dictionaries(open_stream(folder)), num_processes=n_ranks, process_index=rank
        )
        return refusal(lambda: shard)

    return {
        "dispatched": prepared(0, None),
        "dispatched from forked workers": prepared(1, "fork"),
        "dispatched from spawned workers": prepared(1, "spawn"),
        "sharded": in_batches_of_one(),
    }


def accelerated(folder: Path, part: str) -> list[Any]:
    """Deliver 2 epochs with Accelerate: all, up to a saved state, or from it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    stream = open_stream(folder)
    loader = prepare_stream(accelerator, stream, num_workers=1 if part == "all" else 0)
    assert accelerator.num_processes == dist.get_world_size()
    if part == "rest":
        accelerator.load_state(str(folder / "accelerate"))
    seen: list[Batch] = []
    while loader.state_dict()["epoch"] < 2:
        for batch in loader:
            seen.append(batch)
            if part == "first" and len(seen) == STOP:
                accelerator.save_state(str(folder / "accelerate"))
                return steps_of(seen)
    return steps_of(seen)


def lightning(folder: Path, part: str) -> list[Any]:
    """Deliver 2 epochs with a Lightning Trainer under DDP: all, some, or what follows."""
    options: dict[str, Any] = {"strategy": "ddp", "devices": dist.get_world_size()}
    options |= {"max_epochs": 2} if part != "first" else {"max_steps": STOP}
    loader = StreamLoader(open_stream(folder), loop="endless", num_workers=part == "all")
    path = folder / "lightning.ckpt"
    seen, trainer = fit(folder, loader, resume=path if part == "rest" else None, **options)
    if part == "first":
        trainer.save_checkpoint(path)
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
    parts = ("all", "first", "rest")
    done = {
        "refusals": refusals(path) if n_ranks > 1 else {},
        "plain": plain(path),
        "accelerate": {part: accelerated(path, part) for part in parts},
        "lightning": {part: lightning(path, part) for part in parts},
        "data loader": lightning_of_a_data_loader(path) if n_ranks > 1 else [],
    }
    (path / f"rank{rank}.json").write_text(json.dumps(done))
    dist.barrier()
    dist.destroy_process_group()
