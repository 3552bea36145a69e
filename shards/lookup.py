"""A store as a mapping from ids to trials, and as a table to choose trials from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.errors import TrialNotFoundError
from shards.lazy import pc
from shards.trial import Trial

if TYPE_CHECKING:
    from shards.index import HotIndex
    from shards.reader import Store


class TrialLookup:
    """What a `Store` does by trial: `store["s07/0031"]`, `store.select("subject = 's07'")`."""

    def __getitem__(self, trial_id: str) -> Trial:
        """Return a trial by its id, or one segment of it (`<id>#2`); O(log trials).

        Raises:
            TrialNotFoundError: If the version has no such trial.
        """
        return find_trial(self._store, trial_id)

    def __contains__(self, trial_id: object) -> bool:
        """Return whether the version has such a trial or segment."""
        try:
            find_trial(self._store, trial_id)  # type: ignore[arg-type]
        except TrialNotFoundError:
            return False
        return True

    def __len__(self) -> int:
        """Return the number of trials; each segment of one with gaps counts."""
        return len(self._store.index)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids of trials and segments in the order of their numbers."""
        for first in range(0, len(self._store.index), 4096):
            yield from self._store.index.ids[first : first + 4096].to_pylist()

    def __bool__(self) -> bool:
        """Return True: a store without trials is a store."""
        return True

    def trial(self, number: int) -> Trial:
        """Return a trial, or one segment, by its number, as `Batch.trial` says it.

        Raises:
            TrialNotFoundError: If there is no such number.
        """
        store = self._store
        if not 0 <= number < len(store.index):
            raise TrialNotFoundError(
                f"trial number is {number}; {store.path} {store.version} has 0 to "
                f"{len(store.index) - 1}."
            )
        return Trial(store, store.index.id_of(number), (int(number),))

    def select(self, where: str) -> npt.NDArray[np.int64]:
        """Return the numbers of the trials that an SQL expression holds for; see `select.py`.

        Raises:
            InvalidSpecError: If it is no expression over the columns of `trials()`.
        """
        from shards.select import select_trials  # with SQL, which most who open a store do not use

        return select_trials(self._store, where)

    def trials(self, *columns: str) -> pa.Table:
        """Return what is known of each trial, attributes as plain columns; see `select.py`.

        Args:
            columns: Names; by default all that hold one value per trial.

        Raises:
            InvalidSpecError: If there is no such column.
        """
        from shards.trialcolumns import trial_table

        return trial_table(self._store, columns)

    @property
    def _store(self) -> Store:
        return cast("Store", self)


def find_trial(store: Store, trial_id: str) -> Trial:
    """Return a trial, or one segment of it, by binary search in the mapped ids.

    Args:
        store: The open version.
        trial_id: Id of a trial, or of a segment, such as `s07/0031#2`.

    Raises:
        TrialNotFoundError: If the version has no such trial.
    """
    index = store.index
    number = index.find(trial_id) if isinstance(trial_id, str) else None
    if number is not None:
        return Trial(store, trial_id, (number,))
    numbers = _find_segments(index, trial_id) if isinstance(trial_id, str) else []
    if numbers:
        # A file may be called like a segment: the cold index knows whose segment a row is.
        known = [store.cold_index.facts(n, ("trial",)).get("trial") for n in numbers]
        numbers = [n for n, trial in zip(numbers, known, strict=True) if trial == trial_id]
    if not numbers:
        raise TrialNotFoundError(
            f"trial {trial_id!r} is not in {store.path} ({len(index)} trials, version "
            f"{store.version}). Look at: trialshards inspect {store.path}"
        )
    return Trial(store, trial_id, tuple(numbers))


def _find_segments(index: HotIndex, trial_id: str) -> list[int]:
    """Return the rows called `<id>#1`, `<id>#2` and so on, in the order of these numbers."""
    try:
        prefix = f"{trial_id}#".encode()
    except UnicodeEncodeError:  # no id holds half a surrogate pair
        return []
    # All ids that begin with the prefix lie side by side: up to the prefix with its last byte + 1.
    first, last = (index.first_not_below(key) for key in (prefix, prefix[:-1] + b"$"))
    numbered = pc.match_substring_regex(index.ids[first:last], "#[1-9][0-9]*$")
    found = {}
    for place in np.flatnonzero(numbered.to_numpy(zero_copy_only=False)).tolist():
        ending = index.id_bytes(first + place)[len(prefix) :].decode()
        if ending.isdecimal():  # not that of a longer id, such as `<id>#x#1`
            found[int(ending)] = first + place
    return [found[segment] for segment in sorted(found)]
