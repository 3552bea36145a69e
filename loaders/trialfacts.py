"""What a store or a user says about each trial of a stream, as arrays: classes, values, numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shards import InvalidSpecError, Store, TrialNotFoundError

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_NUMBER = r"^-?[0-9]{1,40}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,2})?$"
_SHOWN = 40


def class_codes(store: Store, trials: Int64, needed: npt.NDArray[np.bool_], argument: str) -> Int64:
    """Return the code of the class of each trial.

    Args:
        store: The open version.
        trials: `[n]`, their numbers.
        needed: `[n]`, whether its class is needed; 0 is returned where it is not known.
        argument: Of the stream, for messages: `balance` or `weights`.

    Raises:
        InvalidSpecError: If the target is no class per trial, or a trial has none.
    """
    target = store.manifest.target
    if target.kind != "per_trial" or target.classes is None:
        other = "Balance('attribute'" if argument == "balance" else "LossWeights('column'"
        kind = target.kind if target.kind != "per_trial" else "a value per trial"
        raise InvalidSpecError(
            f"{argument} is by class, but the target of {store.path} {store.version} is {kind}: "
            f"{', '.join(target.columns)}; wanted classes per trial. Use {other}, column=...); "
            f"store.trials() shows the columns."
        )
    label = store.index.label[trials]
    known = ~np.isnan(label)
    lacking = np.flatnonzero(needed & ~known)
    if lacking.size:
        first = store.index.id_of(int(trials[lacking[0]]))
        raise InvalidSpecError(
            f"{argument} is by class, but {lacking.size} of {len(trials)} trials have none, such "
            f"as {first!r}. Leave them out: where='trials.label IS NOT NULL'."
        )
    return np.where(known, label, 0).astype(np.int64)


def number_values(store: Store, column: str, trials: Int64) -> Int64:
    """Return a number from 0 on for each value of a column, in the order of first appearance.

    Null and NaN are one value more, the last; -0 is 0.

    Raises:
        InvalidSpecError: If there is no such column; the message lists those there are.
        CorruptStoreError: If the cold index cannot be read.
    """
    values = _load(store, column, trials)
    if pa.types.is_floating(values.type):
        # Arrow tells -0 from 0; NumPy has no nulls, but one NaN.
        kinds = np.unique(_floats(values), return_inverse=True)[1]
        values = pa.array(kinds.astype(np.int64), mask=np.isnan(_floats(values)))
    words = values.dictionary_encode()
    places = words.indices.fill_null(len(words.dictionary))
    codes: Int64 = places.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def as_numbers(store: Store, column: str, trials: Int64) -> Float64:
    """Return a column of numbers, or of texts that all are plain numbers; NaN where one is missing.

    Raises:
        InvalidSpecError: If there is no such column, or a value in it is no number.
        CorruptStoreError: If the cold index cannot be read.
    """
    values = _load(store, column, trials)
    kind = values.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return _floats(values)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise InvalidSpecError(f"column {column!r} holds {kind}; wanted numbers.")
    words = values.cast(pa.large_utf8()).dictionary_encode()
    n_words = len(words.dictionary)
    codes = words.indices.fill_null(n_words).to_numpy(zero_copy_only=False)
    plain = pc.match_substring_regex(words.dictionary, _NUMBER).to_numpy(zero_copy_only=False)
    if not plain.all():
        odd = int(np.argmin(plain))
        trial = store.index.id_of(int(trials[np.argmax(codes == odd)]))
        raise InvalidSpecError(
            f"column {column!r} of trial {trial!r} is {_shown(words.dictionary[odd].as_py())}; "
            "wanted a plain number, such as 3 or 0.25."
        )
    numbers = np.append(_floats(words.dictionary.cast(pa.float64())), np.nan)
    found: Float64 = numbers[codes]
    return found


def given_quotas(
    store: Store, quotas: Mapping[str, int] | npt.NDArray[np.integer[Any]], trials: Int64
) -> npt.NDArray[Any]:
    """Return the integers that a user gives for each trial.

    Args:
        store: The open version.
        quotas: Id -> integer, for each of the trials at least; or an integer for each trial of
            their split, in the order of their numbers.
        trials: `[n]`, numbers of trials of one split.

    Raises:
        InvalidSpecError: If they are no integers, or not one for each trial.
        TrialNotFoundError: If the version has no trial of an id.
    """
    if isinstance(quotas, Mapping):
        return _mapped_quotas(store, quotas, trials)
    code = store.index.split[trials[0]]
    members = np.flatnonzero(store.index.split == code)
    given = np.asarray(quotas)
    if given.dtype.kind not in "iu" or given.shape != (len(members),):
        raise InvalidSpecError(
            f"quotas is an array {given.dtype}{list(given.shape)}; wanted integers, one for each "
            f"of the {len(members)} trials of split {store.manifest.splits[code]!r} in the order "
            "of their ids: store.trials('id', 'split')."
        )
    return given[np.searchsorted(members, trials)]


def _mapped_quotas(store: Store, quotas: Mapping[str, int], trials: Int64) -> npt.NDArray[Any]:
    wanted = "wanted trial id -> integer"
    try:
        ids = pa.array(list(quotas), pa.large_utf8())
        given = pa.array(list(quotas.values()))
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise InvalidSpecError(f"quotas cannot be read ({error}); {wanted}.") from error
    if not pa.types.is_integer(given.type) or given.null_count or ids.null_count:
        raise InvalidSpecError(
            f"quotas has {len(given)} values of type {given.type}, "
            f"{given.null_count + ids.null_count} of them missing; {wanted}."
        )
    place = pc.index_in(store.index.ids, value_set=ids)
    known = np.zeros(len(ids), np.bool_)
    known[place.drop_null().to_numpy()] = True
    if not known.all():
        raise TrialNotFoundError(
            f"quotas: {np.count_nonzero(~known)} of {len(ids)} ids are not in {store.path} "
            f"{store.version}, such as {ids[int(np.argmin(known))].as_py()!r}. Each segment of a "
            "trial with gaps has an id of its own: store.trials('id') shows them."
        )
    place = place.take(pa.array(trials))
    if place.null_count:
        lacking = trials[place.is_null().to_numpy(zero_copy_only=False)]
        raise InvalidSpecError(
            f"quotas lacks {len(lacking)} of {len(trials)} trials, such as "
            f"{store.index.id_of(int(lacking[0]))!r}; wanted one for each, 0 for never drawn."
        )
    found: npt.NDArray[Any] = given.take(place).to_numpy()
    return found


def _load(store: Store, column: str, trials: Int64) -> pa.Array:
    """Return a column of `Store.trials` for some trials, its values plain."""
    values = store.trials(column).column(0).combine_chunks().take(pa.array(trials))
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _floats(values: pa.Array) -> Float64:
    floats: Float64 = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return floats


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
