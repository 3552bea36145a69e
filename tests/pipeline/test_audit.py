"""Every check passes on a good version, finds what it is there for, and says what to do."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store
from trialfolders import (
    count_by_walking,
    draw_trial,
    ids_of,
    make_spec,
    snapshot,
    write_spec,
    write_trial,
    write_trials,
)

from pipeline.audit import Finding, audit_draft, audit_quarantine
from pipeline.audit_store import check_bytes, check_finite, check_leaks, check_windows
from pipeline.build import build
from pipeline.causal import describe_lookahead
from pipeline.delta import Delta
from pipeline.draft import draft_version
from pipeline.files import Refusal, SourceFile
from pipeline.merge import merge
from pipeline.staging import BucketResult
from pipeline.workspace import Workspace
from shards import Store, WindowSpec
from shards.errors import CorruptStoreError
from shards.identity import file_promise
from shards.index import index_to_bytes
from shards.version import VersionDraft

GROUPS = {
    "source": {"trial_id": r"(?P<group>g\d)/t\d+"},
    "split": {"by": "group", "method": "exact", "fractions": {"train": 0.6, "test": 0.4}},
}
SIDES = {
    "source": {"trial_id": r"(?P<side>train|test)/(?P<id>t\d+)"},
    "split": {"method": "attribute", "attribute": "side", "by": "trial"},
}
STORE_CHECKS = (check_windows, check_finite, check_leaks, check_bytes)


# --- before publishing ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Audited:
    """What `audit_draft` is given."""

    space: Workspace
    delta: Delta
    results: tuple[BucketResult, ...]
    trials: pa.Table
    draft: VersionDraft
    refusals: tuple[Refusal, ...]

    def findings(self, **changes: Any) -> dict[str, Finding]:
        now = dataclasses.replace(self, **changes)
        found = audit_draft(
            now.space.spec, now.delta, now.results, now.trials, now.draft, now.refusals
        )
        return {finding.name: finding for finding in found}

    def with_result(self, number: int, **fields: Any) -> tuple[BucketResult, ...]:
        results = list(self.results)
        results[number] = dataclasses.replace(results[number], **fields)
        return tuple(results)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    root = tmp_path_factory.mktemp("draft")
    write_trials(root, 10, missing=0.2)
    (root / "raw" / "g0" / "t99.csv").write_text("x,y\n1,two\n")
    clean = {"missing": "drop"}
    spec = write_spec(root, **GROUPS, clean=clean, shards={"buckets": 2}, max_quarantined=0.5)
    space = Workspace.open(spec, root / "store")
    delta = space.delta(space.scan(), None)
    results = tuple(space.build_bucket(delta, bucket) for bucket in range(2))
    refusals = tuple(r for result in results for r in result.refusals)
    merged = merge(space.store, None, delta, results)
    assert merged is not None
    draft, trials = draft_version(space.spec, space.plan, delta, merged, refusals)
    return Audited(space, delta, results, trials, draft, refusals)


def failing(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if not finding.passed}


def test_a_good_draft_passes_and_tells_its_numbers(audited: Audited):
    findings = audited.findings()
    assert list(findings) == ["conservation", "ids_unique", "splits_disjoint"]
    assert not failing(findings)
    counts = audited.draft.counts
    assert counts["rows_dropped"]["missing_values"] > 0
    said = findings["conservation"].message
    accepted = counts["trials"]
    assert f"{counts['files']} files = {accepted} accepted + " in said
    assert f"{counts['rows_in']} rows read = {counts['rows']} stored + " in said
    assert findings["splits_disjoint"].message.startswith("3 groups by group, each in one split")
    assert all(finding.blocking for finding in findings.values())


def test_a_lost_file_is_named(audited: Audited):
    rows = audited.results[0].rows
    assert rows is not None
    path = rows["source"][0].as_py()
    trials = audited.trials.filter(pc.not_equal(audited.trials["source"], path))
    found = audited.findings(results=audited.with_result(0, rows=rows.slice(1)), trials=trials)
    assert failing(found) == {"conservation"}
    assert f"1 file lost, such as {path}." in found["conservation"].message
    assert "Materialize catalog and trial_shards again" in found["conservation"].message


def test_a_trial_that_was_built_and_is_in_no_version_is_found(audited: Audited):
    assert failing(audited.findings(trials=audited.trials.slice(1))) == {"conservation"}


@pytest.mark.parametrize("more", [-1, 1])
def test_files_that_are_taken_over_are_counted(audited: Audited, more: int):
    """Nobody looks at them one by one; a version must hold as many as there are."""
    delta = dataclasses.replace(audited.delta, n_files=audited.delta.n_files + more)
    assert failing(audited.findings(delta=delta)) == {"conservation"}


def test_a_file_that_the_catalog_does_not_know_is_named(audited: Audited):
    fewer = dataclasses.replace(audited.delta, read=audited.delta.read[1:])
    found = audited.findings(delta=fewer)
    assert failing(found) == {"conservation"}
    path = audited.delta.read[0].path
    assert f"unknown to the catalog, such as {path}" in found["conservation"].message


def test_a_file_that_is_accepted_and_refused_is_named(audited: Audited):
    rows = audited.results[0].rows
    assert rows is not None
    path = rows["source"][0].as_py()
    refused = Refusal(path, "clean", "x", "y")
    results = audited.with_result(0, refusals=(*audited.results[0].refusals, refused))
    found = audited.findings(results=results, refusals=(*audited.refusals, refused))
    assert failing(found) == {"conservation"}
    assert f"1 file twice, such as {path}." in found["conservation"].message


def replaced(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, name, pa.array(values, table.schema.field(name).type))


def test_rows_that_vanish_are_found(audited: Audited):
    n_rows = audited.trials["n_rows"].to_pylist()
    n_rows[0] -= 1
    found = audited.findings(trials=replaced(audited.trials, "n_rows", n_rows))
    assert failing(found) == {"conservation"}
    counts = {**audited.draft.counts, "rows_dropped": {}}
    found = audited.findings(draft=dataclasses.replace(audited.draft, counts=counts))
    assert failing(found) == {"conservation"}


def test_an_id_that_occurs_twice_is_named(audited: Audited):
    ids = audited.trials["id"].to_pylist()
    ids[1] = ids[0]
    found = audited.findings(trials=replaced(audited.trials, "id", ids))
    assert "ids_unique" in failing(found)
    assert f"1 trial id more than once, such as {ids[0]}." in found["ids_unique"].message
    assert "source.trial_id" in found["ids_unique"].message


def test_a_group_in_two_splits_is_named(audited: Audited):
    trials = audited.trials
    splits = ["train", *["test"] * (trials.num_rows - 1)]
    found = audited.findings(trials=replaced(trials, "split", splits))
    assert failing(found) == {"splits_disjoint"}
    group = trials["attributes"][0].as_py()["group"]
    said = found["splits_disjoint"].message
    assert f"1 group by group in more than one split, such as {group}." in said
    assert "Mend split in dataset.yaml" in said


def delta_of(n_new: int, n_same: int, refusals: tuple[Refusal, ...], **ignored: int) -> Delta:
    files = tuple(SourceFile(f"{i}.csv", 1, 1, str(i)) for i in range(n_new))
    n_files = n_new + n_same + len(refusals) + sum(ignored.values())
    return Delta(files, frozenset(), n_same, n_files, 1, refusals, ignored)


@given(
    st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 3), st.floats(0, 1)
)
def test_quarantine_passes_up_to_the_share_unless_all_are_refused(
    n_new: int, n_same: int, n_refused: int, n_hidden: int, most: float
):
    n_files = n_new + n_same
    refusals = tuple(Refusal(f"r{i}", "read", "code", "why") for i in range(n_refused))
    delta = delta_of(n_new, n_same, refusals, hidden=n_hidden)
    if n_files + n_refused == 0:
        return
    finding = audit_quarantine(make_spec(max_quarantined=most), delta, refusals, n_files)
    share = n_refused / (n_files + n_refused)
    assert finding.passed == (share <= most and n_files > 0)
    assert finding.facts["n_quarantined"] == n_refused
    assert finding.facts["share"] == share
    assert ("Nothing was published" in finding.message) == (not finding.passed)


def test_a_refused_quarantine_shows_ten_files_and_what_to_do():
    refusals = tuple(Refusal(f"r{i:02d}.csv", "read", "short_row", f"why {i}") for i in range(13))
    said = audit_quarantine(make_spec(), delta_of(1, 0, refusals), refusals, 1).message
    assert "13 of 14 files were refused (92.9%: 13 short_row); max_quarantined allows 5.0%." in said
    assert "r09.csv: short_row: why 9" in said
    assert "r10.csv" not in said
    assert "... and 3 more" in said
    assert "raise max_quarantined" in said


# --- a published version: helpers -----------------------------------------------------------------


def make_built(root: Path, **sections: Any) -> Path:
    build(write_spec(root, **sections), root / "store")
    return root / "store"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masked values, several shards, statistics of train."""
    root = tmp_path_factory.mktemp("good")
    write_trials(root, 10, missing=0.2, seed=2)
    return make_built(
        root,
        **GROUPS,
        normalize={"scope": "train"},
        clean={"missing": "interpolate", "limit": 1, "then": "mask"},
        shards={"target_bytes": 600},
    )


