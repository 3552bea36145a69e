"""`trialshards add | patch`: single files into a store."""

from __future__ import annotations

from pathlib import Path

import click

from trialshards.sentences import plain_errors

_SPEC = click.argument("spec", type=click.Path(dir_okay=False, path_type=Path))
_FILES = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
_STORE = click.option(
    "--store", type=click.Path(file_okay=False, path_type=Path), required=True, help="The store."
)


@click.command()
@_SPEC
@_FILES
@_STORE
@plain_errors
def add(spec: Path, files: tuple[Path, ...], store: Path) -> None:
    """Put new FILES into the store that SPEC (dataset.yaml) built, without looking at others."""
    _patch(spec, files, store, new=True)


@click.command()
@_SPEC
@_FILES
@_STORE
@plain_errors
def patch(spec: Path, files: tuple[Path, ...], store: Path) -> None:
    """Read FILES again, whatever their size and time say, and replace or add their trials."""
    _patch(spec, files, store, new=False)


def _patch(spec: Path, files: tuple[Path, ...], store: Path, *, new: bool) -> None:
    from pipeline.patch import patch_files
    from trialshards.storereport import print_build

    # Paths are those of the shell, or else below the folder of dataset.yaml.
    named = [path.resolve() if path.exists() else path for path in files]
    print_build(patch_files(spec.resolve(), store, named, add=new))
