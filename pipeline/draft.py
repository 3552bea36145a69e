"""Merged trials into the draft of a version: split, fit, count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base import Base
from pipeline.delta import TOMBSTONE, Delta
from pipeline.files import Refusal
from pipeline.fit import check_given, describe_normalization, fit_columns, fit_train
from pipeline.merge import Merged
from pipeline.sections import ForecastTarget, PerTrialTarget
from pipeline.spec import DatasetSpec, key_orders
from pipeline.splits import assign_splits, split_names
from pipeline.versions import STAGES
from shards.errors import InvalidSpecError
from shards.manifest import EncodedInput, TargetSchema
from shards.version import QUARANTINE_SCHEMA, VersionDraft

_COUNTED = (
    "n_rows_in", "n_dropped", "n_merged", "n_inserted", "n_outliers", "n_masked", "size_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """What is not fitted anew.

    Attributes:
        refit: Whether to fit everything anew; else what does not follow from moments stays as
            the base has it.
        given: A `fit.json` to be taken as it is.
    """

    refit: bool = False
    given: Mapping[str, Any] | None = None


def draft_version(
    spec: DatasetSpec,
    plan: str,
    delta: Delta,
    merged: Merged,
    refusals: Sequence[Refusal],
    *,
    base: Base | None = None,
    fitted: Fitted | None = None,
    text: str | None = None,
) -> tuple[VersionDraft, pa.Table]:
    """Return the draft, and its trials with the cold columns that were needed for it.

    Args:
        spec: The specification.
        plan: `buckets.plan_digest`, for the build after this one.
        delta: The raw files.
        merged: All trials.
        refusals: All that is quarantined.
        base: Where the build goes on from.
        fitted: What is not fitted anew.
        text: Digest of the file that says the specification, if one does.

    Raises:
        InvalidSpecError: If splits cannot be assigned or fitted.
    """
    fitted = fitted or Fitted()
    trials = _with_columns(spec, merged, base)
    fit = _fit(spec, merged, trials, base, fitted)
    target, label = _target_schema(spec, trials)
    draft = VersionDraft(
        **_said(spec),
        target=target,
        splits=split_names(pc.unique(trials["split"]).to_pylist(), spec.split),
        counts=_count(delta, merged, trials, refusals),
        trials=_hot_rows(merged, trials["split"], label),
        shards=tuple(merged.shards.values()),
        quarantine=pa.Table.from_pylist([r.as_row() for r in refusals], schema=QUARANTINE_SCHEMA),
        fit=fit,
        parts=tuple(merged.parts.values()),
        tombstones=base.tombstones if base is not None else (),
        build={"plan": plan, "tables": delta.tables, **_noted(spec, base, delta, fitted, text)},
    )
    return draft, trials


def _noted(
    spec: DatasetSpec, base: Base | None, delta: Delta, fitted: Fitted, text: str | None
) -> dict[str, Any]:
    """Return what the next build must know and the specification's sorted keys do not say."""
    orders = key_orders(spec.model_dump(mode="json"))
    return {
        **({"text": text} if text else {}),
        "stages": STAGES,
        **_read_again(base, delta),
        **({"fit": "given"} if fitted.given else {}),
        **({"orders": orders} if orders else {}),
        # Each reads what is written before it.
        **({"derive": list(spec.derive)} if len(spec.derive) > 1 else {}),
    }


def _said(spec: DatasetSpec) -> dict[str, Any]:
    """Return what the specification alone says of a version."""
    return {
        "name": spec.name,
        "channels": spec.channel_schema(),
        "windows": spec.windows.arithmetic(),
        "observed": spec.clean.stores_observed(),
        "normalization": describe_normalization(spec),
        "spec": spec.model_dump(mode="json"),
        "codes": tuple(EncodedInput(*pair) for pair in spec.categorical.items()),
        "statics": tuple(EncodedInput(*pair) for pair in spec.static.items()),
        "layout": spec.shards.layout,
        "container": spec.shards.format,
    }


def _hot_rows(merged: Merged, split: pa.ChunkedArray, label: pa.Array) -> pa.Table:
    """Return what the hot index says of each segment."""
    named = ["id", "digest", "n_rows", "shard", "row_start", "part", "part_row"]
    rows = merged.index.select(named).append_column("split", split)
    rows = rows.append_column("weight", pa.array(np.ones(rows.num_rows, np.float32)))
    return rows.append_column("label", label)


def _read_again(base: Base | None, delta: Delta) -> dict[str, list[str]]:
    """Return what is still to be read because a trial of it shall come back."""
    again = set((base.says("again") if base is not None else None) or ()) - delta.gone
    return {"again": sorted(again)} if again else {}


def _fit(
    spec: DatasetSpec, merged: Merged, trials: pa.Table, base: Base | None, fitted: Fitted
) -> dict[str, Any]:
    shards = list(merged.shards.values())
    if fitted.given is not None:
        return check_given(spec, fitted.given, trials)
    if fitted.refit or base is None or not base.reusable or not _same_split(spec, base):
        return fit_train(spec, trials, shards, merged.store)
    index, splits = base.store.index, base.manifest.splits
    n_before = int((index.split == splits.index("train")).sum()) if "train" in splits else 0
    return fit_train(spec, trials, shards, merged.store, frozen=base.store.fit, n_before=n_before)


def _same_split(spec: DatasetSpec, base: Base) -> bool:
    return bool(base.manifest.spec.get("split") == spec.model_dump(mode="json")["split"])


