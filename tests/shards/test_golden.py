"""Golden stores: what a format was when it was published is read the same for ever.

Made once by `tests/golden/make.py` and committed; `expected.json` holds the numbers that went in.
Those of format 1.0 come first, then 1.1 to 1.3, then what is newer than this reader.
"""

import functools
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from click.testing import CliRunner

from loaders import TrialStream
from shards import FORMAT_VERSION, CorruptStoreError, FormatVersionError, InvalidSpecError, Store
from shards.identity import canonical_json
from shards.manifest import sign
from shards.verify import verify_store
from trialshards.cli import main

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
V1 = GOLDEN / "v1"
EXPECTED = json.loads((V1 / "expected.json").read_text(encoding="utf-8"))
LATER = {
    f"{folder}/{case}": found
    for folder in ("v1.1", "v1.2", "v1.3")
    for case, found in json.loads((GOLDEN / folder / "expected.json").read_bytes()).items()
}
VERSIONS = {
    f"{case}@{version}": found
    for case, part in LATER.items()
    for version, found in part["versions"].items()
}


@functools.cache
def load_make():
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


cases = pytest.mark.parametrize("case", EXPECTED)


def assert_pinned(rows, pin):
    assert rows.dtype.name == pin["dtype"]
    assert list(rows.shape) == pin["shape"]
    if "rows" in pin:
        assert [row.tobytes().hex() for row in rows] == pin["rows"]
    else:
        assert hashlib.sha256(rows.tobytes()).hexdigest() == pin["sha256"]


def test_the_cases_together_cover_what_the_format_can_say():
    manifests = [Store(V1 / case).manifest for case in EXPECTED]
    assert {m.target.kind for m in manifests} == {"forecast", "per_step", "per_trial"}
    assert {m.observed for m in manifests} == {True, False}
    assert {name for m in manifests for s in m.shards for name in s.arrays} == {
        "values", "observed", "targets",
    }  # fmt: skip
    assert max(a.n_inner for m in manifests for s in m.shards for a in s.arrays.values()) > 1
    assert max(len(m.shards) for m in manifests) > 1


@cases
def test_the_committed_bytes_are_untouched(case):
    assert load_make().file_hashes(V1 / case) == EXPECTED[case]["files"]


@cases
def test_every_promise_holds(case):
    assert verify_store(V1 / case) == []


@cases
def test_the_map_shows_the_numbers_that_went_in(case):
    store = Store(V1 / case)
    assert len(store.index) == len(EXPECTED[case]["trials"])
    for number, trial in enumerate(EXPECTED[case]["trials"]):
        assert store.trial_number(trial["id"]) == number
        for name, pin in trial["arrays"].items():
            assert_pinned(store.trial_rows(number, name), pin)


@cases
def test_zarr_and_arrow_alone_show_the_numbers_that_went_in(case):
    """No reader of ours: the JSON, Arrow IPC and Zarr that SPEC.md promises to everybody."""
    folder = V1 / case / "versions" / "v0001"
    manifest = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    with pa.OSFile(str(folder / "index.arrow")) as file:
        index = pa.ipc.open_file(file).read_all().to_pylist()
    for row, trial in zip(index, EXPECTED[case]["trials"], strict=True):
        assert row["id"] == trial["id"]
        assert row["n_windows"] == trial["n_windows"]
        assert manifest["splits"][row["split"]] == trial["split"]
        assert row["weight"] == trial["weight"]
        assert (None if np.isnan(row["label"]) else row["label"]) == trial["label"]
        shard = manifest["shards"][row["shard"]]
        group = zarr.open_group(V1 / case / "shards" / shard["digest"], mode="r")
        assert set(group.array_keys()) == set(trial["arrays"])
        for name, pin in trial["arrays"].items():
            rows = np.asarray(group[name][row["row_start"] : row["row_start"] + row["n_rows"]])
            assert_pinned(rows, pin)


