"""What would lose or repeat batches is refused, with advice; torchdata gets a loader of its own."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice

import pytest
from integration_ranks import STOP, open_stream, steps_of
from torch.utils.data import DataLoader

from loaders.integrations import stateful_loader
from shards import InvalidSpecError

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


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
