"""Identity: anything a model could see changes a digest; nothing else does (SPEC section 7)."""

import struct

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from stores import make_store

from shards import WindowSpec
from shards.identity import (
    canonical_json,
    dataset_fingerprint,
    pairs_digest,
    split_fingerprint,
    trial_digest,
)
from shards.manifest import TargetSchema
from shards.version import split_digest

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
SPLITS = ["train", "val", "train", "test", "train", "test", "val", "train"]
LENGTHS = [7, 12, 4, 9, 6, 30, 5, 11]


@given(st.integers(0, 47), st.integers(1, 255), st.sampled_from(["values", "targets"]))
def test_any_byte_of_any_array_changes_the_trial(position, mask, name):
    arrays = {"values": ROWS, "targets": ROWS * 2}
    raw = bytearray(arrays[name].tobytes())
    raw[position] ^= mask
    other = {**arrays, name: np.frombuffer(bytes(raw), np.float32).reshape(4, 3)}
    assert trial_digest("t", arrays, None) != trial_digest("t", other, None)


def test_trials_that_differ_in_one_respect_have_different_digests():
    bytes_ = ROWS.view(np.uint8)
    trials = [
        ("t", {"values": ROWS}, None),
        ("u", {"values": ROWS}, None),
        ("T", {"values": ROWS}, None),
        ("", {"values": ROWS}, None),
        ("t", {"values": ROWS.reshape(3, 4)}, None),
        ("t", {"values": ROWS.reshape(2, 6)}, None),
        ("t", {"values": ROWS.reshape(12, 1)}, None),
        ("t", {"values": bytes_}, None),
        ("t", {"values": ROWS[:3]}, None),
        ("t", {"targets": ROWS}, None),
        ("t", {"values": ROWS, "targets": ROWS}, None),
        ("t", {"values": ROWS, "observed": ROWS}, None),
        ("t", {"values": ROWS}, 0.0),
        ("t", {"values": ROWS}, -0.0),
        ("t", {"values": ROWS}, 1.0),
        ("t", {"values": ROWS}, "1.0"),
        ("t", {"values": ROWS}, "push"),
        ("t", {"values": ROWS}, "pull"),
        ("t", {"values": ROWS}, ""),
        ("t", {"values": ROWS[:0]}, None),
    ]
    digests = [trial_digest(*trial) for trial in trials]
    digests += [trial_digest(*trial, weight=0.5) for trial in trials]
    assert len(set(digests)) == 2 * len(trials)


def test_a_trial_weighs_one_unless_it_is_said():
    weighed = {w: trial_digest("t", {"values": ROWS}, "x", weight=w) for w in (0.0, 0.5, 1.0, 2.0)}
    assert len(set(weighed.values())) == len(weighed)
    assert weighed[1.0] == trial_digest("t", {"values": ROWS}, "x")
    assert weighed[0.5] == trial_digest("t", {"values": ROWS}, "x", weight=np.float32(0.5))


def test_the_bytes_of_a_value_are_no_class_name():
    for value in (0.0, 1.0, 2.0**-120):
        raw = np.float32(value).astype("<f4").tobytes()
        names = [raw.decode("latin-1"), f"value {raw.decode('latin-1')}", f"{value}"]
        assert trial_digest("t", {"values": ROWS}, value) not in {
            trial_digest("t", {"values": ROWS}, name) for name in names
        }


def test_fields_cannot_run_into_each_other():
    def with_id(name, label):
        return trial_digest(name, {"values": ROWS}, label)

    assert with_id("ab", "c") != with_id("a", "bc")
    one, two = np.zeros((1, 1), np.uint8), np.zeros((2, 1), np.uint8)
    assert trial_digest("t", {"a": one, "b": two}, None) != trial_digest(
        "t", {"a": two, "b": one}, None
    )
    assert pairs_digest([("ab", "c")]) != pairs_digest([("a", "bc")])
    assert pairs_digest([("a", "b"), ("c", "d")]) != pairs_digest([("a", "bc"), ("", "d")])
    assert pairs_digest([]) != pairs_digest([("", "")])


