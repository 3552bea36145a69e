"""All folds of a cross-validation in one store: a version and a tag each, files read once."""

from __future__ import annotations

import pytest
from trialfolders import split_of, write_spec, write_trials

from pipeline.folds import build_folds
from shards import Store
from shards.errors import InvalidSpecError
from shards.tags import read_tags
from shards.writer import list_versions


def test_every_trial_is_tested_in_exactly_one_fold(tmp_path):
    trials = write_trials(tmp_path, 11)
    split = {"method": "folds", "folds": 3, "fold": 1, "validation": {"fraction": 0.2}}
    spec = write_spec(tmp_path, split=split)
    folds = list(build_folds(spec, tmp_path / "store"))
    assert [fold.tag for fold in folds] == ["fold-0", "fold-1", "fold-2"]
    sides = [split_of(Store(tmp_path / "store", fold.tag)) for fold in folds]
    for trial in trials:
        assert [side[trial] for side in sides].count("test") == 1
    for fold, side in zip(folds, sides, strict=True):
        counted = {name: list(side.values()).count(name) for name in fold.n_trials}
        assert fold.n_trials == counted
    shards = [{s.digest for s in Store(tmp_path / "store", f.tag).manifest.shards} for f in folds]
    assert shards[0] == shards[1] == shards[2]


def test_each_group_is_left_out_once_whichever_the_file_names(tmp_path):
    write_trials(tmp_path, 9)
    files = {"trial_id": r"(?P<rig>g\d)/t\d+"}
    split = {"method": "leave_one_out", "by": "rig", "held_out": "g1"}
    spec = write_spec(tmp_path, source=files, split=split)
    folds = list(build_folds(spec, tmp_path / "store", prefix="rig"))
    assert [(fold.tag, fold.test) for fold in folds] == [
        ("rig-0", "g0"), ("rig-1", "g1"), ("rig-2", "g2"),
    ]  # fmt: skip
    assert len(list_versions(tmp_path / "store")) == 3
    for fold in folds:
        side = split_of(Store(tmp_path / "store", fold.tag))
        assert {name[:2] for name, where in side.items() if where == "test"} == {fold.test}


def test_tags_move_only_with_the_data(tmp_path):
    write_trials(tmp_path, 8)
    spec = write_spec(tmp_path, split={"method": "folds", "folds": 2})
    first = list(build_folds(spec, tmp_path / "store"))
    assert list(build_folds(spec, tmp_path / "store")) == first
    write_trials(tmp_path, 10)
    moved = list(build_folds(spec, tmp_path / "store"))
    assert {f.tag: f.version for f in moved} == {
        name: tag.version for name, tag in read_tags(tmp_path / "store").items()
    }
    assert not {f.version for f in moved} & {f.version for f in first}
    assert sum(f.n_trials["test"] for f in moved) == 10


def test_a_split_without_folds_is_refused(tmp_path):
    write_trials(tmp_path, 4)
    with pytest.raises(InvalidSpecError, match="'hash'; wanted folds, or leave_one_out"):
        list(build_folds(write_spec(tmp_path), tmp_path / "store"))
    assert not (tmp_path / "store").exists()
