"""Verify: no byte of a store changes unseen, and a problem names the file and its trials."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from stores import make_store
from vandal import into_parts

from shards import CorruptStoreError, InvalidSpecError, Store
from shards.identity import canonical_json
from shards.index import SCHEMA, index_to_bytes
from shards.manifest import TargetSchema, sign
from shards.verify import verify_store
from shards.version import file_promise

CLASSES = TargetSchema("per_trial", ("kind",), ("push", "pull"))


@pytest.fixture
def store(tmp_path):
    """Two shards of equally many rows: t0000, t0002 and t0001, t0003; with `observed`."""
    return make_store(tmp_path / "s", [6, 5, 4, 5], n_shards=2, missing=True)


def chunk(store, shard, array="values"):
    return store.chunk_file(shard, array)


TRIALS = (("t0000", "t0002"), ("t0001", "t0003"))


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("array", ["values", "observed"])
@pytest.mark.parametrize("change", [-1, 1, -10_000])
def test_a_cut_or_grown_chunk_is_named_with_its_trials(store, shard, array, change):
    file = chunk(store, shard, array)
    content = file.read_bytes()
    file.write_bytes(content[:change] if change < 0 else content + bytes(change))
    (problem,) = verify_store(store.path)
    assert problem.where == str(file)
    assert problem.trials == TRIALS[shard]
    assert f"wanted {len(content)} bytes" in problem.message
    assert str(problem) == f"{file}: {problem.message} (trials: {', '.join(TRIALS[shard])})"


@pytest.mark.parametrize(
    "name",
    ["zarr.json", "values/zarr.json", "values/c/0/0", "observed/zarr.json", "observed/c/0/0"],
)
def test_a_missing_file_of_a_shard_is_named_with_its_trials(store, name):
    file = store.path / "shards" / store.manifest.shards[1].digest / name
    file.unlink()
    (problem,) = verify_store(store.path)
    assert (problem.where, problem.trials) == (str(file), TRIALS[1])
    assert "missing" in problem.message


def test_a_missing_shard_is_named_with_its_trials(store):
    folder = store.path / "shards" / store.manifest.shards[0].digest
    shutil.rmtree(folder)
    problems = verify_store(store.path)
    assert problems
    assert {p.trials for p in problems} == {TRIALS[0]}
    assert all(p.where.startswith(str(folder)) for p in problems)


@pytest.mark.parametrize(
    "name",
    ["trials.parquet", "quarantine.parquet", "fit.json", "index.arrow"],
)
def test_a_cut_or_missing_file_of_the_version_is_named(store, name):
    file = store.folder / name
    file.write_bytes(file.read_bytes()[:-1])
    assert [p.where for p in verify_store(store.path)] == [str(file)]
    file.unlink()
    (problem,) = verify_store(store.path)
    assert (problem.where, problem.message) == (str(file), "missing")


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "zarr.json.bak", "values/c/0/1", "values/c/1/0", "other/zarr.json", ".hidden"],
)
def test_a_foreign_file_in_a_shard_is_named(store, name):
    file = store.path / "shards" / store.manifest.shards[0].digest / name
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_bytes(b"")
    (problem,) = verify_store(store.path)
    assert (problem.where, problem.message) == (str(file), "a foreign file")
    assert problem.trials == TRIALS[0]


def test_a_foreign_file_in_a_version_is_named(store):
    file = store.folder / "trials.parquet.bak"
    file.write_bytes(b"")
    assert [(p.where, p.message) for p in verify_store(store.path)] == [
        (str(file), "a foreign file")
    ]


def test_what_others_build_and_what_lies_beside_is_nobodys_business(store):
    (store.path / "shards" / ".tmp-1-a").mkdir()
    (store.path / "shards" / ("0" * 32)).mkdir()
    (store.path / "parts").mkdir()
    (store.path / "parts" / f"{'1' * 32}.parquet").write_bytes(b"of another version")
    (store.path / "parts" / ".tmp-1-b").write_bytes(b"")
    (store.path / "staging" / "abc").mkdir(parents=True)
    (store.path / "README").write_text("mine")
    assert verify_store(store.path) == []


@pytest.mark.parametrize(
    "name",
    ["shards/0123", "shards/notes.txt", f"shards/{'0' * 32}.parquet", "parts/notes.txt",
     f"parts/{'0' * 32}", f"parts/{'0' * 31}.parquet"],
)  # fmt: skip
def test_what_could_be_no_shard_and_no_part_is_foreign(store, name):
    file = store.path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"")
    assert [(p.where, p.message) for p in verify_store(store.path)] == [
        (str(file), "a foreign file")
    ]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_shard_is_no_file_and_a_part_no_folder(store, is_folder):
    name = f"parts/{'0' * 32}.parquet" if is_folder else f"shards/{'0' * 32}"
    file = store.path / name
    file.parent.mkdir(exist_ok=True)
    file.mkdir() if is_folder else file.write_bytes(b"")
    (problem,) = verify_store(store.path)
    assert problem.where == str(file)


def test_an_index_of_another_version_is_stale(tmp_path):
    make_store(tmp_path, [6, 7, 8, 9], n_shards=2)
    second = make_store(tmp_path, [6, 7, 8, 5], n_shards=2, after="v0001")
    stale = (tmp_path / "versions" / "v0001" / "index.arrow").read_bytes()
    rewrite(second, "index.arrow", stale)
    assert verify_store(tmp_path)
    (problem, *_) = verify_store(tmp_path)
    assert problem.where == str(second.folder / "index.arrow")


def test_a_damaged_part_is_named_with_its_trials(store):
    store = into_parts(store)
    (part,) = (store.path / "parts").iterdir()
    part.write_bytes(part.read_bytes()[:-1])
    (problem,) = verify_store(store.path)
    assert problem.where == str(part)
    assert problem.trials == ("t0000", "t0001", "t0002", "t0003")
    part.unlink()
    assert [(p.where, p.message) for p in verify_store(store.path)] == [(str(part), "missing")]


def with_sources(store, root):
    """Write source files, and let the cold index say what they were."""
    root.mkdir()
    table = pq.read_table(store.folder / "trials.parquet")
    for name in table["source"].to_pylist():
        (root / name).write_text(f"the file {name}")
    raws = [(root / name).read_bytes() for name in table["source"].to_pylist()]
    table = table.append_column("size_bytes", pa.array([len(raw) for raw in raws]))
    digests = pa.array([xxhash.xxh3_128_hexdigest(raw) for raw in raws])
    sink = pa.BufferOutputStream()
    pq.write_table(table.append_column("source_xxh3", digests), sink)
    rewrite(store, "trials.parquet", sink.getvalue().to_pybytes())
    return root


def test_sources_that_are_what_they_were_are_no_problem(store, tmp_path):
    root = with_sources(store, tmp_path / "raw")
    assert verify_store(store.path, sources=root) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file: file.unlink(), "missing"),
        (lambda file: file.write_bytes(b"the file t0001.csV"), "not those"),
        (lambda file: file.write_bytes(b"the file"), "8 bytes; the store was built from 18"),
        (lambda file: (file.unlink(), file.mkdir()), "no regular file"),
        (lambda file: (file.unlink(), os.mkfifo(file)), "no regular file"),
    ],
)
def test_a_source_that_is_another_file_now_is_named_with_its_trials(store, tmp_path, change, says):
    root = with_sources(store, tmp_path / "raw")
    change(root / "t0001.csv")
    (problem,) = verify_store(store.path, sources=root)
    assert (problem.where, problem.trials) == (str(root / "t0001.csv"), ("t0001",))
    assert says in problem.message
    assert verify_store(store.path) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../s/latest.json", "a/../../x"])
def test_no_source_is_looked_for_outside_of_its_folder(store, tmp_path, path):
    root = with_sources(store, tmp_path / "raw")
    rewrite_trials(store, "source", lambda sources: [path, *sources[1:]])
    (problem,) = verify_store(store.path, sources=root)
    assert "no path below" in problem.message


def test_sources_that_the_store_knows_nothing_of_are_a_problem(store, tmp_path):
    (problem,) = verify_store(store.path, sources=tmp_path)
    assert "does not say the size_bytes, source_xxh3" in problem.message
    with pytest.raises(InvalidSpecError, match="no folder"):
        verify_store(store.path, sources=tmp_path / "nowhere")


def test_swapped_chunks_of_two_shards_are_both_named(store):
    one, two = chunk(store, 0), chunk(store, 1)
    assert one.stat().st_size == two.stat().st_size
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    problems = verify_store(store.path)
    assert {(p.where, p.trials) for p in problems} == {(str(one), TRIALS[0]), (str(two), TRIALS[1])}


def test_swapped_shard_folders_are_both_named(store):
    one, two = (store.path / "shards" / shard.digest for shard in store.manifest.shards)
    one.rename(store.path / "aside")
    two.rename(one)
    (store.path / "aside").rename(two)
    assert {p.trials for p in verify_store(store.path)} == set(TRIALS)


def rewrite(store, name, content):
    """Replace a file of the version and mend the manifest's promise, as a clever vandal would."""
    assert content != (store.folder / name).read_bytes()
    (store.folder / name).unlink()  # a map of the old one stays what it was
    (store.folder / name).write_bytes(content)
    assert [p.where for p in verify_store(store.path)] == [str(store.folder / name)]
    manifest = store.folder / "dataset.json"
    document = json.loads(manifest.read_bytes())
    document["files"][name] = file_promise(content)
    manifest.write_bytes(canonical_json(document) + b"\n")
    with pytest.raises(CorruptStoreError, match="its xxh3_128 is not that of its content"):
        verify_store(store.path)
    manifest.write_bytes(canonical_json(sign(document)) + b"\n")


