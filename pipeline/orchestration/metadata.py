"""What assets tell about what they made: counts, rates, tables, pictures."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.csv

from pipeline.audit import Finding
from pipeline.catalog import Catalog
from pipeline.causal import describe_lookahead
from pipeline.commit import Commit
from pipeline.delta import Changes
from pipeline.files import Refusal, SourceFile
from pipeline.orchestration.inline import picture
from pipeline.orchestration.room import Room
from pipeline.staging import BucketResult
from shards.reader import Store
from shards.shape import describe_shape

SHOWN_REFUSALS = 50
SHOWN_TRIALS = 20
SHOWN_DIGITS = 12
"""Of a fingerprint; the data version and `trialshards inspect` have all of it."""

Metadata = dict[str, Any]


@dataclass(frozen=True)
class BuiltBucket:
    """One partition of `trial_shards` as it was built.

    Attributes:
        key: Partition key.
        result: What came of the files that were read.
        all_files: Candidates in the catalog.
        n_read: Those of them that the last version does not hold as they are.
        bytes_read: Their bytes.
        seconds: Wall time.
    """

    key: str
    result: BucketResult
    all_files: tuple[SourceFile, ...]
    n_read: int
    bytes_read: int
    seconds: float

    @property
    def n_files(self) -> int:
        """Candidates in the catalog."""
        return len(self.all_files)

    @property
    def is_reused(self) -> bool:
        """Whether no file was read."""
        return self.n_read == 0 or self.result.reused

    def __str__(self) -> str:
        """Return one line for the log."""
        how = "reused" if self.result.reused else f"{self.bytes_read / 1e6:,.1f} MB read"
        return (
            f"{self.key}: {self.n_files:,} files, {self.n_files - self.n_read:,} as in the last "
            f"version; {self.n_read:,} = {self.result.n_trials:,} trials + "
            f"{len(self.result.refusals):,} quarantined, {how} in {self.seconds:.1f} s"
        )


def of_catalog(catalog: Catalog, changes: Changes) -> Metadata:
    """Describe a scan."""
    n_bytes = sum(file.size_bytes for file in catalog.files)
    changed = {"new": changes.new, "changed": changes.changed, "gone": changes.gone}
    rows = [{"what": what, "file": f} for what, files in changed.items() for f in files[:10]]
    return {
        "dagster/row_count": catalog.n_files,
        "files": catalog.n_files,
        "candidates": len(catalog.files),
        "refused": len(catalog.refusals),
        "ignored": sum(catalog.ignored.values()),
        "source_bytes": n_bytes,
        "buckets": catalog.n_buckets,
        "files_new": len(changes.new),
        "files_changed": len(changes.changed),
        "files_gone": len(changes.gone),
        "source_folder": dg.MetadataValue.path(str(catalog.root)),
        **_table("changes", rows),
        **_quarantine(catalog.refusals),
    }


def of_bucket(built: BuiltBucket) -> Metadata:
    """Describe one partition: what of it was read, and what came of that."""
    result = built.result
    return {
        "dagster/row_count": result.n_rows,
        "files": built.n_files,
        "files_read": built.n_read,
        "bytes_read": built.bytes_read,
        "trials": result.n_trials,
        "quarantined": len(result.refusals),
        "shards": len(result.shards),
        "shard_bytes": result.n_bytes,
        "source_bytes": sum(file.size_bytes for file in built.all_files),
        "reused": built.is_reused,
        "seconds": round(built.seconds, 3),
        **({} if built.is_reused else _rates(built)),
        **_quarantine(result.refusals),
    }


def of_buckets(built: Sequence[BuiltBucket]) -> Metadata:
    """Sum up a run over several partitions; each of them also has its own numbers."""
    if len(built) == 1:
        return {}
    results = [bucket.result for bucket in built]
    return {
        "run_buckets": len(built),
        "run_buckets_reused": sum(bucket.is_reused for bucket in built),
        "run_files": sum(bucket.n_files for bucket in built),
        "run_files_read": sum(bucket.n_read for bucket in built),
        "run_trials": sum(result.n_trials for result in results),
        "run_rows": sum(result.n_rows for result in results),
        "run_quarantined": sum(len(result.refusals) for result in results),
        "run_seconds": round(sum(bucket.seconds for bucket in built), 3),
    }


def digest_of(room: Room, built: Sequence[BuiltBucket]) -> str:
    """Return the data version of partitions: it follows from their files and what becomes of them.

    Not from shards, which also depend on which of the files were read together.
    """
    seen = [(f.path, f.size_bytes, f.mtime_ns) for bucket in built for f in bucket.all_files]
    text = json.dumps([room.space.plan, sorted(seen)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def of_version(room: Room, store: Store, commit: Commit) -> Metadata:
    """Describe a published version, with tables and pictures."""
    from pipeline import pictures  # matplotlib: only the step that draws pays for its import

    counts = store.manifest.counts
    n_bytes = sum(shard.n_bytes for shard in store.manifest.shards)
    ahead = describe_lookahead(room.space.spec)
    return {
        "dagster/row_count": counts["rows"],
        "version": store.version,
        "published": commit.published,
        "fingerprint": store.fingerprint[:SHOWN_DIGITS],
        "files": counts["files"],
        "trials": counts["trials"],
        "quarantined": counts["quarantined"],
        "ignored": sum(counts["ignored"].values()),
        "windows": sum(counts["windows"].values()),
        "channels": len(store.manifest.channels),
        "shards": len(store.manifest.shards),
        "shard_bytes": n_bytes,
        "source_bytes": counts["source_bytes"],
        **_shape(store),
        "store": dg.MetadataValue.path(str(store.path)),
        "trial_lengths": picture(pictures.length_histogram(store)),
        "missing_values": picture(pictures.missing_map(store)),
        "sample_windows": picture(pictures.sample_windows(store)),
        "before_and_after_normalization": picture(pictures.before_after(store)),
        "dagster/column_schema": _schema(store),
        **_table("splits", _split_rows(store)),
        **({"warnings": dg.MetadataValue.md(_bullets(commit.warnings))} if commit.warnings else {}),
        **({"looks_ahead": dg.MetadataValue.md(_bullets(ahead))} if ahead else {}),
        **_quarantine(commit.refusals),
    }


def _shape(store: Store) -> Metadata:
    """Say how a version is stored, and what of it no trial needs any more."""
    about = describe_shape(store)
    facts = {key: about[key] for key in ("layout", "container", "n_parts", "dead_share")}
    stones = [{key: s[key] for key in ("id", "source", "reason")} for s in about["tombstones"]]
    return facts | {"taken_out": len(stones)} | _table("tombstones", stones[:SHOWN_REFUSALS])


def failed_findings(findings: Iterable[Finding]) -> str:
    """Return what stopped a commit."""
    failed = "\n".join(f"{f.name}: {f.message}" for f in findings if not f.passed)
    return f"{failed}\nThe checks of a published version were not made."


def with_training(result: dg.MaterializeResult, room: Room) -> dg.MaterializeResult:
    """Add the run's files to what the training process reported."""
    files = {"run_folder": dg.MetadataValue.path(str(room.config.out))}
    curve = _losses(room.config.out / "logs" / "csv" / "metrics.csv")
    return result._replace(metadata={**(result.metadata or {}), **files, **curve})