@cases
def test_the_index_says_what_went_in(case):
    store, trials = Store(V1 / case), EXPECTED[case]["trials"]
    index, splits = store.index, store.manifest.splits
    assert [index.id_of(i) for i in range(len(index))] == [t["id"] for t in trials]
    assert index.n_rows.tolist() == [t["arrays"]["values"]["shape"][0] for t in trials]
    assert index.n_windows.tolist() == [t["n_windows"] for t in trials]
    assert [splits[code] for code in index.split] == [t["split"] for t in trials]
    assert index.weight.tolist() == [t["weight"] for t in trials]
    labels = [None if np.isnan(label) else float(label) for label in index.label]
    assert labels == [t["label"] for t in trials]


@cases
def test_the_reader_knows_the_content_by_its_pinned_names(case):
    assert load_make().identity(Store(V1 / case)) == EXPECTED[case]["identity"]


@cases
def test_todays_writer_gives_the_same_content_the_same_names(case, tmp_path):
    make = load_make()
    assert make.identity(make.build(tmp_path, case)) == EXPECTED[case]["identity"]


@cases
def test_todays_writer_writes_the_same_shards_byte_for_byte(case, tmp_path):
    """All but one thing: it names the columns of an array, which early writers left unnamed."""
    make = load_make()
    make.build(tmp_path, case)
    today = sorted(p for p in (tmp_path / "shards").rglob("*") if p.is_file())
    old = {name for name in EXPECTED[case]["files"] if name.startswith("shards/")}
    assert {path.relative_to(tmp_path).as_posix() for path in today} == old
    for path in today:
        golden = (V1 / case / path.relative_to(tmp_path)).read_bytes()
        array = path.parent.name
        named = golden.replace(
            b'"dimension_names":["row",null]',
            f'"dimension_names":["row","{array}_column"]'.encode(),
        )
        assert path.read_bytes() == named


def test_the_delivery_affine_of_a_golden_store_is_pinned_to_the_bit():
    offset, inv_scale = Store(V1 / "forecast").delivery_affine()
    assert offset.view(np.uint32).tolist() == [0x3DCCCCCD] * 9
    assert inv_scale.view(np.uint32).tolist() == [0x3EAAAAAB] * 9