def rewrite_index(store, **changed):
    index = store.index
    columns = {name: getattr(index, name).copy() for name in SCHEMA.names[1:]}
    columns["id"] = index.ids.to_pylist()
    for name, change in changed.items():
        columns[name] = change(columns[name])
    rewrite(store, "index.arrow", index_to_bytes(columns))


def test_trials_that_point_at_each_others_rows_are_named(tmp_path):
    store = make_store(tmp_path, [5, 5, 5])
    rewrite_index(store, row_start=lambda start: start[[1, 0, 2]])
    (problem,) = verify_store(tmp_path)
    assert problem.trials == ("t0000", "t0001")
    assert "not those their digests promise" in problem.message


def test_trials_that_point_at_each_others_shards_are_named(store):
    rewrite_index(store, shard=lambda shard: 1 - shard)
    found = verify_store(store.path)
    assert {t for p in found for t in p.trials} <= {"t0000", "t0001", "t0002", "t0003"}
    assert found


@pytest.mark.parametrize(
    ("column", "change", "says"),
    [
        ("id", lambda ids: ids[::-1], "sorted"),
        ("id", lambda ids: [ids[0], ids[0], *ids[2:]], "unique"),
        ("id", lambda ids: [*ids[:-1], "zzz"], "ids"),
        ("shard", lambda x: np.where(x == 1, 2, x), "shard number"),
        ("shard", lambda x: x - 1, "shard number"),
        ("split", lambda x: x + 1, "split code"),
        ("split", lambda x: x - 1, "split code"),
        ("n_windows", lambda x: x + 1, "number of windows"),
        ("row_start", lambda x: x + 1, "lie outside"),
        ("row_start", lambda x: x - 1, "lie outside"),
        ("row_start", lambda x: x + 2**62, "lie outside"),
        ("n_rows", lambda x: -x, "number of windows"),
        ("n_rows", lambda x: x - 1, "digests promise"),
        ("weight", lambda x: x * 2, "digests promise"),
        ("weight", lambda x: -x, "weight"),
        ("weight", lambda x: x * np.float32("nan"), "weight"),
        ("weight", lambda x: x * np.float32("inf"), "weight"),
        ("label", lambda x: np.zeros_like(x), "digests promise"),
        ("row_start", lambda x: x * 0, "digests promise"),
    ],
)
def test_an_index_that_contradicts_the_manifest_is_named(store, column, change, says):
    rewrite_index(store, **{column: change})
    found = [str(problem) for problem in verify_store(store.path)]
    assert any(says in line for line in found), found


