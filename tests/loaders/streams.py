"""Every way to ask for a stream, drawn at random, and what it delivers in terms of rows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from batches import LENGTHS, tensors
from hypothesis import strategies as st
from stores import make_store

from loaders import (
    Balance,
    Batch,
    BlockShuffle,
    LaneBatches,
    TrialBatches,
    TrialStream,
    WindowBatches,
    mix,
)
from loaders.epochs import EpochStream
from shards import Store

QUOTAS = {"t0000": 0, "t0001": 0, "t0002": 9, "t0003": 0, "t0004": 2, "t0005": 11}
BATCHES = [
    "windows",
    WindowBatches(length=6, stride=3, random_offset=True),
    WindowBatches(length=9, short="drop"),
    TrialBatches(),
    TrialBatches(max_length=12, truncate="start", max_padding=0.0),
    LaneBatches(chunk=5),
    LaneBatches(chunk=7, burn_in=4),
]
SHUFFLES = ["global", "none", BlockShuffle(300, 900)]
BALANCES = [
    "window",
    "trial",
    "sqrt",
    Balance("quota", quotas=QUOTAS),
    Balance("attribute", "weight"),
]
WAYS = [
    {"batches": LaneBatches(chunk=5, burn_in=2), "balance": "sqrt"},
    {"batches": TrialBatches(), "shuffle": "blocks", "balance": "trial"},
    {"balance": Balance("quota", quotas=QUOTAS), "weights": "trial"},
]
WEIGHTS = ["own", "trial"]
FILTERS = [None, "n_rows > 9", "n_rows < 20"]


def stores(root: Path) -> list[Store]:
    """Make two small stores that differ in everything but their channels."""
    return [
        make_store(root / "a", LENGTHS, n_shards=2, missing=True, weights=[1, 2, 0.5, 1, 3, 0.1]),
        make_store(root / "b", [30, 9, 12, 11, 10], n_shards=3, scale=(3.0, 7.0)),
    ]


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """What to ask of a stream, and whether to mix it with another."""
    request = {
        "batches": draw(st.sampled_from(BATCHES)),
        "shuffle": draw(st.sampled_from(SHUFFLES)),
        "balance": draw(st.sampled_from(BALANCES)),
        "weights": draw(st.sampled_from(WEIGHTS)),
        "where": draw(st.sampled_from(FILTERS)),
        "batch_size": draw(st.integers(4, 9)),
        "seed": draw(st.integers(0, 3)),
    }
    if isinstance(request["balance"], Balance) and request["balance"].by == "quota":
        request["where"] = None  # quotas of trials that are filtered out are refused
    by = draw(st.sampled_from([None, None, "proportional", "round_robin", (2.0, 1.0)]))
    return {"request": request, "by": by, "stop": draw(st.sampled_from(["first", "cycle"]))}


def ask(made: list[Store], asked: dict[str, Any], **ranks: int) -> EpochStream:
    """Return the stream, or the mixture, that was asked for."""
    stream = TrialStream(made[0], **asked["request"], **ranks)
    if asked["by"] is None:
        return stream
    other = TrialStream(made[1], batch_size=5, seed=8, batches="lanes", **ranks)
    return mix([stream, other], asked["by"], stop=asked["stop"])


def digest(batch: Batch) -> str:
    """Return what identifies all bits of a batch."""
    said = f"{batch.epoch} {batch.step} {batch.source} {batch.global_weight.hex()}"
    state = hashlib.sha256(said.encode())
    for name, tensor in sorted(tensors(batch).items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


def join(parts: list[Batch]) -> Batch:
    """Return the global batch whose rows ranks share."""
    first = parts[0]
    whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in tensors(first)}
    rest = {name: x for name, x in vars(first).items() if name not in whole}
    assert len({(part.epoch, part.step, part.global_weight) for part in parts}) == 1
    return Batch(**whole, **rest)
