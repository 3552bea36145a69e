"""Mutations of a store whose promises are mended, and what reading it may then end in.

A mutated store is read whole: every trial, one epoch, the cold index. Each must end in an error of
our tree, or in what was there before the mutation, or `verify_store` reports it. Whatever else
happens is a finding: another exception, another value that verify does not see, a crash, a hang.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from vandal import change_manifest, replace, replace_part, sign_loosely

from loaders import TrialStream
from shards import Store, TrialShardsError
from shards.verify import verify_store

NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**62, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "0", "c0", "train", "..", "/etc/passwd", "\0", "\ud800", "x" * 5000, [], {},
    [[]], [None], {"": 0}, [1, 2, 3], "rows", "windows", "zarr", "parquet", "group:kind", "window",
    "prefix(3)", "regime", "trial", "none", "zscore", "per_step", "per_trial", "0" * 32,
]  # fmt: skip


def paths_of(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in a JSON document but its root."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from paths_of(value, (*path, key))


def mutate_json(document: Any, rng: random.Random) -> None:
    """Replace, remove, add or swap one value."""
    *parents, key = rng.choice(list(paths_of(document)))
    node = document
    for step in parents:
        node = node[step]
    way = rng.randrange(6)
    if way == 0:
        del node[key]
    elif way == 1 and isinstance(node, list):
        node.insert(rng.randrange(len(node) + 1), rng.choice([node[key], rng.choice(NASTY)]))
    elif way == 1:
        node[rng.choice(["", "x", "../x", "values", "codes", "offset"])] = rng.choice(NASTY)
    elif way == 2 and len(node) > 1:
        other = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node[key], node[other] = node[other], node[key]
    elif way == 3 and isinstance(node[key], int):
        node[key] += rng.choice([-1, 1, 2, -node[key], 2**20])
    else:
        node[key] = copy.deepcopy(rng.choice(NASTY))


def mutate_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut out or repeat a few bytes."""
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        at, size = rng.randrange(len(data)), rng.choice([1, 1, 2, 4, 8])
        way = rng.randrange(4)
        if way == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            value = rng.choice([b"\0", b"\xff", b"\x7f", b"\x80", b"\x01"])
            data[at : at + size] = value * len(data[at : at + size])
        elif way == 2 and len(data) > 64:
            del data[at : at + size]
        else:
            data[at:at] = data[at : at + size]
    return bytes(data)


def mutate(path: Path, rng: random.Random) -> str:
    """Mutate one file of the only version of a store, mend what is promised of it; say which."""
    folder = path / "versions" / "v0001"
    document = json.loads((folder / "dataset.json").read_bytes())
    names = ["dataset.json"] * 4 + ["fit.json", "index.arrow", "index.arrow", "metadata"]
    names += ["part"] * 2 if document.get("parts") else ["trials.parquet"] * 2
    name = rng.choice([*names, *(["rows.parquet"] if document["container"] == "parquet" else [])])
    shard = path / "shards" / document["shards"][0]["digest"]
    if name == "dataset.json":
        change_manifest(folder, lambda d: mutate_json(d, rng))
    elif name == "fit.json":
        fit = json.loads((folder / name).read_bytes())
        mutate_json(fit, rng)
        replace(
            folder, name, json.dumps(fit, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        )
    elif name == "metadata":
        file = rng.choice(sorted(shard.rglob("zarr.json")) or [shard / "rows.parquet"])
        rewrite(file, mutate_bytes(file.read_bytes(), rng))
    elif name == "rows.parquet":
        content = mutate_bytes((shard / name).read_bytes(), rng)
        rewrite(shard / name, content)
        promise = {"size_bytes": len(content), "xxh3_128": _digest(content)}
        change_manifest(folder, lambda d: d["shards"][0].update(file=promise))
    elif name == "part":
        file = path / "parts" / f"{document['parts'][0]['digest']}.parquet"
        replace_part(path, folder, mutate_bytes(file.read_bytes(), rng))
    else:
        replace(folder, name, mutate_bytes((folder / name).read_bytes(), rng))
    return name


def _digest(content: bytes) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(content)


def rewrite(path: Path, content: bytes) -> None:
    """Put another file in the place of one."""
    path.unlink()
    path.write_bytes(content)


def read_store(path: Path) -> dict[str, Any]:
    """Return everything that can be read of a store, by what it is."""
    store = Store(path)
    found: dict[str, Any] = {"ids": [store.index.id_of(i) for i in range(len(store.index))]}
    for number in range(len(store.index)):
        for array in store.manifest.shards[int(store.index.shard[number])].arrays:
            found[f"{number} {array}"] = store.trial_stored(number, array).tobytes()
    found["cold"] = store.cold("id", "digest").to_pydict()
    stream = TrialStream(store, batch_size=4, shuffle="none")
    for number, batch in enumerate(stream):
        found[f"batch {number}"] = (batch.values.numpy().tobytes(), batch.targets.numpy().tobytes())
    return found


def outcome(read: Callable[[], Any]) -> tuple[Any, str]:
    """Return what was read, or None; and what is to be said against how it ended."""
    try:
        return read(), ""
    except TrialShardsError:
        return None, ""
    except Exception:  # noqa: BLE001 - whatever it is, it is a finding
        return None, traceback.format_exc(limit=-4)


def check_mutation(good: Path, expected: dict[str, Any], seed: int, work: Path) -> str:
    """Mutate a copy of a store, read it; return what is wrong with how that ended, or nothing."""
    rng = random.Random(seed)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(good, work)
    name = mutate(work, rng)
    where = f"seed {seed}, {good.name}, {name}: "
    found, fault = outcome(lambda: read_store(work))
    problems, verify_fault = outcome(lambda: verify_store(work))
    if fault or verify_fault:
        return where + (fault or verify_fault)
    if found is not None and problems == [] and not same(found, expected):
        return where + f"other values, and verify finds nothing ({sorted(found)[:3]})"
    return ""


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether a reading gave what was there before."""
    return found.keys() == expected.keys() and all(
        np.array_equal(found[key], expected[key])
        if isinstance(found[key], np.ndarray)
        else found[key] == expected[key]
        for key in found
    )


__all__ = ["check_mutation", "read_store", "sign_loosely"]
