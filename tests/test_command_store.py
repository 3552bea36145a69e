"""tag, versions, diff, gc, tombstone, compact: what they print, exit codes, stable JSON keys."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from stores import make_store
from trialfolders import split_of, write_spec, write_trials

from shards import Store
from shards.leases import building
from shards.tags import read_tags
from shards.verify import verify_store
from shards.writer import list_versions
from trialshards.cli import main

COMMANDS = ["tag", "versions", "diff", "gc", "tombstone", "compact"]


def run(*args, code=0):
    """Run the command; return what it printed, with white space made single."""
    result = CliRunner().invoke(main, [str(arg) for arg in args], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.fixture
def store(tmp_path):
    """Versions v0001 to v0004; each adds a trial."""
    path, after = tmp_path / "store", None
    for n in range(1, 5):
        lengths = [20, 30, 40] + [25] * n
        after = make_store(path, lengths, n_shards=len(lengths), after=after).version
    return path


# --- tag --------------------------------------------------------------------------------------


def test_tags_are_set_listed_moved_and_deleted(store):
    print_of = Store(store, "v0002").fingerprint
    assert run("tag", store) == ""
    assert f"best is v0002 ({print_of})" in run("tag", store, "best", "v0002")
    assert run("tag", store) == f"best v0002 {print_of}"
    assert "--force" in run("tag", store, "best", code=1)
    assert "best is v0004" in run("tag", store, "best", "--force")
    assert "v0004" in run("inspect", store, "--version", "best")
    assert "tag best is deleted" in run("tag", store, "best", "--delete")
    assert read_tags(store) == {}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["v0001"], "'v0001' cannot be a tag"),
        (["best", "v0009"], "no version v0009 in"),
        (["best", "--delete"], "no tag 'best'"),
    ],
)
def test_a_tag_that_cannot_be_is_a_sentence(store, args, said):
    assert said in run("tag", store, *args, code=1)


def test_delete_needs_a_name(store):
    assert "need the NAME" in run("tag", store, "--delete", code=2)


# --- versions ---------------------------------------------------------------------------------


def test_versions_are_listed_with_what_they_share(store):
    run("tag", store, "best", "v0002")
    rows = json.loads(run("versions", store, "--json"))
    assert [row["version"] for row in rows] == ["v0001", "v0002", "v0003", "v0004"]
    assert [row["n_trials"] for row in rows] == [4, 5, 6, 7]
    assert [row["tags"] for row in rows] == [[], ["best"], [], []]
    assert [row["fingerprint"] for row in rows] == [Store(store, v).fingerprint for v in
                                                    list_versions(store)]  # fmt: skip
    for row in rows:  # all shards but the newest version's last are shared
        files = sum(p.stat().st_size for p in (store / "versions" / row["version"]).iterdir())
        manifest = Store(store, row["version"]).manifest
        own = manifest.shards[-1].n_bytes if row["version"] == "v0004" else 0
        assert row["n_bytes_own"] == files + own
        assert row["n_bytes_shared"] == sum(e.n_bytes for e in manifest.shards) - own
    assert "v0002 5 140" in run("versions", store)
    assert "no committed version" in run("versions", store / "none", code=1)


# --- diff -------------------------------------------------------------------------------------


def test_a_diff_compares_the_last_two_by_default(store):
    shown = run("diff", store)
    assert shown.startswith("v0003 -> v0004 1 trial added: t0006 0 trials removed")
    assert "6 trials the same" in shown
    assert "rows: 165 -> 190" in shown
    assert run("diff", store, "v0001").startswith("v0001 -> v0004 3 trials added")
    found = json.loads(run("diff", store, "v0004", "v0002", "--json"))
    assert found["removed"] == ["t0005", "t0006"]
    assert set(found) == {
        "old", "new", "added", "removed", "changed", "moved", "n_same", "settings", "counts",
    }  # fmt: skip


def test_a_diff_tells_by_its_exit_code_only_if_asked(store):
    run("diff", store, code=0)
    run("diff", store, "--exit-code", code=1)
    run("diff", store, "v0002", "v0002", "--exit-code", code=0)


def test_one_version_has_nothing_to_be_compared_with(tmp_path):
    make_store(tmp_path, [20])
    assert "one version, v0001" in run("diff", tmp_path, code=1)
    assert "no committed version" in run("diff", tmp_path / "none", code=1)


# --- gc ---------------------------------------------------------------------------------------


def test_gc_says_what_it_keeps_and_removes(store):
    run("tag", store, "best", "v0001")
    planned = run("gc", store, "--keep", 1, "--dry-run")
    assert (
        "kept v0001 (tag best) kept v0004 (newest) would remove v0002, v0003, 0 shards" in planned
    )
    assert len(list_versions(store)) == 4
    assert run("gc", store, "--keep", 1) == planned.replace("would remove", "removed")
    assert list_versions(store) == ["v0001", "v0004"]


def test_gc_refuses_while_a_build_runs(store):
    with building(store):
        assert "is being built" in run("gc", store, "--keep", 1, code=1)
    assert len(list_versions(store)) == 4
    assert "--keep" in run("gc", store, "--keep", 0, code=2)


# --- tombstone and compact --------------------------------------------------------------------


def test_a_trial_is_taken_out_and_waste_is_compacted(store):
    said = run("tombstone", store, "t0002", "--reason", "worn")
    assert "published v0005 without t0002" in said
    assert "says so already" in run("tombstone", store, "t0002", "--reason", "worn")
    assert "--reason is missing" in run("tombstone", store, "t0001", code=2)
    assert "trial 'nobody': not in" in run("tombstone", store, "nobody", "--reason", "x", code=1)
    assert "nothing to do" in run("compact", store)
    assert "would rewrite 6 shards" in run("compact", store, "--force", "--dry-run")
    assert "published v0006; 6 shards rewritten" in run("compact", store, "--force")
    assert "nothing to do" in run("compact", store, "--force")
    assert "brings back t0002" in run("tombstone", store, "t0002", "--undo")
    assert verify_store(store) == []


def test_a_build_honours_tombstones_until_they_are_undone(tmp_path):
    write_trials(tmp_path, 12)
    spec, store = write_spec(tmp_path), tmp_path / "store"
    run("build", spec, "--store", store)
    sides = split_of(Store(store))
    gone = next(name for name, split in sides.items() if split == "train")
    run("tombstone", store, gone, "--reason", "worn")
    assert "nothing published: v0002" in run("build", spec, "--store", store)
    run("compact", store, "--force")
    assert "nothing published: v0003" in run("build", spec, "--store", store)
    run("gc", store, "--keep", 1)
    assert "nothing published: v0003" in run("build", spec, "--store", store)
    run("tombstone", store, gone, "--undo")
    assert "published v0005" in run("build", spec, "--store", store)
    assert split_of(Store(store)) == sides
    assert verify_store(store) == []


def test_undo_brings_back_one_of_many_trials_of_a_file(tmp_path):
    (tmp_path / "raw").mkdir()
    for file in range(3):
        rows = "".join(f"{unit},{t},{t * unit}\n" for unit in range(4) for t in range(12))
        (tmp_path / "raw" / f"f{file}.csv").write_text("unit,x,y\n" + rows)
    source = {"files": "raw/*.csv", "split_on": ["unit"]}
    spec, store = write_spec(tmp_path, source=source), tmp_path / "store"
    run("build", spec, "--store", store)
    sides = split_of(Store(store))
    gone = [name for name, split in sides.items() if split == "train"][:3]
    run("tombstone", store, *gone, "--reason", "worn")
    assert "nothing published" in run("build", spec, "--store", store)
    run("tombstone", store, gone[0], "--undo")
    run("build", spec, "--store", store)
    assert set(sides) - set(split_of(Store(store))) == set(gone[1:])
    assert "nothing published" in run("build", spec, "--store", store)


# --- all --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_says_that_there_is_no_store(name, tmp_path):
    assert len(run(name, "--help")) > 150
    path = tmp_path / "none"
    args = {"tag": ["best"], "tombstone": ["a", "--reason", "x"]}.get(name, [])
    assert str(path) in run(name, path, *args, code=1)
    assert not path.exists()


def test_help_does_not_wait_for_the_rooms():
    heavy = ["torch", "polars", "zarr", "rich", "pydantic"]
    program = (
        "import sys, trialshards.store_commands; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
