"""What the commands print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.outcome import BuildReport
    from shards import Store
    from training import Evaluation, TrainConfig, TrainResult

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
    console, about = Console(), describe_store(store)
    window, target = about["windows"], about["target"]
    console.print(
        f"[bold]{about['name']}[/] {about['version']}  {store.path}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"fingerprint {about['fingerprint']}", highlight=False, soft_wrap=True)
    console.print(
        f"format {about['format']}; this reader knows {about['reader_format']}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        _count_files(about),
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"{about['n_rows']:,} rows x {len(about['channels'])} channels "
        f"({', '.join(about['channels'])}); {about['n_bytes'] / 2**20:,.1f} MiB in "
        f"{about['n_shards']} shards",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"windows of {window['length']} every {window['stride']}; target {target['kind']}: "
        f"{', '.join(target['columns'])}",
        highlight=False,
        soft_wrap=True,
    )
    _print_shape(console, about)
    console.print(_split_table(about["splits"]))
    _print_lookahead(console, about["normalization"].get("lookahead", []))
    # Not pq.read_table, which imports pyarrow.dataset, and so pandas where that is installed.
    with pq.ParquetFile(store.folder / "quarantine.parquet") as quarantine:
        _print_quarantine(console, quarantine.read().to_pylist())


def _print_shape(console: Console, about: dict[str, Any]) -> None:
    """Print how the version is stored, and what was done to it by hand."""
    parts = about["n_parts"]
    shown = f"{about['layout']}, {about['container']}: {about['n_stored']:,} {about['layout']}"
    dead = f"{about['n_dead']:,} of them of no trial any more ({about['dead_share']:.1%})"
    cold = f"cold index in {parts} part{'s' * (parts > 1)}" if parts else "cold index in one file"
    lines = [f"layout {shown} stored, {dead}; {cold}"]
    if about["fit"] == "given":
        lines.append("fit.json was given, not fitted on these trials")
    if about["n_read_again"]:
        lines.append(f"files that the next build reads again: {about['n_read_again']:,}")
    stones = about["tombstones"]
    lines += [f"taken out by hand: {s['id']}  {s['reason']}" for s in stones[:SHOWN_REFUSALS]]
    if len(stones) > SHOWN_REFUSALS:
        lines.append(f"... and {len(stones) - SHOWN_REFUSALS:,} more, in inspect --json")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_build(report: BuildReport) -> None:
    """Print what a build did."""
    from shards import Store

    console = Console()
    print_store(Store(report.store, report.version))
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {warning}", highlight=False, soft_wrap=True)
    said = "published" if report.published else "unchanged, nothing published:"
    done = f"{report.n_read:,} of {report.counts['files']:,} files read"
    console.print(
        f"{said} {report.version} in {report.seconds:.1f} s ({done})",
        highlight=False,
        soft_wrap=True,
    )


def print_training(config: TrainConfig, result: TrainResult, evaluation: Evaluation | None) -> None:
    """Print what a training job came to: data, errors beside the baseline's, where things lie."""
    from shards import Store

    console = Console()
    print_store(Store(config.store, config.version))
    best = "" if result.best_loss is None else f", validation loss {result.best_loss:.4g}"
    console.print(
        f"{result.status} after {result.epochs} epochs, {result.steps:,} steps, "
        f"{result.seconds:.0f} s; best epoch {result.best_epoch}{best}",
        highlight=False,
        soft_wrap=True,
    )
    if evaluation is None:
        _print_places(console, config)
    else:
        print_evaluation(config, evaluation)


def print_evaluation(config: TrainConfig, evaluation: Evaluation) -> None:
    """Print errors beside the baseline's, and where things lie."""
    console = Console()
    every = "every window" if config.data.batches == "windows" else "every row"
    where = "last row of each trial" if evaluation.at == "last" else every
    console.print(
        f"{evaluation.split} split, {where}, {evaluation.n_trials:,} trials, physical units; "
        "macro: mean over trials",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_error_table(evaluation, _units(config)))
    if "pinball" in evaluation.metrics:
        console.print(_quantile_table(evaluation))
    _print_places(console, config)
    console.print(f"plots        {evaluation.folder}", highlight=False, soft_wrap=True)


