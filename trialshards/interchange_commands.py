"""`trialshards export | import`: stores to and from files of other tools."""

from __future__ import annotations

from pathlib import Path

import click

from trialshards.sentences import plain_errors

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
TABLE = click.Path(exists=True, path_type=Path)


@click.command("export")
@click.argument("store", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option(
    "--to", type=click.Choice(["parquet", "huggingface", "npz"]), default="parquet",
    show_default=True, help="Parquet tables; the same with a Hugging Face card; a .npz per trial.",
)  # fmt: skip
@click.option("--split", help="Only this split.")
@click.option("--physical", is_flag=True, help="Values in physical units, not normalized.")
@click.option(
    "--per", type=click.Choice(["step", "trial"]), default="step", show_default=True,
    help="Of tables: a row per time step, or a row of lists per trial.",
)  # fmt: skip
@click.option("--observed", is_flag=True, help="Of tables: also which values the source held.")
@click.option("--version", help="A version such as v0003, or a tag; default: the newest.")
@plain_errors
def export_command(
    store: Path, out: Path, to: str, split: str | None, physical: bool, per: str, observed: bool,
    version: str | None,
) -> None:  # fmt: skip
    """Write STORE as plain files into the new folder OUT."""
    from shards import Store
    from shards.export import export_store

    report = export_store(
        Store(store, version), out, to,
        split=split, physical=physical, per=per, observed=observed,
    )  # fmt: skip
    click.echo(
        f"{out}: {report.n_trials:,} trials, {report.n_rows:,} rows, {len(report.files):,} files"
    )
    for name, of in report.renamed.items():
        click.echo(f"column {name!r} is {of!r} of the store, whose name was taken")


@click.command("import")
@click.argument("table", type=TABLE)
@click.option("--trial", required=True, help="Column that tells trials apart.")
@click.option("--store", type=FOLDER, required=True, help="Where the store is or shall be.")
@click.option("--time", "time", help="Column of times.")
@click.option("--target", multiple=True, help="Column to predict; may be given several times.")
@click.option(
    "--kind", type=click.Choice(["forecast", "per_step", "per_trial"]),
    help="Of the target; default: per_trial if it has one value per trial, else forecast.",
)  # fmt: skip
@click.option("--window", type=click.IntRange(1), help="Rows of a window; default: 64.")
@click.option("--stride", type=click.IntRange(1), help="Rows between; default: a quarter of that.")
@click.option("--name", help="Of the data set; default: that of the table.")
@click.option("--spec-out", type=FILE, help="Where to write the dataset.yaml; default: by TABLE.")
@plain_errors
def import_command(
    table: Path, trial: str, store: Path, time: str | None, target: tuple[str, ...],
    kind: str | None, window: int | None, stride: int | None, name: str | None,
    spec_out: Path | None,
) -> None:  # fmt: skip
    """Write a dataset.yaml for TABLE, a Parquet file or folder of them, and build it."""
    from pipeline.tableimport import ImportOptions, import_table
    from trialshards.progress import build_progress
    from trialshards.storereport import print_build

    options = ImportOptions(trial, time, target, kind, window, stride, name)
    with build_progress() as on_progress:
        report = import_table(table, store, options, spec_out=spec_out, on_progress=on_progress)
    print_build(report.build)
    click.echo(f"wrote {report.spec}; edit it and run: trialshards build {report.spec}")
    for column, why in report.left_out.items():
        click.echo(f"left out: {column!r} ({why})")
