"""What new files need and need not have, how their trials are named, and when nothing is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from machinetrials import build_machines, raw_files, write_machines
from stores import SHAPES, make_store
from trialfolders import write_spec, write_trial, write_trials

from loaders import TrialStream
from pipeline.build import build
from pipeline.spec import DatasetSpec
from pipeline.transform import Transform
from pipeline.transformfiles import place_of
from pipeline.transformrecipe import inputs_only
from pipeline.transformstore import write_new_store
from shards import InvalidSpecError, Store


def build_with(folder: Path, **sections: Any) -> Store:
    build(write_spec(folder, **sections), folder / "store")
    return Store(folder / "store")


def same_bits(got: Any, wanted: Any) -> bool:
    return bool(got.dtype == wanted.dtype and got.tobytes() == wanted.tobytes())


# --- what a new file need not have ----------------------------------------------------------------


def test_a_new_file_needs_no_target_column(tmp_path):
    names = ("x", "y", "z")
    write_trials(tmp_path, 4, names=names)
    target = {"kind": "per_step", "columns": ["z"], "channels": None}
    store = build_with(tmp_path, windows={"target": target})
    columns = {"x": [1.0, 2.0, 4.0], "y": [1.0, 2.0, 3.0]}
    bare = write_trial(tmp_path, "new/bare", columns)
    full = write_trial(tmp_path, "new/full", columns | {"z": [7.0, 8.0, 9.0]})
    odd = write_trial(tmp_path, "new/odd", columns | {"z": ["?", "?", "?"]})
    found = Transform.load(store).read([bare, full, odd])
    assert found.refusals == ()
    first, *others = found.trials
    assert all(same_bits(other.values, first.values) for other in others)


@pytest.mark.parametrize("task", ["class", "value"])
def test_a_new_file_needs_no_label_and_no_split(tmp_path, task):
    rows = ["trial,label,part"]
    for i, name in enumerate(write_trials(tmp_path, 6)):
        rows.append(f"{name},{i % 2},{'train' if i < 5 else 'test'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    told = {"table": "labels.csv", "trial_id": "{trial}"}
    store = build_with(
        tmp_path,
        attributes={name: {**told, "column": name} for name in ("label", "part")},
        split={"method": "attribute", "attribute": "part"},
        windows={"target": {"kind": "per_trial", "attribute": "label", "task": task,
                            "channels": None}},
    )  # fmt: skip
    new = write_trial(tmp_path, "new/one", {"x": [1.0, 2.0], "y": [3.0, 4.0]})
    transform = Transform.load(store)
    assert len(transform.read(new).trials) == 1
    served = write_new_store(transform, [new], tmp_path / "served").store
    (batch,) = TrialStream(served, split="new", batch_size=1)
    missing = batch.targets == -1 if task == "class" else batch.targets.isnan()
    assert missing.all()


def test_what_serves_targets_alone_is_dropped_and_what_inputs_need_stays():
    spec = DatasetSpec.model_validate(
        {
            "name": "n", "source": {"files": "*.csv", "trial_id": r"(?P<id>\d+)_(?P<site>\w+)"},
            "channels": ["x", "deep"],
            "derive": {
                "base": "x + offset", "deep": "base * 2", "x": "x / 2", "goal": "finish - base",
            },
            "static": ["age"],
            "attributes": {
                name: {"column": name} for name in ("age", "offset", "finish", "part", "group")
            },
            "normalize": {"scope": "group:group"},
            "split": {"method": "attribute", "attribute": "part"},
            "windows": {"length": 4, "target": {"kind": "per_step", "columns": ["goal"]}},
        }
    )  # fmt: skip
    kept = inputs_only(spec)
    assert list(kept.derive) == ["base", "deep", "x"]
    assert set(kept.attributes) == {"age", "offset", "group"}
    assert kept.target_columns() == ()


# --- names of trials ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "pattern", "path", "place"),
    [
        ("raw/**/*.csv", None, "data/arm/raw/s1/t.csv", "raw/s1/t.csv"),
        ("raw/**/*.csv", None, "raw/x/raw/s1/t.csv", "raw/s1/t.csv"),
        ("raw/**/*.csv", None, "tmp/new/t.csv", "raw/t.csv"),
        ("raw/*/*.csv", None, "tmp/new/t.csv", "raw/new/t.csv"),
        ("*.csv", None, "tmp/new/t.csv", "t.csv"),
        ("**/*.csv", r"(?P<s>s\d)/t", "tmp/s1/t.csv", "s1/t.csv"),
        ("raw/**/*.csv", r"^raw/(?P<s>s\d)?/?(?P<id>t)", "tmp/s1/t.csv", "raw/s1/t.csv"),
        ("raw/**/*.csv", r"(?P<s>s\d)/t", "tmp/new/t.csv", "raw/t.csv"),
    ],
)
def test_a_file_elsewhere_is_named_as_if_it_lay_with_the_others(files, pattern, path, place):
    spec = {"files": files, "trial_id": pattern}
    source = DatasetSpec.model_validate(
        {"name": "n", "source": spec, "channels": ["x"],
         "windows": {"length": 1, "target": {"kind": "forecast", "channels": ["x"]}}}
    ).source  # fmt: skip
    assert place_of(path, source) == place


def test_files_of_one_name_are_told_apart_by_a_root(tmp_path):
    write_trials(tmp_path, 4)
    transform = Transform.load(build_with(tmp_path))
    files = []
    for arm in ("left", "right"):
        files.append(tmp_path / "new" / arm / "one.csv")
        files[-1].parent.mkdir(parents=True)
        files[-1].write_text("x,y\n1,2\n")
    assert [r.code for r in transform.read(files).refusals] == ["duplicate_id"] * 2
    found = transform.read(files, root=tmp_path / "new")
    assert [trial.id for trial in found.trials] == ["left/one", "right/one"]
    assert transform.read([files[0], files[0]]).trials[0].id == "one"


# --- files of many trials, and other families -----------------------------------------------------


def test_files_with_many_trials_give_each(tmp_path):
    text = "unit,x,y\n" + "".join(f"{u},{u + r},{r * r}\n" for u in range(4) for r in range(9))
    (tmp_path / "raw").mkdir(parents=True)
    (tmp_path / "raw/all.csv").write_text(text)
    store = build_with(tmp_path, source={"split_on": ["unit"]}, split={"fractions": {"train": 1.0}})
    transform = Transform.load(store)
    found = transform.read(tmp_path / "raw/all.csv")
    assert [trial.id for trial in found.trials] == [f"all/{u}" for u in range(4)]
    for trial in found.trials:
        assert same_bits(trial.values, store[trial.id].values)
    frame = pl.read_csv(text.encode())
    one = transform.apply(frame.filter(pl.col("unit") == 2), trial="all")
    assert (one.id, one.values.tobytes()) == ("all/2", found.trials[2].values.tobytes())
    with pytest.raises(InvalidSpecError, match="holds 4 trials, by unit"):
        transform.apply(frame)
    (tmp_path / "new.csv").write_text("unit,x,y\n7,1,2\n7,3,4\n8,a,1\n")
    assert [r.code for r in transform.read(tmp_path / "new.csv").refusals] == ["not_a_number"]


def test_long_form_and_parquet_are_read_as_in_a_build(tmp_path):
    long = pl.DataFrame(
        {
            "Time": [0, 0, 1, 1, 2],
            "Parameter": ["x", "y", "x", "y", "y"],
            "Value": [1.0, 2, 3, 4, 5],
        }
    )
    for i in range(3):
        path = tmp_path / "raw" / f"t{i}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        long.with_columns(Value=pl.col("Value") * (i + 1)).write_parquet(path)
    store = build_with(
        tmp_path,
        source={"files": "raw/*.parquet",
                "pivot": {"index": "Time", "columns": "Parameter", "values": "Value"}},
        split={"fractions": {"train": 1.0}},
    )  # fmt: skip
    transform = Transform.load(store)
    for trial in transform.read(sorted((tmp_path / "raw").iterdir())).trials:
        assert same_bits(trial.values, store[trial.id].values)
        applied = transform.apply(pl.read_parquet(trial.source))
        assert same_bits(applied.values, trial.values)


@pytest.mark.parametrize(("layout", "container"), SHAPES)
def test_a_store_of_any_shape_has_the_same_transform(tmp_path, layout, container):
    write_trials(tmp_path, 5, missing=0.2)
    shards = {"layout": layout, "format": container}
    store = build_with(tmp_path, shards=shards, normalize={"scope": "train"})
    transform = Transform.load(store)
    new = write_new_store(transform, raw_files(tmp_path), tmp_path / "new", split="train").store
    trials = {trial.id: trial for trial in transform.read(raw_files(tmp_path)).trials}
    assert new is not None
    seen = 0
    for split in [name for name, n in store.manifest.counts["windows"].items() if n]:
        for batch in TrialStream(store, split=split, batch_size=8, shuffle="none"):
            for row in range(int((batch.trial >= 0).sum())):
                name = store.index.id_of(int(batch.trial[row]))
                first, n = int(batch.start[row]), int(batch.lengths[row])
                rows = trials[name].delivered[first : first + n]
                assert same_bits(rows, batch.values[row, :n].numpy())
                assert same_bits(new.trial_rows(new.trial_number(name)), trials[name].values)
                seen += 1
    assert seen > 10


# --- what cannot be loaded ------------------------------------------------------------------------


def test_hooks_and_tables_want_their_dataset_yaml(tmp_path):
    store = build_machines(tmp_path / "machines")
    with pytest.raises(InvalidSpecError, match=r"derive\.half is a Python hook"):
        Transform.load(store)
    other = write_machines(tmp_path / "other")
    assert Transform.load(store, dataset=other).recipe.root == tmp_path / "other"
    (tmp_path / "other/hooks.py").write_text("def half(frame, attributes):\n    return 1\n")
    with pytest.raises(InvalidSpecError, match="has other hooks or tables"):
        Transform.load(store, dataset=other)
    text = other.read_text().replace("limit: 2", "limit: 3")
    other.write_text(text)
    with pytest.raises(InvalidSpecError, match="says another recipe"):
        Transform.load(store, dataset=other)


def test_a_table_is_asked_for_only_where_it_is_needed(tmp_path):
    for name in write_trials(tmp_path, 4):
        with (tmp_path / "ages.csv").open("a") as file:
            file.write("trial,age\n" if not file.tell() else "")
            file.write(f"{name},7\n")
    age = {"table": "ages.csv", "trial_id": "{trial}", "column": "age"}
    store = build_with(tmp_path, attributes={"age": age}, static=["age"])
    transform, path = Transform.load(store), tmp_path / "raw/g0/t00.csv"
    with pytest.raises(InvalidSpecError, match=r"attributes\.age comes from the table ages\.csv"):
        transform.read(path)
    frame = pl.DataFrame({"x": [1.0], "y": [2.0]})
    assert transform.apply(frame, attributes={"age": 8}).attributes == {"age": "8"}
    known = Transform.load(store, dataset=tmp_path / "dataset.yaml").read(path)
    assert known.trials[0].attributes == {"age": "7"}


def test_the_order_of_derived_columns_is_that_of_the_build(tmp_path):
    write_trials(tmp_path, 4)
    derive = {"z": "x * 2", "x": "x + 1", "b": "x + z", "a": "b * b"}
    store = build_with(tmp_path, channels=["a", "b", "x"], derive=derive)
    assert list(store.manifest.spec["derive"]) == sorted(derive)
    for new in Transform.load(store).read(raw_files(tmp_path)).trials:
        assert same_bits(new.values, store[new.id].values)


def test_a_store_that_does_not_say_how_it_was_built_is_refused(tmp_path):
    made = make_store(tmp_path / "made", [9, 9])
    with pytest.raises(InvalidSpecError, match="does not say how it was built"):
        Transform.load(made)
    write_trials(tmp_path, 4)
    store = build_with(tmp_path)
    store.manifest.build["stages"]["clean"] += 1
    with pytest.raises(InvalidSpecError, match="was built by another release"):
        Transform.load(store)


def test_nothing_is_written_where_no_file_is_good(tmp_path):
    write_trials(tmp_path, 4)
    transform = Transform.load(build_with(tmp_path))
    bad = tmp_path / "bad.csv"
    bad.write_text("nothing\n")
    served = write_new_store(transform, [bad, tmp_path / "gone.csv"], tmp_path / "served")
    assert served.store is None
    assert not (tmp_path / "served").exists()
    assert len(served.refusals) == 2
