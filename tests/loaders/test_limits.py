"""What a stream must not use up: file descriptors, pickles, names in shared memory."""

import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stores import make_store

from loaders import TrialStream

BENCH = Path(__file__).parents[2] / "bench"
N_SHARDS = 150


@pytest.fixture(scope="module")
def names():
    """`bench/limits_names.py`, which leaves no name behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield importlib.import_module("limits_names")
    del sys.modules["limits_names"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(
        tmp_path_factory.mktemp("s"), [40, 30, 50] * (N_SHARDS // 3), n_shards=N_SHARDS
    )


def test_a_claim_measured_alone_keeps_the_others(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    limits = importlib.import_module("limits")
    results, rows = tmp_path / "limits.json", [limits.claim(n, 2, "MB", {}) for n in (1, 3)]
    limits.keep(results, limits.FULL, {"pickled": rows[0], "big_store": rows[0]})
    limits.keep(results, limits.FULL, {"big_store": rows[1], "index_memory": rows[0]})
    kept = json.loads(results.read_text())["claims"]
    assert list(kept) == ["index_memory", "big_store", "pickled"]
    assert [row["met"] for row in kept.values()] == [True, False, True]


def probe(name: str, store, **options) -> dict[str, int]:
    script = str(BENCH / "limits_probes.py")
    done = subprocess.run(
        [sys.executable, script, name, str(store.path), json.dumps(options)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_an_epoch_over_more_shards_than_file_descriptors(store):
    found = probe("many_shards", store, n_descriptors=32)
    assert found["shards"] == N_SHARDS
    assert found["trials_read"] == N_SHARDS
    assert found["descriptors"] < 32


@pytest.mark.parametrize("request_", [{}, {"batches": "lanes"}, {"where": "n_rows > 30"}])
def test_an_open_stream_is_small_as_a_pickle_and_reads_on(store, request_):
    stream = TrialStream(store, batch_size=64, **request_)
    batch = next(iter(stream))
    data = pickle.dumps(stream)
    assert len(data) < 10_000
    other = pickle.loads(data)
    other.load_state_dict(stream.state_dict(batch))
    assert next(iter(other)).step == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc and /dev/shm")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_loop_with_workers_that_ends_leaves_no_name_and_no_process(names, store, number):
    assert names.end_a_loop(store.path, number) == ([], [])


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc and /dev/shm")
def test_a_name_that_stays_would_be_seen(names, store, monkeypatch):
    """The test above can fail: a name that comes meanwhile and stays is reported."""
    monkeypatch.setattr(names, "SETTLE_S", 0.5)
    left = Path("/dev/shm") / f"left-{os.getpid()}"
    real = names.names
    taken = []

    def look():
        if taken:
            left.touch()
        taken.append(True)
        return {name for name in real() if name == left.name}

    monkeypatch.setattr(names, "names", look)
    try:
        assert names.end_a_loop(store.path, signal.SIGINT) == ([left.name], [])
    finally:
        left.unlink()
