"""What the tests of other people's trainers share: a store of two shards, and what it delivers."""

from __future__ import annotations

import pytest
from batches import LENGTHS
from integration_ranks import open_stream, steps_of
from stores import make_store


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("integrations")
    make_store(folder / "store", LENGTHS, n_shards=2)
    return folder


@pytest.fixture(scope="package")
def want(folder):
    """Two epochs of one process, uninterrupted."""
    stream = open_stream(folder)
    return steps_of([*stream, *stream])
