"""What the assets of a study add to what its process reported: its pictures and its folder."""

import dagster as dg

from pipeline.orchestration.inline import picture
from pipeline.orchestration.room import Room


def with_study(result: dg.MaterializeResult, room: Room) -> dg.MaterializeResult:
    """Put the pictures of a study before what the process reported of it."""
    folder = room.config.out
    files = {"folder": dg.MetadataValue.path(str(folder))}
    pictures = {path.stem: picture(path.read_bytes()) for path in sorted(folder.glob("*.png"))}
    return result._replace(metadata={**pictures, **files, **(result.metadata or {})})
