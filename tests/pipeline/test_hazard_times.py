"""Hazards of time, in whole builds of a folder; and counts recomputed from the raw bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference_reader import read_slowly
from trialfolders import build_checked, count_by_walking, ids_of, quarantine_of, write_spec

from pipeline.build import build
from pipeline.catalog import scan_files
from pipeline.sources.delimited import DelimitedLayout
from pipeline.spec import load_spec
from shards import Store
from shards.verify import verify_store

TIMES = {
    "backwards": ([0, 2, 1], {}, "time_not_increasing", "t"),
    "backwards at the end": ([0, 1, 2, 0], {}, "time_not_increasing", "t"),
    "twice": ([0, 1, 1, 2], {}, "time_duplicate", "t"),
    "twice, sorted": ([0, 2, 1, 1], {"unsorted": "sort"}, "time_duplicate", "t"),
    "missing": ([0, "", 2], {}, "time_missing", "t"),
    "no number": ([0, "noon", 2], {}, "not_a_number", "t"),
}
ARRANGED: dict[str, tuple[list[float], dict[str, Any], list[float]]] = {
    "sorted": ([0, 3, 1, 2], {"unsorted": "sort"}, [0, 2, 3, 1]),
    "first of two": ([0, 1, 1, 2], {"duplicates": "first"}, [0, 1, 3]),
    "last of two": ([0, 1, 1, 2], {"duplicates": "last"}, [0, 2, 3]),
    "mean of two": ([0, 1, 1, 2], {"duplicates": "mean"}, [0, 1.5, 3]),
    "sorted, last of two": (
        [2, 0, 1, 0], {"duplicates": "last", "unsorted": "sort"}, [3, 2, 0]
    ),
}  # fmt: skip


def write_times(root: Path, name: str, times: list[Any]) -> None:
    lines = [f"{time},{row},0" for row, time in enumerate(times)]
    (root / "raw").mkdir(exist_ok=True)
    (root / "raw" / f"{name}.csv").write_text("\n".join(["t,x,y", *lines]) + "\n")


def timed(root: Path, times: list[Any], **time: Any) -> Path:
    for name in "amz":
        write_times(root, name, [0, 1, 2])
    write_times(root, "bad", times)
    return write_spec(
        root, source={"time": {"column": "t", **time}}, normalize={"method": "none"},
        max_quarantined=0.5, split={"fractions": {"train": 1}},
    )  # fmt: skip


@pytest.mark.parametrize("hazard", TIMES)
def test_times_out_of_order_refuse_their_trial(hazard: str, tmp_path: Path):
    times, settings, code, column = TIMES[hazard]
    report, store = build_checked(timed(tmp_path, times, **settings), tmp_path / "store")
    found = [(r.source, r.code, r.column) for r in report.refusals]
    assert found == [("raw/bad.csv", code, column)], report.refusals
    assert ids_of(store) == ["a", "m", "z"]


@pytest.mark.parametrize("hazard", ARRANGED)
def test_times_are_put_in_order_as_said(hazard: str, tmp_path: Path):
    times, settings, wanted = ARRANGED[hazard]
    report = build(timed(tmp_path, times, **settings), tmp_path / "store")
    assert report.refusals == ()
    store = Store(tmp_path / "store")
    rows = store.trial_rows(ids_of(store).index("bad"))
    assert rows[:, 0].tolist() == wanted
    assert report.counts["rows_in"] == 9 + len(times)
    assert sum(report.counts["rows_dropped"].values()) == len(times) - len(wanted)


def test_no_window_crosses_a_gap(tmp_path: Path):
    times = [*range(9), *range(20, 27), *range(50, 52)]
    build(timed(tmp_path, times, max_gap=5), tmp_path / "store")
    store = Store(tmp_path / "store")
    windows = {"length": 4, "stride": 2}
    wanted = sum(count_by_walking(n, windows, 1) for n in (3, 3, 3, 9, 7, 2))
    assert sum(store.manifest.counts["windows"].values()) == wanted


def test_a_store_of_segments_is_found_whole(tmp_path: Path):
    build(timed(tmp_path, [0, 1, 2, 20, 21], max_gap=5), tmp_path / "store")
    assert verify_store(tmp_path / "store") == []
    counts = Store(tmp_path / "store").manifest.counts
    assert counts["trials"] == sum(counts["trials_by_split"].values()) == 4


def test_a_gap_is_nothing_without_max_gap(tmp_path: Path):
    times = [*range(9), *range(20, 29)]
    _, store = build_checked(timed(tmp_path, times), tmp_path / "store")
    windows = {"length": 4, "stride": 2}
    wanted = sum(count_by_walking(n, windows, 1) for n in (3, 3, 3, 18))
    assert sum(store.manifest.counts["windows"].values()) == wanted


# --- counting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["none", "drop"])
def test_counts_are_those_of_the_raw_files(missing: str, tmp_path: Path):
    """Law 3, recomputed from the bytes: each file in one place, each row stored or dropped."""
    raw = tmp_path / "raw"
    raw.mkdir()
    contents = {f"t{n:02d}.csv": "x,y\n" + f"{n},1\n,2\n3,{n}\n" * n for n in range(1, 20)}
    contents |= {"cut.csv": "x,y\n1,2\n3", "short.csv": "x,y\n1\n", "none.csv": ""}
    contents |= {".hidden.csv": "x,y\n1,2\n", "crlf.csv": "x,y\n1,2\n".replace("\n", "\r\n")}
    for name, content in contents.items():
        (raw / name).write_bytes(content.encode())
    (raw / "folder.csv").mkdir()
    spec = write_spec(
        tmp_path, clean={"missing": missing}, max_quarantined=0.5, shards={"buckets": 4}
    )
    report, store = build_checked(spec, tmp_path / "store")
    layout = DelimitedLayout(",", numeric=("x", "y"))
    seen = [path for path in raw.iterdir() if not path.name.startswith(".")]
    read = {p.name: read_slowly(p.read_bytes(), layout).columns for p in seen if p.is_file()}
    rows = {name: columns["x"] for name, columns in read.items() if columns}
    n_dropped = sum(x is None for column in rows.values() for x in column)
    counts = report.counts
    assert counts["files"] == len(seen) + 1
    assert counts["ignored"] == {"hidden": 1}
    assert counts["trials"] == len(rows)
    assert counts["quarantined"] == len(seen) - len(rows) == 4
    assert counts["rows_in"] == sum(map(len, rows.values()))
    assert sum(counts["rows_dropped"].values()) == (n_dropped if missing == "drop" else 0)
    assert counts["rows"] == counts["rows_in"] - sum(counts["rows_dropped"].values())
    assert {Path(s).name for s in quarantine_of(store)} == {p.name for p in seen} - set(rows)
    catalog = scan_files(tmp_path, load_spec(spec))
    assert catalog.n_files == counts["files"]
    assert np.unique(store.cold("source")["source"].to_pylist()).size == counts["trials"]
