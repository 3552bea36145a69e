"""What `train` and `evaluate` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from trialshards.storereport import print_store

if TYPE_CHECKING:
    from training import Evaluation, TrainConfig, TrainResult


def print_training(config: TrainConfig, result: TrainResult, evaluation: Evaluation | None) -> None:
    """Print what a training job came to: data, errors beside the baseline's, where things lie."""
    from shards import Store

    console = Console()
    print_store(Store(config.store, config.version))
    best = "" if result.best_loss is None else f", validation loss {result.best_loss:.4g}"
    console.print(
        f"{result.status} after {result.epochs} epochs, {result.steps:,} steps, "
        f"{result.seconds:.0f} s; best epoch {result.best_epoch}{best}",
        highlight=False,
        soft_wrap=True,
    )
    if evaluation is None:
        _print_places(console, config)
    else:
        print_evaluation(config, evaluation)


def print_evaluation(config: TrainConfig, evaluation: Evaluation) -> None:
    """Print errors beside the baseline's, and where things lie."""
    console = Console()
    every = "every window" if config.data.batches == "windows" else "every row"
    where = "last row of each trial" if evaluation.at == "last" else every
    console.print(
        f"{evaluation.split} split, {where}, {evaluation.n_trials:,} trials, physical units; "
        "macro: mean over trials",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_error_table(evaluation, _units(config)))
    if "pinball" in evaluation.metrics:
        console.print(_quantile_table(evaluation))
    _print_places(console, config)
    console.print(f"plots        {evaluation.folder}", highlight=False, soft_wrap=True)


def _print_places(console: Console, config: TrainConfig) -> None:
    console.print(f"store        {config.store}", highlight=False, soft_wrap=True)
    console.print(f"checkpoints  {config.out}", highlight=False, soft_wrap=True)


def _units(config: TrainConfig) -> dict[str, str]:
    from shards import Store

    return {c.name: c.unit for c in Store(config.store, config.version).manifest.channels}


def _error_table(evaluation: Evaluation, units: dict[str, str]) -> Table:
    """Micro is over all elements; macro is the mean over trials, each counting the same."""
    metrics = evaluation.metrics
    if "accuracy" in metrics:
        return _class_table(evaluation)
    if "auroc" in metrics:
        return _binary_table(evaluation)
    naive = f"RMSE of {evaluation.baseline}"
    heads = ("target", "unit", "RMSE", naive, "MAE", "skill", "macro RMSE")
    table = Table(*heads, box=None, pad_edge=False)
    for name, part in metrics["by_column"].items():
        table.add_row(
            name,
            units.get(name, ""),
            f"{part['rmse']:.4g}",
            f"{part['naive_rmse']:.4g}",
            f"{part['mae']:.4g}",
            f"{part['skill']:.3f}",
            f"{part['macro']['rmse']:.4g}",
        )
    return table


def _class_table(evaluation: Evaluation) -> Table:
    metrics = evaluation.metrics
    table = Table("", "model", evaluation.baseline, box=None, pad_edge=False)
    macro = {f"macro_{name}": x for name, x in metrics.get("macro", {}).items()}
    macro["naive_macro_accuracy"] = macro.get("macro_naive_accuracy")
    known = metrics | macro
    for name in ("accuracy", "macro_accuracy", "balanced_accuracy", "macro_f1", "auroc"):
        if name not in known:
            continue
        naive = known.get(f"naive_{name}")
        shown = {"macro_f1": "F1, mean over classes", "auroc": "AUROC"}.get(
            name, name.replace("_", " ")
        )
        table.add_row(shown, f"{known[name]:.3f}", "" if naive is None else f"{naive:.3f}")
    return table


def _binary_table(evaluation: Evaluation) -> Table:
    """Chance has an AUROC of .5, and an average precision equal to the share of ones.

    The macro AUROC is the mean over the trials that have both ones and zeros.
    """
    heads = ("target", "AUROC", "macro", "average precision", "share of ones", "RMSE", "skill")
    table = Table(*heads, box=None, pad_edge=False)
    for name, part in evaluation.metrics["by_column"].items():
        table.add_row(
            name,
            f"{part['auroc']:.3f}",
            f"{part['macro']['auroc']:.3f}",
            f"{part['average_precision']:.3f}",
            f"{part['positive_share']:.4f}",
            f"{part['rmse']:.4g}",
            f"{part['skill']:.3f}",
        )
    return table


def _quantile_table(evaluation: Evaluation) -> Table:
    """The share of truths at or below quantile .1 should be .1."""
    heads = ("target", "quantile", "pinball loss", "truths at or below")
    table = Table(*heads, box=None, pad_edge=False)
    for name, part in evaluation.metrics["by_column"].items():
        for number, (level, found) in enumerate(part["quantiles"].items()):
            row = (f"{found['pinball']:.4g}", f"{found['coverage']:.1%}")
            table.add_row("" if number else name, f"{level[1:]}%", *row)
    return table
