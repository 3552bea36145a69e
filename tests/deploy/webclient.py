"""The few requests that the tests send to Dagster's webserver."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

LOCATION = "trialshards"
FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}
LAUNCH = """
mutation Launch($parameters: ExecutionParams!) {
  launchRun(executionParams: $parameters) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on Error { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
RUN = """
query Run($id: ID!) {
  runOrError(runId: $id) {
    __typename
    ... on Run { status startTime endTime tags { key value } }
    ... on Error { message }
  }
}
"""
FAILURES = """
query Failures($id: ID!) {
  runOrError(runId: $id) {
    ... on Run {
      eventConnection(limit: 1000) {
        events {
          ... on MessageEvent { message level }
          ... on ExecutionStepFailureEvent { error { message causes { message } } }
        }
      }
    }
  }
}
"""
LOCATIONS = """
query {
  workspaceOrError {
    ... on Workspace {
      locationEntries {
        name
        loadStatus
        locationOrLoadError { __typename ... on PythonError { message } }
      }
    }
  }
}
"""


def ask(url: str, query: str, **variables: Any) -> Any:
    """Send one GraphQL request and return its data."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"{url}/graphql", body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        answer = json.load(reply)
    assert "errors" not in answer, answer["errors"]
    return answer["data"]


def wait_for_locations(url: str, timeout_s: float = 90) -> list[str]:
    """Wait until every code location is loaded and return their names; fail if one cannot be."""
    deadline = time.monotonic() + timeout_s
    while True:
        entries = ask(url, LOCATIONS)["workspaceOrError"]["locationEntries"]
        if entries and all(entry["loadStatus"] == "LOADED" for entry in entries):
            states = [entry["locationOrLoadError"] for entry in entries]
            assert all(s["__typename"] == "RepositoryLocation" for s in states), states
            return [entry["name"] for entry in entries]
        assert time.monotonic() < deadline, entries
        time.sleep(0.5)


def launch(url: str, job: str, *, assets: Sequence[str] = (), location: str = LOCATION) -> str:
    """Put a job in the queue, whole or some of its assets (`robot_arm/catalog`); return its id."""
    selector: dict[str, Any] = {
        "repositoryLocationName": location,
        "repositoryName": "__repository__",
        "jobName": job,
    }
    if assets:
        selector["assetSelection"] = [{"path": key.split("/")} for key in assets]
    parameters = {"selector": selector, "runConfigData": {}}
    reply = ask(url, LAUNCH, parameters=parameters)["launchRun"]
    assert reply["__typename"] == "LaunchRunSuccess", reply
    return str(reply["run"]["runId"])


def run_of(url: str, run_id: str) -> dict[str, Any]:
    """Return status, times and tags of a run."""
    reply = ask(url, RUN, id=run_id)["runOrError"]
    assert reply["__typename"] == "Run", reply
    return dict(reply)


def wait_for_run(url: str, run_id: str, timeout_s: float = 120) -> dict[str, Any]:
    """Wait for the end of a run; fail with its error messages unless it succeeded."""
    deadline = time.monotonic() + timeout_s
    while (run := run_of(url, run_id))["status"] not in FINISHED:
        assert time.monotonic() < deadline, f"{run}\n{failures_of(url, run_id)}"
        time.sleep(0.5)
    assert run["status"] == "SUCCESS", failures_of(url, run_id)
    return run


def failures_of(url: str, run_id: str) -> str:
    """Return what a run complains about, and its last messages."""
    run = ask(url, FAILURES, id=run_id)["runOrError"]
    events = run.get("eventConnection", {}).get("events", [])
    errors = [json.dumps(event["error"]) for event in events if event.get("error")]
    messages = [f"{e['level']} {e['message']}" for e in events if e.get("message")]
    return "\n".join(errors + messages[-15:])
