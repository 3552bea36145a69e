"""Many plain trials at once come out as one by one, bit for bit, with compiled code or without."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trialfolders import make_spec

from pipeline import kernels, loading, normalize, plain, prepare
from pipeline.files import SourceFile
from pipeline.finish import FinishedBatch
from pipeline.prepare import prepare_files
from pipeline.recipe import Recipe

CHANNELS = ("x", "y", "z")
FAULTS = ("oops", "1e39", "-inf", "", "NaN", " 1.5", '"2.5"', "1,2", "0.1234567890123456789012345")


@st.composite
def folders(draw: st.DrawFn) -> list[str]:
    """Return files: short and long, constant, with gaps, and with fields that nobody expects."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    texts = []
    for number in range(draw(st.integers(1, 6))):
        n_rows = draw(st.sampled_from([1, 1, 2, 5, 8, 9, 17, 140, 300]))
        values = rng.standard_normal((n_rows, 4)) * 10.0 ** rng.integers(-3, 7, 4)
        values += rng.choice([0.0, 1e8], 4)
        values[:, rng.random(4) < 0.2] = rng.choice([0.0, -0.0, 5.5])
        share = draw(st.sampled_from([0.0, 0.0, 0.3, 0.9, 1.0]))
        clock = np.arange(n_rows) * draw(st.sampled_from([1, 0.1, 0.25])) + rng.choice([0.0, -7.5])
        if draw(st.booleans()):
            clock += rng.random(n_rows) * 0.05
        rows = [
            [
                repr(float(clock[row])),
                *("" if rng.random() < share else repr(v) for v in line[:3]),
                repr(line[3]),
            ]
            for row, line in enumerate(values.tolist())
        ]
        fault = draw(st.sampled_from([None, None, None, *FAULTS, "time"]))
        if fault == "time":
            rows[-1][0] = rows[0][0] if n_rows > 1 else "nan"
        elif fault is not None:
            rows[int(rng.integers(n_rows))][int(rng.integers(1, 5))] = fault
        tag = "" if draw(st.integers(0, 9)) == 0 else f"g{number % 2}"
        lines = [",".join([*row, tag]) for row in rows]
        end = draw(st.sampled_from(["\n", "\n", "\n", "\r\n", "\n\n", ""]))
        texts.append("\n".join(["t,x,y,z,w,tag", *lines]) + end)
    return texts


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    missing = draw(st.sampled_from(["none", "none", "ffill", "interpolate", "constant"]))
    clean = {
        "missing": missing,
        "limit": draw(st.sampled_from([None, 1, 3]))
        if missing in ("ffill", "interpolate")
        else None,
        "value": draw(st.sampled_from([0.0, -1.5])),
        "then": draw(st.sampled_from(["mask", "mask", "constant", "refuse"])),
        "observed": draw(st.sampled_from([None, True, False])),
        "drop_trial_if_missing": draw(st.sampled_from([1.0, 0.5])),
    }
    scope = draw(st.sampled_from(["trial", "trial", "train", "prefix(3)"]))
    method = draw(st.sampled_from(["zscore", "zscore", "minmax", "robust"]))
    targets = [
        {"kind": "forecast", "channels": ["x"]},
        {"kind": "per_step", "columns": ["w"], "channels": None},
        {"kind": "per_trial", "attribute": "tag", "channels": None},
    ]
    target = draw(st.sampled_from(targets))
    changes: dict[str, Any] = {
        "channels": list(CHANNELS[: draw(st.integers(1, 3))]),
        "clean": {name: value for name, value in clean.items() if value is not None},
        "normalize": {"method": method, "scope": scope},
        "windows": {"length": 4, "target": target},
    }
    if draw(st.booleans()):
        changes["derive"] = {"d": "x * y - w", "e": "COALESCE(y, d, 0)", "renamed": "w"}
        changes["channels"] += ["d", "renamed", "e"][: draw(st.integers(1, 3))]
        if target["kind"] == "per_step":
            changes["channels"] = [name for name in changes["channels"] if name != "w"]
    if draw(st.booleans()):
        changes["source"] = {"time": {"column": "t", "format": "number"}}
    if target["kind"] == "per_trial" or draw(st.booleans()):
        changes["attributes"] = {"tag": {"column": "tag"}}
    return changes


