"""`trialshards export-model`: a trained model as one file for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from trialshards.sentences import plain_errors

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}


@click.command("export-model")
@click.argument("checkpoint", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--format", "to", type=click.Choice(list(SUFFIXES)), default="onnx", show_default=True,
    help="ONNX, or a torch.export program.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; default: beside CHECKPOINT, .onnx or .pt2.",
)  # fmt: skip
@click.option(
    "--store", type=click.Path(file_okay=False, path_type=Path),
    help="Where the run's store is, if it was moved.",
)  # fmt: skip
@click.option(
    "--state/--no-state", default=None,
    help="Take and return the hidden state, to go on where the last call ended; default: as "
    "trained, in lanes or not.",
)  # fmt: skip
@plain_errors
def export_model_command(
    checkpoint: Path, to: str, out: Path | None, store: Path | None, state: bool | None
) -> None:
    """Write the model of CHECKPOINT (run/best.ckpt) with its normalization inside.

    The file takes raw units and says physical ones, for any number of rows and steps.
    """
    from training.export import export_model

    out = out or checkpoint.with_suffix(SUFFIXES[to])
    done = export_model(checkpoint, out, "onnx" if to == "onnx" else "torch", store=store,
                        state=state)  # fmt: skip
    click.echo(f"{done.path}: {done.path.stat().st_size:,} bytes")
    for kind in ("inputs", "outputs"):
        for port in done.description[kind]:
            shape = ", ".join(str(size) for size in port["shape"])
            click.echo(
                f"{kind[:-1]:6} {port['name']:11} {port['dtype']} [{shape}]: {port['holds']}"
            )
