"""What is fitted on train trials: normalization, target statistics, vocabularies, statics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.causal import describe_lookahead
from pipeline.codes import fit_codes
from pipeline.normalize import MOMENTS, channel_entries, coarse_channels, merge_moments
from pipeline.sections import PerTrialTarget
from pipeline.spec import DatasetSpec
from pipeline.statistics import fit_normalization, group_values, stack_moments
from pipeline.trainrows import TrainRows
from pipeline.trials import Bool, Float64
from shards.affine import Delivery, Entry, channels_of, describe_entries, scope_kind
from shards.errors import InvalidSpecError
from shards.manifest import ShardEntry
from shards.regimes import AffineTable
from shards.version import split_digest


def fit_columns(spec: DatasetSpec) -> set[str]:
    """Return the cold columns that `fit_train` needs of a data set's trials."""
    entries = channel_entries(spec)
    kinds = {scope_kind(scope) for _, scope in entries}
    wanted = {"attributes"} if spec.static or "group" in kinds else set[str]()
    if kinds - _OWN or spec.target_columns():
        wanted |= set(MOMENTS)
    if kinds & (_OF_TRAIN | {"window"}):
        wanted |= {"min", "max"}
    if spec.categorical:
        wanted.add("categories")
    if isinstance(spec.windows.target, PerTrialTarget):
        wanted.add("label")
    return wanted


def fit_train(
    spec: DatasetSpec,
    trials: pa.Table,
    shards: Sequence[ShardEntry],
    store: Path,
    *,
    frozen: Mapping[str, Any] | None = None,
    n_before: int = 0,
) -> dict[str, Any]:
    """Return `fit.json` for id-sorted trials with their splits assigned.

    It depends on the train trials alone: on their moments in id order, or for quartiles and
    regimes on their stored rows. What is frozen stays as an earlier build fitted it.

    Args:
        spec: The specification.
        trials: Index rows with the columns of `fit_columns`.
        shards: Shards that hold the trials.
        store: Store root.
        frozen: `fit.json` of an earlier build of the same specification; what does not follow
            from moments is taken from it.
        n_before: Train trials of that build.

    Raises:
        InvalidSpecError: If statistics of train are asked for and no trial is in train, if train
            has fewer different rows than regimes, or if float32 cannot hold some normalized value.
    """
    entries, names = channel_entries(spec), [channel.name for channel in spec.inputs()]
    train = trials.filter(pc.equal(trials["split"], "train"))
    if train.num_rows == 0:
        _check_without_train(entries, trials.num_rows)
    rows = TrainRows(train, shards, store)
    kept = frozen or {}
    fit: dict[str, Any] = {
        "normalize": fit_normalization(
            entries, spec.normalize.regimes, names, train, rows, kept.get("normalize", {})
        ),
        "trials_digest": split_digest(trials, "train"),
        **fit_codes(spec, train, kept.get("categorical", ())),
    }
    refuse_overflow(spec, fit["normalize"], trials)
    fit |= _since(spec, fit, frozen, n_before)
    if train.num_rows == 0:
        return fit
    target = _target_statistics(spec, train, len(names))
    return fit if target is None else {**fit, "target": target}


def _since(
    spec: DatasetSpec, fit: Mapping[str, Any], frozen: Mapping[str, Any] | None, n_before: int
) -> dict[str, Any]:
    """Return the entry `frozen`: the train trials that came first; none if they are still these."""
    if frozen is None or not is_frozen(spec):
        return {}
    since = frozen.get("frozen")
    since = since or {"trials_digest": frozen["trials_digest"], "n_trials": n_before}
    return {} if since["trials_digest"] == fit["trials_digest"] else {"frozen": since}


_OF_TRAIN = frozenset(("train", "group", "regime"))
_OWN = frozenset(("trial", "prefix"))
DRIFT = 0.2
"""Share of the train trials by which their number may change before a frozen fit is called old."""


