"""The five assets of a data set; each opens, calls a function, and reports."""

from collections.abc import Iterator

import dagster as dg

from pipeline.commit import Work, commit_version
from pipeline.ledger import listing_digest
from pipeline.orchestration import metadata
from pipeline.orchestration.buckets import build_partitions
from pipeline.orchestration.checks import DRAFT_CHECKS, check_result
from pipeline.orchestration.room import Room, pipeline_code_version, training_code_version
from pipeline.orchestration.studymetadata import with_study
from pipeline.orchestration.subprocesses import run_command
from shards.leases import building
from shards.reader import Store


class TrainingOptions(dg.Config):
    """How to train; everything else is in the training configuration."""

    fresh: bool = False
    """Start over even if a run of the same data and configuration can go on or is finished."""


def catalog_asset(room: Room) -> dg.AssetsDefinition:
    """Return the asset `catalog`."""

    @room.asset(
        "catalog",
        "file",
        description=(
            "Which raw files there are: one per trial, found and identified without opening any "
            "of them, and compared with what the last version was built from. "
            f"{room.space.spec.source.obtain}"
        ),
        code_version=pipeline_code_version(),
    )
    def catalog(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        found = room.space.scan()
        changes = room.space.delta(found, room.space.base()).changes
        context.log.info("%s files: %s since the last version", f"{found.n_files:,}", changes)
        return dg.MaterializeResult(
            metadata=metadata.of_catalog(found, changes),
            data_version=dg.DataVersion(listing_digest(found)),
        )

    return catalog


def trial_shards_asset(room: Room) -> dg.AssetsDefinition:
    """Return the asset `trial_shards`, partitioned by bucket."""

    @room.asset(
        "trial_shards",
        "zarr",
        "parquet",
        description=(
            "Cleaned and normalized trials as immutable, memory-mapped Zarr shards. A partition "
            "is a bucket: the files whose path hashes to it. A file that cannot be read is "
            "quarantined with line and advice; only new and changed files are read."
        ),
        code_version=pipeline_code_version(),
        deps=[room.key("catalog")],
        partitions_def=room.partitions,
        retry_policy=dg.RetryPolicy(max_retries=1, delay=2),
        pool=room.pool,
    )
    def trial_shards(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        built = build_partitions(context, room)
        return dg.MaterializeResult(
            metadata=metadata.of_buckets(built),
            data_version=dg.DataVersion(metadata.digest_of(room, built)),
        )

    return trial_shards


def training_set_asset(room: Room) -> dg.AssetsDefinition:
    """Return the asset `training_set`."""

    @room.asset(
        "training_set",
        "zarr",
        "parquet",
        description=(
            "A version of the data set, published whole or not at all: all buckets merged, trials "
            "split before any window is cut, statistics fitted on train trials alone. Open it "
            "with TrialStream(store)."
        ),
        code_version=pipeline_code_version(),
        deps=[room.key("trial_shards")],
        pool=room.pool,
        check_specs=[spec.for_asset(room.key("training_set")) for spec in DRAFT_CHECKS],
    )
    def training_set(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
        space = room.space
        with building(space.store):
            after, base = room.newest_version(), space.base()
            delta = space.delta(space.catalog(), base)
            commit = commit_version(space, Work(delta, space.staged_buckets(delta), base, after))
        yield from (check_result(finding, room.key("training_set")) for finding in commit.findings)
        if commit.version is None:
            raise dg.Failure(metadata.failed_findings(commit.findings), allow_retries=False)
        context.log.info("%s: %s", commit.version, "published" if commit.published else "unchanged")
        store = Store(room.space.store, commit.version)
        yield dg.MaterializeResult(
            metadata=metadata.of_version(room, store, commit),
            data_version=dg.DataVersion(store.fingerprint),
        )

    return training_set


def trained_lstm_asset(room: Room) -> dg.AssetsDefinition:
    """Return the asset `trained_lstm`."""

    @room.asset(
        "trained_lstm",
        "pytorch",
        description=(
            "An LSTM trained on the newest version by a process of its own, whose losses appear "
            "in the log. Stopping the run saves a checkpoint; running again goes on there."
        ),
        code_version=training_code_version(),
        deps=[room.key("training_set")],
        pool="gpu",
    )
    def trained_lstm(
        context: dg.AssetExecutionContext, config: TrainingOptions
    ) -> dg.MaterializeResult:
        start = "--fresh" if config.fresh else "--renew"
        result = run_command(context, "train", str(room.train_path), start, "--no-evaluate")
        return metadata.with_training(result, room)

    return trained_lstm


def evaluation_asset(room: Room) -> dg.AssetsDefinition:
    """Return the asset `evaluation`."""

    @room.asset(
        "evaluation",
        "pytorch",
        "png",
        description=(
            "Errors of the best weights on trials that took no part in training, in physical "
            "units, beside those of a naive baseline; by trial, with plots."
        ),
        code_version=training_code_version(),
        deps=[room.key("trained_lstm")],
    )
    def evaluation(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        result = run_command(context, "evaluate", str(room.train_path))
        if room.config.study is not None:
            return with_study(result, room)
        return metadata.with_evaluation(result, room)

    return evaluation


def build_assets(room: Room) -> list[dg.AssetsDefinition]:
    """Return the graph of a data set: each asset depends on the one before it."""
    return [
        catalog_asset(room),
        trial_shards_asset(room),
        training_set_asset(room),
        trained_lstm_asset(room),
        evaluation_asset(room),
    ]
