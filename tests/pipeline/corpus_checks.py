"""What must hold of every file of the corpus, read in a batch or built into a store."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import yaml
from corpus import Case
from reference_reader import Reading, bits_of, read_slowly

from pipeline.build import build
from pipeline.files import Refusal, SourceFile
from pipeline.sources.delimited import DelimitedLayout, read_delimited
from pipeline.trials import Table
from shards import Store
from shards.verify import verify_store

Outcome = Table | Refusal
ATTRIBUTES = ("payload",)
"""Text columns that builds of the corpus read."""


def read_batch(
    root: Path, contents: Sequence[bytes], layout: DelimitedLayout, *, compiled: bool | None = None
) -> list[Outcome]:
    """Read files as one batch; return the table or the refusal of each.

    Args:
        root: Folder for the files.
        contents: What is in them.
        layout: How they are written.
        compiled: Parse numbers by the compiled parser, or not; None leaves it to the reader.
    """
    files = []
    for i, content in enumerate(contents):
        path = root / f"{i}"
        path.write_bytes(content)
        seen = path.stat()
        files.append(SourceFile(path.name, seen.st_size, seen.st_mtime_ns, path.name))
    with pytest.MonkeyPatch.context() as patch:
        if compiled is not None:
            patch.setattr("pipeline.sources.delimited.is_worth_loading", lambda _: compiled)
        tables, refusals = read_delimited(root, files, layout)
    found: dict[str, Outcome] = {table.file.path: table for table in tables}
    found |= {refusal.source: refusal for refusal in refusals}
    assert len(tables) + len(refusals) == len(found) == len(contents)
    return [found[file.path] for file in files]


def disagreement(content: bytes, layout: DelimitedLayout, outcome: Outcome) -> str | None:
    """Return how an outcome differs from the slow reading; None if it does not."""
    wanted = read_slowly(content, layout)
    if isinstance(outcome, Refusal):
        if wanted.columns is None or wanted.doubtful:
            return refusal_fault(content, outcome)
        return f"refused ({outcome.code}: {outcome.message}), and the rules accept it"
    if wanted.columns is None:
        return f"accepted, and the rules refuse it ({wanted.reason})"
    if outcome.numbers.dtype != np.float64 or not outcome.numbers.flags.c_contiguous:
        return "the numbers are no float64 matrix in C order"
    for place, name in enumerate(layout.numeric):
        bits = np.ascontiguousarray(outcome.numbers[:, place]).view(np.uint64)
        exact = bits_of(wanted.columns[name])
        if len(bits) != len(exact) or (bits != exact).any():
            return f"column {name!r} is {bits.view(np.float64)}, wanted {wanted.columns[name]}"
    for name in layout.text:
        if outcome.text[name].to_list() != wanted.columns[name]:
            return f"{name!r} is {outcome.text[name].to_list()}, wanted {wanted.columns[name]}"
    return None


def refusal_fault(content: bytes, refusal: Refusal) -> str | None:
    """Return what is wrong with how a file is refused: no code, no advice, a long quotation."""
    if not refusal.code.replace("_", "").isalnum() or not 20 < len(refusal.message) < 600:
        return f"refused with code {refusal.code!r} and message {refusal.message!r}"
    n_lines = content.count(b"\n") + content.count(b"\r") + 1
    packed = content.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd"))
    if refusal.line is not None and not packed and not 1 <= refusal.line <= n_lines:
        return f"refused at line {refusal.line} of {n_lines}"
    text, message = content.decode("utf-8", "replace"), refusal.message
    for at in range(len(message) - 40):
        if message[at : at + 41] in text:
            return f"quotes {message[at : at + 41]!r}, more than 40 characters"
    return None


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the body if it takes longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- whole builds -------------------------------------------------------------------------------


def write_folder(root: Path, cases: Sequence[Case]) -> Path:
    """Write the cases, all of one style, and a `dataset.yaml` that takes them as they are."""
    layout, style = cases[0].layout, cases[0].style
    source: dict[str, Any] = {
        "files": "raw/*.txt", "delimiter": layout.delimiter, "header": layout.header,
        "columns": list(layout.names),
    }  # fmt: skip
    if layout.delimiter is None:
        source |= {"format": "blank"}
    channels = list(layout.numeric)
    spec = {
        "name": style,
        "source": {key: value for key, value in source.items() if value not in (None, [])},
        "channels": channels,
        "attributes": {name: {"column": name} for name in layout.text if name in ATTRIBUTES},
        "normalize": {"method": "none"},
        "windows": {"length": 4, "target": {"kind": "forecast", "channels": channels[:1]}},
        "shards": {"buckets": 2},
        "max_quarantined": 1.0,
    }
    (root / "raw").mkdir(parents=True)
    for case in cases:
        (root / "raw" / f"{case.seed:06d}.txt").write_bytes(case.content)
    (root / "dataset.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return root / "dataset.yaml"


def check_build(root: Path, cases: Sequence[Case]) -> tuple[list[str], Counter[str]]:
    """Build a folder of cases; return what is wrong with the store, and how often which code."""
    report = build(write_folder(root, cases), root / "store", n_workers=2)
    store = Store(root / "store")
    faults = [str(problem) for problem in verify_store(root / "store")]
    rows = {row["source"]: number for number, row in enumerate(store.cold("source").to_pylist())}
    refused = {refusal.source: refusal for refusal in report.refusals}
    if len(refused) != len(report.refusals) or rows.keys() & refused.keys():
        faults.append("a file is in two places")
    for case in cases:
        source = _source(case)
        if (source in rows) == (source in refused):
            faults.append(f"{case}: accepted and refused, or neither")
        fault = (
            _refusal_in_build_fault(case, refused[source])
            if source in refused
            else stored_fault(case, store, rows[source])
        )
        if fault:
            faults.append(f"{case}: {fault}")
    faults += count_faults(store, cases, refused)
    return faults, Counter(refusal.code for refusal in refused.values())


def layout_in_build(case: Case) -> DelimitedLayout:
    """Return the case's layout without text columns that a build does not look at."""
    return replace(case.layout, text=tuple(set(case.layout.text) & set(ATTRIBUTES)))