def is_frozen(spec: DatasetSpec) -> bool:
    """Return whether anything is fitted that does not follow from moments, and so is kept."""
    return bool(spec.categorical) or any(
        scope_kind(scope) == "regime" or (method == "robust" and scope_kind(scope) in _OF_TRAIN)
        for method, scope in channel_entries(spec)
    )


def _check_without_train(entries: Sequence[Entry], n_trials: int) -> None:
    scopes = sorted({s for _, s in entries if scope_kind(s) in _OF_TRAIN})
    if scopes:
        raise InvalidSpecError(
            f"normalize.scope is {', '.join(scopes)}, but no trial is in split 'train' "
            f"({n_trials} trials in other splits). Mend split, or use scope: trial."
        )


def check_given(spec: DatasetSpec, given: Mapping[str, Any], trials: pa.Table) -> dict[str, Any]:
    """Return a `fit.json` that was fitted elsewhere, if it suits the specification.

    Raises:
        InvalidSpecError: If it speaks of other channels, columns or attributes, or if float32
            cannot hold some value normalized by it.
    """
    named = {
        "categorical": [list(pair) for pair in spec.categorical.items()],
        "static": [list(pair) for pair in spec.static.items()],
    }
    try:
        said = {key: [[e["name"], e["encoding"]] for e in given.get(key, ())] for key in named}
        normalize, _ = given["normalize"], given["trials_digest"]
        wanted = describe_entries(channel_entries(spec))
        suits = said == named and all(normalize.get(key) == part for key, part in wanted.items())
        if suits:
            refuse_overflow(spec, normalize, trials)
    except InvalidSpecError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InvalidSpecError(
            f"the given fit does not suit {spec.name} ({type(error).__name__}: {error}). Take the "
            "fit.json of a version that was built by this specification."
        ) from error
    if not suits:
        raise InvalidSpecError(
            f"the given fit is for {normalize.get('method')!r} of {normalize.get('scope')!r} and "
            f"the inputs {said}; {spec.name} has {wanted} and {named}. Take the fit.json of a "
            "version that was built by this specification."
        )
    return dict(given)


def describe_normalization(spec: DatasetSpec) -> dict[str, Any]:
    """Return `normalization` of the manifest."""
    return {**describe_entries(channel_entries(spec)), "lookahead": describe_lookahead(spec)}


def refuse_overflow(spec: DatasetSpec, fit: Mapping[str, Any], trials: pa.Table) -> None:
    """Refuse values of any split that the train trials' scale would make infinite.

    Raises:
        InvalidSpecError: Naming the channel.
    """
    entries, names = channel_entries(spec), [channel.name for channel in spec.inputs()]
    if not {scope_kind(scope) for _, scope in entries} & (_OF_TRAIN | {"window"}):
        return  # what is stored as delivered was checked when it was stored
    delivery = Delivery.parse(tuple(entries), fit, names, lambda name: group_values(trials, name))
    low, high = (_per_channel(trials[name], len(names)) for name in ("min", "max"))
    table = delivery.table if delivery.row is None else delivery.table.take(delivery.row)
    for place in np.flatnonzero(_overflowing(table, low, high)).tolist():
        # What is stored normalized was checked then, by its own constants.
        if place not in delivery.own:
            raise _overflow(names[place], low[:, place], high[:, place])
    all_low, all_high = (f.reduce(x, axis=0) for f, x in ((np.fmin, low), (np.fmax, high)))
    if delivery.regimes is not None:
        table, places = delivery.regimes.table, delivery.regimes.channels
        for found in np.flatnonzero(_overflowing(table, all_low[places], all_high[places])):
            raise _overflow(names[places[found]], low[:, places[found]], high[:, places[found]])
    for place in channels_of(entries, "window").tolist():
        if all_high[place] - all_low[place] > _LARGEST:
            raise _overflow(names[place], low[:, place], high[:, place])


