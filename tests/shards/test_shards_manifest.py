"""dataset.json is parsed once, at the door: what it may say, and what is refused there."""

import json

import pytest
from stores import make_store

from shards import CorruptStoreError, FormatVersionError, Store
from shards.layout import ArraySpec, shard_digest
from shards.manifest import Manifest, TargetSchema
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


def edit(store, change):
    """Apply `change` to the parsed dataset.json of `store` and write it back."""
    path = store.folder / "dataset.json"
    document = json.loads(path.read_bytes())
    replaced = change(document)
    path.write_text(json.dumps(document if replaced is None else replaced))


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
        "spec",
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


@pytest.mark.xfail(
    strict=True,
    reason="manifest.py:153 WindowSpec(**windows) refuses fields of a newer minor, which a reader "
    "MUST ignore (SPEC section 3)",
)
def test_a_newer_minor_may_add_fields_to_windows(tmp_path):
    store = build(tmp_path)

    def change(document):
        document["format"]["minor"] = 1
        document["windows"]["dilation"] = 1

    edit(store, change)
    assert Store(tmp_path).manifest.windows == store.manifest.windows


@pytest.mark.xfail(
    strict=True,
    reason="layout.py:94 compares the whole array entry, so fields of a newer minor, which a "
    "reader MUST ignore (SPEC section 3), look like a contradiction",
)
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
    with pytest.raises(CorruptStoreError, match=f"{store.folder}/dataset.json is not a manifest"):
        Store(tmp_path)


def promising(**spec):
    """Replace the promise of `values` by one that agrees with itself, and name the shard anew."""

    def change(document):
        shard = document["shards"][0]
        new = ArraySpec(**{"dtype": "float32", "xxh3_128": "0" * 32, **spec})
        shard["arrays"] = {"values": new.as_dict()}
        shard["n_rows"] = new.n_rows
        shard["digest"] = shard_digest({"values": new})

    return change


class RawJson(str):
    """Text that goes into the document as it is."""

    __slots__ = ()


UNCHECKED = {
    "infinite major": (
        setting("format", "major", to=float("inf")),
        "manifest.py:133: OverflowError (int of infinity) is not caught",
    ),
    "infinite rows": (
        setting(*VALUES, "shape", to=[float("inf"), 3]),
        "manifest.py:133: OverflowError (int of infinity) is not caught",
    ),
    "values of bytes": (
        promising(dtype="uint8", n_rows=16, n_columns=3),
        "manifest.py:74: `values` MUST be float32; a reader would show bytes as float32",
    ),
    "fewer columns than channels": (
        promising(n_rows=16, n_columns=2),
        "manifest.py:74: `values` need not have one column per channel: gathers would over-read",
    ),
    "observed without the array": (
        promising(n_rows=16, n_columns=3),
        "manifest.py:74: `observed` is true but a shard lacks the array (KeyError when it is read)",
    ),
    "other layout": (
        setting("layout", to="windows"),
        "manifest.py:142: `layout` is never looked at, so other data would be read as rows",
    ),
    "other container": (
        setting("container", to="parquet"),
        "manifest.py:142: `container` is never looked at",
    ),
    "window length fraction": (
        setting("windows", "length", to=4.5),
        "windows.py:40: a number that is no integer passes",
    ),
    "splits text": (
        setting("splits", to="train"),
        "manifest.py:154: a text becomes one split per letter",
    ),
    "files list": (setting("files", to=[]), "manifest.py:161: taken as it comes"),
    "normalization without scope": (
        setting("normalization", to={}),
        "manifest.py:156: taken as it comes; KeyError at delivery",
    ),
    "target kind": (setting("target", "kind", to="magic"), "manifest.py:149: any kind passes"),
    "forecast of no channel": (
        setting("target", "columns", to=["nobody"]),
        "manifest.py:150: forecast columns need not be channels",
    ),
    "deep nesting": (
        setting("spec", to=RawJson("[" * 500_000 + "]" * 500_000)),
        "manifest.py:133: RecursionError is not caught",
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=reason))
        for name, (_, reason) in UNCHECKED.items()
    ],
)
def test_an_entry_that_contradicts_the_text_is_refused_by_path(tmp_path, case):
    store = build(tmp_path)
    path = store.folder / "dataset.json"
    document = json.loads(path.read_bytes())
    UNCHECKED[case][0](document)
    raw = document["spec"] if isinstance(document["spec"], RawJson) else None
    text = json.dumps({**document, "spec": 0} if raw else document)
    path.write_text(text.replace('"spec": 0', f'"spec": {raw}') if raw else text)
    with pytest.raises(CorruptStoreError, match=f"{path} is not a manifest"):
        Store(tmp_path)


def test_a_promise_of_more_rows_than_any_file_holds_is_refused_when_mapped(tmp_path):
    store = build(tmp_path, missing=False)
    edit(store, promising(n_rows=2**60, n_columns=3))
    again = Store(tmp_path)
    with pytest.raises(CorruptStoreError, match="is missing; wanted"):
        again.shard_rows(0)
    huge = tmp_path / "shards" / again.manifest.shards[0].digest
    (tmp_path / "shards" / store.manifest.shards[0].digest).rename(huge)
    with pytest.raises(CorruptStoreError, match=r"bytes; the manifest says 1383\d+"):
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
