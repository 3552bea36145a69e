"""Checks of a published version, each repeatable on any day; a pure function of the store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit import SHOWN, Finding
from pipeline.derive import Derivations
from pipeline.files import count_of
from pipeline.fit import fit_train
from pipeline.sections import ColumnAttribute, PerTrialTarget
from pipeline.spec import DatasetSpec
from pipeline.storedrows import row_blocks
from shards.identity import canonical_json
from shards.reader import Store
from shards.verify import verify_store
from shards.version import split_digest


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
        said += f" The index says otherwise of {ids}." if ids else " The manifest says otherwise."
        said += " Run: trialshards verify STORE"
    elif not by_split.get("train"):
        passed = False
        said += " Nothing to train on: shorten windows.length, or set windows.short: pad."
    facts = {f"windows_{name}": n for name, n in by_split.items()}
    return Finding("windows_add_up", passed, said, facts | {"trials_without_window": without})


def check_finite(store: Store) -> Finding:
    """Check that every stored value is a number, or NaN where the index says it is masked."""
    bad = [store.index.id_of(number) for number in _not_as_masked(store)]
    own = np.concatenate([part.ravel() for part in store.physical_affine()])
    finite = store.delivery.is_finite() and bool(np.isfinite(own).all())
    n_masked = int(np.sum(store.cold("n_masked")["n_masked"].to_numpy()))
    n_values = int(store.index.n_rows.sum()) * len(store.manifest.channels)
    said = f"{n_values:,} values, {n_masked:,} of them masked ({n_masked / max(n_values, 1):.1%})."
    n_outside = _count_outside(store)
    if n_outside:
        said += f" {count_of(n_outside, 'row')} in no window, and so in no shard."
    if bad:
        said += f" {count_of(len(bad), 'trial')} with others that are no number, such as "
        said += f"{', '.join(bad[:SHOWN])}. Run: trialshards verify STORE"
    if not finite:
        said += " A normalization constant is not finite: look at fit.json."
    facts = {"n_values": n_values, "n_masked": n_masked, "rows_in_no_window": n_outside}
    return Finding("finite", not bad and finite, said, facts)


def _count_outside(store: Store) -> int:
    """Return how many rows no shard holds: in layout windows those that lie in no window."""
    if store.manifest.layout == "rows":
        return 0
    n_windows, windows = store.index.n_windows, store.manifest.windows
    n_valid = np.minimum(windows.length, store.index.n_rows - windows.ahead)
    n_inside = (n_windows - 1) * np.minimum(windows.stride, n_valid) + n_valid
    return int((store.index.n_rows - np.where(n_windows > 0, n_inside, 0)).sum())


def _not_as_masked(store: Store) -> Iterator[int]:
    """Yield trials with an infinite value, or with more or fewer NaN than were masked.

    In layout windows as many NaN may be missing as there are values in rows of no window.
    """
    index, masked = store.index, store.cold("n_masked")["n_masked"].to_numpy()
    windows = store.manifest.windows if store.manifest.layout == "windows" else None
    n_channels = len(store.manifest.channels)
    for shard, entry in enumerate(store.manifest.shards):
        values = store.shard_rows(shard)
        # A missing target is NaN, and nobody counts those.
        targets = store.shard_rows(shard, "targets") if "targets" in entry.arrays else values[:, :0]
        for number in np.flatnonzero(index.shard == shard).tolist():
            start, n_rows = int(index.row_start[number]), int(index.n_rows[number])
            here = slice(start, start + int(store.n_stored[number]))
            n_nan = n_inside = 0
            for block in row_blocks(values[here], n_rows, windows):
                n_nan, n_inside = n_nan + int(np.isnan(block).sum()), n_inside + len(block)
            n_unseen = (n_rows - n_inside) * n_channels
            if (
                not masked[number] - n_unseen <= n_nan <= masked[number]
                or np.isinf(values[here]).any()
                or np.isinf(targets[here]).any()
            ):
                yield number


def check_leaks(store: Store) -> Finding:
    """Audit what a model could know of test trials, and say what looks ahead inside a trial."""
    spec = DatasetSpec.model_validate(store.manifest.spec)
    trials = _trials(store)
    faults = [*_fit_faults(store, spec, trials), *_target_faults(spec)]
    twins = _twins(trials)
    ahead = list(store.manifest.normalization.get("lookahead", []))
    said = " ".join(faults) or "All statistics follow from the train trials alone."
    if twins:
        said += (
            f" {count_of(len(twins), 'recording')} in more than one split, byte for byte, such as "
            f"{' = '.join(twins[0])}. Remove the copies, or keep them together with split.by."
        )
    said += f" Inside a trial this looks ahead: {'; '.join(ahead)}." if ahead else ""
    facts = {"n_lookahead": len(ahead), "n_equal_recordings": len(twins)}
    return Finding("leak_audit", not (faults or twins), said, facts, blocking=bool(faults))


def _trials(store: Store) -> pa.Table:
    """Return the trials as the build saw them when it fitted."""
    index, manifest, trials = store.index, store.manifest, store.cold()
    if "label" in trials.column_names:
        trials = trials.drop_columns(["label"])
    labels: list[str | None] = [None] * len(index)
    if manifest.target.kind == "per_trial":
        column = trials["attributes"].combine_chunks()
        labels = column.field(manifest.target.columns[0]).to_pylist()
    columns = {
        "split": [manifest.splits[code] for code in index.split],
        "shard": [manifest.shards[number].digest for number in index.shard],
        "label": labels,
    }
    for name, values in columns.items():
        trials = trials.append_column(name, pa.array(values, pa.utf8()))
    return trials.append_column("row_start", pa.array(index.row_start))


def _fit_faults(store: Store, spec: DatasetSpec, trials: pa.Table) -> Iterator[str]:
    """Fit once more, on the train trials alone, and compare with what the version holds."""
    if store.manifest.tombstones or store.manifest.build.get("fit") == "given":
        return  # not fitted on these trials, on purpose: what was asked for, and what SPEC says
    train = trials.filter(pc.equal(trials["split"], "train"))
    if store.fit.get("trials_digest") != split_digest(trials, "train"):
        yield "fit.json was not fitted on the train trials of this version. Build again."
        return
    frozen = store.fit if "frozen" in store.fit else None
    again = fit_train(spec, train, store.manifest.shards, store.path, frozen=frozen)
    if canonical_json(again) != canonical_json(store.fit):
        yield "The statistics in fit.json do not follow from the train trials. Build again."


def _target_faults(spec: DatasetSpec) -> Iterator[str]:
    """Yield inputs that are computed from what the model shall predict."""
    tainted = set(_secrets(spec))
    for name, read in Derivations.of(spec.derive).inputs.items():
        if name not in spec.target_columns() and tainted & read:
            tainted.add(name)
    for name in sorted(tainted & {channel.name for channel in spec.channels}):
        yield (
            f"Channel {name!r} is derived from the target, so the model would see it. "
            "Take it out of channels."
        )
    for section in ("categorical", "static"):
        for name in sorted(tainted & set(getattr(spec, section))):
            yield f"{section} {name!r} says the target, so the model would see it. Take it out."


def _secrets(spec: DatasetSpec) -> set[str]:
    """Return the columns and attributes that say the target, under whatever name."""
    target = spec.windows.target
    if not isinstance(target, PerTrialTarget):
        return set(spec.target_columns())
    told = spec.attributes.get(target.attribute)
    secret = {target.attribute} | {name for name, other in spec.attributes.items() if other == told}
    return secret | ({told.column} if isinstance(told, ColumnAttribute) else set())


def _twins(trials: pa.Table) -> list[tuple[str, ...]]:
    """Return the ids of recordings with equal bytes that lie in different splits.

    Trials of one file, told apart, have its bytes in common and nothing else.
    """
    if "source_xxh3" not in trials.column_names:
        return []
    seen: dict[str, dict[str, list[tuple[str, str]]]] = {}
    columns = (trials[name].to_pylist() for name in ("source_xxh3", "source", "id", "split"))
    for digest, source, trial_id, split in zip(*columns, strict=True):
        seen.setdefault(digest, {}).setdefault(source, []).append((trial_id, split))
    groups = [list(itertools.chain(*files.values())) for files in seen.values() if len(files) > 1]
    return [
        tuple(trial_id for trial_id, _ in group)
        for group in groups
        if len({split for _, split in group}) > 1
    ]


def check_bytes(store: Store) -> Finding:
    """Check every byte of the version."""
    problems = [str(problem) for problem in verify_store(store.path, store.version)]
    said = f"{count_of(len(store.manifest.shards), 'shard')}: every byte is as promised."
    if problems:
        said = f"{count_of(len(problems), 'problem')}: " + "; ".join(problems[:SHOWN])
        said += ". Restore these files from a copy, or delete their shards and build again."
    n_bytes = sum(shard.n_bytes for shard in store.manifest.shards)
    return Finding("verify", not problems, said, {"n_bytes": n_bytes, "n_problems": len(problems)})
