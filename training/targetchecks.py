"""What a target must be for a loss; found before the first step, not in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from shards import InvalidSpecError, Store
from training.config import TrainConfig

BINARY = "binary_cross_entropy"
VALUES = ("mse", "mae", "huber", "quantile")
LOSSES = {
    "class": ("cross_entropy",),
    "step_class": ("cross_entropy",),
    "per_step": (*VALUES, BINARY),
    "per_trial": VALUES,
    "forecast": VALUES,
}


def check_target(kind: str, config: TrainConfig, loss: str, *, n_columns: int) -> None:
    """Refuse what this kind of target cannot do.

    Raises:
        InvalidSpecError: Naming field, value and what is possible.
    """
    target, batches = config.target, config.data.batches
    clips = kind in ("per_step", "per_trial") and loss != BINARY
    checks = (
        ("target.loss", loss, loss in LOSSES[kind],
         _either(LOSSES[kind]) + (", and cross_entropy needs target.classes"
                                  if kind == "per_step" and loss == "cross_entropy" else "")),
        ("target.clip", target.clip, target.clip is None or clips,
         "null: only values per step or per trial are clipped"),
        ("target.loss_on", target.loss_on, target.loss_on == "all" or kind == "per_step",
         "all: there is one prediction per row anyway"),
        ("target.loss_on", target.loss_on, target.loss_on == "all" or batches != "lanes",
         "all in lanes: a chunk's last step is nothing special"),
        ("target.classes", target.classes, target.classes is None or kind == "step_class",
         "null: only a target per step needs the number of its classes"),
        ("target.classes", target.classes, kind != "step_class" or n_columns == 1,
         "one target column, whose values are the codes"),
        ("target.label_smoothing", target.label_smoothing,
         target.label_smoothing == 0 or loss == "cross_entropy", "0 without cross_entropy"),
        ("target.positive_weight", target.positive_weight,
         target.positive_weight == 1 or loss == BINARY, f"1 without {BINARY}"),
        ("model.bidirectional", config.model.bidirectional,
         not config.model.bidirectional or (batches != "lanes" and kind != "forecast"),
         "false for forecasts and lanes, where the second direction would read ahead"),
        ("model.pool", config.model.pool,
         config.model.pool == "last" or kind in ("class", "per_trial"),
         "last: only one output per trial is pooled"),
        ("model.pool", config.model.pool, config.model.pool == "last" or batches != "lanes",
         "last in lanes: a chunk is not the trial"),
    )  # fmt: skip
    for name, got, good, wanted in checks:
        if not good:
            raise InvalidSpecError(
                f"{name} is {got!r} for a target of kind {kind}; wanted {wanted}. "
                f"Mend {name} in the training config."
            )


def _either(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def check_codes(store: Store, loss: str, n_classes: int, splits: Iterable[str | None]) -> None:
    """Refuse targets per step that are neither a code from 0 to n_classes - 1 nor missing.

    In layout windows rows that lie in no window are not stored, and so not looked at; no batch
    has them.

    Raises:
        InvalidSpecError: Naming the first such trial, column and value.
    """
    wanted = [store.split_code(split) for split in splits if split in store.manifest.splits]
    for number in np.flatnonzero(np.isin(store.index.split, wanted)).tolist():
        rows = store.trial_rows(number, "targets")
        code = (rows >= 0) & (rows < n_classes) & (rows == np.floor(rows))
        wrong = ~(code | np.isnan(rows))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise InvalidSpecError(
                f"target.loss is {loss!r}, but {store.manifest.target.columns[column]!r} of "
                f"trial {store.index.id_of(number)!r} is {rows[row, column]:g} at row {row}; "
                f"wanted {'0, 1' if n_classes == 2 else f'a code from 0 to {n_classes - 1}'} or "
                "missing. Take target.loss mse, or derive a column of such codes."
            )
