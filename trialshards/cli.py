"""`trialshards build | inspect | verify | train | evaluate`, and those of other modules here.

Rooms are imported inside the commands: `trialshards --help` must not wait for torch.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trialshards.export_commands import export_model_command
from trialshards.fold_commands import folds
from trialshards.interchange_commands import export_command, import_command
from trialshards.loading_commands import doctor, plan
from trialshards.patch_commands import add, patch
from trialshards.predict_commands import predict
from trialshards.sentences import plain_errors as _plain_errors
from trialshards.store_commands import compact, diff, gc, tag, tombstone, versions

if TYPE_CHECKING:
    from training import TrainConfig

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trialshards")
@click.option("--verbose", is_flag=True, help="Log what happens to standard error.")
def main(verbose: bool) -> None:
    """Thousands of trial files in, exact training batches out."""
    # Pydantic would look for plugins in the metadata of every package that is installed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


@main.command()
@click.argument("spec", type=FILE)
@click.option("--store", type=FOLDER, required=True, help="Where the store is or shall be.")
@click.option("--workers", type=click.IntRange(1), help="Threads; default: one per processor.")
@click.option("--refit", is_flag=True, help="Fit quartiles, regimes and vocabularies anew.")
@click.option("--fit", type=FILE, help="Normalize and encode by this fit.json; fit nothing.")
@_plain_errors
def build(spec: Path, store: Path, workers: int | None, refit: bool, fit: Path | None) -> None:
    """Build the data set that SPEC (dataset.yaml) describes, as the store's next version.

    Only files that are new or changed since the last version are read.
    """
    try:
        _build(spec, store, workers, refit=refit, fit=fit)
    except KeyboardInterrupt:
        click.echo("Interrupted; nothing is half-written. Run it again to go on.", err=True)
        raise SystemExit(130) from None


def _build(spec: Path, store: Path, workers: int | None, *, refit: bool, fit: Path | None) -> None:
    from pipeline.settled import find_settled
    from trialshards.storereport import print_build

    # Before the stages are loaded, which takes longer than to look at ten thousand files.
    if not refit and fit is None and (report := find_settled(spec, store)) is not None:
        print_build(report)
        return
    from pipeline.build import build as build_store
    from trialshards.progress import build_progress

    with build_progress() as on_progress:
        report = build_store(
            spec, store, on_progress=on_progress, n_workers=workers, refit=refit, fit=fit
        )
    print_build(report)


@main.command()
@click.argument("store", type=FOLDER)
@click.option("--version", help="A version such as v0003, or a tag; default: the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@_plain_errors
def inspect(store: Path, version: str | None, as_json: bool) -> None:
    """Say what a store holds: files, trials, refusals, rows, windows, identity."""
    from shards import Store
    from trialshards.storereport import describe_store, print_store

    opened = Store(store, version)
    if as_json:
        click.echo(json.dumps(describe_store(opened), indent=2))
    else:
        print_store(opened)


@main.command()
@click.argument("store", type=FOLDER)
@click.option("--version", help="A version such as v0003, or a tag; default: the newest.")
@click.option("--sources", type=FOLDER, help="Read the source files below it again, too.")
@_plain_errors
def verify(store: Path, version: str | None, sources: Path | None) -> None:
    """Check every byte of a store; exit 1 and name shard and trials if one is wrong."""
    from shards.verify import verify_store
    from trialshards.progress import shard_progress

    with shard_progress() as on_shard:
        problems = verify_store(store, version, sources=sources, on_shard=on_shard)
    for problem in problems:
        click.echo(str(problem), err=True)
    if problems:
        advice = "Restore these files from a copy, or delete their shards and build again."
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise click.ClickException(f"{store}: {count}. {advice}")
    click.echo(f"{store}: every byte is as promised.")


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what names a run: CONFIG and the fields that may be overridden."""
    for option in (
        click.option("--out", type=FOLDER, help="Override the run folder."),
        click.option("--seed", type=int, help="Override the seed of the weights."),
        click.argument("config", type=FILE),
    ):
        command = option(command)
    return command


def _read_config(path: Path, seed: int | None, out: Path | None) -> TrainConfig:
    from training.config import TrainConfig

    changes = {"seed": seed, "out": out.resolve() if out else None}
    known = {name: value for name, value in changes.items() if value is not None}
    read = TrainConfig.read(path)
    if seed is not None and read.seeds:
        raise click.UsageError(f"--seed with {path}, whose seeds are {list(read.seeds)}.")
    return read.model_copy(update=known)


@main.command()
@_run_options
@click.option("--fresh", is_flag=True, help="Forget checkpoints of an earlier run.")
@click.option("--renew", is_flag=True, help="Forget them only if data or config are other ones.")
@click.option("--no-evaluate", is_flag=True, help="Only train; `trialshards evaluate` scores.")
@_plain_errors
def train(
    config: Path, seed: int | None, out: Path | None, fresh: bool, renew: bool, no_evaluate: bool
) -> None:
    """Train and evaluate the model that CONFIG describes; a killed run goes on where it was."""
    if fresh and renew:
        raise click.UsageError(
            "--fresh and --renew contradict each other: --fresh starts over in any case, --renew "
            "only if data or config are other ones. Give one of them."
        )
    loaded = _read_config(config, seed, out)  # before torch: a typo is told at once
    if loaded.study is not None:
        from trialshards.study_report import train_study

        train_study(loaded, fresh=fresh, renew=renew, score=not no_evaluate)
        return
    from training import evaluate, progress_bar
    from training import train as train_model
    from training.memory import keep_freed_memory
    from trialshards.pipes import open_reporter
    from trialshards.report import print_training

    keep_freed_memory()
    with open_reporter(loaded.epochs) as told, progress_bar() as progress:
        result = train_model(
            loaded, fresh=fresh, renew=renew, progress=progress,
            on_metrics=told.on_metrics, on_step=told.on_step,
        )  # fmt: skip
        if result.status == "interrupted":
            raise click.ClickException(
                f"stopped after {result.steps} steps; a checkpoint is in {result.out}. "
                "Run the same command without --fresh to go on."
            )
        told.report_training(result)
    print_training(loaded, result, None if no_evaluate else evaluate(loaded))


@main.command()
@_run_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@_plain_errors
def evaluate(config: Path, seed: int | None, out: Path | None, as_json: bool) -> None:
    """Score the best weights of the run that CONFIG describes; writes tables and plots."""
    loaded = _read_config(config, seed, out)
    if loaded.study is not None:
        from trialshards.study_report import evaluate_study

        evaluate_study(loaded, as_json=as_json)
        return
    from training import evaluate as evaluate_run
    from trialshards.pipes import open_reporter
    from trialshards.report import print_evaluation

    with open_reporter() as told:
        evaluation = evaluate_run(loaded)
        told.report_evaluation(evaluation)
    if as_json:
        click.echo(json.dumps(evaluation.as_dict(), indent=2))
    else:
        print_evaluation(loaded, evaluation)


main.add_command(folds)
for _command in (add, patch, tag, versions, diff, gc, tombstone, compact, plan, doctor, predict):
    main.add_command(_command)
main.add_command(export_command)
main.add_command(export_model_command)
main.add_command(import_command)


if __name__ == "__main__":
    main()
