"""The parts of `bench/again.py` and `bench/shapes.py` that count: files, bytes, shares, goals."""

import importlib
import sys
from pathlib import Path

import pytest
from stores import make_store

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def bench():
    """A loader of scripts as modules, which leaves no name of theirs behind."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def trials(bench, tmp_path, monkeypatch):
    files = bench("again_files")
    corpus = tmp_path / "corpus" / "A-5" / "raw" / "f000"
    corpus.mkdir(parents=True)
    for number in range(5):
        (corpus / f"t{number:06d}.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    monkeypatch.setattr(files, "SCRATCH", tmp_path / "corpus")
    monkeypatch.setattr(files, "PLACE", tmp_path / "work")
    return files.Trials("A", 5, "ours")


def test_edits_leave_the_corpus_as_it_was(trials, tmp_path):
    content = {path: path.read_bytes() for path in (tmp_path / "corpus").rglob("*.csv")}
    changed, new = trials.changed(), trials.new()
    trials.deleted()
    assert {path: path.read_bytes() for path in (tmp_path / "corpus").rglob("*.csv")} == content
    assert changed.read_text() == "a,b\n1,2\n3,4\n"
    assert new.read_text() == "a,b\n1,2\n3,4\n5,6\n"
    assert trials.data_bytes(changed) == 2 * 2 * 4
    left = list((trials.folder / "raw").rglob("*.csv"))
    assert len(left) == 5
    assert {changed, new} < set(left)


def test_opened_files_and_written_bytes_are_counted(bench, tmp_path):
    files = bench("again_files")
    raw, part = tmp_path / "raw" / "a.csv", tmp_path / "store" / "parts" / "x.parquet"
    for path in (raw, part):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"12345")
    watched = []
    files.note(watched, "open", (str(raw), "r", 0))  # nobody watches yet
    with files.traced(watched, tmp_path) as trace:
        for path in (raw, raw, part, raw.with_name("absent.csv")):
            files.note(watched, "open", (str(path), "r", 0))
        files.note(watched, "import", (str(raw),))
        for name in ("shards/d/zarr.json", "versions/v0001/index.arrow"):
            (made := tmp_path / "store" / name).parent.mkdir(parents=True)
            made.write_bytes(b"123")
    assert trace["opened"] == 1
    assert trace["written_bytes"] == {"shard": 3, "hot index": 3}
    assert trace["calls_bytes"] >= 6


def a_turn(ours_s, peer_s):
    def took(seconds):
        return {"wall_s": seconds, "cpu_s": seconds}

    ours = dict.fromkeys(("nothing", "changed", "new", "deleted", "command"), took(ours_s))
    traces = {name: {"opened": 1} for name in ("nothing", "changed", "new", "deleted")}
    return {
        "ours": {"full": took(ours_s * 50), **ours, "traces": traces},
        "parquet": dict.fromkeys(("full", "changed"), took(peer_s)),
        "npy": dict.fromkeys(("full", "nothing", "changed"), took(peer_s)),
    }


def test_ratios_are_medians_of_ratios_not_ratios_of_medians(bench):
    again = bench("again")
    found = again.summarize([a_turn(1, 10), a_turn(2, 2), a_turn(4, 12)])
    assert found["over_ours"]["npy, changed"] == {"cpu_s": 3, "wall_s": 3}
    assert found["over_ours"]["ours, full"] == {"cpu_s": 50, "wall_s": 50}
    assert found["seconds"]["npy"]["changed"] == {"cpu_s": 10, "wall_s": 10}
    assert found["share_of_full"]["changed"] == {"cpu_s": 0.02, "wall_s": 0.02}
    goals = again.judge({"A": found})
    assert {name: goal["met"] for name, goal in goals.items()} == {
        "A: command with nothing new, s": False,
        "A: changed, CPU share of a full build": True,
        "A: new, CPU share of a full build": True,
        "A: deleted, CPU share of a full build": True,
        "A: nothing, files opened": False,
        "A: changed, files opened": True,
        "A: new, files opened": True,
        "A: deleted, files opened": False,
    }


def test_every_byte_of_a_store_but_its_staging_is_some_part_of_it(bench, tmp_path):
    store = make_store(tmp_path / "s", [7, 5, 9])
    (tmp_path / "s" / "staging").mkdir(exist_ok=True)
    (tmp_path / "s" / "staging" / "0.arrow").write_bytes(b"123")
    found = bench("shapes").sizes_of(store.path)
    on_disk = sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())
    staged = sum(p.stat().st_size for p in (store.path / "staging").rglob("*") if p.is_file())
    assert found.total() == on_disk - staged
    sizes = [shard.arrays["values"].size_bytes for shard in store.manifest.shards]
    assert found["values"] == sum(sizes)
    assert set(found) >= {"values", "index", "manifest", "parts", "rest"}


def test_a_missed_goal_names_what_takes_most_beside_the_values(bench):
    shapes = bench("shapes")
    shares = {"values": 0.9, "targets": 0.1, "parts": 0.04, "observed": 0.03, "index": 0.01}
    row = {"amplification": 1.08, "shares": shares}
    goals = shapes.judge({"A": {"shapes": {"rows zarr": row, "rows zarr mask": row}}})
    assert [goal["met"] for goal in goals.values()] == [False, True]
    assert all(goal["most_beside"] == {"parts": 0.04} for goal in goals.values())
