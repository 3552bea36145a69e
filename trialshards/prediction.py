"""What a trained model says of new raw files: from files to one Parquet table.

New files become a store of their own (`pipeline/transformstore.py`) in a temporary folder, and the
run's own stream and predictor read it, so that predictions are those of `trialshards evaluate`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import Refusal
from pipeline.transform import Transform
from pipeline.transformstore import NewStore, write_new_store
from pipeline.transformtails import write_tails
from shards import InvalidSpecError, Store, StoreNotFoundError, WindowSpec
from shards.disk import replacing
from shards.windows import count_windows
from training.build import build_model, start_fabric
from training.checkpoint import load_checkpoint
from training.config import TrainConfig, choose_windows
from training.predict import Predictor
from training.streams import open_stream
from training.tables import predictions_table
from training.target import Objective
from trialshards.predictiontable import NewRows, find_silent

Int64 = npt.NDArray[np.int64]

_EMPTY = pa.table(
    {"trial": pa.array([], pa.utf8()), "row": pa.array([], pa.int64()),
     "ahead": pa.array([], pa.int32())}
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What is to be predicted, and by what.

    Attributes:
        checkpoint: Of a run.
        files: New raw files.
        store: Where the run's store is now; None: where it was.
        dataset: The `dataset.yaml` of the store, where inputs come from hooks or tables.
        root: Trials are named by their paths below it.
    """

    checkpoint: Path
    files: Sequence[Path]
    store: Path | None = None
    dataset: Path | None = None
    root: Path | None = None


@dataclass(frozen=True)
class Predicted:
    """What came of it.

    Attributes:
        n_rows: Rows that were written.
        n_trials: Trials that they are of.
        refusals: Files, and trials of files with many, without predictions, and why.
    """

    n_rows: int
    n_trials: int
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class _Run:
    """A trained model and what it was trained on."""

    config: TrainConfig
    objective: Objective
    store: Store
    weights: dict[str, Any]


def predict_files(asked: Asked, out: Path) -> Predicted:
    """Write what a model says of new files, all at once or nothing.

    Args:
        asked: The model and the files.
        out: A Parquet file, which is replaced: `trial`, `row`, `ahead` and `time` (with a time
            column; null behind the end of a trial), `predicted_<column>` in physical units, and
            what an evaluation adds for quantiles and classes. A class is said by its name.

    Raises:
        CheckpointNotFoundError: If there is none.
        StoreNotFoundError: If the store of the run is not where it was.
        InvalidSpecError: If that store holds other data than the run learned from, or new files
            cannot be treated as it was built.
    """
    run = _open_run(asked)
    transform = Transform.load(run.store, dataset=asked.dataset)
    with tempfile.TemporaryDirectory(prefix="trialshards-") as folder:
        new = write_new_store(
            transform, asked.files, Path(folder) / "new", root=asked.root,
            split=run.config.evaluate.split,
        )  # fmt: skip
        if new.store is None:
            return Predicted(0, 0, new.refusals)
        table = _predict(run, new, Path(folder))
    silent = find_silent(new, table, run.config)
    if table.num_rows:
        with replacing(out) as file:
            pq.write_table(table, file, compression="zstd")
    return Predicted(table.num_rows, len(table["trial"].unique()), (*new.refusals, *silent))


def _open_run(asked: Asked) -> _Run:
    saved = load_checkpoint(asked.checkpoint)
    told = saved["run"]
    config = TrainConfig.model_validate(told["config"])
    path, split = asked.store or config.store, config.data.train_split
    learned = [
        told["fingerprints"].get(f"store {number} {split}" if number else split)
        for number in range(len(told["objectives"]))
    ]
    stores = _open_versions(path, str(told["store_version"]), asked)
    for store in stores:
        mine = store.manifest.fingerprints.get(split)
        if mine in learned and mine is not None:
            objective = Objective(**told["objectives"][learned.index(mine)])
            return _Run(config, objective, store, saved["model"])
    raise InvalidSpecError(
        f"{asked.checkpoint} was not trained on {path} {stores[0].version}: its split {split!r} "
        "holds other trials, or was fitted otherwise. Name the store of the run: --store STORE"
    )


