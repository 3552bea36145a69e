"""An export holds what the store holds, bit for bit, under names that can be told apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from codedstores import TextTrial, text_spec, text_store
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store

import shards.export
from shards import InvalidSpecError, Store, StoreNotFoundError
from shards.clock import row_times
from shards.export import export_store
from shards.exportnpz import safe_names
from shards.exportrows import TrialTable
from shards.manifest import TargetSchema

PER_STEP = TargetSchema("per_step", ("y0", "c1"))
SPLITS = ["train", "val", "train", "train", "val"]
LENGTHS = [9, 3, 8, 5, 40]


def read_trials(folder: Path) -> dict[str, pl.DataFrame]:
    """Return the rows of each trial of a Parquet export, in the order of the files."""
    frame = pl.read_parquet(folder / "**" / "*.parquet")
    return {key[0]: part for key, part in frame.partition_by("trial", as_dict=True).items()}


def bits(frame: pl.DataFrame, names: list[str]) -> list[list[int]]:
    """Return float32 columns as the bits of their rows; null is the quiet NaN."""
    columns = [frame[name].fill_null(float("nan")).to_numpy() for name in names]
    assert all(column.dtype == np.float32 for column in columns)
    return np.stack(columns, axis=1).view(np.uint32).tolist()


def stored_bits(rows: np.ndarray) -> list[list[int]]:
    return np.ascontiguousarray(rows).view(np.uint32).tolist()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(
        tmp_path / "store", LENGTHS, splits=SPLITS, n_shards=2, missing=True, scale=(3.0, 7.0),
        target=PER_STEP,
    )  # fmt: skip


@pytest.fixture
def words(tmp_path: Path) -> Store:
    """Categorical columns, attributes with names that the export needs itself, and classes."""
    trials = [
        TextTrial([["a", None, "b"]], {"row": "7", "kind": "up"}, label=1.0),
        TextTrial([["ü", "a"]], {"row": None, "kind": "down"}, label=0.0, split="val"),
    ]
    target = TargetSchema("per_trial", ("kind",), ("down", "up"))
    return text_store(tmp_path / "words", trials, text_spec({"C0": "embed"}), target=target)


# --- Parquet ----------------------------------------------------------------------------------


@pytest.mark.parametrize("physical", [False, True])
@pytest.mark.parametrize("to", ["parquet", "huggingface"])
def test_a_table_has_the_bits_of_every_row_of_every_trial(store, tmp_path, to, physical):
    report = export_store(store, tmp_path / "out", to, physical=physical)
    trials = read_trials(tmp_path / "out")
    assert (report.n_trials, report.n_rows) == (len(LENGTHS), sum(LENGTHS))
    assert sorted(trials) == list(store)
    for number, trial_id in enumerate(store):
        found, wanted = trials[trial_id], store.physical_rows if physical else store.deliver_rows
        assert found["row"].to_list() == list(range(LENGTHS[number]))
        assert bits(found, ["c0", "c1", "c2"]) == stored_bits(wanted(number))
        targets = store.trial_rows(number, "targets")
        assert bits(found, ["y0", "target.c1"]) == stored_bits(targets)
        assert set(found["split"]) == {SPLITS[number]}
    assert report.renamed == {"target.c1": "c1"}


def test_missing_values_are_null_and_no_number_is(store, tmp_path):
    export_store(store, tmp_path / "out")
    frame = pl.read_parquet(tmp_path / "out" / "*.parquet")
    channels = frame.select("c0", "c1", "c2")
    assert sum(channels.null_count().row(0)) == int(
        sum(np.isnan(store.trial_rows(i)).sum() for i in range(len(store)))
    )
    assert not any(channels[name].is_nan().any() for name in channels.columns)


def test_observed_says_what_the_source_held(store, tmp_path):
    export_store(store, tmp_path / "out", observed=True)
    for trial_id, found in read_trials(tmp_path / "out").items():
        values = store.trial_rows(store.trial_number(trial_id))
        got = np.stack([found[f"c{j}.observed"].to_numpy() for j in range(3)], axis=1)
        assert np.array_equal(got, ~np.isnan(values))


def test_a_row_per_trial_holds_the_same_as_lists(store, tmp_path):
    export_store(store, tmp_path / "steps", observed=True)
    export_store(store, tmp_path / "lists", per="trial", observed=True)
    steps = read_trials(tmp_path / "steps")
    lists = pl.read_parquet(tmp_path / "lists" / "*.parquet")
    assert len(lists) == len(LENGTHS)
    for row in lists.iter_rows(named=True):
        found = steps[row["trial"]]
        assert row.pop("split") == found["split"][0]
        for name in set(row) - {"trial"}:
            assert row[name] == found[name].to_list()


def test_texts_labels_and_attributes_are_there_under_names_that_differ(words, tmp_path):
    report = export_store(words, tmp_path / "out")
    trials = read_trials(tmp_path / "out")
    assert trials["t0000"]["category.C0"].to_list() == ["a", None, "b"]
    assert trials["t0001"]["category.C0"].to_list() == ["ü", "a"]
    assert trials["t0000"]["label"].to_list() == ["up"] * 3
    assert trials["t0001"]["kind"].to_list() == ["down"] * 2
    assert trials["t0000"]["attribute.row"].to_list() == ["7"] * 3
    assert trials["t0001"]["attribute.row"].to_list() == [None] * 2
    # SQL takes C0 and c0 for one name.
    assert report.renamed == {"category.C0": "C0", "attribute.row": "row"}


def test_one_split_alone(store, tmp_path):
    report = export_store(store, tmp_path / "out", split="val")
    assert report.files == ("val-00000-of-00001.parquet",)
    assert sorted(read_trials(tmp_path / "out")) == ["t0001", "t0004"]
    with pytest.raises(StoreNotFoundError, match="no split 'tost'"):
        export_store(store, tmp_path / "no", split="tost")
    assert not (tmp_path / "no").exists()


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    rows=st.integers(1, 40),
    file_bytes=st.integers(1, 3000),
)
def test_files_and_row_groups_end_anywhere_and_trials_stay_whole(
    tmp_path_factory, lengths, rows, file_bytes
):
    folder = tmp_path_factory.mktemp("cut")
    store = make_store(folder / "store", lengths, missing=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.export, "ROW_GROUP_ROWS", rows)
        patch.setattr(shards.export, "FILE_BYTES", file_bytes)
        report = export_store(store, folder / "out")
    n_files = len(report.files)
    seen = []
    for place, name in enumerate(report.files):
        assert name == f"train-{place:05d}-of-{n_files:05d}.parquet"
        file = pq.ParquetFile(folder / "out" / name)
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert max(groups) <= rows
        table = pl.from_arrow(file.read())
        seen += table["trial"].unique(maintain_order=True).to_list()
        for trial_id, part in table.partition_by("trial", as_dict=True).items():
            number = store.trial_number(trial_id[0])
            assert bits(part, ["c0", "c1", "c2"]) == stored_bits(store.trial_rows(number))
    assert seen == list(store)


def test_the_card_names_splits_columns_and_an_unknown_licence(words, tmp_path):
    export_store(words, tmp_path / "out", "huggingface")
    _, header, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    said = yaml.safe_load(header)
    assert said["license"] == "unknown"
    splits = {s["name"]: s["num_examples"] for s in said["dataset_info"]["splits"]}
    assert splits == {"train": 3, "val": 2}
    (config,) = said["configs"]
    assert [f["split"] for f in config["data_files"]] == ["train", "val"]
    schema = pq.read_schema(tmp_path / "out" / "data" / "train-00000-of-00001.parquet")
    assert [f["name"] for f in said["dataset_info"]["features"]] == schema.names
    assert all(f"`{name}`" in text for name in schema.names)
    assert words.manifest.fingerprint in text


def test_splits_with_other_names_get_names_that_files_can_have(tmp_path):
    store = make_store(tmp_path / "s", [3, 4, 5], splits=["train", "a/b", "a b"])
    report = export_store(store, tmp_path / "out", "huggingface")
    assert report.files[1:] == tuple(
        f"data/{name}-00000-of-00001.parquet" for name in ("a_b", "a_b_", "train")
    )
    assert "(`a b` in the store)" in (tmp_path / "out" / "README.md").read_text()


# --- time -------------------------------------------------------------------------------------


def test_regular_times_are_those_of_the_clock_and_unknown_ones_null(store, tmp_path, monkeypatch):
    import pyarrow as pa

    real = TrialTable.__init__

    def timed(self, *args, **options):
        real(self, *args, **options)
        self._cold |= {
            "segment_start": pa.array([5.0, np.nan, 1e9, 0.0, 2.0]),
            "time_step": pa.array([0.1, np.nan, 1e-3, 1 / 3, 0.0]),
        }

    monkeypatch.setattr(TrialTable, "__init__", timed)
    export_store(store, tmp_path / "out")
    export_store(store, tmp_path / "npz", "npz")
    trials = read_trials(tmp_path / "out")
    for trial_id, start, step in (("t0000", 5.0, 0.1), ("t0002", 1e9, 1e-3), ("t0003", 0.0, 1 / 3)):
        wanted = row_times(start, step, len(trials[trial_id])).tolist()
        assert trials[trial_id]["time"].to_list() == wanted
        with np.load(tmp_path / "npz" / "train" / f"{trial_id}.npz") as arrays:
            assert arrays["time"].tolist() == wanted
    assert trials["t0001"]["time"].to_list() == [None] * 3
    with np.load(tmp_path / "npz" / "val" / "t0001.npz") as arrays:
        assert "time" not in arrays


# --- npz --------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("physical", [False, True])
def test_arrays_have_the_bits_of_the_store(store, tmp_path, physical):
    export_store(store, tmp_path / "out", "npz", physical=physical)
    for number, trial_id in enumerate(store):
        arrays = load(tmp_path / "out" / SPLITS[number] / f"{trial_id}.npz")
        assert str(arrays["trial"]) == trial_id
        wanted = store.physical_rows if physical else store.deliver_rows
        assert arrays["values"].tobytes() == wanted(number).tobytes()
        assert arrays["targets"].tobytes() == store.trial_rows(number, "targets").tobytes()
        assert np.array_equal(arrays["observed"], ~np.isnan(store.trial_rows(number)))
        assert json.loads(str(arrays["attributes"])) == {}


def test_codes_come_with_the_words_they_count(words, tmp_path):
    export_store(words, tmp_path / "out", "npz")
    arrays = load(tmp_path / "out" / "val" / "t0001.npz")
    (listed,) = json.loads(str(arrays["categories"]))
    assert [listed[code - 1] for code in arrays["codes"][:, 0]] == ["ü", "a"]
    assert str(arrays["label"]) == "down"
    assert json.loads(str(arrays["attributes"])) == {"row": None, "kind": "down"}
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert [channel["name"] for channel in about["channels"]] == ["c0", "c1"]


def test_the_listing_leads_from_every_id_to_its_file(tmp_path):
    store = make_store(tmp_path / "s", [3, 4, 2], splits=["train", "val", "train"])
    export_store(store, tmp_path / "out", "npz")
    lines = (tmp_path / "out" / "trials.jsonl").read_text().splitlines()
    listed = [json.loads(line) for line in lines]
    assert {one["trial"] for one in listed} == set(store)
    for one in listed:
        arrays = load(tmp_path / "out" / one["file"])
        assert str(arrays["trial"]) == one["trial"]
        assert len(arrays["values"]) == one["n_rows"]


def test_a_value_per_trial_is_a_number(tmp_path):
    target = TargetSchema("per_trial", ("age",))
    store = make_store(tmp_path / "s", [3, 4], target=target, labels=[0.1, float("nan")])
    export_store(store, tmp_path / "out", "npz")
    assert load(tmp_path / "out" / "train" / "t0000.npz")["label"] == np.float32(0.1)
    assert "label" not in load(tmp_path / "out" / "train" / "t0001.npz")
    export_store(store, tmp_path / "table")
    assert set(read_trials(tmp_path / "table")["t0001"]["label"]) == {None}


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        (["a", "b.c", "x_y-1"], ["a", "b.c", "x_y-1"]),
        (["s1/t1"], ["s1_t1"]),
        (["..", "."], None),
        (["a/b", "a_b", "a b"], None),
        (["A", "a"], None),
        (["é", "日本/語"], ["é", "日本_語"]),
        (["x" * 300, "x" * 301], None),
        (["con", "NUL.txt"], ["_con", "_NUL.txt"]),
        (["", " "], None),
    ],
)
def test_names_are_safe_and_differ(ids, wanted):
    names = safe_names(ids)
    assert wanted is None or names == wanted
    assert len({name.casefold() for name in names}) == len(ids)


@given(st.lists(st.text(max_size=150), unique=True, max_size=8))
def test_any_ids_have_names_that_are_safe_and_differ(ids):
    names = safe_names(ids)
    assert len({name.casefold() for name in names}) == len(ids)
    for name in names:
        assert "/" not in name
        assert "\\" not in name
        assert "\0" not in name
        assert name[0] != "."
        assert len(f"{name}.npz".encode()) <= 255


def test_a_name_written_like_one_with_a_digest_is_still_told_apart():
    first, second = safe_names(["a/b", "a_b"])
    assert len({*safe_names(["a/b", "a_b", first, second])}) == 4


# --- all or nothing ---------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["parquet", "huggingface", "npz"])
def test_a_folder_in_use_is_left_as_it_is(store, tmp_path, to):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(InvalidSpecError, match="overwrites nothing"):
        export_store(store, out, to)
    assert [path.name for path in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    export_store(store, out, to)
    with pytest.raises(InvalidSpecError, match="overwrites nothing"):
        export_store(store, out, to)
    with pytest.raises(InvalidSpecError, match="overwrites nothing"):
        export_store(store, next(p for p in out.rglob("*") if p.is_file()), to)


@pytest.mark.parametrize("to", ["parquet", "huggingface", "npz"])
def test_an_export_that_fails_leaves_nothing(store, tmp_path, to, monkeypatch):
    real = TrialTable.values

    def fail(self, number, rows):
        if number == 3:
            raise OSError("disk full")
        return real(self, number, rows)

    monkeypatch.setattr(TrialTable, "values", fail)
    with pytest.raises(OSError, match="disk full"):
        export_store(store, tmp_path / "deep" / "out", to)
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_store_in_parquet_is_exported_like_one_in_zarr_and_windows_are_refused(tmp_path):
    stores = {
        name: make_store(tmp_path / name, LENGTHS, splits=SPLITS, missing=True, container=name)
        for name in ("zarr", "parquet")
    }
    for name, store in stores.items():
        export_store(store, tmp_path / f"{name}-npz", "npz")
    for file in (tmp_path / "zarr-npz").glob("*/*.npz"):
        one, two = load(file), load(tmp_path / "parquet-npz" / file.relative_to(file.parents[1]))
        assert list(one) == list(two)
        assert all(one[key].tobytes() == two[key].tobytes() for key in one)
    windows = make_store(tmp_path / "windows", LENGTHS, layout="windows")
    with pytest.raises(InvalidSpecError, match="it holds windows"):
        export_store(windows, tmp_path / "out")


def test_nothing_is_written_into_a_store_or_of_what_is_not_known(store, tmp_path):
    with pytest.raises(InvalidSpecError, match="lies in the store"):
        export_store(store, store.path / "out")
    with pytest.raises(InvalidSpecError, match="to is 'csv'; wanted one of parquet"):
        export_store(store, tmp_path / "out", "csv")
    with pytest.raises(InvalidSpecError, match="per is 'window'"):
        export_store(store, tmp_path / "out", per="window")
