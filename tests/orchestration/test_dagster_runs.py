"""Real Dagster runs, in this process: what they record, publish, refuse and resume."""

from __future__ import annotations

import json
import os
from pathlib import Path

import dagster as dg
import pytest
from roomfolders import (
    ASSETS,
    BUILT,
    DRAFT_CHECKS,
    STORE_CHECKS,
    Project,
    draw_nothing,
    failed_steps,
    materialized,
    messages,
    metadata_of,
    outcomes,
    range_of,
)
from trialfolders import snapshot, write_trial, write_trials

from pipeline import buckets as buckets_module
from pipeline.build import build
from pipeline.catalog import bucket_of
from pipeline.ledger import listing_digest
from pipeline.orchestration import assets as assets_module
from shards import Store
from shards.writer import list_versions

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
BROKEN = "x,y\n1,two\n"
TRIAL = {"x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "y": [2.0, 1.0, 4.0, 3.0, 6.0, 5.0]}


@pytest.fixture
def drawn_project(tmp_path: Path) -> Project:
    """One whose pictures are drawn, at a second per version."""
    write_trials(tmp_path, 12, missing=0.1)
    (tmp_path / "raw" / "g0" / "broken.csv").write_text(BROKEN)
    return Project(tmp_path)


@pytest.fixture
def project(drawn_project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    draw_nothing(monkeypatch)
    return drawn_project


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory):
    """A project after its first run over everything up to the version."""
    root = tmp_path_factory.mktemp("first")
    write_trials(root, 12, missing=0.1)
    (root / "raw" / "g0" / "broken.csv").write_text(BROKEN)
    made = Project(root)
    return made, made.run(*BUILT, tags=made.room.all_buckets)


@pytest.fixture(autouse=True)
def training(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Stand in for the training process: note what was called."""
    calls: list[tuple[str, ...]] = []

    def run_command(context: dg.AssetExecutionContext, *arguments: str) -> dg.MaterializeResult:
        calls.append(arguments)
        return dg.MaterializeResult(metadata={"loss": 0.5})

    monkeypatch.setattr(assets_module, "run_command", run_command)
    monkeypatch.setattr(assets_module.metadata, "with_evaluation", lambda result, room: result)
    return calls


# --- one whole run --------------------------------------------------------------------------------


def test_a_run_makes_a_version_and_all_checks_pass(first):
    project, result = first
    assert result.success, messages(result)
    assert materialized(result) == list(BUILT)
    assert outcomes(result) == dict.fromkeys((*DRAFT_CHECKS, *STORE_CHECKS), True)
    assert list_versions(project.root / "store") == ["v0001"]


def test_the_version_is_the_one_that_the_command_builds(first, tmp_path: Path):
    project, _ = first
    build(project.root / "dataset.yaml", tmp_path / "store")
    assert snapshot(tmp_path / "store") == snapshot(project.root / "store")


def test_the_catalog_tells_its_numbers(first):
    project, result = first
    told = metadata_of(result, "catalog")
    assert told["dagster/row_count"] == told["files"] == 13
    assert told["files"] == told["candidates"] + told["refused"] + told["ignored"]
    assert (told["files_new"], told["files_changed"], told["files_gone"]) == (13, 0, 0)
    assert told["source_bytes"] == sum(p.stat().st_size for p in project.root.rglob("*.csv"))
    assert told["source_folder"] == str(project.root)
    assert {row.data["what"] for row in told["changes"].records} == {"new"}
    assert told["buckets"] == 4


def test_each_partition_tells_its_own_numbers(first):
    project, result = first
    parts = {f"b{i}": metadata_of(result, "trial_shards", f"b{i}") for i in range(4)}
    counts = Store(project.root / "store").manifest.counts
    for part in parts.values():
        assert part["files"] == part["files_read"] == part["trials"] + part["quarantined"]
        assert part["bytes_read"] == part["source_bytes"]
        assert {"seconds", "files_per_s", "mb_per_s", "shard_bytes"} <= part.keys()
        assert not part["reused"]
    for key, total in (
        ("dagster/row_count", counts["rows"]),
        ("trials", 12),
        ("quarantined", 1),
        ("source_bytes", counts["source_bytes"]),
        ("shards", len(Store(project.root / "store").manifest.shards)),
    ):
        assert sum(part[key] for part in parts.values()) == total
    for part in parts.values():
        names = ("buckets", "files", "files_read", "trials", "rows", "quarantined")
        assert {name: part[f"run_{name}"] for name in names} == {
            "buckets": 4, "files": 13, "files_read": 13, "trials": 12, "rows": counts["rows"],
            "quarantined": 1,
        }  # fmt: skip
    (quarantined,) = [part for part in parts.values() if part["quarantined"]]
    (row,) = quarantined["quarantine"].records
    assert row.data["file"] == "raw/g0/broken.csv"
    assert list(row.data) == ["file", "line", "code", "what_and_what_to_do"]
    assert row.data["line"] == "2"
    assert row.data["code"] == "not_a_number"
    assert len(row.data["what_and_what_to_do"]) > 20


def test_the_version_tells_its_numbers_and_shows_pictures(first):
    project, result = first
    told, store = metadata_of(result, "training_set"), Store(project.root / "store")
    counts = store.manifest.counts
    assert told["dagster/row_count"] == counts["rows"]
    assert (told["version"], told["published"]) == ("v0001", True)
    assert told["fingerprint"] == store.fingerprint[:12]
    assert (told["files"], told["trials"], told["quarantined"]) == (13, 12, 1)
    assert told["windows"] == sum(counts["windows"].values())
    splits = [row.data for row in told["splits"].records]
    assert sum(row["trials"] for row in splits) == 12
    assert sum(row["windows"] for row in splits) == told["windows"]
    assert [column.name for column in told["dagster/column_schema"].columns] == ["x", "y"]
    assert "normalize.scope: trial" in told["looks_ahead"]
    for name in ("trial_lengths", "missing_values", "sample_windows"):
        assert told[name].startswith("![](data:image/png;base64,iVBOR")
    assert sum(len(str(value)) for value in told.values()) < 400_000  # it lies in the event log


def data_version(result: dg.ExecuteInProcessResult, asset: str, partition: str | None = None):
    (version,) = {
        event.materialization.tags["dagster/data_version"]
        for event in result.get_asset_materialization_events()
        if (event.asset_key.path[-1], event.partition) == (asset, partition)
    }
    return version


def test_data_versions_are_those_of_the_data(first):
    project, result = first
    assert data_version(result, "training_set") == Store(project.root / "store").fingerprint
    assert data_version(result, "catalog") == listing_digest(project.room.space.catalog())


def test_a_second_run_changes_nothing(project: Project):
    one = project.run(*BUILT, tags=project.room.all_buckets)
    before = snapshot(project.root / "store")
    two = project.run(*BUILT, tags=project.room.all_buckets)
    assert two.success
    assert snapshot(project.root / "store") == before
    assert metadata_of(two, "training_set")["published"] is False
    assert metadata_of(two, "catalog")["files_new"] == 0
    assert "changes" not in metadata_of(two, "catalog")
    for part in (metadata_of(two, "trial_shards", f"b{i}") for i in range(4)):
        assert part["reused"]
        assert (part["files_read"], part["bytes_read"], part["trials"]) == (0, 0, 0)
        assert part["run_buckets_reused"] == 4
        assert (part["run_files"], part["run_files_read"]) == (13, 0)
        assert not {"files_per_s", "mb_per_s"} & part.keys()
    for asset in ("catalog", "training_set"):
        assert data_version(one, asset) == data_version(two, asset)
    for bucket in ("b0", "b3"):
        parts = [data_version(result, "trial_shards", bucket) for result in (one, two)]
        assert parts[0] == parts[1]


def test_a_run_after_changes_reads_the_files_that_differ_and_says_which(project: Project):
    project.run(*BUILT, tags=project.room.all_buckets)
    before = Store(project.root / "store")
    raw = project.root / "raw"
    write_trial(project.root, "g0/new", TRIAL)
    changed = write_trial(project.root, "g1/t04", TRIAL)
    os.utime(changed, (1, 1))
    (raw / "g2" / "t05.csv").unlink()
    result = project.run(*BUILT, tags=project.room.all_buckets)
    assert result.success, messages(result)
    assert all(outcomes(result).values())
    told = metadata_of(result, "catalog")
    assert (told["files_new"], told["files_changed"], told["files_gone"]) == (1, 1, 1)
    assert [(row.data["what"], row.data["file"]) for row in told["changes"].records] == [
        ("new", "raw/g0/new.csv"), ("changed", "raw/g1/t04.csv"), ("gone", "raw/g2/t05.csv"),
    ]  # fmt: skip
    touched = [bucket_of(f"raw/{name}.csv", 4) for name in ("g0/new", "g1/t04")]
    parts = [metadata_of(result, "trial_shards", f"b{i}") for i in range(4)]
    for number, part in enumerate(parts):
        n_read = touched.count(number)
        assert (part["files_read"], part["trials"]) == (n_read, n_read)
        assert part["reused"] == (n_read == 0)
        assert part["run_files_read"] == 2
        assert part["run_buckets_reused"] == 4 - len(set(touched))
    assert sum(part["files"] for part in parts) == 13
    assert sum(part["bytes_read"] for part in parts) == 2 * changed.stat().st_size
    # Equal rows are one shard; all others are those of the version before.
    after = Store(project.root / "store")
    assert after.version == metadata_of(result, "training_set")["version"] == "v0002"
    kept = {entry.digest for entry in before.manifest.shards}
    assert sum(e.n_trials for e in after.manifest.shards if e.digest not in kept) == 2
    build(project.root / "dataset.yaml", project.root / "plain")
    assert Store(project.root / "plain").fingerprint == after.fingerprint


# --- partitions -----------------------------------------------------------------------------------


def partitions(result: dg.ExecuteInProcessResult) -> list[str | None]:
    events = result.get_asset_materialization_events()
    found = [e.partition for e in events if e.asset_key.path[-1] == "trial_shards"]
    return sorted(found, key=str)


def test_one_partition_a_range_or_none_for_all(project: Project):
    assert project.run("catalog").success
    one = project.run("trial_shards", partition="b2")
    assert partitions(one) == ["b2"]
    told = metadata_of(one, "trial_shards", "b2")
    assert not [name for name in told if name.startswith("run_")]
    some = project.run("trial_shards", tags=range_of(1, 2))
    assert partitions(some) == ["b1", "b2"]
    reused = {p: metadata_of(some, "trial_shards", p)["reused"] for p in ("b1", "b2")}
    assert reused == {"b1": False, "b2": True}
    every = project.run("trial_shards")
    assert every.success
    events = every.get_asset_materialization_events()
    named = {e.partition for e in events if e.partition is not None}
    assert named == {"b0", "b1", "b2", "b3"}
    assert project.instance.get_materialized_partitions(
        dg.AssetKey(["trials", "trial_shards"])
    ) == {"b0", "b1", "b2", "b3"}
    assert project.run("training_set").success


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="Dagster takes one data version for all partitions of a range",
)
def test_the_data_version_of_a_partition_does_not_depend_on_the_others_of_its_run(
    project: Project,
):
    project.run("catalog")
    alone = project.run("trial_shards", partition="b2")
    together = project.run("trial_shards", tags=project.room.all_buckets)
    assert data_version(alone, "trial_shards", "b2") == data_version(together, "trial_shards", "b2")


def test_a_run_over_all_without_partition_tells_the_data_version_of_each(project: Project):
    project.run("catalog")
    every = project.run("trial_shards")
    told = {f"b{i}": data_version(every, "trial_shards", f"b{i}") for i in range(4)}
    alone = {b: data_version(project.run("trial_shards", partition=b), "trial_shards", b)
             for b in ("b1", "b2")}  # fmt: skip
    assert alone == {b: told[b] for b in alone}
    assert len(set(told.values())) == 4


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="the MaterializeResult counts as one more"
)
def test_a_run_over_all_without_partition_materializes_no_nameless_one(project: Project):
    project.run("catalog")
    assert None not in partitions(project.run("trial_shards"))


@pytest.mark.parametrize(("buckets", "n"), [(1, 1), (3, 4), ("auto", 8)])
def test_any_number_of_buckets_that_the_specification_allows_builds(
    project: Project, buckets: int | str, n: int
):
    """The catalog rounds up to a power of two, and so do the partitions."""
    project.change(shards={"buckets": buckets})
    result = project.run(*BUILT, tags=project.room.all_buckets)
    assert result.success, messages(result)
    assert set(partitions(result)) == {f"b{i}" for i in range(n)}


def test_a_catalog_of_another_bucket_count_says_what_to_do(project: Project):
    project.run("catalog")
    project.change(shards={"buckets": 8})
    result = project.run("trial_shards", partition="b1")
    assert not result.success
    said = messages(result)
    assert "no catalog " in said
    assert "Materialize the asset 'catalog' first" in said
    assert project.run("catalog").success
    assert project.run("trial_shards", partition="b1").success


# --- failures and what comes after ----------------------------------------------------------------


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once."""
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda *_: 0)


@pytest.mark.usefixtures("no_delay")
def test_a_failing_bucket_stops_no_other_and_can_be_built_alone(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    project.run("catalog")
    bad = {f.trial_id for f in project.room.space.catalog().files if f.bucket == 2}
    write = buckets_module.write_members

    def failing(store, members, form):
        if bad & {member.batch.rows["id"][member.number].as_py() for member in members}:
            raise OSError(28, "No space left on device")
        return write(store, members, form)

    with monkeypatch.context() as broken:
        broken.setattr(buckets_module, "write_members", failing)
        result = project.run("trial_shards", "training_set", tags=project.room.all_buckets)
    assert not result.success
    said = messages(result)
    assert "1 of 4 buckets failed: b2: OSError: [Errno 28] No space left on device" in said
    assert "Materialize the partitions b2 again" in said
    key = dg.AssetKey(["trials", "trial_shards"])
    assert project.instance.get_materialized_partitions(key) == {"b0", "b1", "b3"}
    for partition in ("b0", "b1", "b3"):
        wanted = dg.AssetRecordsFilter(key, asset_partitions=[partition])
        (record,) = project.instance.fetch_materializations(wanted, limit=1).records
        told = {name: value.value for name, value in record.asset_materialization.metadata.items()}
        assert told["files"] == told["trials"] + told["quarantined"]
        assert told["dagster/row_count"] > 0
    assert "training_set" not in materialized(result)

    early = project.run("training_set")
    assert not early.success
    assert "b2 not built for this specification" in messages(early)
    assert "Materialize the partitions b2 of trial_shards" in messages(early)
    assert not list_versions(project.root / "store")

    assert project.run("trial_shards", partition="b2").success
    late = project.run("training_set")
    assert late.success
    assert all(outcomes(late).values())
    build(project.root / "dataset.yaml", project.root / "plain")
    assert snapshot(project.root / "plain") == snapshot(project.root / "store")


@pytest.mark.usefixtures("no_delay")
def test_a_bucket_that_fails_once_is_built_by_the_retry(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    project.run("catalog")
    write, left = buckets_module.write_members, [1]

    def failing(store, members, form):
        if left and left.pop():
            raise OSError("once")
        return write(store, members, form)

    monkeypatch.setattr(buckets_module, "write_members", failing)
    result = project.run("trial_shards", tags=project.room.all_buckets)
    assert result.success
    assert set(partitions(result)) == {"b0", "b1", "b2", "b3"}


@pytest.mark.parametrize("asset", ["trial_shards", "training_set"])
def test_without_a_catalog_the_message_says_what_to_do(project: Project, asset: str):
    result = project.run(asset, partition="b0" if asset == "trial_shards" else None)
    assert not result.success
    assert "Materialize the asset 'catalog' first" in messages(result)


def test_the_catalog_without_raw_files_says_how_to_get_them(tmp_path: Path):
    project = Project(tmp_path, source={"obtain": "Run generate.py in this folder."})
    result = project.run("catalog")
    assert not result.success
    assert "How to get them: Run generate.py in this folder." in messages(result)


def test_too_many_refused_files_publish_nothing_and_train_nothing(project: Project, training):
    project.run(*BUILT, tags=project.room.all_buckets)
    before = snapshot(project.root / "store" / "versions")
    for n in range(9):
        (project.root / "raw" / f"bad{n}.csv").write_text(BROKEN)
    result = project.run(*ASSETS, tags=project.room.all_buckets)
    assert not result.success
    assert outcomes(result) == dict.fromkeys(DRAFT_CHECKS, True) | {"quarantine_share": False}
    checks = {e.check_name: e for e in result.get_asset_check_evaluations()}
    refused = checks.pop("quarantine_share")
    assert refused.severity == dg.AssetCheckSeverity.ERROR
    assert "10 of 22 files were refused" in refused.description
    listed = refused.metadata["details"].value
    assert listed.startswith("10 of 22 files were refused")
    assert listed.count("\n- raw/") == 10
    assert not any("details" in check.metadata for check in checks.values())
    said = messages(result)
    assert "quarantine_share: 10 of 22 files were refused" in said
    assert "conservation: " not in said
    assert "\nThe checks of a published version were not made." in said
    assert materialized(result) == ["catalog", "trial_shards"]
    assert snapshot(project.root / "store" / "versions") == before
    assert training == []


def test_a_failed_commit_is_not_tried_again(project: Project):
    project.change(max_quarantined=0)
    result = project.run(*BUILT, tags=project.room.all_buckets)
    assert [step for step in failed_steps(result) if "training_set" in step] == [
        "trials__training_set"
    ]
    assert not any(event.is_step_up_for_retry for event in result.all_events)


def test_the_whole_graph_trains_and_evaluates_after_the_checks(project: Project, training):
    result = project.run(*ASSETS, tags=project.room.all_buckets)
    assert result.success, messages(result)
    assert materialized(result) == list(ASSETS)
    train = str(project.root / "train.yaml")
    assert training == [("train", train, "--renew", "--no-evaluate"), ("evaluate", train)]
    told = metadata_of(result, "trained_lstm")
    assert told["loss"] == 0.5
    assert told["run_folder"] == str(project.root / "run")
    order = [e.step_key for e in result.all_events if e.is_step_success]
    checks = [i for i, key in enumerate(order) if key.startswith("trials__training_set_")]
    assert len(checks) == len(STORE_CHECKS)
    assert max(checks) < order.index("trials__trained_lstm")


def flip_a_value(project: Project) -> str:
    """Change one bit of a stored value; return the shard's digest."""
    store = Store(project.root / "store")
    path = store.chunk_file(0, "values")
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    return store.manifest.shards[0].digest


def test_a_damaged_version_blocks_training(project: Project, training):
    build(project.root / "dataset.yaml", project.root / "store")
    digest = flip_a_value(project)
    result = project.run_checks_and("trained_lstm")
    assert outcomes(result) == dict.fromkeys(STORE_CHECKS, True) | {"verify": False}
    (verify,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "verify"]
    assert digest in verify.description
    assert training == []
    assert not result.success
    assert "trained_lstm" not in materialized(result)


def test_a_check_that_cannot_read_the_version_blocks_training(project: Project, training):
    build(project.root / "dataset.yaml", project.root / "store")
    index = Store(project.root / "store").folder / "index.arrow"
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    index.write_bytes(content)
    result = project.run_checks_and("trained_lstm")
    assert not result.success
    assert "index.arrow is not a usable hot index" in messages(result)
    assert training == []


def test_a_warning_does_not_block_training(project: Project, training):
    """Equal recordings in two splits."""
    for n in range(12):  # enough copies to lie on both sides
        write_trial(project.root, f"copy{n}", TRIAL)
    result = project.run(*ASSETS[:4], tags=project.room.all_buckets)
    assert outcomes(result)["leak_audit"] is False
    (leak,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "leak_audit"]
    assert leak.severity == dg.AssetCheckSeverity.WARN
    assert "byte for byte" in leak.description
    assert result.success
    assert training


def test_nothing_to_train_on_blocks_training(project: Project, training):
    project.change(windows={"length": 500, "short": "drop"})
    result = project.run(*ASSETS[:4], tags=project.room.all_buckets)
    assert outcomes(result)["windows_add_up"] is False
    assert training == []
    assert "trained_lstm" not in materialized(result)


def test_training_can_start_over(project: Project, training):
    defs = project.defs()
    dg.materialize(
        list(defs.assets or ()),
        selection=dg.AssetSelection.assets(["trials", "trained_lstm"]),
        instance=project.instance,
        run_config={"ops": {"trials__trained_lstm": {"config": {"fresh": True}}}},
    )
    assert training[0][2] == "--fresh"


# --- odd data sets must not fail after their version was published --------------------------------

ODD = {
    "classes, rows dropped": {
        "source": {"trial_id": r"(?P<kind>g\d)/t\d+"},
        "windows": {"target": {"kind": "per_trial", "attribute": "kind", "channels": None}},
        "clean": {"missing": "drop", "then": "drop"},
    },
    "per step, no normalization, no train": {
        "channels": ["x"],
        "windows": {"target": {"kind": "per_step", "columns": ["y"], "channels": None}},
        "normalize": {"method": "none"},
        "split": {"method": "exact", "fractions": {"test": 1.0}},
    },
}


@pytest.mark.parametrize("sections", ODD.values(), ids=ODD)
def test_the_metadata_of_odd_versions_can_be_made(drawn_project: Project, sections):
    drawn_project.change(**sections)
    result = drawn_project.run(*BUILT, tags=drawn_project.room.all_buckets)
    assert "training_set" in materialized(result), messages(result)


def test_one_trial_of_one_row_builds(tmp_path: Path):
    write_trial(tmp_path, "only", {"x": [1.0], "y": [float("nan")]})
    project = Project(tmp_path, shards={"buckets": 1})
    result = project.run(*BUILT, tags=project.room.all_buckets)
    assert "training_set" in materialized(result), messages(result)


def test_metadata_are_json(first):
    """Facts of checks are plain numbers and texts: numpy's would fail in the event log."""
    _, result = first
    for evaluation in result.get_asset_check_evaluations():
        json.dumps({name: value.value for name, value in evaluation.metadata.items()})
