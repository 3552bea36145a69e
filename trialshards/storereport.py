"""What `build`, `inspect` and their like print of a store.

By click alone: a build that finds nothing to do is over before rich would be loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pipeline.outcome import BuildReport
    from shards import Store

SHOWN_REFUSALS = 20


def describe_store(store: Store) -> dict[str, Any]:
    """Return what `inspect --json` prints; keys are stable."""
    from shards.shape import describe_shape

    manifest = store.manifest
    counts, windows = manifest.counts, manifest.counts["windows"]
    by_split = counts.get("trials_by_split", {})
    return {
        "name": manifest.name,
        "version": store.version,
        **_formats(store),
        "fingerprint": manifest.fingerprint,
        "n_files": counts["files"],
        "n_trials": counts["trials"],
        "n_quarantined": counts.get("quarantined", 0),
        "n_ignored": sum(counts.get("ignored", {}).values()),
        "n_rows": counts["rows"],
        "n_rows_in": counts.get("rows_in", counts["rows"]),
        "n_windows": sum(windows.values()),
        "splits": {
            split: {
                "n_trials": by_split.get(split, 0),
                "n_windows": windows[split],
                "fingerprint": manifest.fingerprints[split],
            }
            for split in manifest.splits
        },
        "quarantined_by_code": counts.get("quarantined_by_code", {}),
        "channels": [channel.name for channel in manifest.channels],
        "target": {"kind": manifest.target.kind, "columns": list(manifest.target.columns)},
        "windows": manifest.windows.as_dict(),
        "normalization": dict(manifest.normalization),
        "n_shards": len(manifest.shards),
        "n_bytes": sum(shard.n_bytes for shard in manifest.shards),
        **describe_shape(store),
    }


def _formats(store: Store) -> dict[str, str]:
    """Return the format the version was written in, and the newest that this reader knows."""
    from shards import FORMAT_VERSION

    said = json.loads((store.folder / "dataset.json").read_bytes())["format"]
    return {"format": f"{said['major']}.{said['minor']}", "reader_format": FORMAT_VERSION}


def _count_files(about: dict[str, Any]) -> str:
    """Return the files by what became of them; a file may hold many trials."""
    parts = {"trials": about["n_trials"], "quarantined": about["n_quarantined"]}
    parts["ignored"] = about["n_ignored"]
    adds_up = sum(parts.values()) == about["n_files"]
    said = (" + " if adds_up else ", ").join(f"{n:,} {what}" for what, n in parts.items())
    return f"{about['n_files']:,} files {'=' if adds_up else 'with'} {said}"


def print_store(store: Store) -> None:
    """Print a store for a person."""
    about = describe_store(store)
    window, target, names = about["windows"], about["target"], about["channels"]
    _say(f"{click.style(about['name'], bold=True)} {about['version']}  {store.path}")
    _say(f"fingerprint {about['fingerprint']}")
    _say(f"format {about['format']}; this reader knows {about['reader_format']}")
    _say(_count_files(about))
    _say(
        f"{about['n_rows']:,} rows x {len(names)} channels ({', '.join(names)}); "
        f"{about['n_bytes'] / 2**20:,.1f} MiB in {about['n_shards']} shards"
    )
    _say(
        f"windows of {window['length']} every {window['stride']}; target {target['kind']}: "
        f"{', '.join(target['columns'])}"
    )
    _print_shape(about)
    _print_splits(about["splits"])
    for sentence in about["normalization"].get("lookahead", []):
        _say(f"looks ahead inside a trial: {sentence}")
    # Not pq.read_table, which imports pyarrow.dataset, and so pandas where that is installed.
    with pq.ParquetFile(store.folder / "quarantine.parquet") as quarantine:
        _print_quarantine(quarantine.read().to_pylist())


def print_build(report: BuildReport) -> None:
    """Print what a build did."""
    from shards import Store

    print_store(Store(report.store, report.version))
    for warning in report.warnings:
        _say(f"{click.style('warning:', fg='yellow')} {warning}")
    said = "published" if report.published else "unchanged, nothing published:"
    done = f"{report.n_read:,} of {report.counts['files']:,} files read"
    _say(f"{said} {report.version} in {report.seconds:.1f} s ({done})")


def _say(line: str) -> None:
    """Print a line, with its styles where a terminal shows them and nobody asked for none."""
    click.echo(line, color=False if os.environ.get("NO_COLOR") else None)


def _print_shape(about: Mapping[str, Any]) -> None:
    """Print how the version is stored, and what was done to it by hand."""
    parts = about["n_parts"]
    shown = f"{about['layout']}, {about['container']}: {about['n_stored']:,} {about['layout']}"
    dead = f"{about['n_dead']:,} of them of no trial any more ({about['dead_share']:.1%})"
    cold = f"cold index in {parts} part{'s' * (parts > 1)}" if parts else "cold index in one file"
    _say(f"layout {shown} stored, {dead}; {cold}")
    if about["fit"] == "given":
        _say("fit.json was given, not fitted on these trials")
    if about["n_read_again"]:
        _say(f"files that the next build reads again: {about['n_read_again']:,}")
    stones = about["tombstones"]
    for stone in stones[:SHOWN_REFUSALS]:
        _say(f"taken out by hand: {stone['id']}  {stone['reason']}")
    if len(stones) > SHOWN_REFUSALS:
        _say(f"... and {len(stones) - SHOWN_REFUSALS:,} more, in inspect --json")


def _print_splits(splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a row for each split, in columns as wide as what stands in them."""
    rows = [("split", "trials", "windows")]
    for name, split in splits.items():
        rows.append((name, f"{split['n_trials']:,}", f"{split['n_windows']:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        _say("  ".join(cells).rstrip())


def _print_quarantine(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows[:SHOWN_REFUSALS]:
        line = f":{row['line']}" if row["line"] else ""
        what, code = click.style("quarantined", fg="red"), click.style(row["code"], bold=True)
        _say(f"{what} {row['source']}{line}  {code}  {row['message']}")
    if len(rows) > SHOWN_REFUSALS:
        _say(f"... and {len(rows) - SHOWN_REFUSALS:,} more in quarantine.parquet")
