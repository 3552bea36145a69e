"""Again and again: a build reads what differs, and delivers what a clean build would."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trialfolders import build_checked, snapshot, split_of, write_spec, write_trial, write_trials

from loaders import TrialStream
from pipeline import commit as commit_module
from pipeline.build import build
from pipeline.patch import patch_files
from shards import Store
from shards.errors import CommitConflictError, InvalidSpecError
from shards.tombstone import tombstone_trials
from shards.verify import verify_store
from shards.writer import list_versions

SPECS: dict[str, dict[str, Any]] = {
    "own scale": {"normalize": {"method": "zscore", "scope": "trial"}},
    "train": {"normalize": {"method": "minmax", "scope": "train"}},
    "quartiles": {"normalize": {"method": "robust", "scope": "train"}},
    "buckets": {"shards": {"buckets": 4}, "split": {"method": "exact"}},
    "masked": {"clean": {"missing": "none"}},
    "groups": {
        "source": {"trial_id": r"(?P<id>(?P<group>g\d)/[^.]+)"},
        "normalize": {"scope": "group:group"},
        "split": {"stratify": "group", "method": "exact"},
    },
    "windows": {"shards": {"layout": "windows"}},
    "parquet": {"shards": {"format": "parquet"}},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIALSHARDS_CACHE", str(tmp_path_factory.mktemp("cache")))


def batches_of(store: Path, split: str) -> list[dict[str, Any]]:
    """Every tensor of one epoch, as bytes."""
    found = []
    for batch in TrialStream(store, split=split, batch_size=8, seed=3):
        tensors = {k: v for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
        found.append({k: (v.shape, v.dtype, v.numpy().tobytes()) for k, v in tensors.items()})
    return found


def assert_delivers_like_a_clean_build(root: Path, spec: Path, store: Path) -> None:
    clean = root / "clean"
    shutil.rmtree(clean, ignore_errors=True)
    build(spec, clean, fit=store / "versions" / list_versions(store)[-1] / "fit.json")
    ours, theirs = Store(store), Store(clean)
    assert ours.fingerprint == theirs.fingerprint
    assert split_of(ours) == split_of(theirs)
    for split in ours.manifest.splits:
        if (ours.index.n_windows[ours.index.split == ours.split_code(split)]).sum():
            assert batches_of(store, split) == batches_of(clean, split)


def change(path: Path, rng: np.random.Generator) -> None:
    lines = path.read_text().splitlines()
    at = int(rng.integers(1, len(lines)))
    lines[at] = ",".join(repr(float(x)) for x in rng.normal(0, 1, lines[at].count(",") + 1))
    path.write_text("\n".join(lines) + "\n")
    later = path.stat().st_mtime_ns + 10**9  # however coarse the clock of the disk is
    os.utime(path, ns=(later, later))


@pytest.mark.parametrize("sections", SPECS.values(), ids=SPECS)
def test_after_any_changes_batches_are_those_of_a_clean_build(tmp_path: Path, sections):
    write_trials(tmp_path, 14, missing=0.1, seed=3)
    spec, store = write_spec(tmp_path, max_quarantined=0.5, **sections), tmp_path / "store"
    build_checked(spec, store)
    rng = np.random.default_rng(1)
    raw = tmp_path / "raw"
    for turn in range(4):
        files = sorted(raw.rglob("*.csv"))
        change(files[int(rng.integers(len(files)))], rng)
        write_trial(tmp_path, f"g1/new{turn}", {"x": rng.normal(0, 1, 9), "y": np.arange(9.0)})
        files[int(rng.integers(1, len(files)))].unlink()
        if turn == 1:
            (raw / "g0" / "broken.csv").write_text("x,y\n1,two\n")
        report, _ = build_checked(spec, store)
        assert report.published
        assert report.n_read <= 3
        assert_delivers_like_a_clean_build(tmp_path, spec, store)
    assert not build(spec, store).published


@settings(max_examples=12)
@given(st.data())
def test_exactly_the_files_that_differ_are_opened(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    root = tmp_path_factory.mktemp("counted")
    write_trials(root, 9, seed=2)
    spec, store = write_spec(root, max_quarantined=0.5), root / "store"
    broken = root / "raw" / "g0" / "broken.csv"
    broken.write_text("x,y\n1,two\n")
    build(spec, store)
    files = sorted((root / "raw").rglob("*.csv"))
    changed = data.draw(st.sets(st.sampled_from(files), max_size=3))
    gone = data.draw(st.sets(st.sampled_from(files), max_size=2)) - changed
    rng = np.random.default_rng(0)
    for path in changed:
        change(path, rng)
    for path in gone:
        path.unlink()
    opened = opened_by(lambda: build(spec, store), root / "raw")
    assert sorted(opened) == sorted(changed)
    assert opened_by(lambda: build(spec, store), root / "raw") == []


def opened_by(work: Callable[[], Any], below: Path) -> list[Path]:
    """Files below a folder that a piece of work opened, by the interpreter's own audit hook."""
    found: list[Path] = []
    _WATCHED.append((below, found))
    try:
        work()
    finally:
        _WATCHED.pop()
    return sorted(set(found))


