"""Merge buckets into the draft of a version: sort, split, fit, count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog import Catalog
from pipeline.fit import describe_normalization, fit_train
from pipeline.sections import ForecastTarget, PerTrialTarget
from pipeline.spec import DatasetSpec
from pipeline.splits import assign_splits, split_names
from pipeline.staging import BucketResult
from pipeline.trials import Refusal
from shards.errors import InvalidSpecError
from shards.manifest import EncodedInput, TargetSchema
from shards.version import QUARANTINE_SCHEMA, VersionDraft, sort_by_id


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
    trials = merge_buckets(spec, results)
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
        splits=split_names(trials["split"].to_pylist(), spec.split),
        observed=spec.clean.stores_observed(),
        normalization=describe_normalization(spec),
        counts=counts,
        spec=spec.model_dump(mode="json"),
        trials=trials.append_column("weight", weight),
        shards=shards,
        quarantine=pa.Table.from_pylist([r.as_row() for r in refusals], schema=QUARANTINE_SCHEMA),
        fit=fit,
        codes=tuple(EncodedInput(*pair) for pair in spec.categorical.items()),
        statics=tuple(EncodedInput(*pair) for pair in spec.static.items()),
    )


def merge_buckets(spec: DatasetSpec, results: Sequence[BucketResult]) -> pa.Table:
    """Return the trials of all buckets, sorted by id, with their splits."""
    tables = [result.rows for result in results if result.rows is not None]
    trials = sort_by_id(pa.concat_tables(tables, promote_options="permissive"))
    spans = None
    if "time_start" in trials.column_names:
        spans = np.stack([trials[name].to_numpy() for name in ("time_start", "time_end")], axis=1)
    splits = assign_splits(trial_ids(trials), _attributes(trials), spec.split, spans=spans)
    return trials.append_column("split", pa.array(splits, pa.utf8()))


def trial_ids(trials: pa.Table) -> list[str]:
    """Return the trial of each row; several rows are one trial where it has gaps."""
    ids: list[str] = trials["trial" if "trial" in trials.column_names else "id"].to_pylist()
    return ids


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
    sums = {
        name: int(pc.sum(trials[name]).as_py())
        for name in ("n_rows_in", "n_rows", "n_dropped", "n_merged", "n_inserted", "n_outliers")
    }
    dropped = {"missing_values": sums["n_dropped"], "merged": sums["n_merged"]}
    sizes = dict(zip(trials["source"].to_pylist(), trials["size_bytes"].to_pylist(), strict=True))
    sizes |= {refusal.source: refusal.size_bytes for refusal in refusals}
    sides = dict(zip(trial_ids(trials), trials["split"].to_pylist(), strict=True))
    by_split = Counter(sides.values())
    return {
        "files": catalog.n_files,
        "trials": len(sides),
        "segments": trials.num_rows,
        "quarantined": len(refusals),
        "quarantined_by_code": dict(sorted(Counter(r.code for r in refusals).items())),
        "ignored": dict(catalog.ignored),
        "rows_in": sums["n_rows_in"],
        "rows_dropped": {reason: n for reason, n in dropped.items() if n},
        "rows_inserted": sums["n_inserted"],
        "rows": sums["n_rows"],
        "values_clipped": sums["n_outliers"],
        "has_missing": bool(pc.any(pc.greater(trials["n_masked"], 0)).as_py()),
        "trials_by_split": dict(sorted(by_split.items())),
        "source_bytes": sum(sizes.values()),
    }
