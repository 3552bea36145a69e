"""docs/serving.md is right: its snippets and commands run in their order, and say what they say."""

from __future__ import annotations

import gzip
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from armstores import ROOT, build_arm_stores
from click.testing import CliRunner

from shards import Store
from training import TrainConfig, train
from trialshards.cli import main

TEXT = (ROOT / "docs" / "serving.md").read_text()
TEXT = TEXT[: TEXT.index("\n## Export")]  # that section has tests of its own
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's working folder: a store, a run on it, and new files without what is no input."""
    folder = tmp_path_factory.mktemp("serving")
    build_arm_stores(folder, 24)
    (folder / "new/s01").mkdir(parents=True)
    (folder / "new/s02").mkdir()
    pl.read_csv(folder / "raw/s01/trial_0001.csv").drop("payload").write_csv(
        folder / "new/s01/trial_0001.csv"
    )
    content = (folder / "raw/s02/trial_0002.csv").read_bytes()
    (folder / "new/s02/trial_0002.csv.gz").write_bytes(gzip.compress(content))
    (folder / "tables").mkdir()
    train(
        TrainConfig(
            store=folder / "arm",
            out=folder / "runs/arm",
            epochs=1,
            early_stopping=None,
            model={"hidden": 4, "layers": 1, "head": [4]},
            device={"accelerator": "cpu"},
            data={"batch_size": 64, "windows": {"stride": 32}},
        )
    )
    return folder


@pytest.fixture(scope="module")
def names(folder: Path) -> dict[str, Any]:
    """What the blocks define, run one after the other."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, (language, block) in enumerate(BLOCKS):
            if language == "python":
                exec(compile(block, f"serving.md, block {number}", "exec"), names)
                continue
            for line in block.splitlines():
                done = CliRunner().invoke(main, line.split()[1:])
                assert done.exit_code == 0, done.output
    return names


def test_the_snippets_give_what_they_say(names, folder):
    new, store = names["new"], Store(folder / "arm")
    assert new.delivered.tobytes() == store["s01/trial_0001"].delivered().tobytes()
    assert [trial.id for trial in names["found"].trials] == ["s01/trial_0001", "s02/trial_0002"]
    assert names["found"].refusals == ()
    refused = names["transform"]
    with pytest.raises(names["TrialRefusedError"], match="missing_column") as caught:
        refused.apply(names["frame"].rename({"q1": "joint1"}))
    assert caught.value.refusal.column == "q1"


def test_the_table_of_a_trial_is_that_of_the_class(names):
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \| `\[(.*)\]` \|", TEXT, re.MULTILINE)
    new = names["new"]
    sizes = {"rows": len(new.values), "C": 9, "segments": 1}
    assert {name for name, *_ in listed} == {
        "values", "delivered", "observed", "codes", "statics", "static_codes", "time", "starts",
    }  # fmt: skip
    for name, kind, shape in listed:
        value = getattr(new, name)
        if value is not None:
            assert (str(value.dtype), list(value.shape)) == (
                kind, [sizes[axis] for axis in shape.split(", ")],
            )  # fmt: skip


def test_the_predictions_are_as_the_page_says(names, folder):
    said = names["predictions"]
    assert said.columns[:4] == ["trial", "row", "ahead", "time"]
    beyond = said.filter(pl.col("time").is_null())
    assert len(beyond) == said["trial"].unique().len() == 2
    one = pl.read_parquet(folder / "tables/one.parquet")
    assert one.equals(said.filter(pl.col("trial") == "s01/trial_0001"))


def test_a_moved_store_is_named(names, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    shutil.copytree(folder / "arm", tmp_path / "elsewhere")
    words = "predict runs/arm/best.ckpt new/s01/trial_0001.csv --store"
    out = tmp_path / "p.parquet"
    options = [str(tmp_path / "elsewhere"), "--out", str(out)]
    assert CliRunner().invoke(main, [*words.split(), *options]).exit_code == 0
    assert pl.read_parquet(out).equals(pl.read_parquet("tables/one.parquet"))


def test_every_link_leads_somewhere():
    anchors = set(re.findall(r"^## (.*)$", TEXT, re.MULTILINE)) | {"Export"}
    anchors = {title.lower().replace(" ", "-") for title in anchors}
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
        assert target or anchor in anchors, anchor
