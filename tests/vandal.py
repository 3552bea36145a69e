"""What somebody does to a store who can also mend its promises: change a file, sign again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from shards import Store
from shards.identity import file_promise
from shards.index import SCHEMA, index_to_bytes
from shards.parts import write_part


def sign_loosely(document: dict[str, Any]) -> bytes:
    """Return a manifest signed as the format says, also where it holds what JSON does not know."""
    rest = {name: value for name, value in document.items() if name != "xxh3_128"}
    content = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    whole = {**rest, "xxh3_128": xxhash.xxh3_128_hexdigest(content)}
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest of a version's folder, and sign it."""
    path = folder / "dataset.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.unlink()
    path.write_bytes(sign_loosely(document))


def replace(folder: Path, name: str, content: bytes) -> None:
    """Replace a file of a version, and promise it."""
    (folder / name).unlink(missing_ok=True)  # a map of the old one stays what it was
    (folder / name).write_bytes(content)
    promise = file_promise(content)
    change_manifest(folder, lambda document: document["files"].update({name: promise}))


def replace_part(store: Path, folder: Path, content: bytes) -> None:
    """Replace the only part of a version, and promise it."""
    promise = file_promise(content)
    (store / "parts" / f"{promise['xxh3_128']}.parquet").write_bytes(content)

    def change(document: dict[str, Any]) -> None:
        entry = document["parts"][0]
        entry.update(digest=promise["xxh3_128"], size_bytes=promise["size_bytes"])

    change_manifest(folder, change)


def index_columns(store: Store) -> dict[str, Any]:
    """Return the hot index as `index_to_bytes` wants it."""
    columns: dict[str, Any] = {n: getattr(store.index, n).copy() for n in SCHEMA.names[1:]}
    return columns | {"id": store.index.ids.to_pylist()}


def into_parts(store: Store) -> Store:
    """Turn the only version of a store into one with its cold index in a part."""
    part, n = write_part(store.path, store.cold()), len(store.index)
    places = {"part": np.zeros(n, np.int32), "part_row": np.arange(n, dtype=np.int64)}
    index = index_to_bytes(index_columns(store) | places)
    (store.folder / "index.arrow").unlink()
    (store.folder / "index.arrow").write_bytes(index)
    (store.folder / "trials.parquet").unlink()
    path = store.folder / "dataset.json"
    document = json.loads(path.read_bytes())
    document["files"].pop("trials.parquet")
    document["files"]["index.arrow"] = file_promise(index)
    document["parts"] = [vars(part)]
    document["format"]["minor"] = 2
    path.unlink()
    path.write_bytes(sign_loosely(document))
    return Store(store.path)
