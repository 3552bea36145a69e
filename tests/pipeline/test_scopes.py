"""Normalization by scope: whose statistics a channel gets, from CSV files to batches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from trialfolders import (
    build_checked,
    constants_of,
    delivered,
    draw_trial,
    ids_of,
    make_spec,
    regime_of,
    split_of,
    write_spec,
    write_trial,
)

from loaders import TrialStream
from pipeline.audit_store import check_finite, check_leaks
from pipeline.fit import describe_lookahead, describe_normalization
from pipeline.normalize import (
    Affine,
    batch_affine,
    batch_moments,
    check_normalization,
    measure_moments,
    trial_affine,
)
from shards import InvalidSpecError, Store

NAN = math.nan
METHODS = ["zscore", "minmax", "robust"]
cells = st.one_of(st.just(NAN), st.floats(-1e6, 1e6).map(lambda value: round(value, 6)))
tables = hnp.arrays(np.float64, st.tuples(st.integers(1, 25), st.just(3)), elements=cells)


def own(method: str, rows: Any) -> tuple[float, float]:
    """Return offset and scale of one column, the slow way."""
    seen = rows[~np.isnan(rows)]
    if not len(seen):
        return 0.0, 1.0
    if method == "zscore":
        offset, scale = seen.mean(), 0.0 if len(set(seen.tolist())) == 1 else seen.std()
    elif method == "minmax":
        offset, scale = seen.min(), seen.max() - seen.min()
    else:
        low, offset, high = np.quantile(seen, [0.25, 0.5, 0.75])
        scale = high - low
    return float(offset), float(scale) if scale > 1e-30 else 1.0


# --- scopes of one trial --------------------------------------------------------------------------


@given(tables, st.integers(1, 9), st.permutations(METHODS))
def test_prefix_statistics_are_those_of_the_first_rows(values, n_first, methods):
    entries = [(method, f"prefix({n_first})") for method in methods]
    affine = trial_affine(entries, values)
    for channel, method in enumerate(methods):
        offset, scale = own(method, values[:n_first, channel])
        reach = np.nanmax(np.abs(values[:, channel] - offset), initial=0)
        if reach < 1e20 * scale:
            assert affine.offset[channel] == pytest.approx(offset, rel=1e-12, abs=1e-9)
            assert affine.scale[channel] == pytest.approx(scale, rel=1e-6, abs=1e-9)


@given(tables, st.integers(1, 9), st.sampled_from(METHODS))
def test_later_rows_do_not_change_a_prefix(values, n_first, method):
    entries = [(method, f"prefix({n_first})")] * 3
    changed = values.copy()
    changed[n_first:] = changed[n_first:] * -0.5 + 3
    first, second = trial_affine(entries, values), trial_affine(entries, changed)
    assert first.offset.tobytes() == second.offset.tobytes()
    assert first.scale.tobytes() == second.scale.tobytes()


@given(st.lists(tables, min_size=1, max_size=5), st.permutations(METHODS))
def test_a_trial_has_the_same_bits_alone_and_in_a_batch(trials, methods):
    entries = [
        (methods[0], "trial"), (methods[1], "prefix(4)"), (methods[2], "train"),
    ]  # fmt: skip
    edges = np.cumsum([0, *(len(trial) for trial in trials)])
    joined = np.concatenate(trials)
    together, moments = batch_affine(entries, joined, edges), batch_moments(joined, edges)
    known = batch_affine(entries, joined, edges, moments)
    assert together is not None
    assert known is not None
    for number, trial in enumerate(trials):
        alone, measured = trial_affine(entries, trial), measure_moments(trial)
        for got, other, want in zip(
            vars(together).values(), vars(known).values(), vars(alone).values(), strict=True
        ):
            assert got[number].tobytes() == other[number].tobytes() == want.tobytes()
        for name, want in measured.items():
            assert moments[name][number].tobytes() == want.tobytes()
        assert (alone.offset[2], alone.scale[2]) == (0, 1)


def test_nothing_is_done_to_a_trial_without_scopes_of_its_own():
    values = np.array([[1.0, 2.0]])
    assert batch_affine([("zscore", "train"), ("none", "none")], values, np.array([0, 1])) is None
    assert isinstance(trial_affine([("zscore", "train")] * 2, values), Affine)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("first", [[0.0, 1e-29, 2e-29], [3e38, 3e38, 3e38], [NAN, NAN, NAN]])
def test_a_prefix_never_makes_later_rows_infinite(method: str, first: list[float]):
    values = np.array([*first, 1e10, -3e38])[:, None]
    affine = trial_affine([(method, "prefix(3)")], values)
    assert np.isfinite(affine.apply(values)[3:]).all()


# --- what a specification may ask for -------------------------------------------------------------


REGIMES = {"channels": ["y"], "count": 2}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"normalize": {"scope": "regime", "regimes": REGIMES}},
            r"'x' is forecast and has scope regime.*x: \{scope: train\}",
        ),
        (
            {"normalize": {"channels": {"y": {"scope": "regime"}}, "regimes": {
                "channels": ["x"], "count": 2}}},
            "'x' has scope trial, so its physical values.*not stored",
        ),
        (
            {"normalize": {"scope": "prefix(9)", "channels": {"y": {"scope": "regime"}},
                           "regimes": {"channels": ["x"], "count": 2}}},
            r"'x' has scope prefix\(9\)",
        ),
        (
            {"normalize": {"scope": "group:g"}, "source": {"trial_id": r"(?P<g>g\d)/t\d+"},
             "windows": {"target": {"kind": "per_trial", "attribute": "g", "channels": None}}},
            "would tell the model its target",
        ),
    ],
    ids=["forecast by regime", "regime of a trial", "regime of a prefix", "group by label"],
)  # fmt: skip
def test_scopes_that_cannot_work_are_refused_with_advice(sections, message):
    with pytest.raises(InvalidSpecError, match=message):
        check_normalization(make_spec(**sections))


def test_what_looks_ahead_is_said_by_scope():
    def ahead(**normalize):
        return describe_lookahead(make_spec(normalize=normalize))

    assert ahead(scope="trial") == ["normalize.scope: trial uses statistics of the whole trial"]
    assert "first rows" in ahead(scope="prefix(20)")[0]
    assert "whole window" in ahead(scope="window")[0]
    assert ahead(scope="train") == ahead(scope="group:g") == ahead(method="none") == []
    mixed = ahead(scope="train", channels={"y": {"scope": "trial"}})
    assert mixed == ["normalize.scope: trial (of y) uses statistics of the whole trial"]


def test_the_manifest_says_mixtures_channel_by_channel():
    plain = describe_normalization(make_spec(normalize={"scope": "train"}))
    assert plain == {"method": "zscore", "scope": "train", "lookahead": []}
    channels = {"y": {"method": "none"}}
    mixed = describe_normalization(make_spec(normalize={"scope": "train", "channels": channels}))
    assert (mixed["method"], mixed["scope"]) == ("mixed", "mixed")
    assert mixed["channels"] == [
        {"method": "zscore", "scope": "train"}, {"method": "none", "scope": "none"},
    ]  # fmt: skip


# --- from files to batches ------------------------------------------------------------------------

GROUPED: dict[str, Any] = {
    "source": {"trial_id": r"(?P<side>train|test)_(?P<machine>m\d)_(?P<id>t\d+)"},
    "split": {"method": "attribute", "attribute": "side", "by": "trial"},
}
NAMES = ["x", "y", "z", "w"]
MIXED = {
    "scope": "trial",
    "channels": {
        "x": {"scope": "train", "method": "robust"},
        "y": {"scope": "group:machine"},
        "z": {"scope": "regime", "method": "minmax"},
    },
    "regimes": {"channels": ["x", "y"], "count": 3, "seed": 4},
}


def write_machines(root: Path, seed: int = 0, test_seed: int = 0) -> dict[str, Any]:
    """Write train trials of machines m0 and m1, test trials of m0, m1 and m2."""
    trials = {}
    for number in range(9):
        side, machine = ("train", number % 2) if number < 6 else ("test", number % 3)
        rng = np.random.default_rng([seed + (test_seed if side == "test" else 0), number])
        name = f"{side}_m{machine}_t{number}"
        n_rows = 1 if number == 2 else int(rng.integers(6, 40))
        columns = draw_trial(rng, n_rows, NAMES, missing=0.1)
        columns["w"][:] = 7.5 if number % 3 else columns["w"]
        if number == 4:
            columns["z"][:] = NAN
        write_trial(root, name, columns)
        trials[f"t{number}"] = np.stack([columns[c] for c in NAMES], axis=1)
    return trials


def make_machines(root: Path, normalize: dict[str, Any], **seeds: int) -> tuple[Store, Any]:
    trials = write_machines(root, **seeds)
    spec = write_spec(root, channels=NAMES, normalize=normalize, **GROUPED)
    return build_checked(spec, root / "store")[1], trials


def every_normalize() -> list[dict[str, Any]]:
    scopes = ["trial", "prefix(5)", "train", "group:machine", "window"]
    plain = [{"method": m, "scope": s} for m in METHODS for s in scopes]
    regimes = {"channels": ["x", "w"], "count": 3}
    by_regime = [
        {"method": m, "scope": "regime", "regimes": regimes, "channels": {"x": {"scope": "train"}}}
        for m in METHODS
    ]
    return [*plain, *by_regime, MIXED]


def shown(normalize: dict[str, Any]) -> str:
    return f"{normalize.get('method', 'mixed')} {normalize['scope']}"


@pytest.mark.parametrize("normalize", every_normalize(), ids=shown)
def test_every_scope_delivers_what_it_says_and_goes_back(tmp_path: Path, normalize):
    store, trials = make_machines(tmp_path, normalize)
    assert check_finite(store).passed
    assert check_leaks(store).passed, check_leaks(store).message
    rows = delivered(store)
    for split in ("train", "test"):
        stream = TrialStream(store, split=split, batch_size=4, shuffle="none")
        for batch in stream:
            back = stream.to_physical(batch.values.double(), batch, NAMES)
            ahead = stream.to_physical(batch.targets.double(), batch)
            for row, number in enumerate(batch.trial.tolist()):
                if number < 0:
                    continue
                name = ids_of(store)[number]
                start, n = int(batch.start[row]), int(batch.lengths[row])
                physical = trials[name].astype(np.float64)
                if normalize["scope"] != "window":
                    got = batch.values[row, :n].numpy()
                    assert got.tobytes() == rows[name][start : start + n].tobytes()
                seen = ~np.isnan(physical[start : start + n])
                np.testing.assert_allclose(
                    back[row, :n].numpy()[seen], physical[start : start + n][seen],
                    rtol=2e-6, atol=2e-5,
                )  # fmt: skip
                np.testing.assert_allclose(
                    ahead[row, 0, 0], physical[start + n, 0], rtol=2e-6, atol=2e-5
                )


@pytest.mark.parametrize("method", METHODS)
def test_groups_have_the_statistics_of_their_train_trials(tmp_path: Path, method: str):
    store, trials = make_machines(tmp_path, {"method": method, "scope": "group:machine"})
    everything = [trials[f"t{n}"] for n in range(6)]
    for number, name in enumerate(ids_of(store)):
        machine = int(store.cold("attributes")["attributes"][number].as_py()["machine"][1])
        members = everything if machine == 2 else everything[machine::2]
        joined = np.concatenate(members)
        if method == "robust":
            joined = joined.astype(np.float32).astype(np.float64)
        got = constants_of(store, number)(None)
        for channel in range(4):
            offset, scale = own(method, joined[:, channel])
            assert got[0][channel] == pytest.approx(offset, rel=1e-12), name
            assert got[1][channel] == pytest.approx(scale, rel=1e-10), name


@pytest.mark.parametrize("method", METHODS)
def test_regimes_have_the_statistics_of_their_train_rows(tmp_path: Path, method: str):
    regimes = {"channels": ["x", "y"], "count": 3}
    channels = {"x": {"scope": "train"}, "y": {"method": "none"}}
    normalize = {"method": method, "scope": "regime", "channels": channels, "regimes": regimes}
    store, trials = make_machines(tmp_path, normalize)
    rows = np.concatenate([trials[f"t{n}"] for n in range(6)]).astype(np.float32)
    regime = np.array([-1 if r is None else r for r in (regime_of(store, row) for row in rows)])
    assert (np.isnan(rows[:, :2]).any(axis=1) == (regime == -1)).all()
    found = store.fit["normalize"]["regimes"]
    assert found["n_rows"] == [int((regime == r).sum()) for r in range(3)]
    assert found["centres"] == sorted(found["centres"])
    for number in range(3):
        for channel in (2, 3):
            column = rows[regime == number, channel].astype(np.float64)
            if np.isnan(column).all():
                continue
            offset, scale = own(method, column)
            assert found["offset"][number][channel] == pytest.approx(offset, rel=1e-12, abs=1e-12)
            assert found["scale"][number][channel] == pytest.approx(scale, rel=1e-9)
        assert (found["offset"][number][0], found["scale"][number][0]) == (0, 1)


@pytest.mark.parametrize("normalize", [n for n in every_normalize() if n["scope"] != "window"],
                         ids=shown)  # fmt: skip
def test_no_test_trial_enters_what_is_fitted(tmp_path: Path, normalize):
    first, _ = make_machines(tmp_path / "a", normalize)
    second, _ = make_machines(tmp_path / "b", normalize, test_seed=99)
    fits = [(s.folder / "fit.json").read_bytes() for s in (first, second)]
    assert fits[0] == fits[1]
    assert first.manifest.fingerprints["train"] == second.manifest.fingerprints["train"]
    assert first.manifest.fingerprints["test"] != second.manifest.fingerprints["test"]


def test_a_mixture_keeps_each_channel_by_its_own_scope(tmp_path: Path):
    store, trials = make_machines(tmp_path, MIXED)
    fit, cold = store.fit["normalize"], store.cold("offset", "scale").to_pylist()
    for number, name in enumerate(ids_of(store)):
        offset, scale = own("zscore", trials[name][:, 3])
        assert cold[number]["offset"] == pytest.approx([0, 0, 0, offset])
        assert cold[number]["scale"] == pytest.approx([1, 1, 1, scale])
        stored = store.trial_rows(number)
        np.testing.assert_array_equal(stored[:, :3], trials[name][:, :3].astype(np.float32))
        physical = store.physical_rows(number)
        np.testing.assert_allclose(physical, trials[name], rtol=1e-6, atol=1e-6)
    assert [e["scope"] for e in fit["channels"]] == ["train", "group:machine", "regime", "trial"]
    assert (fit["offset"][3], fit["scale"][3]) == (0, 1)
    assert json.loads((store.folder / "dataset.json").read_text())["format"]["minor"] == 3


@settings(max_examples=8)
@given(seed=st.integers(0, 99), order=st.permutations([0, 1, 2, 3]))
def test_the_fit_does_not_depend_on_buckets(tmp_path_factory, seed, order):
    """Shards and batches differ, the statistics do not."""
    names = [NAMES[place] for place in order]
    fits = []
    for buckets in (1, 4):
        root = tmp_path_factory.mktemp("s")
        write_machines(root, seed)
        spec = write_spec(
            root, channels=names, normalize=MIXED, shards={"buckets": buckets}, **GROUPED
        )
        fits.append((build_checked(spec, root / "store")[1].folder / "fit.json").read_bytes())
    assert fits[0] == fits[1]


def test_too_few_settings_for_the_regimes_are_refused(tmp_path: Path):
    write_machines(tmp_path)
    regimes = {"channels": ["y"], "count": 250}
    channels = {"z": {"scope": "regime"}}
    normalize = {"scope": "train", "channels": channels, "regimes": regimes}
    spec = write_spec(tmp_path, channels=NAMES, normalize=normalize, **GROUPED)
    with pytest.raises(InvalidSpecError, match=r"count is 250, but .* only \d+ different .*of y"):
        build_checked(spec, tmp_path / "store")


@pytest.mark.parametrize("scope", ["train", "group:machine", "regime"])
def test_statistics_of_an_empty_train_split_are_refused(tmp_path: Path, scope: str):
    write_machines(tmp_path)
    normalize: dict[str, Any] = {"scope": "none", "channels": {"z": {"scope": scope}}}
    normalize["scope"] = "trial"
    if scope == "regime":
        normalize |= {"regimes": REGIMES}
        normalize["channels"] |= {"y": {"method": "none"}}
    split = {"fractions": {"dev": 0.5, "test": 0.5}}
    spec = write_spec(tmp_path, channels=NAMES, normalize=normalize,
                      source=GROUPED["source"], split=split)  # fmt: skip
    with pytest.raises(InvalidSpecError, match=f"scope is {scope}, but no trial is in split"):
        build_checked(spec, tmp_path / "store")


@pytest.mark.parametrize("scope", ["train", "group:machine", "regime", "window"])
@pytest.mark.parametrize("method", METHODS)
def test_values_that_no_float32_could_hold_are_refused(tmp_path: Path, scope: str, method: str):
    """A test trial is 1e40 times the scale of train, or as far apart as float32 reaches."""
    for number, side in enumerate(["train"] * 3 + ["test"]):
        tiny = np.array([0.0, 1e-25, 2e-25, 3e-25, 4e-25, 5e-25])
        z = np.array([3e38, -3e38] * 3) if side == "test" else tiny
        x = np.array([0.0, 1, 0, 1, 0, 1])
        write_trial(tmp_path, f"{side}_m0_t{number}", {"x": x, "y": x, "z": z, "w": x})
    channels: dict[str, Any] = {"z": {"scope": scope, "method": method}}
    normalize = {"scope": "train", "channels": channels}
    if scope == "regime":
        normalize["regimes"] = REGIMES
    spec = write_spec(tmp_path, channels=NAMES, normalize=normalize, **GROUPED)
    with pytest.raises(
        InvalidSpecError, match=r"'z' reaches from -3e\+38 to 3e\+38, beyond float32"
    ):
        build_checked(spec, tmp_path / "store")


def test_splits_are_as_the_tests_above_think(tmp_path: Path):
    store, _ = make_machines(tmp_path, {"scope": "train"})
    assert {n: s for n, s in split_of(store).items() if s == "test"} == dict.fromkeys(
        ["t6", "t7", "t8"], "test"
    )