def test_make_never_overwrites(tmp_path):
    shutil.copytree(
        GOLDEN, tmp_path / "tests" / "golden", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(GOLDEN.parent / "stores.py", tmp_path / "tests")
    hashes = [load_make().file_hashes(tmp_path / "tests/golden" / v) for v in load_make().FORMATS]
    done = subprocess.run(
        [sys.executable, tmp_path / "tests" / "golden" / "make.py"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "never overwritten" in done.stderr
    assert hashes == [
        load_make().file_hashes(tmp_path / "tests/golden" / v) for v in load_make().FORMATS
    ]


@pytest.mark.parametrize(
    ("name", "most_bytes"), {"v1": 60_000, "v1.1": 60_000, "v1.2": 220_000, "v1.3": 250_000}.items()
)
def test_the_golden_stores_are_small_and_git_keeps_them(name, most_bytes):
    root = GOLDEN / name
    files = [p for p in root.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < most_bytes
    assert all(any(folder.iterdir()) for folder in root.rglob("*") if folder.is_dir())
    if not (GOLDEN.parents[1] / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout")
    ignored = subprocess.run(
        ["git", "check-ignore", "--stdin"], cwd=root, capture_output=True, text=True,
        input="\n".join(p.relative_to(root).as_posix() for p in files),
    )  # fmt: skip
    assert (ignored.returncode, ignored.stdout) == (1, "")


# --- formats 1.1 to 1.3 ---------------------------------------------------------------------------

later = pytest.mark.parametrize("case", LATER)
versions = pytest.mark.parametrize("name", VERSIONS)


def opened(name):
    case, version = name.split("@")
    return Store(GOLDEN / case, version)


def test_the_later_cases_together_cover_what_their_formats_can_say():
    stores = {name: opened(name) for name in VERSIONS}
    shapes = {
        (s.manifest.layout, s.manifest.container) for s in stores.values() if s.manifest.parts
    }
    assert shapes == {(a, b) for a in ("rows", "windows") for b in ("zarr", "parquet")}
    for name, store in stores.items():
        raw = json.loads((store.folder / "dataset.json").read_bytes())
        assert f"{raw['format']['major']}.{raw['format']['minor']}" == name.split("/")[0][1:]
    manifests = [store.manifest for store in stores.values()]
    arrays = {array for m in manifests for s in m.shards for array in s.arrays}
    assert arrays == {"values", "observed", "targets", "codes", "time"}
    kinds = {(m.target.kind, m.layout) for m in manifests}
    assert kinds >= {(k, "windows") for k in ("forecast", "per_step", "per_trial")}
    scopes = {scope.partition(":")[0] for s in stores.values() for _, scope in s.entries}
    assert scopes == {"none", "trial", "prefix(2)", "train", "group", "regime", "window"}
    assert {e.encoding for m in manifests for e in (*m.codes, *m.statics)} == {
        "number", "one_hot", "embed",
    }  # fmt: skip
    assert {len(m.parts) for m in manifests if m.tombstones} == {2}
    assert len([n for n in VERSIONS if n.startswith("v1.2/built")]) == 3
    newest = [s.manifest for n, s in stores.items() if n.startswith("v1.3")]
    assert {tuple(part.implied for part in m.parts) for m in newest} == {
        (True,), (False, True),
    }  # fmt: skip


@pytest.mark.parametrize("case", [c for c in LATER if not c.startswith("v1.1")])
def test_the_newest_version_has_dead_rows_in_a_shard_and_in_a_part(case):
    store = Store(GOLDEN / case)
    manifest, index = store.manifest, store.index
    assert sum(shard.n_rows for shard in manifest.shards) > store.n_stored.sum()
    assert sum(part.n_rows for part in manifest.parts) > len(index)
    (stone,) = manifest.tombstones
    assert index.find(stone.id) is None


@later
def test_the_committed_bytes_of_later_formats_are_untouched(case):
    assert load_make().file_hashes(GOLDEN / case) == LATER[case]["files"]


@versions
def test_every_promise_of_a_later_format_holds(name):
    case, version = name.split("@")
    assert verify_store(GOLDEN / case, version) == []


@versions
def test_the_reader_knows_later_content_by_its_pinned_names(name):
    store, wanted = opened(name), VERSIONS[name]
    assert load_make().identity(store) == wanted["identity"]
    assert wanted["identity"]["trials"] == [trial["digest"] for trial in wanted["trials"]]
    assert (store.manifest.layout, store.manifest.container) == (
        wanted["layout"], wanted["container"],
    )  # fmt: skip
    assert [vars(stone) for stone in store.manifest.tombstones] == wanted["tombstones"]


@versions
def test_the_map_shows_what_went_into_later_stores(name):
    store, trials = opened(name), VERSIONS[name]["trials"]
    assert len(store.index) == len(trials)
    for number, trial in enumerate(trials):
        assert store.trial_number(trial["id"]) == number
        assert int(store.index.n_windows[number]) == trial["n_windows"]
        for array, pin in trial.get("stored", trial["arrays"]).items():
            assert_pinned(store.trial_stored(number, array), pin)


@versions
def test_trials_by_id_say_what_went_in(name):
    store = opened(name)
    for number, wanted in enumerate(VERSIONS[name]["trials"]):
        trial = store[wanted["id"]]
        assert (trial.number, trial.id, trial.n_rows) == (number, wanted["id"], wanted["n_rows"])
        assert (trial.split, trial.weight, trial.label) == (
            wanted["split"], wanted["weight"], wanted["label"],
        )  # fmt: skip
        assert {k: v for k, v in trial.attributes.items() if v is not None} == {
            k: v for k, v in wanted["attributes"].items() if v is not None
        }
        assert trial.digest == wanted["digest"]
        assert [list(words) for words in trial.categories] == wanted["categories"]
        assert (None if trial.time is None else trial.time.tolist()) == wanted["time"]
        if store.manifest.layout == "windows":
            with pytest.raises(InvalidSpecError, match="holds windows"):
                trial.values  # noqa: B018
        else:
            assert_pinned(trial.values, wanted["arrays"]["values"])


@pytest.mark.parametrize("name", [n for n in VERSIONS if not n.startswith("v1.1")])
def test_a_trial_that_gaps_cut_comes_whole_by_its_own_id(name):
    store, torn = opened(name), {}
    for trial in VERSIONS[name]["trials"]:
        torn.setdefault(trial["trial"], []).append(trial)
    for trial_id, segments in torn.items():
        trial = store[trial_id]
        assert [part.id for part in trial.segments] == [part["id"] for part in segments]
        times = [part["time"] for part in segments]
        if None in times:
            assert trial.time is None
        else:
            assert trial.time.tolist() == [time for part in times for time in part]


@versions
def test_others_alone_see_the_numbers_that_went_into_later_stores(name):
    """No reader of ours: the JSON, Arrow IPC, Zarr and Parquet that SPEC.md promises to all."""
    case, version = name.split("@")
    folder = GOLDEN / case / "versions" / version
    manifest = json.loads((folder / "dataset.json").read_bytes())
    with pa.OSFile(str(folder / "index.arrow")) as file:
        index = pa.ipc.open_file(file).read_all().to_pylist()
    for number, (row, trial) in enumerate(zip(index, VERSIONS[name]["trials"], strict=True)):
        assert (row["id"], row["n_rows"], row["n_windows"], row["weight"]) == (
            trial["id"], trial["n_rows"], trial["n_windows"], trial["weight"],
        )  # fmt: skip
        assert manifest["splits"][row["split"]] == trial["split"]
        assert (None if np.isnan(row["label"]) else row["label"]) == trial["label_code"]
        pins = trial.get("stored", trial["arrays"])
        extent = row["n_windows"] if "stored" in trial else row["n_rows"]
        place = GOLDEN / case / "shards" / manifest["shards"][row["shard"]]["digest"]
        arrays = arrays_of_others(place, manifest["container"])
        assert set(arrays) - {"time"} == set(pins)
        part = slice(row["row_start"], row["row_start"] + extent)
        for array, pin in pins.items():
            assert_pinned(arrays[array][part], pin)
        fact = cold_row_of_others(GOLDEN / case, folder, manifest, row, number)
        digest = fact["digest"].hex() if isinstance(fact["digest"], bytes) else fact["digest"]
        assert (fact["id"], digest) == (trial["id"], trial["digest"])
        assert (fact.get("categories") or []) == trial["categories"]
        if trial["time"] is None:
            continue
        assert fact["segment_start"] == trial["time"][0]
        if trial["is_regular"]:
            steps = np.arange(row["n_rows"]) * fact["time_step"]
            assert (fact["segment_start"] + steps).tolist() == trial["time"]
        else:
            assert np.isnan(fact["time_step"])
            assert arrays["time"][part, 0].tolist() == trial["time"]


def arrays_of_others(folder, container):
    if container == "zarr":
        group = zarr.open_group(folder, mode="r")
        return {name: np.asarray(group[name][:]) for name in group.array_keys()}
    table = pq.read_table(folder / "rows.parquet")
    return {
        name: column.combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def cold_row_of_others(store, folder, manifest, row, number):
    if "parts" not in manifest:
        return pq.read_table(folder / "trials.parquet").slice(number, 1).to_pylist()[0]
    digest = manifest["parts"][row["part"]]["digest"]
    return (
        pq.read_table(store / "parts" / f"{digest}.parquet")
        .slice(row["part_row"], 1)
        .to_pylist()[0]
    )


@versions
@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_epoch_delivers_the_pinned_tensors(name, batch_size):
    store = opened(name)
    assert set(VERSIONS[name]["epochs"]) == {trial["split"] for trial in VERSIONS[name]["trials"]}
    for split, wanted in VERSIONS[name]["epochs"].items():
        got = {}
        for batch in TrialStream(store, split=split, shuffle="none", batch_size=batch_size):
            is_draw = batch.trial.numpy() >= 0  # the last step may have filler rows
            tensors = {key: t.numpy() for key, t in vars(batch).items() if hasattr(t, "numpy")}
            for key, tensor in tensors.items():
                got.setdefault(key, []).append(tensor[is_draw])
        joined = {key: np.concatenate(parts) for key, parts in got.items()}
        assert wanted == {
            key: {
                "dtype": rows.dtype.name,
                "shape": list(rows.shape),
                "sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
            }
            for key, rows in joined.items()
        }


WRITTEN = [c for c in LATER if c != "v1.2/built" and not c.startswith("v1.3")]
"""Those that no build made."""


@pytest.mark.parametrize("case", WRITTEN)
def test_todays_writer_gives_later_content_the_same_names(case, tmp_path):
    """Names alone: another release of the Parquet library may pack the same rows otherwise."""
    make = load_make()
    golden = {**make.V1_1, **make.V1_2}[case.partition("/")[2]]
    assert (
        make.identity(make.write_golden(tmp_path, golden))
        == (LATER[case]["versions"]["v0001"]["identity"])
    )


@pytest.mark.parametrize("case", [*LATER, *(f"v1/{case}" for case in EXPECTED)])
def test_expected_json_is_what_the_oracle_says_of_the_numbers(case):
    make, (folder, name) = load_make(), case.split("/")
    if folder == "v1":
        assert make.expected_trials(name) == EXPECTED[name]["trials"]
        return
    known = {"v0001": {**make.V1_1, **make.V1_2}.get(name)}
    if folder == "v1.3":
        known = make.shape_versions(*make.SHAPES[name])
    for version, golden in (make.golden_versions() if name == "built" else known).items():
        found = json.loads(json.dumps(make.expected(golden)))
        assert found == {
            k: v for k, v in LATER[case]["versions"][version].items() if k != "identity"
        }


MADE = [name for name in VERSIONS if name.startswith("v1.3")]


@pytest.mark.parametrize("name", MADE)
def test_statistics_that_a_part_leaves_out_are_those_of_the_values_that_went_in(name):
    make, (case, version) = load_make(), name.split("@")
    trials = make.shape_versions(*make.SHAPES[case.partition("/")[2]])[version].live
    said = opened(name).cold().to_pylist()
    assert [row["id"] for row in said] == [trial.id for trial in trials]
    for row, trial in zip(said, trials, strict=True):
        values = make.physical(trial)
        assert row["count"] == (~np.isnan(values)).sum(axis=0).tolist()
        assert row["min"] == np.nanmin(values, axis=0).tolist()
        assert row["max"] == np.nanmax(values, axis=0).tolist()
        assert row["sum"] == [0, 0]
        mean = np.nanmean(values, axis=0)
        assert row["shift"] == pytest.approx(mean.tolist(), rel=1e-15)
        squares = np.nansum((values - mean) ** 2, axis=0).tolist()
        assert row["sum_sq"] == pytest.approx(squares, rel=1e-14)
        assert (row["offset"], row["scale"]) == trial.affine


@pytest.mark.parametrize("name", MADE)
def test_parts_hold_nulls_where_their_readers_find_numbers(name):
    store = opened(name)
    for part in store.manifest.parts:
        table = pq.read_table(store.path / "parts" / f"{part.digest}.parquet")
        n_nulls = {n: table[n].null_count for n in ("offset", "scale")}
        n_nulls |= {
            n: table[n].combine_chunks().flatten().null_count for n in ("shift", "sum_sq", "max")
        }
        assert all(n_nulls.values()) if part.implied else not any(n_nulls.values())


@pytest.mark.parametrize("name", [name for name in MADE if "rows_" in name])
def test_physical_values_come_back_though_no_constants_are_stored(name):
    make, (case, version), store = load_make(), name.split("@"), opened(name)
    trials = make.shape_versions(*make.SHAPES[case.partition("/")[2]])[version].live
    for number, trial in enumerate(trials):
        wanted = make.physical(trial).astype(np.float32).tobytes()
        assert store.physical_rows(number).tobytes() == wanted
        if trial.trial is None:
            assert store[trial.id].physical().tobytes() == wanted


# --- newer than this reader -----------------------------------------------------------------------

ROWS, PACKED = "v1.2/rows_zarr", "v1.2/windows_parquet"


def edited(tmp_path, case, change):
    """A copy of a golden store whose manifest says something else, signed as its writer would."""
    shutil.copytree(GOLDEN / case, tmp_path / "store")
    path = tmp_path / "store" / "versions" / "v0001" / "dataset.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(canonical_json(sign(document)) + b"\n")
    return tmp_path / "store"


def with_unknown_array(document):
    for shard in document["shards"]:
        shard["arrays"]["phase"] = dict(shard["arrays"]["values"])


UNKNOWN = {
    "layout": lambda d: d.update(layout="ragged"),
    "container": lambda d: d.update(container="lance"),
    "scope": lambda d: d["normalization"].update(scope="season"),
    "method": lambda d: d["normalization"].update(method="whitening"),
    "short": lambda d: d["windows"].update(short="mirror"),
    "target": lambda d: d["target"].update(kind="survival"),
    "encoding": lambda d: d["codes"][0].update(encoding="hash"),
    "array": with_unknown_array,
}


def test_the_format_version_is_that_of_the_newest_golden_stores():
    assert f"v{FORMAT_VERSION}" == list(load_make().FORMATS)[-1]
    newest = f"v{FORMAT_VERSION}/rows_zarr"
    written = json.loads((Store(GOLDEN / newest).folder / "dataset.json").read_bytes())["format"]
    assert f"{written['major']}.{written['minor']}" == FORMAT_VERSION


@pytest.mark.parametrize("case", [ROWS, PACKED])
def test_a_newer_minor_with_unknown_fields_opens_and_delivers_the_same(tmp_path, case):
    def change(document):
        document["format"]["minor"] = 9
        document["format"]["flavour"] = "mild"
        document["lanes"] = {"n": 3}
        document["windows"]["phase"] = 1
        document["shards"][0]["encryption"] = None
        document["parts"][0]["bloom"] = "ff"
        document["tombstones"][0]["by"] = "somebody"

    new, old = Store(edited(tmp_path, case, change)), Store(GOLDEN / case)
    assert verify_store(new.path) == []
    assert new.manifest == old.manifest
    for got, want in zip(TrialStream(new), TrialStream(old), strict=True):
        assert got.values.numpy().tobytes() == want.values.numpy().tobytes()


@pytest.mark.parametrize("field", [None, *UNKNOWN])
def test_a_newer_major_is_refused_whatever_else_it_says(tmp_path, field):
    def change(document):
        document["format"] = {"name": "trialshards", "major": 2, "minor": 5}
        if field:
            UNKNOWN[field](document)

    store = edited(tmp_path, ROWS, change)
    for open_it in (Store, verify_store):
        with pytest.raises(FormatVersionError) as caught:
            open_it(store)
        said = str(caught.value)
        assert "dataset.json has format trialshards 2.5;" in said
        assert f"knows trialshards up to {FORMAT_VERSION}." in said
        assert said.endswith("Upgrade: pip install -U trialshards")


@pytest.mark.parametrize("minor", [3, 4])
@pytest.mark.parametrize("field", UNKNOWN)
def test_what_changes_batches_and_is_unknown_is_refused_with_both_versions(tmp_path, field, minor):
    """Of a newer minor it is new, and an upgrade helps; of this one it is nothing of ours."""

    def change(document):
        document["format"]["minor"] = minor
        UNKNOWN[field](document)

    store = edited(tmp_path, ROWS, change)
    for open_it in (Store, verify_store):
        with pytest.raises(CorruptStoreError if minor == 3 else FormatVersionError) as caught:
            open_it(store)
        said = str(caught.value)
        assert str(store / "versions" / "v0001" / "dataset.json") in said
        assert f"has format trialshards 1.{minor}" in said
        assert f"this reader knows trialshards up to {FORMAT_VERSION}" in said
        assert "pip install -U trialshards" in said


def test_a_newer_manifest_that_is_damaged_is_no_matter_of_versions(tmp_path):
    store = edited(tmp_path, ROWS, lambda d: d["format"].update(minor=4))
    path = store / "versions" / "v0001" / "dataset.json"
    path.write_bytes(path.read_bytes().replace(b'"layout":"rows"', b'"layout":"bows"'))
    with pytest.raises(CorruptStoreError, match="its xxh3_128 is not that of its content"):
        Store(store)


@pytest.mark.parametrize(("minor", "shown"), [(2, "1.2"), (7, "1.7")])
def test_inspect_shows_the_format_of_the_version_and_of_this_reader(tmp_path, minor, shown):
    store = edited(tmp_path, ROWS, lambda d: d["format"].update(minor=minor))
    said = CliRunner().invoke(main, ["inspect", str(store)]).output
    assert f"format {shown}; this reader knows {FORMAT_VERSION}" in said
    about = json.loads(CliRunner().invoke(main, ["inspect", str(store), "--json"]).output)
    assert (about["format"], about["reader_format"]) == (shown, FORMAT_VERSION)
