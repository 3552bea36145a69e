"""Whatever a store looks like: its checks pass or find, its pictures and figures are the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from stores import SHAPES, make_store
from trialfolders import build_checked, draw_trial, write_spec, write_trial, write_trials

from pipeline import audit_store, pictures
from pipeline.commit import Commit
from pipeline.orchestration.metadata import of_version
from pipeline.spec import load_spec
from pipeline.storedrows import row_blocks
from shards import Store, WindowSpec
from shards.cutting import Cut, cut_windows
from shards.shape import describe_shape
from shards.tombstone import tombstone_trials
from shards.windows import count_windows, window_rows
from trialshards.cli import main

CHECKS = (
    audit_store.check_windows, audit_store.check_finite, audit_store.check_leaks,
    audit_store.check_bytes,
)  # fmt: skip
CLEAN = {"missing": "none", "then": "mask", "drop_trial_if_missing": 1.0}
GROUPS = {"trial_id": r"(?P<group>g\d)/t(?P<ten>\d)\d"}
KINDS: dict[str, dict[str, Any]] = {
    "forecast": {  # some rows lie in no window
        "windows": {
            "length": 5, "stride": 7,
            "target": {"kind": "forecast", "channels": ["y", "x"], "horizon": 2, "steps": 3},
        },
        "normalize": {"scope": "train"}, "clean": {**CLEAN, "observed": True},
    },
    "per_step": {  # every row lies in a window, most in two
        "channels": ["x"], "clean": CLEAN,
        "windows": {
            "stride": 1, "target": {"kind": "per_step", "columns": ["y"], "channels": None},
        },
    },
    "per_trial": {  # short trials have no window
        "source": GROUPS, "clean": CLEAN, "normalize": {"scope": "group:group"},
        "windows": {
            "length": 9, "stride": 5, "short": "drop",
            "target": {"kind": "per_trial", "attribute": "ten", "channels": None},
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One data set in all four shapes, the first in layout rows."""

    root: Path
    stores: list[Store]

    @property
    def shaped(self) -> list[tuple[Store, tuple[str, str]]]:
        return list(zip(self.stores, SHAPES, strict=True))


def build_family(root: Path, **sections: Any) -> Family:
    stores = []
    for layout, container in SHAPES:
        shards = {"layout": layout, "format": container, "target_bytes": 2000}
        spec = write_spec(root, **sections, shards=shards)
        stores.append(build_checked(spec, root / f"store_{layout}_{container}")[1])
    return Family(root, stores)


