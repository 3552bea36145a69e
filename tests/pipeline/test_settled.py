"""A build that finds nothing to do: what it does not load, and when it may not say so."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trialfolders import write_spec, write_trial, write_trials

from pipeline import versions, workspace
from pipeline.build import build
from pipeline.folds import build_folds
from pipeline.settled import find_settled
from pipeline.versions import digest_of_readers, digest_of_text
from pipeline.workspace import Workspace
from shards import Store

ROOT = Path(__file__).parents[2]
HEAVY = {
    "polars", "torch", "numba", "llvmlite", "pandas", "zarr", "dagster",
    "pydantic", "pydantic_core", "yaml", "rich", "jsonschema", "sqlite3", "importlib.metadata",
    "numpy.ma", "pyarrow.compute", "pyarrow.dataset",
    "loaders", "training", "pipeline.sections", "pipeline.spec", "pipeline.build",
    "trialshards.report", "trialshards.progress", "shards.select",
}  # fmt: skip


KIND = {"table": "kinds.csv", "trial_id": "{id}", "column": "k"}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    write_trials(tmp_path, 6)
    (tmp_path / "raw" / "broken.csv").write_text("x,y\n1,two\n")
    return write_spec(tmp_path, max_quarantined=0.2)


@pytest.fixture
def store(spec: Path) -> Path:
    path = spec.parent / "store"
    assert build(spec, path).published
    return path


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Specifications that were read as YAML from now on."""
    found: list[Path] = []
    from pipeline import spec as module

    real = module.load_spec

    def load(path: Path) -> object:
        found.append(Path(path))
        return real(path)

    monkeypatch.setattr(module, "load_spec", load)
    return found


def noted(store: Path) -> object:
    return Store(store).manifest.build.get("text")


