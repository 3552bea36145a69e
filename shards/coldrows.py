"""The cold index by the piece: a few facts of all trials, or all facts of a few (SPEC section 9).

`Store.cold` reads whole columns. Here one attribute is one column of Parquet, and the facts of one
trial cost the row group that holds them, not the million rows of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import CorruptStoreError
from shards.implied import DIGESTS, fill_in, with_sources
from shards.manifest import COLD
from shards.parquetfile import admit_table
from shards.parts import part_path

if TYPE_CHECKING:
    from shards.reader import Store

Int64 = npt.NDArray[np.int64]

ATTRIBUTES = "attributes"
MOST_GROUPS = 4
"""Row groups kept decoded: walking through the trials in order decodes each one once."""


class ColdIndex:
    """Reads single facts of a version's trials.

    Args:
        store: The open version.
    """

    def __init__(self, store: Store) -> None:
        self._root, self._where = store.path, f"{store.path} {store.version}"
        self._index, parts = store.index, store.manifest.parts
        self._paths = [part_path(store.path, part.digest) for part in parts]
        self._promises = [
            ({"size_bytes": part.size_bytes, "xxh3_128": part.digest}, part.n_rows)
            for part in parts
        ]
        self._implied = {part_path(store.path, part.digest) for part in parts if part.implied}
        if not parts:
            self._paths = [store.folder / COLD]
            self._promises = [(dict(store.manifest.files[COLD]), len(store.index))]
        # Not as decorators: those would keep every store alive.
        self._footer = lru_cache(maxsize=1024)(self._read_footer)
        self._group = lru_cache(maxsize=MOST_GROUPS)(self._read_group)

    @cached_property
    def types(self) -> Mapping[str, pa.DataType]:
        """Column -> type, over all parts."""
        found: dict[str, pa.DataType] = {}
        for path in self._paths:
            for field in self._footer(path).schema.to_arrow_schema():
                is_raw = field.name in DIGESTS and path in self._implied
                found.setdefault(field.name, pa.utf8() if is_raw else field.type)
        return found

    @cached_property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes, over all parts."""
        names: dict[str, None] = {}
        for path in self._paths:
            schema = self._footer(path).schema.to_arrow_schema()
            if ATTRIBUTES in schema.names:
                names |= dict.fromkeys(field.name for field in schema.field(ATTRIBUTES).type)
        return tuple(names)

    def column(self, name: str) -> pa.Array:
        """Return a column of all trials, in the order of their numbers.

        Raises:
            CorruptStoreError: If it cannot be read, or the index names rows that are not there.
        """
        return self._ordered([self._whole(path, name) for path in self._paths], self.types[name])

    def attribute(self, name: str) -> pa.Array:
        """Return an attribute of all trials as utf8, null where a trial has none.

        Raises:
            KeyError: If no trial has it.
            CorruptStoreError: As `column`.
        """
        if name not in self.attributes:
            raise KeyError(name)
        pieces = []
        for path in self._paths:
            whole = self._whole(path, f"{ATTRIBUTES}.{name}", ATTRIBUTES)
            kinds = [whole.type.field(i).name for i in range(whole.type.num_fields)]
            texts = pa.nulls(len(whole), pa.utf8())
            if name in kinds:
                texts = whole.combine_chunks().flatten()[kinds.index(name)].cast(pa.utf8())
            pieces.append(pa.chunked_array([texts]))
        return self._ordered(pieces, pa.utf8())

    def facts(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Return columns of one trial as Python values; those that nobody wrote are left out.

        Raises:
            CorruptStoreError: If they cannot be read, or the trial has no row.
        """
        path, row = self._place(number)
        footer, group, before = self._footer(path), 0, 0
        while group < footer.num_row_groups and row >= before + (
            n := footer.row_group(group).num_rows
        ):
            before += n
            group += 1
        if group == footer.num_row_groups or row < 0:
            raise CorruptStoreError(
                f"{path} has no row {row}, which the hot index names. "
                f"Run: trialshards verify {self._root}"
            )
        table = self._group(path, group, tuple(columns))
        found: dict[str, Any] = table.slice(row - before, 1).to_pylist()[0]
        return found

    def _place(self, number: int) -> tuple[Path, int]:
        index = self._index
        if index.part is None or index.part_row is None:
            return self._paths[0], number
        part = int(index.part[number])
        if not 0 <= part < len(self._paths):
            raise CorruptStoreError(
                f"{self._where}: the hot index names part {part} of {len(self._paths)}. "
                f"Run: trialshards verify {self._root}"
            )
        return self._paths[part], int(index.part_row[number])

    def _whole(self, path: Path, leaf: str, column: str | None = None) -> pa.ChunkedArray:
        """Return a column of one file; nulls where the file has it not."""
        column = column or leaf
        table = self._read(path, lambda file, names: file.read(columns=names), [leaf])
        if column in table.column_names:
            return table[column]
        kind = pa.struct([]) if column == ATTRIBUTES else self.types[column]
        return pa.chunked_array([pa.nulls(self._footer(path).num_rows, kind)])

    def _ordered(self, pieces: Sequence[pa.ChunkedArray], kind: pa.DataType) -> pa.Array:
        """Return what the files hold in the order of trial numbers."""
        joined = pa.chunked_array([c for piece in pieces for c in piece.chunks], kind)
        part, row = self._index.part, self._index.part_row
        n_rows = np.array([len(piece) for piece in pieces], np.int64)
        if part is None or row is None:
            good, places = len(joined) == len(self._index), None
        else:
            good = bool(((part >= 0) & (part < len(pieces)) & (row >= 0)).all())
            good = good and bool((row < n_rows[part]).all())
            places = (np.cumsum(n_rows) - n_rows)[part] + row if good else None
        if not good:
            raise CorruptStoreError(
                f"{self._where}: the cold index has not the rows that the hot one names. "
                f"Run: trialshards verify {self._root}"
            )
        whole = joined.combine_chunks()
        return whole if places is None else whole.take(pa.array(places))

    def _read_group(self, path: Path, group: int, columns: tuple[str, ...]) -> pa.Table:
        return self._read(
            path, lambda file, names: file.read_row_group(group, columns=names), columns
        )

    def _read_footer(self, path: Path) -> pq.FileMetaData:
        promise, n_rows = self._promises[self._paths.index(path)]
        admit_table(self._root, path, promise, n_rows, implied=path in self._implied)
        try:
            return pq.read_metadata(path)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(path, error) from error

    def _read(
        self,
        path: Path,
        read: Callable[[pq.ParquetFile, list[str]], pa.Table],
        columns: Sequence[str],
    ) -> pa.Table:
        """Return columns of a file, or leaves of theirs, with what its part leaves out."""
        footer, implied = self._footer(path), path in self._implied
        names = list((with_sources(columns) if implied else None) or columns)
        try:
            with pq.ParquetFile(path, metadata=footer, page_checksum_verification=True) as file:
                table = read(file, names)
            table.validate(full=True)
            # Of leaves, as `attributes.<name>`, the column comes with what was asked of it.
            tops = [name.partition(".")[0] for name in columns]
            return fill_in(table, tops) if implied else table
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._unreadable(path, error) from error

    def _unreadable(self, path: Path, error: Exception) -> CorruptStoreError:
        return CorruptStoreError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Restore it, or open "
            "another version."
        )
