"""The sepsis example: a generated copy always runs; the real set A is counted where it is."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.build import build
from pipeline.spec import load_spec
from shards import Store
from training import TrainConfig, evaluate, train

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "sepsis"
ARCHIVE = "physionet2019_setA.tar.xz"
PLACES = [Path(os.environ.get("TRIALSHARDS_DATA", "nowhere")), ROOT.parent / "shared" / "data"]
N_FILES, N_ROWS, N_POSITIVE, N_SEPTIC = 20_336, 790_215, 17_136, 1_790
COLUMNS = [
    "HR", "O2Sat", "Temp", "SBP", "MAP", "DBP", "Resp", "EtCO2", "BaseExcess", "HCO3", "FiO2", "pH",
    "PaCO2", "SaO2", "AST", "BUN", "Alkalinephos", "Calcium", "Chloride", "Creatinine",
    "Bilirubin_direct", "Glucose", "Lactate", "Magnesium", "Phosphate", "Potassium",
    "Bilirubin_total", "TroponinI", "Hct", "Hgb", "PTT", "WBC", "Fibrinogen", "Platelets", "Age",
    "Gender", "Unit1", "Unit2", "HospAdmTime", "ICULOS", "SepsisLabel",
]  # fmt: skip


def write_patient(path: Path, number: int) -> None:
    """Write one made-up patient in the layout of the challenge; every third one turns septic."""
    rng = np.random.default_rng(number)
    n = int(rng.integers(8, 40))
    septic = (np.arange(n) > n // 2) & (number % 3 == 0)
    table = rng.normal(80, 10, (n, len(COLUMNS)))
    table[:, 0] += 40 * septic
    table[rng.random(table.shape) < 0.6] = np.nan
    table[:, 7] = np.nan
    fixed = [60 + number % 30, number % 2, np.nan, np.nan, -5.25]
    table[:, COLUMNS.index("Age") : COLUMNS.index("ICULOS")] = fixed
    table[:, -2], table[:, -1] = np.arange(1, n + 1), septic
    rows = ["|".join("NaN" if np.isnan(x) else f"{x:g}" for x in row) for row in table]
    path.write_text("|".join(COLUMNS) + "\n" + "\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build 60 made-up patients by the data set's own file; return the folder."""
    folder = tmp_path_factory.mktemp("sepsis")
    raw = folder / "raw" / "training_setA"
    raw.mkdir(parents=True)
    for number in range(60):
        write_patient(raw / f"p{number:06d}.psv", number)
    (folder / "dataset.yaml").write_bytes((FOLDER / "dataset.yaml").read_bytes())
    build(folder / "dataset.yaml", folder / "store")
    return folder


def test_each_row_and_target_is_kept(mini: Path) -> None:
    store = Store(mini / "store")
    assert (store.manifest.counts["trials"], store.manifest.counts["quarantined"]) == (60, 0)
    for number in range(60):
        name = store.index.id_of(number)
        lines = (mini / "raw" / "training_setA" / f"{name}.psv").read_text().splitlines()[1:]
        labels = [float(line.rsplit("|", 1)[1]) for line in lines]
        assert store.trial_rows(number, "targets")[:, 0].tolist() == labels


def test_age_and_gender_are_attributes_and_channels(mini: Path) -> None:
    store = Store(mini / "store")
    names = [channel.name for channel in store.manifest.channels]
    trials = store.cold("attributes").to_pylist()
    for number in (0, 7, 30):
        rows = store.trial_rows(number)
        attributes: dict[str, Any] = dict(trials[number]["attributes"])
        for attribute, channel in (("age", "age_years"), ("gender", "male")):
            assert set(rows[:, names.index(channel)].tolist()) == {float(attributes[attribute])}
        assert rows[:, names.index("hour")].tolist() == list(range(1, len(rows) + 1))
    assert {"Age", "Gender", "ICULOS", "SepsisLabel"}.isdisjoint(names)
    assert set(COLUMNS) - set(names) == {"Age", "Gender", "ICULOS", "SepsisLabel"}


def test_two_epochs_report_an_auroc(mini: Path, tmp_path: Path) -> None:
    text = yaml.safe_load((FOLDER / "train.yaml").read_text())
    text |= {"store": str(mini / "store"), "out": "run", "epochs": 2}
    text["data"] = {"batch_size": 64, "steps_per_epoch": 15}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(text))
    config = TrainConfig.read(tmp_path / "train.yaml")
    assert train(config).status == "finished"
    metrics = evaluate(config).metrics
    assert metrics["n"] == sum(trial_rows(Store(mini / "store"), "test"))
    assert 0.6 < metrics["auroc"] <= 1
    assert 0 < metrics["positive_share"] < 0.5


def trial_rows(store: Store, split: str) -> list[int]:
    rows: list[int] = store.index.n_rows[store.index.split == store.split_code(split)].tolist()
    return rows


def test_the_example_s_files_fit_each_other() -> None:
    spec, config = load_spec(FOLDER / "dataset.yaml"), TrainConfig.read(FOLDER / "train.yaml")
    assert config.store == FOLDER / "store"
    assert config.target.loss == "binary_cross_entropy"
    for said in ("PhysioNet", "CC BY 4.0", "Reyna", "tar -xJf"):
        assert said in spec.source.obtain
        assert said in (FOLDER / "README.md").read_text()


@pytest.fixture(scope="module")
def raw_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that holds `training_setA`, unpacked first where only the archive is."""
    if (FOLDER / "raw" / "training_setA").is_dir():
        return FOLDER / "raw"
    archives = [place / ARCHIVE for place in PLACES if (place / ARCHIVE).is_file()]
    if not archives:
        pytest.skip(
            f"no real data: neither {FOLDER / 'raw'} nor {ARCHIVE} in TRIALSHARDS_DATA or "
            f"{PLACES[1]}; data/sepsis/README.md says how to get them"
        )
    folder = tmp_path_factory.mktemp("sepsis_raw")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.skipif(not os.environ.get("SOAK"), reason="20,336 files; SOAK=1 reads them")
def test_the_real_set_loses_no_patient_hour_or_label(raw_files: Path, tmp_path: Path) -> None:
    """Conservation, without the derived columns: they triple the time and change no count."""
    spec = yaml.safe_load((FOLDER / "dataset.yaml").read_text())
    derived = spec.pop("derive")
    names = [c if isinstance(c, str) else c["name"] for c in spec["channels"]]
    spec["channels"] = [name for name in names if name not in derived]
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "raw").symlink_to(raw_files)
    build(tmp_path / "dataset.yaml", tmp_path / "store")
    store = Store(tmp_path / "store")
    counts = store.manifest.counts
    assert counts["files"] == counts["trials"] + counts["quarantined"] == N_FILES
    assert counts["rows"] == int(store.index.n_rows.sum()) == N_ROWS
    hours = [int(store.trial_rows(n, "targets").sum()) for n in range(len(store.index))]
    assert sum(hours) == N_POSITIVE
    assert np.count_nonzero(hours) == N_SEPTIC
    assert len(store.manifest.shards) >= spec["shards"]["buckets"] == 8
