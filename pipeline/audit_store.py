"""Checks of a published version, each repeatable on any day; a pure function of the store."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit import SHOWN, Finding
from pipeline.derive import parse_expressions, source_columns
from pipeline.fit import stack_moments
from pipeline.normalize import affine_from_moments, merge_moments
from pipeline.sections import PerTrialTarget
from pipeline.spec import DatasetSpec
from shards.identity import pairs_digest
from shards.reader import Store
from shards.verify import verify_store
from shards.version import split_pairs


def check_windows(store: Store) -> Finding:
    """Check that windows add up: trial by trial, split by split, and that train has some."""
    spec, n_rows = store.manifest.windows, store.index.n_rows.astype(np.int64)
    reach = spec.length + spec.ahead
    padded = (n_rows > spec.ahead) & (spec.short == "pad")
    wanted = np.where(n_rows >= reach, (n_rows - reach) // spec.stride + 1, padded)
    wrong = np.flatnonzero(store.index.n_windows != wanted)
    by_split = {
        name: int(wanted[store.index.split == code].sum())
        for code, name in enumerate(store.manifest.splits)
    }
    without = int((wanted == 0).sum())
    shown = ", ".join(f"{name} {n:,}" for name, n in by_split.items())
    said = f"{int(wanted.sum()):,} windows ({shown}); {without:,} trials are too short for one."
    passed = not len(wrong) and by_split == dict(store.manifest.counts["windows"])
    if not passed:
        ids = ", ".join(store.index.id_of(int(i)) for i in wrong[:SHOWN])
        said += f" The index or the manifest says otherwise ({ids}). Run: trialshards verify STORE"
    elif not by_split.get("train"):
        passed = False
        said += " Nothing to train on: shorten windows.length, or set windows.short: pad."
    facts = {f"windows_{name}": n for name, n in by_split.items()}
    return Finding("windows_add_up", passed, said, facts | {"trials_without_window": without})


def check_finite(store: Store) -> Finding:
    """Check that every stored value is a number, or NaN where the index says it is masked."""
    bad = [store.index.id_of(number) for number in _not_as_masked(store)]
    scale = np.concatenate([part.ravel() for part in store.physical_affine()])
    n_masked = int(np.sum(store.cold("n_masked")["n_masked"].to_numpy()))
    n_values = int(store.index.n_rows.sum()) * len(store.manifest.channels)
    said = f"{n_values:,} values, {n_masked:,} of them masked ({n_masked / max(n_values, 1):.1%})."
    if bad:
        said += f" {len(bad)} trials hold others that are no number, such as "
        said += f"{', '.join(bad[:SHOWN])}. Run: trialshards verify STORE"
    if not np.isfinite(scale).all():
        said += " A normalization constant is not finite: look at fit.json."
    passed = not bad and bool(np.isfinite(scale).all())
    return Finding("finite", passed, said, {"n_values": n_values, "n_masked": n_masked})


def _not_as_masked(store: Store) -> Iterator[int]:
    """Yield trials with an infinite value, or with more or fewer NaN than were masked."""
    index, masked = store.index, store.cold("n_masked")["n_masked"].to_numpy()
    for shard in range(len(store.manifest.shards)):
        rows = store.shard_rows(shard)
        # NaN counts 1, infinity so much that no count can hide it.
        odd = np.isnan(rows).sum(axis=1) + np.isinf(rows).sum(axis=1) * (rows.size + 1)
        below = np.concatenate([[0], np.cumsum(odd)])
        for number in np.flatnonzero(index.shard == shard).tolist():
            start = int(index.row_start[number])
            if below[start + int(index.n_rows[number])] - below[start] != masked[number]:
                yield number


def check_leaks(store: Store) -> Finding:
    """Audit what a model could know of test trials, and say what looks ahead inside a trial."""
    spec = DatasetSpec.model_validate(store.manifest.spec)
    trials = _trials(store)
    faults = [*_fit_faults(store, trials), *_target_faults(spec)]
    twins = _twins(trials)
    ahead = list(store.manifest.normalization.get("lookahead", []))
    said = "Statistics come from train trials alone." if not faults else " ".join(faults)
    if twins:
        said += (
            f" {len(twins)} recordings lie byte for byte in more than one split, such as "
            f"{' = '.join(twins[0])}. Remove the copies, or keep them together with split.by."
        )
    said += " ".join(["", "Inside a trial this looks ahead:", *ahead]) if ahead else ""
    facts = {"n_lookahead": len(ahead), "n_equal_recordings": len(twins)}
    return Finding("leak_audit", not (faults or twins), said, facts, blocking=bool(faults))


def _trials(store: Store) -> pa.Table:
    names = [store.manifest.splits[code] for code in store.index.split]
    return store.cold().append_column("split", pa.array(names, pa.utf8()))


def _fit_faults(store: Store, trials: pa.Table) -> Iterator[str]:
    train = trials.filter(pc.equal(trials["split"], "train"))
    if store.fit.get("trials_digest") != pairs_digest(split_pairs(trials, "train")):
        yield "fit.json was not fitted on the train trials of this version. Build again."
    fitted = store.fit["normalize"]
    if fitted["scope"] != "train" or fitted["method"] == "robust":
        return
    merged = merge_moments(stack_moments(train))
    channels = slice(len(store.manifest.channels))
    again = affine_from_moments(
        fitted["method"], {name: column[channels] for name, column in merged.items()}
    )
    same = [np.array_equal(fitted[key], getattr(again, key)) for key in ("offset", "scale")]
    if not all(same):
        yield "The statistics in fit.json do not follow from the train trials. Build again."


def _target_faults(spec: DatasetSpec) -> Iterator[str]:
    """Yield inputs that are computed from what the model shall predict."""
    target = spec.windows.target
    secret = (
        {target.attribute} if isinstance(target, PerTrialTarget) else set(spec.target_columns())
    )
    tainted = set(secret)
    for name, expression in parse_expressions(spec.derive).items():
        if name not in secret and tainted & source_columns({name: expression}):
            tainted.add(name)
    for name in sorted(tainted & {channel.name for channel in spec.channels}):
        yield (
            f"Channel {name!r} is derived from the target, so the model would see it. "
            "Take it out of channels."
        )


def _twins(trials: pa.Table) -> list[tuple[str, ...]]:
    """Return the ids of recordings with equal bytes that lie in different splits."""
    if "source_xxh3" not in trials.column_names:
        return []
    seen: dict[str, list[tuple[str, str]]] = {}
    columns = (trials[name].to_pylist() for name in ("source_xxh3", "id", "split"))
    for digest, trial_id, split in zip(*columns, strict=True):
        seen.setdefault(digest, []).append((trial_id, split))
    groups = (group for group in seen.values() if len({split for _, split in group}) > 1)
    return [tuple(trial_id for trial_id, _ in group) for group in groups]


def check_bytes(store: Store) -> Finding:
    """Check every byte of the version."""
    problems = [str(problem) for problem in verify_store(store.path, store.version)]
    said = f"{len(store.manifest.shards)} shards: every byte is as promised."
    if problems:
        said = f"{len(problems)} problems: " + "; ".join(problems[:SHOWN])
        said += ". Restore these files from a copy, or delete their shards and build again."
    n_bytes = sum(a.size_bytes for s in store.manifest.shards for a in s.arrays.values())
    return Finding("verify", not problems, said, {"n_bytes": n_bytes, "n_problems": len(problems)})
