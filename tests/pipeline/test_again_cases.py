"""Single cases of building again, each of which once went wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_again import assert_delivers_like_a_clean_build, change, interrupted_by
from trialfolders import build_checked, check_conservation, quarantine_of, write_spec

from trialfolders import write_trial, write_trials  # isort: skip

from pipeline.build import build
from pipeline.patch import patch_files
from pipeline.workspace import Workspace
from shards import Store
from shards.errors import CommitConflictError, InvalidSpecError
from shards.tombstone import tombstone_trials
from shards.verify import verify_store
from shards.writer import list_versions

MANY: dict[str, Any] = {"source": {"split_on": ["unit"]}, "max_quarantined": 0.9}
MASS = {"mass": {"table": "facts.csv", "trial_id": "{id}", "column": "mass"}}


def write_many(root: Path, name: str, seed: int = 0) -> Path:
    """Write a file with the trials `name/u1` and `name/u2`."""
    numbers = np.random.default_rng(seed).normal(0, 1, (12, 2)).tolist()
    lines = [f"u{1 + n % 2},{x},{y}" for n, (x, y) in enumerate(numbers)]
    path = root / "raw" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["unit,x,y", *lines]) + "\n")
    return path


def assert_counts_like_a_clean_build(spec: Path, store: Path) -> None:
    clean = store.with_name("clean")
    shutil.rmtree(clean, ignore_errors=True)
    build(spec, clean)
    assert Store(store).manifest.counts == Store(clean).manifest.counts
    assert quarantine_of(Store(store)) == quarantine_of(Store(clean))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


# --- trials taken out -----------------------------------------------------------------------------


@pytest.mark.parametrize("units", [["a/u1"], ["a/u1", "a/u2"]], ids=["one", "all"])
def test_a_trial_that_shall_come_back_is_not_forgotten_by_a_patch(tmp_path: Path, units):
    for seed, name in enumerate("abc"):
        write_many(tmp_path, name, seed)
    spec, store = write_spec(tmp_path, **MANY), tmp_path / "store"
    build(spec, store)
    tombstone_trials(store, units, "by mistake")
    tombstone_trials(store, ["a/u1"], undo=True)
    patch_files(spec, store, ["raw/b.csv"])
    build(spec, store)
    assert "a/u1" in Store(store)
    assert ("a/u2" in Store(store)) == (len(units) == 1)
    assert not build(spec, store).published


def test_a_file_of_which_nothing_is_left_may_go(tmp_path: Path):
    for seed, name in enumerate("abc"):
        write_many(tmp_path, name, seed)
    spec, store = write_spec(tmp_path, **MANY), tmp_path / "store"
    build(spec, store)
    tombstone_trials(store, ["a/u1", "a/u2"], "worn")
    write_many(tmp_path, "d", 7)
    report = build(spec, store)
    assert (report.counts["files"], report.counts["ignored"]) == (4, {"tombstone": 1})
    (tmp_path / "raw" / "a.csv").unlink()
    report = build(spec, store)
    assert (report.counts["files"], report.counts["ignored"]) == (3, {})
    assert not build(spec, store).published


def test_a_file_whose_trial_was_taken_out_may_go(tmp_path: Path):
    write_trials(tmp_path, 9, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    build(spec, store)
    tombstone_trials(store, ["g1/t04"], "worn")
    (tmp_path / "raw" / "g1" / "t04.csv").unlink()
    assert build_checked(spec, store)[0].counts["ignored"] == {}
    space = Workspace.open(spec, store)
    assert space.delta(space.scan(), space.base()).is_empty
    build_checked(write_spec(tmp_path, clean={"missing": "ffill"}), store)


def test_a_scan_does_not_call_it_gone_what_was_taken_out(tmp_path: Path):
    write_trials(tmp_path, 9, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    build(spec, store)
    tombstone_trials(store, ["g1/t04"], "worn")
    space = Workspace.open(spec, store)
    assert not space.delta(space.scan(), space.base()).changes


def test_a_file_that_comes_back_by_a_patch_counts_once(tmp_path: Path):
    write_trials(tmp_path, 8, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    build(spec, store)
    tombstone_trials(store, ["g1/t04"], "by mistake")
    with pytest.raises(InvalidSpecError, match=r"taken out by hand.*--undo"):
        patch_files(spec, store, ["raw/g1/t04.csv"])
    tombstone_trials(store, ["g1/t04"], undo=True)
    check_conservation(Store(store))
    patch_files(spec, store, ["raw/g1/t04.csv"])
    check_conservation(Store(store))
    assert_counts_like_a_clean_build(spec, store)
    assert not build(spec, store).published


def test_a_file_with_refused_trials_alone_is_refused_and_not_ignored(tmp_path: Path):
    path = write_many(tmp_path, "a")
    lines = path.read_text().replace("unit,x,y", "unit,x,y,m").split("\n")
    told = [f"{line},{n if line.startswith('u2') else 1}" for n, line in enumerate(lines[1:-1])]
    path.write_text("\n".join([lines[0], *told]) + "\n")
    write_many(tmp_path, "b", 1).write_text(path.read_text().replace("u2,", "u3,"))
    attributes = {"m": {"column": "m"}}
    spec, store = write_spec(tmp_path, **MANY, attributes=attributes), tmp_path / "store"
    refused = quarantine_of(build_checked_many(spec, store))
    assert set(refused) == {"raw/a.csv", "raw/b.csv"}
    tombstone_trials(store, ["a/u1"], "worn")
    assert Store(store).manifest.counts["ignored"] == {}
    write_many(tmp_path, "c", 2).write_text(path.read_text())
    build(spec, store)
    assert Store(store).manifest.counts["ignored"] == {}


def build_checked_many(spec: Path, store: Path) -> Store:
    build(spec, store)
    assert verify_store(store) == []
    return Store(store)


# --- what a trial depends on ----------------------------------------------------------------------


def test_times_that_change_alone_are_stored(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(0, 1, 9) for name in "xy"}
    for name in ("a", "b", "c"):
        write_trial(tmp_path, name, {"t": rng.uniform(1, 2, 9).cumsum(), **rows})
    spec, store = write_spec(tmp_path, source={"time": "t"}), tmp_path / "store"
    _, before = build_checked(spec, store)
    path = write_trial(tmp_path, "b", {"t": rng.uniform(1, 2, 9).cumsum(), **rows})
    os.utime(path, (5, 5))
    _, after = build_checked(spec, store)
    assert after.fingerprint == before.fingerprint  # no batch holds times
    build(spec, tmp_path / "clean")
    assert after["b"].time.tolist() == Store(tmp_path / "clean")["b"].time.tolist()
    os.utime(path, (6, 6))
    _, touched = build_checked(spec, store)
    assert [s.digest for s in touched.manifest.shards] == [s.digest for s in after.manifest.shards]


def test_what_a_table_made_refused_is_read_again_when_the_table_is_mended(tmp_path: Path):
    write_trials(tmp_path, 4, seed=1)
    names = [f"g{n % 3}/t{n:02d}" for n in range(4)]
    table = tmp_path / "facts.csv"
    table.write_text("id,mass\n" + "".join(f"{name},heavy\n" for name in names[:2])
                     + "".join(f"{name},2\n" for name in names[2:]))  # fmt: skip
    spec = write_spec(tmp_path, attributes=MASS, static=["mass"], max_quarantined=0.9)
    store = tmp_path / "store"
    report, _ = build_checked(spec, store)
    assert [refusal.code for refusal in report.refusals] == ["static_not_a_number"] * 2
    table.write_text(table.read_text().replace("heavy", "1"))
    report, _ = build_checked(spec, store)
    assert (report.refusals, report.n_read) == ((), 2)
    assert_delivers_like_a_clean_build(tmp_path, spec, store)


def test_splits_need_not_hold_train(tmp_path: Path):
    write_trials(tmp_path, 8, seed=1)
    fractions = {"fit": 0.5, "hold": 0.5}
    spec = write_spec(tmp_path, normalize={"scope": "trial"}, split={"fractions": fractions})
    store = tmp_path / "store"
    build(spec, store)
    write_trial(tmp_path, "g0/more", {"x": [1.0, 2.0], "y": [1.0, 2.0]})
    build_checked(spec, store)
    assert_delivers_like_a_clean_build(tmp_path, spec, store)


def test_windows_of_a_batch_that_is_refused_as_a_whole(tmp_path: Path):
    write_trials(tmp_path, 6, seed=1)
    spec = write_spec(tmp_path, shards={"layout": "windows"}, max_quarantined=0.5)
    store = tmp_path / "store"
    build(spec, store)
    (tmp_path / "raw" / "g0" / "bad.csv").write_text("x,y\n1,two\n")
    report, _ = build_checked(spec, store)
    assert [refusal.code for refusal in report.refusals] == ["not_a_number"]


def test_copies_that_change_are_counted_as_they_are(tmp_path: Path):
    write_trials(tmp_path, 8, seed=1)
    spec = write_spec(tmp_path, source={"trial_id": r"t\d+"}, max_quarantined=0.9)
    store, twin = tmp_path / "store", tmp_path / "raw" / "g9" / "t03.csv"
    twin.parent.mkdir()
    shutil.copy(tmp_path / "raw" / "g0" / "t03.csv", twin)
    build_checked(spec, store)
    twin.write_text("")
    build_checked(spec, store)
    assert_counts_like_a_clean_build(spec, store)
    shutil.copy(twin, twin.parents[1] / "t03.csv")
    (twin.parents[1] / ".hidden.csv").write_text("")
    build_checked(spec, store)
    assert_counts_like_a_clean_build(spec, store)


# --- single files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["notes/t99.csv", "raw/.t99.csv", "raw/t99.txt"])
def test_a_patch_takes_no_file_that_a_build_would_drop(tmp_path: Path, path: str):
    write_trials(tmp_path, 6, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    build(spec, store)
    (tmp_path / "notes").mkdir()
    shutil.copy(tmp_path / "raw" / "g0" / "t03.csv", tmp_path / path)
    with pytest.raises(InvalidSpecError, match="does not match it"):
        patch_files(spec, store, [path])
    assert list_versions(store) == ["v0001"]


def test_a_patch_does_not_decide_which_of_two_copies_is_right(tmp_path: Path):
    write_trials(tmp_path, 6, seed=1)
    spec = write_spec(tmp_path, source={"trial_id": r"t\d+"}, max_quarantined=0.9)
    store, twin = tmp_path / "store", tmp_path / "raw" / "g9" / "t03.csv"
    twin.parent.mkdir()
    shutil.copy(tmp_path / "raw" / "g0" / "t03.csv", twin)
    build(spec, store)
    with pytest.raises(InvalidSpecError, match=r"'t03', which raw/g0/t03\.csv has already"):
        patch_files(spec, store, [twin])


def test_what_was_patched_does_not_come_back_from_staging(tmp_path: Path):
    write_trials(tmp_path, 6, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    build(spec, store)
    path = tmp_path / "raw" / "g1" / "t04.csv"
    times, lines = path.stat(), path.read_text().split("\n")
    path.write_text("\n".join([lines[0], "8" + lines[1][1:], *lines[2:]]))
    assert path.stat().st_size == times.st_size
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    patch_files(spec, store, [path])
    patched = Store(store).fingerprint
    assert_delivers_like_a_clean_build(tmp_path, spec, store)
    for shard in (store / "shards").iterdir():
        shutil.rmtree(shard / "observed")
    build_checked(spec, store)
    assert Store(store).fingerprint == patched


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["zarr", "parquet"])
@pytest.mark.parametrize("staged", [True, False], ids=["staged", "not staged"])
def test_a_shard_that_was_cut_short_is_written_again(tmp_path: Path, container: str, staged: bool):
    write_trials(tmp_path, 6, seed=1)
    spec, store = write_spec(tmp_path, shards={"format": container}), tmp_path / "store"
    _, before = build_checked(spec, store)
    cut(max((store / "shards").rglob("*"), key=lambda path: path.is_file() * path.stat().st_size))
    if not staged:
        shutil.rmtree(store / "staging")
    _, after = build_checked(spec, store)
    assert after.fingerprint == before.fingerprint
    assert build(spec, store).n_read == 0


@pytest.mark.parametrize("name", ["fit.json", "quarantine.parquet", "index.arrow"])
@pytest.mark.parametrize("more", [True, False], ids=["more", "same"])
def test_a_version_that_lost_a_file_of_its_own_is_built_again(
    tmp_path: Path, name: str, more: bool
):
    write_trials(tmp_path, 8, seed=1)
    spec = write_spec(tmp_path, normalize={"method": "robust", "scope": "train"})
    store = tmp_path / "store"
    build(spec, store)
    (store / "versions" / "v0001" / name).unlink()
    if more:
        write_trial(tmp_path, "g0/more", {"x": [1.0, 2.0], "y": [1.0, 2.0]})
    report, _ = build_checked(spec, store)
    assert report.version == "v0002"
    assert_delivers_like_a_clean_build(tmp_path, spec, store)


def test_what_was_taken_out_stays_out_behind_a_version_that_cannot_be_opened(tmp_path: Path):
    write_trials(tmp_path, 9, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    build(spec, store)
    tombstone_trials(store, ["g1/t04"], "worn")
    write_trial(tmp_path, "g0/more", {"x": [1.0, 2.0], "y": [1.0, 2.0]})
    build(spec, store)
    (store / "versions" / "v0003" / "dataset.json").write_text("{")
    _, opened = build_checked(spec, store)
    assert opened.version == "v0004"
    assert "g1/t04" not in opened


def test_a_given_fit_that_does_not_say_what_it_came_from_is_refused(tmp_path: Path):
    write_trials(tmp_path, 8, seed=1)
    spec = write_spec(tmp_path, normalize={"method": "robust", "scope": "train"})
    store = tmp_path / "store"
    build(spec, store)
    fit = json.loads((store / "versions" / "v0001" / "fit.json").read_text())
    del fit["trials_digest"]
    (tmp_path / "fit.json").write_text(json.dumps(fit))
    with pytest.raises(InvalidSpecError, match="trials_digest"):
        build(spec, store, fit=tmp_path / "fit.json")


# --- two at once ----------------------------------------------------------------------------------


def test_a_build_does_not_go_on_top_of_a_version_by_another_table(tmp_path: Path, monkeypatch):
    write_trials(tmp_path, 4, seed=1)
    table = tmp_path / "facts.csv"
    names = [f"g{n % 3}/t{n:02d}" for n in range(4)] + ["g0/more"]
    table.write_text("id,mass\n" + "".join(f"{name},2\n" for name in names))
    spec = write_spec(tmp_path, attributes=MASS, static=["mass"])
    store = tmp_path / "store"
    build(spec, store)
    write_trial(tmp_path, "g0/more", {"x": [1.0, 2.0], "y": [1.0, 2.0]})
    old = table.read_text()
    table.write_text(old.replace("more,2", "more,3"))

    def theirs() -> None:
        table.write_text(old)  # read before it was edited
        build(spec, store)
        table.write_text(old.replace("more,2", "more,3"))

    interrupted_by(monkeypatch, theirs)
    with pytest.raises(CommitConflictError):
        build(spec, store)
    build_checked(spec, store)
    assert_delivers_like_a_clean_build(tmp_path, spec, store)


@pytest.mark.parametrize("undo", [False, True])
def test_trials_that_were_taken_out_meanwhile_end_a_build(tmp_path: Path, monkeypatch, undo: bool):
    write_trials(tmp_path, 8, seed=1)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    build(spec, store)
    if undo:
        tombstone_trials(store, ["g1/t04"], "worn")
    change(tmp_path / "raw" / "g0" / "t03.csv", np.random.default_rng(0))
    interrupted_by(monkeypatch, lambda: tombstone_trials(store, ["g1/t04"], "worn", undo=undo))
    with pytest.raises(CommitConflictError, match="Run the build again"):
        build(spec, store)
    build_checked(spec, store)
    assert ("g1/t04" in Store(store)) == undo


# --- the order of columns -------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["derive", "categorical"])
def test_another_order_of_the_same_columns_is_another_data_set(tmp_path: Path, section: str):
    for seed, name in enumerate("ab"):
        path = tmp_path / "raw" / f"{name}.csv"
        path.parent.mkdir(exist_ok=True)
        rows = [f"{seed + n},{n},w{n % 3},v{n % 2}" for n in range(9)]
        path.write_text("\n".join(["x,y,one,two", *rows]) + "\n")
    columns = {
        "derive": [("x", "x + 1"), ("y", "x * 2")],  # `y` reads the `x` that is there then
        "categorical": [("one", "embed"), ("two", "embed")],
    }[section]
    store = tmp_path / "store"
    build(write_spec(tmp_path, **{section: dict(columns)}), store)
    spec = write_spec(tmp_path, **{section: dict(columns[::-1])})
    assert build(spec, store).published
    clean = tmp_path / "clean"
    build(spec, clean)
    for trial in ("a", "b"):
        got, wanted = (Store(path)[trial] for path in (store, clean))
        np.testing.assert_array_equal(got.values, wanted.values)
    number = 0
    assert section == "derive" or np.array_equal(
        Store(store).trial_rows(number, "codes"), Store(clean).trial_rows(number, "codes")
    )
    assert not build(spec, store).published
