"""A Parquet table with a trial column into a `dataset.yaml`, and that into a store.

Nothing but `dataset.yaml` decides what is built: an import writes one, and builds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.build import build
from pipeline.outcome import BuildReport, OnProgress
from pipeline.tabledraft import ImportOptions, draft_spec
from shards.disk import replace_file
from shards.errors import InvalidSpecError

__all__ = ["ImportOptions", "ImportReport", "draft_spec", "import_table"]


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        spec: The `dataset.yaml` that it wrote.
        left_out: Column -> why nothing is made of it.
        build: What building it gave.
    """

    spec: Path
    left_out: Mapping[str, str]
    build: BuildReport


def import_table(
    table: str | Path,
    store: str | Path,
    options: ImportOptions,
    *,
    spec_out: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Write the `dataset.yaml` of a Parquet table, and build it.

    Args:
        table: A Parquet file, or a folder of them; each trial lies in one file.
        store: Store root.
        options: What is what.
        spec_out: Where to write it; by default `<data set>.yaml` beside the table. The table must
            lie below its folder.
        on_progress: As of `build`.

    Raises:
        InvalidSpecError: If the table cannot be used so, or another file is in the way.
        TooManyQuarantinedError: As `build` does.
        CommitConflictError: As `build` does.
    """
    draft = draft_spec(Path(table), options, root=Path(spec_out).parent if spec_out else None)
    path = Path(spec_out) if spec_out else draft.root / f"{draft.document['name']}.yaml"
    text = draft.text(path).encode()
    if path.exists() and path.read_bytes() != text:
        raise InvalidSpecError(
            f"{path} exists and says something else; an import overwrites nothing. Build it "
            f"(trialshards build {path} --store {store}), or choose another --spec-out."
        )
    replace_file(path, text)
    return ImportReport(path, draft.left_out, build(path, store, on_progress=on_progress))
