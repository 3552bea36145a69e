"""When runs start: the sensor over real files, and the schedule."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from roomfolders import BUILT, Project, draw_nothing
from trialfolders import csv_text, write_trial, write_trials

from pipeline.build import build
from pipeline.commit import Work, commit_version
from pipeline.ledger import listing_digest
from pipeline.orchestration import triggers as triggers_module
from pipeline.orchestration.triggers import watch_files
from pipeline.watch import Watch
from shards import Store

TRIAL = {"x": [1.0, 2.0, 3.0], "y": [2.0, 1.0, 4.0]}
QUIET = 60


class Clock:
    """The time that the sensor reads."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now


class Watcher:
    """The sensor of a project, looked at now and then, its cursor kept as Dagster keeps it."""

    def __init__(self, project: Project, clock: Clock) -> None:
        (self.sensor,) = project.defs(quiet_seconds=QUIET).sensors
        self.clock, self.cursor, self.instance = clock, None, project.instance

    def look(self, wait: float = 10) -> list[dg.RunRequest]:
        self.clock.now += wait
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        data = self.sensor.evaluate_tick(context)
        self.cursor, self.reason = data.cursor, data.skip_message
        assert bool(data.run_requests) != bool(data.skip_message)
        return list(data.run_requests)

    def settle(self) -> list[dg.RunRequest]:
        """Look until nothing can be pending any more."""
        return [*self.look(), *self.look(QUIET), *self.look(QUIET)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(triggers_module, "time", made)
    return made


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    draw_nothing(monkeypatch)
    write_trials(tmp_path, 6)
    return Project(tmp_path)


@pytest.fixture
def watcher(project: Project, clock: Clock) -> Watcher:
    """One that has seen the first files."""
    made = Watcher(project, clock)
    assert len(made.settle()) == 1
    return made


# --- the sensor -----------------------------------------------------------------------------------


def test_files_of_a_fresh_project_start_one_run_after_the_quiet_time(
    project: Project, clock: Clock
):
    watcher = Watcher(project, clock)
    assert watcher.look() == []
    assert watcher.reason == "Files are still changing."
    assert watcher.look(QUIET - 1) == []
    (request,) = watcher.look(1)
    assert request.tags["dagster/asset_partition_range_start"] == "b0"
    assert request.tags["dagster/asset_partition_range_end"] == "b3"
    assert request.tags["trialshards/dataset"] == "trials"
    assert watcher.look() == []
    assert watcher.reason == "Nothing changed."


def add(root: Path) -> None:
    write_trial(root, "g0/new", TRIAL)


def change(root: Path) -> None:
    path = next((root / "raw").rglob("*.csv"))
    path.write_text(csv_text(TRIAL))
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))


def remove(root: Path) -> None:
    next((root / "raw").rglob("*.csv")).unlink()


def rename(root: Path) -> None:
    path = next((root / "raw").rglob("*.csv"))
    path.rename(path.with_name("renamed.csv"))


def add_bad_name(root: Path) -> None:
    (root / "raw" / "folder.csv").mkdir()


@pytest.mark.parametrize("move", [add, change, remove, rename, add_bad_name])
def test_each_kind_of_change_starts_exactly_one_run(project: Project, watcher: Watcher, move):
    assert watcher.settle() == []
    move(project.root)
    assert watcher.look() == []
    assert len(watcher.look(QUIET)) == 1
    assert watcher.settle() == []


def test_a_file_that_is_no_trial_starts_none(project: Project, watcher: Watcher):
    (project.root / "raw" / "notes.txt").write_text("x")
    (project.root / "raw" / ".hidden.csv").write_text("x")
    assert watcher.settle() == []


def test_while_files_are_copied_no_run_starts(project: Project, watcher: Watcher):
    for n in range(10):
        write_trial(project.root, f"copied{n}", TRIAL)
        assert watcher.look(QUIET - 1) == []
    assert len(watcher.look(QUIET)) == 1


def test_a_file_that_grows_waits(project: Project, watcher: Watcher):
    path = write_trial(project.root, "growing", TRIAL)
    for n in range(4):
        assert watcher.look(QUIET - 1) == []
        with path.open("a") as file:
            file.write("1,2\n" * (n + 1))
    assert watcher.look(1) == []
    assert len(watcher.look(QUIET)) == 1