@pytest.fixture
def store(good: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(good, tmp_path / "copy")


def edit_fit(store: Path, edit: Callable[[dict[str, Any]], object]) -> Store:
    """Let `fit.json` say something else, and the manifest promise those bytes."""
    opened = Store(store)
    path = opened.folder / "fit.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    files = {**opened.manifest.files, "fit.json": file_promise(path.read_bytes())}
    return edit_manifest(store, files=files)


def edit_manifest(store: Path, **fields: Any) -> Store:
    """Let the manifest say something else, under a digest of its own that is right."""
    opened = Store(store)
    manifest = dataclasses.replace(opened.manifest, **fields)
    (opened.folder / "dataset.json").write_bytes(manifest.to_bytes())
    return Store(store)


def edit_windows(store: Path, **by_split: int) -> Store:
    counts = Store(store).manifest.counts
    return edit_manifest(store, counts={**counts, "windows": {**counts["windows"], **by_split}})


def with_spec(store: Path, **sections: Any) -> Store:
    """Let the manifest say another specification."""
    spec = make_spec(**sections).model_dump(mode="json")
    return edit_manifest(store, spec=spec)


def edit_index(store: Path, **columns: Any) -> Store:
    """Rewrite columns of the hot index, and the manifest's promise of its bytes."""
    opened = Store(store)
    index = opened.index
    table = {f.name: getattr(index, f.name) for f in dataclasses.fields(index) if f.name != "ids"}
    content = index_to_bytes({"id": index.ids, **table, **columns})
    folder = opened.folder
    (folder / "index.arrow").unlink()
    (folder / "index.arrow").write_bytes(content)
    files = {**opened.manifest.files, "index.arrow": file_promise(content)}
    return edit_manifest(store, files=files)


def with_index(store: Path, **columns: Any) -> Store:
    """Return the store with another index in its memory: nobody looked at it when it was opened."""
    opened = Store(store)
    vars(opened)["index"] = dataclasses.replace(opened.index, **columns)
    return opened


def edit_value(store: Path, number: int, value: float, *, was_nan: bool = False) -> Store:
    """Overwrite one value of a trial in its shard."""
    opened = Store(store)
    rows = opened.trial_rows(number)
    places = np.argwhere(np.isnan(rows) == was_nan)
    row, column = places[len(places) // 2]
    shard = int(opened.index.shard[number])
    entry = opened.manifest.shards[shard].arrays["values"]
    path = opened.chunk_file(shard, "values")
    shape = (entry.n_rows, entry.n_columns)
    mapped = np.memmap(path, np.float32, "r+", shape=shape)
    mapped[int(opened.index.row_start[number]) + row, column] = value
    mapped.flush()
    del mapped
    return Store(store)


@pytest.mark.parametrize("check", STORE_CHECKS)
def test_a_good_version_passes_and_is_left_as_it_was(good: Path, check):
    before = snapshot(good)
    finding = check(Store(good))
    assert finding.passed, finding.message
    assert finding.facts
    assert snapshot(good) == before


def test_the_good_version_has_what_the_checks_look_at(good: Path):
    opened = Store(good)
    assert len(opened.manifest.shards) > 2
    assert check_finite(opened).facts["n_masked"] > 0


# --- windows --------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=6),
    windows=st.builds(
        WindowSpec,
        length=st.integers(1, 9),
        stride=st.integers(1, 5),
        horizon=st.integers(1, 4),
        steps=st.integers(1, 3),
        short=st.sampled_from(["pad", "drop"]),
    ),
    data=st.data(),
)
def test_windows_are_those_of_walking(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], windows: WindowSpec, data
):
    sides = data.draw(
        st.lists(st.sampled_from(["train", "test"]), min_size=len(lengths), max_size=len(lengths))
    )
    opened = make_store(tmp_path_factory.mktemp("w") / "s", lengths, windows=windows, splits=sides)
    wanted = {"train": 0}
    without = 0
    for n_rows, side in zip(lengths, sides, strict=True):
        n = count_by_walking(n_rows, windows.as_dict(), windows.ahead)
        wanted[side] = wanted.get(side, 0) + n
        without += n == 0
    finding = check_windows(opened)
    assert {k.removeprefix("windows_"): v for k, v in finding.facts.items()} == {
        **wanted,
        "trials_without_window": without,
    }
    assert finding.passed == (wanted["train"] > 0)
    assert ("Nothing to train on" in finding.message) == (wanted["train"] == 0)