IN_BUILD = ("beyond_float32", "attribute_not_constant", "duplicate_id")
"""Refusals that are no matter of how a file is written."""


def _refusal_in_build_fault(case: Case, refusal: Refusal) -> str | None:
    wanted = read_slowly(case.content, layout_in_build(case))
    if wanted.columns is None or wanted.doubtful or refusal.code in IN_BUILD:
        return refusal_fault(case.content, refusal)
    return f"refused ({refusal.code}: {refusal.message}), and the rules accept it"


def stored_fault(case: Case, store: Store, number: int) -> str | None:
    """Return how the stored rows differ from the slow reading."""
    wanted = read_slowly(case.content, layout_in_build(case))
    if wanted.columns is None:
        return f"stored, and the rules refuse it ({wanted.reason})"
    exact = matrix_of(wanted, case.layout).astype(np.float32)
    stored = np.array(store.trial_rows(number))
    if stored.shape != exact.shape or stored.tobytes() != exact.tobytes():
        return "the stored rows are others"
    return None


def matrix_of(wanted: Reading, layout: DelimitedLayout) -> Any:
    assert wanted.columns is not None
    return np.stack([bits_of(wanted.columns[n]).view(np.float64) for n in layout.numeric], axis=1)


def count_faults(store: Store, cases: Sequence[Case], refused: dict[str, Refusal]) -> list[str]:
    """Return how the manifest's counts differ from those of the raw files."""
    counts = store.manifest.counts
    read = [read_slowly(c.content, layout_in_build(c)) for c in cases if _source(c) not in refused]
    n_rows = sum(len(next(iter(r.columns.values()))) for r in read if r.columns)
    wanted = {
        "files": len(cases), "quarantined": len(refused), "trials": len(cases) - len(refused),
        "rows_in": n_rows, "rows": n_rows,
    }  # fmt: skip
    return [
        f"counts.{name} is {counts[name]}, wanted {number}"
        for name, number in wanted.items()
        if counts[name] != number
    ]


def _source(case: Case) -> str:
    return f"raw/{case.seed:06d}.txt"
