"""What a version is stored as: layout, container, and what of it no trial needs any more."""

from __future__ import annotations

from typing import Any

from shards.reader import Store
from shards.repack import find_blocks


def describe_shape(store: Store) -> dict[str, Any]:
    """Return facts of how a version is stored; keys are stable.

    Returns:
        `layout` and `container`; `n_stored`, the rows of all shards (in layout windows the
        windows), and `n_dead`, those of no trial of this version, with their `dead_share`;
        `n_parts` of the cold index; `tombstones`, the trials that were taken out by hand; `fit`:
        `given` from outside, or `own`, fitted on the trials of this store; `n_read_again`, files
        that the next build reads although it knows them.
    """
    manifest = store.manifest
    n_stored = sum(entry.n_rows for entry in manifest.shards)
    n_live = int(store.n_stored[find_blocks(store).trials].sum())
    n_dead = max(n_stored - n_live, 0)
    return {
        "layout": manifest.layout,
        "container": manifest.container,
        "n_stored": n_stored,
        "n_dead": n_dead,
        "dead_share": round(n_dead / max(n_stored, 1), 4),
        "n_parts": len(manifest.parts),
        "tombstones": [dict(vars(tombstone)) for tombstone in manifest.tombstones],
        "fit": str(manifest.build.get("fit", "own")),
        "n_read_again": len(manifest.build.get("again", ())),
    }