@contextlib.contextmanager
def built(*, at_once: bool, with_kernels: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if not at_once:
            patch.setattr(prepare, "is_plain", lambda recipe: False)
        for module in ("loading", "sources.delimited"):
            name = f"pipeline.{module}.is_worth_loading"
            patch.setattr(name, lambda n_bytes: with_kernels)
        yield


def source(root: Path, number: int) -> SourceFile:
    seen = (root / f"{number}.csv").stat()
    return SourceFile(f"{number}.csv", seen.st_size, seen.st_mtime_ns, str(number))


def described(batch: FinishedBatch) -> tuple[object, ...]:
    """Return all that a batch says, so that equal bits are equal."""
    arrays = {n: (a.dtype.str, a.shape, a.tobytes()) for n, a in batch.arrays.items()}
    rows = None if batch.rows is None else (batch.rows.schema, repr(batch.rows.to_pylist()))
    refusals = sorted(map(repr, batch.refusals))
    times = None if batch.time is None else (batch.time.dtype.str, batch.time.tobytes())
    return arrays, batch.n_rows.tolist(), rows, refusals, times


@settings(max_examples=100, deadline=None)
@given(folders(), specs())
def test_all_at_once_as_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], changes: dict[str, Any]
) -> None:
    root = tmp_path_factory.mktemp("plain", numbered=True)
    for number, text in enumerate(texts):
        (root / f"{number}.csv").write_bytes(text.encode())
    files = [source(root, number) for number in range(len(texts))]
    recipe = Recipe(make_spec(**changes), root).check()
    assert plain.is_plain(recipe)
    found = {}
    for ways in itertools.product((True, False), (True, False)):
        with built(at_once=ways[0], with_kernels=ways[1]):
            found[ways] = described(prepare_files(root, files, recipe))
    for ways, what in found.items():
        assert what == found[False, False], ways


@pytest.mark.parametrize("n_columns", [1, 2, 3, 10, 41])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97, 1.0])
def test_compiled_moments_have_the_bits_of_numpy(
    n_columns: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numpy sums by halves and in lanes: its order is that of the kernels, whatever the length."""
    monkeypatch.setattr(loading, "is_worth_loading", lambda n_bytes: False)
    rng = np.random.default_rng(n_columns)
    sizes = [*range(1, 20), *range(120, 140), 255, 256, 257, 258, 1000, 1025, 5000, 1, 2]
    edges = np.cumsum([0, *sizes])
    values = rng.standard_normal((int(edges[-1]), n_columns)) * 10.0 ** rng.integers(
        -3, 9, n_columns
    )
    values += rng.choice([0.0, 1e9], n_columns)
    values[rng.random(values.shape) < 0.05] = -0.0
    values[rng.random(values.shape) < 0.05] = 0.0
    values[rng.random(values.shape) < share] = math.nan
    wanted = normalize.batch_moments(values, edges)
    for name, got in kernels.measure_moments(values, edges).items():
        assert got.tobytes() == wanted[name].tobytes(), name


def test_a_broken_compiler_leaves_the_arithmetic_to_numpy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ImportError("no numba here")

    monkeypatch.setattr(loading, "is_worth_loading", lambda n_bytes: True)
    monkeypatch.setattr(kernels, "warm_up", broken)
    loading._load.cache_clear()
    try:
        assert loading.loaded_kernels() is None
        assert "numpy computes" in caplog.text
        assert normalize.measure_moments(np.ones((3, 1)))["count"] == 3
    finally:
        loading._load.cache_clear()


def test_small_builds_do_not_load_compiled_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "is_worth_loading", lambda n_bytes: False)
    assert loading.loaded_kernels() is None
