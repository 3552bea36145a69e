"""The command: exit codes, stable JSON keys, sentences instead of tracebacks, a quick start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from trialfolders import delivered, quarantine_of, split_of, write_spec, write_trials

from shards import Store
from trialshards.cli import main

COMMAND = Path(sys.executable).with_name("trialshards")


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], env={"COLUMNS": "200"})


def run_process(*args: object) -> subprocess.CompletedProcess[str]:
    command = [str(COMMAND), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    write_trials(tmp_path, 12)
    (tmp_path / "raw" / "broken.csv").write_text("x,y\n1,two\n")
    (tmp_path / "raw" / ".hidden.csv").write_text("")
    return write_spec(tmp_path, max_quarantined=0.2)


@pytest.fixture
def store(spec: Path, tmp_path: Path) -> Path:
    result = run("build", spec, "--store", tmp_path / "store")
    assert result.exit_code == 0, result.output
    return tmp_path / "store"


# --- build ------------------------------------------------------------------------------------


def test_build_publishes_says_so_and_does_not_do_it_twice(spec: Path, tmp_path: Path):
    path = tmp_path / "store"
    first = run_process("build", spec, "--store", path, "--workers", 2)
    assert first.returncode == 0, first.stderr
    flat = " ".join(first.stdout.split())
    assert "published v0001" in flat
    assert "14 files = 12 trials + 1 quarantined + 1 ignored" in flat
    assert Store(path).fingerprint in flat
    assert "raw/broken.csv:2 not_a_number" in flat
    assert "looks ahead inside a trial" in flat
    assert "Traceback" not in first.stdout + first.stderr
    again = run("build", spec, "--store", path)
    assert again.exit_code == 0
    assert "unchanged, nothing published: v0001" in " ".join(again.output.split())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ["cannot read", "dataset.yaml", "Check the path"]),
        ("name: [\n", ["is not YAML"]),
        ("name: demo\nchanels: [x]\n", ["Did you mean 'channels'?", "dataset.yaml:2:"]),
    ],
)
def test_a_missing_or_wrong_spec_is_a_sentence_and_exit_1(
    text: str | None, parts: list[str], tmp_path: Path
):
    path = tmp_path / "dataset.yaml"
    if text is not None:
        path.write_text(text)
    args = ("build", path, "--store", tmp_path / "store")
    result = run(*args)
    found = [(result.exit_code, result.stdout, result.stderr)]
    assert isinstance(result.exception, SystemExit)
    if text is not None and len(parts) > 1:  # once as a user runs it
        done = run_process(*args)
        found.append((done.returncode, done.stdout, done.stderr))
    for code, stdout, stderr in found:
        assert (code, stdout) == (1, "")
        message = stderr[stderr.index("Error: ") :]
        for part in parts:
            assert part in message
        assert "Traceback" not in stderr
    assert not (tmp_path / "store").exists()


def test_too_many_refusals_exit_1_and_leave_the_old_version(
    store: Path, spec: Path, tmp_path: Path
):
    for path in sorted((tmp_path / "raw").rglob("t*.csv"))[:6]:
        path.write_text("")
    result = run("build", spec, "--store", store)
    assert result.exit_code == 1
    assert "7 of 13 files were refused" in result.output
    assert "Traceback" not in result.output
    assert run("verify", store).exit_code == 0
    assert Store(store).version == "v0001"


@pytest.mark.parametrize(
    "args",
    [
        ["build"],
        ["build", "dataset.yaml"],
        ["build", "dataset.yaml", "--store", "s", "--workers", "0"],
        ["build", "dataset.yaml", "--store", "s", "--wrokers", "1"],
        ["inspect"],
        ["nonsense"],
    ],
)
def test_wrong_usage_exits_2(args: list[str]):
    result = run(*args)
    assert result.exit_code == 2
    assert "Usage: " in result.output


# --- inspect ----------------------------------------------------------------------------------


def test_inspect_prints_json_with_stable_keys(store: Path):
    done = run_process("inspect", store, "--json")
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    opened = Store(store)
    numbers = {
        "n_files": 14, "n_trials": 12, "n_quarantined": 1, "n_ignored": 1,
        "n_rows": int(opened.index.n_rows.sum()), "n_rows_in": int(opened.index.n_rows.sum()),
        "n_windows": int(opened.index.n_windows.sum()),
    }  # fmt: skip
    assert {key: about[key] for key in numbers} == numbers
    assert about["version"] == "v0001"
    assert about["fingerprint"] == opened.fingerprint
    assert about["quarantined_by_code"] == {"not_a_number": 1}
    assert list(about["splits"]) == ["train", "val", "test"]
    sides = list(split_of(opened).values())
    for code, (name, split) in enumerate(about["splits"].items()):
        assert split == {
            "n_trials": sides.count(name),
            "n_windows": int(opened.index.n_windows[opened.index.split == code].sum()),
            "fingerprint": opened.manifest.fingerprints[name],
        }
    assert about["channels"] == ["x", "y"]
    assert about["target"] == {"kind": "forecast", "columns": ["x"]}


def test_inspect_opens_an_older_version(store: Path, spec: Path, tmp_path: Path):
    before = json.loads(run("inspect", store, "--json").stdout)
    (tmp_path / "raw" / "g0" / "t03.csv").unlink()
    assert run("build", spec, "--store", store).exit_code == 0
    newest = json.loads(run("inspect", store, "--json").stdout)
    assert (newest["version"], newest["n_trials"]) == ("v0002", 11)
    assert json.loads(run("inspect", store, "--version", "v0001", "--json").stdout) == before
    missing = run("inspect", store, "--version", "v0009")
    assert missing.exit_code == 1
    assert "no version v0009" in missing.output
    assert "v0001, v0002" in missing.output


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_no_store_is_a_sentence_that_says_how_to_build_one(command: str, tmp_path: Path):
    result = run(command, tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "Build it: trialshards build" in result.output
    assert not (tmp_path / "nowhere").exists()


def test_a_missing_store_is_reported_in_english(tmp_path: Path):
    assert "no a " not in run("inspect", tmp_path / "nowhere").output


# --- verify -----------------------------------------------------------------------------------


def test_verify_exits_0_on_a_whole_store(store: Path):
    done = run_process("verify", store)
    assert (done.returncode, done.stdout.count("every byte is as promised")) == (0, 1)


NOT_PROMISED = ("latest.json", "staging/", ".writers")
"""A hint, what a builder keeps, and the empty file that it locks."""


def files_of(store: Path) -> list[str]:
    names = (path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.startswith(NOT_PROMISED))


def test_verify_exits_1_after_any_byte_flips(store: Path):
    """One byte of every file in turn, but for those that promise a reader nothing."""
    names = files_of(store)
    assert len(names) == 10
    assert {name.split("/")[0] for name in names} == {"parts", "shards", "versions"}
    rows = {name: delivered(Store(store))[name] for name in split_of(Store(store))}
    for name in names:
        path = store / name
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 0x10
        path.write_bytes(flipped)
        result = run("verify", store)
        assert result.exit_code == 1, name
        assert "Error: " in result.output, name
        assert isinstance(result.exception, SystemExit), (name, result.exception)
        path.write_bytes(content)
    assert run("verify", store).exit_code == 0
    assert all(delivered(Store(store))[name].tobytes() == r.tobytes() for name, r in rows.items())


def test_verify_names_the_shard_and_its_trials(store: Path):
    chunk = next(store.glob("shards/*/values/c/0/0"))
    content = bytearray(chunk.read_bytes())
    content[0] ^= 1
    chunk.write_bytes(content)
    done = run_process("verify", store)
    assert done.returncode == 1
    assert str(chunk) in done.stderr
    assert "trials: g0/t00" in done.stderr
    assert "build again" in done.stderr
    assert "Traceback" not in done.stderr
    os.truncate(chunk, len(content) - 4)
    short = run("verify", store)
    assert short.exit_code == 1
    assert f"wanted {len(content)} bytes" in short.output


# --- start ------------------------------------------------------------------------------------


def test_help_imports_neither_torch_nor_polars():
    code = """
