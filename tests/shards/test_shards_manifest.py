"""dataset.json is parsed once, at the door: what it may say, and what is refused there."""

import json
from dataclasses import replace

import pytest
import xxhash
from stores import make_store

from shards import CorruptStoreError, FormatVersionError, Store
from shards.identity import canonical_json
from shards.layout import ArraySpec, shard_digest
from shards.manifest import Manifest, TargetSchema, sign
from shards.verify import verify_store

LABELS = [0.0, 1.0, 0.0]
KINDS = {
    "forecast": {},
    "observed": {"missing": True, "scale": (3.0, 0.5)},
    "per_step": {"target": TargetSchema("per_step", ("y0", "y1"))},
    "class": {"target": TargetSchema("per_trial", ("kind",), ("push", "pull")), "labels": LABELS},
    "value": {"target": TargetSchema("per_trial", ("mass",)), "labels": [0.5, -1.0, 2.0]},
}


def build(path, **options):
    return make_store(path, [7, 5, 9], n_shards=2, **{"missing": True, **options})


def edit(store, change, *, signed=True):
    """Apply `change` to the parsed dataset.json of `store` and write it back, signed anew."""
    path = store.folder / "dataset.json"
    document = json.loads(path.read_bytes())
    replaced = change(document)
    document = document if replaced is None else replaced
    if signed and isinstance(document, dict):
        document = sign(document)
    path.write_bytes(canonical_json(document) + b"\n")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_what_is_read(tmp_path, kind):
    store = make_store(tmp_path, [7, 5, 9], **KINDS[kind])
    raw = (store.folder / "dataset.json").read_bytes()
    parsed = Manifest.from_bytes(raw, "x")
    assert parsed == store.manifest
    assert parsed.to_bytes() == raw


def test_the_document_has_the_fields_of_the_text_sorted(tmp_path):
    raw = (build(tmp_path).folder / "dataset.json").read_bytes()
    document = json.loads(raw)
    assert list(document) == sorted(document)
    assert set(document) == {
        "format", "name", "layout", "container", "channels", "target", "windows", "splits",
        "observed", "normalization", "counts", "fingerprints", "fingerprint", "shards", "files",
        "spec", "xxh3_128",
    }  # fmt: skip
    assert document["format"] == {"name": "trialshards", "major": 1, "minor": 0}
    assert (document["layout"], document["container"]) == ("rows", "zarr")
    entry = document["shards"][0]["arrays"]["values"]
    assert set(entry) == {"dtype", "shape", "inner_rows", "size_bytes", "xxh3_128"}


@pytest.mark.parametrize(
    "document",
    [
        {"format": {"name": "trialshards", "major": 2, "minor": 0}},
        {"format": {"name": "trialshards", "major": 99}, "shards": 5, "windows": {"length": -1}},
        {"format": {"name": "shardtrials", "major": 1, "minor": 0}},
    ],
)
def test_a_newer_or_foreign_format_is_refused_before_anything_else_is_read(tmp_path, document):
    folder = tmp_path / "versions" / "v0001"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(document))
    for open_it in (Store, verify_store):
        with pytest.raises(FormatVersionError, match=r"dataset.json has format .*Upgrade: pip"):
            open_it(tmp_path)


def newer_minor(document):
    document["format"]["minor"] = 7
    document["format"]["flavour"] = "x"
    document["lanes"] = {"n": 3}
    document["target"]["loss"] = "mse"
    document["counts"]["lanes"] = 3
    document["channels"][0]["range"] = [0, 1]
    document["shards"][0]["created"] = "yesterday"
    document["normalization"]["clip"] = 5


def test_a_newer_minor_with_unknown_fields_opens_and_reads_the_same(tmp_path):
    store = build(tmp_path)
    edit(store, newer_minor)
    again = Store(tmp_path)
    assert again.manifest.shards == store.manifest.shards
    assert again.manifest.channels == store.manifest.channels
    assert again.trial_rows(2).tobytes() == store.trial_rows(2).tobytes()


