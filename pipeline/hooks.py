"""Python functions of a user: found, loaded once per process, called with one trial.

A hook may fail in any way on a trial; that refuses the trial and stops no build. A hook file that
is not there or does not load is a mistake of `dataset.yaml` and does stop it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.abc
import importlib.util
import symtable
import sys
import traceback
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import polars as pl

from pipeline.files import RefusedError, count_of, quote
from pipeline.trials import Float64
from shards.errors import InvalidSpecError

_FAILURES = (Exception, SystemExit, pl.exceptions.PanicException)
_NUMBER = (int, float, np.integer, np.floating, np.bool_)


@dataclass(frozen=True)
class HookFile:
    """A function in a file, as it was when the data set was loaded.

    Attributes:
        where: The field that names it, for messages: `derive.speed.hook`.
        path: The file.
        function: Name of the function.
        digest: SHA-256 of the file, hexadecimal.
    """

    where: str
    path: Path
    function: str
    digest: str


def find_hook(where: str, hook: str, folder: Path) -> HookFile:
    """Return the file and function that `file.py:function` names; nothing is executed.

    Args:
        where: The field, for messages.
        hook: What the user wrote.
        folder: Folder of `dataset.yaml`.

    Raises:
        InvalidSpecError: If the file is not below the folder, cannot be read or is not Python, or
            if it has no such function.
    """
    file, _, function = hook.rpartition(":")
    if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
        raise InvalidSpecError(f"{where}: got {file!r}; wanted a file below {folder}.")
    path = folder / file
    try:
        source = path.read_bytes()
        names = symtable.symtable(source.decode(), str(path), "exec")
    except OSError as error:
        raise InvalidSpecError(f"{where}: cannot read {path}: {error.strerror}.") from error
    except SyntaxError as error:
        raise InvalidSpecError(
            f"{where}: {file}, line {error.lineno}: not Python: {error.msg}."
        ) from error
    except ValueError as error:
        raise InvalidSpecError(f"{where}: {file} is not Python in UTF-8: {error}.") from error
    there = {
        one.get_name() for one in names.get_symbols() if one.is_assigned() or one.is_imported()
    }
    if function not in there:
        raise InvalidSpecError(
            f"{where}: {file} defines no {function!r}; it has: "
            f"{', '.join(sorted(there)) or 'nothing'}."
        )
    return HookFile(where, path, function, hashlib.sha256(source).hexdigest())


def digest_hooks(hooks: Iterable[HookFile]) -> str:
    """Return one digest of all files in the order given; empty without any."""
    said = "\n".join(f"{hook.where} {hook.function} {hook.digest}" for hook in hooks)
    return hashlib.sha256(said.encode()).hexdigest() if said else ""


def call_hook(
    column: str, hook: HookFile, frame: pl.DataFrame, attributes: dict[str, str]
) -> Float64:
    """Return the new column of one trial, NaN where missing.

    Args:
        column: Name of the new column.
        hook: The function.
        frame: The trial's columns that the hook reads. It is safe from the hook: polars copies
            what is written to.
        attributes: The trial's attributes that the hook reads.

    Raises:
        RefusedError: `hook_failed`: an exception, or not one finite number per row.
        InvalidSpecError: If the file cannot be loaded.
    """
    function = _load(hook)
    where = f"derive.{column}: {hook.path.name}"
    try:
        values = _as_numbers(function(frame, attributes))
        _check_values(values, frame.height)
    except _UnusableError as error:
        message = f"{where}: {hook.function}() returned {error}."
        raise RefusedError("hook_failed", message, column=column) from error
    except _FAILURES as error:
        line = _line_in(hook.path, error)
        message = f"{where}{line}: {type(error).__name__}: {quote(str(error))}."
        raise RefusedError("hook_failed", message, column=column) from error
    return values


class _UnusableError(Exception):
    """A hook ran and returned something that is not one finite number per row."""


def _check_values(values: Float64, n_rows: int) -> None:
    if values.shape != (n_rows,):
        got = count_of(len(values), "value") if values.ndim == 1 else f"shape {values.shape}"
        raise _UnusableError(f"{got}; wanted {n_rows:,}, one per row")
    infinite = np.isinf(values)
    if infinite.any():
        raise _UnusableError(f"an infinite value at row {int(infinite.argmax()) + 1}")


class _Loader(importlib.abc.InspectLoader):
    """Executes bytes that were read before; writes no bytecode into the user's folder."""

    def __init__(self, source: bytes, path: Path) -> None:
        self._source, self._path = source, path

    def get_source(self, fullname: str) -> str:  # noqa: ARG002
        return self._source.decode()

    def get_code(self, fullname: str) -> types.CodeType:  # noqa: ARG002
        return self.source_to_code(self._source, str(self._path))


@functools.cache
def _load(hook: HookFile) -> Callable[[pl.DataFrame, dict[str, str]], Any]:
    function = getattr(_module(hook.where, hook.path, hook.digest), hook.function, None)
    if not callable(function):
        raise InvalidSpecError(f"{hook.where}: {hook.function!r} is no function.")
    return function  # type: ignore[no-any-return]


@functools.cache
def _module(where: str, path: Path, digest: str) -> types.ModuleType:
    """Return the executed file; only the content that entered the reuse key will do."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InvalidSpecError(f"{where}: cannot read {path}: {error.strerror}.") from error
    if hashlib.sha256(source).hexdigest() != digest:
        raise InvalidSpecError(f"{where}: {path} changed during the build. Build again.")
    name = f"_trialshards_hook_{digest}"
    spec = importlib.util.spec_from_loader(name, _Loader(source, path), origin=str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look themselves up
    try:
        spec.loader.exec_module(module)
    except _FAILURES as error:
        del sys.modules[name]
        raise InvalidSpecError(
            f"{where}: {path}{_line_in(path, error)} cannot be loaded: "
            f"{type(error).__name__}: {error}."
        ) from error
    return module


def _line_in(path: Path, error: BaseException) -> str:
    """Return `:12` for the innermost line of the file that was being executed."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""


def _as_numbers(given: Any) -> Float64:
    """Return float64 of a Series, an array or a list; None, null and masked become NaN."""
    kind = type(given).__name__
    if isinstance(given, pl.Series):
        if given.dtype.is_numeric() or given.dtype in (pl.Boolean, pl.Null):
            return given.cast(pl.Float64).to_numpy()
        kind = f"a Series of {given.dtype}"
    elif isinstance(given, list | tuple):
        others = (v for v in given if not (v is None or isinstance(v, _NUMBER)))
        other = next(others, None)
        if other is None:
            return np.array([np.nan if v is None else v for v in given], np.float64)
        kind = f"{kind} with {type(other).__name__}"
    elif isinstance(given, np.ndarray):
        if given.dtype.kind in "biuf":
            values = given.astype(np.float64)
            return np.ma.filled(values, np.nan) if isinstance(values, np.ma.MaskedArray) else values
        kind = f"an array of {given.dtype}"
    raise _UnusableError(f"{kind}; wanted numbers: a Series, an array or a list")
