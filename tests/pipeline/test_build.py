"""Builds of real folders: values, windows, targets, labels, refusals, and the sample data."""

from __future__ import annotations

import csv
import importlib
import math
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trialfolders import (
    Columns,
    build_checked,
    check_conservation,
    count_by_walking,
    delivered,
    ids_of,
    quarantine_of,
    snapshot,
    split_of,
    write_spec,
    write_trial,
    write_trials,
)

from pipeline.build import build
from pipeline.outcome import Progress
from pipeline.recipe import Recipe
from pipeline.spec import load_spec
from shards import Store
from shards.errors import InvalidSpecError, TooManyQuarantinedError
from shards.verify import verify_store
from shards.writer import list_versions

ROOT = Path(__file__).parents[2]
CMAPSS = ROOT.parent / "shared" / "data" / "cmapss.tar.xz"
BY_FOLDER = {
    "method": "attribute",
    "attribute": "group",
    "names": {"g0": "train", "g1": "val", "g2": "test"},
}
GROUPED = {"source": {"trial_id": r"(?P<group>g\d)/t\d+"}, "split": BY_FOLDER}
PER_STEP = {"windows": {"target": {"kind": "per_step", "columns": ["y"], "channels": None}}}


def per_trial(attribute: str, task: str = "class") -> dict[str, Any]:
    return {"target": {"kind": "per_trial", "attribute": attribute, "task": task, "channels": None}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Columns]]:
    root = tmp_path_factory.mktemp("folder")
    trials = write_trials(root, 18, names=("x", "y", "z"), missing=0.15, seed=3)
    # A constant channel, an empty one, a large level: each in a trial of train and of test.
    for name in ("g0/t03", "g2/t05"):
        trials[name]["x"][:] = 4.25
        trials[name]["y"][:] = np.nan
        trials[name]["z"] += 4.5e6
        write_trial(root, name, trials[name])
    return root, trials


def matrix(columns: Columns, names: list[str]) -> np.ndarray[Any, Any]:
    return np.stack([columns[name] for name in names], axis=1)


# --- values -----------------------------------------------------------------------------------


def statistics(method: str, values: np.ndarray[Any, Any]) -> tuple[list[float], list[float]]:
    """Offset and scale of each channel by numpy alone."""
    offsets, scales = [], []
    for column in values.T:
        seen = column[~np.isnan(column)]
        if not seen.size or method == "none":
            pair = (0.0, 1.0)
        elif method == "zscore":
            pair = (seen.mean(), seen.std())
        elif method == "minmax":
            pair = (seen.min(), seen.max() - seen.min())
        else:
            low, median, high = np.quantile(seen, [0.25, 0.5, 0.75])
            pair = (median, high - low)
        offsets.append(float(pair[0]))
        scales.append(float(pair[1]) if pair[1] > 1e-9 else 1.0)
    return offsets, scales


METHODS = ["zscore", "minmax", "robust", "none"]


@pytest.mark.parametrize("method", METHODS)
def test_values_by_the_trial_itself_are_float64_rounded_once(
    method: str, folder: tuple[Path, dict[str, Columns]], tmp_path: Path
):
    root, trials = folder
    names = ["x", "y", "z"]
    normalize = {"method": method, "scope": "trial"}
    spec = write_spec(root, channels=names, normalize=normalize, **GROUPED)
    _, store = build_checked(spec, tmp_path / "store")
    assert ids_of(store) == sorted(trials)
    if method == "none":  # then nothing is stored to undo
        assert "offset" not in store.cold().column_names
        same = {"offset": [0.0] * 3, "scale": [1.0] * 3}
        cold = [{"id": name, **same} for name in ids_of(store)]
    else:
        cold = store.cold("id", "offset", "scale").to_pylist()
    rows_of = delivered(store)
    for number, row in enumerate(cold):
        values = matrix(trials[row["id"]], names)
        offset, scale = statistics(method, values)
        np.testing.assert_allclose(row["offset"], offset, rtol=1e-14, atol=1e-14)
        np.testing.assert_allclose(row["scale"], scale, rtol=1e-9)
        normalized = (values - np.array(row["offset"])) / np.array(row["scale"])
        stored = store.trial_rows(number)
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, normalized.astype(np.float32))
        wanted = np.nan_to_num(normalized.astype(np.float32), nan=0.0)
        assert rows_of[row["id"]].tobytes() == wanted.tobytes()
        bits = np.unpackbits(store.trial_rows(number, "observed"), axis=1, bitorder="little")
        np.testing.assert_array_equal(bits[:, :3], ~np.isnan(values))
        assert not bits[:, 3:].any()