@pytest.fixture(scope="module", params=KINDS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = tmp_path_factory.mktemp(request.param)
    write_trials(root, 14, missing=0.2)
    return build_family(root, **KINDS[request.param])


WINDOWS = st.builds(
    WindowSpec,
    length=st.integers(1, 9), stride=st.integers(1, 12), horizon=st.integers(1, 4),
    steps=st.integers(0, 3), short=st.sampled_from(["pad", "drop"]),
)  # fmt: skip


def rows_inside(n_rows: int, windows: WindowSpec) -> list[int]:
    """Return the rows that lie in a window, one window after another."""
    rows = set[int]()
    for number in range(int(count_windows(np.array(n_rows), windows))):
        start, n_valid = window_rows(np.array(n_rows), np.array(number), windows)
        rows |= set(range(int(start), int(start + n_valid)))
    return sorted(rows)


@given(n_rows=st.integers(1, 40), windows=WINDOWS, most=st.integers(1, 20))
def test_blocks_hold_each_stored_row_once_and_in_order(n_rows, windows, most):
    values = np.arange(2 * n_rows, dtype=np.float32).reshape(n_rows, 2)
    stored = cut_windows({"values": values}, np.array([n_rows]), Cut(windows))["values"]
    blocks = list(row_blocks(stored, n_rows, windows, most=most))
    got = np.concatenate([values[:0], *blocks])
    assert got.tolist() == values[rows_inside(n_rows, windows)].tolist()
    assert all(len(block) <= max(most, windows.length) for block in blocks)
    whole = list(row_blocks(values, n_rows, None, most=most))
    assert np.concatenate(whole).tobytes() == values.tobytes()
    assert all(len(block) <= most for block in whole)


def test_every_check_passes_and_says_the_same(family):
    for check in CHECKS:
        found = [check(store) for store in family.stores]
        assert [finding.message for finding in found if not finding.passed] == []
        others = {"n_bytes", "rows_in_no_window"}
        facts = [{k: v for k, v in f.facts.items() if k not in others} for f in found]
        assert facts == [facts[0]] * 4


def test_rows_that_no_shard_holds_are_counted(family):
    for store, (layout, _) in family.shaped:
        lengths, windows = store.index.n_rows.tolist(), store.manifest.windows
        wanted = sum(n - len(rows_inside(n, windows)) for n in lengths) * (layout == "windows")
        finding = audit_store.check_finite(store)
        assert finding.facts["rows_in_no_window"] == wanted
        assert ("in no window" in finding.message) == (wanted > 0)


class Damaged(Store):
    """A version one element of which reads as something else."""

    def __init__(self, store: Store, trial: int, array: str, change: Any) -> None:
        super().__init__(store.path, store.version)
        self.trial, self.array, self.change = trial, array, change

    def shard_rows(self, shard: int, array: str = "values") -> npt.NDArray[Any]:
        rows = super().shard_rows(shard, array)
        if array != self.array or shard != self.index.shard[self.trial]:
            return rows
        rows, start = np.array(rows), int(self.index.row_start[self.trial])
        self.change(rows[start : start + int(self.n_stored[self.trial])])
        return rows


def becomes(value: float, *, where_nan: bool) -> Any:
    def change(stored: npt.NDArray[Any]) -> None:
        flat = stored.reshape(-1)
        flat[np.flatnonzero(np.isnan(flat) == where_nan)[0]] = value

    return change


def test_what_is_no_number_is_found_in_every_shape(family):
    for store in family.stores:
        trial = int(np.flatnonzero(store.n_stored > 0)[-1])
        name = store.index.id_of(trial)
        arrays = {"values"} | ({"targets"} & set(store.manifest.shards[0].arrays))
        for array in arrays:
            damaged = Damaged(store, trial, array, becomes(-np.inf, where_nan=False))
            finding = audit_store.check_finite(damaged)
            assert not finding.passed
            assert f"1 trial with others that are no number, such as {name}" in finding.message
        # One NaN more than were masked: wherever all rows are stored, there is no excuse for it.
        damaged = Damaged(store, trial, "values", becomes(np.nan, where_nan=False))
        n_rows = int(store.index.n_rows[trial])
        if store.manifest.layout == "rows" or len(rows_inside(n_rows, store.manifest.windows)) == (
            n_rows
        ):
            assert name in audit_store.check_finite(damaged).message


@pytest.mark.parametrize(("layout", "container"), SHAPES)
def test_a_masked_value_that_became_a_number_is_found(tmp_path, layout, container):
    write_trials(tmp_path, 3, missing=0.3)
    spec = write_spec(tmp_path, **KINDS["per_step"], shards={"layout": layout, "format": container})
    _, store = build_checked(spec, tmp_path / "store")
    trial = int(np.flatnonzero(store.cold("n_masked")["n_masked"].to_numpy() > 0)[0])
    row = int(np.flatnonzero(np.isnan(store.trial_rows(trial)[:, 0]))[0])

    def fill(stored: npt.NDArray[Any]) -> None:
        if layout == "rows":
            stored[row] = 1
            return
        for number, window in enumerate(stored):  # stride 1: row = number + step
            if 0 <= row - number < len(window):
                window[row - number] = 1

    finding = audit_store.check_finite(Damaged(store, trial, "values", fill))
    assert store.index.id_of(trial) in finding.message


def test_sample_windows_are_the_same_to_the_byte(family):
    rows, _, _, packed_windows = family.stores
    assert pictures.sample_windows(rows) == pictures.sample_windows(packed_windows)


def test_missing_values_are_counted_in_the_rows_of_windows(family):
    first = family.stores[0]
    observed = first.manifest.observed
    for store, (layout, _) in family.shaped:
        missing, n_rows, counted = pictures.missing_counts(store)
        assert counted.tolist() == [1] * len(store.index)
        for trial in range(len(store.index)):
            rows = range(int(first.index.n_rows[trial]))
            kept = (
                list(rows) if layout == "rows" else rows_inside(len(rows), store.manifest.windows)
            )
            seen = ~np.isnan(first.trial_rows(trial)[kept])
            if observed:
                bits = first.trial_rows(trial, "observed")[kept]
                seen = np.unpackbits(bits, axis=1, bitorder="little")[:, : seen.shape[1]] == 1
            assert n_rows[trial] == len(kept)
            assert missing[:, trial].tolist() == (~seen).sum(axis=0).tolist()


def test_a_container_changes_no_picture(family):
    rows, packed_rows, windows, packed_windows = family.stores
    assert pictures.missing_map(rows) == pictures.missing_map(packed_rows)
    assert pictures.before_after(windows) == pictures.before_after(packed_windows)


@pytest.mark.parametrize(("layout", "container"), SHAPES)
def test_a_version_whose_trials_are_all_too_short_has_its_pictures(tmp_path, layout, container):
    windows = WindowSpec(length=9, steps=1, short="drop")
    shape = {"layout": layout, "container": container}
    store = make_store(tmp_path, [4, 4, 4], windows=windows, missing=True, **shape)
    for picture in (pictures.missing_map, pictures.sample_windows, pictures.before_after):
        assert picture(store).startswith(b"\x89PNG")


def test_the_room_says_what_a_version_looks_like(family):
    space = SimpleNamespace(spec=load_spec(family.root / "dataset.yaml"))
    told = of_version(SimpleNamespace(space=space), family.stores[-1], Commit((), ()))
    assert (told["layout"], told["container"]) == SHAPES[-1]
    assert (told["dead_share"], told["n_parts"], told["taken_out"]) == (0, 1, 0)
    drawn = ("trial_lengths", "missing_values", "sample_windows")
    for key in (*drawn, "before_and_after_normalization"):
        assert "data:image/png;base64," in told[key].value


def inspect(store: Path, *options: str) -> str:
    env = {"COLUMNS": "200"}
    done = CliRunner().invoke(main, ["inspect", str(store), *options], env=env)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(("layout", "container"), SHAPES)
def test_inspect_says_how_a_version_is_stored_and_what_is_dead(tmp_path, layout, container):
    rng = np.random.default_rng(3)
    for name in "abcd":
        write_trial(tmp_path, name, draw_trial(rng, 21, ["x", "y"]))
    shards = {"layout": layout, "format": container, "buckets": 1}
    spec, path = write_spec(tmp_path, shards=shards), tmp_path / "store"
    build_checked(spec, path)
    each = 21 if layout == "rows" else 9  # windows of 4 every 2, and one row ahead
    about = json.loads(inspect(path, "--json"))
    assert (about["layout"], about["container"], about["n_parts"]) == (layout, container, 1)
    assert (about["n_stored"], about["n_dead"], about["tombstones"]) == (4 * each, 0, [])
    write_trial(tmp_path, "b", draw_trial(rng, 21, ["x", "y"]))
    build_checked(spec, path)
    tombstone_trials(path, ["c"], reason="sensor [fell] off")
    about = json.loads(inspect(path, "--json"))
    assert (about["n_stored"], about["n_dead"], about["dead_share"]) == (5 * each, 2 * each, 0.4)
    assert about["n_parts"] == 2
    assert [(stone["id"], stone["reason"]) for stone in about["tombstones"]] == [
        ("c", "sensor [fell] off")
    ]
    said = inspect(path)
    assert (
        f"layout {layout}, {container}: {5 * each} {layout} stored, {2 * each} of them of no trial "
        "any more (40.0%); cold index in 2 parts" in said
    )
    assert "taken out by hand: c  sensor [fell] off" in said


def test_a_given_fit_is_told(tmp_path):
    write_trials(tmp_path, 4)
    spec = write_spec(tmp_path, normalize={"scope": "train"})
    _, first = build_checked(spec, tmp_path / "store")
    assert describe_shape(first)["fit"] == "own"
    assert "fit.json was given" not in inspect(first.path)
    _, second = build_checked(spec, tmp_path / "again", fit=first.folder / "fit.json")
    assert describe_shape(second)["fit"] == "given"
    assert "fit.json was given" in inspect(second.path)
