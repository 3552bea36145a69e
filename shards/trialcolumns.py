"""What is known of each trial as plain columns, one value per trial: for tables and for filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.errors import InvalidSpecError

if TYPE_CHECKING:
    from shards.reader import Store

TRIALS, ATTRIBUTES = "trials", "attributes"
"""The two kinds of columns: of the index, and told by names, folders and tables of the source."""
_HOT = ("id", "number", "n_rows", "n_windows", "split", "weight", "label")


class TrialColumns:
    """The columns of a version, each read when it is asked for.

    `id`, `number`, `n_rows`, `n_windows`, `split` (name), `weight` and `label` (class name or
    value) are those of the hot index; then every column of the cold one that holds one value per
    trial (SPEC section 9), and the attributes.

    Attributes:
        names: Of each kind of columns, in order.

    Args:
        store: The open version.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        types = store.cold_index.types
        cold = [name for name, kind in types.items() if not pa.types.is_nested(kind)]
        self.names = {
            TRIALS: (*_HOT, *(name for name in cold if name not in _HOT)),
            ATTRIBUTES: store.cold_index.attributes,
        }

    def find(self, name: str) -> tuple[str, str]:
        """Return the kind and the name in it of what `Store.trials` calls `name`.

        Raises:
            InvalidSpecError: If there is no such column.
        """
        kind, _, rest = name.partition(".")
        if kind in self.names and rest in self.names[kind]:
            return kind, rest
        for kind, names in self.names.items():
            if name in names:
                return kind, name
        raise InvalidSpecError(
            f"column is {name!r}; {self._store.path} {self._store.version} has: {self.listing()}."
        )

    def listing(self) -> str:
        """Return all names for a message."""
        return ", ".join(self.plain())

    def plain(self) -> list[str]:
        """Return all names; `attributes.<name>` is one that a column of the index has, too."""
        own = self.names[TRIALS]
        return [*own, *(f"{ATTRIBUTES}.{n}" if n in own else n for n in self.names[ATTRIBUTES])]

    def load(self, kind: str, name: str) -> pa.Array:
        """Return a column, in the order of trial numbers.

        Raises:
            CorruptStoreError: If the cold index cannot be read.
        """
        if kind == ATTRIBUTES:
            return self._store.cold_index.attribute(name)
        if name in _HOT:
            return self._load_hot(name)
        return self._store.cold_index.column(name)

    def _load_hot(self, name: str) -> pa.Array:
        index, manifest = self._store.index, self._store.manifest
        if name == "id":
            return index.ids
        if name == "number":
            return pa.array(np.arange(len(index)))
        if name == "split":
            return _named(index.split, manifest.splits)
        if name == "label" and manifest.target.classes is not None:
            known = np.nan_to_num(index.label, nan=-1).astype(np.int32)
            return _named(known, manifest.target.classes)
        return pa.array(getattr(index, name), from_pandas=True)


def trial_table(store: Store, columns: Sequence[str]) -> pa.Table:
    """Return what is known of each trial, one row per trial number.

    A trial that gaps cut into segments has a row per segment. An attribute called like a column of
    the index is `attributes.<name>`; that name serves every attribute.

    Args:
        store: The open version.
        columns: Names; none means all that hold one value per trial.

    Raises:
        InvalidSpecError: If there is no such column.
        CorruptStoreError: If the cold index cannot be read.
    """
    known = TrialColumns(store)
    wanted = list(columns) or known.plain()
    return pa.table([known.load(*known.find(name)) for name in wanted], names=wanted)


def _named(codes: npt.NDArray[np.int16] | npt.NDArray[np.int32], names: Sequence[str]) -> pa.Array:
    """Return the name of each code, null for one below 0."""
    places = pa.array(codes.astype(np.int32), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(places, pa.array(names, pa.utf8())).cast(pa.utf8())