@pytest.mark.parametrize("method", METHODS)
def test_values_by_train_are_physical_and_delivered_by_two_roundings(
    method: str, folder: tuple[Path, dict[str, Columns]], tmp_path: Path
):
    root, trials = folder
    names = ["z", "x", "y"]
    normalize = {"method": method, "scope": "train"}
    spec = write_spec(root, channels=names, normalize=normalize, **GROUPED)
    _, store = build_checked(spec, tmp_path / "store")
    for number, name in enumerate(ids_of(store)):
        wanted = matrix(trials[name], names).astype(np.float32)
        np.testing.assert_array_equal(store.trial_rows(number), wanted)
    assert "offset" not in store.cold().column_names
    if method == "none":
        assert store.delivery_affine() is None
        return
    train = np.concatenate([matrix(trials[n], names) for n in sorted(trials) if n[:2] == "g0"])
    if method == "robust":  # quartiles are taken from the rows as stored
        train = train.astype(np.float32).astype(np.float64)
    offset, scale = statistics(method, train)
    fit = store.fit["normalize"]
    assert fit["n_trials"] == sum(name.startswith("g0") for name in trials)
    exact = {"rtol": 0.0} if method != "zscore" else {"rtol": 1e-13}
    np.testing.assert_allclose(fit["offset"], offset, **exact)
    np.testing.assert_allclose(fit["scale"], scale, **exact)
    affine = store.delivery_affine()
    assert affine is not None
    for name, rows in delivered(store).items():
        values = matrix(trials[name], names).astype(np.float32)
        wanted = np.nan_to_num((values - affine[0]) * affine[1], nan=0.0)
        assert rows.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("scope", ["trial", "train"])
@pytest.mark.parametrize("method", METHODS)
def test_delivered_values_go_back_to_physical_units(
    method: str, scope: str, folder: tuple[Path, dict[str, Columns]], tmp_path: Path
):
    root, trials = folder
    normalize = {"method": method, "scope": scope}
    spec = write_spec(root, channels=["x", "y"], normalize=normalize, **GROUPED)
    build(spec, tmp_path / "store")
    store = Store(tmp_path / "store")
    offset, scale = store.physical_affine()
    for number, (name, rows) in enumerate(delivered(store).items()):
        values = matrix(trials[name], ["x", "y"])
        at = number if len(offset) > 1 else 0
        back = rows.astype(np.float64) * scale[at] + offset[at]
        seen = ~np.isnan(values)
        np.testing.assert_allclose(back[seen], values[seen], rtol=1e-5, atol=1e-4)


def test_filled_values_are_delivered_and_not_observed(tmp_path: Path):
    x = [math.nan, 1.0, math.nan, 3.0, math.nan, math.nan, math.nan, 7.0]
    write_trial(tmp_path, "a", {"x": x, "y": range(8)})
    clean = {"missing": "interpolate", "limit": 1}
    spec = write_spec(tmp_path, clean=clean, normalize={"method": "none"})
    _, store = build_checked(spec, tmp_path / "store")
    wanted = [math.nan, 1, 2, 3, math.nan, math.nan, math.nan, 7]
    np.testing.assert_array_equal(store.trial_rows(0)[:, 0], wanted)
    assert store.trial_rows(0, "observed")[:, 0].tolist() == [2, 3, 2, 3, 2, 2, 2, 3]
    cold = store.cold("n_missing", "n_masked", "count").to_pylist()[0]
    assert (cold["n_missing"], cold["n_masked"]) == (5, 4)
    assert cold["count"] == [4, 8]


def test_dropped_rows_are_counted_and_targets_stay_beside_their_values(tmp_path: Path):
    write_trial(tmp_path, "a", {"x": [1.0, math.nan, 3.0], "y": [10.0, 20.0, 30.0]})
    write_trial(tmp_path, "b", {"x": [5.0, 6.0], "y": [50.0, math.nan]})
    spec = write_spec(
        tmp_path,
        channels=["x"],
        clean={"missing": "drop"},
        normalize={"method": "none"},
        **PER_STEP,
    )
    _, store = build_checked(spec, tmp_path / "store")
    assert store.trial_rows(0).tolist() == [[1], [3]]
    np.testing.assert_array_equal(store.trial_rows(0, "targets"), [[10], [30]])
    np.testing.assert_array_equal(store.trial_rows(1, "targets"), [[50], [np.nan]])
    counts = store.manifest.counts
    assert (counts["rows_in"], counts["rows"]) == (5, 4)
    assert counts["rows_dropped"] == {"missing_values": 1}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("column", ["x", "y"])
