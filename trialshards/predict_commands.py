"""`trialshards predict`: what a trained model says of new raw files.

Rooms are imported inside the command: `trialshards --help` must not wait for torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trialshards.sentences import plain_errors

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(short_help="Say what a trained model says of new raw files.")
@click.argument("checkpoint", type=FILE)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=FILE, default="predictions.parquet", show_default=True,
    help="Where the predictions go; an older file is replaced.",
)  # fmt: skip
@click.option("--store", type=FOLDER, help="The store of the run, if it is not where it was.")
@click.option(
    "--dataset", type=FILE,
    help="Its dataset.yaml, where inputs come from hooks or tables that lie beside it.",
)  # fmt: skip
@click.option("--root", type=FOLDER, help="Name trials by the paths of FILES below this folder.")
@plain_errors
def predict(checkpoint: Path, files: tuple[Path, ...], out: Path, **told: Any) -> None:
    """Predict new raw FILES by the model in CHECKPOINT, such as runs/arm/best.ckpt.

    Files are parsed, cleaned, encoded and normalized as those of the run's store were, with what
    was fitted then; they need no targets. The table has a row per trial and predicted row, in
    physical units. Files that a build would refuse are listed, and make the command exit with 1
    once the others are predicted.
    """
    from trialshards.prediction import Asked, predict_files

    found = predict_files(Asked(checkpoint, files, **told), out)
    for refusal in found.refusals:
        click.echo(f"{refusal.source}: {refusal.code}: {refusal.message}", err=True)
    if found.n_rows:
        trials = "1 trial" if found.n_trials == 1 else f"{found.n_trials:,} trials"
        click.echo(f"{found.n_rows:,} predictions of {trials} are in {out}.")
    if found.refusals:
        n_refused = len(found.refusals)
        what = "1 refusal" if n_refused == 1 else f"{n_refused:,} refusals"
        rest = "" if found.n_rows else " Nothing was written."
        raise click.ClickException(f"{what}, see above: mend these, and predict them again.{rest}")
