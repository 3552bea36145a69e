"""Errors as sentences, for every command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from shards.errors import TrialShardsError


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show our own errors as sentences; anything else is a bug and keeps its traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except TrialShardsError as error:
            raise click.ClickException(str(error)) from error

    return run
