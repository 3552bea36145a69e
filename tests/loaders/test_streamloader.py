"""A loader knows which batch it handed out last, whatever its workers have read."""

from __future__ import annotations

from itertools import islice

import pytest
from integration_ranks import STOP, open_stream, steps_of

from loaders import mix
from loaders.integrations import StreamLoader
from shards import InvalidSpecError

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


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
