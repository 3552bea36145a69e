"""The repository's own code location: exact names, words for a stranger, and a light load."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from roomfolders import ASSETS, DRAFT_CHECKS, STORE_CHECKS

from pipeline import definitions
from pipeline.orchestration import assets as assets_module
from pipeline.orchestration.room import pipeline_code_version, training_code_version
from pipeline.versions import STAGES

ROOT = Path(__file__).parents[2]
DATASETS = sorted(path.parent.name for path in (ROOT / "pipeline" / "defs").glob("*/defs.yaml"))
FREE = [
    "audit", "audit_store", "base", "buckets", "build", "catalog", "causal", "clean", "codes",
    "commit", "delta", "derive", "draft", "engine", "files", "finish", "fit", "hooks", "ledger",
    "merge", "normalize", "pack", "patch", "pictures", "plain", "prepare", "quickscan", "rebase",
    "recipe", "regimes", "reshape", "sections", "shape", "shaped", "sources.delimited", "spec",
    "splits", "staging", "statistics", "tables", "timeline", "trainrows", "trials", "watch",
    "workspace",
]  # fmt: skip


@pytest.fixture(scope="module")
def location() -> dg.Definitions:
    return definitions.defs()


@pytest.fixture(scope="module")
def specs(location: dg.Definitions) -> list[dg.AssetSpec]:
    return list(location.resolve_all_asset_specs())


def checks_of(location: dg.Definitions) -> list[dg.AssetCheckSpec]:
    graph = location.resolve_asset_graph()
    return [graph.get_check_spec(key) for key in graph.asset_check_keys]


def test_the_assets_are_exactly_these(specs: list[dg.AssetSpec]):
    assert {"robot_arm", "cmapss_fd001"} <= set(DATASETS)
    assert {tuple(spec.key.path) for spec in specs} == {(d, a) for d in DATASETS for a in ASSETS}


def test_the_checks_are_exactly_these(location: dg.Definitions):
    assert {(tuple(c.asset_key.path), c.name) for c in checks_of(location)} == {
        ((d, "training_set"), name) for d in DATASETS for name in (*DRAFT_CHECKS, *STORE_CHECKS)
    }
    assert all(check.blocking for check in checks_of(location))


def test_jobs_schedules_and_sensors_are_exactly_these(location: dg.Definitions):
    repository = location.get_repository_def()
    jobs = {name for name in repository.job_names if not name.startswith("__")}
    assert jobs == set(DATASETS)
    assert {s.name for s in repository.schedule_defs} == {f"{d}_nightly" for d in DATASETS}
    assert {s.name for s in repository.sensor_defs} == {f"{d}_files" for d in DATASETS}
    for schedule in repository.schedule_defs:
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED


def test_each_asset_depends_on_the_one_before(specs: list[dg.AssetSpec]):
    for spec in specs:
        dataset, name = spec.key.path
        place = ASSETS.index(name)
        wanted = [[dataset, ASSETS[place - 1]]] if place else []
        assert [dep.asset_key.path for dep in spec.deps] == wanted


def test_assets_are_described_for_a_stranger(specs: list[dg.AssetSpec]):
    for spec in specs:
        assert len(spec.description or "") > 40, spec.key
        assert spec.kinds
        assert spec.owners
        assert spec.group_name == spec.key.path[0]
        trained = spec.key.path[1] in ("trained_lstm", "evaluation")
        wanted = training_code_version() if trained else pipeline_code_version()
        assert spec.code_version == wanted


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_version_changes_with_any_stage(stage: str, monkeypatch: pytest.MonkeyPatch):
    before = pipeline_code_version()
    monkeypatch.setitem(STAGES, stage, STAGES[stage] + 1)
    assert pipeline_code_version() != before


def test_checks_and_triggers_are_described_for_a_stranger(location: dg.Definitions):
    repository = location.get_repository_def()
    for check in checks_of(location):
        assert len(check.description or "") > 40, check
    for thing in (*repository.schedule_defs, *repository.sensor_defs):
        assert len(thing.description or "") > 40, thing.name
    for name in DATASETS:
        assert len(repository.get_job(name).description or "") > 40


def test_only_trial_shards_is_partitioned(specs: list[dg.AssetSpec]):
    for spec in specs:
        partitioned = spec.partitions_def is not None
        assert partitioned == (spec.key.path[1] == "trial_shards")


def test_no_partition_key_holds_a_comma(specs: list[dg.AssetSpec]):
    for spec in specs:
        if spec.partitions_def is not None:
            keys = spec.partitions_def.get_partition_keys()
            assert keys == [f"b{i}" for i in range(len(keys))]


def test_training_takes_a_place_in_the_gpu_pool(location: dg.Definitions):
    graph = location.resolve_asset_graph()
    for dataset in DATASETS:
        node = graph.get(dg.AssetKey([dataset, "trained_lstm"]))
        assert node.pools == {"gpu"}


def test_the_catalog_tells_how_to_get_the_files(specs: list[dg.AssetSpec]):
    told = 0
    for spec in specs:
        if spec.key.path[1] == "catalog":
            files = yaml.safe_load((ROOT / "pipeline/defs" / spec.key.path[0] / "defs.yaml").open())
            dataset = yaml.safe_load((ROOT / files["attributes"]["dataset"]).open())
            obtain = dataset["source"].get("obtain", "")
            assert obtain.strip() in spec.description
            told += bool(obtain)
    assert told


def body_lines(function: ast.FunctionDef) -> int:
    first = function.body[1] if ast.get_docstring(function) else function.body[0]
    return function.body[-1].end_lineno - first.lineno + 1


def test_the_body_of_each_asset_has_at_most_fifteen_lines():
    tree = ast.parse(inspect.getsource(assets_module))
    bodies = {
        node.name: body_lines(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in ASSETS
    }
    assert bodies.keys() == set(ASSETS)
    assert max(bodies.values()) <= 15, bodies


# --- a light load ---------------------------------------------------------------------------------

LOAD = """
import json, os, sys
touched = []
def watch(event, args):
    if event in ("open", "os.listdir", "os.scandir", "glob.glob") and isinstance(args[0], str):
        if "/data/" in args[0] and ("/raw" in args[0] or "/store" in args[0]):
            touched.append(args[0])
