"""A catalog on disk: what one step found, for the steps and the runs after it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.catalog import Catalog
from pipeline.files import Refusal
from pipeline.filetable import (
    FILE_FIELDS,
    column_list,
    digest_of_listing,
    file_columns,
    files_from_table,
)
from shards.disk import replace_file
from shards.errors import CorruptStoreError, TrialShardsError
from shards.tables import parquet_bytes

_REFUSAL_FIELDS = (("stage", pa.utf8()), ("code", pa.utf8()), ("message", pa.utf8()))
_SCHEMA = pa.schema([*FILE_FIELDS, *_REFUSAL_FIELDS])


class CatalogNotFoundError(TrialShardsError, FileNotFoundError):
    """Nobody has looked at the raw files yet: make the catalog first."""


def save_catalog(path: Path, catalog: Catalog) -> None:
    """Write a catalog to a Parquet file, one row per path, by one rename."""
    about = {
        "ignored": dict(catalog.ignored),
        "n_buckets": catalog.n_buckets,
        "warnings": list(catalog.warnings),
        "tables": catalog.tables,
    }
    files, refusals = file_columns(catalog.files), _refusal_columns(catalog.refusals)
    table = pa.table(
        [
            files.get(name, [None] * len(catalog.files))
            + refusals.get(name, [None] * len(catalog.refusals))
            for name in _SCHEMA.names
        ],
        schema=_SCHEMA,
    )
    replace_file(path, parquet_bytes(table.replace_schema_metadata({"catalog": json.dumps(about)})))


def load_catalog(path: Path, root: Path) -> Catalog:
    """Read a catalog.

    Args:
        path: What `save_catalog` wrote.
        root: Folder that its paths are below.

    Raises:
        CatalogNotFoundError: If there is none.
        CorruptStoreError: If it cannot be read.
    """
    if not path.is_file():
        raise CatalogNotFoundError(f"no catalog {path}. Materialize the asset 'catalog' first.")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        about = json.loads((table.schema.metadata or {})[b"catalog"])
        accepted = pc.is_null(table["code"])
        return Catalog(
            root=root,
            files=files_from_table(table.filter(accepted)),
            refusals=_as_refusals(table.filter(pc.invert(accepted))),
            ignored=about["ignored"],
            n_buckets=about["n_buckets"],
            warnings=tuple(about.get("warnings", ())),
            tables=about.get("tables", ""),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise CorruptStoreError(
            f"{path} cannot be read ({type(error).__name__}: {error}). "
            "Materialize the asset 'catalog' again."
        ) from error


def listing_digest(catalog: Catalog) -> str:
    """Return a digest that changes when any file comes, goes or changes."""
    seen = {file.path: (file.size_bytes, file.mtime_ns) for file in catalog.files}
    return digest_of_listing(seen, catalog.refusals, catalog.tables)


def _refusal_columns(refusals: Sequence[Refusal]) -> dict[str, list[Any]]:
    return {
        "path": [refusal.source for refusal in refusals],
        "size_bytes": [refusal.size_bytes for refusal in refusals],
        "stage": [refusal.stage for refusal in refusals],
        "code": [refusal.code for refusal in refusals],
        "message": [refusal.message for refusal in refusals],
    }


def _as_refusals(table: pa.Table) -> tuple[Refusal, ...]:
    texts = [column_list(table, name) for name in ("path", "stage", "code", "message")]
    sizes = column_list(table, "size_bytes")
    return tuple(
        Refusal(path, stage, code, message, size_bytes=size_bytes)
        for path, stage, code, message, size_bytes in zip(*texts, sizes, strict=True)
    )
