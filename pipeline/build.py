"""Raw files into a committed version: catalog, buckets, splits, fit, publish.

This is what the command, an asset, a test and a benchmark call.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.buckets import BucketResult, build_bucket, plan_digest
from pipeline.catalog import Catalog, scan_files
from pipeline.fit import describe_lookahead, find_warnings, fit_train, normalization_scope
from pipeline.recipe import Recipe
from pipeline.sections import ForecastTarget, PerTrialTarget
from pipeline.spec import DatasetSpec, load_spec
from pipeline.splits import assign_splits, split_names
from pipeline.trials import Refusal
from shards.errors import InvalidSpecError, TooManyQuarantinedError
from shards.manifest import TargetSchema
from shards.version import QUARANTINE_SCHEMA, VersionDraft, publish_version, sort_by_id
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
    refusals_by_code: Mapping[str, int] = field(default_factory=dict)


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
    spec_path, store = Path(spec_path), Path(store)
    spec = load_spec(spec_path)
    recipe = Recipe(spec)
    recipe.check()
    versions = list_versions(store)
    catalog = scan_files(spec_path.parent, spec)
    staging = store / "staging" / plan_digest(recipe, catalog.n_buckets)
    results = _build_buckets(catalog, recipe, store, staging, on_progress, n_workers)
    refusals = (*catalog.refusals, *(r for result in results for r in result.refusals))
    _check_quarantine(spec, catalog, refusals)
    draft = draft_version(spec, catalog, results, refusals, store)
    after = versions[-1] if versions else None
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
        refusals_by_code=dict(Counter(refusal.code for refusal in refusals)),
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


def _check_quarantine(spec: DatasetSpec, catalog: Catalog, refusals: Sequence[Refusal]) -> None:
    n_candidates = catalog.n_files - sum(catalog.ignored.values())
    share = len(refusals) / n_candidates
    if share <= spec.max_quarantined and len(refusals) < n_candidates:
        return
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


def draft_version(
    spec: DatasetSpec,
    catalog: Catalog,
    results: Sequence[BucketResult],
    refusals: Sequence[Refusal],
    store: Path,
) -> VersionDraft:
    """Merge buckets into a version: sort, split, fit, count.

    Raises:
        InvalidSpecError: If splits cannot be assigned or fitted.
    """
    tables = [result.rows for result in results if result.rows is not None]
    trials = sort_by_id(pa.concat_tables(tables, promote_options="permissive"))
    splits = assign_splits(trials["id"].to_pylist(), _attributes(trials), spec.split)
    trials = trials.append_column("split", pa.array(splits, pa.utf8()))
    shards = tuple(shard for result in results for shard in result.shards)
    fit = fit_train(spec, trials, shards, store)
    target, label = _target_schema(spec, trials)
    counts = _count(catalog, trials, refusals)
    trials = trials.set_column(trials.schema.get_field_index("label"), "label", label)
    weight = pa.array(np.ones(trials.num_rows, np.float32))
    return VersionDraft(
        name=spec.name,
        channels=spec.channel_schema(),
        target=target,
        windows=spec.windows.arithmetic(),
        splits=split_names(splits, spec.split),
        observed=spec.clean.stores_observed(),
        normalization={
            "method": spec.normalize.method,
            "scope": normalization_scope(spec),
            "lookahead": describe_lookahead(spec),
        },
        counts=counts,
        spec=spec.model_dump(mode="json"),
        trials=trials.append_column("weight", weight),
        shards=shards,
        quarantine=pa.Table.from_pylist([r.as_row() for r in refusals], schema=QUARANTINE_SCHEMA),
        fit=fit,
    )


def _attributes(trials: pa.Table) -> dict[str, list[str | None]]:
    if "attributes" not in trials.column_names:
        return {}
    column = trials["attributes"].combine_chunks()
    return {field.name: column.field(field.name).to_pylist() for field in column.type}


def _target_schema(spec: DatasetSpec, trials: pa.Table) -> tuple[TargetSchema, pa.Array]:
    """Return the target of the format, and each trial's label as a number."""
    target, labels = spec.windows.target, trials["label"].to_pylist()
    nothing = pa.nulls(len(labels), pa.float32())
    if isinstance(target, ForecastTarget):
        return TargetSchema("forecast", target.channels), nothing
    if not isinstance(target, PerTrialTarget):
        return TargetSchema("per_step", target.columns), nothing
    if target.task == "value":
        numbers = pa.array([float(text) for text in labels], pa.float32())
        return TargetSchema("per_trial", (target.attribute,)), numbers
    train = {t for t, s in zip(labels, trials["split"].to_pylist(), strict=True) if s == "train"}
    classes = tuple(sorted(train))
    if len(classes) < 2:
        raise InvalidSpecError(
            f"windows.target: attribute {target.attribute!r} has the values {list(classes)} among "
            "the train trials; wanted two classes at least. Mend the attribute or the split."
        )
    codes = {text: float(code) for code, text in enumerate(classes)}
    numbers = pa.array([codes.get(text) for text in labels], pa.float32())
    return TargetSchema("per_trial", (target.attribute,), classes), numbers


def _count(catalog: Catalog, trials: pa.Table, refusals: Sequence[Refusal]) -> dict[str, Any]:
    """Account for every file and every row (law 3)."""
    rows_in, rows = sum(trials["n_rows_in"].to_pylist()), sum(trials["n_rows"].to_pylist())
    by_split = Counter(trials["split"].to_pylist())
    return {
        "files": catalog.n_files,
        "trials": trials.num_rows,
        "quarantined": len(refusals),
        "quarantined_by_code": dict(sorted(Counter(r.code for r in refusals).items())),
        "ignored": dict(catalog.ignored),
        "rows_in": rows_in,
        "rows_dropped": {"missing_values": rows_in - rows} if rows_in != rows else {},
        "rows": rows,
        "has_missing": any(trials["n_masked"].to_pylist()),
        "trials_by_split": dict(sorted(by_split.items())),
        "source_bytes": sum(file.size_bytes for file in catalog.files),
    }