import sys
from trialshards.cli import main
heavy = {"torch", "polars", "lightning_fabric", "matplotlib", "loaders", "training"}
for args in (["--help"], ["build", "--help"], ["--version"]):
    try:
        main(args, standalone_mode=True)
    except SystemExit as stop:
        assert not stop.code, stop.code
    print("LOADED", sorted(heavy & set(sys.modules)))
"""
    out = run_python(code)
    assert out.count("LOADED []") == out.count("LOADED") == 3
    assert out.count("Usage: ") == 2
    assert "version" in out.split("LOADED")[2]


def test_inspect_and_verify_need_no_polars_and_no_torch(store: Path):
    code = f"""
import sys
from trialshards.cli import main
for command in ("inspect", "verify"):
    main([command, {str(store)!r}], standalone_mode=False)
    print("LOADED", sorted({{"torch", "polars", "pipeline", "loaders"}} & set(sys.modules)))
"""
    assert run_python(code).count("LOADED []") == 2


def test_help_names_every_command():
    done = run_process("--help")
    assert done.returncode == 0
    for command in ("build", "inspect", "verify", "train"):
        assert command in done.stdout


def test_the_quarantine_that_is_printed_is_the_one_that_is_stored(store: Path):
    result = run("inspect", store)
    for source, code in quarantine_of(Store(store)).items():
        assert f"{source}:2" in result.output
        assert code in result.output
