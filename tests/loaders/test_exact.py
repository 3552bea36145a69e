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
from streams import QUOTAS, ask, digest, join, requests, stores
from torch.utils.data import DataLoader

from loaders import Balance, LaneBatches, TrialBatches
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


WAYS = [
    {"batches": LaneBatches(chunk=5, burn_in=2), "balance": "sqrt"},
    {"batches": TrialBatches(), "shuffle": "blocks", "balance": "trial"},
    {"balance": Balance("quota", quotas=QUOTAS), "weights": "trial"},
]


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
    """Processes 2, then 3 (all of 1, 2, 4, 3 with SOAK=1), one phase each, of 7 rows a step."""
    worlds = [1, 2, 4, 3] if SOAK else [2, 3]
    for number, way in enumerate(WAYS):
        asked = {"request": {"batch_size": 7, **way}, "by": "proportional", "stop": "first"}
        want = [digest(batch) for batch in uninterrupted(made, asked, 9)]
        _expect(tmp_path / str(number), want)
    script = Path(__file__).with_name("gloo_ranks.py")
    root = made[0].path.parent
    for phase, world_size in enumerate(worlds):
        subprocess.run(
            [sys.executable, script, str(root), str(tmp_path), str(world_size), str(phase)],
            check=True, timeout=120, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    for number in range(len(WAYS)):
        want = (tmp_path / str(number) / "want").read_text().split()
        got = (tmp_path / str(number) / "got").read_text().split()
        assert got == want[: len(got)]
        assert len(got) == 4 * len(worlds)


def _expect(folder, digests):
    folder.mkdir()
    (folder / "want").write_text("\n".join(digests))
