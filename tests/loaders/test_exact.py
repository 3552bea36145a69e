"""The same sequence of batches whatever the ranks, the workers and the interruptions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import WAYS, ask, digest, join, requests, stores
from torch.utils.data import DataLoader

from loaders.order import worker_steps

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
SOAK = bool(os.environ.get("SOAK"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return stores(tmp_path_factory.mktemp("exact"))


def uninterrupted(made, asked, n_epochs):
    stream = ask(made, asked, rank=0, world_size=1)
    return [batch for _ in range(n_epochs) for batch in stream]


@settings(max_examples=400 if SOAK else 60)
@given(
    asked=requests(),
    phases=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(0, 9)), min_size=1, max_size=4
    ),
)
def test_any_schedule_of_ranks_workers_and_resumes_delivers_the_same(made, asked, phases):
    """In one process: ranks and workers are arithmetic, so simulated ones are the real thing."""
    want = [digest(batch) for batch in uninterrupted(made, asked, 2)]
    got, state = [], None
    for world_size, n_workers, n_steps in [*phases, (1, 1, 10**9)]:
        ranks = [ask(made, asked, rank=rank, world_size=world_size) for rank in range(world_size)]
        for stream in ranks:
            if state is not None:
                stream.load_state_dict(json.loads(json.dumps(state)))
        for batch in _walk(ranks, n_workers, min(n_steps, len(want) - len(got))):
            got.append(digest(batch))
            state = ranks[-1].state_dict(batch)
    assert got == want


def _walk(ranks, n_workers, n_steps):
    """Yield global batches as `n_workers` workers of each rank make them, at most `n_steps`."""
    while n_steps:
        epoch, first = (ranks[0].state_dict()[name] for name in ("epoch", "step"))
        readers = [[stream.reader(epoch) for _ in range(n_workers)] for stream in ranks]
        end = readers[0][0].n_steps
        turns = [worker_steps(first, end, worker=w, n_workers=n_workers) for w in range(n_workers)]
        for step in range(first, end):
            worker = next(w for w, steps in enumerate(turns) if step in steps)
            yield join([mine[worker].read(step) for mine in readers])
            n_steps -= 1
            if not n_steps:
                return
        for stream in ranks:
            stream.set_epoch(epoch + 1)


@settings(max_examples=40)
@given(asked=requests(), data=st.data())
def test_any_step_is_read_without_those_before(made, asked, data):
    stream = ask(made, asked)
    epoch = data.draw(st.integers(0, 2))
    reader = ask(made, asked).reader(epoch)
    stream.set_epoch(epoch)
    want = [digest(batch) for batch in stream]
    assert len(want) == reader.n_steps == stream.n_steps(epoch)
    for step in data.draw(st.permutations(range(reader.n_steps))):
        assert digest(reader.read(step)) == want[step]


# A spawned worker imports torch anew, so the gate has few of them.
WORKERS = [
    ("fork", (4, 7), WAYS[0], None),
    ("fork", (4, 7), WAYS[2], "round_robin"),
    ("spawn", (4, 7) if SOAK else (1, 2), WAYS[1], "round_robin"),
]


@pytest.mark.parametrize(("method", "counts", "way", "by"), WORKERS)
def test_real_workers_more_after_a_resume(made, method, counts, way, by):
    asked = {"request": {"batch_size": 4, **way}, "by": by, "stop": "cycle"}
    want = [digest(batch) for batch in uninterrupted(made, asked, 1)]
    got, state = [], None
    for n_workers in counts:
        stream = ask(made, asked)
        if state is not None:
            stream.load_state_dict(state)
        loader = DataLoader(
            stream, batch_size=None, num_workers=n_workers, multiprocessing_context=method
        )
        for batch in loader:
            got.append(digest(batch))
            state = stream.state_dict(batch)
            if len(got) == 3:
                break
    assert got == want


def test_real_ranks_of_gloo(made, tmp_path):
    """4 steps on 1 process, then 4 on 3 (on 2, 4 and 3 with SOAK=1), of 7 rows a step."""
    worlds = [2, 4, 3] if SOAK else [3]
    wanted = [_begin(made, way, tmp_path / str(number)) for number, way in enumerate(WAYS)]
    script = Path(__file__).with_name("gloo_ranks.py")
    for world_size in worlds:
        subprocess.run(
            [sys.executable, script, str(made[0].path.parent), str(tmp_path), str(world_size)],
            check=True, timeout=120, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    for number, want in enumerate(wanted):
        got = (tmp_path / str(number) / "got").read_text().split()
        assert got == want[4 : len(got) + 4]
        assert len(got) == 4 * len(worlds)


def _begin(made, way, folder):
    """Save the state after four steps on one process; return the digests of what shall come."""
    asked = {"request": {"batch_size": 7, **way}, "by": "proportional", "stop": "first"}
    whole = uninterrupted(made, asked, 9)
    folder.mkdir()
    state = ask(made, asked, rank=0, world_size=1).state_dict(whole[3])
    (folder / "state.json").write_text(json.dumps(state))
    return [digest(batch) for batch in whole]
