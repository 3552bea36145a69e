"""A catalog survives the disk, and a listing has a digest of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalog import Catalog
from pipeline.files import Refusal, SourceFile
from pipeline.ledger import (
    CatalogNotFoundError,
    listing_digest,
    load_catalog,
    save_catalog,
)
from shards.errors import CorruptStoreError

ROOT = Path("somewhere")
# What a POSIX path may hold: anything but NUL; scan_files refuses what is not UTF-8.
TEXT = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), min_size=1, max_size=12
)
TIMES = st.integers(0, 2**62)
SIZES = st.integers(0, 2**62)
ATTRIBUTES = st.dictionaries(TEXT, st.text(max_size=6), max_size=3)


@st.composite
def entries(draw: st.DrawFn, path: str) -> SourceFile | Refusal:
    if draw(st.booleans()):
        return SourceFile(
            path, draw(SIZES), draw(TIMES), draw(TEXT), draw(ATTRIBUTES), draw(st.integers(0, 3))
        )
    return Refusal(path, "catalog", draw(TEXT), draw(st.text(max_size=9)), size_bytes=draw(SIZES))


@st.composite
def catalogs(draw: st.DrawFn, paths: st.SearchStrategy[str] = TEXT) -> Catalog:
    found = [draw(entries(p)) for p in sorted(draw(st.sets(paths, max_size=6)))]
    return Catalog(
        root=ROOT,
        files=tuple(f for f in found if isinstance(f, SourceFile)),
        refusals=tuple(f for f in found if isinstance(f, Refusal)),
        ignored=draw(st.dictionaries(TEXT, st.integers(1, 9), max_size=2)),
        n_buckets=draw(st.sampled_from([1, 2, 4])),
    )


FEW = st.sampled_from(["a.csv", "b.csv", "ü/c.csv", "d,=e.csv"])


def paths_of(catalog: Catalog) -> set[str]:
    return {f.path for f in catalog.files} | {r.source for r in catalog.refusals}


def entry_of(catalog: Catalog, path: str) -> SourceFile | Refusal:
    (entry,) = [
        *(f for f in catalog.files if f.path == path),
        *(r for r in catalog.refusals if r.source == path),
    ]
    return entry


# --- round trip -----------------------------------------------------------------------------------


@settings(max_examples=25)
@given(catalogs())
def test_any_catalog_survives_the_disk(tmp_path: Path, catalog: Catalog):
    save_catalog(tmp_path / "deep" / "c.parquet", catalog)
    assert load_catalog(tmp_path / "deep" / "c.parquet", ROOT) == catalog


@settings(max_examples=10)
@given(catalogs())
def test_saving_what_was_loaded_writes_the_same_bytes(tmp_path: Path, catalog: Catalog):
    first, second = tmp_path / "1", tmp_path / "2"
    save_catalog(first, catalog)
    save_catalog(second, load_catalog(first, ROOT))
    assert first.read_bytes() == second.read_bytes()


def test_the_root_is_the_readers_own(tmp_path: Path):
    save_catalog(tmp_path / "c", Catalog(Path("/old"), (), (), {}, 1))
    assert load_catalog(tmp_path / "c", Path("/new")).root == Path("/new")


def test_saving_leaves_nothing_beside_the_file(tmp_path: Path):
    save_catalog(tmp_path / "c", Catalog(ROOT, (), (), {}, 1))
    save_catalog(tmp_path / "c", Catalog(ROOT, (), (), {}, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert load_catalog(tmp_path / "c", ROOT).n_buckets == 2


# --- digest ---------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(catalogs(FEW), catalogs(FEW))
def test_the_digest_differs_exactly_if_something_differs(before: Catalog, now: Catalog):
    assert (listing_digest(before) != listing_digest(now)) == (seen_in(before) != seen_in(now))


def seen_in(catalog: Catalog) -> object:
    """What a listing says: which files, as large and as old as they are, and which are refused."""
    files = {(f.path, f.size_bytes, f.mtime_ns) for f in catalog.files}
    return files, {(r.source, r.code, r.size_bytes) for r in catalog.refusals}


def test_another_table_is_another_listing():
    one, other = (Catalog(ROOT, (), (), {}, 1, tables=digest) for digest in ("a", "b"))
    assert listing_digest(one) != listing_digest(other)


@settings(max_examples=25)
@given(catalogs(FEW), st.randoms())
def test_the_digest_does_not_depend_on_the_order(catalog: Catalog, random):
    files, refusals = list(catalog.files), list(catalog.refusals)
    random.shuffle(files)
    random.shuffle(refusals)
    other = dataclasses.replace(catalog, files=tuple(files), refusals=tuple(refusals))
    assert listing_digest(other) == listing_digest(catalog)


@settings(max_examples=15)
@given(catalogs(FEW))
def test_the_digest_survives_the_disk(tmp_path: Path, catalog: Catalog):
    save_catalog(tmp_path / "c", catalog)
    assert listing_digest(load_catalog(tmp_path / "c", ROOT)) == listing_digest(catalog)


# --- absent and damaged ---------------------------------------------------------------------------


def test_an_absent_catalog_says_what_to_do(tmp_path: Path):
    with pytest.raises(CatalogNotFoundError, match=r"no catalog .*c\.parquet.*Materialize.*cat"):
        load_catalog(tmp_path / "c.parquet", tmp_path)
    with pytest.raises(FileNotFoundError):
        load_catalog(tmp_path, tmp_path)


def raw_catalog(path: Path, rows: list[dict[str, object]], about: bytes | None) -> None:
    columns = {
        "path": pa.utf8(), "size_bytes": pa.int64(), "mtime_ns": pa.int64(),
        "trial_id": pa.utf8(), "attributes": pa.utf8(), "bucket": pa.int64(),
        "stage": pa.utf8(), "code": pa.utf8(), "message": pa.utf8(),
    }  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items())))
    pq.write_table(table.replace_schema_metadata({"catalog": about} if about else None), path)


GOOD = {"path": "a", "size_bytes": 1, "mtime_ns": 1, "trial_id": "a", "bucket": 0}
ABOUT = json.dumps({"ignored": {}, "n_buckets": 1}).encode()


@pytest.mark.parametrize(
    ("rows", "about"),
    [
        pytest.param([], None, id="no metadata"),
        pytest.param([], b"{", id="no JSON"),
        pytest.param([], b"{}", id="no field"),
        pytest.param([], b"[]", id="no mapping"),
        pytest.param([], b"null", id="null"),
        pytest.param([GOOD], ABOUT, id="no attributes"),
        pytest.param([GOOD | {"attributes": "{"}], ABOUT, id="attributes no JSON"),
    ],
)
def test_a_catalog_with_wrong_content_is_named(tmp_path: Path, rows, about):
    raw_catalog(tmp_path / "c", rows, about)
    with pytest.raises(CorruptStoreError, match=r"/c cannot be read.*Materialize"):
        load_catalog(tmp_path / "c", tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all" * 9], ids=len)
def test_a_file_that_is_no_parquet_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(CorruptStoreError, match=r"/c cannot be read.*Materialize"):
        load_catalog(tmp_path / "c", tmp_path)


def test_another_table_is_named(tmp_path: Path):
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({"catalog": ABOUT}), tmp_path / "c")
    with pytest.raises(CorruptStoreError, match="code"):
        load_catalog(tmp_path / "c", tmp_path)


def test_a_cut_catalog_is_never_read_as_a_shorter_one(tmp_path: Path):
    files = tuple(SourceFile(f"{i}.csv", i, i, str(i)) for i in range(50))
    save_catalog(tmp_path / "c", Catalog(ROOT, files, (), {}, 1))
    whole = (tmp_path / "c").read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "c").write_bytes(whole[:length])
        with pytest.raises(CorruptStoreError):
            load_catalog(tmp_path / "c", tmp_path)


@settings(max_examples=40)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error_of_ours_or_harmless(tmp_path: Path, place: int, bit: int):
    files = tuple(SourceFile(f"{i}.csv", i, i, str(i), {"k": "v"}) for i in range(20))
    save_catalog(tmp_path / "c", Catalog(ROOT, files, (), {"hidden": 1}, 1))
    raw = bytearray((tmp_path / "c").read_bytes())
    raw[place % len(raw)] ^= 1 << bit
    (tmp_path / "c").write_bytes(raw)
    with contextlib.suppress(CorruptStoreError):
        load_catalog(tmp_path / "c", tmp_path)


def test_whatever_arrow_says_of_a_damaged_file_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A flipped bit makes `int64` an integer of a width that Arrow does not have."""

    def read_table(path: Path, **options: bool) -> pa.Table:
        raise pa.ArrowNotImplementedError("Integers not in cstdint are not implemented")

    save_catalog(tmp_path / "c", Catalog(ROOT, (), (), {}, 1))
    monkeypatch.setattr(pq, "read_table", read_table)
    with pytest.raises(CorruptStoreError, match="cannot be read"):
        load_catalog(tmp_path / "c", tmp_path)