def test_an_index_of_fewer_trials_than_the_manifest_counts_is_named(store):
    index = store.index
    columns = {name: getattr(index, name)[:3] for name in SCHEMA.names[1:]}
    rewrite(store, "index.arrow", index_to_bytes({**columns, "id": index.ids.to_pylist()[:3]}))
    assert any("number of trial segments" in p.message for p in verify_store(store.path))


def test_an_index_of_other_columns_is_a_problem_not_a_crash(store):
    table = pa.table({"id": store.index.ids})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    rewrite(store, "index.arrow", sink.getvalue().to_pybytes())
    assert any("cannot be used" in p.message for p in verify_store(store.path))


def test_another_digest_in_the_cold_index_breaks_the_fingerprints(store):
    rewrite_trials(store, "digest", lambda digests: ["0" * 32, *digests[1:]])
    found = verify_store(store.path)
    assert any("fingerprints" in p.message for p in found)
    assert any(p.trials == ("t0000",) for p in found)


def test_another_fit_breaks_the_fingerprints(tmp_path):
    store = make_store(tmp_path, [6, 7], scale=(1.0, 2.0))
    fit = json.loads((store.folder / "fit.json").read_bytes())
    fit["normalize"]["scale"][0] = 3.0
    rewrite(store, "fit.json", canonical_json(fit) + b"\n")
    assert any("fingerprints" in p.message for p in verify_store(tmp_path))