def test_a_wrong_count_in_the_index_names_its_trial(store: Path):
    counts = Store(store).index.n_windows.copy()
    counts[3] += 1
    finding = check_windows(with_index(store, n_windows=counts))
    assert not finding.passed
    assert ids_of(Store(store))[3] in finding.message
    assert "trialshards verify" in finding.message
    with pytest.raises(CorruptStoreError, match="number of windows is not what its rows give"):
        check_windows(edit_index(store, n_windows=counts))


def test_a_wrong_row_range_in_the_index_names_its_trial(store: Path):
    n_rows = Store(store).index.n_rows.copy()
    place = int(n_rows.argmax())
    n_rows[place] -= 2
    finding = check_windows(with_index(store, n_rows=n_rows))
    assert not finding.passed
    assert ids_of(Store(store))[place] in finding.message
    with pytest.raises(CorruptStoreError, match="number of windows is not what its rows give"):
        check_windows(edit_index(store, n_rows=n_rows))


def test_two_wrong_counts_that_cancel_are_found(store: Path):
    index = Store(store).index
    a, b = np.flatnonzero(index.n_windows > 1)[:2]
    counts = index.n_windows.copy()
    counts[a] += 1
    counts[b] -= 1
    assert not check_windows(with_index(store, n_windows=counts)).passed