sys.addaudithook(watch)
from pipeline.definitions import defs
repository = defs().get_repository_def()
repository.get_all_jobs()
heavy = [m for m in ("torch", "matplotlib", "lightning_fabric", "PIL") if m in sys.modules]
print(json.dumps({"touched": touched, "heavy": heavy}))
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    done = subprocess.run([sys.executable, "-c", LOAD], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"said": done.stderr}


def test_the_location_loads_without_torch_and_matplotlib(loaded):
    assert loaded["heavy"] == []


def test_the_location_loads_without_looking_at_raw_files_or_stores(loaded):
    assert loaded["touched"] == []


def test_the_location_loads_without_a_word(loaded):
    """What Dagster marks beta or preview is told to those who can act on it: not here."""
    assert loaded["said"] == ""


def test_modules_around_the_room_do_not_import_dagster():
    known = {
        path.relative_to(ROOT / "pipeline").with_suffix("").as_posix().replace("/", ".")
        for path in (ROOT / "pipeline").rglob("*.py")
        if path.name != "__init__.py"
    } | {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}
    room = {name for name in known if name.startswith(("orchestration", "defs"))}
    assert known - room - {"component", "definitions"} >= set(FREE)
    free = sorted(known - room - {"component", "definitions"})
    imports = "".join(f"import pipeline.{name}\n" for name in free)
    program = imports + "import sys; assert not [m for m in sys.modules if 'dagster' in m]"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline" / "orchestration").glob("*.py")),
                         ids=lambda path: path.stem)  # fmt: skip
def test_modules_of_the_room_keep_their_annotations(path: Path):
    """Dagster reads them: as text they fail."""
    assert "from __future__ import annotations" not in path.read_text().splitlines()