def test_a_value_beyond_float32_is_refused(column: str, tmp_path: Path):
    for name in "abc":
        values = {"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 4.0]}
        values[column][1] = -1e39 if name == "b" else 0.0
        write_trial(tmp_path, name, values)
    sections = {"channels": ["x"], "normalize": {"method": "none"}, **PER_STEP}
    report = build(write_spec(tmp_path, max_quarantined=0.5, **sections), tmp_path / "store")
    assert [(r.source, r.code, r.column) for r in report.refusals] == [
        ("raw/b.csv", "beyond_float32", column)
    ]
    assert "row 2" in report.refusals[0].message
    assert verify_store(tmp_path / "store") == []


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_spread_too_small_for_float32_is_delivered_finite(tmp_path: Path):
    write_trial(tmp_path, "a", {"x": [1e-45, 0.0, 1e-42], "y": [1.0, 2.0, 3.0]})
    spec = write_spec(
        tmp_path,
        normalize={"method": "zscore", "scope": "train"},
        split={"fractions": {"train": 1}},
    )
    _, store = build_checked(spec, tmp_path / "store")
    assert np.isfinite(delivered(store)["a"]).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("method", "train", "test"),
    [
        ("minmax", [-3e38, 3e38, 0.0], [0.0]),
        ("zscore", [1e-20, 2e-20, 4e-20, 5e-20], [1e20]),
        ("minmax", [1e-20, 2e-20, 4e-20, 5e-20], [1e20]),
        ("robust", [1e-20, 2e-20, 4e-20, 5e-20], [1e20]),
    ],
    ids=["wide", "glitch-zscore", "glitch-minmax", "glitch-robust"],
)
def test_what_would_be_delivered_infinite_is_refused(
    method: str, train: list[float], test: list[float], tmp_path: Path
):
    for name, x in {"g0/t1": train, "g2/t2": test}.items():
        write_trial(tmp_path, name, {"x": x, "y": [float(n) for n in range(len(x))]})
    spec = write_spec(tmp_path, normalize={"method": method, "scope": "train"}, **GROUPED)
    with pytest.raises(
        InvalidSpecError, match=r"channel 'x' reaches .* beyond float32 .*scope: trial"
    ):
        build(spec, tmp_path / "store")
    assert list_versions(tmp_path / "store") == []


# --- windows ----------------------------------------------------------------------------------

WINDOWS = [
    {"length": 4},
    {"length": 7, "stride": 3},
    {"length": 1, "stride": 1},
    {"length": 5, "stride": 9, "short": "drop"},
    {"length": 40, "short": "pad"},
    {"length": 40, "short": "drop"},
    {"length": 6, "stride": 2, "target": {"horizon": 4, "steps": 3}},
    {"length": 6, "stride": 2, "target": {"horizon": 4, "steps": 3}, "short": "drop"},
    {"length": 3, "target": {"horizon": 50}},
]


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
@pytest.mark.parametrize("kind", ["forecast", "per_step"])
def test_windows_per_split_are_those_found_by_trying_every_start(
    kind: str, windows: dict[str, Any], folder: tuple[Path, dict[str, Columns]], tmp_path: Path
):
    root, trials = folder
    target = {"channels": ["x"], **windows.get("target", {})}
    ahead = target.get("horizon", 1) - 1 + target.get("steps", 1)
    if kind == "per_step":
        target = {"kind": "per_step", "columns": ["y"], "channels": None}
        ahead = 0
    sections = {"stride": 1, **windows, "target": target}
    spec = write_spec(root, channels=["x", "z"], windows=sections, **GROUPED)
    report, store = build_checked(spec, tmp_path / "store")
    wanted: Counter[str] = Counter()
    for number, name in enumerate(ids_of(store)):
        n_windows = count_by_walking(len(trials[name]["x"]), sections, ahead)
        assert store.index.n_windows[number] == n_windows, name
        wanted[BY_FOLDER["names"][name[:2]]] += n_windows  # type: ignore[index]
    assert store.manifest.counts["windows"] == {s: wanted[s] for s in store.manifest.splits}
    assert set(store.manifest.splits) == {"train", "val", "test"}
    by_split = dict(Counter(split_of(store).values()))
    assert report.counts["trials_by_split"] == by_split