def test_a_trial_moved_to_another_split_breaks_the_fingerprints(tmp_path):
    store = make_store(tmp_path, [6, 7, 8], splits=["train", "val", "train"])
    rewrite_index(store, split=lambda split: split[[1, 0, 2]])
    assert any("fingerprints" in p.message for p in verify_store(tmp_path))


def test_another_label_is_not_what_the_trials_digest_promises(tmp_path):
    store = make_store(tmp_path, [6, 7], target=CLASSES, labels=[0, 1])
    rewrite_index(store, label=lambda label: label[::-1])
    (problem,) = verify_store(tmp_path)
    assert problem.trials == ("t0000", "t0001")


def test_swapped_class_names_are_not_what_the_trials_digests_promise(tmp_path):
    store = make_store(tmp_path, [6, 7], target=CLASSES, labels=[0, 1])
    sign_again(store, "target", "classes", to=["pull", "push"])
    found = verify_store(tmp_path)
    assert any(p.trials == ("t0000", "t0001") for p in found)


@pytest.mark.parametrize("codes", [[1, 2], [0, -1], [0.5, 1.5], [0, float("inf")]])
def test_a_label_that_is_no_code_of_a_class_is_a_problem(tmp_path, codes):
    store = make_store(tmp_path, [6, 7], target=CLASSES, labels=[0, 1])
    rewrite_index(store, label=lambda label: np.array(codes, np.float32))
    found = [str(problem) for problem in verify_store(tmp_path)]
    assert any("code of a class" in line for line in found), found


def test_a_label_that_is_gone_is_not_what_the_trials_digest_promises(tmp_path):
    store = make_store(tmp_path, [6, 7], target=CLASSES, labels=[0, 1])
    rewrite_index(store, label=lambda label: np.array([0, np.nan], np.float32))
    (problem,) = verify_store(tmp_path)
    assert problem.trials == ("t0001",)


def with_attributes(store, texts):
    """Add the column `attributes` that says each trial's class in words."""
    table = pq.read_table(store.folder / "trials.parquet")
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.append_column("attributes", pa.array([{"kind": text} for text in texts])), sink
    )
    rewrite(store, "trials.parquet", sink.getvalue().to_pybytes())


def test_a_trial_that_lost_its_label_but_says_its_class_is_a_problem(tmp_path):
    store = make_store(tmp_path, [6, 7], target=CLASSES, labels=[0, 1])
    with_attributes(store, ["push", "pull"])
    assert verify_store(tmp_path) == []
    rewrite_index(store, label=lambda label: np.array([0, np.nan], np.float32))
    assert verify_store(tmp_path)


