"""`trialshards folds`: every fold of a cross-validation as a version of one store.

Rooms are imported inside the command: `trialshards --help` must not wait for them.
"""

from __future__ import annotations

from pathlib import Path

import click

from trialshards.sentences import plain_errors


@click.command(short_help="Build every fold of a data set as a version with a tag.")
@click.argument("spec", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--store", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Where the store is or shall be.")  # fmt: skip
@click.option("--prefix", default="fold", show_default=True, help="Of the tags: fold-0, fold-1.")
@click.option("--workers", type=click.IntRange(1), help="Threads; default: one per processor.")
@plain_errors
def folds(spec: Path, store: Path, prefix: str, workers: int | None) -> None:
    """Build the data set that SPEC (dataset.yaml) describes once for each of its folds.

    SPEC says `split: {method: folds, folds: k}`, or `leave_one_out` by an attribute: then each of
    its values is the test split once. Every fold is a version with statistics of its own and the
    tag fold-0, fold-1 and so on; files are read once. `folds: [fold-0, fold-1]` in a training
    configuration trains and scores them.
    """
    from pipeline.folds import build_folds
    from trialshards.progress import build_progress

    tags = []
    with build_progress() as on_progress:
        for fold in build_folds(
            spec, store, prefix=prefix, on_progress=on_progress, n_workers=workers
        ):
            tags.append(fold.tag)
            parts = ", ".join(f"{n:,} {split}" for split, n in fold.n_trials.items())
            click.echo(f"{fold.tag}  {fold.version}  test: {fold.test}; trials: {parts}")
    click.echo(f"in a training configuration: folds: [{', '.join(tags)}]")