def _print_places(console: Console, config: TrainConfig) -> None:
    console.print(f"store        {config.store}", highlight=False, soft_wrap=True)
    console.print(f"checkpoints  {config.out}", highlight=False, soft_wrap=True)


def _units(config: TrainConfig) -> dict[str, str]:
    from shards import Store

    return {c.name: c.unit for c in Store(config.store, config.version).manifest.channels}


def _error_table(evaluation: Evaluation, units: dict[str, str]) -> Table:
    """Micro is over all elements; macro is the mean over trials, each counting the same."""
    metrics = evaluation.metrics
    if "accuracy" in metrics:
        return _class_table(evaluation)
    if "auroc" in metrics:
        return _binary_table(evaluation)
    naive = f"RMSE of {evaluation.baseline}"
    heads = ("target", "unit", "RMSE", naive, "MAE", "skill", "macro RMSE")
    table = Table(*heads, box=None, pad_edge=False)
    for name, part in metrics["by_column"].items():
        table.add_row(
            name,
            units.get(name, ""),
            f"{part['rmse']:.4g}",
            f"{part['naive_rmse']:.4g}",
            f"{part['mae']:.4g}",
            f"{part['skill']:.3f}",
            f"{part['macro']['rmse']:.4g}",
        )
    return table


def _class_table(evaluation: Evaluation) -> Table:
    metrics = evaluation.metrics
    table = Table("", "model", evaluation.baseline, box=None, pad_edge=False)
    macro = {f"macro_{name}": x for name, x in metrics.get("macro", {}).items()}
    macro["naive_macro_accuracy"] = macro.get("macro_naive_accuracy")
    known = metrics | macro
    for name in ("accuracy", "macro_accuracy", "balanced_accuracy", "macro_f1", "auroc"):
        if name not in known:
            continue
        naive = known.get(f"naive_{name}")
        shown = {"macro_f1": "F1, mean over classes", "auroc": "AUROC"}.get(
            name, name.replace("_", " ")
        )
        table.add_row(shown, f"{known[name]:.3f}", "" if naive is None else f"{naive:.3f}")
    return table


def _binary_table(evaluation: Evaluation) -> Table:
    """Chance has an AUROC of .5, and an average precision equal to the share of ones.

    The macro AUROC is the mean over the trials that have both ones and zeros.
    """
    heads = ("target", "AUROC", "macro", "average precision", "share of ones", "RMSE", "skill")
    table = Table(*heads, box=None, pad_edge=False)
    for name, part in evaluation.metrics["by_column"].items():
        table.add_row(
            name,
            f"{part['auroc']:.3f}",
            f"{part['macro']['auroc']:.3f}",
            f"{part['average_precision']:.3f}",
            f"{part['positive_share']:.4f}",
            f"{part['rmse']:.4g}",
            f"{part['skill']:.3f}",
        )
    return table


def _quantile_table(evaluation: Evaluation) -> Table:
    """The share of truths at or below quantile .1 should be .1."""
    heads = ("target", "quantile", "pinball loss", "truths at or below")
    table = Table(*heads, box=None, pad_edge=False)
    for name, part in evaluation.metrics["by_column"].items():
        for number, (level, found) in enumerate(part["quantiles"].items()):
            row = (f"{found['pinball']:.4g}", f"{found['coverage']:.1%}")
            table.add_row("" if number else name, f"{level[1:]}%", *row)
    return table


def _split_table(splits: dict[str, dict[str, Any]]) -> Table:
    table = Table("split", "trials", "windows", box=None, pad_edge=False)
    for name, split in splits.items():
        table.add_row(name, f"{split['n_trials']:,}", f"{split['n_windows']:,}")
    return table


def _print_lookahead(console: Console, lookahead: list[str]) -> None:
    for sentence in lookahead:
        console.print(f"looks ahead inside a trial: {sentence}", highlight=False, soft_wrap=True)


def _print_quarantine(console: Console, rows: list[dict[str, Any]]) -> None:
    for row in rows[:SHOWN_REFUSALS]:
        line = f":{row['line']}" if row["line"] else ""
        console.print(
            f"[red]quarantined[/] {row['source']}{line}  [bold]{row['code']}[/]  {row['message']}",
            highlight=False,
            soft_wrap=True,
        )
    if len(rows) > SHOWN_REFUSALS:
        console.print(f"... and {len(rows) - SHOWN_REFUSALS:,} more in quarantine.parquet")