def test_a_target_of_values_may_have_any_label_or_none(tmp_path):
    target = TargetSchema("per_trial", ("mass",))
    make_store(tmp_path, [6, 7, 8], target=target, labels=[-2.5, 1e30, 7.0])
    assert verify_store(tmp_path) == []


def rewrite_trials(store, name, change):
    table = pq.read_table(store.folder / "trials.parquet")
    column = pa.array(change(table[name].to_pylist()), table.schema.field(name).type)
    sink = pa.BufferOutputStream()
    table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, sink)
    rewrite(store, "trials.parquet", sink.getvalue().to_pybytes())


def test_a_trial_with_another_id_in_the_cold_index_is_a_problem(store):
    rewrite_trials(store, "id", lambda ids: [*ids[:-1], "zzz"])
    found = [str(problem) for problem in verify_store(store.path)]
    assert any("its ids are not those of index.arrow" in line for line in found), found


@pytest.mark.parametrize("name", ["id", "digest"])
def test_a_null_in_the_cold_index_is_a_problem_not_a_crash(store, name):
    rewrite_trials(store, name, lambda values: [None, *values[1:]])
    assert verify_store(store.path)


def sign_again(store, *path, to):
    """Let the manifest say something else, and sign it."""
    file = store.folder / "dataset.json"
    document = json.loads(file.read_bytes())
    node = document
    for part in path[:-1]:
        node = node[part]
    assert node[path[-1]] != to
    node[path[-1]] = to
    file.write_bytes(canonical_json(sign(document)) + b"\n")


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("counts", "trials"), 5),
        (("counts", "rows"), 21),
        (("counts", "windows"), {"train": 1}),
        (("shards", 0, "n_trials"), 3),
        (("fingerprint",), "0" * 64),
        (("fingerprints", "train"), "0" * 64),
        (("windows", "stride"), 1),
        (("windows", "horizon"), 2),
        (("channels", 0, "name"), "c0_"),
        (("channels", 0, "unit"), "km"),
        (("normalization", "method"), "robust"),
        (("target", "columns"), ["c1"]),
    ],
    ids=str,
)
def test_a_signed_promise_that_the_version_does_not_keep_is_a_problem(store, path, to):
    if path == ("target", "columns") or path[:2] == ("channels", 0):
        sign_again(store, "target", "columns", to=["c2"])
    sign_again(store, *path, to=to)
    assert verify_store(store.path)


def test_only_the_damaged_version_is_blamed(tmp_path):
    first = make_store(tmp_path, [6, 7, 8, 9], n_shards=2)
    second = make_store(tmp_path, [6, 7, 8, 5], n_shards=2, after="v0001")
    second.chunk_file(1, "values").write_bytes(b"")
    assert verify_store(tmp_path, first.version) == []
    assert [p.trials for p in verify_store(tmp_path)] == [("t0001", "t0003")]


def test_a_shared_damaged_shard_is_blamed_in_every_version(tmp_path):
    first = make_store(tmp_path, [6, 7, 8, 9], n_shards=2)
    make_store(tmp_path, [6, 7, 8, 5], n_shards=2, after="v0001")
    file = first.chunk_file(0, "values")
    file.write_bytes(b"x" * file.stat().st_size)
    for version in ("v0001", "v0002"):
        assert {p.trials for p in verify_store(tmp_path, version)} == {("t0000", "t0002")}


def test_a_broken_manifest_is_an_error(store):
    (store.folder / "dataset.json").write_bytes(b"{}")
    with pytest.raises(CorruptStoreError):
        verify_store(store.path)


def test_progress_counts_every_shard_also_over_problems(store):
    seen = []
    chunk(store, 0).unlink()
    assert verify_store(store.path, on_shard=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_only_the_first_few_of_many_trials_are_listed(tmp_path):
    store = make_store(tmp_path, [2] * 30)
    store.chunk_file(0, "values").write_bytes(b"")
    (problem,) = verify_store(tmp_path)
    assert problem.trials == tuple(f"t{i:04d}" for i in range(5))


def test_verify_reads_and_never_writes(store):
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in store.path.rglob("*")}
    assert verify_store(Store(store.path).path) == []
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in store.path.rglob("*")} == before
