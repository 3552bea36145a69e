"""The compose file's own commands and health checks, run as processes with a real PostgreSQL.

No container engine is needed: hosts, ports and folders are replaced, everything else is as it is
deployed. One stack serves all tests, in the order of the file.
"""

from __future__ import annotations

import os
import subprocess

import psycopg2
import pytest
from database import find_postgres
from processes import wait_until
from sampleproject import make_project
from servers import Stack, compose_stack
from webclient import ask, launch, run_of, wait_for_locations, wait_for_run

from shards import Store
from shards.verify import verify_store

pytestmark = pytest.mark.skipif(
    find_postgres() is None,
    reason="no PostgreSQL: neither initdb in PATH nor /usr/lib/postgresql/*/bin "
    "(Debian: apt-get install postgresql)",
)
LONG = pytest.mark.skipif(
    not os.environ.get("SOAK"), reason="half a minute of waiting; SOAK=1 waits"
)
CAPTURED = """
query Captured($id: ID!) {
  logsForRun(runId: $id) { ... on EventConnection { events { ... on LogsCapturedEvent {
    fileKey } } } }
}
"""
LOGS = "query Logs($key: [String!]!) { capturedLogs(logKey: $key) { stderr } }"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deploy")
    project = make_project(folder / "project")
    with compose_stack(project, folder / "home") as started:
        yield started


@pytest.fixture(scope="module")
def finished_run(stack):
    """The whole job: every bucket, the version, a short training, its evaluation."""
    run_id = launch(stack.url, "robot_arm")
    return run_id, wait_for_run(stack.url, run_id, timeout_s=180)


def connect(stack: Stack, **changes: str) -> psycopg2.extensions.connection:
    """Connect to PostgreSQL itself with what Dagster is given."""
    environ = stack.environ("webserver")
    keys = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD", "dbname": "DB"}
    address = {key: environ[f"DAGSTER_POSTGRES_{name}"] for key, name in keys.items()}
    return psycopg2.connect(**(address | changes))


def select(stack: Stack, query: str, *parameters: str, database: str = "dagster") -> list[tuple]:
    connection = connect(stack, dbname=database)
    try:
        with connection.cursor() as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall()
    finally:
        connection.close()


def test_all_services_are_healthy(stack):
    names = ("postgres", "code", "webserver", "daemon")
    assert [name for name in names if not stack.is_healthy(name)] == []
    assert wait_for_locations(stack.url) == ["trialshards"]


def test_the_database_wants_the_password(stack):
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        connect(stack, password="dagster")


def test_a_job_builds_a_store_and_trains(stack, finished_run):
    _, run = finished_run
    assert {"key": "trialshards/dataset", "value": "robot_arm"} in run["tags"]
    store = stack.project_root / "data" / "robot_arm" / "store"
    assert [str(problem) for problem in verify_store(store)] == []
    assert Store(store).manifest.counts["trials"] == 60
    assert list((stack.project_root / "runs" / "robot_arm").glob("*.ckpt"))


def test_runs_and_events_are_in_postgresql(stack, finished_run):
    run_id, _ = finished_run
    assert select(stack, "select status from runs where run_id = %s", run_id) == [("SUCCESS",)]
    kinds = dict(
        select(
            stack,
            "select dagster_event_type, count(*) from event_logs where run_id = %s group by 1",
            run_id,
        )
    )
    assert kinds["PIPELINE_SUCCESS"] == 1
    assert kinds["ASSET_MATERIALIZATION"] >= 5
    assert not list(stack.home.rglob("*.db"))


def test_a_dump_brings_the_history_back(stack, finished_run, tmp_path):
    """With the options that deploy/README.md names."""
    settings, programs = stack.environ("webserver"), find_postgres()
    user = settings["DAGSTER_POSTGRES_USER"]
    environ = {"PGPASSWORD": settings["DAGSTER_POSTGRES_PASSWORD"]}
    where = ["-h", "127.0.0.1", "-p", settings["DAGSTER_POSTGRES_PORT"], "-U", user]

    def call(program: str, *options: str) -> None:
        subprocess.run([programs / program, *where, *options], env=environ, check=True)

    dump = str(tmp_path / "dagster.dump")
    call("pg_dump", "--dbname=dagster", "--format=custom", f"--file={dump}")
    call("createdb", "restored")
    call("pg_restore", "--dbname=restored", "--clean", "--if-exists", dump)
    count = "select count(*) from event_logs where run_id = %s"
    (there,), (here,) = (
        select(stack, count, finished_run[0], database=name)[0] for name in ("restored", "dagster")
    )
    assert there == here > 0


def test_the_webserver_shows_what_the_steps_printed(stack, finished_run):
    run_id, _ = finished_run
    events = ask(stack.url, CAPTURED, id=run_id)["logsForRun"]["events"]
    key = next(event["fileKey"] for event in events if event)
    logs = ask(stack.url, LOGS, key=[run_id, "compute_logs", key])["capturedLogs"]
    assert "robot_arm__trained_lstm" in logs["stderr"]


@LONG
def test_the_queue_outlives_the_daemon_and_runs_one_per_data_set(stack, finished_run):
    assert stack.stop("daemon")
    ids = [launch(stack.url, "robot_arm", assets=["robot_arm/catalog"]) for _ in range(2)]
    assert [run_of(stack.url, run_id)["status"] for run_id in ids] == ["QUEUED", "QUEUED"]
    stack.start("daemon")
    first, second = sorted(
        (wait_for_run(stack.url, run_id) for run_id in ids), key=lambda run: run["startTime"]
    )
    assert first["endTime"] <= second["startTime"]
    assert run_of(stack.url, finished_run[0])["status"] == "SUCCESS"


def test_no_log_tells_the_password(stack, finished_run):
    password = stack.environ("daemon")["DAGSTER_POSTGRES_PASSWORD"]
    said = [stack.log(name) for name in ("code", "webserver", "daemon")]
    assert not [text for text in [*said, stack.run_once("migrate")] if password in text]


@LONG
def test_a_stopped_code_server_waits_for_its_run(stack, finished_run):
    run_id = launch(stack.url, "robot_arm", assets=["robot_arm/trained_lstm"])
    wait_until(lambda: run_of(stack.url, run_id)["status"] == "STARTED", "training started")
    assert stack.stop("code")
    assert run_of(stack.url, run_id)["status"] == "SUCCESS"


def test_the_webserver_ends_when_asked(stack):
    assert stack.stop("webserver")
