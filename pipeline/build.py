"""Raw files into a committed version: catalog, buckets, splits, fit, publish.

This is what the command, an asset, a test and a benchmark call.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.buckets import BucketResult, build_bucket, plan_digest
from pipeline.catalog import Catalog, scan_files
from pipeline.draft import draft_version
from pipeline.fit import describe_lookahead, find_warnings
from pipeline.recipe import Recipe
from pipeline.spec import DatasetSpec, load_spec
from pipeline.trials import Refusal
from shards.errors import TooManyQuarantinedError
from shards.version import publish_version
from shards.writer import list_versions

SHOWN_REFUSALS = 10


@dataclass(frozen=True)
class Progress:
    """How far a build is; every field only grows."""

    n_files: int
    n_files_done: int
    n_bytes: int
    n_bytes_done: int


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        store: Store root.
        version: The version that holds the data now.
        published: False if the newest version said the same already.
        counts: As in the manifest, with windows per split.
        refusals: Every quarantined file.
        warnings: Sentences a user should read.
        lookahead: Transforms that look ahead inside a trial.
        seconds: Wall time.
    """

    store: Path
    version: str
    published: bool
    counts: Mapping[str, Any]
    refusals: tuple[Refusal, ...]
    warnings: tuple[str, ...]
    lookahead: tuple[str, ...]
    seconds: float


def build(
    spec_path: str | Path,
    store: str | Path,
    *,
    on_progress: OnProgress | None = None,
    n_workers: int | None = None,
) -> BuildReport:
    """Build a data set and publish it as the next version of a store.

    Args:
        spec_path: `dataset.yaml`; globs and tables are below its folder.
        store: Store root, made if absent.
        on_progress: Called after every batch of files.
        n_workers: Threads; by default one per processor.

    Raises:
        InvalidSpecError: If the specification is wrong or no file can be used.
        TooManyQuarantinedError: If more files were refused than `max_quarantined` allows.
        CommitConflictError: If another build committed meanwhile.
    """
    began = time.perf_counter()
    store, recipe = Path(store), Recipe(load_spec(spec_path)).check()
    spec = recipe.spec
    after = next(reversed(list_versions(store)), None)
    catalog = scan_files(Path(spec_path).parent, spec)
    staging = store / "staging" / plan_digest(recipe, catalog.n_buckets)
    results = _build_buckets(catalog, recipe, store, staging, on_progress, n_workers)
    refusals = _collect_refusals(spec, catalog, results)
    draft = draft_version(spec, catalog, results, refusals, store)
    version = publish_version(store, draft, after=after)
    shutil.rmtree(staging, ignore_errors=True)
    return BuildReport(
        store=store,
        version=version,
        published=version != after,
        counts=draft.counts,
        refusals=refusals,
        warnings=tuple(find_warnings(spec, draft.trials)),
        lookahead=tuple(describe_lookahead(spec)),
        seconds=time.perf_counter() - began,
    )


def _build_buckets(
    catalog: Catalog,
    recipe: Recipe,
    store: Path,
    staging: Path,
    on_progress: OnProgress | None,
    n_workers: int | None,
) -> list[BucketResult]:
    n_bytes = sum(file.size_bytes for file in catalog.files)
    done = np.zeros(2, np.int64)

    def on_files(n_files: int, n_bytes_done: int) -> None:
        done[:] += (n_files, n_bytes_done)
        if on_progress is not None:
            on_progress(Progress(len(catalog.files), int(done[0]), n_bytes, int(done[1])))

    return [
        build_bucket(
            catalog.root,
            [file for file in catalog.files if file.bucket == bucket],
            recipe,
            store,
            staged=staging / f"{bucket}.parquet",
            on_files=on_files,
            n_workers=n_workers,
        )
        for bucket in range(catalog.n_buckets)
    ]


def _collect_refusals(
    spec: DatasetSpec, catalog: Catalog, results: Sequence[BucketResult]
) -> tuple[Refusal, ...]:
    """Return every refused file, unless they are more than the specification allows."""
    refusals = (*catalog.refusals, *(r for result in results for r in result.refusals))
    n_candidates = catalog.n_files - sum(catalog.ignored.values())
    share = len(refusals) / n_candidates
    if share <= spec.max_quarantined and len(refusals) < n_candidates:
        return refusals
    shown = [f"  {r.source}: {r.code}: {r.message}" for r in refusals[:SHOWN_REFUSALS]]
    more = len(refusals) - len(shown)
    counts = ", ".join(f"{n} {c}" for c, n in Counter(r.code for r in refusals).most_common())
    raise TooManyQuarantinedError(
        f"{len(refusals)} of {n_candidates} files were refused ({share:.1%}: {counts}); "
        f"max_quarantined allows {spec.max_quarantined:.1%}. Nothing was published.\n"
        + "\n".join(shown)
        + (f"\n  ... and {more} more" if more else "")
        + "\nMend the files, follow the advice above, or raise max_quarantined."
    )
