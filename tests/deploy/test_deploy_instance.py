"""Dagster itself reads dagster.yaml as it was meant."""

from pathlib import Path

import pytest
import yaml
from composefile import ROOT, changed, load
from dagster import DagsterInstance, DagsterInvalidConfigError

INSTANCE = load(ROOT / "deploy" / "dagster.yaml")
LOCAL = load(ROOT / "deploy" / "local" / "dagster.yaml")


def instance_of(settings: dict, folder: Path) -> DagsterInstance:
    """Load dagster.yaml by Dagster, with files in place of a PostgreSQL server."""
    local = settings | {"storage": {"sqlite": {"base_dir": str(folder / "db")}}}
    (folder / "dagster.yaml").write_text(yaml.safe_dump(local))
    return DagsterInstance.from_config(str(folder))


def test_dagster_loads_its_file(tmp_path):
    with instance_of(INSTANCE, tmp_path) as instance:
        queue = instance.get_concurrency_config().run_queue_config
        assert queue.max_concurrent_runs == 4
        assert queue.tag_concurrency_limits == [
            {"key": "trialshards/dataset", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
        ]
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 1
        assert type(instance.run_launcher).__name__ == "DefaultRunLauncher"
        assert instance.run_monitoring_enabled
        assert instance.run_retries_enabled
        assert not instance.nux_enabled
        assert not instance.telemetry_enabled


def test_make_ui_has_the_same_limits(tmp_path):
    with instance_of(LOCAL, tmp_path) as instance:
        assert not instance.nux_enabled
        assert not instance.telemetry_enabled
    for document in (INSTANCE, LOCAL):
        (limit,) = document["concurrency"]["runs"]["tag_concurrency_limits"]
        assert limit == LOCAL["concurrency"]["runs"]["tag_concurrency_limits"][0]
        assert document["concurrency"]["pools"] == LOCAL["concurrency"]["pools"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("run_monitoring.strat_timeout_seconds", 5),
        ("concurrency.pools.limit", 1),
        ("concurrency.runs.tag_concurrency_limits.0.limit", "one"),
        ("telemetry.enabled", "no, thanks"),
    ],
)
def test_dagster_notices(tmp_path, path, value):
    with pytest.raises(DagsterInvalidConfigError):
        instance_of(changed(INSTANCE, path, value), tmp_path).run_coordinator  # noqa: B018