def _open_versions(path: Path, version: str, asked: Asked) -> list[Store]:
    """Return the version that a run learned from, if it is there, and the newest."""
    stores = []
    for name in (version, None):
        try:
            stores.append(Store(path, name))
        except StoreNotFoundError as error:
            missing = error
    if not stores:
        raise StoreNotFoundError(
            f"{asked.checkpoint} was trained on {path}, where no store is. If it was moved, say "
            "where: --store STORE"
        ) from missing
    return stores


def _predict(run: _Run, new: NewStore, folder: Path) -> pa.Table:
    """Return predictions by trial, row and rows ahead."""
    config = _for_new_trials(run.config)
    windows = choose_windows(config, run.store.manifest.windows)
    if config.evaluate.at == "last" and config.data.batches == "windows":
        windows = dataclasses.replace(windows, stride=1, short="pad")
    device = config.device.model_copy(update={"devices": 1})
    fabric = start_fabric(config.model_copy(update={"device": device}))
    network = build_model(run.store, config, run.objective)
    network.load_state_dict(run.weights)
    predictor = Predictor(
        model=fabric.setup_module(network).eval(),
        config=config.model,
        objective=run.objective,
        naive=(np.nan,) * len(run.objective.columns),
        last_only=config.evaluate.at == "last",
        beyond=True,
    )
    assert new.store is not None
    n_rows, rows, tables = new.store.index.n_rows, NewRows(new, run.objective), [_EMPTY]
    for part in _parts(run, new, folder, windows):
        if not part.is_readable(run, windows):
            continue
        stream = open_stream(part.store, config, config.evaluate.split, windows=windows)
        for said in predictor.predict(stream, fabric.device):
            table = predictions_table(said, part.store, run.objective)
            number, row = part.numbers[said.trial], said.row + part.first_row[said.trial]
            origin_is_known = row - said.ahead < n_rows[number]
            fresh = np.flatnonzero((row >= part.known[said.trial]) & origin_is_known)
            if len(fresh):
                tables.append(rows.name(table.take(fresh), number[fresh], row[fresh]))
    table = pa.concat_tables(tables[len(tables) > 1 :])
    return table.sort_by([(name, "ascending") for name in _EMPTY.column_names])


def _for_new_trials(config: TrainConfig) -> TrainConfig:
    """Return the config without what chooses and weighs the trials of a known store."""
    data = config.data.model_copy(update={"where": None, "weights": "own"})
    return config.model_copy(update={"data": data})


@dataclass(frozen=True)
class _Part:
    """Trials to be predicted.

    Attributes:
        store: Where they lie.
        numbers: int64, the number that each has among the new trials.
        first_row: int64, the row there that each begins with.
        known: int64, rows there that another part predicts.
    """

    store: Store
    numbers: Int64
    first_row: Int64
    known: Int64

    def is_readable(self, run: _Run, windows: WindowSpec) -> bool:
        """Return whether any of them is long enough for the run's batches."""
        n_rows = self.store.index.n_rows
        if run.config.data.batches == "windows":
            return bool(count_windows(n_rows, windows).any())
        return not run.objective.dense or bool((n_rows > windows.ahead).any())


def _parts(run: _Run, new: NewStore, folder: Path, windows: WindowSpec) -> Iterator[_Part]:
    """Yield the new trials, and then the ends of those whose windows leave something to say.

    A window of a forecast ends before the rows that its target is taken from, and a trial that is
    all of those is in no batch; windows with a stride may end before the last row.
    """
    assert new.store is not None
    n_rows, length = new.store.index.n_rows, windows.length
    nothing = np.zeros(len(n_rows), np.int64)
    yield _Part(new.store, np.arange(len(n_rows)), nothing, nothing)
    if run.objective.dense:
        numbers, known = np.flatnonzero(n_rows <= windows.ahead), nothing
        windows = dataclasses.replace(windows, length=max(length, windows.ahead))
    elif run.config.data.batches != "windows" or run.objective.kind in ("per_trial", "class"):
        return
    elif run.objective.kind == "forecast":
        numbers, known = np.array(new.last_segments(), np.int64), n_rows
    else:
        known = (n_rows - length) // windows.stride * windows.stride + length
        numbers = np.flatnonzero((n_rows > length) & (known < n_rows))
    if len(numbers):
        tails = write_tails(new.store, folder / "tails", windows, numbers.tolist())
        first_row = np.maximum(n_rows[numbers] - windows.length, 0)
        yield _Part(tails, numbers, first_row, known[numbers])