# --- targets and labels -----------------------------------------------------------------------


def test_targets_per_step_are_columns_that_the_model_does_not_see(
    folder: tuple[Path, dict[str, Columns]], tmp_path: Path
):
    root, trials = folder
    target = {"kind": "per_step", "columns": ["z", "double"], "channels": None}
    spec = write_spec(
        root,
        channels=["x", "y"],
        derive={"double": "2 * x"},
        windows={"target": target},
        normalize={"method": "zscore", "scope": "train"},
        **GROUPED,
    )
    _, store = build_checked(spec, tmp_path / "store")
    assert store.manifest.target.columns == ("z", "double")
    parts = []
    for number, name in enumerate(ids_of(store)):
        wanted = np.stack([trials[name]["z"], 2 * trials[name]["x"]], axis=1)
        np.testing.assert_array_equal(
            store.trial_rows(number, "targets"), wanted.astype(np.float32)
        )
        if name.startswith("g0"):
            parts.append(wanted)
    train = np.concatenate(parts)
    fit = store.fit["target"]
    np.testing.assert_allclose(fit["mean"], np.nanmean(train, axis=0), rtol=1e-12)
    np.testing.assert_allclose(fit["sd"], np.nanstd(train, axis=0), rtol=1e-9)


def test_a_constant_target_has_spread_one(tmp_path: Path):
    for name in "ab":
        write_trial(tmp_path, name, {"x": [1.0, 2.0], "y": [7.5, 7.5]})
    spec = write_spec(tmp_path, channels=["x"], split={"fractions": {"train": 1}}, **PER_STEP)
    _, store = build_checked(spec, tmp_path / "store")
    assert store.fit["target"] == {"mean": [7.5], "sd": [1.0]}


def label_folder(root: Path, labels: dict[str, list[str]]) -> None:
    for name, column in labels.items():
        rows = len(column)
        write_trial(root, name, {"x": range(rows), "y": [1.0] * rows, "label": column})


def test_classes_are_sorted_names_and_labels_their_codes(tmp_path: Path):
    labels = {"a": "walk", "b": "run", "c": "walk", "d": "Sit", "e": "über"}
    label_folder(tmp_path, {name: [label] * 3 for name, label in labels.items()})
    spec = write_spec(
        tmp_path, windows=per_trial("activity"), attributes={"activity": {"column": "label"}}
    )
    _, store = build_checked(spec, tmp_path / "store")
    target = store.manifest.target
    assert target.classes == ("Sit", "run", "walk", "über")
    named = [target.classes[int(code)] for code in store.index.label]
    assert dict(zip(ids_of(store), named, strict=True)) == labels
    attributes = store.cold("attributes")["attributes"].to_pylist()
    assert [row["activity"] for row in attributes] == list(labels.values())


def test_value_labels_are_numbers_with_the_statistics_of_train(tmp_path: Path):
    values = {"train_a": 1.5, "train_b": -2.0, "test_c": 1e6, "train_d": 4.0}
    label_folder(tmp_path, {name: [repr(value)] * 2 for name, value in values.items()})
    spec = write_spec(
        tmp_path,
        source={"trial_id": r"(?P<part>train|test)_\w"},
        split={"method": "attribute", "attribute": "part"},
        windows=per_trial("score", "value"),
        attributes={"score": {"column": "label"}},
    )
    _, store = build_checked(spec, tmp_path / "store")
    assert dict(zip(ids_of(store), store.index.label.tolist(), strict=True)) == values
    train = [1.5, -2.0, 4.0]
    assert store.fit["target"]["mean"] == [pytest.approx(np.mean(train), rel=1e-14)]
    assert store.fit["target"]["sd"] == [pytest.approx(np.std(train), rel=1e-14)]
    assert store.manifest.target.classes is None


@pytest.mark.filterwarnings("ignore::RuntimeWarning:shards")
@pytest.mark.parametrize(
    ("label", "code"),
    [
        (["heavy"] * 3, "label_not_a_number"),
        (["inf"] * 3, "label_not_a_number"),
        (["1", "1", "2"], "attribute_not_constant"),
        (["", "", ""], "attribute_not_constant"),
        (["1e39"] * 3, "label_not_a_number"),
    ],
)
def test_a_label_that_cannot_be_used_refuses_its_trial(label: list[str], code: str, tmp_path: Path):
    label_folder(tmp_path, {"a": ["1"] * 2, "b": label, "c": ["2.5", "", "2.5"]})
    spec = write_spec(
        tmp_path,
        windows=per_trial("score", "value"),
        attributes={"score": {"column": "label"}},
        max_quarantined=0.5,
    )
    _, store = build_checked(spec, tmp_path / "store")
    assert quarantine_of(store) == {"raw/b.csv": code}
    assert store.index.label.tolist() == [1, 2.5]


