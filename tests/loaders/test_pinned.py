"""What streams deliver is pinned: states and checkpoints name it by (epoch, step) alone.

If one of these fails, saved states would go on with other rows than were left. Give the changed
rule a new version beside the old one (`ORDER_VERSION`, `LANES_VERSION`, `LENGTHS_VERSION`,
`MIX_VERSION`), so that old states are refused, and pin the new one.
"""

from __future__ import annotations

import hashlib

import pytest
from streams import QUOTAS, stores

from loaders import (
    Balance,
    BlockShuffle,
    LaneBatches,
    TrialBatches,
    TrialStream,
    WindowBatches,
    mix,
)

PINNED = {
    "windows": ({}, "ff588695851e7119"),
    "trial": ({"balance": "trial"}, "531dd3794eed5bc7"),
    "sqrt": ({"balance": "sqrt"}, "66782846336f4d72"),
    "quota": ({"balance": Balance("quota", quotas=QUOTAS)}, "d7279e213a3d3630"),
    "blocks": ({"shuffle": BlockShuffle(300, 900)}, "ea21c5f2b9529be8"),
    "offset": ({"batches": WindowBatches(stride=5, random_offset=True)}, "dbdffc807b11d665"),
    "trials": ({"batches": TrialBatches(max_padding=0.2), "batch_size": 2}, "5556be678966e77c"),
    "lanes": ({"batches": LaneBatches(chunk=5), "batch_size": 3}, "ece1da41f692c5b0"),
}


def rows_of(stream, n_epochs=3):
    """Return a digest of which rows come where, and how long they are."""
    state = hashlib.sha256()
    for _ in range(n_epochs):
        for batch in stream:
            state.update(f"{batch.epoch} {batch.step} {batch.source}".encode())
            for tensor in (batch.trial, batch.start, batch.lengths):
                state.update(tensor.numpy().tobytes())
    return state.hexdigest()[:16]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return stores(tmp_path_factory.mktemp("pinned"))


@pytest.mark.parametrize("name", PINNED)
def test_rows_come_where_they_always_came(made, name):
    request, want = PINNED[name]
    assert rows_of(TrialStream(made[0], **{"batch_size": 8, "seed": 3, **request})) == want


def test_mixtures_take_turns_as_they_always_did(made):
    parts = [TrialStream(store, batch_size=8, seed=3) for store in made]
    assert rows_of(mix(parts, (1.0, 2.0), stop="cycle")) == "427d786c61ffb5f4"