def test_the_order_and_memory_order_of_arrays_say_nothing():
    arrays = {"values": ROWS, "targets": ROWS * 2}
    backwards = {"targets": ROWS * 2, "values": np.asfortranarray(ROWS)}
    assert trial_digest("t", arrays, 1.0) == trial_digest("t", backwards, 1.0)
    strided = {"targets": (ROWS * 2)[::-1].copy()[::-1], "values": np.repeat(ROWS, 2, 1)[:, ::2]}
    assert trial_digest("t", arrays, 1.0) == trial_digest("t", strided, 1.0)


def digest_by_the_text(name, arrays, label, weight):
    """SPEC section 7 read aloud, in little-endian bytes."""
    fields = [name.encode()]
    for array in sorted(arrays):
        n_rows, n_columns = arrays[array].shape
        values = [value for row in arrays[array].tolist() for value in row]
        fields += [
            f"{array}|float32|{n_rows}x{n_columns}".encode(),
            struct.pack(f"<{len(values)}f", *values),
        ]
    if label is None:
        fields.append(b"")
    elif isinstance(label, str):
        fields.append(b"class " + label.encode())
    else:
        fields.append(b"value " + struct.pack("<f", label))
    fields.append(struct.pack("<f", weight))
    return xxhash.xxh3_128_hexdigest(b"".join(struct.pack("<Q", len(f)) + f for f in fields))


@pytest.mark.parametrize("label", [None, "push", "poussée", "", 0.0, -1.5])
@pytest.mark.parametrize("weight", [1.0, 0.0, 0.25])
def test_a_digest_is_that_of_the_text(label, weight):
    for arrays in ({"values": ROWS}, {"values": ROWS, "targets": ROWS[:, :1]}):
        for order in ("<f4", ">f4"):
            given = {name: rows.astype(order) for name, rows in arrays.items()}
            got = trial_digest("tä1", given, label, weight=weight)
            assert got == digest_by_the_text("tä1", arrays, label, weight)


def test_a_digest_is_the_one_written_down():
    """Renaming every trial of every store must be a decision, not an accident."""
    got = trial_digest("t0001", {"values": ROWS}, "push")
    assert got == "17eb28e9ae2bc56573885abf7d40f4d8"


def test_a_class_with_an_empty_name_is_not_the_absence_of_a_label():
    assert trial_digest("t", {"values": ROWS}, "") != trial_digest("t", {"values": ROWS}, None)


def test_a_trial_without_rows_has_a_digest():
    assert trial_digest("t", {"values": ROWS[:0]}, None) != trial_digest(
        "t", {"values": ROWS}, None
    )


def test_a_big_endian_array_is_hashed_as_the_values_it_holds():
    got = trial_digest("t", {"values": ROWS.astype(">f4")}, None)
    assert got == trial_digest("t", {"values": ROWS}, None)


def test_packing_is_no_part_of_identity(tmp_path):
    one = make_store(tmp_path / "a", LENGTHS, n_shards=1, splits=SPLITS, missing=True)
    five = make_store(tmp_path / "b", LENGTHS, n_shards=5, splits=SPLITS, missing=True)
    assert len(one.manifest.shards) == 1
    assert len(five.manifest.shards) == 5
    assert one.fingerprint == five.fingerprint
    assert one.manifest.fingerprints == five.manifest.fingerprints
    assert one.cold("digest").equals(five.cold("digest"))


def test_version_number_and_place_are_no_part_of_identity(tmp_path):
    alone = make_store(tmp_path / "a", LENGTHS, splits=SPLITS)
    make_store(tmp_path / "b", [3, 3])
    later = make_store(tmp_path / "b", LENGTHS, splits=SPLITS, after="v0001")
    assert later.version == "v0002"
    assert later.manifest.fingerprints == alone.manifest.fingerprints


def test_a_changed_test_trial_leaves_the_train_and_val_fingerprints_alone(tmp_path):
    before = make_store(tmp_path / "a", LENGTHS, splits=SPLITS).manifest
    changed = [*LENGTHS[:5], 31, *LENGTHS[6:]]
    after = make_store(tmp_path / "b", changed, splits=SPLITS).manifest
    same = {s for s in before.splits if before.fingerprints[s] == after.fingerprints[s]}
    assert same == {"train", "val"}
    assert before.fingerprint != after.fingerprint