def test_a_trial_without_its_optional_label_is_refused_in_any_bucket(tmp_path: Path):
    for number in range(12):
        name = f"t{number}" + ("" if number % 4 == 3 else f"_{'ab'[number % 2]}")
        write_trial(tmp_path, name, {"x": [1.0 * number, 2.0], "y": [3.0, 4.0]})
    spec = write_spec(
        tmp_path,
        source={"trial_id": r"(?P<id>t\d+)(_(?P<kind>\w))?\.csv"},
        windows=per_trial("kind"),
        normalize={"method": "none"},
        shards={"buckets": 8},
        max_quarantined=0.5,
    )
    _, store = build_checked(spec, tmp_path / "store")
    refused = {f"raw/t{n}.csv": "no_label" for n in (3, 7, 11)}
    assert quarantine_of(store) == refused
    assert store.manifest.target.classes == ("a", "b")


def test_attributes_that_some_trials_lack_survive_any_bucketing(tmp_path: Path):
    for number in range(16):
        name = f"t{number:02d}" + ("_n" if number % 5 == 0 else "")
        write_trial(tmp_path, name, {"x": [1.0 * number, 2.0], "y": [3.0, 4.0]})
    kept = []
    for buckets in (1, 8):
        spec = write_spec(
            tmp_path,
            source={"trial_id": r"(?P<id>t(?P<number>\d+))(_(?P<note>n))?\.csv"},
            shards={"buckets": buckets},
            normalize={"method": "none"},
        )
        _, store = build_checked(spec, tmp_path / f"store{buckets}")
        kept.append(store.cold("attributes")["attributes"].to_pylist())
    assert kept[0] == kept[1]
    assert [row["note"] for row in kept[0]] == [None if n % 5 else "n" for n in range(16)]


def test_one_class_is_an_error(tmp_path: Path):
    label_folder(tmp_path, {"a": ["run"] * 2, "b": ["run"] * 2})
    spec = write_spec(
        tmp_path, windows=per_trial("activity"), attributes={"activity": {"column": "label"}}
    )
    with pytest.raises(InvalidSpecError, match=r"'activity' has the values \['run'\].*two classes"):
        build(spec, tmp_path / "store")
    assert list_versions(tmp_path / "store") == []


@pytest.mark.parametrize(("train", "found"), [(["run", "run"], r"\['run'\]"), ([], r"\[\]")])
def test_one_class_among_the_train_trials_is_an_error_whatever_the_others_are(
    train: list[str], found: str, tmp_path: Path
):
    labels = {"g2/c": "walk", "g2/d": "run", **{f"g0/{n}": name for n, name in enumerate(train)}}
    label_folder(tmp_path, {name: [label] * 2 for name, label in labels.items()})
    spec = write_spec(
        tmp_path,
        source={"trial_id": r"(?P<group>g\d)/\w+"},
        split=BY_FOLDER,
        windows=per_trial("activity"),
        attributes={"activity": {"column": "label"}},
    )
    with pytest.raises(InvalidSpecError, match=rf"values {found} among the train trials"):
        build(spec, tmp_path / "store")
    assert list_versions(tmp_path / "store") == []


@pytest.mark.parametrize(
    ("attributes", "trial_id"),
    [
        ({"kg": {"column": "y"}}, None),  # the column of an attribute is text, a channel numbers
        ({"y": {"column": "mass"}}, None),
        ({"goal": {"column": "mass"}}, None),
        ({"t": {"column": "mass"}}, None),
        ({"y": {"table": "masses.csv", "trial_id": "{name}", "column": "mass"}}, None),
        ({}, r"(?P<x>\w+)\.csv"),
    ],
    ids=["column", "channel", "target", "time", "table", "path"],
)
def test_a_name_is_a_channel_target_or_time_or_else_an_attribute(
    attributes: dict[str, Any], trial_id: str | None, tmp_path: Path
):
    names = ("t", "x", "y", "goal", "mass")
    write_trial(tmp_path, "a", {name: [1.0, 2.0] for name in names})
    target = {"kind": "per_step", "columns": ["goal"], "channels": None}
    spec = write_spec(
        tmp_path,
        source={"time": "t", "trial_id": trial_id},
        attributes=attributes,
        windows={"target": target},
    )
    with pytest.raises(InvalidSpecError, match=r"is both an attribute .* and a channel, target or"):
        Recipe(load_spec(spec)).check()
    with pytest.raises(InvalidSpecError, match="is both an attribute"):
        build(spec, tmp_path / "store")
    assert not (tmp_path / "store").exists()


