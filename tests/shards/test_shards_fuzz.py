"""Mutated and signed again: a store is read as it was, or refused by an error of ours."""

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import NASTY, mutate_bytes, mutate_json, paths_of
from hypothesis import given
from hypothesis import strategies as st

from shards import TrialShardsError
from shards.manifest import Manifest
from shards.thrift import CompactReader

SOAK = Path(__file__).parents[1] / "soak" / "fuzz_store.py"
COUNT = int(os.environ.get("FUZZ_COUNT", "160"))
FIRST = int(os.environ.get("FUZZ_SEED", "1000000"))


def test_mutated_stores_end_in_an_error_of_ours_or_in_what_was_there(tmp_path):
    """In processes of their own: a crash, a hang or another value is a finding with its seed."""
    out = tmp_path / "found.json"
    command = [sys.executable, str(SOAK), "--count", str(COUNT), "--seed", str(FIRST)]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    found = json.loads(out.read_bytes()) if out.exists() else done.stderr
    assert found["findings"] == []
    assert found["mutations"] == COUNT


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    from stores import make_store
    from vandal import into_parts

    store = into_parts(make_store(tmp_path_factory.mktemp("m") / "s", [6, 5], missing=True))
    return (store.folder / "dataset.json").read_bytes()


@given(st.integers(0, 2**32), st.integers(1, 3))
def test_a_mutated_manifest_is_refused_by_our_error_or_says_the_same_when_written(
    document, seed, times
):
    from vandal import sign_loosely

    mutated, rng = json.loads(document), random.Random(seed)
    for _ in range(times):
        mutate_json(mutated, rng)
    raw = sign_loosely(mutated)
    try:
        manifest = Manifest.from_bytes(raw, "dataset.json")
    except TrialShardsError:
        return
    assert Manifest.from_bytes(manifest.to_bytes(), "again") == manifest


VALUES = st.recursive(st.sampled_from(NASTY), lambda s: st.lists(s, max_size=3), max_leaves=9)


@given(st.data(), VALUES)
def test_no_value_in_the_place_of_a_part_of_a_manifest_ends_otherwise(document, data, value):
    from vandal import sign_loosely

    mutated = json.loads(document)
    *parents, key = data.draw(st.sampled_from(list(paths_of(mutated))))
    node = mutated
    for step in parents:
        node = node[step]
    node[key] = value
    with contextlib.suppress(TrialShardsError):
        Manifest.from_bytes(sign_loosely(mutated), "dataset.json")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_value_error_and_never_read_beyond_their_end(raw):
    reader = CompactReader(raw, 0, len(raw))
    try:
        reader.struct()
    except ValueError:
        return
    assert reader.at <= len(raw)


@given(st.binary(min_size=1, max_size=300), st.integers(0, 2**32))
def test_the_mutations_of_bytes_are_told_by_their_seed(raw, seed):
    one, two = (mutate_bytes(raw, random.Random(seed)) for _ in range(2))
    assert one == two