def test_a_newer_minor_may_add_fields_to_windows(tmp_path):
    store = build(tmp_path)

    def change(document):
        document["format"]["minor"] = 1
        document["windows"]["dilation"] = 1

    edit(store, change)
    assert Store(tmp_path).manifest.windows == store.manifest.windows


def test_a_newer_minor_may_add_fields_to_arrays(tmp_path):
    store = build(tmp_path)

    def change(document):
        document["format"]["minor"] = 1
        document["shards"][0]["arrays"]["values"]["codec"] = "raw"

    edit(store, change)
    assert Store(tmp_path).manifest.shards == store.manifest.shards


def setting(*path, to):
    def change(document):
        node = document
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = to

    return change


def removing(*path):
    def change(document):
        node = document
        for part in path[:-1]:
            node = node[part]
        del node[path[-1]]

    return change


def renamed_array(name):
    def change(document):
        arrays = document["shards"][0]["arrays"]
        arrays[name] = arrays.pop("observed")

    return change


UNSIGNED = "its xxh3_128 is not that of its content"


def assert_refused_for_what_it_says(store):
    """Refused by path, and not only because somebody forgot to sign."""
    with pytest.raises(CorruptStoreError, match=f"{store.folder}/dataset.json is not a ") as caught:
        Store(store.path)
    assert UNSIGNED not in str(caught.value)


