"""A Parquet table becomes a dataset.yaml, and what that says becomes the store."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.build import build
from pipeline.tableimport import ImportOptions, draft_spec, import_table
from shards import InvalidSpecError, Store
from shards.export import export_store

BY_RUN = ImportOptions("run")


def write_table(path: Path, n_trials: int = 6, n_rows: int = 20, **extra: Any) -> Path:
    """Write a table of runs r0, r1, ... with two channels, a text per run and one per row."""
    rows = np.arange(n_trials * n_rows)
    run = rows // n_rows
    columns = {
        "run": [f"r{i}" for i in run],
        "t": (rows % n_rows) / 8,
        "x": (rows % 7).astype(np.float32),
        "y": rows * 0.5,
        "site": [f"site{i % 2}" for i in run],
        "note": [f"n{i % 3}" for i in rows],
        **{name: [make(i) for i in run] for name, make in extra.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(path)
    return path


def draft(table: Path, options: ImportOptions = BY_RUN) -> dict[str, Any]:
    return dict(draft_spec(table, options).document)


def by_trial(store: Store) -> dict[str, dict[str, Any]]:
    """Return what a store says of each trial, by what is behind the file in its id."""
    found = {}
    for number, trial_id in enumerate(store):
        trial = store.trial(number)
        found[trial_id.partition("/")[2] or trial_id] = {
            "values": trial.physical().tobytes(),
            "targets": None if trial.targets is None else trial.targets.tobytes(),
            "texts": {name: texts.to_pylist() for name, texts in trial.texts().items()},
            "label": trial.label,
            "split": trial.split,
            "time": None if trial.time is None else trial.time.tolist(),
        }
    return found


# --- what is derived --------------------------------------------------------------------------


def test_numbers_are_channels_and_texts_of_a_trial_attributes(tmp_path):
    made = draft_spec(write_table(tmp_path / "my Table.parquet"), BY_RUN)
    assert made.document == {
        "name": "my_table",
        "source": {
            "files": "my Table.parquet", "format": "parquet", "nulls": [], "split_on": ["run"],
        },
        "channels": ["t", "x", "y"],
        "attributes": {"site": {"column": "site"}},
        "windows": {
            "length": 64, "stride": 16,
            "target": {"kind": "forecast", "channels": ["t", "x", "y"]},
        },
    }  # fmt: skip
    assert list(made.left_out) == ["note"]


def test_options_say_what_is_what(tmp_path):
    table = write_table(tmp_path / "a.parquet")
    options = ImportOptions("run", "t", ("y",), length=8, stride=3, name="Other Name")
    said = draft(table, options)
    assert said["name"] == "other_name"
    assert said["source"]["time"] == {"column": "t"}
    assert said["channels"] == ["x", "y"]
    assert said["windows"] == {
        "length": 8, "stride": 3, "target": {"kind": "forecast", "channels": ["y"]}
    }  # fmt: skip


def test_a_target_with_one_value_per_trial_is_one_per_trial(tmp_path):
    table = write_table(tmp_path / "a.parquet", age=lambda i: 20.5 + i, n=lambda i: i % 2)
    for name, task in (("site", "class"), ("age", "value"), ("n", "class")):
        said = draft(table, ImportOptions("run", targets=(name,)))
        wanted = {"kind": "per_trial", "attribute": name, "task": task}
        assert said["windows"]["target"] == wanted
        assert said["attributes"][name] == {"column": name}
        assert name not in said["channels"]


def test_a_target_per_step_is_no_channel(tmp_path):
    table = write_table(tmp_path / "a.parquet")
    said = draft(table, ImportOptions("run", targets=("y",), kind="per_step"))
    assert said["windows"]["target"] == {"kind": "per_step", "columns": ["y"]}
    assert said["channels"] == ["t", "x"]


def test_dates_and_texts_as_times_are_read_as_iso(tmp_path):
    table = write_table(tmp_path / "a.parquet")
    frame = pl.read_parquet(table).with_columns(
        when=pl.lit(0).cast(pl.Datetime("us")) + pl.duration(seconds=pl.col("t"))
    )
    frame.write_parquet(table)
    said = draft(table, ImportOptions("run", "when"))
    assert said["source"]["time"] == {"column": "when", "format": "iso"}
    made = draft_spec(table, BY_RUN)
    assert "--time" in made.left_out["when"]


def test_columns_that_are_nothing_are_named(tmp_path):
    table = tmp_path / "a.parquet"
    columns = pa.table(
        {
            "run": ["a", "a", "b"], "x": [1, 2, 3], "list": [[1], [2], []],
            "raw": pa.array([b"1", b"2", b"3"], pa.binary()),
        }
    )  # fmt: skip
    pq.write_table(columns, table)
    assert set(draft_spec(table, BY_RUN).left_out) == {"list", "raw"}


def test_a_trial_without_a_text_has_an_empty_one(tmp_path):
    table = write_table(tmp_path / "a.parquet", who=lambda i: None if i == 2 else f"w{i}")
    assert draft(table)["attributes"]["who"] == {"column": "who", "default": ""}
    report = import_table(table, tmp_path / "s", BY_RUN)
    assert report.build.counts["trials"] == 6
    texts = Store(tmp_path / "s").cold_index.attribute("who").to_pylist()
    assert texts == ["w0", "w1", "", "w3", "w4", "w5"]


def test_names_with_the_signs_of_a_glob_name_themselves(tmp_path):
    table = write_table(tmp_path / "a[1]*.parquet")
    write_table(tmp_path / "a1b.parquet", n_trials=2)
    report = import_table(table, tmp_path / "s", BY_RUN)
    assert report.build.counts["trials"] == 6


# --- what is built ----------------------------------------------------------------------------


def test_an_import_is_a_build_of_the_file_it_writes(tmp_path):
    table = write_table(tmp_path / "in" / "a.parquet")
    report = import_table(table, tmp_path / "one", ImportOptions("run", "t", length=8))
    assert report.spec == tmp_path / "in" / "a.yaml"
    build(report.spec, tmp_path / "two")
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    again = import_table(table, tmp_path / "one", ImportOptions("run", "t", length=8))
    assert not again.build.published


def test_a_file_that_says_something_else_is_not_overwritten(tmp_path):
    table = write_table(tmp_path / "a.parquet")
    (tmp_path / "a.yaml").write_text("mine")
    with pytest.raises(InvalidSpecError, match="overwrites nothing"):
        import_table(table, tmp_path / "s", BY_RUN)
    assert (tmp_path / "a.yaml").read_text() == "mine"
    report = import_table(table, tmp_path / "s", BY_RUN, spec_out=tmp_path / "b.yaml")
    assert yaml.safe_load(report.spec.read_text())["source"]["files"] == "a.parquet"


def test_the_file_may_lie_above_the_table_and_not_beside_it(tmp_path):
    table = write_table(tmp_path / "in" / "deep" / "a.parquet")
    report = import_table(table, tmp_path / "s", BY_RUN, spec_out=tmp_path / "up.yaml")
    assert yaml.safe_load(report.spec.read_text())["source"]["files"] == "in/deep/a.parquet"
    (tmp_path / "else").mkdir()
    with pytest.raises(InvalidSpecError, match="does not lie below"):
        import_table(table, tmp_path / "s", BY_RUN, spec_out=tmp_path / "else" / "a.yaml")


def test_a_folder_of_tables_is_one_data_set(tmp_path):
    folder = tmp_path / "tables"
    whole = pl.read_parquet(write_table(tmp_path / "a.parquet"))
    folder.mkdir()
    early = pl.col("run").is_in(["r0", "r1"])
    for place, part in enumerate((whole.filter(early), whole.filter(~early))):
        part.write_parquet(folder / f"{place}.parquet")
    report = import_table(folder, tmp_path / "s", BY_RUN)
    assert list(Store(tmp_path / "s")) == ["0/r0", "0/r1", "1/r2", "1/r3", "1/r4", "1/r5"]
    assert report.build.counts["files"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.with_columns(run=pl.when(pl.col("x") > 0).then("run")), "no value in the"),
        (lambda f: f.with_columns(run=pl.col("run") + " "), "blanks around"),
        (lambda f: f.drop("t", "x", "y"), "no column of numbers"),
        (lambda f: f.rename({"run": "ran"}), "Did you mean 'ran'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path, change, message
):
    table = write_table(tmp_path / "a.parquet")
    change(pl.read_parquet(table)).write_parquet(table)
    with pytest.raises(InvalidSpecError, match=message):
        import_table(table, tmp_path / "s", BY_RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_trial_in_two_files_is_refused(tmp_path):
    write_table(tmp_path / "in" / "a.parquet")
    write_table(tmp_path / "in" / "b.parquet")
    with pytest.raises(InvalidSpecError, match=r"trial 'r\d' lies in .*a.parquet and in"):
        import_table(tmp_path / "in", tmp_path / "s", BY_RUN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ImportOptions("run", "tt"), "--time: no usable column 'tt'"),
        (ImportOptions("run", targets=("z",)), "--target: no usable column 'z'"),
        (ImportOptions("run", targets=("x",), kind="per_trial"), "several values in some"),
        (ImportOptions("run", targets=("x", "y"), kind="per_trial"), "got 2 columns"),
        (ImportOptions("run", targets=("note",)), "no usable dataset.yaml"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, message):
    with pytest.raises(InvalidSpecError, match=message):
        draft_spec(write_table(tmp_path / "a.parquet"), options)


def test_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_text("x,y\n")
    with pytest.raises(InvalidSpecError, match="cannot be read as Parquet"):
        draft_spec(tmp_path / "a.parquet", BY_RUN)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidSpecError, match=r"holds no \.parquet"):
        draft_spec(tmp_path / "empty", BY_RUN)


# --- there and back ---------------------------------------------------------------------------

FLOATS = st.one_of(st.floats(-(2.0**126), 2.0**126, width=32), st.sampled_from([-0.0, np.nan]))
WORDS = st.sampled_from(["a", "NA", "null", "ü b", "1.50", "nan", "-"])


@st.composite
def tables(draw: Any) -> pl.DataFrame:
    """A table of trials with channels, a text per row, attributes and irregular times."""
    parts = []
    for number in range(draw(st.integers(3, 4))):
        n = draw(st.integers(2, 7))
        steps = draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
        parts.append(
            {
                "trial": [draw(st.sampled_from([f"{number}", f"a/{number}", f"NA{number}"]))] * n,
                "clock": np.cumsum(steps) / 10,
                "x": draw(st.lists(FLOATS, min_size=n, max_size=n)),
                "Row": draw(st.lists(FLOATS, min_size=n, max_size=n)),
                "y": draw(st.lists(FLOATS, min_size=n, max_size=n)),
                "word": draw(st.lists(WORDS | st.none(), min_size=n, max_size=n)),
                "kind": [{0: "a", 2: "b"}.get(number) or draw(WORDS)] * n,
                "side": ["val" if number == 1 else "train"] * n,
            }
        )
    return pl.concat([pl.DataFrame(p, schema_overrides={"word": pl.String}) for p in parts])


TARGETS = [
    {"kind": "forecast", "channels": ["x"], "horizon": 2, "steps": 1},
    {"kind": "per_step", "columns": ["y"]},
    {"kind": "per_trial", "attribute": "kind"},
]


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(table=tables(), target=st.sampled_from(TARGETS), timed=st.booleans())
def test_an_export_in_physical_units_comes_back_bit_for_bit(tmp_path_factory, table, target, timed):
    folder = tmp_path_factory.mktemp("back")
    table.write_parquet(folder / "t.parquet")
    spec = {
        "name": "there",
        "source": {"files": "t.parquet", "split_on": ["trial"], "nulls": []},
        "channels": [{"name": "x", "unit": "m"}, "Row"],
        "categorical": {"word": "one_hot"},
        "attributes": {"kind": {"column": "kind"}, "side": {"column": "side"}},
        "static": {"kind": "embed"} if target["kind"] != "per_trial" else {},
        "normalize": {"method": "none"},
        "split": {"method": "attribute", "attribute": "side"},
        "windows": {"length": 3, "stride": 2, "target": target},
    }
    if timed:
        spec["source"] |= {"time": "clock"}
    (folder / "t.yaml").write_text(yaml.safe_dump(spec))
    build(folder / "t.yaml", folder / "one")
    export_store(folder / "one", folder / "out", "huggingface", physical=True)
    report = import_table(folder / "out", folder / "two", ImportOptions("trial"))
    one, two = Store(folder / "one"), Store(folder / "two")
    # `Row` is a column of the export itself where case is ignored.
    assert [c.name for c in two.manifest.channels] == ["x", "channel.Row"]
    assert two.manifest.channels[0].unit == "m"
    assert two.manifest.windows == one.manifest.windows
    assert two.manifest.codes == one.manifest.codes
    assert two.manifest.statics == one.manifest.statics
    assert two.manifest.target == one.manifest.target
    there, back = by_trial(one), by_trial(two)
    assert all((facts["time"] is not None) == timed for facts in there.values())
    assert {name.removeprefix("t/"): facts for name, facts in back.items()} == there
    for name in ("kind", "side"):
        texts = dict(zip(back, two.cold_index.attribute(name).to_pylist(), strict=True))
        wanted = dict(zip(there, one.cold_index.attribute(name).to_pylist(), strict=True))
        assert {trial.removeprefix("t/"): text for trial, text in texts.items()} == wanted
    assert set(report.left_out) <= {"row", "label"}


def test_values_that_are_normalized_are_not_normalized_again(tmp_path):
    table = write_table(tmp_path / "a.parquet")
    import_table(table, tmp_path / "one", ImportOptions("run", length=8))
    one = Store(tmp_path / "one")
    assert one.manifest.normalization["method"] == "zscore"
    export_store(one, tmp_path / "out")
    import_table(tmp_path / "out", tmp_path / "two", ImportOptions("trial"))
    two = Store(tmp_path / "two")
    assert two.manifest.normalization["method"] == "none"
    for number in range(len(one)):
        wanted = one.deliver_rows(number)
        trial = next(i for i in range(len(two)) if two.index.id_of(i).endswith(f"r{number}"))
        assert two.trial_rows(trial).tobytes() == wanted.tobytes()


def test_an_export_without_a_train_split_is_split_anew(tmp_path):
    table = write_table(tmp_path / "a.parquet", n_trials=30)
    import_table(table, tmp_path / "one", ImportOptions("run", length=8))
    export_store(tmp_path / "one", tmp_path / "out", split="val")
    said = draft(tmp_path / "out", ImportOptions("trial"))
    assert "split" not in said
    export_store(tmp_path / "one", tmp_path / "all")
    said = draft(tmp_path / "all", ImportOptions("trial"))
    assert said["split"] == {"method": "attribute", "attribute": "split"}


def test_labels_that_are_values_come_back_with_their_bits(tmp_path):
    table = write_table(tmp_path / "a.parquet", age=lambda i: 0.1 * i)
    options = ImportOptions("run", targets=("age",), length=8)
    import_table(table, tmp_path / "one", options)
    export_store(tmp_path / "one", tmp_path / "out", physical=True)
    import_table(tmp_path / "out", tmp_path / "two", ImportOptions("trial"))
    labels = [Store(tmp_path / name).index.label for name in ("one", "two")]
    assert math.isclose(labels[0][3], 0.3, rel_tol=1e-6)
    assert sorted(labels[0].tolist()) == sorted(labels[1].tolist())


def test_segments_of_one_recording_stay_on_one_side(tmp_path):
    table = write_table(tmp_path / "a.parquet", n_trials=8)
    frame = pl.read_parquet(table).with_columns(t=pl.col("t") + (pl.col("t") >= 1) * 100)
    frame.write_parquet(table)
    report = import_table(table, tmp_path / "one", ImportOptions("run", "t", length=4))
    spec = yaml.safe_load(report.spec.read_text())
    spec["source"]["time"]["max_gap"] = 50
    (tmp_path / "gaps.yaml").write_text(yaml.safe_dump(spec))
    build(tmp_path / "gaps.yaml", tmp_path / "gaps")
    store = Store(tmp_path / "gaps")
    assert len(store) == 16
    export_store(store, tmp_path / "out", physical=True)
    exported = pl.read_parquet(tmp_path / "out" / "*.parquet")
    pairs = sorted(exported.select("trial", "recording").unique().iter_rows())
    assert pairs[:2] == [("a/r0#1", "a/r0"), ("a/r0#2", "a/r0")]
    first = exported.filter(pl.col("trial") == "a/r0#2")
    assert first["row"].to_list() == list(range(12))
    assert first["time"][0] == 101.0
    said = draft(tmp_path / "out", ImportOptions("trial"))
    assert said["attributes"]["recording"] == {"column": "recording"}
    other = next(
        split for split in store.manifest.splits[1:] if store.manifest.counts["windows"][split]
    )
    export_store(store, tmp_path / "part", split=other)
    assert draft(tmp_path / "part", ImportOptions("trial"))["split"] == {"by": "recording"}


def test_metadata_of_something_else_say_nothing(tmp_path):
    table = write_table(tmp_path / "a.parquet")
    plain = draft(table)
    for said in ("{}", "[1]", "3", "{", '{"values": ["x"]}', '{"columns": [1]}'):
        whole = pq.read_table(table).replace_schema_metadata({"trialshards": said})
        pq.write_table(whole, table)
        assert draft(table) == plain


def test_columns_of_an_export_may_be_gone(tmp_path):
    options = ImportOptions("run", targets=("site",), length=8)
    import_table(write_table(tmp_path / "a.parquet", n_trials=20), tmp_path / "one", options)
    export_store(tmp_path / "one", tmp_path / "out")
    (file, *_) = sorted((tmp_path / "out").iterdir())
    whole = pq.read_table(file)
    pq.write_table(whole.drop_columns(["site", "y"]), tmp_path / "b.parquet")
    said = draft(tmp_path / "b.parquet", ImportOptions("trial"))
    assert said["channels"] == ["t", "x"]
    assert said["windows"]["target"]["attribute"] == "label"
    pq.write_table(whole.drop_columns(["site", "label"]), tmp_path / "c.parquet")
    with pytest.raises(InvalidSpecError, match="name a --target"):
        draft_spec(tmp_path / "c.parquet", ImportOptions("trial"))
    export_store(tmp_path / "one", tmp_path / "lists", per="trial")
    with pytest.raises(InvalidSpecError, match="--per step"):
        draft_spec(tmp_path / "lists", ImportOptions("trial"))
