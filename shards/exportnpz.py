"""Trials as `.npz` files: NumPy alone reads them, without pickles."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from shards.disk import replacing, sync_folder
from shards.exportcard import file_names
from shards.exportrows import TrialTable

_UNSAFE = re.compile(r"[^\w.+=@-]+")
_NAME_BYTES = 120
"""Systems allow 255 bytes of a file's name; the rest is for a digest, a suffix and other tools."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def write_npz(table: TrialTable, folder: Path, trials: Mapping[str, Sequence[int]]) -> None:
    """Write `<split>/<name>.npz` per trial, and `trials.jsonl` that says which is which.

    Arrays: `values` float32 `[rows, channels]`, NaN where missing; where there are any `time`
    float64 `[rows]`, `observed` bool `[rows, channels]`, `targets` float32 `[rows, K]`, `codes`
    uint16 `[rows, N]` (0: missing, k: word k of its list in `categories`); texts of no dimension:
    `trial`, `attributes` and `categories` as JSON, and `label`, a text or float32.
    """
    with replacing(folder / "about.json") as file:
        file.write(_json(_about(table)))
    with replacing(folder / "trials.jsonl") as listing:
        for (split, numbers), below in zip(trials.items(), file_names(list(trials)), strict=True):
            names = safe_names([table.store.index.id_of(number) for number in numbers])
            for number, name in zip(numbers, names, strict=True):
                path = folder / below / f"{name}.npz"
                with replacing(path) as file:
                    np.savez(file, **arrays_of(table, number))
                said = {
                    "file": f"{below}/{name}.npz", "trial": table.store.index.id_of(number),
                    "split": split, "n_rows": int(table.store.index.n_rows[number]),
                }  # fmt: skip
                listing.write(_json(said))
            sync_folder(folder / below)


def arrays_of(table: TrialTable, number: int) -> dict[str, Any]:
    """Return the arrays of one trial by name."""
    store, everything = table.store, slice(None)
    arrays: dict[str, Any] = {
        "trial": np.array(store.index.id_of(number)),
        "attributes": np.array(json.dumps(table.attribute(number), ensure_ascii=False)),
        "values": table.values(number, everything),
    }
    optional = {
        "time": table.time(number, everything),
        "observed": table.observed(number, everything),
        "label": table.label(number) if store.manifest.target.kind == "per_trial" else None,
    }
    for name, found in optional.items():
        if found is not None:
            arrays[name] = np.float32(found) if isinstance(found, float) else np.asarray(found)
    if store.manifest.target.kind == "per_step":
        arrays["targets"] = store.trial_rows(number, "targets")
    if store.manifest.codes:
        arrays["codes"] = store.trial_rows(number, "codes")
        words = json.dumps(table.categories(number), ensure_ascii=False)
        arrays["categories"] = np.array(words)
    return arrays


def safe_names(ids: Sequence[str]) -> list[str]:
    """Return a file name without suffix for each id, all different, also where case is ignored.

    Letters, digits and `_.+=@-` stay, other runs of characters become `_`. Ids that would then be
    equal, and those that are not a plain name any more, get a digest of the id behind them.
    """
    slugs = [_slug(trial_id) for trial_id in ids]
    counts = Counter(slug.casefold() for slug in slugs)
    names = [
        slug
        if counts[slug.casefold()] == 1
        else f"{slug}-{xxhash.xxh3_64_hexdigest(trial_id.encode())}"
        for slug, trial_id in zip(slugs, ids, strict=True)
    ]
    taken: set[str] = set()
    for place, name in enumerate(names):
        while name.casefold() in taken:  # an id that is written like another one with its digest
            name = f"{name}-{place}"
        taken.add(name.casefold())
        names[place] = name
    return names


def _slug(trial_id: str) -> str:
    slug = _UNSAFE.sub("_", trial_id)
    cut = slug.encode()[:_NAME_BYTES].decode(errors="ignore")
    # A leading dot hides a file, a trailing one is lost on some systems.
    plain = re.sub(r"^\.+|\.+$", "_", cut)
    return f"_{plain}" if not plain or _RESERVED.fullmatch(plain) else plain


def _about(table: TrialTable) -> dict[str, Any]:
    said = table.describe()
    return {name: said[name] for name in said if name not in ("columns", "per")} | {
        "channels": [dict(vars(channel)) for channel in table.store.manifest.channels],
        "codes": [entry.name for entry in table.store.manifest.codes],
    }


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"
