"""Hazards of files as files, in whole builds of a folder."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trialfolders import build_checked, ids_of, quarantine_of, write_spec

from shards import Store

GOOD = "x,y\n1.5,-2\n3,0.25\n4,5\n"
GOOD_ROWS = [[1.5, -2.0], [3.0, 0.25], [4.0, 5.0]]
ON_OPEN: dict[str, Callable[[], None]] = {}
"""What happens just before a path is opened, by whomever."""


def _on_open(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and ON_OPEN and str(args[0]) in ON_OPEN:
        ON_OPEN.pop(str(args[0]))()


@pytest.fixture(scope="module", autouse=True)
def watched() -> None:
    sys.addaudithook(_on_open)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    ON_OPEN.clear()


def good_folder(root: Path, **sections: Any) -> Path:
    (root / "raw").mkdir()
    for name in "amz":
        (root / "raw" / f"{name}.csv").write_text(GOOD)
    source = {"files": "raw/**/*.csv", **sections.pop("source", {})}
    return write_spec(
        root, source=source, normalize={"method": "none"}, max_quarantined=0.5, **sections
    )


def check_good(store: Store, names: str = "amz") -> None:
    ids = ids_of(store)
    for name in names:
        assert store.trial_rows(ids.index(name)).tolist() == GOOD_ROWS


def _folder(path: Path) -> None:
    path.mkdir()


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def _closed(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    path.write_text(GOOD)
    path.chmod(0)


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (_folder, "not_a_file", "narrow source.files"),
        (os.mkfifo, "not_a_file", "narrow source.files"),
        (_link_to_itself, "unreadable", "permissions or its link"),
        (_link_to_nothing, "unreadable", "permissions or its link"),
        (_closed, "unreadable", "permissions"),
    ],
)
def test_what_is_no_readable_file_is_refused(
    make: Callable[[Path], None], code: str, says: str, tmp_path: Path
):
    spec = good_folder(tmp_path)
    make(tmp_path / "raw" / "bad.csv")
    report, store = build_checked(spec, tmp_path / "store")
    assert [(r.source, r.code) for r in report.refusals] == [("raw/bad.csv", code)]
    assert says in report.refusals[0].message
    check_good(store)


def test_folders_that_link_in_a_circle_give_each_trial_once(tmp_path: Path):
    spec = good_folder(tmp_path)
    (tmp_path / "raw" / "inner").mkdir()
    (tmp_path / "raw" / "inner" / "b.csv").write_text(GOOD)
    (tmp_path / "raw" / "inner" / "loop").symlink_to("..")
    _, store = build_checked(spec, tmp_path / "store")
    assert ids_of(store) == ["a", "inner/b", "m", "z"]
    check_good(store)


def test_a_file_under_two_names_is_one_trial(tmp_path: Path):
    """Else one copy of it may train and the other one test."""
    spec = good_folder(tmp_path)
    (tmp_path / "raw" / "alias.csv").symlink_to("a.csv")
    _, store = build_checked(spec, tmp_path / "store")
    assert ids_of(store) == ["a", "m", "z"]
    assert sum(store.manifest.counts["ignored"].values()) == 1


def test_two_files_with_one_id_are_both_refused(tmp_path: Path):
    spec = good_folder(tmp_path, source={"trial_id": r"\w+(?=\.csv)"})
    (tmp_path / "raw" / "copy").mkdir()
    (tmp_path / "raw" / "copy" / "a.csv").write_text(GOOD)
    report, store = build_checked(spec, tmp_path / "store")
    assert quarantine_of(store) == dict.fromkeys(["raw/a.csv", "raw/copy/a.csv"], "duplicate_id")
    assert all("Remove the copies" in refusal.message for refusal in report.refusals)
    check_good(store, "mz")


def _append(path: Path) -> None:
    with path.open("a") as live:
        live.write("9,9\n")


def _touch(path: Path) -> None:
    os.utime(path, ns=(0, 1_000_000_000))


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("happens", "code"),
    [
        (Path.unlink, "unreadable"),
        (_replace_by_folder, "not_a_file"),
    ],
)
def test_what_happens_between_the_scan_and_the_read_refuses_that_file(
    happens: Callable[[Path], None], code: str, tmp_path: Path
):
    spec = good_folder(tmp_path)
    bad = tmp_path / "raw" / "bad.csv"
    bad.write_text(GOOD)
    ON_OPEN[str(bad)] = lambda: happens(bad)
    report, store = build_checked(spec, tmp_path / "store")
    assert not ON_OPEN
    assert [(r.source, r.code) for r in report.refusals] == [("raw/bad.csv", code)]
    assert "build again" in report.refusals[0].message or code == "not_a_file"
    check_good(store)


@pytest.mark.parametrize("happens", [_append, _touch])
def test_a_file_that_changed_once_since_the_scan_is_read_as_it_is_now(
    happens: Callable[[Path], None], tmp_path: Path
):
    spec = good_folder(tmp_path)
    late = tmp_path / "raw" / "late.csv"
    late.write_text(GOOD)
    ON_OPEN[str(late)] = lambda: happens(late)
    report, store = build_checked(spec, tmp_path / "store")
    assert not ON_OPEN
    assert report.refusals == ()
    wanted = late.read_text().count("\n") - 1
    assert len(store.trial_rows(store.trial_number("late"))) == wanted


def test_a_file_that_goes_on_growing_is_refused(tmp_path: Path):
    spec = good_folder(tmp_path)
    live = tmp_path / "raw" / "live.csv"
    live.write_text(GOOD)

    def grow() -> None:
        _append(live)
        ON_OPEN[str(live)] = grow

    ON_OPEN[str(live)] = grow
    report, store = build_checked(spec, tmp_path / "store")
    ON_OPEN.clear()
    assert [(r.source, r.code) for r in report.refusals] == [("raw/live.csv", "changed_while_read")]
    assert "build again" in report.refusals[0].message
    check_good(store)


def test_the_next_build_takes_a_file_that_was_still_growing(tmp_path: Path):
    spec = good_folder(tmp_path)
    bad = tmp_path / "raw" / "bad.csv"
    bad.write_text(GOOD)
    ON_OPEN[str(bad)] = lambda: _append(bad)
    build_checked(spec, tmp_path / "store")
    _, store = build_checked(spec, tmp_path / "store")
    assert store.trial_rows(ids_of(store).index("bad")).tolist() == [*GOOD_ROWS, [9, 9]]


def test_a_file_that_never_stops_growing_is_refused_or_read_to_the_end_of_a_line(tmp_path: Path):
    spec = good_folder(tmp_path)
    live, stop = tmp_path / "raw" / "live.csv", threading.Event()
    live.write_text("x,y\n1,2\n")

    def write() -> None:
        with live.open("a") as file:
            while not stop.wait(0.0005):
                file.write("12.25,")
                file.flush()
                file.write("-3.5\n")
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(4):
            _, store = build_checked(spec, tmp_path / f"store{number}")
            check_good(store)
            if "live" in ids_of(store):
                rows = store.trial_rows(ids_of(store).index("live"))
                assert {tuple(row) for row in rows[1:].tolist()} <= {(12.25, -3.5)}
            else:
                codes = {"changed_while_read", "truncated", "field_count"}
                assert quarantine_of(store)["raw/live.csv"] in codes
    finally:
        stop.set()
        writer.join()