def with_evaluation(result: dg.MaterializeResult, room: Room) -> dg.MaterializeResult:
    """Put tables and plots before what the evaluation process reported."""
    folder = room.config.out / "evaluation"
    metrics = json.loads((folder / "metrics.json").read_text())
    worst = pyarrow.csv.read_csv(folder / "errors_by_trial.csv").sort_by([("rmse", "descending")])
    first = {
        **_table("errors", _error_rows(metrics["metrics"], metrics["baseline"])),
        **{path.stem: picture(path.read_bytes()) for path in sorted(folder.glob("*.png"))},
        **_table("worst_trials", [_rounded(r) for r in worst.slice(0, SHOWN_TRIALS).to_pylist()]),
        "folder": dg.MetadataValue.path(str(folder)),
    }
    # The table of errors has them all; these are the ones whose history is worth a plot.
    kept = {k: v for k, v in (result.metadata or {}).items() if _is_plotted(k)}
    return result._replace(metadata={**first, **kept})


def _is_plotted(key: str) -> bool:
    return not key.startswith("by_column.") or key.endswith((".rmse", ".auroc"))


def _rounded(row: Mapping[str, Any]) -> Metadata:
    """Return a table's row with its numbers to 5 digits, as a person reads them."""
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}


def _rates(built: BuiltBucket) -> Metadata:
    seconds = max(built.seconds, 1e-9)
    rates = {"files_per_s": built.n_read, "mb_per_s": built.bytes_read / 1e6}
    return {name: round(amount / seconds, 2) for name, amount in rates.items()}


def _quarantine(refusals: Sequence[Refusal]) -> Metadata:
    """Return the refused files with code, line and advice, and how many there are of each code."""
    if not refusals:
        return {}
    rows = [
        {
            "file": r.source,
            "line": str(r.line or ""),
            "code": r.code,
            "what_and_what_to_do": r.message,
        }
        for r in refusals[:SHOWN_REFUSALS]
    ]
    codes = Counter(refusal.code for refusal in refusals)
    return {"quarantined_by_code": dict(codes.most_common()), **_table("quarantine", rows)}


def _split_rows(store: Store) -> list[Metadata]:
    manifest, index = store.manifest, store.index
    return [
        {
            "split": split,
            "trials": int((index.split == code).sum()),
            "rows": int(index.n_rows[index.split == code].sum()),
            "windows": manifest.counts["windows"][split],
            "fingerprint": manifest.fingerprints[split][:SHOWN_DIGITS],
        }
        for code, split in enumerate(manifest.splits)
    ]


def _schema(store: Store) -> dg.TableSchemaMetadataValue:
    """Return the channels and targets as columns, with their units."""
    manifest = store.manifest
    columns = [dg.TableColumn(c.name, "float32", description=c.unit) for c in manifest.channels]
    if manifest.target.kind != "forecast":
        columns += [
            dg.TableColumn(name, "float32", description=f"target {manifest.target.kind}")
            for name in manifest.target.columns
        ]
    return dg.MetadataValue.table_schema(dg.TableSchema(columns))


def _error_rows(metrics: Mapping[str, Any], baseline: str) -> list[Metadata]:
    parts = metrics.get("by_column", {"": metrics})
    return [
        {"target": name, "baseline": baseline}
        | _rounded({k: v for k, v in part.items() if isinstance(v, int | float)})
        for name, part in parts.items()
    ]


def _losses(path: Path) -> Metadata:
    """Return the losses of every epoch as a table."""
    if not path.is_file():
        return {}
    rows = pyarrow.csv.read_csv(path).to_pylist()
    names = ("epoch", "train_loss", "val_loss", "lr", "rows_per_s")
    known = [{n: row[n] for n in names if row.get(n) is not None} for row in rows]
    return _table("losses_by_epoch", [_rounded(row) for row in known])


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> Metadata:
    if not rows:
        return {}
    return {name: dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows])}


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
