"""What all definitions of one data set share: its files, names, tags and partitions."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import dagster as dg

from pipeline.catalog import count_buckets
from pipeline.versions import STAGES
from pipeline.workspace import Workspace, bucket_key
from shards.writer import newest_version
from training.config import TrainConfig

AUTO_BUCKETS = 8
"""Partitions of a specification that says `buckets: auto`: they must be known before any file is
listed, and a few suit every size."""

DATASET_TAG = "trialshards/dataset"
"""Run tag that an instance can limit to one run per data set at a time."""


@dataclass(frozen=True)
class Room:
    """One data set as Dagster sees it.

    Attributes:
        space: Where it is built.
        spec_path: Its `dataset.yaml`.
        train_path: Its training configuration.
        config: The training configuration, read.
        owner: Who is asked, `team:name` or an e-mail address.
    """

    space: Workspace
    spec_path: Path
    train_path: Path
    config: TrainConfig
    owner: str

    @classmethod
    def open(cls, spec_path: Path, train_path: Path, *, owner: str) -> "Room":
        """Read both files.

        Raises:
            InvalidSpecError: If one of them is wrong; the message names file and line.
        """
        config = TrainConfig.read(train_path)
        space = Workspace.open(spec_path, config.store, auto_buckets=AUTO_BUCKETS)
        return cls(space, spec_path, train_path, config, owner)

    @property
    def name(self) -> str:
        """Name of the data set: the group, the key prefix and the job."""
        return self.space.spec.name

    @property
    def n_buckets(self) -> int:
        """Partitions of `trial_shards`."""
        return count_buckets(0, self.space.spec.shards.buckets)

    @property
    def partitions(self) -> dg.StaticPartitionsDefinition:
        """One partition per bucket."""
        return dg.StaticPartitionsDefinition([bucket_key(i) for i in range(self.n_buckets)])

    @property
    def all_buckets(self) -> dict[str, str]:
        """Tags of a run over all partitions at once."""
        return {
            "dagster/asset_partition_range_start": bucket_key(0),
            "dagster/asset_partition_range_end": bucket_key(self.n_buckets - 1),
        }

    @property
    def pool(self) -> str:
        """Pool of the steps that write the store: of limit 1, however their runs were started."""
        return f"{self.name}_store"

    @property
    def tags(self) -> dict[str, str]:
        """Tags of every run."""
        return {DATASET_TAG: self.name}

    def key(self, asset: str) -> dg.AssetKey:
        """Return the key of one of its assets."""
        return dg.AssetKey([self.name, asset])

    def asset(
        self, name: str, *kinds: str, **more: Any
    ) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        """Return the decorator of one of its assets, with what all of them have in common."""
        decorator = dg.asset(
            key=self.key(name),
            kinds=set(kinds),
            group_name=self.name,
            owners=[self.owner],
            # One policy for all, so that a range of partitions runs as one run.
            backfill_policy=dg.BackfillPolicy.single_run(),
            **more,
        )
        return cast("Callable[[Callable[..., Any]], dg.AssetsDefinition]", decorator)

    def newest_version(self) -> str | None:
        """Return the newest committed version of the store."""
        return newest_version(self.space.store)


def pipeline_code_version() -> str:
    """Return what changes when a stage of the pipeline changes what it makes."""
    return "-".join(f"{name}{number}" for name, number in STAGES.items())


def training_code_version() -> str:
    """Return the version of the package: training has no finer one."""
    return version("trialshards")
