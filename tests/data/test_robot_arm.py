"""The sample data: same seed, same bytes, a folder that appears whole, a documented few broken."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robot_arm_generator import FOLDER, gen

N_SMALL = 25


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gen.generate(tmp_path_factory.mktemp("robot_arm"), 0, N_SMALL)


@pytest.fixture(scope="module")
def trials() -> list[dict[str, Any]]:
    return [gen.simulate_trial(0, 3, index) for index in range(1, 25)]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.csv")}


# --- the same seed gives the same bytes -------------------------------------------------------


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(raw: Path, tmp_path: Path):
    again = contents(gen.generate(tmp_path / "again", 0, N_SMALL))
    other = contents(gen.generate(tmp_path / "other", 1, N_SMALL))
    assert again == contents(raw)
    assert again.keys() == other.keys()
    assert sum(again[path] == other[path] for path in again) == 2  # no bytes; only a header


def test_each_trial_can_be_made_again_alone(raw: Path):
    for subject, index in [(1, 3), (12, 2), (5, 1)]:
        alone = gen.encode_csv(gen.simulate_trial(0, subject, index))
        assert (raw / gen.trial_path(subject, index)).read_bytes() == alone


def test_a_larger_data_set_keeps_the_trials_of_a_smaller_one():
    assert set(gen.good_trials(25)) < set(gen.good_trials(130)) < set(gen.good_trials(1200))


@pytest.mark.parametrize("n_trials", [1, 12, 25, 1200])
def test_counts(n_trials: int):
    pairs = gen.good_trials(n_trials)
    paths = {gen.trial_path(*pair) for pair in pairs}
    assert len(paths) == len(pairs) == n_trials
    assert not paths & gen.BROKEN.keys()
    per_subject = np.bincount([subject for subject, _ in pairs], minlength=13)[1:]
    assert per_subject.max() - per_subject.min() <= 1


def test_broken_files_sit_among_the_good_ones():
    last = dict(gen.good_trials(1200))
    for path in gen.BROKEN:
        assert int(path[-8:-4]) < last[int(path[1:3])]


# --- the folder appears whole, and is not replaced by surprise --------------------------------


def test_the_folder_holds_what_the_stamp_says(raw: Path):
    stamp = json.loads((raw / ".complete").read_text())
    files = contents(raw)
    assert len(files) == stamp["n_trials"] + stamp["n_broken"] == N_SMALL + len(gen.BROKEN)
    assert sum(map(len, files.values())) == stamp["n_bytes"]
    assert [p.name for p in raw.parent.iterdir()] == ["raw"]


def test_a_complete_folder_is_left_alone(raw: Path, capsys: pytest.CaptureFixture[str]):
    before = (raw / ".complete").stat().st_mtime_ns
    gen.generate(raw.parent, 0, N_SMALL)
    assert "nothing to do" in capsys.readouterr().out
    assert (raw / ".complete").stat().st_mtime_ns == before


def test_another_folder_is_replaced_only_by_force(tmp_path: Path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine.csv").write_text("t\n")
    with pytest.raises(FileExistsError, match="--force"):
        gen.generate(tmp_path, 0, 2)
    gen.generate(tmp_path, 0, 2, force=True)
    assert not (tmp_path / "raw" / "mine.csv").exists()
    with pytest.raises(FileExistsError, match="'n_trials': 2"):
        gen.generate(tmp_path, 0, 3)


def test_a_failed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr(gen, "encode_csv", fail)
    with pytest.raises(OSError, match="disk full"):
        gen.generate(tmp_path, 0, 2)
    assert list(tmp_path.iterdir()) == []


def test_the_command_runs_from_the_repository_root(tmp_path: Path):
    command = [sys.executable, "data/robot_arm/generate.py", "--out", str(tmp_path), "--trials"]
    done = subprocess.run([*command, "3"], cwd=FOLDER.parents[1], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 trials + 12 broken" in done.stdout
    refused = subprocess.run([*command, "0"], cwd=FOLDER.parents[1], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "wanted 1 or more" in refused.stderr


# --- what a good file looks like --------------------------------------------------------------


def test_good_files_have_every_field_and_a_final_newline(raw: Path):
    for path, data in contents(raw).items():
        if path not in gen.BROKEN:
            lines = data.decode("ascii").split("\n")
            assert lines[0] == ",".join(gen.COLUMNS)
            assert lines[-1] == ""
            assert {line.count(",") for line in lines[:-1]} == {len(gen.COLUMNS) - 1}


def test_columns_are_plausible(trials: list[dict[str, Any]]):
    for trial in trials:
        n_rows = len(trial["t"])
        assert {len(column) for column in trial.values()} == {n_rows}
        assert 150 <= n_rows <= 900
        np.testing.assert_array_equal(trial["t"], np.round(np.arange(n_rows) * 0.02, 2))
        assert set(trial["gripper"]) <= {"open", "closing", "closed", "opening"}
        assert "closed" in trial["gripper"]
        assert len(set(trial["payload_kg"])) == len(set(trial["payload"])) == 1
        nominal = gen.NOMINAL_KG[trial["payload"][0]]
        assert abs(trial["payload_kg"][0] - nominal) < 0.05 * nominal + 0.04
        assert np.nanmax(np.abs(trial["q1"])) < np.pi
        assert np.nanmax(np.abs(trial["dq1"])) < 5
        assert np.nanmax(np.abs(trial["tau1"])) < 100
    assert len({len(trial["t"]) for trial in trials}) > 15
    assert {trial["payload"][0] for trial in trials} == {"light", "heavy"}


def test_one_or_two_percent_of_the_cells_are_missing(trials: list[dict[str, Any]]):
    values = np.concatenate([[trial[c] for c in gen.CHANNELS] for trial in trials], axis=1)
    assert 0.01 < np.isnan(values).mean() < 0.025
    assert not any(np.isnan(trial["t"]).any() for trial in trials)


# --- the documented handful -------------------------------------------------------------------


def field_counts(data: bytes) -> list[int]:
    return [line.count(b",") + 1 for line in data.splitlines()]


def is_cut(data: bytes) -> bool:
    return not data.endswith(b"\n") and len(data) > 0


def has_one_odd_row(data: bytes) -> bool:
    odd = [n for n in field_counts(data) if n != 13]
    return data.endswith(b"\n") and odd in ([10], [14])


def has_one_text(data: bytes) -> bool:
    cells = [c for row in data.splitlines()[1:] for c in row.split(b",")[1:10]]
    texts = [c for c in cells if c and not c.replace(b".", b"").replace(b"-", b"").isdigit()]
    return len(texts) == 1 and set(field_counts(data)) == {13}


def is_half_empty(data: bytes) -> bool:
    cells = [c for row in data.splitlines()[1:] for c in row.split(b",")]
    return cells.count(b"") > len(cells) / 2 and set(field_counts(data)) == {13}


SYMPTOMS = {
    "truncated": is_cut,
    "field_count": has_one_odd_row,
    "not_a_number": lambda data: has_one_text(data) and b",inf," not in data,
    "infinite": lambda data: has_one_text(data) and data.count(b",inf,") == 1,
    "empty": lambda data: data == b"",
    "no_rows": lambda data: data.decode() == ",".join(gen.COLUMNS) + "\n",
    "compressed_damaged": lambda data: (
        zlib.decompressobj(wbits=31).decompress(data).startswith(b"t,q1,")
    ),
    "missing_column": lambda data: set(field_counts(data)) == {12} and b"tau2" not in data,
    "encoding": lambda data: data[:2] == b"\xff\xfe" and data.decode("utf-16").startswith("t,q1,"),
    "too_many_missing": is_half_empty,
}


@pytest.mark.parametrize("path", gen.BROKEN)
def test_each_broken_file_has_the_documented_fault(raw: Path, path: str):
    assert SYMPTOMS[gen.BROKEN[path]]((raw / path).read_bytes())


def test_no_good_file_has_a_fault(raw: Path):
    for path, data in contents(raw).items():
        if path not in gen.BROKEN:
            faults = (is_cut, has_one_odd_row, has_one_text, is_half_empty)
            assert not any(fault(data) for fault in faults)


def test_every_code_occurs_and_the_readme_lists_every_file():
    assert set(gen.BROKEN.values()) == set(SYMPTOMS)
    assert 8 <= len(gen.BROKEN) <= 12
    readme = (FOLDER / "README.md").read_text()
    for path, code in gen.BROKEN.items():
        assert f"| `{path}` | `{code}` |" in readme


def test_the_two_cuts_are_the_silent_kinds(raw: Path):
    in_number = (raw / "s01/trial_0017.csv").read_bytes().splitlines()[-1].split(b",")
    assert len(in_number) == 3
    assert np.isfinite(float(in_number[2]))  # reads as a number, and is a wrong one
    last_field = (raw / "s02/trial_0058.csv").read_bytes().splitlines()[-1].split(b",")
    assert len(last_field) == 13
    assert last_field[-1] in (b"hea", b"lig")
