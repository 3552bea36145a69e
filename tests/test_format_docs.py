"""docs/format.md is right: its reader, run as it stands, reads what a stream delivers."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store

from loaders import TrialStream
from pipeline.build import build
from shards import Store, WindowSpec
from shards.manifest import TargetSchema

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "format.md").read_text()
READER, EXAMPLE, FILLED = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
GOLDEN = sorted(p.name for p in (ROOT / "tests" / "golden" / "v1").iterdir() if p.is_dir())
FORECAST = TargetSchema("forecast", ("c2", "c0"))
PER_STEP = TargetSchema("per_step", ("y0", "y1"))
PER_TRIAL = TargetSchema("per_trial", ("kind",), ("a", "b"))


def load_reader() -> Any:
    found: dict[str, Any] = {}
    exec(compile(READER + FILLED, "docs/format.md", "exec"), found)
    return found["PlainStore"], found["filled"]


PlainStore, filled = load_reader()


def assert_read_alike(path: Path, version: str | None = None) -> int:
    """Compare every window of every split with the stream's, bit for bit; return their number."""
    store, plain = Store(path, version), PlainStore(path, version)
    assert plain.ids == list(store)
    windows, n_seen = store.manifest.windows, 0
    if store.manifest.target.kind == "forecast" and not windows.steps:
        windows = replace(windows, steps=1, stride=61)  # a store for other windows than its own
        plain.manifest["windows"] |= {"steps": 1, "stride": 61}
    for split, n_windows in store.manifest.counts["windows"].items():
        if not n_windows:
            continue
        wanted = [
            (trial, start, valid)
            for trial in range(len(plain.ids))
            if store.manifest.splits[plain.index["split"][trial]] == split
            for start, valid in plain.windows(trial)
        ]
        if windows == store.manifest.windows:
            assert len(wanted) == n_windows
        stream = TrialStream(store, split=split, shuffle="none", batch_size=7, windows=windows)
        rows = (row for batch in stream for row in _rows_of(batch))
        for (trial, start, valid), (at, values, target) in zip(wanted, rows, strict=True):
            assert at == (trial, start, valid)
            got, ahead = plain.window(trial, start, valid)
            assert got.tobytes() == values.tobytes()
            if target.dtype == np.int64:
                assert (-1 if np.isnan(ahead) else int(ahead)) == int(target)
            else:
                assert np.asarray(ahead, np.float32).tobytes() == target.tobytes()
            n_seen += 1
    for trial in range(len(plain.ids)):
        assert plain.rows(trial).tobytes() == store.trial_rows(trial).tobytes()
        assert plain.about(trial)["id"] == plain.ids[trial]
    return n_seen


def _rows_of(batch: Any) -> Any:
    for i in range(len(batch)):
        if batch.trial[i] >= 0:
            at = (int(batch.trial[i]), int(batch.start[i]), int(batch.lengths[i]))
            yield at, batch.values[i].numpy(), np.asarray(batch.targets[i].numpy())


def test_the_reader_is_a_page_and_needs_none_of_ours():
    assert len(READER.splitlines()) <= 90
    assert max(map(len, READER.splitlines())) <= 100
    imported = set(re.findall(r"^(?:import|from) (\w+)", READER, re.MULTILINE))
    assert imported == {"json", "pathlib", "numpy", "pyarrow"}