def test_a_trial_on_another_side_is_found(store: Path):
    """The sums per split no longer are those of the manifest."""
    split = Store(store).index.split.copy()
    split[:] = split[::-1] * 0 + 1
    assert not check_windows(edit_index(store, split=split)).passed


def test_a_wrong_sum_says_where_the_wrong_number_is(store: Path):
    finding = check_windows(edit_windows(store, train=1))
    said = finding.message
    assert not finding.passed
    assert "The manifest says otherwise. Run: trialshards verify STORE" in said
    assert "The index" not in said


# --- finite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "value"), [(0, math.nan), (0, math.inf), (4, -math.inf), (9, math.nan)]
)
def test_a_value_that_is_no_number_names_its_trial(store: Path, number: int, value: float):
    name = ids_of(Store(store))[number]
    finding = check_finite(edit_value(store, number, value))
    assert not finding.passed
    assert f"1 trial with others that are no number, such as {name}." in finding.message
    assert "trialshards verify" in finding.message


@pytest.mark.parametrize("value", [0.0, math.inf])
def test_a_masked_value_that_became_another_is_found(store: Path, value: float):
    """An infinity in the place of a NaN must not be counted as that NaN."""
    opened = Store(store)
    masked = opened.cold("n_masked")["n_masked"].to_numpy()
    number = int(np.flatnonzero(masked)[0])
    finding = check_finite(edit_value(store, number, value, was_nan=True))
    assert not finding.passed
    assert ids_of(opened)[number] in finding.message


