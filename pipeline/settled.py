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
from pipeline.quickscan import (
    KnownFiles,
    Look,
    is_as_known,
    quick_look,
    tables_digest,
    tables_of,
)
from pipeline.versions import STAGES, digest_of_text
from shards.disk import sync_store
from shards.writer import newest_version

if TYPE_CHECKING:
    from pipeline.delta import Delta
    from pipeline.spec import DatasetSpec


def find_settled(spec_path: str | Path, store: str | Path) -> BuildReport | None:
    """Return what a build would report if it found nothing to do; None if a build must tell.

    Args:
        spec_path: `dataset.yaml`. It is not even read as YAML where its bytes are those that the
            newest version was built by.
        store: Store root.

    Raises:
        InvalidSpecError: If the specification is wrong.
    """
    began, path, store = time.perf_counter(), Path(spec_path), Path(store)
    if newest_version(store) is None:
        return None
    text = digest_of_text(path)
    base = read_base(store, lambda said, built: _is_of(path, text, said, built))
    if base is None or not base.reusable or base.manifest.build.get("fit") is not None:
        return None
    if not _is_as_it_was(path.parent, base):
        return None
    sync_store(store)  # it may be of a build that was killed before it could do so
    return unchanged(base, began)


def _is_of(path: Path, text: str | None, said: Mapping[str, Any], built: Mapping[str, Any]) -> bool:
    """Return whether a version was built by a `dataset.yaml`, and by these stages.

    Args:
        path: `dataset.yaml`.
        text: `digest_of_text` of it.
        said: `build` of the manifest.
        built: `spec` of the manifest.
    """
    if said.get("stages") != STAGES:
        return False
    if text is not None and said.get("text") == text:
        return True
    from pipeline.spec import key_orders, load_spec

    asked = load_spec(path).model_dump(mode="json")
    return built == asked and said.get("orders", {}) == key_orders(asked)


def _is_as_it_was(root: Path, base: Base) -> bool:
    """Return whether the raw files are those of the base, and all that decides what they become."""
    spec = base.manifest.spec  # what `dataset.yaml` says now, as plain values
    source, attributes = spec["source"], spec["attributes"].values()
    if any("hook" in one for one in spec["derive"].values() if isinstance(one, Mapping)):
        return False
    tables = {one["table"] for one in attributes if "table" in one}
    holds_many = bool(source["split_on"]) or source["blocks"] is not None
    if (holds_many and tables) or not _is_told_by_a_look(root, tables, base):
        return False
    n_hidden = int(base.manifest.counts.get("ignored", {}).get("hidden", 0))
    return is_as_known(root, source["files"], KnownFiles(base.known), n_hidden)


def _is_told_by_a_look(root: Path, tables: set[str], base: Base) -> bool:
    """Return whether a look at the files tells what is new: no scan and no table is needed."""
    if base.says("tables") != tables_digest(root, tables):
        return False
    # Those without a time are refused by their path, or to be read again in any case.
    return all(refusal.mtime_ns is not None for refusal in base.refusals)


def look_again(root: Path, spec: DatasetSpec, base: Base) -> Look | None:
    """Return how the raw files differ from those of the base; None where only a scan can tell."""
    if not _is_told_by_a_look(root, tables_of(spec), base):
        return None
    return quick_look(root, spec, KnownFiles(base.known))


def is_settled(base: Base, delta: Delta, asked: Mapping[str, Any]) -> bool:
    """Return whether the base is what a build of its plan would publish.

    Args:
        base: The newest version.
        delta: How the raw files differ from it.
        asked: The specification, as the manifest would hold it.
    """
    from pipeline.spec import key_orders

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
