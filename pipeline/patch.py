"""Single files into a store, without looking at all the others."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.base import Base
from pipeline.build import finish_build
from pipeline.catalog import bucket_of, count_buckets
from pipeline.commit import Work
from pipeline.delta import TOMBSTONE, Delta
from pipeline.files import RefusedError, SourceFile
from pipeline.outcome import BuildReport
from pipeline.paths import identifier, matches_glob
from pipeline.staging import BucketResult
from pipeline.tables import read_tables
from pipeline.walk import is_hidden
from pipeline.workspace import Workspace
from shards.errors import InvalidSpecError
from shards.leases import building


def patch_files(
    spec_path: str | Path, store: str | Path, files: Sequence[str | Path], *, add: bool = False
) -> BuildReport:
    """Read some files, whatever their size and time say, and publish them with all the others.

    Files that the store knows are replaced, others added. A build looks at every file; this looks
    at those that are named.

    Args:
        spec_path: `dataset.yaml`, the one that the newest version was built by.
        store: Store root.
        files: Paths below the folder of `dataset.yaml`.
        add: Refuse files, and trial ids, that are there already.

    Raises:
        InvalidSpecError: If there is no version to go on from, a path is no file below the folder
            that a build would look at, is no trial, is there already, or was taken out by hand.
        TooManyQuarantinedError: If more files were refused than `max_quarantined` allows.
        CommitConflictError: If another build committed meanwhile and touched the same files.
    """
    began = time.perf_counter()
    space = Workspace.open(spec_path, store)
    with building(space.store):
        base = space.base()
        if base is None or not base.reusable:
            raise InvalidSpecError(
                f"{space.store} has no version that this specification made, to put files into. "
                f"Run: trialshards build {spec_path} --store {space.store}"
            )
        delta = _delta_of(space, base, [_relative(space.root, path) for path in files], add=add)
        work = Work(delta, _read(space, delta), base, base.store.version)
        return finish_build(space, work, began)


def _relative(root: Path, path: str | Path) -> str:
    """Return a path below the source root, as the catalog would name it."""
    place = Path(os.path.normpath(root / path))
    try:
        inside = place.relative_to(Path(os.path.normpath(root))).as_posix()
        info = place.stat()
    except ValueError as error:
        raise InvalidSpecError(
            f"{path} does not lie below {root}, the folder of dataset.yaml. Copy it there."
        ) from error
    except OSError as error:
        raise InvalidSpecError(
            f"{place}: {error.strerror}. Name files that are there; one that is gone is taken out "
            "by the next build, or by: trialshards tombstone."
        ) from error
    if not stat.S_ISREG(info.st_mode):
        raise InvalidSpecError(f"{place} is not a regular file. Name the files themselves.")
    return inside


def _delta_of(space: Workspace, base: Base, paths: Sequence[str], *, add: bool) -> Delta:
    spec, counts = space.spec, base.manifest.counts
    identify = identifier(spec.source)
    tables = read_tables(space.root, {} if spec.source.holds_many else spec.attributes)
    n_buckets = count_buckets(int(counts.get("source_bytes", 0)), spec.shards.buckets)
    read: list[SourceFile] = []
    refused = {r.source for r in base.refusals}
    claimed = [(named[0], path) for path in sorted(refused) if (named := identify(path))]
    for path in sorted(set(paths)):
        if is_hidden(path) or not matches_glob(path, spec.source.files):
            raise InvalidSpecError(
                f"{path} is hidden, or source.files {spec.source.files!r} does not match it, so "
                "the next build would drop it. Rename it, or widen the glob and build."
            )
        named = identify(path)
        if named is None:
            raise InvalidSpecError(
                f"{path} does not match source.trial_id {spec.source.trial_id!r}, so it is no "
                "trial. Rename it, or widen the pattern and build."
            )
        if add and path in base.known:
            raise InvalidSpecError(f"{path} is in the store already. Replace it by: patch.")
        if not spec.source.holds_many:
            _check_id(base, path, named[0], claimed)
        try:
            attributes = {**named[1], **tables.lookup(named[0])} if tables.tables else named[1]
        except RefusedError as error:
            raise InvalidSpecError(f"{path}: {error}") from error
        info = (space.root / path).stat()
        bucket = bucket_of(path, n_buckets)
        read.append(SourceFile(path, info.st_size, info.st_mtime_ns, named[0], attributes, bucket))
    known = {file.path for file in read if file.path in base.known}
    named_now = {file.path for file in read}
    counted = {*base.known, *(refusal.source for refusal in base.refusals)}
    # Files that were ignored because nothing is left of them: those that are named are read.
    taken_out, ignored = base.taken_out & named_now, dict(counts.get("ignored", {}))
    ignored[TOMBSTONE] = ignored.get(TOMBSTONE, 0) - len(taken_out)
    n_back = max(0, -ignored[TOMBSTONE])  # they were gone when somebody counted
    ignored[TOMBSTONE] += n_back
    return Delta(
        read=tuple(read),
        gone=frozenset(known),
        n_same=len(base.known) - len(known),
        n_files=int(counts["files"]) + len(named_now - counted) + n_back,
        n_buckets=n_buckets,
        # What a build would look at again stays as it is, unless it is named.
        refusals=tuple(
            r for r in base.refusals if r.mtime_ns is None and r.source not in named_now
        ),
        ignored={rule: n for rule, n in ignored.items() if n},
        tables=str(base.says("tables")),
    )


def _check_id(base: Base, path: str, trial_id: str, claimed: Sequence[tuple[str, str]]) -> None:
    """Refuse a trial id that another file has, be it refused, or that was taken out by hand."""
    if trial_id in (stone.id for stone in base.tombstones):
        raise InvalidSpecError(
            f"{path} is trial {trial_id!r}, which was taken out by hand. First let it come back: "
            f"trialshards tombstone {base.store.path} {trial_id} --undo"
        )
    number = base.store.index.find(trial_id)
    rivals = [source for name, source in claimed if name == trial_id]
    rivals += [] if number is None else [base.sources[number].as_py()]
    if source := next((rival for rival in rivals if rival != path), None):
        raise InvalidSpecError(
            f"{path} has the trial id {trial_id!r}, which {source} has already. Rename one, or "
            "make source.trial_id tell them apart."
        )


def _read(space: Workspace, delta: Delta) -> list[BucketResult]:
    return [
        space.build_bucket(delta, bucket, afresh=True)
        for bucket in sorted({file.bucket for file in delta.read})
    ]
