"""One run over any partitions of `trial_shards`: all of them, a range, or a single one."""

import time
from collections.abc import Sequence

import dagster as dg

from pipeline.catalog import Catalog
from pipeline.delta import Delta
from pipeline.orchestration import metadata
from pipeline.orchestration.room import Room
from pipeline.workspace import bucket_number, files_of
from shards.errors import TrialShardsError
from shards.leases import building

LOG_EVERY_SECONDS = 10.0


def build_partitions(context: dg.AssetExecutionContext, room: Room) -> list[metadata.BuiltBucket]:
    """Build the buckets that the run is about; a bucket that fails does not stop the others.

    Raises:
        dagster.Failure: Naming the buckets that failed, after all others were built.
    """
    try:
        catalog = room.space.catalog()
    except TrialShardsError as error:  # trying again would change nothing
        raise dg.Failure(str(error), allow_retries=False) from error
    built, failed = [], {}
    with building(room.space.store):
        delta = room.space.delta(catalog, room.space.base())
        for key in partition_keys(context, room):
            try:
                built.append(_build(context, room, catalog, delta, key))
            except Exception as error:
                context.log.exception("bucket %s failed", key)
                failed[key] = f"{type(error).__name__}: {error}"
    _report(context, room, built, whole=not failed)
    if failed:
        raise dg.Failure(
            f"{len(failed)} of {len(built) + len(failed)} buckets failed: "
            + "; ".join(f"{key}: {message}" for key, message in failed.items())
            + f". The others are kept. Materialize the partitions {','.join(failed)} again."
        )
    return built


def partition_keys(context: dg.AssetExecutionContext, room: Room) -> list[str]:
    """Return the partitions of the run; one that was launched without any means all."""
    if context.has_partition_key or context.has_partition_key_range:
        return list(context.partition_keys)
    return list(room.partitions.get_partition_keys())


def _build(
    context: dg.AssetExecutionContext, room: Room, catalog: Catalog, delta: Delta, key: str
) -> metadata.BuiltBucket:
    bucket = bucket_number(key)
    files = delta.files_of(bucket)
    began = said = time.perf_counter()
    done = 0

    def on_files(n: int, _: int) -> None:
        nonlocal done, said
        done += n
        if time.perf_counter() - said > LOG_EVERY_SECONDS:
            said = time.perf_counter()
            rate = done / (said - began)
            context.log.info("%s: %s of %s files, %.0f/s", key, done, len(files), rate)

    result = room.space.build_bucket(delta, bucket, on_files=on_files)
    built = metadata.BuiltBucket(
        key=key,
        result=result,
        all_files=tuple(files_of(catalog, bucket)),
        n_read=len(files),
        bytes_read=sum(file.size_bytes for file in files),
        seconds=time.perf_counter() - began,
    )
    context.log.info("%s", built)
    return built


def _report(
    context: dg.AssetExecutionContext,
    room: Room,
    built: Sequence[metadata.BuiltBucket],
    *,
    whole: bool,
) -> None:
    """Give every partition its own numbers; those of a failed step must be told one by one."""
    by_event = not whole or not (context.has_partition_key or context.has_partition_key_range)
    for bucket in built:
        if by_event:
            event = dg.AssetMaterialization(
                room.key("trial_shards"),
                partition=bucket.key,
                metadata=metadata.of_bucket(bucket),
                tags={"dagster/data_version": metadata.digest_of(room, [bucket])},
            )
            context.log_event(event)
        else:
            context.add_asset_metadata(metadata.of_bucket(bucket), partition_key=bucket.key)