_LARGEST = float(np.finfo(np.float32).max)


def _per_channel(column: pa.ChunkedArray, n_channels: int) -> Float64:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float64).reshape(len(column), -1)[:, :n_channels]


def _overflowing(table: AffineTable, low: Float64, high: Float64) -> Bool:
    """Return, per channel, whether any range [low, high] is infinite by its row of the table."""
    reach = np.fmax(np.abs(low - table.offset), np.abs(high - table.offset))
    beyond = (reach >= _LARGEST) | (reach / table.scale >= _LARGEST) | np.isinf(table.scale)
    return np.asarray(beyond.any(axis=0))


def _overflow(name: str, low: Float64, high: Float64) -> InvalidSpecError:
    return InvalidSpecError(
        f"channel {name!r} reaches from {np.nanmin(low):g} to {np.nanmax(high):g}, beyond float32 "
        "in units of the scale that was fitted. Correct those files, or use normalize.scope: trial."
    )


def _target_statistics(
    spec: DatasetSpec, train: pa.Table, n_channels: int
) -> dict[str, Any] | None:
    """Return mean and sd of value targets in physical units, for the trainer to standardize."""
    target = spec.windows.target
    if isinstance(target, PerTrialTarget):
        if target.task == "class":
            return None
        labels = np.array([float(text) for text in train["label"].to_pylist()])
        return {"mean": [float(labels.mean())], "sd": [float(labels.std()) or 1.0]}
    if not spec.target_columns():
        return None
    merged = merge_moments(stack_moments(train))
    sd = merged["sd"][n_channels:]
    return {
        "mean": merged["mean"][n_channels:].tolist(),
        "sd": np.where(sd > 0, sd, 1.0).tolist(),
    }


def find_warnings(spec: DatasetSpec, trials: pa.Table, fit: Mapping[str, Any]) -> list[str]:
    """Return what a user should know of the values, in sentences."""
    return [*_coarse_warnings(spec, trials), *_drift_warnings(spec, trials, fit)]


def _coarse_warnings(spec: DatasetSpec, trials: pa.Table) -> list[str]:
    own = all(scope_kind(scope) in _OWN for _, scope in channel_entries(spec))
    if own or trials.num_rows == 0:
        return []
    coarse = coarse_channels(merge_moments(stack_moments(trials)))
    stored = zip(spec.inputs(), channel_entries(spec), coarse.tolist(), strict=False)
    return [
        f"channel {channel.name!r}: float32 steps are {ratio:.1g} of its spread, so digits are "
        "lost. Subtract a constant level first (derive), or use normalize.scope: trial."
        for channel, (_, scope), ratio in stored
        if ratio and scope_kind(scope) not in _OWN
    ]


def _drift_warnings(spec: DatasetSpec, trials: pa.Table, fit: Mapping[str, Any]) -> list[str]:
    """Say how far the train trials have moved from those that a frozen fit came from."""
    since = fit.get("frozen")
    if since is None:
        return []
    train = trials.filter(pc.equal(trials["split"], "train"))
    then, warnings = since.get("n_trials", 0), []
    if abs(train.num_rows - then) > DRIFT * then:
        warnings.append(
            f"quartiles, regimes and vocabularies were fitted on {then:,} train trials; there are "
            f"{train.num_rows:,} now. Renew them: trialshards build --refit."
        )
    if spec.categorical:
        fresh = fit_codes(spec, train)["categorical"]
        for now, kept in zip(fresh, fit["categorical"], strict=True):
            unknown = sorted(set(now["vocabulary"]) - set(kept["vocabulary"]))
            if unknown:
                warnings.append(
                    f"column {now['name']!r}: {len(unknown)} words of train trials are not in the "
                    f"vocabulary, such as {unknown[0]!r}, and count as unknown. Renew it: "
                    "trialshards build --refit."
                )
    return warnings