# --- splits without train ---------------------------------------------------------------------


def test_statistics_of_train_need_a_train_trial(tmp_path: Path):
    write_trials(tmp_path, 6)
    sections = {"split": {"fractions": {"dev": 0.5, "test": 0.5}}}
    train = {"method": "zscore", "scope": "train"}
    with pytest.raises(
        InvalidSpecError, match=r"no trial is in split 'train'.*6 trials.*scope: trial"
    ):
        build(write_spec(tmp_path, normalize=train, **sections), tmp_path / "store")
    _, store = build_checked(write_spec(tmp_path, **sections), tmp_path / "store")
    assert set(store.manifest.splits) == {"dev", "test"}
    assert "offset" not in store.fit["normalize"]


# --- time -------------------------------------------------------------------------------------


def test_a_bad_time_column_refuses_its_trial_with_the_column(tmp_path: Path):
    times = {
        "good": [0.0, 0.5, 0.75],
        "hole": [0.0, math.nan, 2.0],
        "twice": [0.0, 1.0, 1.0],
        "back": [0.0, 2.0, 1.0],
    }
    for name, t in times.items():
        write_trial(tmp_path, name, {"t": t, "x": [1.0, 2.0, 4.0], "y": [1.0, 2.0, 3.0]})
    spec = write_spec(tmp_path, source={"time": "t"}, max_quarantined=0.9)
    report, store = build_checked(spec, tmp_path / "store")
    assert quarantine_of(store) == {
        "raw/hole.csv": "time_missing",
        "raw/twice.csv": "time_duplicate",
        "raw/back.csv": "time_not_increasing",
    }
    assert {refusal.column for refusal in report.refusals} == {"t"}
    as_channel = write_spec(
        tmp_path, channels=["t", "x"], source={"time": "t"}, max_quarantined=0.9,
        normalize={"method": "none"},
    )  # fmt: skip
    _, store = build_checked(as_channel, tmp_path / "store")
    assert store.trial_rows(0)[:, 0].tolist() == times["good"]


# --- quarantine -------------------------------------------------------------------------------


def spoil(root: Path, name: str, text: str) -> None:
    (root / "raw" / f"{name}.csv").write_text(text)


def test_above_max_quarantined_nothing_is_published_and_the_old_version_stays(tmp_path: Path):
    write_trials(tmp_path, 12)
    spec = write_spec(tmp_path, max_quarantined=0.2)
    _, store = build_checked(spec, tmp_path / "store")
    before = delivered(store)
    spoil(tmp_path, "g0/t03", "x,y\n1,two\n")
    spoil(tmp_path, "g1/t04", "x,y\n1,2\n3\n")
    spoil(tmp_path, "g2/t05", "")
    with pytest.raises(TooManyQuarantinedError) as caught:
        build(spec, tmp_path / "store")
    message = str(caught.value)
    for part in (
        "3 of 12 files were refused (25.0%", "max_quarantined allows 20.0%", "1 not_a_number",
        "1 field_count", "1 empty", "raw/g0/t03.csv: not_a_number", "Nothing was published",
        "raise max_quarantined",
    ):  # fmt: skip
        assert part in message, message
    assert list_versions(tmp_path / "store") == ["v0001"]
    assert verify_store(tmp_path / "store") == []
    after = delivered(Store(tmp_path / "store"))
    assert all(after[name].tobytes() == rows.tobytes() for name, rows in before.items())
    looser = write_spec(tmp_path, max_quarantined=0.25)
    report, store = build_checked(looser, tmp_path / "store")
    assert (report.version, report.published) == ("v0002", True)
    assert set(quarantine_of(store).values()) == {"not_a_number", "field_count", "empty"}


def test_many_refusals_are_counted_and_the_first_are_shown(tmp_path: Path):
    for number in range(15):
        (tmp_path / "raw").mkdir(exist_ok=True)
        spoil(tmp_path, f"t{number:02d}", "x\n1\n")
    with pytest.raises(TooManyQuarantinedError, match=r"(?s)15 of 15.*and 5 more") as caught:
        build(write_spec(tmp_path), tmp_path / "store")
    assert str(caught.value).count("missing_column:") == 10
    assert list_versions(tmp_path / "store") == []


