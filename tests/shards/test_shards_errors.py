"""Errors: each says what, got and wanted, and the next step, and is also a builtin."""

import pickle

import pytest
from stores import make_store

from shards import Store, StoreNotFoundError, TrialNotFoundError, errors
from shards.verify import verify_store

BUILTINS = {
    errors.InvalidSpecError: ValueError,
    errors.StoreNotFoundError: FileNotFoundError,
    errors.TrialNotFoundError: KeyError,
    errors.CorruptStoreError: OSError,
    errors.FormatVersionError: ValueError,
    errors.CommitConflictError: RuntimeError,
    errors.StoreWriteError: OSError,
    errors.StoreBusyError: RuntimeError,
    errors.TooManyQuarantinedError: RuntimeError,
    errors.ResumeError: ValueError,
}


def test_every_error_of_the_module_is_in_the_table():
    found = {e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)}
    assert found == {errors.TrialShardsError, *BUILTINS}


@pytest.mark.parametrize(("error", "builtin"), BUILTINS.items(), ids=lambda e: e.__name__)
def test_each_error_is_ours_and_a_builtin_and_survives_a_worker(error, builtin):
    with pytest.raises(builtin):
        raise error("what, got, wanted")
    with pytest.raises(errors.TrialShardsError):
        raise error("what, got, wanted")
    assert error.__doc__
    assert str(error("what, got, wanted")) == "what, got, wanted"
    again = pickle.loads(pickle.dumps(error("what, got, wanted")))
    assert (type(again), str(again)) == (error, "what, got, wanted")


@pytest.mark.parametrize("prepare", ["nothing", "empty folder", "a file", "temporary only"])
def test_a_missing_store_names_the_path_and_how_to_build_it(tmp_path, prepare):
    path = tmp_path / "store"
    if prepare == "empty folder":
        path.mkdir()
    elif prepare == "a file":
        path.write_text("x")
    elif prepare == "temporary only":
        make_store(path, [5]).folder.rename(path / "versions" / ".tmp-1-abc")
    for open_it in (Store, verify_store):
        with pytest.raises(StoreNotFoundError) as caught:
            open_it(path)
        assert str(caught.value).endswith(
            f"committed version in {path} (found: none). "
            f"Build it: trialshards build DATASET.yaml --store {path}"
        )


@pytest.mark.parametrize("version", ["v0009", "v1", "", "../v0001", "latest"])
def test_a_missing_version_names_those_there_are(tmp_path, version):
    make_store(tmp_path, [5])
    make_store(tmp_path, [6], after="v0001")
    with pytest.raises(StoreNotFoundError) as caught:
        Store(tmp_path, version)
    message = str(caught.value)
    assert f"in {tmp_path} (found: v0001, v0002)" in message
    assert f"trialshards build DATASET.yaml --store {tmp_path}" in message
    if version:
        assert f"no version {version} in" in message


def test_a_missing_trial_names_the_store_and_where_to_look(tmp_path):
    store = make_store(tmp_path, [5, 6])
    with pytest.raises(TrialNotFoundError) as caught:
        store.trial_number("t9")
    assert str(caught.value) == (
        f"trial 't9' is not in {tmp_path} (2 trials, version v0001). "
        f"Look at: trialshards inspect {tmp_path}"
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_missing_split_names_those_there_are(tmp_path):
    store = make_store(tmp_path, [5, 6], splits=["train", "val"])
    with pytest.raises(
        StoreNotFoundError, match=r"no split 'test' in .* v0001; it has: train, val"
    ):
        store.split_code("test")


def test_an_id_that_no_store_can_hold_is_not_found(tmp_path):
    store = make_store(tmp_path, [5, 6])
    with pytest.raises(TrialNotFoundError):
        store.trial_number("t\udcff")


def test_the_message_for_a_missing_store_is_english(tmp_path):
    with pytest.raises(StoreNotFoundError, match=r"^no committed version in "):
        Store(tmp_path)
