"""`trialshards train` and `evaluate` of a configuration that asks for a study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from training.config import TrainConfig
    from training.study import Run
    from training.studyrun import Orders
    from training.studytables import StudyResult
    from trialshards.pipes import Reporter


def train_study(config: TrainConfig, *, fresh: bool, renew: bool, score: bool) -> None:
    """Train every run of a study, score it if asked to, print and report the table.

    Raises:
        ClickException: If it was interrupted.
    """
    from training.memory import keep_freed_memory
    from training.record import progress_bar
    from training.studyrun import Orders
    from trialshards.pipes import is_first_process, open_reporter

    keep_freed_memory()
    with open_reporter(config.epochs) as told, progress_bar() as progress:

        def announce(run: Run, number: int, n_runs: int) -> None:
            for task in progress.task_ids:
                progress.update(task, visible=False)
            line = f"run {number + 1}/{n_runs}: {run.name}"
            if is_first_process():
                progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
                told.say(line)

        orders = Orders(
            score=score, fresh=fresh, renew=renew, on_run=announce, progress=progress,
            on_metrics=told.on_metrics, on_step=told.on_step,
        )  # fmt: skip
        result = _run(config, orders, told)
    if is_first_process():
        print_study(result)


def evaluate_study(config: TrainConfig, *, as_json: bool) -> None:
    """Score the trained runs of a study; print and report the table."""
    from training.studyrun import Orders
    from trialshards.pipes import open_reporter

    with open_reporter() as told:
        result = _run(config, Orders(train=False), told)
    if as_json:
        click.echo((result.folder / "study.json").read_text(), nl=False)
    else:
        print_study(result)


def _run(config: TrainConfig, orders: Orders, told: Reporter) -> StudyResult:
    from training.studies import run_study

    result = run_study(config, orders)
    if result.status == "interrupted":
        raise click.ClickException(
            f"stopped in {result.rows[-1]['run']}; a checkpoint is in {result.folder}. "
            "Run the same command without --fresh to go on."
        )
    told.report_study(result)
    if result.rows and all(row["status"] == "failed" for row in result.rows):
        errors = "; ".join(f"{row['run']}: {row['error']}" for row in result.rows)
        raise click.ClickException(f"every run failed: {errors}")
    return result


def print_study(result: StudyResult) -> None:
    """Print the table of a study, what it comes to, and where its files are."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a log has room for all columns
    n_finished = sum(row["status"] == "finished" for row in result.rows)
    hidden = {"epochs"} | ({"status"} if n_finished == len(result.rows) else set())
    shown = [{k: v for k, v in row.items() if k not in hidden} for row in result.rows]
    console.print(_table(shown))
    for row in result.rows:
        if row.get("error"):
            _say(console, f"{row['run']} failed: {row['error']}")
    if result.kind == "stages" and result.summary:
        _print_forgetting(console, result)
    else:
        _print_summary(console, result.summary)
    for name in ("study.csv", *result.files):
        _say(console, f"table        {result.folder / name}")


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return rows as a table that fits a terminal; `study.csv` has it all."""
    from rich.table import Table

    columns = list(dict.fromkeys(name for row in rows for name in row if name != "error"))
    short = [name.split(".")[-1] for name in columns]
    heads = [last if short.count(last) == 1 else name for name, last in zip(columns, short,
                                                                          strict=True)]  # fmt: skip
    table = Table(*heads, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_shown(row.get(name)) for name in columns))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_forgetting(console: Console, result: StudyResult) -> None:
    matrix = json.loads((result.folder / "forgetting.json").read_text())
    _say(console, f"{matrix['metric']} of the best weights of each stage on every data set:")
    sets = matrix["data_sets"]
    rows = [
        {"after stage": stage, **dict(zip(sets, values, strict=True))}
        for stage, values in zip(matrix["stages"], matrix["values"], strict=True)
    ]
    naive = {"after stage": "naive", **dict(zip(sets, matrix["naive"], strict=True))}
    console.print(_table([*rows, naive]))
    for name in ("mean_at_the_end", "backward_transfer", "forward_transfer", "forgetting"):
        _say(console, f"{name.replace('_', ' ')}: {_shown(matrix['summary'][name])}")


def _print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the mean of the runs beside what all of them together have."""
    together = summary.get("ensemble") or summary.get("pooled")
    for name, said in summary.get("runs", {}).items():
        line = f"{name.replace('_', ' ')}: {said['mean']:.4g} +- {_shown(said['sd'])} over the runs"
        if together and name in together:
            what = "ensemble" if "ensemble" in summary else "all folds pooled"
            line += f"; {what} {together[name]:.4g}"
        _say(console, line)
    if summary.get("trials_in_several_folds"):
        n = summary["trials_in_several_folds"]
        _say(console, f"{n:,} trials are in several folds: their predictions are not pooled")
    if summary.get("best_by_validation"):
        _say(console, f"lowest validation loss: {summary['best_by_validation']}")
