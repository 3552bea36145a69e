"""Tags stand for versions, and versions are found by either; a mistaken name says what there is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store

from loaders import TrialStream
from shards import CorruptStoreError, InvalidSpecError, Store, StoreNotFoundError
from shards.tags import Tag, delete_tag, read_tags, set_tag
from shards.verify import verify_store

LENGTHS = [20, 30]


def three_versions(path):
    """Version i has i trials more than LENGTHS."""
    after = None
    for n in range(1, 4):
        after = make_store(path, LENGTHS + [25] * n, after=after).version
    return path


def test_a_tag_opens_the_version_it_was_given(tmp_path):
    store = three_versions(tmp_path)
    assert set_tag(store, "best", "v0002") == Tag("v0002", Store(store, "v0002").fingerprint)
    set_tag(store, "latest-good")
    set_tag(store, "again", "best")
    assert Store(store, "best").version == "v0002"
    assert Store(store, "latest-good").version == "v0003"
    assert Store(store, "again").version == "v0002"
    assert list(read_tags(store)) == ["again", "best", "latest-good"]
    assert verify_store(store, "best") == []


def test_a_stream_reads_a_tagged_version_and_an_old_one(tmp_path):
    store = three_versions(tmp_path)
    set_tag(store, "first", "v0001")
    streams = [TrialStream(store, version=name, batch_size=8) for name in ("first", "v0001")]
    for mine, wanted in zip(*streams, strict=True):
        assert (mine.values == wanted.values).all()
    assert len(streams[0].store.index) == 3
    assert len(TrialStream(store).store.index) == 5


def test_an_open_store_and_another_version_contradict_each_other(tmp_path):
    store = Store(three_versions(tmp_path), "v0001")
    with pytest.raises(InvalidSpecError, match="beside an open store of v0001"):
        TrialStream(store, version="v0002")


def test_a_tag_moves_only_by_force(tmp_path):
    store = three_versions(tmp_path)
    set_tag(store, "best", "v0001")
    assert set_tag(store, "best", "v0001").version == "v0001"  # as it is: nothing moves
    with pytest.raises(InvalidSpecError, match=r"'best'.* stands for v0001\. Move it.*--force"):
        set_tag(store, "best", "v0003")
    assert Store(store, "best").version == "v0001"
    set_tag(store, "best", "v0003", force=True)
    assert Store(store, "best").version == "v0003"


def test_a_deleted_tag_is_gone_and_its_version_is_not(tmp_path):
    store = three_versions(tmp_path)
    set_tag(store, "best", "v0001")
    delete_tag(store, "best")
    assert read_tags(store) == {}
    with pytest.raises(StoreNotFoundError, match=r"no version best in .*found: v0001, v0002"):
        Store(store, "best")
    with pytest.raises(StoreNotFoundError, match="no tag 'best'"):
        delete_tag(store, "best")
    assert Store(store, "v0001").version == "v0001"


@pytest.mark.parametrize(
    "name",
    ["v1", "v0001", "v", "", ".hidden", "-x", "a/b", "../a", "a b", "ä", "x" * 65, "a\n", "v0001x"],
)
def test_a_name_that_looks_like_a_version_or_a_path_is_no_tag(tmp_path, name):
    store = three_versions(tmp_path)
    if name in ("v", "v0001x"):  # a letter, and more than digits behind it: neither is a version
        assert set_tag(store, name).version == "v0003"
        return
    with pytest.raises(InvalidSpecError, match="cannot be a tag"):
        set_tag(store, name)
    with pytest.raises(StoreNotFoundError, match="no tag"):
        delete_tag(store, name)
    assert not list(store.glob("tags/*"))


def test_a_tag_of_a_version_that_is_gone_says_so(tmp_path):
    store = three_versions(tmp_path)
    set_tag(store, "best", "v0001")
    (store / "versions" / "v0001").rename(tmp_path / "away")
    with pytest.raises(StoreNotFoundError, match=r"'best' .* v0001, which is gone .*--delete"):
        Store(store, "best")


def test_a_tag_whose_version_says_something_else_now_is_refused(tmp_path):
    store = three_versions(tmp_path)
    set_tag(store, "best", "v0001")
    (store / "versions" / "v0001").rename(tmp_path / "away")
    (store / "versions" / "v0002").rename(store / "versions" / "v0001")
    with pytest.raises(CorruptStoreError, match=r"'best' .* fingerprint .* --force"):
        Store(store, "best")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "null", '{"version": "v0001"}', '{"version": 1, "fingerprint": "x"}',
     '{"version": "../v0001", "fingerprint": "x"}', '{"version": "v0001", "fingerprint": 7}'],
)  # fmt: skip
def test_a_damaged_tag_is_named(tmp_path, content):
    store = three_versions(tmp_path)
    set_tag(store, "best", "v0001")
    (store / "tags" / "best.json").write_text(content)
    with pytest.raises(CorruptStoreError, match=r"best\.json is not a tag .* --delete"):
        Store(store, "best")
    delete_tag(store, "best")
    assert read_tags(store) == {}


def test_nothing_is_made_where_there_is_no_store(tmp_path):
    with pytest.raises(StoreNotFoundError):
        set_tag(tmp_path / "none", "best")
    assert not (tmp_path / "none").exists()


def test_a_tag_is_two_texts_in_a_file_of_its_own(tmp_path):
    store = three_versions(tmp_path)
    tag = set_tag(store, "best", "v0002")
    assert json.loads((store / "tags" / "best.json").read_bytes()) == tag._asdict()
    assert [path.name for path in (store / "tags").iterdir()] == ["best.json"]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=66))
def test_any_other_text_for_a_version_is_not_found(tmp_path_factory, name):
    store = tmp_path_factory.getbasetemp() / "any-text"
    if not store.exists():
        three_versions(store)
    if name in ("v0001", "v0002", "v0003"):
        return
    with pytest.raises(StoreNotFoundError):
        Store(store, name)
