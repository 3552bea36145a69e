"""What commands print of a store: every name as it is, whatever it looks like."""

from __future__ import annotations

from typing import Any

import click
import pytest
from stores import make_store

from pipeline.outcome import BuildReport
from shards import Store
from trialshards.storereport import describe_store, print_build, print_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("reports") / "[bold]a[/] :smile:"
    make_store(path, [9, 12, 7])
    return Store(path)


def report_of(store: Store, **changes: Any) -> BuildReport:
    about = {
        "store": store.path, "version": store.version, "published": True,
        "counts": store.manifest.counts, "refusals": (), "warnings": (), "lookahead": (),
        "n_read": 2, "seconds": 1.26,
    }  # fmt: skip
    return BuildReport(**{**about, **changes})


def test_a_path_that_looks_like_markup_is_printed_as_it_is(
    store: Store, capsys: pytest.CaptureFixture[str]
):
    print_store(store)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"{store.manifest.name} v0001  {store.path}"


def test_the_splits_stand_in_columns(store: Store, capsys: pytest.CaptureFixture[str]):
    print_store(store)
    lines = capsys.readouterr().out.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("split "))
    splits = describe_store(store)["splits"]
    starts = [lines[head].index(name) for name in ("split", "trials", "windows")]
    for line, (name, about) in zip(lines[head + 1 :], splits.items(), strict=False):
        cells = [line[at:].split()[0] for at in starts]
        assert cells == [name, f"{about['n_trials']:,}", f"{about['n_windows']:,}"]


def test_a_build_says_what_to_look_at_and_what_it_did(
    store: Store, capsys: pytest.CaptureFixture[str]
):
    print_build(report_of(store, warnings=("x [0, 1] is constant.",)))
    lines = capsys.readouterr().out.splitlines()
    n_files = store.manifest.counts["files"]
    assert lines[-2:] == [
        "warning: x [0, 1] is constant.",
        f"published v0001 in 1.3 s (2 of {n_files:,} files read)",
    ]
    print_build(report_of(store, published=False, n_read=0))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("unchanged, nothing published: v0001 in")


@pytest.mark.parametrize(("no_color", "is_styled"), [(None, True), ("1", False)])
def test_styles_are_for_terminals_that_want_them(
    store: Store,
    no_color: str | None,
    is_styled: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    # As on a terminal, which strips no style unless it is told to.
    monkeypatch.setattr(click.utils, "should_strip_ansi", lambda _, color: color is False)
    print_store(store)
    assert ("\x1b[" in capsys.readouterr().out) == is_styled
