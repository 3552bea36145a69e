"""Stores with codes and statics: what the manifest says, what a digest covers, what verify sees."""

import json
import shutil
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from codedstores import TextTrial, text_spec, text_store

from pipeline.codes import CATEGORIES
from shards import CorruptStoreError, Store
from shards.identity import canonical_json, file_promise, trial_digest
from shards.manifest import EncodedInput, Manifest, sign
from shards.tables import parquet_bytes
from shards.verify import verify_store

SPEC = text_spec({"gripper": "one_hot", "mode": "embed"}, {"load": "number", "site": "one_hot"})
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def trials_of(n=6):
    return [
        TextTrial(
            [["open", "shut", None][i % 2 :] * 3, ["a", "b", "a"][i % 2 :] * 3],
            {"load": f"{i}.5", "site": "lab"},
            split="test" if i == 4 else "train",
        )
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return text_store(tmp_path_factory.mktemp("s"), trials_of(), SPEC, n_shards=2)


@pytest.fixture
def store(built, tmp_path):
    shutil.copytree(built.path, tmp_path / "store")
    return Store(tmp_path / "store")


def test_what_is_written_is_what_is_read(built):
    raw = (built.folder / "dataset.json").read_bytes()
    parsed = Manifest.from_bytes(raw, "x")
    assert parsed == built.manifest
    assert parsed.to_bytes() == raw
    assert parsed.codes == (EncodedInput("gripper", "one_hot"), EncodedInput("mode", "embed"))
    assert parsed.statics == (EncodedInput("load", "number"), EncodedInput("site", "one_hot"))
    assert json.loads(raw)["format"]["minor"] == 1
    assert verify_store(built.path) == []


def test_arrays_and_dictionaries_hold_the_texts(built):
    codes = built.trial_rows(1, "codes")
    assert codes.dtype == np.uint16
    words = built.cold("categories")["categories"][1].as_py()
    assert words == [["shut"], ["b", "a"]]
    assert codes.tolist() == [[1, 1], [0, 2]] * 3


def edit_manifest(store, change):
    path = store.folder / "dataset.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(canonical_json(sign(document)) + b"\n")


WRONG = {
    "another encoding": lambda d: d["codes"][0].update(encoding="hash"),
    "a code cannot be a number": lambda d: d["codes"][0].update(encoding="number"),
    "no array": lambda d: d["codes"].clear(),
    "too few columns": lambda d: d["codes"].pop(),
    "a name twice": lambda d: d["codes"][0].update(name="mode"),
    "a static twice": lambda d: d["statics"][0].update(name="site"),
    "no encoding": lambda d: d["statics"][0].pop("encoding"),
    "a name that is no text": lambda d: d["statics"][0].update(name=3),
    "no list": lambda d: d.update(codes=None),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_manifest_that_contradicts_itself_is_refused(store, name):
    edit_manifest(store, WRONG[name])
    with pytest.raises(CorruptStoreError, match="is not a manifest of this format"):
        Store(store.path)


def test_a_digest_covers_dictionaries_and_statics():
    def digest(**more):
        return trial_digest("t", {"values": ROWS}, None, **more)

    digests = [
        digest(),
        digest(weight=0.5),
        digest(categories=[[]]),
        digest(categories=[[], []]),
        digest(categories=[["a"]]),
        digest(categories=[["a"], []]),
        digest(categories=[["a", "b"]]),
        digest(categories=[["b", "a"]]),
        digest(categories=[["a"], ["b"]]),
        digest(categories=[['a", "b']]),
        digest(statics={"a": None}),
        digest(statics={"a": ""}),
        digest(statics={"a": "None"}),
        digest(statics={"a": "null"}),
        digest(statics={"b": None}),
        digest(statics={"a": "b"}),
        digest(statics={"a": "b", "c": "d"}),
        digest(statics={"c": "d", "a": "b"}),
        digest(categories=[["a", "b"]], statics={"a": "b"}),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(categories=(), statics={}) == digest()
    assert digest(categories=(("ä",),)) == digest(categories=[["ä"]])


def test_a_digest_with_words_is_the_one_written_down():
    got = trial_digest(
        "t0001", {"values": ROWS}, "push", categories=[["öffnen"]], statics={"load": None}
    )
    fields = [  # SPEC section 7 read aloud
        b"t0001", b"values|float32|4x3", struct.pack("<12f", *range(12)), b"class push",
        struct.pack("<f", 1), rb'categories [["\u00f6ffnen"]]', b'statics [["load",null]]',
    ]  # fmt: skip
    by_the_text = b"".join(struct.pack("<Q", len(f)) + f for f in fields)
    assert got == xxhash.xxh3_128_hexdigest(by_the_text) == "1c91b39ed5e1d14a1a17b466b812d285"


def rewrite_trials(store, change):
    path = store.folder / "trials.parquet"
    content = parquet_bytes(change(pq.read_table(path)))
    path.write_bytes(content)

    def promise(document):
        document["files"]["trials.parquet"] = file_promise(content)

    edit_manifest(store, promise)


def with_categories(change):
    def rewrite(table):
        lists = table["categories"].to_pylist()
        change(lists)
        place = table.column_names.index("categories")
        return table.set_column(place, "categories", pa.array(lists, CATEGORIES))

    return rewrite


def swap_words(lists):
    lists[2][0].reverse()


def lose_a_word(lists):
    lists[2][0].pop()


def test_verify_sees_another_word_of_a_code(store):
    rewrite_trials(store, with_categories(swap_words))
    (problem,) = verify_store(store.path)
    assert (problem.message, problem.trials) == (
        "1 trials are not those their digests promise", ("t0002",),
    )  # fmt: skip


def test_verify_sees_a_code_without_a_word(store):
    rewrite_trials(store, with_categories(lose_a_word))
    messages = {problem.message: problem.trials for problem in verify_store(store.path)}
    assert messages == {
        "1 trials are not those their digests promise": ("t0002",),
        "1 trials have codes that no word of theirs has": ("t0002",),
    }


def test_verify_sees_another_static(store):
    def change(table):
        texts = table["attributes"].to_pylist()
        texts[3]["load"] = "3.50"
        return table.set_column(
            table.column_names.index("attributes"), "attributes", pa.array(texts)
        )

    rewrite_trials(store, change)
    (problem,) = verify_store(store.path)
    assert (problem.message, problem.trials) == (
        "1 trials are not those their digests promise", ("t0003",),
    )  # fmt: skip


LOST = {
    "a trial without lists": with_categories(lambda lists: lists.__setitem__(2, None)),
    "a list too few": with_categories(lambda lists: lists[2].pop()),
    "a list of nothing": with_categories(lambda lists: lists[2].__setitem__(0, None)),
    "no column": lambda table: table.drop_columns("categories"),
}


@pytest.mark.parametrize("name", LOST)
def test_verify_sees_lists_that_are_not_one_per_column(store, name):
    rewrite_trials(store, LOST[name])
    (problem,) = verify_store(store.path)
    assert problem.message.startswith("the indexes cannot be used")
    assert "categories" in problem.message


def test_verify_sees_a_fit_without_vocabularies(store):
    path = store.folder / "fit.json"
    content = canonical_json({"normalize": {"method": "none", "scope": "none"}}) + b"\n"
    path.write_bytes(content)
    edit_manifest(store, lambda d: d["files"].update({"fit.json": file_promise(content)}))
    problems = [problem.message for problem in verify_store(store.path)]
    assert any("does not fit the manifest" in message for message in problems)


def test_words_and_encodings_are_part_of_the_fingerprint(built, tmp_path):
    def fingerprint(name, trials, spec):
        return text_store(tmp_path / name, trials, spec).manifest.fingerprints["train"]

    want = built.manifest.fingerprints["train"]
    assert fingerprint("same", trials_of(), SPEC) == want
    other = text_spec({"gripper": "embed", "mode": "embed"}, dict(SPEC.static))
    assert fingerprint("encoding", trials_of(), other) != want
    renamed = text_spec({"grip": "one_hot", "mode": "embed"}, dict(SPEC.static))
    assert fingerprint("name", trials_of(), renamed) != want
    trials = trials_of()
    columns = [[{"open": "wide"}.get(w, w) for w in trials[0].columns[0]], trials[0].columns[1]]
    trials[0] = TextTrial(columns, trials[0].attributes)
    assert fingerprint("word", trials, SPEC) != want
