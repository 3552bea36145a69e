"""Every row keeps its time through sorting, merging, gaps, resampling and dropping."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trialfolders import build_checked, make_spec, write_spec, write_trial

from pipeline.files import SourceFile
from pipeline.finish import FinishedBatch
from pipeline.prepare import prepare_files
from pipeline.recipe import Recipe
from shards import Store
from shards.clock import Float64, regular_step, row_times

Rows = list[tuple[float, float, float]]
"""Time, and two channels; the first channel says the time once more."""


def prepared(root: Path, texts: list[str], **changes: Any) -> FinishedBatch:
    """Return what becomes of files with these texts."""
    files = []
    for number, text in enumerate(texts):
        path = root / f"{number}.csv"
        path.write_text(text)
        seen = path.stat()
        files.append(SourceFile(path.name, seen.st_size, seen.st_mtime_ns, str(number)))
    recipe = Recipe(make_spec(**{"normalize": {"method": "none"}, **changes}), root).check()
    return prepare_files(root, files, recipe)


def text_of(rows: Rows) -> str:
    lines = [
        ",".join("" if math.isnan(value) else repr(value) for value in (t, *values))
        for t, *values in rows
    ]
    return "\n".join(["t,x,y", *lines]) + "\n"


def column_of(batch: FinishedBatch, name: str) -> list[Any]:
    assert batch.rows is not None
    found: list[Any] = batch.rows[name].to_pylist()
    return found


def check_columns(batch: FinishedBatch) -> None:
    """Hold the index columns against the times of the rows."""
    assert batch.time is not None
    assert (batch.time.dtype, batch.time.ndim) == (np.dtype(np.float64), 1)
    assert batch.time.flags.c_contiguous
    edges = np.cumsum([0, *batch.n_rows.tolist()])
    assert len(batch.time) == edges[-1] == len(batch.arrays["values"])
    steps = regular_step(batch.time, edges)
    np.testing.assert_array_equal(column_of(batch, "time_step"), steps)
    for i, (begin, end) in enumerate(itertools.pairwise(edges.tolist())):
        time = batch.time[begin:end]
        assert (np.diff(time) > 0).all()
        start = column_of(batch, "segment_start")[i]
        assert start == time[0]
        assert column_of(batch, "time_start")[i] <= time[0]
        back = row_times(start, steps[i], end - begin)
        if not math.isnan(steps[i]):
            np.testing.assert_allclose(back, time, rtol=1e-12, atol=1e-12)


@st.composite
def recordings(draw: st.DrawFn) -> list[Rows]:
    """Return trials whose times float32 holds, so that the channel `x` can say them too."""
    out = []
    for _ in range(draw(st.integers(1, 4))):
        ticks = draw(st.lists(st.integers(-80, 80), min_size=1, max_size=25))
        if draw(st.booleans()):
            ticks = list(range(ticks[0], ticks[0] + len(ticks)))
        elif draw(st.booleans()):
            ticks.sort()
        cells = st.sampled_from([math.nan, 0.0, 1.5])
        out.append([(tick / 4, tick / 4, draw(cells)) for tick in ticks])
    return out


@st.composite
def settings_of_time(draw: st.DrawFn) -> dict[str, Any]:
    time = {"column": "t", "unsorted": "sort"}
    time["duplicates"] = draw(st.sampled_from(["first", "last", "mean"]))
    if draw(st.booleans()):
        time["max_gap"] = draw(st.sampled_from([0.25, 1.0, 5.0]))
    return time


@settings(max_examples=150)
@given(recordings(), settings_of_time(), st.sampled_from(["none", "drop", "ffill"]))
def test_each_row_has_its_own_time_whatever_became_of_its_neighbours(
    tmp_path_factory: pytest.TempPathFactory,
    trials: list[Rows],
    time: dict[str, Any],
    missing: str,
):
    root = tmp_path_factory.mktemp("rows", numbered=True)
    clean = {"missing": missing, "then": "drop" if missing == "ffill" else "mask"}
    texts = [text_of(rows) for rows in trials]
    batch = prepared(root, texts, source={"time": time}, clean=clean)
    if batch.rows is None:
        assert len(batch.refusals) == len(trials)
        return
    check_columns(batch)
    assert batch.time is not None
    np.testing.assert_array_equal(batch.arrays["values"][:, 0], batch.time.astype(np.float32))
    kept = {int(id_.partition("#")[0]) for id_ in column_of(batch, "id")}
    wanted = {row[0] for number in kept for row in trials[number]}
    if missing == "none":
        assert set(batch.time.tolist()) == wanted
    assert set(batch.time.tolist()) <= wanted


@pytest.mark.parametrize("method", ["mean", "last", "interpolate"])
def test_resampled_rows_have_the_times_of_their_bins(method: str, tmp_path: Path):
    rows = [(t, t, 0.0) for t in (0.3, 0.9, 1.0, 1.6, 2.1, 9.2, 10.0, 10.6, 11.1)]
    time = {"column": "t", "max_gap": 3, "resample": {"every": 0.5, "method": method}}
    batch = prepared(tmp_path, [text_of(rows)], source={"time": time}, clean={"missing": "none"})
    check_columns(batch)
    assert batch.time is not None
    first = [0.5, 1.0, 1.5, 2.0] if method == "interpolate" else [0, 0.5, 1.0, 1.5, 2.0]
    second = [9.5, 10, 10.5, 11] if method == "interpolate" else [9, 9.5, 10, 10.5, 11]
    assert batch.time.tolist() == [*first, *second]
    assert column_of(batch, "segment_start") == [first[0], second[0]]
    assert column_of(batch, "time_step") == [0.5, 0.5]
    if method == "interpolate":
        np.testing.assert_allclose(batch.arrays["values"][:, 0], batch.time, rtol=1e-6)


def test_a_dropped_row_makes_a_clock_irregular_and_a_row_alone_is_regular(tmp_path: Path):
    holes = {2: math.nan}
    rows = [(k * 0.5, 1.0, holes.get(k, 0.0)) for k in range(5)]
    batch = prepared(
        tmp_path, [text_of(rows), text_of(rows[:1])],
        source={"time": {"column": "t"}}, clean={"missing": "drop"},
    )  # fmt: skip
    check_columns(batch)
    assert batch.time is not None
    assert batch.time.tolist() == [0.0, 0.5, 1.5, 2.0, 0.0]
    np.testing.assert_array_equal(column_of(batch, "time_step"), [math.nan, 0.0])


def test_dates_become_seconds(tmp_path: Path):
    text = "t,x,y\n2024-03-01T10:30:00Z,1,1\n2024-03-01T10:30:05Z,1,2\n2024-03-01T10:30:10Z,1,2\n"
    batch = prepared(tmp_path, [text], source={"time": {"column": "t", "format": "iso"}})
    assert batch.time is not None
    assert batch.time.tolist() == [1709289000.0, 1709289005.0, 1709289010.0]
    assert column_of(batch, "time_step") == [5.0]


@pytest.mark.parametrize("settings", [{}, {"unsorted": "sort"}], ids=["plain", "general"])
def test_time_changes_no_digest_and_no_array(settings: dict[str, str], tmp_path: Path):
    rows = [(k + 0.3 * (k % 2), float(k), 1.0) for k in range(9)]
    texts = [text_of(rows), text_of(rows[:4])]
    with_time = prepared(tmp_path, texts, source={"time": {"column": "t", **settings}})
    without = prepared(tmp_path, texts)
    assert without.time is None
    assert without.rows is not None
    assert not {"time_step", "segment_start"} & set(without.rows.column_names)
    assert column_of(with_time, "digest") == column_of(without, "digest")
    assert set(with_time.arrays) == set(without.arrays)
    for name, array in without.arrays.items():
        assert array.tobytes() == with_time.arrays[name].tobytes()
    assert with_time.row_bytes == without.row_bytes
    check_columns(with_time)


def test_times_of_a_batch_keep_no_other_column_alive(tmp_path: Path):
    """Batches wait until their shard is full: a view of one column would hold all of them."""
    rows = [(float(k), 1.0, 2.0) for k in range(50)]
    for name, changes in (("plain", {}), ("general", {"unsorted": "sort"})):
        batch = prepared(tmp_path, [text_of(rows)], source={"time": {"column": "t", **changes}})
        owner = batch.time
        assert owner is not None
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        assert owner.nbytes == 8 * len(rows), name


@pytest.mark.parametrize("settings", [{}, {"unsorted": "sort"}], ids=["plain", "general"])
def test_a_store_gives_every_trial_back_with_its_times(settings: dict[str, str], tmp_path: Path):
    """Shards hold times if and only if the index does not say them."""
    even = {f"even{k}": np.arange(20) * 0.1 + k for k in range(4)}
    uneven = {f"uneven{k}": np.round(np.arange(20) / 3 + k, 2) for k in range(2)}
    for told in ({**even, **uneven}, even):
        root = tmp_path / str(len(told))
        for name, time in told.items():
            write_trial(root, name, {"t": time.tolist(), "x": time.tolist(), "y": [1.0] * 20})
        spec = write_spec(root, source={"time": {"column": "t", **settings}})
        _, store = build_checked(spec, root / "store")
        cold = store.cold("id", "n_rows", "segment_start", "time_step").to_pylist()
        assert [row["id"] for row in cold] == sorted(told)
        for number, row in enumerate(cold):
            time, back = told[row["id"]], stored_times(store, number)
            slack = 4 * np.spacing(time.max())
            if row["id"] in even:
                out = row_times(row["segment_start"], row["time_step"], row["n_rows"])
                np.testing.assert_allclose(out, time, rtol=0, atol=slack)
            else:
                assert math.isnan(row["time_step"])
                assert back is not None
            if back is not None:
                assert back.tobytes() == time.tobytes()
        assert (stored_times(store, 0) is None) == (told is even)


def stored_times(store: Store, trial: int) -> Float64 | None:
    """Return what the trial's shard holds of its times."""
    if "time" not in store.manifest.shards[int(store.index.shard[trial])].arrays:
        return None
    return np.asarray(store.trial_rows(trial, "time"))
