"""What a build reads: exactly the files that its base does not hold as they are now."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trialfolders import make_spec

from pipeline.catalog import Catalog
from pipeline.delta import TOMBSTONE, compare_with_base
from pipeline.files import Refusal, SourceFile
from shards.manifest import Tombstone

ROOT = Path("somewhere")
PATHS = ["a.csv", "b.csv", "ü/c.csv", "d,=e.csv", "f.csv"]


@dataclass
class KnownBase:
    """What `compare_with_base` asks of a base."""

    known: dict[str, tuple[int, int]]
    reusable: bool = True
    tombstones: tuple[Tombstone, ...] = ()
    tables: str = ""
    told: dict[str, dict[str, str]] = field(default_factory=dict)

    refusals: tuple[Refusal, ...] = ()

    def says(self, name: str) -> Any:
        return {"tables": self.tables}[name]

    @property
    def taken_out(self) -> frozenset[str]:
        return frozenset(stone.source for stone in self.tombstones)

    @property
    def sources(self) -> pa.Array:
        return pa.array(list(self.told), pa.utf8())

    @property
    def store(self) -> Any:
        return SimpleNamespace(cold=lambda *_: pa.table({"attributes": list(self.told.values())}))


listings = st.dictionaries(
    st.sampled_from(PATHS), st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=len(PATHS)
)


def catalog_of(listing: dict[str, tuple[int, int]], **more: Any) -> Catalog:
    files = tuple(
        SourceFile(p, size, mtime, p[:-4]) for p, (size, mtime) in sorted(listing.items())
    )
    return Catalog(ROOT, files, (), {}, 1, **more)


@settings(max_examples=80)
@given(listings, listings)
def test_every_file_is_new_changed_gone_or_taken_over(before, now):
    delta = compare_with_base(catalog_of(now), KnownBase(before), make_spec())
    changes = delta.changes
    assert set(changes.new) == now.keys() - before.keys()
    assert set(changes.gone) == before.keys() - now.keys()
    both = now.keys() & before.keys()
    assert set(changes.changed) == {path for path in both if now[path] != before[path]}
    assert delta.n_same == sum(now[path] == before[path] for path in both)
    assert [f.path for f in delta.read] == sorted({*changes.new, *changes.changed})
    assert delta.gone == {*changes.changed, *changes.gone}
    assert bool(changes) == (not delta.is_empty) == (before != now)


@settings(max_examples=20)
@given(listings, listings)
def test_without_a_base_or_on_one_of_another_plan_everything_is_read(before, now):
    for base in (None, KnownBase(before, reusable=False)):
        delta = compare_with_base(catalog_of(now), base, make_spec())
        assert (len(delta.read), delta.gone, delta.n_same) == (len(now), frozenset(), 0)


def test_a_file_of_which_a_table_says_something_else_is_read_again():
    told = {p: {"s": "1", "other": "x"} for p in PATHS[:3]}
    files = tuple(SourceFile(p, 1, 1, p, {"s": "2" if p == "b.csv" else "1"}) for p in PATHS[:3])
    base = KnownBase(dict.fromkeys(PATHS[:3], (1, 1)), tables="old", told=told)
    catalog = Catalog(ROOT, files, (), {}, 1, tables="new")
    assert compare_with_base(catalog, base, make_spec()).changes.changed == ("b.csv",)
    base.tables = "new"  # nobody looks
    assert compare_with_base(catalog, base, make_spec()).is_empty


@pytest.mark.parametrize("mtime", [1, 2])
def test_a_trial_that_was_taken_out_is_passed_over_even_if_its_file_changed(mtime: int):
    stone = Tombstone("b", "b.csv", "why", 1, 1)
    base = KnownBase({"a.csv": (1, 1), "b.csv": (1, 1)}, tombstones=(stone,))
    delta = compare_with_base(catalog_of({"a.csv": (1, 1), "b.csv": (1, mtime)}), base, make_spec())
    assert delta.read == ()
    assert delta.ignored == {TOMBSTONE: 1}
    assert delta.n_files == 2


def test_a_file_that_became_unreadable_is_gone_from_the_base():
    refusal = Refusal("a.csv", "catalog", "unreadable", "no")
    now = Catalog(ROOT, (), (refusal,), {}, 1)
    delta = compare_with_base(now, KnownBase({"a.csv": (1, 1)}), make_spec())
    assert (delta.gone, delta.refusals) == ({"a.csv"}, (refusal,))


def test_changes_read_like_a_sentence():
    delta = compare_with_base(catalog_of({"a.csv": (1, 1)}), None, make_spec())
    assert str(delta.changes) == "1 new, 0 changed, 0 gone"
