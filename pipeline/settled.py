"""Whether there is anything to do at all, told without loading what a build needs.

A run that finds nothing new is the most common one: it takes a look at the files, and no stage.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base import CATALOG_STAGE, Base, read_base
from pipeline.outcome import BuildReport
from pipeline.quickscan import KnownFiles, Look, quick_look, tables_digest
from pipeline.sections import Hook, TableAttribute
from pipeline.spec import DatasetSpec, key_orders, load_spec
from pipeline.versions import STAGES
from shards.disk import sync_store
from shards.writer import newest_version

if TYPE_CHECKING:
    from pipeline.delta import Delta


def find_settled(spec_path: str | Path, store: str | Path) -> BuildReport | None:
    """Return what a build would report if it found nothing to do; None if a build must tell.

    Args:
        spec_path: `dataset.yaml`.
        store: Store root.

    Raises:
        InvalidSpecError: If the specification is wrong.
    """
    began, root = time.perf_counter(), Path(spec_path).parent
    spec = load_spec(spec_path)
    if _depends_on_more(spec) or newest_version(Path(store)) is None:
        return None
    asked = spec.model_dump(mode="json")
    orders = key_orders(asked)
    base = read_base(
        Path(store),
        lambda said, built: (
            built == asked and said.get("stages") == STAGES and said.get("orders", {}) == orders
        ),
    )
    if base is None or not base.reusable or base.manifest.build.get("fit") is not None:
        return None
    look = look_again(root, spec, base)
    if look is None or look or look.n_hidden != _n_hidden(base):
        return None
    sync_store(Path(store))  # it may be of a build that was killed before it could do so
    return unchanged(base, began)


def _depends_on_more(spec: DatasetSpec) -> bool:
    """Return whether more than the specification and the files decides what a trial becomes."""
    hooks = any(isinstance(one, Hook) for one in spec.derive.values())
    tables = any(isinstance(one, TableAttribute) for one in spec.attributes.values())
    return hooks or (spec.source.holds_many and tables)


def _n_hidden(base: Base) -> int:
    return int(base.manifest.counts.get("ignored", {}).get("hidden", 0))


def look_again(root: Path, spec: DatasetSpec, base: Base) -> Look | None:
    """Return how the raw files differ from those of the base; None where only a scan can tell."""
    if base.says("tables") != tables_digest(root, spec):
        return None
    transient = [r for r in base.refusals if r.mtime_ns is None]
    if transient:  # refused by their path, or to be read again in any case
        return None
    return quick_look(root, spec, KnownFiles(base.known))


def is_settled(base: Base, delta: Delta, asked: Mapping[str, Any]) -> bool:
    """Return whether the base is what a build of its plan would publish.

    Args:
        base: The newest version.
        delta: How the raw files differ from it.
        asked: The specification, as the manifest would hold it.
    """
    if not base.reusable or not delta.is_empty or dict(base.manifest.spec) != asked:
        return False
    if (base.says("orders") or {}) != key_orders(asked):
        return False
    known = {refusal for refusal in base.refusals if refusal.stage == CATALOG_STAGE}
    return (
        base.manifest.build.get("fit") is None
        and base.manifest.counts["files"] == delta.n_files
        and base.manifest.counts.get("ignored", {}) == dict(delta.ignored)
        and known == set(delta.refusals)
    )


def unchanged(base: Base, began: float) -> BuildReport:
    """Return the report of a build that found nothing to do.

    Args:
        base: The version that holds the data.
        began: `time.perf_counter()` at the start.
    """
    manifest = base.manifest
    return BuildReport(
        store=base.store.path,
        version=base.store.version,
        published=False,
        counts=manifest.counts,
        refusals=base.refusals,
        warnings=(),
        lookahead=tuple(manifest.normalization.get("lookahead", ())),
        n_read=0,
        seconds=time.perf_counter() - began,
    )