def test_ignored_files_do_not_dilute_the_share_of_refusals(tmp_path: Path):
    write_trials(tmp_path, 10)
    spoil(tmp_path, "g0/t03", "x,y\n1,two\n")
    for number in range(20):
        spoil(tmp_path, f"g0/.hidden{number}", "")
    with pytest.raises(TooManyQuarantinedError, match=r"1 of 10 files were refused \(10\.0%"):
        build(write_spec(tmp_path, max_quarantined=0.09), tmp_path / "store")


def test_a_build_without_any_trial_is_refused_in_a_sentence(tmp_path: Path):
    (tmp_path / "raw").mkdir()
    spoil(tmp_path, "a", "x,y\n1,two\n")
    spoil(tmp_path, ".hidden", "")
    with pytest.raises(TooManyQuarantinedError, match=r"1 of 1 files were refused"):
        build(write_spec(tmp_path, max_quarantined=1.0), tmp_path / "store")


# --- publishing -------------------------------------------------------------------------------


def test_a_rebuild_with_nothing_changed_publishes_nothing(tmp_path: Path):
    write_trials(tmp_path, 8)
    spoil(tmp_path, "g2/t02", "x,y\n1,two\n")
    spec = write_spec(tmp_path, shards={"buckets": 4}, max_quarantined=0.2)
    report, _ = build_checked(spec, tmp_path / "store")
    assert report.published
    before = snapshot(tmp_path / "store")
    again, _ = build_checked(spec, tmp_path / "store")
    assert (again.version, again.published) == ("v0001", False)
    assert snapshot(tmp_path / "store") == before
    assert list((tmp_path / "store").rglob(".tmp-*")) == []


def test_a_changed_file_gives_a_new_version_and_leaves_the_old_one(tmp_path: Path):
    trials = write_trials(tmp_path, 8)
    spec = write_spec(tmp_path, shards={"target_bytes": 300}, normalize={"method": "none"})
    _, first = build_checked(spec, tmp_path / "store")
    before = {k: v for k, v in snapshot(tmp_path / "store").items() if k != "latest.json"}
    trials["g0/t03"]["x"][0] = -77.0
    write_trial(tmp_path, "g0/t03", trials["g0/t03"])
    report, second = build_checked(spec, tmp_path / "store")
    assert (report.version, second.fingerprint != first.fingerprint) == ("v0002", True)
    assert delivered(second)["g0/t03"][0, 0] == -77
    after = snapshot(tmp_path / "store")
    assert {name: after[name] for name in before} == before
    assert verify_store(tmp_path / "store", "v0001") == []
    shared = {s.digest for s in first.manifest.shards} & {s.digest for s in second.manifest.shards}
    assert shared


def test_of_two_builds_of_the_same_files_at_once_the_later_one_publishes_nothing(tmp_path: Path):
    write_trials(tmp_path, 6)
    spec, store = write_spec(tmp_path, shards={"buckets": 2}), tmp_path / "store"
    inner: list[str] = []

    def meanwhile(_: Progress) -> None:
        if not inner:
            inner.append("running")
            inner.append(build(spec, store).version)

    report = build(spec, store, on_progress=meanwhile)
    assert inner == ["running", "v0001"]
    assert (report.version, report.published) == ("v0001", False)
    assert verify_store(store) == []
    _, after = build_checked(spec, store)
    assert after.fingerprint == Store(store, "v0001").fingerprint


def test_progress_grows_to_all_files_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.buckets.BATCH_BYTES", 200)
    write_trials(tmp_path, 9)
    spoil(tmp_path, "g2/t02", "x,y\n1,two\n")
    seen: list[Progress] = []
    spec = write_spec(tmp_path, shards={"buckets": 2}, max_quarantined=0.5)
    build(spec, tmp_path / "store", on_progress=seen.append)
    steps = [(p.n_files_done, p.n_bytes_done) for p in seen]
    assert steps == sorted(steps)
    assert len(steps) > 4
    n_bytes = sum(path.stat().st_size for path in (tmp_path / "raw").rglob("*.csv"))
    assert seen[-1] == Progress(9, 9, n_bytes, n_bytes)