_WATCHED: list[tuple[Path, list[Path]]] = []


def _on_event(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _WATCHED and isinstance(args[0], str | os.PathLike):
        below, found = _WATCHED[-1]
        path = Path(args[0])
        if path.is_relative_to(below) and path.is_file():
            found.append(path)


__import__("sys").addaudithook(_on_event)


def test_a_change_writes_its_rows_one_index_and_one_manifest(tmp_path: Path):
    trials = write_trials(tmp_path, 60, longest=400, seed=4)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    build(spec, store)
    before = snapshot(store)
    name = max(trials, key=lambda name: len(trials[name]["x"]))
    change(tmp_path / "raw" / f"{name}.csv", np.random.default_rng(0))
    build(spec, store)
    written = {path for path, digest in snapshot(store).items() if before.get(path) != digest}
    shard = {path for path in written if path.startswith("shards/")}
    assert {path.split("/")[2] for path in shard} == {"zarr.json", "values", "observed"}
    (part,) = (path for path in written if path.startswith("parts/"))
    assert written - shard - {part} == {
        "latest.json",
        *(f"versions/v0002/{file}" for file in (
            "dataset.json", "fit.json", "index.arrow", "quarantine.parquet",
        )),
    }  # fmt: skip
    chunk = next(store / path for path in shard if path.endswith("values/c/0/0"))
    n_rows = len(trials[name]["x"])
    assert chunk.stat().st_size - n_rows * 2 * 4 < 64  # the trial's rows, an index, a checksum


def test_a_file_that_was_touched_is_read_and_moves_nothing(tmp_path: Path):
    write_trials(tmp_path, 8, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    _, before = build_checked(spec, store)
    path = sorted((tmp_path / "raw").rglob("*.csv"))[2]
    os.utime(path, (1, 1))
    report, after = build_checked(spec, store)
    assert report.n_read == 1
    assert after.fingerprint == before.fingerprint
    assert [s.digest for s in after.manifest.shards] == [s.digest for s in before.manifest.shards]
    assert build(spec, store).n_read == 0


@pytest.mark.parametrize(
    "sections",
    [{"split": {"seed": 5}}, {"windows": {"length": 3}}, {"name": "other"}, {"max_quarantined": 1}],
    ids=str,
)
def test_another_split_or_window_reads_no_file(tmp_path: Path, sections):
    write_trials(tmp_path, 12, seed=1)
    store = tmp_path / "store"
    build(write_spec(tmp_path), store)
    spec = write_spec(tmp_path, **sections)
    assert opened_by(lambda: build_checked(spec, store), tmp_path / "raw") == []
    assert len(list_versions(store)) == 2
    assert_delivers_like_a_clean_build(tmp_path, spec, store)


def test_another_cleaning_reads_all(tmp_path: Path):
    write_trials(tmp_path, 6, seed=1, missing=0.2)
    store = tmp_path / "store"
    build(write_spec(tmp_path), store)
    report = build(write_spec(tmp_path, clean={"missing": "ffill"}), store)
    assert report.n_read == 6


def test_a_lost_shard_is_built_again(tmp_path: Path):
    write_trials(tmp_path, 6, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    _, before = build_checked(spec, store)
    shutil.rmtree(next((store / "shards").iterdir()))
    shutil.rmtree(store / "staging")
    build(spec, store)
    assert verify_store(store) == []
    assert Store(store).fingerprint == before.fingerprint


def test_what_a_file_alone_refused_is_not_read_again_until_it_changes(tmp_path: Path):
    write_trials(tmp_path, 6, seed=1)
    bad = tmp_path / "raw" / "g0" / "bad.csv"
    bad.write_text("x,y\n1,two\n")
    spec, store = write_spec(tmp_path, max_quarantined=0.5), tmp_path / "store"
    assert len(build(spec, store).refusals) == 1
    assert opened_by(lambda: build(spec, store), tmp_path / "raw") == []
    write_trial(tmp_path, "g0/more", {"x": [1.0, 2.0], "y": [1.0, 2.0]})
    report, _ = build_checked(spec, store)
    assert (report.n_read, [r.code for r in report.refusals]) == (1, ["not_a_number"])
    bad.write_text("x,y\n1,2\n3,4\n")
    report, _ = build_checked(spec, store)
    assert (report.n_read, report.refusals) == (1, ())


def test_a_tombstone_outlives_builds_until_it_is_undone(tmp_path: Path):
    write_trials(tmp_path, 9, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    build(spec, store)
    tombstone_trials(store, ["g1/t04"], "sensor came loose")
    assert not build(spec, store).published
    change(tmp_path / "raw" / "g1" / "t04.csv", np.random.default_rng(0))
    write_trial(tmp_path, "g0/more", {"x": [1.0, 2.0], "y": [1.0, 2.0]})
    report, opened = build_checked(spec, store)
    assert report.counts["ignored"] == {"tombstone": 1}
    assert "g1/t04" not in opened
    assert "g0/more" in opened
    # A specification that reads everything anew does not bring it back, either.
    _, opened = build_checked(write_spec(tmp_path, clean={"missing": "ffill"}), store)
    assert "g1/t04" not in opened
    tombstone_trials(store, ["g1/t04"], undo=True)
    _, opened = build_checked(write_spec(tmp_path, clean={"missing": "ffill"}), store)
    assert "g1/t04" in opened


def test_frozen_quartiles_stay_until_refit(tmp_path: Path):
    write_trials(tmp_path, 12, seed=1)
    spec = write_spec(tmp_path, normalize={"method": "robust", "scope": "train"})
    store = tmp_path / "store"
    _, first = build_checked(spec, store)
    for number in range(12):
        far = np.linspace(1e3, 2e3, 30)
        write_trial(tmp_path, f"g9/far{number}", {"x": far, "y": far})
    report, second = build_checked(spec, store)
    assert second.fit["normalize"]["offset"] == first.fit["normalize"]["offset"]
    assert second.fit["frozen"]["trials_digest"] == first.fit["trials_digest"]
    assert any("--refit" in warning for warning in report.warnings)
    _, third = build_checked(spec, store, refit=True)
    assert third.fit["normalize"]["offset"] != first.fit["normalize"]["offset"]
    assert "frozen" not in third.fit
    _, clean = build_checked(spec, tmp_path / "other")
    assert clean.fingerprint == third.fingerprint


def test_a_fit_of_other_channels_is_refused(tmp_path: Path):
    write_trials(tmp_path, 6, seed=1)
    spec, store = write_spec(tmp_path, normalize={"scope": "train"}), tmp_path / "store"
    build(spec, store)
    other = write_spec(tmp_path, normalize={"scope": "trial"})
    with pytest.raises(InvalidSpecError, match="given fit"):
        build(other, tmp_path / "two", fit=store / "versions" / "v0001" / "fit.json")


# --- single files ---------------------------------------------------------------------------------


def test_patching_reads_one_file_whatever_its_size_and_time_say(tmp_path: Path):
    write_trials(tmp_path, 8, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    build(spec, store)
    path = tmp_path / "raw" / "g1" / "t04.csv"
    times = path.stat()
    text = path.read_text()
    path.write_text(text[:-2] + ("1" if text[-2] != "1" else "2") + text[-1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not build(spec, store).published  # nothing tells
    opened = opened_by(lambda: patch_files(spec, store, [path]), tmp_path / "raw")
    assert opened == [path]
    assert verify_store(store) == []
    assert_delivers_like_a_clean_build(tmp_path, spec, store)


def test_adding_takes_new_files_alone(tmp_path: Path):
    write_trials(tmp_path, 8, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    build(spec, store)
    write_trial(tmp_path, "g0/more", {"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 5.0]})
    write_trial(tmp_path, "g0/later", {"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 5.0]})
    patch_files(spec, store, ["raw/g0/more.csv"], add=True)
    opened = Store(store)
    assert "g0/more" in opened
    assert "g0/later" not in opened
    assert verify_store(store) == []
    with pytest.raises(InvalidSpecError, match=r"g0/more\.csv is in the store already"):
        patch_files(spec, store, ["raw/g0/more.csv"], add=True)
    build(spec, store)
    assert_delivers_like_a_clean_build(tmp_path, spec, store)


@pytest.mark.parametrize(
    ("path", "said"),
    [("/etc/hostname", "does not lie below"), ("raw/none.csv", "No such file"), ("raw", "regular")],
)
def test_what_cannot_be_patched_is_refused(tmp_path: Path, path: str, said: str):
    write_trials(tmp_path, 4, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    with pytest.raises(InvalidSpecError, match="trialshards build"):
        patch_files(spec, store, ["raw/g0/t00.csv"])
    build(spec, store)
    with pytest.raises(InvalidSpecError, match=said):
        patch_files(spec, store, [path])
    assert list_versions(store) == ["v0001"]


# --- two at once ----------------------------------------------------------------------------------


def interrupted_by(monkeypatch: pytest.MonkeyPatch, other: Callable[[], Any]) -> None:
    """Let `other` happen once, just before the next version is claimed."""
    publish, todo = commit_module.publish_version, [other]

    def publishing(*args: Any, **more: Any) -> str:
        if todo:
            todo.pop()()
        return publish(*args, **more)

    monkeypatch.setattr(commit_module, "publish_version", publishing)


def test_of_two_builds_of_different_files_the_second_goes_on_top(tmp_path: Path, monkeypatch):
    write_trials(tmp_path, 10, seed=1)
    spec, store = write_spec(tmp_path, shards={"buckets": 2}), tmp_path / "store"
    build(spec, store)
    change(tmp_path / "raw" / "g1" / "t04.csv", np.random.default_rng(0))
    write_trial(tmp_path, "g0/theirs", {"x": [1.0, 2.0], "y": [1.0, 2.0]})
    mine = ["raw/g1/t04.csv"]
    interrupted_by(monkeypatch, lambda: patch_files(spec, store, ["raw/g0/theirs.csv"], add=True))
    report = patch_files(spec, store, mine)
    assert report.version == "v0003"
    assert verify_store(store) == []
    assert_delivers_like_a_clean_build(tmp_path, spec, store)
    assert not build(spec, store).published


def test_of_two_builds_of_one_file_the_later_one_says_who_won(tmp_path: Path, monkeypatch):
    write_trials(tmp_path, 6, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    build(spec, store)
    path, rng = tmp_path / "raw" / "g1" / "t04.csv", np.random.default_rng(0)
    change(path, rng)

    def again() -> None:
        change(path, rng)
        build(spec, store)

    interrupted_by(monkeypatch, again)
    with pytest.raises(CommitConflictError, match=r"v0002 was committed.*g1/t04\.csv"):
        build(spec, store)
    assert verify_store(store) == []
    assert list_versions(store) == ["v0001", "v0002"]


def test_two_equal_builds_at_once_publish_one_version(tmp_path: Path):
    write_trials(tmp_path, 10, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    with ThreadPoolExecutor(2) as pool:
        reports = [future.result() for future in [pool.submit(build, spec, store) for _ in "ab"]]
    assert [report.version for report in reports] == ["v0001"] * 2
    assert list_versions(store) == ["v0001"]
    assert verify_store(store) == []