@pytest.mark.parametrize("case", GOLDEN)
def test_it_reads_the_stores_of_the_first_format(case):
    assert assert_read_alike(ROOT / "tests" / "golden" / "v1" / case) > 0


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    windows=st.builds(
        WindowSpec,
        length=st.integers(1, 9),
        stride=st.integers(1, 5),
        horizon=st.integers(1, 4),
        steps=st.integers(1, 3),
        short=st.sampled_from(["pad", "drop"]),
    ),
    target=st.sampled_from([FORECAST, PER_STEP, PER_TRIAL]),
    scale=st.sampled_from([None, (0.1, 3.0)]),
    missing=st.booleans(),
    n_shards=st.integers(1, 3),
)
def test_it_delivers_what_a_stream_delivers(
    tmp_path_factory, lengths, windows, target, scale, missing, n_shards
):
    path = tmp_path_factory.mktemp("plain")
    windows = windows if target is FORECAST else replace(windows, steps=0)
    labels = [float(i % 2) for i in range(len(lengths))] if target is PER_TRIAL else None
    splits = ["train" if i != 1 else "val" for i in range(len(lengths))]
    store = make_store(
        path, lengths, windows=windows, target=target, scale=scale, missing=missing,
        n_shards=n_shards, labels=labels, splits=splits,
    )  # fmt: skip
    assert assert_read_alike(path) == sum(store.manifest.counts["windows"].values())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as the pipeline writes it today: two versions, scopes that differ by channel."""
    folder = tmp_path_factory.mktemp("built")
    raw = folder / "raw"
    raw.mkdir()
    generator = np.random.default_rng(0)
    for name in range(12):
        rows = generator.normal(50, 9, (30, 4)).round(3)
        lines = [",".join(map(str, row)) for row in rows]
        lines[3] = lines[3].replace(lines[3].split(",")[1], "", 1)
        clock = np.cumsum(generator.integers(1, 5, 30)) / 8
        text = "".join(f"{t},{line}\n" for t, line in zip(clock, lines, strict=True))
        (raw / f"s{name % 3}_{name}.csv").write_text("t,a,b,c,d\n" + text)
    spec = {
        "name": "scopes",
        "source": {"files": "raw/*.csv", "trial_id": r"(?P<subject>s\d)_\d+", "time": "t"},
        "channels": ["a", "b", "c", "d"],
        "normalize": {
            "scope": "train",
            "channels": {
                "b": {"scope": "trial"}, "c": {"method": "none"}, "d": {"scope": "prefix(9)"},
            },
        },
        "windows": {
            "length": 8, "stride": 5, "target": {"kind": "forecast", "channels": ["a", "b"]},
        },
    }  # fmt: skip
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    build(folder / "dataset.yaml", folder / "store")
    changed = raw / "s0_3.csv"
    changed.write_text(changed.read_text() + "9999,1,2,3,4\n")
    build(folder / "dataset.yaml", folder / "store")
    return folder / "store"


def test_it_reads_what_the_pipeline_builds_and_adds(built):
    assert assert_read_alike(built) > 12
    assert assert_read_alike(built, "v0001") > 12


def test_what_is_known_of_a_trial_leads_back_to_physical_units_and_to_times(built):
    store, plain = Store(built), PlainStore(built)
    assert len(store.manifest.parts) > 1
    for trial in range(len(plain.ids)):
        about = filled(plain.about(trial), len(plain.names))
        scale, offset = (np.float32(about[key]) for key in ("scale", "offset"))
        physical = plain.rows(trial) * scale + offset
        assert physical.tobytes() == store.physical_rows(trial).tobytes()
        assert about["attributes"]["subject"] == plain.ids[trial][:2]
        time = store.trial(trial).time
        assert time is not None
        assert np.isnan(about["time_step"])
        assert plain.rows(trial, "time")[:, 0].tolist() == time.tolist()


def assert_knows_the_same(path: Path) -> None:
    """Compare all that is known of trials with what our reader says, NaN included."""
    plain = PlainStore(path)
    wanted = Store(path).cold().to_pylist()
    trials = range(len(plain.ids))
    found = [filled(plain.about(trial), len(plain.names)) for trial in trials]
    for row, said in zip(found, wanted, strict=True):
        assert {k: repr(row[k]) for k in said if k in row} == {k: repr(v) for k, v in said.items()}


def test_it_finds_the_statistics_that_parts_leave_out(tmp_path):
    golden = ROOT / "tests" / "golden" / "v1.3" / "rows_zarr"
    assert_knows_the_same(golden)
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in range(5):  # a channel without values, with one, with two and with all alike
        rows = [
            f"{k * k / 7 + name},,{k if k == name else ''},{k * k if k < 2 else ''},.1"
            for k in range(6)
        ]
        (raw / f"{name}.csv").write_text("\n".join(["a,b,c,d,e", *rows, ""]))
    spec = {"name": "few", "source": {"files": "raw/*.csv"}, "channels": list("abcde")}
    spec |= {"windows": {"length": 4, "target": {"kind": "forecast", "channels": ["a"]}}}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(spec))
    build(tmp_path / "dataset.yaml", tmp_path / "store")
    assert [part.implied for part in Store(tmp_path / "store").manifest.parts] == [True]
    assert_knows_the_same(tmp_path / "store")


def test_it_refuses_what_it_does_not_know(tmp_path, built):
    make_store(tmp_path / "w", [9], layout="windows")
    with pytest.raises(ValueError, match="rows in Zarr"):
        PlainStore(tmp_path / "w")
    plain = PlainStore(built)
    plain.manifest["normalization"] = {"method": "zscore", "scope": "window"}
    with pytest.raises(ValueError, match="scope window"):
        plain.window(0, *plain.windows(0)[0])


def test_a_short_file_is_refused_and_not_mapped(tmp_path):
    store = make_store(tmp_path, [9])
    file = store.chunk_file(0, "values")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        PlainStore(tmp_path).rows(0)


def test_the_example_works_as_it_stands(tmp_path):
    make_store(tmp_path / "store" / "robot_arm", [9, 12])
    code = READER + EXAMPLE.replace("s07/trial_0031", "t0001") + "assert values.shape == (4, 3)\n"
    block = "import sys; sys.modules.update(dict.fromkeys(['shards', 'zarr', 'torch', 'polars']))\n"
    done = subprocess.run(
        [sys.executable, "-c", block + code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_link_leads_somewhere():
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / "docs" / link).exists(), link