def test_a_trial_that_changes_split_changes_both_splits_and_no_third(tmp_path):
    before = make_store(tmp_path / "a", LENGTHS, splits=SPLITS).manifest
    after = make_store(tmp_path / "b", LENGTHS, splits=[*SPLITS[:5], "val", *SPLITS[6:]]).manifest
    same = {s for s in before.splits if before.fingerprints[s] == after.fingerprints[s]}
    assert same == {"train"}


def test_a_trial_appended_to_train_changes_train_alone(tmp_path):
    before = make_store(tmp_path / "a", LENGTHS, splits=SPLITS).manifest
    after = make_store(tmp_path / "b", [*LENGTHS, 5], splits=[*SPLITS, "train"]).manifest
    same = {s for s in before.splits if before.fingerprints[s] == after.fingerprints[s]}
    assert same == {"val", "test"}


def test_schema_windows_normalization_labels_and_weights_change_every_split(tmp_path):
    classes = TargetSchema("per_trial", ("kind",), ("push", "pull"))
    renamed = TargetSchema("per_trial", ("kind",), ("push", "poke"))
    label = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    variants = [
        {},
        {"n_channels": 4},
        {"missing": True},
        {"windows": WindowSpec(length=4, stride=1, steps=1)},
        {"windows": WindowSpec(length=4, stride=2, steps=1, short="drop")},
        {"scale": (0.0, 1.0)},
        {"scale": (0.0, 2.0)},
        {"target": TargetSchema("forecast", ("c1",))},
        {"target": TargetSchema("per_step", ("y0",))},
        {"target": classes, "labels": label},
        {"target": renamed, "labels": label},
        {"target": classes, "labels": [1 - code for code in label]},
        {"weights": [0.5] * len(LENGTHS)},
    ]
    manifests = [
        make_store(tmp_path / str(i), LENGTHS, splits=SPLITS, **variant).manifest
        for i, variant in enumerate(variants)
    ]
    for split in ("train", "val", "test"):
        assert len({m.fingerprints[split] for m in manifests}) == len(variants), split
    assert len({m.fingerprint for m in manifests}) == len(variants)


def test_the_fingerprint_names_its_splits():
    assert dataset_fingerprint({"a": "x", "b": "y"}) == dataset_fingerprint({"b": "y", "a": "x"})
    assert dataset_fingerprint({"a": "x", "b": "y"}) != dataset_fingerprint({"a": "y", "b": "x"})


def test_pairs_are_ordered_and_schemas_are_not():
    pairs = pairs_digest([("a", "1"), ("b", "2")])
    other = pairs_digest([("b", "2"), ("a", "1")])
    assert split_fingerprint({"x": 1, "y": 2}, pairs) == split_fingerprint({"y": 2, "x": 1}, pairs)
    assert split_fingerprint({"x": 1}, pairs) != split_fingerprint({"x": 1}, other)
    assert split_fingerprint({"x": 1}, pairs) != split_fingerprint({"x": 1.5}, pairs)


def test_json_that_no_other_reader_takes_is_never_hashed():
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"offset": float("nan")})


# --- whole tables at once -------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.text(max_size=9), st.text("0123456789abcdef", max_size=5))),
    st.lists(st.integers(0, 2), max_size=3),
)
def test_a_table_has_the_digest_of_its_pairs(pairs: list[tuple[str, str]], cuts: list[int]):
    sides = [("train", "test")[number % 2] for number in range(len(pairs))]
    columns = [*zip(*pairs, strict=True)] or [(), ()]
    table = pa.table(
        {"id": columns[0], "digest": columns[1], "split": sides},
        schema=pa.schema(dict.fromkeys(("id", "digest", "split"), pa.utf8())),
    )
    pieces = [table.slice(0, len(cuts)), table.slice(len(cuts))]
    for split in ("train", "test", "none"):
        own = [pair for pair, side in zip(pairs, sides, strict=True) if side == split]
        assert split_digest(table, split) == pairs_digest(own)
        assert split_digest(pa.concat_tables(pieces), split) == pairs_digest(own)
