"""Labels that follow from a trial's place in its file: a wrong count refuses the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.build import build
from shards import Store

LINES = {"a": "1 2\n3 4\nend\n5 6\nend\n7 8\nend\n", "b": "1 2\nend\n3 4\nend\n"}


def write(folder: Path, runs: dict[str, list[int]], lines: dict[str, str] = LINES) -> Path:
    (folder / "raw").mkdir()
    for name, text in lines.items():
        (folder / "raw" / f"{name}.txt").write_text(text)
    spec = {
        "name": "runs",
        "source": {
            "files": "raw/*.txt", "format": "blank", "columns": ["x", "y"],
            "blocks": {"separator": "end"},
        },
        "channels": ["x", "y"],
        "attributes": {"who": {"runs": {f"raw/{name}.txt": n for name, n in runs.items()}}},
        "windows": {"length": 1, "target": {"kind": "forecast", "channels": ["x"]}},
        "split": {"method": "exact", "fractions": {"train": 1.0}},
        "max_quarantined": 0.6,
    }  # fmt: skip
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def test_each_run_is_numbered_from_one(tmp_path: Path):
    build(write(tmp_path, {"a": [2, 1], "b": [1, 1]}), tmp_path / "store")
    store = Store(tmp_path / "store")
    who = store.cold("attributes")["attributes"].combine_chunks().field("who").to_pylist()
    ids = [store.index.id_of(n) for n in range(len(store.index))]
    wanted = {"a/0001": "1", "a/0002": "1", "a/0003": "2", "b/0001": "1", "b/0002": "2"}
    assert dict(zip(ids, who, strict=True)) == wanted


@pytest.mark.parametrize("runs", [[2, 2], [2], [1, 1]])
def test_another_number_of_trials_refuses_the_whole_file(runs: list[int], tmp_path: Path):
    """A separator that was not recognized would shift all labels behind it."""
    report = build(write(tmp_path, {"a": runs, "b": [1, 1]}), tmp_path / "store")
    (refusal,) = report.refusals
    assert (refusal.source, refusal.code, refusal.trial) == ("raw/a.txt", "runs_mismatch", None)
    assert f"holds 3 trials; attributes.who.runs counts {sum(runs)}." in refusal.message
    assert report.counts["trials"] == 2
