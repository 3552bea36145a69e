"""`trialshards plan | doctor`: what a stream will do, and what slows it down.

Rooms are imported inside the commands: `trialshards --help` must not wait for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trialshards.sentences import plain_errors

if TYPE_CHECKING:
    from trialshards.doctor import Check

FOLDER = click.Path(file_okay=False, path_type=Path)
BATCHES = ("windows", "trials", "lanes")
SHUFFLES = ("global", "blocks", "none")
BALANCES = ("window", "trial", "sqrt", "class")


def _stream_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what both ask of a stream."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON for programs."),
        click.option(
            "--workers", type=click.IntRange(0), default=0, show_default=True,
            help="DataLoader workers of each process.",
        ),
        click.option("--shuffle", type=click.Choice(SHUFFLES), default="global", show_default=True),
        click.option(
            "--batch-size", type=click.IntRange(1), default=256, show_default=True,
            help="Rows per optimizer step over all ranks; of lanes their number.",
        ),
        click.option("--split", default="train", show_default=True),
        click.option("--version", help="A version such as v0003, or a tag; default: the newest."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command(short_help="Say what an epoch of a stream comes to.")
@click.argument("store", type=FOLDER)
@_stream_options
@click.option("--batches", type=click.Choice(BATCHES), default="windows", show_default=True)
@click.option(
    "--chunk", type=click.IntRange(1), help="Steps of a chunk of a lane, T; default: 128."
)
@click.option("--balance", type=click.Choice(BALANCES), default="window", show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(0.01), default=2.0, show_default=True,
    help="How long to iterate the stream to see its speed.",
)  # fmt: skip
@plain_errors
def plan(store: Path, version: str | None, *, as_json: bool, **asked: Any) -> None:
    """Say what an epoch of a stream over STORE comes to: steps, padding, bytes, memory, speed.

    The stream is iterated for some seconds; nothing is trained, and nothing is written. A store
    of compressed shards is decoded into the local cache first, as by any loop over it.
    """
    if asked["chunk"] is not None and asked["batches"] != "lanes":
        raise click.UsageError("--chunk goes with --batches lanes.")
    from shards import Store

    opened = Store(store, version)  # before torch: that there is none is told at once
    from loaders import LaneBatches, TrialStream
    from trialshards.plan import describe_plan, print_plan

    batches = asked["batches"] if asked["chunk"] is None else LaneBatches(chunk=asked["chunk"])
    named = {name: asked[name] for name in ("split", "batch_size", "shuffle", "balance")}
    stream = TrialStream(opened, batches=batches, **named)
    about = describe_plan(stream, seconds=asked["seconds"], n_workers=asked["workers"])
    if as_json:
        click.echo(json.dumps(about, indent=2))
    else:
        print_plan(stream, about)


@click.command(short_help="Find what slows loading down, and say what to do.")
@click.argument("store", type=FOLDER, required=False)
@_stream_options
@click.option(
    "--processes", type=click.IntRange(1),
    help="Training processes on this machine; default: what torchrun, Open MPI or Slurm say.",
)  # fmt: skip
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Windows per second that training takes.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.01), default=1.0, show_default=True,
    help="How long to iterate the stream, in process and with workers.",
)  # fmt: skip
@click.option(
    "--ignore", multiple=True, metavar="NAME",
    help="A check whose finding is known; may be given several times.",
)  # fmt: skip
@plain_errors
def doctor(
    store: Path | None, version: str | None, *, as_json: bool, ignore: tuple[str, ...], **asked: Any
) -> None:
    """Look for what slows loading down on this machine and, with STORE, over that store.

    Each check says the figure it goes by; a finding says what to do as well. Exits with 1 if there
    is a finding, else with 0. Up to 64 MiB of the largest shard are read from the disk again; the
    stream is iterated for seconds. Nothing is written.
    """
    from shards import Store
    from trialshards.doctor import FINDING, Question, diagnose

    question = Question(
        split=asked["split"], batch_size=asked["batch_size"], shuffle=asked["shuffle"],
        n_workers=asked["workers"], n_processes=asked["processes"], rate=asked["rate"],
        seconds=asked["seconds"],
    )  # fmt: skip
    checks = diagnose(None if store is None else Store(store, version), question)
    unknown = sorted(set(ignore) - {check.name for check in checks})
    if unknown:
        known = ", ".join(repr(check.name) for check in checks)
        raise click.UsageError(f"--ignore {unknown[0]!r} is no check here; wanted one of {known}.")
    findings = [c for c in checks if c.state == FINDING and c.name not in ignore]
    if as_json:
        about = {
            "n_findings": len(findings),
            "ignored": sorted(set(ignore)),
            "checks": [check.as_dict() for check in checks],
        }
        click.echo(json.dumps(about, indent=2))
    else:
        _print_checks(checks, findings)
    if findings:
        raise SystemExit(1)


def _print_checks(checks: list[Check], findings: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    for check in checks:
        state, style = check.state, "dim"
        if check in findings:
            style = "red"
        elif check.remedy:
            state = "ignored"
        table.add_row(check.name, Text(state, style), Text(check.seen))
        if check.remedy:
            table.add_row("", "", Text(f"-> {check.remedy}", "bold"))
    console = Console()
    console.print(table)
    count = "1 finding" if len(findings) == 1 else f"{len(findings) or 'no'} findings"
    console.print(f"{count} in {len(checks)} checks", highlight=False)