def test_there_and_back_gives_two_runs_that_dagster_tells_apart(project: Project, watcher: Watcher):
    path = write_trial(project.root, "new", TRIAL)
    first = watcher.settle()
    path.unlink()
    second = watcher.settle()
    write_trial(project.root, "new", TRIAL)
    os.utime(path, ns=(5, 5))
    watcher.settle()
    path.unlink()
    third = watcher.settle()
    assert len(first) == len(second) == len(third) == 1
    # The files are the same in the second and the third.
    assert len({first[0].run_key, second[0].run_key, third[0].run_key}) == 3


def test_without_raw_files_the_sensor_says_how_to_get_them(tmp_path: Path, clock: Clock):
    project = Project(tmp_path, source={"obtain": "Run generate.py."})
    watcher = Watcher(project, clock)
    assert watcher.settle() == []
    assert "How to get them: Run generate.py." in watcher.reason
    write_trials(tmp_path, 3)
    assert len(watcher.settle()) == 1


def test_files_that_vanish_for_a_while_start_no_run(project: Project, watcher: Watcher):
    """A disk that is not mounted."""
    shutil.move(project.root / "raw", project.root / "away")
    assert watcher.settle() == []
    shutil.move(project.root / "away", project.root / "raw")
    assert watcher.settle() == []


def test_a_lost_cursor_starts_no_run_for_what_is_committed(project: Project, watcher: Watcher):
    assert project.run(*BUILT, tags=project.room.all_buckets).success
    watcher.cursor = None
    assert watcher.settle() == []
    watcher.cursor = None
    add(project.root)
    assert len(watcher.settle()) == 1


def test_a_lost_cursor_starts_one_run_where_nothing_was_committed(watcher: Watcher):
    watcher.cursor = None
    assert len(watcher.settle()) == 1


def test_a_cursor_of_another_release_does_not_stop_the_sensor(project: Project, watcher: Watcher):
    watcher.cursor = '{"built": "a", "seen": []}'
    add(project.root)
    assert len(watcher.settle()) == 1


def test_a_lost_cursor_starts_no_run_for_what_is_committed_and_refused(
    project: Project, watcher: Watcher
):
    (project.root / "raw" / "g0" / "broken.csv").write_text("x,y\n1,two\n")
    add_bad_name(project.root)
    assert project.run(*BUILT, tags=project.room.all_buckets).success
    watcher.cursor = None
    assert watcher.settle() == []


def test_a_lost_cursor_starts_no_run_after_a_build_that_read_one_file(
    project: Project, watcher: Watcher
):
    assert project.run(*BUILT, tags=project.room.all_buckets).success
    change(project.root)
    assert project.run(*BUILT, tags=project.room.all_buckets).success
    remove(project.root)
    assert project.run(*BUILT, tags=project.room.all_buckets).success
    watcher.cursor = None
    assert watcher.settle() == []


@pytest.mark.parametrize("name", ["dataset.json", "index.arrow", "quarantine.parquet"])
def test_a_lost_cursor_and_a_damaged_version_start_one_run(
    project: Project, clock: Clock, name: str
):
    build(project.root / "dataset.yaml", project.root / "store")
    (Store(project.root / "store").folder / name).write_bytes(b"junk")
    assert len(Watcher(project, clock).settle()) == 1


def test_a_lost_cursor_starts_one_run_where_another_specification_made_the_version(
    project: Project, clock: Clock
):
    build(project.root / "dataset.yaml", project.root / "store")
    project.change(channels=["x"])
    assert len(Watcher(project, clock).settle()) == 1


def test_a_repeated_look_asks_for_the_same_run(project: Project, clock: Clock):
    """The daemon was killed after the look and before it kept the cursor."""
    watcher = Watcher(project, clock)
    watcher.look()
    before = watcher.cursor
    (first,) = watcher.look(QUIET)
    watcher.cursor = before
    (again,) = watcher.look(7)
    assert again.run_key == first.run_key