def test_the_command_with_nothing_new_loads_nothing_it_does_not_need(spec: Path, store: Path):
    code = f"""
import sys
from trialshards.cli import main
main(["build", {str(spec)!r}, "--store", {str(store)!r}], standalone_mode=False)
print("LOADED", sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "unchanged, nothing published: v0001" in done.stdout
    assert "quarantined raw/broken.csv:2  not_a_number" in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_a_specification_with_the_same_bytes_is_not_read_again(
    spec: Path, store: Path, unread: list[Path]
):
    assert noted(store) == digest_of_text(spec)
    report = find_settled(spec, store)
    assert report is not None
    assert (report.version, report.published, report.counts["trials"]) == ("v0001", False, 6)
    assert unread == []


def test_other_words_for_the_same_are_read_and_are_no_reason_for_a_version(
    spec: Path, store: Path, unread: list[Path]
):
    before = noted(store)
    spec.write_text(spec.read_text() + "# as before\n")
    assert find_settled(spec, store) is not None
    assert unread == [spec]
    assert not build(spec, store, refit=True).published
    assert noted(store) == before
    write_trial(spec.parent, "more", {"x": [1.0, 2.0], "y": [3.0, 4.0]})
    assert build(spec, store).published
    assert noted(store) == digest_of_text(spec) != before


def test_no_version_of_another_specification_is_taken_for_this_one(spec: Path, store: Path):
    first = spec.read_bytes()
    write_spec(spec.parent, max_quarantined=0.2, windows={"stride": 3})
    assert find_settled(spec, store) is None
    assert build(spec, store).version == "v0002"
    assert find_settled(spec, store) is not None
    spec.write_bytes(first)
    assert find_settled(spec, store) is None
    assert build(spec, store).version == "v0003"
    assert find_settled(spec, store) is not None


def test_a_version_by_other_stages_is_not_taken_for_one_by_these(
    spec: Path, store: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(versions.STAGES, "clean", versions.STAGES["clean"] + 1)
    assert find_settled(spec, store) is None


def test_a_fold_is_not_what_its_specification_says(tmp_path: Path):
    write_trials(tmp_path, 9)
    spec, store = write_spec(tmp_path, split={"method": "folds", "folds": 3}), tmp_path / "store"
    assert [fold.version for fold in build_folds(spec, store)] == ["v0001", "v0002", "v0003"]
    assert noted(store) is None
    assert find_settled(spec, store) is None


def test_a_specification_that_changes_while_it_is_read_is_known_by_no_bytes(
    spec: Path, monkeypatch: pytest.MonkeyPatch
):
    real = workspace.load_spec

    def load(path: Path) -> object:
        found = real(path)
        spec.write_text(spec.read_text() + "# late\n")
        return found

    assert Workspace.open(spec, spec.parent / "store").text == digest_of_text(spec)
    monkeypatch.setattr(workspace, "load_spec", load)
    assert Workspace.open(spec, spec.parent / "store").text is None


@pytest.mark.parametrize(
    ("sections", "is_told"),
    [
        ({"derive": {"x2": "x * 2"}}, True),
        ({"derive": {"z": {"hook": "own.py:double", "columns": ["x"]}}}, False),
        ({"attributes": {"kind": KIND}}, True),
        ({"source": {"split_on": ["unit"]}, "derive": {"x2": "x * 2"}}, True),
        ({"source": {"split_on": ["unit"]}, "attributes": {"kind": KIND | {"default": 0}}}, False),
    ],
)
def test_where_more_than_files_and_words_decides_a_build_must_tell(
    tmp_path: Path, sections: dict[str, object], is_told: bool
):
    (tmp_path / "own.py").write_text("def double(frame, known):\n    return frame['x'] * 2\n")
    (tmp_path / "kinds.csv").write_text("id,k\na,1\nb,2\n")
    for name in "ab":
        write_trial(tmp_path, name, {"unit": [1.0, 1.0], "x": [1.0, 2.0], "y": [3.0, 5.0]})
    spec, store = write_spec(tmp_path, **sections), tmp_path / "store"
    assert build(spec, store).published
    assert (find_settled(spec, store) is not None) == is_told
    assert not build(spec, store).published
    (tmp_path / "kinds.csv").write_text("id,k\na,1\nb,3\n")
    tells_tables = "attributes" in sections
    assert (find_settled(spec, store) is not None) == (is_told and not tells_tables)


# --- the code that reads it -----------------------------------------------------------------------


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A copy of the code that reads a specification, older than what was loaded."""
    files = [path for pattern in versions._READERS for path in ROOT.glob(pattern)]
    copies = [tmp_path / path.relative_to(ROOT) for path in files]
    for path, copy in zip(files, copies, strict=True):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    monkeypatch.setattr(versions, "_LOADED_NS", time.time_ns() + 10**12)
    return copies


def test_a_change_of_any_code_that_reads_specifications_changes_the_digest(
    packages: list[Path], tmp_path: Path
):
    assert len(packages) > 6
    digest = digest_of_readers.__wrapped__
    seen = {digest(tmp_path)}
    assert seen == {digest(tmp_path)} != {None}
    for path in packages:
        path.write_text(path.read_text() + "\n")
        seen.add(digest(tmp_path))
    assert len(seen) == len(packages) + 1


def test_code_that_is_newer_than_what_was_loaded_has_no_digest(
    packages: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    digest = digest_of_readers.__wrapped__
    assert digest(tmp_path) is not None
    monkeypatch.setattr(versions, "_LOADED_NS", packages[0].stat().st_ctime_ns)
    assert digest(tmp_path) is None


def test_code_without_its_sources_has_no_digest(packages: list[Path], tmp_path: Path):
    digest = digest_of_readers.__wrapped__
    (tmp_path / "shards" / "userfile.py").unlink()
    assert digest(tmp_path) is None


def test_all_of_the_pipeline_that_reads_specifications_is_in_the_digest():
    code = "import sys, pipeline.spec; print(*(m.__file__ for n, m in sys.modules.items() "
    code += "if n.startswith('pipeline.')), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    known = {str(path) for pattern in versions._READERS for path in ROOT.glob(pattern)}
    loaded = set(done.stdout.split())
    assert len(loaded) > 6
    assert loaded <= known
