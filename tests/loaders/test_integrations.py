"""Nothing is lost, repeated or read in another order under the trainers of others.

Two real processes run once, in integration_ranks.py; the tests look at what came to them.
"""

from __future__ import annotations

import json

import pytest
import torch
import torch.multiprocessing as mp
from integration_ranks import (
    STOP,
    fit,
    linear_module,
    open_stream,
    quiet_trainer,
    run_rank,
    steps_of,
)
from torch.utils.data import DataLoader

from loaders.integrations import StreamLoader, prepare_stream, stream_module
from shards import InvalidSpecError
from shards.errors import ResumeError

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


@pytest.fixture(scope="module")
def ranks(folder):
    """What came to each of two processes."""
    mp.spawn(run_rank, (2, str(folder)), nprocs=2)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def together(parts):
    """Return the steps of two ranks as those of one; rank 0 has the first rows of each."""
    joined = []
    for (epoch, step, first), (*place, last) in zip(*parts, strict=True):
        assert [epoch, step] == place
        joined.append([epoch, step, first + last])
    return joined


# Two processes


@pytest.mark.parametrize("framework", ["accelerate", "lightning"])
def test_two_ranks_get_what_one_gets(ranks, want, framework):
    assert together([rank[framework]["all"] for rank in ranks]) == want


@pytest.mark.parametrize("framework", ["accelerate", "lightning"])
def test_two_ranks_resume_where_they_were_broken_off(ranks, want, framework):
    first, rest = (together([rank[framework][p] for rank in ranks]) for p in ("first", "rest"))
    assert len(first) == STOP
    assert first + rest == want


def test_lightning_puts_no_sampler_before_a_stream(ranks, want):
    assert together([rank["data loader"] for rank in ranks]) == want[: len(want) // 2]


def test_spawned_workers_belong_to_the_rank_of_their_parent(ranks, want):
    assert together([rank["plain"] for rank in ranks]) == want[: len(want) // 2]


def test_accelerates_wrappers_are_refused_with_advice(ranks):
    wrappers = {"sharded": "IterableDatasetShard", "dispatched": "DataLoaderDispatcher"}
    for rank in ranks:
        for name, (what, message) in rank["refusals"].items():
            assert what == "refused", name
            assert wrappers[name.split()[0]] in message
            assert "prepare_stream(accelerator, stream)" in message
    assert len(ranks[0]["refusals"]) == len(ranks[1]["refusals"]) + 1 == 4


def test_without_the_guard_accelerate_would_lose_windows(ranks, want):
    """Should Accelerate once deliver all, the guard may go."""
    assert [rank["unguarded"][0] for rank in ranks] == ["delivered"] * 2
    delivered = {tuple(row) for rank in ranks for row in rank["unguarded"][1]}
    assert len(delivered) < len({tuple(row) for _, _, rows in want for row in rows})


# One process


def test_processes_that_accelerate_does_not_know_are_seen(folder, monkeypatch):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidSpecError, match=r"2 processes were started.*knows 1"):
        prepare_stream(accelerator, open_stream(folder))


def test_accelerate_takes_a_step_at_the_end_of_each_epoch(folder):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    loader = prepare_stream(accelerator, open_stream(folder))
    layer = accelerator.prepare(torch.nn.Linear(3, 1))
    steps = []
    for _ in range(2):
        for batch in loader:
            with accelerator.accumulate(layer):
                if accelerator.sync_gradients:
                    steps.append(batch.step + 1)
    assert len(loader) == 8
    assert steps == [3, 6, 8] * 2
    assert not accelerator.gradient_state.in_dataloader


def checkpoints(folder, **options):
    """Train with Lightning; return what was delivered, and a checkpoint after each batch."""
    import pytorch_lightning as pl

    saved = []

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            saved.append(folder / f"{trainer.global_step}.ckpt")
            trainer.save_checkpoint(saved[-1])

        def on_train_epoch_end(self, trainer, *args):
            saved.append(folder / f"epoch{trainer.current_epoch}.ckpt")
            trainer.save_checkpoint(saved[-1])

    data = stream_module(open_stream(folder.parent))
    seen, _ = fit(folder, data, callbacks=[Save()], **options)
    return steps_of(seen), saved


@pytest.mark.parametrize("limit", [1.0, 3])
def test_lightning_resumes_from_any_checkpoint(folder, want, limit):
    """After any batch and after any epoch, also where the trainer's epochs are shorter."""
    at = folder / f"limit{limit}"
    at.mkdir()
    options = {"max_epochs": 2, "limit_train_batches": limit}
    got, saved = checkpoints(at, **options)
    assert got == want[: len(got)]
    assert len(got) == (len(want) if limit == 1.0 else 2 * limit)
    assert len(saved) == len(got) + 2
    for path in saved:
        n_done = torch.load(path, weights_only=False)["global_step"]
        data = stream_module(open_stream(folder), num_workers=int(path == saved[1]))
        seen, _ = fit(at, data, resume=path, **options)
        assert steps_of(seen) == got[n_done:], path.name


def test_lightning_without_the_module_says_what_it_would_repeat(folder):
    """Nothing says to the stream in a DataLoader that an epoch is over, or was before."""
    at = folder / "alone"
    at.mkdir()
    for make in (lambda stream: DataLoader(stream, batch_size=None), StreamLoader):
        with pytest.raises(ResumeError, match=r"beyond epoch 0.*stream_module\(stream\)"):
            fit(at, make(open_stream(folder)), max_epochs=2)
    _, saved = checkpoints(at, max_epochs=1)
    loaders = (
        DataLoader(open_stream(folder), batch_size=None),
        StreamLoader(open_stream(folder), loop="endless"),
    )
    for loader in loaders:
        with pytest.raises(ResumeError, match=r"in epoch 1 after .*stream_module\(stream\)"):
            fit(at, loader, resume=saved[-1], max_epochs=2)
        stream = loader.stream if isinstance(loader, StreamLoader) else loader.dataset
        stream.set_epoch(1)
        seen, _ = fit(at, loader, resume=saved[-1], max_epochs=2)
        assert {batch.epoch for batch in seen} == {1}


def test_lightning_validates_on_the_same_batches_each_time(folder):
    data = stream_module(open_stream(folder), open_stream(folder, seed=9))
    seen = []
    module = linear_module([], seen)
    trainer = quiet_trainer(folder, max_epochs=3, limit_val_batches=2, num_sanity_val_steps=2)
    trainer.fit(module, datamodule=data)
    steps = steps_of(seen)
    assert [step[:2] for step in steps] == [[0, 0], [0, 1]] * 4
    assert steps == steps[:2] * 4