VALUES = ("shards", 0, "arrays", "values")
HOSTILE = {
    "shard path": setting("shards", 0, "digest", to="../../etc"),
    "shard absolute": setting("shards", 0, "digest", to="/etc"),
    "shard upper case": setting("shards", 0, "digest", to="A" * 32),
    "shard newline": setting("shards", 0, "digest", to="a" * 32 + "\n"),
    "shard null": setting("shards", 0, "digest", to=None),
    "array path": renamed_array("../x"),
    "array empty": renamed_array(""),
    "array dot": renamed_array("."),
    "array newline": renamed_array("observed\n"),
    "rows negative": setting(*VALUES, "shape", to=[-16, 3]),
    "rows zero": setting(*VALUES, "shape", to=[0, 3]),
    "columns zero": setting(*VALUES, "shape", to=[16, 0]),
    "columns negative": setting(*VALUES, "shape", to=[16, -3]),
    "shape too long": setting(*VALUES, "shape", to=[16, 3, 1]),
    "shape empty": setting(*VALUES, "shape", to=[]),
    "shape number": setting(*VALUES, "shape", to=16),
    "shape text": setting(*VALUES, "shape", to="16"),
    "shape huge": setting(*VALUES, "shape", to=[2**70, 3]),
    "shape other rows": setting(*VALUES, "shape", to=[15, 3]),
    "shape swapped": setting(*VALUES, "shape", to=[3, 16]),
    "shape broken number": setting(*VALUES, "shape", to=[16.5, 3]),
    "dtype": setting(*VALUES, "dtype", to="float64"),
    "dtype object": setting(*VALUES, "dtype", to="object"),
    "dtype contradicts": setting(*VALUES, "dtype", to="uint8"),
    "inner rows": setting(*VALUES, "inner_rows", to=1),
    "size too small": setting(*VALUES, "size_bytes", to=4),
    "size negative": setting(*VALUES, "size_bytes", to=-1),
    "array digest": setting(*VALUES, "xxh3_128", to="zz"),
    "shard rows": setting("shards", 0, "n_rows", to=17),
    "no values": removing(*VALUES),
    "no arrays": setting("shards", 0, "arrays", to={}),
    "arrays list": setting("shards", 0, "arrays", to=["values"]),
    "shards number": setting("shards", to=3),
    "shard list": setting("shards", to=[[]]),
    "window length zero": setting("windows", "length", to=0),
    "window length text": setting("windows", "length", to="4"),
    "window stride negative": setting("windows", "stride", to=-1),
    "window short": setting("windows", "short", to="cut"),
    "windows list": setting("windows", to=[4, 2]),
    "channel list": setting("channels", to=["c0", "c1", "c2"]),
    "target text": setting("target", to="forecast"),
    "format list": setting("format", to=[1, 0]),
    "format text": setting("format", "major", to="one"),
    "format null": setting("format", "major", to=None),
    "document list": lambda document: [document],
    "document number": lambda document: 5,
    "document text": lambda document: "trialshards",
    **{f"no {key}": removing(key) for key in (
        "format", "name", "channels", "target", "windows", "splits", "observed", "normalization",
        "counts", "fingerprints", "fingerprint", "shards", "files", "spec",
    )},
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_an_entry_that_cannot_be_is_refused_by_path(tmp_path, case):
    store = build(tmp_path)
    edit(store, HOSTILE[case])
    assert_refused_for_what_it_says(store)


def promising(**spec):
    """Replace the promise of `values` by one that agrees with itself, and name the shard anew."""

    def change(document):
        shard = document["shards"][0]
        new = ArraySpec(**{"dtype": "float32", "xxh3_128": "0" * 32, **spec})
        shard["arrays"] = {"values": new.as_dict()}
        shard["n_rows"] = new.n_rows
        shard["digest"] = shard_digest({"values": new})

    return change


FILES = ("index.arrow", "quarantine.parquet", "fit.json", "trials.parquet")
CONTRADICTIONS = {
    "values of bytes": promising(dtype="uint8", n_rows=16, n_columns=3),
    "fewer columns than channels": promising(n_rows=16, n_columns=2),
    "more columns than channels": promising(n_rows=16, n_columns=4),
    "observed without the array": promising(n_rows=16, n_columns=3),
    "the array without observed": setting("observed", to=False),
    "other layout": setting("layout", to="columns"),
    "other container": setting("container", to="hdf5"),
    "window length fraction": setting("windows", "length", to=4.5),
    "window length true": setting("windows", "length", to=True),
    "splits text": setting("splits", to="train"),
    "splits numbers": setting("splits", to=[0]),
    "splits without fingerprint": setting("splits", to=["train", "val"]),
    "fingerprints without split": setting("fingerprints", "val", to="0" * 64),
    "files list": setting("files", to=[]),
    **{f"files without {name}": removing("files", name) for name in FILES},
    "normalization without scope": setting("normalization", to={}),
    "normalization scope": setting("normalization", "scope", to="batch"),
    "target kind": setting("target", "kind", to="magic"),
    "target of nothing": setting("target", "columns", to=[]),
    "target columns text": setting("target", "columns", to="c0"),
    "forecast of no channel": setting("target", "columns", to=["nobody"]),
    "targets without the array": setting("target", "kind", to="per_step"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_an_entry_that_contradicts_the_text_is_refused_by_path(tmp_path, case):
    store = build(tmp_path)
    edit(store, CONTRADICTIONS[case])
    assert_refused_for_what_it_says(store)


# What JSON of other writers can say, and no signature can be made of.
UNSIGNABLE = {
    "infinite major": ('"major":1', '"major":Infinity'),
    "infinite rows": ('"n_rows":', '"n_rows":-Infinity,"n_rows_":'),
    "a number that is none": ('"spec":{}', '"spec":{"limit":NaN}'),
    "deep lists": ('"spec":{}', '"spec":' + "[" * 500_000 + "]" * 500_000),
    "deep objects": ('"spec":{}', '"spec":' + '{"a":' * 500_000 + "{}" + "}" * 500_000),
    "digits without end": ('"spec":{}', '"spec":' + "9" * 100_000),
}


@pytest.mark.parametrize("case", UNSIGNABLE)
def test_json_that_cannot_be_signed_is_refused_by_path(tmp_path, case):
    store = build(tmp_path)
    path = store.folder / "dataset.json"
    old, new = UNSIGNABLE[case]
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CorruptStoreError, match=f"{path} is not a manifest"):
        Store(tmp_path)


HARMLESS = {
    "name": setting("name", to="leg"),
    "unit": setting("channels", 0, "unit", to="km"),
    "minor": setting("format", "minor", to=1),
    "major 0": setting("format", "major", to=0),
    "count": setting("counts", "files", to=4),
    "trials of a shard": setting("shards", 0, "n_trials", to=9),
    "spec": setting("spec", "limit", to=3),
    "stride": setting("windows", "stride", to=1),
    "another field": setting("lanes", to=3),
    "method": setting("normalization", "method", to="robust"),
    "promise": setting("files", "fit.json", "size_bytes", to=1),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_an_edit_that_contradicts_nothing_is_refused_until_it_is_signed(tmp_path, case):
    store = build(tmp_path)
    edit(store, HARMLESS[case], signed=False)
    for open_it in (Store, verify_store):
        with pytest.raises(CorruptStoreError, match=UNSIGNED):
            open_it(tmp_path)
    edit(store, lambda document: None)
    unknown = {"minor", "major 0", "another field"}
    assert (Store(tmp_path).manifest == store.manifest) == (case in unknown)


@pytest.mark.parametrize(
    "change",
    [
        removing("xxh3_128"),
        setting("xxh3_128", to=None),
        setting("xxh3_128", to="0" * 32),
        lambda document: {**document, "xxh3_128": document["xxh3_128"].upper()},
    ],
    ids=["none", "null", "another", "upper case"],
)
def test_a_manifest_without_its_own_digest_is_refused(tmp_path, change):
    edit(build(tmp_path), change, signed=False)
    with pytest.raises(CorruptStoreError, match=UNSIGNED):
        Store(tmp_path)


def test_the_digest_is_that_of_the_text(tmp_path):
    document = json.loads((build(tmp_path).folder / "dataset.json").read_bytes())
    digest = document.pop("xxh3_128")
    compact = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert digest == xxhash.xxh3_128_hexdigest(compact.encode())
    assert sign(sign(document)) == sign(document) == {**document, "xxh3_128": digest}


def unseen_flips(raw):
    """Every (byte, bit) of a manifest that may be flipped without an error."""
    unseen = []
    for position, byte in enumerate(raw):
        for bit in range(8):
            flipped = raw[:position] + bytes([byte ^ 1 << bit]) + raw[position + 1 :]
            try:
                Manifest.from_bytes(flipped, "here")
            except (CorruptStoreError, FormatVersionError) as error:
                assert str(error).startswith("here ")  # noqa: PT017
            else:
                unseen.append((position, bit, flipped[max(0, position - 12) : position + 12]))
    return unseen


def test_every_flipped_bit_of_a_manifest_is_refused(tmp_path):
    assert unseen_flips((build(tmp_path).folder / "dataset.json").read_bytes()) == []


def test_every_flipped_bit_of_a_manifest_with_long_numbers_and_letters_is_refused(tmp_path):
    manifest = build(tmp_path).manifest
    spec = {"limit": 0.1 + 0.2, "tiny": 1e-7, "clé": [1e300, -0.0, True, None]}
    assert unseen_flips(replace(manifest, name="bras articulé", spec=spec).to_bytes()) == []


def test_a_promise_of_more_rows_than_any_file_holds_is_refused_when_mapped(tmp_path):
    store = build(tmp_path, missing=False)
    edit(store, promising(n_rows=2**60, n_columns=3))
    with pytest.raises(CorruptStoreError, match="wanted an integer of"):
        Store(tmp_path)
    edit(store, promising(n_rows=2**45, n_columns=3))
    again = Store(tmp_path)
    with pytest.raises(CorruptStoreError, match="is missing"):
        again.shard_rows(0)
    huge = tmp_path / "shards" / again.manifest.shards[0].digest
    (tmp_path / "shards" / store.manifest.shards[0].digest).rename(huge)
    with pytest.raises(CorruptStoreError, match=r"bytes; the manifest says 42\d+"):
        again.shard_rows(0)
    assert [p for p in verify_store(tmp_path) if "values/c/0/0" in p.where]


def test_every_cut_of_the_manifest_is_refused(tmp_path):
    raw = (build(tmp_path).folder / "dataset.json").read_bytes()
    for length in range(len(raw) - 1):  # the last byte is the line end
        with pytest.raises(CorruptStoreError, match="here is not a manifest"):
            Manifest.from_bytes(raw[:length], "here")


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"null", b"{}", b"{" * 50, b'{"format": {}}x'])
def test_bytes_that_are_no_manifest_are_refused(raw):
    with pytest.raises(CorruptStoreError, match="here is not a manifest"):
        Manifest.from_bytes(raw, "here")
