"""What starts runs: a sensor that watches the raw files, and a nightly schedule."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import dagster as dg

from pipeline.catalog import scan_files
from pipeline.ledger import listing_digest
from pipeline.orchestration.room import Room
from pipeline.watch import Watch, look
from shards.errors import InvalidSpecError

log = logging.getLogger(__name__)
Job = Any
"""What `define_asset_job` returns; its class is not public."""


def build_job(room: Room) -> Job:
    """Return the job over the whole graph.

    In process: steps run threads or a subprocess of their own, and a process per step costs 2 s.
    """
    return dg.define_asset_job(
        room.name,
        selection=dg.AssetSelection.groups(room.name),
        description=f"Catalog, build, check, train and evaluate {room.name}.",
        tags=room.tags,
        executor_def=dg.in_process_executor,
    )


def build_schedule(room: Room, job: Job, cron: str, timezone: str) -> dg.ScheduleDefinition:
    """Return the schedule of a full rebuild and evaluation."""

    @dg.schedule(
        cron_schedule=cron,
        job=job,
        name=f"{room.name}_nightly",
        execution_timezone=timezone,
        description="Rebuild what changed, publish, train if the data are new, and evaluate.",
    )
    def nightly() -> dg.RunRequest:
        return dg.RunRequest(tags={**room.tags, **room.all_buckets})

    return nightly


def build_sensor(
    room: Room, job: Job, every_seconds: int, quiet_seconds: int
) -> dg.SensorDefinition:
    """Return the sensor of new, changed and deleted files."""

    @dg.sensor(
        job=job,
        name=f"{room.name}_files",
        minimum_interval_seconds=every_seconds,
        description=(
            "Starts one run when raw files came, changed or went, and nothing moved for "
            f"{quiet_seconds} s."
        ),
    )
    def files(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        try:
            listing = listing_digest(scan_files(room.space.root, room.space.spec))
        except InvalidSpecError as error:
            return dg.SensorResult(skip_reason=str(error))
        return watch_files(room, context.cursor, listing, time.time(), quiet_seconds)

    return files


def watch_files(
    room: Room, cursor: str | None, listing: str, now_s: float, quiet_s: float
) -> dg.SensorResult:
    """Return a run request, or the reason for none, and the cursor for the next look."""
    watch = _remembered(room, cursor)
    known = watch.pending == listing
    after, start = look(watch, listing, now_s=now_s, quiet_s=quiet_s)
    if not start:
        reason = "Files are still changing." if after.pending else "Nothing changed."
        return dg.SensorResult(skip_reason=reason, cursor=after.to_text())
    # Unique for this change, and the same if this look is repeated after a crash.
    since = watch.since_s if known else now_s
    request = dg.RunRequest(
        run_key=f"{listing}-{since:.3f}", tags={**room.tags, **room.all_buckets}
    )
    return dg.SensorResult(run_requests=[request], cursor=after.to_text())


def _remembered(room: Room, cursor: str | None) -> Watch:
    """Return what the cursor says, or without a usable one that the last commit was built.

    So a lost cursor starts no run for nothing.
    """
    try:
        if cursor:
            return Watch.from_text(cursor)
    except ValueError as error:
        log.warning("starting from the last commit: %s", error)
    base = room.space.base()
    return Watch(base.listing if base is not None and base.reusable else "")


def build_triggers(
    room: Room, *, cron: str, timezone: str, every_seconds: int, quiet_seconds: int
) -> tuple[Job, Sequence[dg.ScheduleDefinition], dg.SensorDefinition]:
    """Return job, schedules and sensor; an empty cron means no schedule."""
    job = build_job(room)
    schedules = [build_schedule(room, job, cron, timezone)] if cron else []
    return job, schedules, build_sensor(room, job, every_seconds, quiet_seconds)
