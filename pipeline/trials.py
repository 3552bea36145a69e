"""The nouns that travel through the pipeline: a trial's table, and those of `pipeline.files`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.files import SourceFile

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

NO_TEXT = pl.DataFrame()


@dataclass(frozen=True)
class Table:
    """One trial as its source says it, rows in the source's order.

    Attributes:
        file: Where it came from.
        source_xxh3: XXH3-128 of the file's bytes, hexadecimal.
        names: Numeric columns.
        numbers: `[rows, names]` float64, C order, NaN where missing.
        text: The text columns, String, null where missing; `NO_TEXT` where none are wanted.
        trial: The trial's id; by default the file's.
        found: Attributes that were found inside the file.
        number: Its place among the trials of the file, from 1.
    """

    file: SourceFile
    source_xxh3: str
    names: tuple[str, ...]
    numbers: Float64
    text: pl.DataFrame = field(default_factory=lambda: NO_TEXT)
    trial: str = ""
    found: Mapping[str, str] = field(default_factory=dict)
    number: int = 1

    @property
    def trial_id(self) -> str:
        """The trial's id."""
        return self.trial or self.file.trial_id

    @property
    def frame(self) -> pl.DataFrame:
        """All columns as one frame: Float64 and String."""
        return self.frame_of([*self.names, *self.text.columns])

    def frame_of(
        self,
        columns: Sequence[str],
        numbers: Float64 | None = None,
        text_rows: Int64 | None = None,
    ) -> pl.DataFrame:
        """Return columns as a frame: Float64 with NaN, String with nulls.

        Args:
            columns: Their names.
            numbers: Instead of the table's own, `[rows, names]`.
            text_rows: The table's row that each row takes its texts from, -1 for none.
        """
        numbers = self.numbers if numbers is None else numbers
        text = self.text
        if text_rows is not None and any(name in text.columns for name in columns):
            held = pl.Series(text_rows >= 0)
            text = text[np.maximum(text_rows, 0)].select(pl.when(held).then(pl.all()))
        return pl.DataFrame(
            {
                name: text[name] if name in text.columns else numbers[:, self.names.index(name)]
                for name in columns
            }
        )
