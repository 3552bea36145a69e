"""A data set in a folder of its own, as Dagster sees it, and runs of it in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from trialfolders import write_spec

from pipeline import pictures as pictures_module
from pipeline.component import TrialDataset
from pipeline.orchestration.room import Room

ASSETS = ("catalog", "trial_shards", "training_set", "trained_lstm", "evaluation")
DRAFT_CHECKS = ("quarantine_share", "conservation", "ids_unique", "splits_disjoint")
STORE_CHECKS = ("windows_add_up", "finite", "leak_audit", "verify")
BUILT = ASSETS[:3]


class Project:
    """A project root with one data set `trials`, its definitions, and an instance."""

    def __init__(self, root: Path, **sections: Any) -> None:
        self.root = root
        write_spec(root, **{"shards": {"buckets": 4}, "max_quarantined": 0.3, **sections})
        (root / "train.yaml").write_text("store: store\nout: run\n")
        self.instance = dg.DagsterInstance.ephemeral()

    def change(self, **sections: Any) -> None:
        """Write another dataset.yaml; definitions are made anew for each use."""
        write_spec(self.root, **{"shards": {"buckets": 4}, "max_quarantined": 0.3, **sections})

    @property
    def room(self) -> Room:
        """What the definitions of the data set share."""
        return Room.open(self.root / "dataset.yaml", self.root / "train.yaml", owner="team:data")

    def defs(self, **options: Any) -> dg.Definitions:
        """Return what the component makes of the two files."""
        component = TrialDataset(dataset="dataset.yaml", training="train.yaml", **options)
        return component.build_defs(SimpleNamespace(project_root=self.root))  # all that it reads

    def run(
        self,
        *assets: str,
        partition: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Materialize assets, with their checks, and never raise."""
        keys = [dg.AssetKey(["trials", name]) for name in assets]
        defs = self.defs()
        return dg.materialize(
            [*(defs.assets or ()), *(defs.asset_checks or ())],
            selection=dg.AssetSelection.assets(*keys),
            instance=self.instance,
            partition_key=partition,
            tags=tags,
            raise_on_error=False,
        )

    def run_checks_and(self, *assets: str) -> dg.ExecuteInProcessResult:
        """Run the checks of the published version and then some assets, building nothing."""
        keys = [dg.AssetKey(["trials", name]) for name in assets]
        training_set = dg.AssetKey(["trials", "training_set"])
        defs = self.defs()
        checks = dg.AssetSelection.checks(
            *(dg.AssetCheckKey(training_set, name) for name in STORE_CHECKS)
        )
        return dg.materialize(
            [*(defs.assets or ()), *(defs.asset_checks or ())],
            selection=checks | dg.AssetSelection.assets(*keys) if keys else checks,
            instance=self.instance,
            raise_on_error=False,
        )


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the second that the pictures of a version cost."""
    for name in ("length_histogram", "missing_map", "sample_windows", "before_after"):
        monkeypatch.setattr(pictures_module, name, lambda _: b"png")


def range_of(first: int, last: int) -> dict[str, str]:
    """Return the tags of a run over partitions."""
    return {
        "dagster/asset_partition_range_start": f"b{first}",
        "dagster/asset_partition_range_end": f"b{last}",
    }


def materialized(result: dg.ExecuteInProcessResult) -> list[str]:
    """Return the assets that a run materialized, each once, in order."""
    events = result.get_asset_materialization_events()
    return list(dict.fromkeys(event.asset_key.path[-1] for event in events))


def metadata_of(
    result: dg.ExecuteInProcessResult, asset: str, partition: str | None = None
) -> dict[str, Any]:
    """Return the metadata of the last materialization of an asset in a run."""
    events = [
        event.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key.path[-1] == asset and event.partition == partition
    ]
    return {name: value.value for name, value in events[-1].metadata.items()}


def outcomes(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    """Return which checks passed."""
    found = result.get_asset_check_evaluations()
    return {evaluation.check_name: evaluation.passed for evaluation in found}


def messages(result: dg.ExecuteInProcessResult) -> str:
    """Return everything that failed steps say."""
    texts: list[str] = []
    for event in result.all_events:
        error = getattr(event.event_specific_data, "error", None)
        while error is not None:
            texts.append(error.message)
            error = error.cause
    return "\n".join(texts)


def failed_steps(result: dg.ExecuteInProcessResult) -> Sequence[str]:
    """Return the steps that failed."""
    return [event.step_key for event in result.all_events if event.is_step_failure]
