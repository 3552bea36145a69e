"""`trialshards build | inspect | verify | train`.

Rooms are imported inside the commands: `trialshards --help` must not wait for torch.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from shards.errors import TrialShardsError

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def _plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show our own errors as sentences; anything else is a bug and keeps its traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except TrialShardsError as error:
            raise click.ClickException(str(error)) from error

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trialshards")
@click.option("--verbose", is_flag=True, help="Log what happens to standard error.")
def main(verbose: bool) -> None:
    """Thousands of trial files in, exact training batches out."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


@main.command()
@click.argument("spec", type=FILE)
@click.option("--store", type=FOLDER, required=True, help="Where the store is or shall be.")
@click.option("--workers", type=click.IntRange(1), help="Threads; default: one per processor.")
@_plain_errors
def build(spec: Path, store: Path, workers: int | None) -> None:
    """Build the data set that SPEC (dataset.yaml) describes, as the store's next version."""
    from pipeline.build import build as build_store
    from trialshards.progress import build_progress
    from trialshards.report import print_build

    with build_progress() as on_progress:
        report = build_store(spec, store, on_progress=on_progress, n_workers=workers)
    print_build(report)


@main.command()
@click.argument("store", type=FOLDER)
@click.option("--version", help="A version such as v0003; default: the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@_plain_errors
def inspect(store: Path, version: str | None, as_json: bool) -> None:
    """Say what a store holds: files, trials, refusals, rows, windows, identity."""
    from shards import Store
    from trialshards.report import describe_store, print_store

    opened = Store(store, version)
    if as_json:
        click.echo(json.dumps(describe_store(opened), indent=2))
    else:
        print_store(opened)


@main.command()
@click.argument("store", type=FOLDER)
@click.option("--version", help="A version such as v0003; default: the newest.")
@_plain_errors
def verify(store: Path, version: str | None) -> None:
    """Check every byte of a store; exit 1 and name shard and trials if one is wrong."""
    from shards.verify import verify_store
    from trialshards.progress import shard_progress

    with shard_progress() as on_shard:
        problems = verify_store(store, version, on_shard=on_shard)
    for problem in problems:
        click.echo(str(problem), err=True)
    if problems:
        advice = "Restore these files from a copy, or delete their shards and build again."
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise click.ClickException(f"{store}: {count}. {advice}")
    click.echo(f"{store}: every byte is as promised.")


@main.command()
@click.argument("config", type=FILE)
@click.option("--fresh", is_flag=True, help="Forget checkpoints of an earlier run.")
@click.option("--seed", type=int, help="Override the seed of the weights.")
@click.option("--out", type=FOLDER, help="Override the run folder.")
@_plain_errors
def train(config: Path, fresh: bool, seed: int | None, out: Path | None) -> None:
    """Train and evaluate the model that CONFIG describes; a killed run goes on where it was."""
    from training import TrainConfig, evaluate, progress_bar
    from training import train as train_model
    from training.memory import keep_freed_memory
    from trialshards.report import print_training

    keep_freed_memory()
    loaded = TrainConfig.read(config)
    changes = {"seed": seed, "out": out.resolve() if out else None}
    loaded = loaded.model_copy(update={k: v for k, v in changes.items() if v is not None})
    with progress_bar() as progress:
        result = train_model(loaded, fresh=fresh, progress=progress)
    if result.status == "interrupted":
        raise click.ClickException(
            f"stopped after {result.steps} steps; a checkpoint is in {result.out}. "
            "Run the same command without --fresh to go on."
        )
    print_training(loaded, result, evaluate(loaded))


if __name__ == "__main__":
    main()