@pytest.mark.parametrize("shards", [{"target_bytes": 1}, {"buckets": 64}], ids=str)
def test_two_trials_with_the_same_rows_are_two_trials(shards: dict[str, int], tmp_path: Path):
    for name in "abcdef":
        write_trial(tmp_path, name, {"x": [1.0, 2.0, 3.0], "y": [3.0, 2.0, 2.0]})
    _, store = build_checked(write_spec(tmp_path, shards=shards), tmp_path / "store")
    assert ids_of(store) == list("abcdef")
    assert sum(shard.n_trials for shard in store.manifest.shards) == 6
    # Equal content is one shard: it is on the disk once, whoever wrote it.
    on_disk = sorted(path.name for path in (tmp_path / "store" / "shards").iterdir())
    assert on_disk == sorted({shard.digest for shard in store.manifest.shards})
    assert len(on_disk) < 6
    assert len({rows.tobytes() for rows in delivered(store).values()}) == 1


# --- the sample data of this repository -------------------------------------------------------


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("robot_arm")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tests" / "data"))
        generator = importlib.import_module("robot_arm_generator").gen
    generator.generate(root, 0, 24)
    text = (ROOT / "data" / "robot_arm" / "dataset.yaml").read_text()
    (root / "dataset.yaml").write_text(text + "max_quarantined: 0.4\n")
    return root, dict(generator.BROKEN)


def test_the_broken_robot_arm_files_are_refused_for_what_is_wrong(
    arm: tuple[Path, dict[str, str]], tmp_path: Path
):
    root, broken = arm
    assert len(broken) == 12
    report, store = build_checked(root / "dataset.yaml", tmp_path / "store")
    assert quarantine_of(store) == {f"raw/{path}": code for path, code in broken.items()}
    assert report.counts["files"] == 36
    assert len(store.index) == 24
    assert all(len(refusal.message) < 400 for refusal in report.refusals)
    attributes = store.cold("attributes")["attributes"].to_pylist()
    assert {row["payload"] for row in attributes} == {"light", "heavy"}
    assert {row["subject"] for row in attributes} == {f"s{n:02d}" for n in range(1, 13)}
    lines = [
        len(path.read_text().splitlines()) - 1
        for path in sorted((root / "raw").rglob("*.csv"))
        if path.relative_to(root / "raw").as_posix() not in broken
    ]
    assert report.counts["rows_in"] == sum(lines)


def test_without_leave_the_broken_files_stop_the_build(
    arm: tuple[Path, dict[str, str]], tmp_path: Path
):
    root, _ = arm
    text = (root / "dataset.yaml").read_text().replace("max_quarantined: 0.4\n", "")
    (root / "strict.yaml").write_text(text)
    with pytest.raises(TooManyQuarantinedError, match=r"12 of 36 .*2 truncated"):
        build(root / "strict.yaml", tmp_path / "store")


@pytest.mark.skipif(not CMAPSS.is_file(), reason=f"the C-MAPSS archive is not at {CMAPSS}")
def test_cmapss_fd001_has_its_published_counts_and_lives(tmp_path: Path):
    with tarfile.open(CMAPSS) as archive:
        for member in archive:  # in one pass: to go back is to decompress from the start
            if member.name.startswith("cmapss_trials/FD001/"):
                archive.extract(member, tmp_path / "raw", filter="data")
    spec = shutil.copy(ROOT / "data" / "cmapss" / "fd001.yaml", tmp_path / "dataset.yaml")
    report, store = build_checked(Path(spec), tmp_path / "store")
    assert report.refusals == ()
    assert report.counts["trials"] == 200
    folder = tmp_path / "raw" / "cmapss_trials" / "FD001"
    files = sorted(folder.rglob("engine_*.csv"))
    n_rows = {f"{p.parent.name}/{p.stem}": p.read_text().count("\n") - 1 for p in files}
    assert report.counts["rows"] == sum(n_rows.values())
    assert n_rows == dict(zip(ids_of(store), store.index.n_rows.tolist(), strict=True))
    with (folder / "test_rul.csv").open() as table:
        lives = {
            f"test/engine_{int(r['unit']):04d}": float(r["rul"]) for r in csv.DictReader(table)
        }
    assert len(lives) == 100
    for number, name in enumerate(ids_of(store)):
        rul = store.trial_rows(number, "targets")[:, 0]
        assert rul[-1] == lives.get(name, 0.0)
        np.testing.assert_array_equal(np.diff(rul), -1)
    sides = split_of(store)
    assert {sides[name] for name in lives} == {"test"}
    assert set(sides.values()) == {"train", "val", "test"}
    assert report.lookahead == ()
    check_conservation(store)