def test_without_a_quiet_time_there_is_no_sensor(project: Project):
    """Its run keys would hold the time of the look, which a repeated look changes."""
    with pytest.raises(ValidationError, match="quiet_seconds"):
        project.defs(quiet_seconds=0)


@settings(max_examples=10)
@given(
    looks=st.lists(st.tuples(st.sampled_from("ABC"), st.integers(1, 90)), max_size=25),
    lost=st.sets(st.integers(0, 25), max_size=2),
)
def test_run_keys_never_repeat_and_each_run_is_for_other_files(tmp_path_factory, looks, lost):
    room = SHARED_ROOM.setdefault("room", Project(tmp_path_factory.mktemp("room")).room)
    cursor, now, keys, built = None, 1e6, [], ""
    for place, (listing, wait) in enumerate(looks):
        now += wait
        if place in lost:
            cursor, built = None, ""
        result = watch_files(room, cursor, listing, now, QUIET)
        cursor = result.cursor
        assert Watch.from_text(cursor)
        for request in result.run_requests or ():
            keys.append(request.run_key)
            assert request.run_key.startswith(f"{listing}-")
            assert listing != built
            built = listing
        assert bool(result.run_requests) != bool(result.skip_reason)
    assert len(keys) == len(set(keys))


SHARED_ROOM: dict[str, object] = {}


def test_the_committed_listing_is_what_the_sensor_sees(project: Project):
    space = project.room.space
    delta = space.delta(space.scan(), None)
    results = [space.build_bucket(delta, bucket) for bucket in range(4)]
    commit_version(space, Work(delta, results, base=None, after=None))
    result = watch_files(project.room, None, listing_digest(space.scan()), 0.0, 0.0)
    assert not result.run_requests
    assert result.skip_reason.skip_message == "Nothing changed."


def test_a_changed_attribute_table_starts_one_run(tmp_path: Path, clock: Clock):
    """Labels are part of what is built, although no raw file changes."""
    write_trials(tmp_path, 3)
    table = tmp_path / "labels.csv"
    table.write_text("id,kind\ng0/t00,1\ng1/t01,2\ng2/t02,2\n")
    attribute = {"table": "labels.csv", "trial_id": "{id}", "column": "kind"}
    project = Project(tmp_path, attributes={"kind": attribute})
    watcher = Watcher(project, clock)
    assert len(watcher.settle()) == 1
    table.write_text("id,kind\ng0/t00,2\ng1/t01,2\ng2/t02,2\n")
    assert len(watcher.settle()) == 1
    table.unlink()
    assert watcher.settle() == []
    assert "cannot read labels.csv" in watcher.reason


# --- the schedule ---------------------------------------------------------------------------------


def test_the_schedule_asks_for_all_partitions(project: Project):
    (schedule,) = project.defs(schedule="15 3 * * *", timezone="Europe/Berlin").schedules
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("15 3 * * *", "Europe/Berlin")
    with dg.build_schedule_context(instance=project.instance) as context:
        (request,) = schedule.evaluate_tick(context).run_requests
    assert request.tags == {**request.tags, **project.room.tags, **project.room.all_buckets}


def test_the_tags_of_the_schedule_run_the_whole_graph_as_one_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    """The job itself takes them: catalog, all partitions, version, in one run."""
    defs = project.defs()
    repository = defs.get_repository_def()
    names = [dg.AssetKey(["trials", name]) for name in BUILT]
    with dg.build_schedule_context(instance=project.instance, repository_def=repository) as context:
        (request,) = defs.schedules[0].evaluate_tick(context).run_requests
    job = repository.get_job("trials")
    result = job.execute_in_process(
        instance=project.instance, tags=request.tags, asset_selection=names, raise_on_error=False
    )
    assert result.success
    assert project.instance.get_materialized_partitions(names[1]) == {"b0", "b1", "b2", "b3"}


def test_an_empty_cron_means_no_schedule(project: Project):
    defs = project.defs(schedule="")
    assert list(defs.schedules) == []
    assert [sensor.name for sensor in defs.sensors] == ["trials_files"]


def test_the_sensor_looks_as_often_as_it_is_told(project: Project):
    (sensor,) = project.defs(watch_every_seconds=7).sensors
    assert sensor.minimum_interval_seconds == 7
    assert "60 s" in sensor.description