def _with_columns(spec: DatasetSpec, merged: Merged, base: Base | None) -> pa.Table:
    """Return the index rows with their splits and the cold columns that a draft needs."""
    wanted = {*_COUNTED, *fit_columns(spec)}
    known = _known_splits(spec, merged, base)
    if known is None and _split_attributes(spec):
        wanted.add("attributes")
    if spec.split.method == "time":
        wanted |= {"time_start", "time_end"}
    if isinstance(spec.windows.target, PerTrialTarget):
        wanted.add("label")
    cold = merged.cold(*sorted(wanted))
    trials = merged.index
    for name in cold.column_names:
        trials = trials.append_column(name, cold[name])
    splits = _assign(spec, trials) if known is None else known
    if "split" in trials.column_names:
        trials = trials.drop_columns(["split"])
    return trials.append_column("split", splits)


def _split_attributes(spec: DatasetSpec) -> set[str]:
    names = {spec.split.by, spec.split.stratify, spec.split.attribute} - {None, "trial"}
    return {str(name) for name in names}


def _known_splits(spec: DatasetSpec, merged: Merged, base: Base | None) -> pa.Array | None:
    """Return the splits where each trial's follows from itself and the base knows most of them."""
    split = spec.split
    itself = split.method == "hash" and split.validation is None and split.stratify is None
    if (
        not itself
        or split.by != "trial"
        or base is None
        or "split" not in merged.index.column_names
    ):
        return None
    if base is None or not base.reusable or not _same_split(spec, base):
        return None
    new = np.flatnonzero(pc.is_null(merged.index["split"]).to_numpy())
    if not len(new):
        return merged.index["split"]
    rows = merged.index.take(pa.array(new))
    found = assign_splits(trial_ids(rows), {}, split)
    known = merged.index["split"].combine_chunks()
    at = np.zeros(len(known), np.int64)
    at[new] = np.arange(len(new))
    return pc.if_else(pc.is_null(known), pa.array(found, pa.utf8()).take(pa.array(at)), known)


def _assign(spec: DatasetSpec, trials: pa.Table) -> pa.Array:
    spans = None
    if "time_start" in trials.column_names:
        spans = np.stack([trials[name].to_numpy() for name in ("time_start", "time_end")], axis=1)
    found = _attributes(trials, _split_attributes(spec))
    return pa.array(assign_splits(trial_ids(trials), found, spec.split, spans=spans), pa.utf8())


def trial_ids(trials: pa.Table) -> list[str]:
    """Return the trial of each row; several rows are one trial where it has gaps."""
    ids: list[str] = trials["trial" if "trial" in trials.column_names else "id"].to_pylist()
    return ids


def _attributes(trials: pa.Table, names: set[str]) -> dict[str, list[str | None]]:
    if not names or "attributes" not in trials.column_names:
        return {}
    column = trials["attributes"].combine_chunks()
    return {field.name: column.field(field.name).to_pylist() for field in column.type}


def _target_schema(spec: DatasetSpec, trials: pa.Table) -> tuple[TargetSchema, pa.Array]:
    """Return the target of the format, and each trial's label as a number."""
    target = spec.windows.target
    nothing = pa.nulls(trials.num_rows, pa.float32())
    if isinstance(target, ForecastTarget):
        return TargetSchema("forecast", target.channels), nothing
    if not isinstance(target, PerTrialTarget):
        return TargetSchema("per_step", target.columns), nothing
    labels = trials["label"].to_pylist()
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


def _count(
    delta: Delta, merged: Merged, trials: pa.Table, refusals: Sequence[Refusal]
) -> dict[str, Any]:
    """Account for every file and every row (law 3)."""
    sums = {
        name: int(pc.sum(trials[name]).as_py())
        for name in ("n_rows_in", "n_rows", "n_dropped", "n_merged", "n_inserted", "n_outliers")
    }
    dropped = {"missing_values": sums["n_dropped"], "merged": sums["n_merged"]}
    by_split = _count_trials(trials)
    ignored = dict(delta.ignored)
    if n_out := len(merged.taken_out - {refusal.source for refusal in refusals}):
        ignored[TOMBSTONE] = ignored.get(TOMBSTONE, 0) + n_out
    return {
        "files": delta.n_files,
        "trials": sum(by_split.values()),
        "segments": trials.num_rows,
        "quarantined": len(refusals),
        "quarantined_by_code": dict(sorted(Counter(r.code for r in refusals).items())),
        "ignored": ignored,
        "rows_in": sums["n_rows_in"],
        "rows_dropped": {reason: n for reason, n in dropped.items() if n},
        "rows_inserted": sums["n_inserted"],
        "rows": sums["n_rows"],
        "values_clipped": sums["n_outliers"],
        "has_missing": bool(pc.any(pc.greater(trials["n_masked"], 0)).as_py()),
        "trials_by_split": dict(sorted(by_split.items())),
        "source_bytes": _source_bytes(trials, refusals),
    }


def _count_trials(trials: pa.Table) -> dict[str, int]:
    """Return the trials of each split; one with gaps has several rows."""
    splits = trials["split"]
    if "trial" in trials.column_names:
        splits = (
            trials.select(["trial", "split"]).group_by(["trial", "split"]).aggregate([])["split"]
        )
    return {c["values"]: c["counts"] for c in pc.value_counts(splits).to_pylist()}


def _source_bytes(trials: pa.Table, refusals: Sequence[Refusal]) -> int:
    """Return the size of all files that were read or refused, each once."""
    sizes = trials.group_by("source").aggregate([("size_bytes", "max")])
    accepted = int(pc.sum(sizes["size_bytes_max"]).as_py() or 0)
    others = {refusal.source: refusal.size_bytes for refusal in refusals}
    if others:
        twice = pc.is_in(sizes["source"], value_set=pa.array(list(others), pa.utf8()))
        accepted -= int(pc.sum(sizes.filter(twice)["size_bytes_max"]).as_py() or 0)
    return accepted + sum(others.values())
