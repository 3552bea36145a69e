"""Every archive of real data builds by its `dataset.yaml` alone, and is counted independently."""

from __future__ import annotations

import csv
import os
import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import TrialStream
from pipeline.build import build
from pipeline.outcome import BuildReport
from shards import Store

ROOT = Path(__file__).parents[2]
PLACES = [Path(os.environ.get("TRIALSHARDS_DATA", "nowhere")), ROOT.parent / "shared" / "data"]


def unpacked(archive: str, tmp: Path) -> Path:
    """Return a folder with the archive's files below `raw`; skip where there is no archive."""
    found = next((place / archive for place in PLACES if (place / archive).is_file()), None)
    if found is None:
        pytest.skip(f"{archive} is not here; set TRIALSHARDS_DATA to the folder that holds it")
    with tarfile.open(found) as tar:
        tar.extractall(tmp / "raw", filter="data")
    return tmp


def built(yaml: str, folder: Path) -> tuple[BuildReport, Store]:
    spec = folder / Path(yaml).name
    spec.write_bytes((ROOT / "data" / yaml).read_bytes())
    store = folder / f"store_{spec.stem}"
    report = build(spec, store)
    assert report.refusals == ()
    return report, Store(store)


def labels(store: Store, name: str) -> Counter[str]:
    column = store.cold("attributes")["attributes"].combine_chunks()
    return Counter(column.field(name).to_pylist())


def first_batch(store: Store) -> Any:
    return next(iter(TrialStream(store.path, split="train", batch_size=8)))


def test_arem(tmp_path: Path):
    folder = unpacked("arem.tar.xz", tmp_path)
    report, store = built("arem/dataset.yaml", folder)
    files = sorted((folder / "raw").glob("arem/*/*.csv"))
    assert (report.counts["trials"], report.counts["rows"]) == (len(files), 88 * 480)
    assert labels(store, "activity") == Counter(file.parent.name for file in files)
    lines = [x for x in files[3].read_text().splitlines() if not x.startswith("#")]
    wanted = np.array([[float(v) for v in line.split(",")[1:]] for line in lines])
    trial_id = f"{files[3].parent.name}/{files[3].stem}"
    got = store.trial_rows(store.trial_number(trial_id))
    np.testing.assert_array_equal(got, wanted.astype(np.float32))
    assert first_batch(store).values.shape == (8, 480, 6)


def test_japanese_vowels(tmp_path: Path):
    folder = unpacked("japanese_vowels.tar.xz", tmp_path)
    report, store = built("japanese_vowels/dataset.yaml", folder)
    blocks: dict[str, list[list[str]]] = {}
    for part in ("train", "test"):
        text = (folder / "raw/japanese_vowels" / f"ae.{part}").read_text()
        parts = re.split(r"(?m)^1\.00?(?: 1\.00?){11} *$", text)
        blocks[part] = [part.split("\n") for part in (p.strip() for p in parts) if part]
    assert (len(blocks["train"]), len(blocks["test"])) == (270, 370)
    n_rows = sum(len(rows) for part in blocks.values() for rows in part)
    assert (report.counts["trials"], report.counts["rows"]) == (640, n_rows)
    assert report.counts["files"] == 2
    for part, number in (("train", 31), ("test", 370)):
        got = store.trial_rows(store.trial_number(f"ae.{part}/{number:04d}"))
        wanted = [[float(v) for v in row.split()] for row in blocks[part][number - 1]]
        np.testing.assert_array_equal(got, np.array(wanted).astype(np.float32))
    per_speaker = labels(store, "speaker")
    assert per_speaker["3"] == 30 + 88
    assert per_speaker["9"] == 30 + 29


def test_movement_aal(tmp_path: Path):
    folder = unpacked("movement_aal.tar.xz", tmp_path)
    report, store = built("movement_aal/dataset.yaml", folder)
    assert (report.counts["trials"], report.counts["rows"]) == (314, 13_197)
    target = (folder / "raw/movement_aal/dataset/MovementAAL_target.csv").read_text()
    wanted = dict(line.split(",") for line in target.split()[2:])
    assert labels(store, "changes_room") == Counter(wanted.values())
    number = store.trial_number("100")
    column = store.cold("attributes")["attributes"].combine_chunks().field("changes_room")
    assert column[number].as_py() == wanted["100"]


@pytest.mark.skipif(not os.environ.get("SOAK"), reason="4,000 files; SOAK=1 reads them")
def test_physionet2012(tmp_path: Path):
    folder = unpacked("physionet2012_seta.tar.xz", tmp_path)
    report, store = built("physionet2012/dataset.yaml", folder)
    assert report.counts["trials"] == 4_000
    assert labels(store, "died")["1"] == 554
    names = [channel.name for channel in store.manifest.channels]
    assert len(names) == 74
    record = folder / "raw/set-a/132539.txt"
    hourly: dict[int, dict[str, float]] = {}
    with record.open() as file:
        for row in csv.DictReader(file):
            hour = int(row["Time"][:2])
            hourly.setdefault(hour, {})
            if row["Parameter"] == "HR" and row["Value"] != "-1":
                hourly[hour].setdefault(row["Time"], float(row["Value"]))
    got = store.trial_rows(store.trial_number("132539"))
    assert len(got) == max(hourly) + 1
    rates = {hour: np.mean(list(v.values())) for hour, v in hourly.items() if v}
    heart = got[:, names.index("HR")]
    for hour, rate in rates.items():
        assert heart[hour] == np.float32(rate)
    batch = first_batch(store)
    assert batch.values.shape == (8, 48, 74)
    assert batch.statics.shape[1] >= 3


@pytest.mark.parametrize(("number", "n_trials"), [(1, 88), (2, 47), (3, 47), (4, 117), (5, 164)])
def test_robot_failures(number: int, n_trials: int, tmp_path: Path):
    folder = unpacked("robot_failures.tar.xz", tmp_path)
    report, store = built(f"robot_failures/lp{number}.yaml", folder)
    assert (report.counts["trials"], report.counts["rows"]) == (n_trials, 15 * n_trials)
    lines = (folder / f"raw/robot_failures/lp{number}.data").read_text().splitlines()
    heads = [i for i, line in enumerate(lines) if line.strip() and not line.startswith("\t")]
    assert labels(store, "failure") == Counter(lines[i].strip() for i in heads)
    last = [[float(v) for v in line.split()] for line in lines[heads[-1] + 1 : heads[-1] + 16]]
    got = store.trial_rows(store.trial_number(f"lp{number}/{n_trials:04d}"))
    np.testing.assert_array_equal(got, np.array(last).astype(np.float32))


@pytest.mark.parametrize(("name", "n_trials"), [("1", 200), ("2", 519), ("3", 200), ("4", 497)])
def test_cmapss(name: str, n_trials: int, tmp_path: Path):
    folder = unpacked("cmapss.tar.xz", tmp_path)
    report, store = built(f"cmapss/fd00{name}.yaml", folder)
    engines = sorted((folder / f"raw/cmapss_trials/FD00{name}").glob("*/engine_*.csv"))
    n_rows = sum(file.read_text().count("\n") - 1 for file in engines)
    assert (report.counts["trials"], report.counts["rows"]) == (n_trials, n_rows)
    assert first_batch(store).values.isfinite().all()
