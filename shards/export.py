"""A store as files that other tools open: Parquet, a Hugging Face data set, or NumPy's .npz."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.disk import claim_folder, replacing, sync_folder, temporary_folder
from shards.errors import InvalidSpecError
from shards.exportcard import SplitFiles, dataset_card, file_names
from shards.exportnpz import write_npz
from shards.exportrows import TrialTable
from shards.reader import Store

FORMATS = ("parquet", "huggingface", "npz")
ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 64 * 2**20
FILE_BYTES = 512 * 2**20
"""A file ends with the trial that takes it beyond this many bytes before compression."""


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        folder: Where it is.
        n_trials: Trials.
        n_rows: Time steps.
        files: Paths below the folder.
        renamed: Column of the export -> what the store calls it, where the two differ because the
            name was taken.
    """

    folder: Path
    n_trials: int
    n_rows: int
    files: tuple[str, ...]
    renamed: dict[str, str]


def export_store(
    store: Store | str | Path,
    out: str | Path,
    to: str = "parquet",
    *,
    split: str | None = None,
    physical: bool = False,
    per: str = "step",
    observed: bool = False,
) -> ExportReport:
    """Write a version, or one split of it, as plain files.

    Memory holds one row group or one trial at a time. The folder appears when all of it is
    written, or not at all.

    Args:
        store: An open store, or the path of one whose newest version is meant.
        out: A folder that does not exist yet, or is empty.
        to: `parquet`; `huggingface`: the same files under `data/`, with a data set card; `npz`: a
            file of arrays per trial.
        split: Only this one.
        physical: Values in physical units; by default as batches hold them, normalized, but
            missing where those hold 0. Channels of normalization scope `window` are physical in
            any case: rows alone make no window.
        per: Of Parquet: a row per time `step`, or a row with lists per `trial`.
        observed: Of Parquet: also a column `<channel>.observed` per channel, where the store
            knows which values the source held. Arrays always have it.

    Raises:
        InvalidSpecError: If an argument is none of these, or `out` is in use.
        StoreNotFoundError: If there is no such store or split.
        CorruptStoreError: If its files are not what they should be.
    """
    opened = store if isinstance(store, Store) else Store(store)
    final = _checked(opened, Path(out), to, per)
    trials = _trials_by_split(opened, split)
    table = TrialTable(opened, physical=physical, per=per, observed=observed)
    final.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(final.parent) as folder:
        if to == "npz":
            write_npz(table, folder, trials)
        else:
            data = folder / "data" if to == "huggingface" else folder
            written = [_write_split(table, data, names) for names in _named(trials)]
            if to == "huggingface":
                with replacing(folder / "README.md") as file:
                    file.write(dataset_card(table, written).encode())
        files = tuple(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")))
        sync_folder(folder)
        if not claim_folder(folder, final):
            raise _in_use(final)
    numbers = np.concatenate(list(trials.values()))
    return ExportReport(
        folder=final,
        n_trials=len(numbers),
        n_rows=int(opened.index.n_rows[numbers].sum()),
        files=files,
        renamed={} if to == "npz" else table.renamed,
    )


def _checked(store: Store, out: Path, to: str, per: str) -> Path:
    for name, got, wanted in (("to", to, FORMATS), ("per", per, ("step", "trial"))):
        if got not in wanted:
            raise InvalidSpecError(f"{name} is {got!r}; wanted one of {', '.join(wanted)}.")
    if store.manifest.layout != "rows":
        raise InvalidSpecError(
            f"{store.path} has layout {store.manifest.layout!r}: it holds windows, not the rows of "
            "trials. Export a store that was built with shards.layout: rows."
        )
    final, root = out.resolve(), store.path.resolve()
    if final.is_relative_to(root):
        raise InvalidSpecError(
            f"{out} lies in the store {store.path}, which holds nothing but its own files. "
            "Choose a folder outside of it."
        )
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise _in_use(out)
    return final


def _in_use(out: Path) -> InvalidSpecError:
    return InvalidSpecError(
        f"{out} exists and is not an empty folder; an export overwrites nothing. "
        "Choose another name, or remove it."
    )


def _trials_by_split(store: Store, split: str | None) -> Mapping[str, Sequence[int]]:
    """Return the trial numbers of each split that has any."""
    wanted = store.manifest.splits if split is None else (split,)
    found = {s: np.flatnonzero(store.index.split == store.split_code(s)).tolist() for s in wanted}
    found = {s: numbers for s, numbers in found.items() if numbers}
    if not found:
        raise InvalidSpecError(
            f"{store.path} {store.version} has no trials in {split or 'any split'}; nothing to "
            f"export. Look at: trialshards inspect {store.path}"
        )
    return found


def _named(trials: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, str, Sequence[int]]]:
    """Yield (split, its name in files, its trials)."""
    for (split, numbers), name in zip(trials.items(), file_names(list(trials)), strict=True):
        yield split, name, numbers


def _write_split(
    table: TrialTable, folder: Path, named: tuple[str, str, Sequence[int]]
) -> SplitFiles:
    """Write the files of one split, whole trials in each."""
    split, name, numbers = named
    schema = table.schema
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    files: list[Path] = []
    n_examples = n_bytes = 0
    waiting = iter(numbers)
    number: int | None = next(waiting, None)
    while number is not None:
        files.append(folder / f"{name}-{len(files):05d}.part")
        with replacing(files[-1]) as sink, pq.ParquetWriter(
            sink, schema, compression="zstd", use_dictionary=texts, write_page_checksum=True
        ) as writer:  # fmt: skip
            group, in_file = _RowGroup(writer), 0
            while number is not None and in_file < FILE_BYTES:
                for batch in table.batches(number, _batch_rows(table)):
                    in_file += batch.nbytes
                    n_examples += batch.num_rows
                    group.add(batch)
                number = next(waiting, None)
            group.flush()
        n_bytes += in_file
    for place, path in enumerate(files):
        path.rename(folder / f"{name}-{place:05d}-of-{len(files):05d}.parquet")
    sync_folder(folder)
    return SplitFiles(split, name, n_examples, n_bytes)


def _batch_rows(table: TrialTable) -> int:
    """Return how many rows are read at once: fewer where they are wide."""
    return max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // (8 * len(table.columns))))


class _RowGroup:
    """Batches of trials on their way into one row group: a group per short trial would be slow."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take a batch; write what has come together if it would get too much."""
        if (
            self._rows + batch.num_rows > ROW_GROUP_ROWS
            or self._bytes + batch.nbytes > ROW_GROUP_BYTES
        ):
            self.flush()
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes

    def flush(self) -> None:
        """Write what has come together."""
        if self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches), ROW_GROUP_ROWS)
        self._batches, self._rows, self._bytes = [], 0, 0
