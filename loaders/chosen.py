"""Which trials of a split a stream reads: all, or those that a filter or a list of ids names."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from loaders.options import StreamOptions, TrialIds
from shards import InvalidSpecError, Store, TrialNotFoundError

Int64 = npt.NDArray[np.int64]

_SHOWN = 5


def choose_trials(store: Store, options: StreamOptions) -> Int64:
    """Return the numbers of the trials that a stream reads, in order.

    Args:
        store: The open version.
        options: Of the stream: `split`, `where`, `trials`.

    Raises:
        StoreNotFoundError: If the version has no such split.
        TrialNotFoundError: If it has no trial of one of the ids.
        InvalidSpecError: If `where` is no expression, an id lies in another split, or nothing is
            left.
    """
    in_split = store.index.split == store.split_code(options.split)
    chosen = in_split
    if options.trials is not None:
        chosen = _listed(store, options.trials)
        if (chosen & ~in_split).any():
            raise _elsewhere(store, options.split, np.flatnonzero(chosen & ~in_split))
    if options.where is not None:
        found = np.zeros(len(in_split), np.bool_)
        found[store.select(options.where)] = True
        chosen = chosen & found
    # Nothing else to blame but the filter; a split without trials has another message.
    if not (chosen & in_split).any() and in_split.any():
        raise InvalidSpecError(
            f"where is {options.where!r}: it holds for no trial of split {options.split!r} in "
            f"{store.path} {store.version}{_also(options)}. Look at what there is: "
            "store.trials(); texts compare letter by letter."
        )
    return np.flatnonzero(chosen & in_split)


def digest_trials(store: Store, numbers: Int64) -> str:
    """Return the SHA-256 of the ids of trials, in order.

    Beside the fingerprint of their split it says which data they are.
    """
    ids = store.index.ids.take(pa.array(numbers))
    sizes = pc.binary_length(ids).to_numpy().astype("<i8")
    state = hashlib.sha256(len(ids).to_bytes(8, "little") + sizes.tobytes())
    if sizes.any():
        offsets, data = np.frombuffer(ids.buffers()[1], np.int64), ids.buffers()[2]
        first = int(offsets[ids.offset])
        state.update(memoryview(data)[first : first + int(sizes.sum())])
    return state.hexdigest()


def pack_numbers(numbers: Int64) -> npt.NDArray[np.uint8]:
    """Return numbers >= 0 as bits, to be sent to another process."""
    flags = np.zeros(int(numbers.max(initial=-1)) + 1, np.bool_)
    flags[numbers] = True
    return np.packbits(flags)


def unpack_numbers(packed: npt.NDArray[np.uint8]) -> Int64:
    """Return the numbers that were packed, in order."""
    return np.flatnonzero(np.unpackbits(packed))


def _listed(store: Store, wanted: TrialIds) -> npt.NDArray[np.bool_]:
    """Return whether each trial number is asked for; an id of a trial with gaps means all of it."""
    ids = wanted.array
    # The hash table is of the ids asked for, never of all the store has.
    place = pc.index_in(store.index.ids, value_set=ids)
    found = np.zeros(len(ids), np.bool_)
    found[place.drop_null().to_numpy()] = True
    chosen: npt.NDArray[np.bool_] = place.is_valid().to_numpy(zero_copy_only=False)
    if not found.all() and "trial" in store.cold_index.types:
        rest = ids.filter(pa.array(~found))
        places = np.flatnonzero(~found)
        whose = store.cold_index.column("trial").cast(pa.large_utf8())
        place = pc.index_in(whose, value_set=rest)
        found[places[place.drop_null().to_numpy()]] = True
        chosen = chosen | place.is_valid().to_numpy(zero_copy_only=False)
    if not found.all():
        lacking = ids.filter(pa.array(~found))
        raise TrialNotFoundError(
            f"trials: {len(lacking)} of {len(ids)} ids are not in {store.path} {store.version}: "
            f"{_first(lacking)}. Look at: trialshards inspect {store.path}"
        )
    return chosen


def _elsewhere(store: Store, split: str, numbers: Int64) -> InvalidSpecError:
    codes = np.unique(store.index.split[numbers]).tolist()
    splits = ", ".join(repr(store.manifest.splits[code]) for code in codes)
    ids = store.index.ids.take(pa.array(numbers[: _SHOWN + 1]))
    return InvalidSpecError(
        f"trials: {len(numbers)} are not in split {split!r} but in {splits}: {_first(ids)}. "
        "Take them out, or ask for their split."
    )


def _first(ids: pa.Array) -> str:
    shown = ", ".join(repr(name) for name in ids[:_SHOWN].to_pylist())
    return shown + (", ..." if len(ids) > _SHOWN else "")


def _also(options: StreamOptions) -> str:
    return " among those of trials=" if options.trials is not None else ""
