"""Nothing is lost, repeated or read in another order under the trainers of others.

Two real processes run once, in integration_ranks.py; the tests look at what came to them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice

import pytest
import torch
import torch.multiprocessing as mp
from batches import LENGTHS
from integration_ranks import (
    STOP,
    fit,
    linear_module,
    open_stream,
    quiet_trainer,
    run_rank,
    steps_of,
)
from stores import make_store
from torch.utils.data import DataLoader

from loaders import mix
from loaders.integrations import StreamLoader, prepare_stream, stateful_loader, stream_module
from shards import InvalidSpecError
from shards.errors import ResumeError

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("integrations")
    make_store(folder / "store", LENGTHS, n_shards=2)
    return folder


@pytest.fixture(scope="module")
def want(folder):
    """Two epochs of one process, uninterrupted."""
    stream = open_stream(folder)
    return steps_of([*stream, *stream])


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


# Other wrappers


def torch_rows(stream):
    for batch in stream:
        yield {"trial": batch.trial.numpy(), "start": batch.start.numpy()}


def hugging_face(stream, n_nodes=1):
    from datasets import IterableDataset
    from datasets.distributed import split_dataset_by_node

    whole = IterableDataset.from_generator(torch_rows, gen_kwargs={"stream": stream})
    return whole if n_nodes == 1 else split_dataset_by_node(whole, rank=0, world_size=n_nodes)


def test_a_hugging_face_data_set_is_refused_where_it_would_lose_batches(folder):
    assert len(list(hugging_face(open_stream(folder)))) == len(open_stream(folder))
    with pytest.raises(InvalidSpecError, match="every 2th of this rank's batches"):
        list(hugging_face(open_stream(folder), n_nodes=2))
    loader = DataLoader(hugging_face(open_stream(folder)), batch_size=None, num_workers=2)
    with pytest.raises(InvalidSpecError, match="one shard runs in one DataLoader worker"):
        list(loader)


def test_a_sharding_filter_is_refused(folder):
    from torch.utils.data.datapipes.iter import IterableWrapper

    pipe = IterableWrapper(open_stream(folder), deepcopy=False).sharding_filter()
    assert len(list(pipe)) == len(open_stream(folder))
    pipe.apply_sharding(2, 0)
    with pytest.raises(InvalidSpecError, match="sharding_filter"):
        list(pipe)


# torchdata


def torchdata_state(loader):
    next(iter(loader))
    return loader.state_dict()


def test_torchdata_alone_is_refused_and_ours_resumes_with_any_workers(folder, want):
    from torchdata.stateful_dataloader import StatefulDataLoader

    for n_workers in (0, 1):
        loader = StatefulDataLoader(open_stream(folder), batch_size=None, num_workers=n_workers)
        with pytest.raises(InvalidSpecError, match=r"stateful_loader\(stream"):
            torchdata_state(loader)
    loader = stateful_loader(open_stream(folder), num_workers=2)
    assert isinstance(loader, StatefulDataLoader)
    assert len(loader) == len(want) // 2
    assert loader.state_dict() == open_stream(folder).state_dict()
    assert steps_of(islice(loader, STOP)) == want[:STOP]
    for n_workers in (0, 1):
        other = stateful_loader(open_stream(folder), num_workers=n_workers)
        other.load_state_dict(loader.state_dict())
        assert steps_of([*other, *other]) == want[STOP:]
        assert other.state_dict()["epoch"] == 2


def test_a_package_that_is_not_there_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdata.stateful_dataloader", None)
    with pytest.raises(InvalidSpecError, match="pip install torchdata"):
        stateful_loader(open_stream(folder))


def test_none_of_them_is_loaded_before_it_is_asked_for():
    code = (
        "import sys, loaders, loaders.integrations; "
        "print({'accelerate', 'pytorch_lightning', 'lightning', 'torchdata', 'datasets'}"
        " & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# StreamLoader


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("loop", ["epoch", "endless"])
def test_a_loader_goes_on_after_its_last_batch_not_that_of_its_workers(
    folder, want, n_workers, loop
):
    loader = StreamLoader(open_stream(folder), num_workers=n_workers, loop=loop)
    assert steps_of(islice(loader, STOP)) == want[:STOP]
    other = StreamLoader(open_stream(folder))
    other.load_state_dict(loader.state_dict())
    assert steps_of([*other, *other]) == want[STOP:]


def test_an_endless_loader_goes_on_and_one_of_the_same_starts_again(folder, want):
    endless = StreamLoader(open_stream(folder), loop="endless")
    got = [step for _ in range(4) for step in steps_of(islice(endless, 4))]
    assert got == want
    same = StreamLoader(open_stream(folder), loop="same")
    n_steps = len(same)
    for n_asked in (n_steps, 2, n_steps):
        assert steps_of(islice(same, n_asked)) == want[:n_asked]
    same.set_epoch(1)
    assert steps_of(same) == steps_of(same) == want[n_steps:]


def test_a_mixture_is_loaded_alike(folder):
    def mixed():
        return mix([open_stream(folder), open_stream(folder, seed=8)])

    stream = mixed()
    want = steps_of([*stream, *stream])
    loader = StreamLoader(mixed())
    first = steps_of(islice(loader, STOP))
    other = StreamLoader(mixed(), num_workers=1)
    other.load_state_dict(loader.state_dict())
    assert first + steps_of([*other, *other]) == want


def test_batches_come_on_the_device(folder):
    batch = next(iter(StreamLoader(open_stream(folder), device="meta")))
    assert batch.values.device.type == batch.trial.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loop": "forever"}, "loop is 'forever'; wanted one of epoch"),
        ({"batch_size": 4}, "batch_size: a stream yields whole batches"),
        ({"drop_last": True, "shuffle": True}, "drop_last, shuffle: a stream"),
    ],
)
def test_what_a_loader_cannot_do_is_said(folder, options, message):
    with pytest.raises(InvalidSpecError, match=message):
        StreamLoader(open_stream(folder), **options)


# One process


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
    with pytest.raises(ResumeError, match=r"set_epoch\(1\)"):
        fit(at, DataLoader(open_stream(folder), batch_size=None), max_epochs=2)
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
