"""Batches whose copies were begun early are those of a loop that copies when it is asked."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import ask, digest, requests, stores

from loaders import copying, copythread
from loaders.compiled import Loader
from loaders.copying import Fetch
from loaders.copythread import CopyThread
from loaders.corewait import CoreWatch


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return stores(tmp_path_factory.mktemp("early"))


@pytest.fixture(scope="module", autouse=True)
def begun(made):
    """Copy by the loop and its thread, whatever else runs; return how many began early."""
    pytest.importorskip("llvmlite")
    n_begun = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        loader = Loader()
        assert loader.load()
        thread = CopyThread(loader.loop)
        patch.setattr(copying, "loader", loader)
        patch.setattr(copythread, "_threads", {id(loader.loop): thread})
        patch.setattr(CoreWatch, "is_free", lambda *_: True)
        begin = Fetch.begin

        def count(fetch):
            begin(fetch)
            next(n_begun)

        patch.setattr(Fetch, "begin", count)
        yield n_begun
        thread.end()


@settings(max_examples=60)
@given(asked=requests(), breaks=st.lists(st.integers(1, 9), max_size=4))
def test_every_way_to_ask_delivers_the_same_and_goes_on_the_same(made, begun, asked, breaks):
    late = ask(made, asked, ahead=0)
    want = [digest(batch) for _ in range(2) for batch in late]
    before, got, state, phases = next(begun), list[str](), None, iter(breaks)
    while len(got) < len(want):
        early = ask(made, asked)
        if state is not None:
            early.load_state_dict(state)
        for batch in itertools.islice(early, next(phases, None)):
            got.append(digest(batch))
            state = early.state_dict(batch)
    assert got == want
    if not breaks and asked["by"] is None:
        # All but the first two steps of each epoch.
        assert next(begun) - before - 1 == max(0, late.n_steps(0) - 2) + max(0, late.n_steps(1) - 2)


def test_two_loops_over_one_stream_share_the_thread(made):
    asked = {"request": {"batch_size": 4}, "by": None, "stop": "first"}
    stream = ask(made, asked)
    want = [digest(batch) for batch in ask(made, asked, ahead=0)]
    pairs = list(zip(iter(stream), iter(stream), strict=True))
    assert [digest(one) for one, _ in pairs] == [digest(two) for _, two in pairs] == want


def test_a_batch_that_is_kept_stays_as_it_is(made):
    asked = {"request": {"batch_size": 4}, "by": None, "stop": "first"}
    kept = list(ask(made, asked))
    assert [digest(batch) for batch in kept] == [digest(b) for b in ask(made, asked, ahead=0)]


def test_nothing_is_begun_where_nothing_shall_be_early(made, begun):
    asked = {"request": {"batch_size": 4}, "by": None, "stop": "first"}
    before = next(begun)
    for batch in ask(made, asked, ahead=0):
        assert len(batch) == 4
    assert next(begun) == before + 1