@pytest.mark.parametrize("which", ["offset", "scale"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_normalization_constant_that_is_no_number_is_found(store: Path, which: str, value):
    opened = Store(store)
    vars(opened)["fit"] = copy.deepcopy(opened.fit)
    opened.fit["normalize"][which][1] = value
    finding = check_finite(opened)
    assert not finding.passed
    assert "fit.json" in finding.message
    # In a file, that is no JSON.
    with pytest.raises(CorruptStoreError, match=r"fit\.json"):
        check_finite(edit_fit(store, lambda fit: fit["normalize"][which].__setitem__(1, value)))


def test_an_infinite_target_is_found(tmp_path: Path):
    write_trials(tmp_path, 5)
    target = {"kind": "per_step", "columns": ["y"], "channels": None}
    path = make_built(tmp_path, channels=["x"], windows={"target": target})
    opened = Store(path)
    file = opened.chunk_file(0, "targets")
    np.memmap(file, np.float32, "r+", shape=(1,))[0] = np.inf
    assert not check_finite(Store(path)).passed


@pytest.mark.parametrize("scope", ["trial", "train"])
@pytest.mark.parametrize("method", ["zscore", "minmax", "robust", "none"])
def test_a_channel_without_any_value_passes(tmp_path: Path, method: str, scope: str):
    rng = np.random.default_rng(0)
    for n in range(6):
        columns = draw_trial(rng, 12, ["x", "y"])
        write_trial(tmp_path, f"t{n}", {**columns, "y": [math.nan] * 12})
    opened = Store(make_built(tmp_path, normalize={"method": method, "scope": scope}))
    for check in STORE_CHECKS:
        finding = check(opened)
        assert finding.passed, finding.message


# --- leaks ----------------------------------------------------------------------------------------


def test_a_fit_on_other_trials_is_found(store: Path):
    other = "0" * 32
    finding = check_leaks(edit_fit(store, lambda fit: fit.update(trials_digest=other)))
    assert not finding.passed
    assert finding.blocking
    assert "not fitted on the train trials" in finding.message
    assert "Build again" in finding.message


@pytest.mark.parametrize("which", ["offset", "scale"])
@pytest.mark.parametrize("method", ["zscore", "minmax"])
def test_statistics_of_all_trials_are_found(tmp_path: Path, method: str, which: str):
    """The constants come from a fit on all trials, under the digest of the right ones."""
    for n in range(6):
        wide = [-9.0, 5.0, 9.0] if n % 2 else [-1.0, 0.0, 1.0]
        write_trial(tmp_path, f"{['train', 'test'][n % 2]}/t{n}", {"x": wide, "y": wide})
    normalize = {"method": method, "scope": "train"}
    everything = {"method": "exact", "fractions": {"train": 1.0}}
    leaky = build(write_spec(tmp_path, normalize=normalize, split=everything), tmp_path / "all")
    path = make_built(tmp_path, normalize=normalize, **SIDES)
    taken = Store(leaky.store).fit["normalize"][which]
    assert check_leaks(Store(path)).passed
    finding = check_leaks(edit_fit(path, lambda fit: fit["normalize"].update({which: taken})))
    assert not finding.passed
    assert finding.blocking
    assert "do not follow from the train trials" in finding.message


def test_robust_statistics_of_other_trials_are_found(tmp_path: Path):
    write_trials(tmp_path, 9, seed=4)
    path = make_built(tmp_path, normalize={"method": "robust", "scope": "train"}, **GROUPS)
    opened = edit_fit(path, lambda fit: fit["normalize"]["offset"].__setitem__(0, 1234.5))
    finding = check_leaks(opened)
    assert not finding.passed
    assert "do not follow from the train trials" in finding.message


def test_target_statistics_of_other_trials_are_found(tmp_path: Path):
    write_trials(tmp_path, 9, seed=4)
    target = {"kind": "per_step", "columns": ["y"], "channels": None}
    path = make_built(tmp_path, channels=["x"], windows={"target": target}, **GROUPS)
    assert not check_leaks(edit_fit(path, lambda f: f["target"].update(mean=[99.0]))).passed


PER_STEP = {"windows": {"target": {"kind": "per_step", "columns": ["y"], "channels": None}}}
PER_TRIAL: dict[str, Any] = {
    "windows": {"target": {"kind": "per_trial", "attribute": "kind", "channels": None}}
}
KIND = {"attributes": {"kind": {"column": "k"}}}
LEAKS: dict[str, tuple[dict[str, Any], str]] = {
    "direct": ({**PER_STEP, "derive": {"z": "y * 2"}, "channels": ["x", "z"]}, "z"),
    "through two derives": (
        {**PER_STEP, "derive": {"a": "y - first(y)", "z": "abs(a)"}, "channels": ["x", "z"]},
        "z",
    ),
    "among others": (
        {**PER_STEP, "derive": {"a": "x + 1", "z": "a + max(y)"}, "channels": ["a", "z"]},
        "z",
    ),
    "of a derived target": (
        {**PER_STEP, "derive": {"y": "x * 2", "z": "y + 1"}, "channels": ["z"]},
        "z",
    ),
    "attribute": ({**PER_TRIAL, **KIND, "derive": {"z": "kind + x"}, "channels": ["z"]}, "z"),
    "the attribute's own column": (
        {
            **PER_TRIAL,
            **KIND,
            "derive": {"z": "CASE WHEN k = 'a' THEN 1 ELSE 0 END + x"},
            "channels": ["z"],
        },
        "z",
    ),
    "another attribute of the same column": (
        {
            **PER_TRIAL,
            "attributes": {"kind": {"column": "k"}, "again": {"column": "k"}},
            "derive": {"z": "again + x"},
            "channels": ["z"],
        },
        "z",
    ),
}


@pytest.mark.parametrize("case", LEAKS)
def test_an_input_that_is_derived_from_the_target_is_named(store: Path, case: str):
    sections, channel = LEAKS[case]
    finding = check_leaks(with_spec(store, **sections))
    assert not finding.passed
    assert finding.blocking
    assert f"Channel {channel!r} is derived from the target" in finding.message
    assert "Take it out of channels" in finding.message
    assert finding.message.count("derived from the target") == 1


def test_such_an_input_really_gets_into_a_store(tmp_path: Path):
    """A label column read by SQL: the model sees its class in every row."""
    for n in range(8):
        kind = "ab"[n % 2]
        write_trial(tmp_path, f"t{n}", {"x": [1.0, 2.0, 3.0, 4.0], "k": [kind] * 4})
    sections, _ = LEAKS["the attribute's own column"]
    split = {"method": "exact", "fractions": {"train": 1.0}}
    opened = Store(make_built(tmp_path, **sections, split=split, normalize={"method": "none"}))
    kinds = [int(opened.index.label[n]) for n in range(8)]
    seen = [float(opened.trial_rows(n)[0, 0]) for n in range(8)]
    assert seen == [2.0 - kind for kind in kinds]


UNKNOWING: dict[str, dict[str, Any]] = {
    "row": {**PER_STEP, "derive": {"z": "x * 2"}, "channels": ["x", "z"]},
    "unused": {**PER_STEP, "derive": {"a": "y * 2"}, "channels": ["x"]},
    "target of an input": {**PER_STEP, "derive": {"y": "max(x) - x"}, "channels": ["x"]},
    "attribute that is no target": {
        **KIND,
        "derive": {"z": "kind + x"},
        "channels": ["x", "z"],
    },
    "forecast": {"derive": {"z": "x * 2"}, "channels": ["x", "z"]},
    "class of the trial": {**PER_TRIAL, **KIND},
    "value of the trial": {
        "windows": {"target": {**PER_TRIAL["windows"]["target"], "task": "value"}},
        **KIND,
    },
}


@pytest.mark.parametrize("scope", ["trial", "train"])
@pytest.mark.parametrize("sections", UNKNOWING.values(), ids=UNKNOWING)
def test_inputs_that_do_not_know_the_target_pass(
    tmp_path: Path, sections: dict[str, Any], scope: str
):
    rng = np.random.default_rng(0)
    for n in range(8):
        columns = draw_trial(rng, 9, ["x", "y"])
        write_trial(tmp_path, f"t{n}", {**columns, "k": ["1" if n % 2 else "2"] * 9})
    split = {"method": "exact", "fractions": {"train": 0.75, "test": 0.25}}
    opened = Store(make_built(tmp_path, **sections, split=split, normalize={"scope": scope}))
    finding = check_leaks(opened)
    assert finding.passed, finding.message


def sided(root: Path, *, equal: bool) -> Store:
    rng = np.random.default_rng(1)
    for n in range(4):
        write_trial(root, f"train/t{n}", draw_trial(rng, 9, ["x", "y"]))
        write_trial(root, f"test/t{n + 5}", draw_trial(rng, 9, ["x", "y"]))
    if equal:
        shutil.copy(root / "raw/train/t1.csv", root / "raw/test/t7.csv")
    return Store(make_built(root, **SIDES))


def test_equal_recordings_on_two_sides_warn_and_are_named(tmp_path: Path):
    finding = check_leaks(sided(tmp_path, equal=True))
    assert not finding.passed
    assert not finding.blocking
    assert finding.facts["n_equal_recordings"] == 1
    assert "1 recording in more than one split, byte for byte, such as" in finding.message
    assert "t1 = t7" in finding.message
    assert "split.by" in finding.message


def test_equal_recordings_on_one_side_do_not(tmp_path: Path):
    sided(tmp_path, equal=False)
    shutil.copy(tmp_path / "raw/train/t1.csv", tmp_path / "raw/train/t2.csv")
    finding = check_leaks(Store(make_built(tmp_path, **SIDES)))
    assert finding.passed
    assert finding.facts["n_equal_recordings"] == 0


def test_a_fault_beside_equal_recordings_blocks(tmp_path: Path):
    opened = sided(tmp_path, equal=True)
    finding = check_leaks(edit_fit(opened.path, lambda fit: fit.update(trials_digest="")))
    assert finding.blocking
    assert "byte for byte" in finding.message


AHEAD = {
    "clean": {"missing": "interpolate"},
    "normalize": {"scope": "trial"},
    "derive": {"z": "x - first(x)"},
    "channels": ["x", "z"],
}


def test_what_looks_ahead_is_listed(tmp_path: Path):
    write_trials(tmp_path, 5)
    opened = Store(make_built(tmp_path, **AHEAD))
    finding = check_leaks(opened)
    ahead = describe_lookahead(make_spec(**AHEAD))
    assert len(ahead) == finding.facts["n_lookahead"] == 3
    assert finding.passed
    assert all(line in finding.message for line in ahead)
    assert describe_lookahead(make_spec(normalize={"scope": "train"})) == []


def test_what_looks_ahead_is_listed_one_by_one(tmp_path: Path):
    write_trials(tmp_path, 5)
    said = check_leaks(Store(make_built(tmp_path, **AHEAD))).message
    first, second, _ = describe_lookahead(make_spec(**AHEAD))
    assert said.startswith("All statistics follow from the train trials alone. Inside a trial")
    assert f": {first}; {second}; " in said
    assert said.endswith(".")


# --- bytes ----------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_of_a_value_names_shard_and_trial(store: Path):
    opened = Store(store)
    row_bytes = 4 * len(opened.manifest.channels)
    for number in (0, 9):
        copy = shutil.copytree(store, store.with_name(f"flipped{number}"))
        shard = int(opened.index.shard[number])
        digest = opened.manifest.shards[shard].digest
        file = copy / "shards" / digest / "values/c/0/0"
        flip(file, int(opened.index.row_start[number]) * row_bytes)
        finding = check_bytes(Store(copy))
        assert not finding.passed
        assert digest in finding.message
        assert ids_of(opened)[number] in finding.message
        assert "build again" in finding.message


@settings(max_examples=8)
@given(data=st.data())
def test_a_flipped_byte_of_any_shard_file_is_found(good: Path, tmp_path_factory, data):
    paths = sorted(p for p in (good / "shards").rglob("*") if p.is_file())
    path = data.draw(st.sampled_from(paths))
    copy = shutil.copytree(good, tmp_path_factory.mktemp("any") / "store")
    flip(copy / path.relative_to(good), data.draw(st.integers(0, 10_000)))
    assert not check_bytes(Store(copy)).passed


def test_a_missing_shard_is_found_and_the_advice_helps(tmp_path: Path):
    """Delete their shards and build again: the same version is whole once more."""
    write_trials(tmp_path, 6)
    path = make_built(tmp_path)
    before = snapshot(path)
    digest = Store(path).manifest.shards[0].digest
    flip(path / "shards" / digest / "values/c/0/0", 3)
    shutil.rmtree(path / "shards" / digest)
    assert not check_bytes(Store(path)).passed
    assert not build(tmp_path / "dataset.yaml", path).published
    assert snapshot(path) == before
    assert check_bytes(Store(path)).passed


# --- memory ---------------------------------------------------------------------------------------


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """16 shards of 1 MB, 16 channels."""
    return make_store(tmp_path_factory.mktemp("large") / "s", [2**14] * 16, n_channels=16,
                      n_shards=16)  # fmt: skip


def with_masked(opened: Store) -> Store:
    """Let `cold` say that nothing is masked: these stores are made without the pipeline."""
    table = opened.cold().append_column("n_masked", pa.array([0] * len(opened.index), pa.int64()))
    opened.cold = lambda *names: table.select(names or table.column_names)  # type: ignore
    return opened


@pytest.mark.parametrize("check", [check_windows, check_finite, check_bytes])
def test_checks_hold_one_shard_at_a_time(large: Store, check):
    opened = with_masked(Store(large.path))
    check(opened)  # imports and caches
    shard_bytes = 2**14 * 16 * 4
    assert peak_bytes(lambda: check(with_masked(Store(large.path)))) < 4 * shard_bytes


def test_a_narrow_shard_costs_no_multiple_of_its_bytes(tmp_path: Path):
    opened = with_masked(make_store(tmp_path / "s", [2**19], n_channels=1))
    check_finite(opened)
    assert peak_bytes(lambda: check_finite(opened)) < 4 * 2**19 * 4
