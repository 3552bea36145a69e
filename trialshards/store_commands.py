"""`trialshards tag | versions | diff | gc | tombstone | compact`: versions as users handle them.

Rooms are imported inside the commands: `trialshards --help` must not wait for them.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trialshards.sentences import plain_errors

if TYPE_CHECKING:
    from shards.compact import Compaction
    from shards.diff import VersionDiff
    from shards.gc import Removal

FOLDER = click.Path(file_okay=False, path_type=Path)
SHOWN = 10


@click.command(short_help="Name a version, or list the names.")
@click.argument("store", type=FOLDER)
@click.argument("name", required=False)
@click.argument("version", required=False)
@click.option("--delete", is_flag=True, help="Forget the tag NAME; its version stays until gc.")
@click.option("--force", is_flag=True, help="Move the tag if it stands for another version.")
@plain_errors
def tag(store: Path, name: str | None, version: str | None, delete: bool, force: bool) -> None:
    """Give VERSION (default: the newest) the name NAME; without NAME, list the tags of STORE.

    Wherever a version is asked for, a tag will do: `inspect --version NAME`, `version: NAME` in a
    training configuration, TrialStream(STORE, version=NAME). gc keeps tagged versions.
    """
    from shards.tags import delete_tag, read_tags, set_tag

    if name is None:
        if delete or force:
            raise click.UsageError("--delete and --force need the NAME of a tag.")
        for known, found in read_tags(store).items():
            click.echo(f"{known}  {found.version}  {found.fingerprint}")
    elif delete:
        delete_tag(store, name)
        click.echo(f"{store}: tag {name} is deleted.")
    else:
        made = set_tag(store, name, version, force=force)
        click.echo(f"{store}: {name} is {made.version} ({made.fingerprint}).")


@click.command(short_help="List the versions of a store.")
@click.argument("store", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@plain_errors
def versions(store: Path, as_json: bool) -> None:
    """List the versions of STORE, oldest first; each can be opened by its name.

    `own` is what removing a version would free, `shared` what other versions use as well.
    """
    from rich.console import Console
    from rich.table import Table

    rows = describe_versions(store)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    names = ("version", "trials", "rows", "made", "own", "shared", "fingerprint", "tags")
    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            row["version"], f"{row['n_trials']:,}", f"{row['n_rows']:,}",
            row["made"][:16].replace("T", " "), _size(row["n_bytes_own"]),
            _size(row["n_bytes_shared"]), row["fingerprint"][:12], " ".join(row["tags"]),
        )  # fmt: skip
    Console().print(table)


def describe_versions(store: Path) -> list[dict[str, Any]]:
    """Return what `versions --json` prints; keys are stable."""
    from shards import StoreNotFoundError
    from shards.tags import open_version, read_tags
    from shards.writer import list_versions

    opened = [open_version(store, name) for name in list_versions(store)]
    if not opened:
        raise StoreNotFoundError(
            f"no committed version in {store}. Build it: trialshards build DATASET.yaml "
            f"--store {store}"
        )
    tags = read_tags(store)
    sizes = [
        {shard.digest: shard.n_bytes for shard in manifest.shards}
        | {part.digest: part.size_bytes for part in manifest.parts}
        for _, manifest, _ in opened
    ]
    n_users = Counter(digest for held in sizes for digest in held)
    rows = []
    for (name, manifest, _), held in zip(opened, sizes, strict=True):
        shared = sum(size for digest, size in held.items() if n_users[digest] > 1)
        files = sum(promise["size_bytes"] for promise in manifest.files.values())
        about = (store / "versions" / name / "dataset.json").stat()
        rows.append(
            {
                "version": name,
                "n_trials": manifest.counts["trials"],
                "n_rows": manifest.counts["rows"],
                "made": datetime.fromtimestamp(about.st_mtime, UTC).isoformat(timespec="seconds"),
                "fingerprint": manifest.fingerprint,
                "tags": [known for known, found in tags.items() if found.version == name],
                "n_bytes_own": sum(held.values()) - shared + files + about.st_size,
                "n_bytes_shared": shared,
            }
        )
    return rows


@click.command(short_help="Say what changed between two versions.")
@click.argument("store", type=FOLDER)
@click.argument("old", required=False)
@click.argument("new", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print all ids and settings as JSON.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 if the versions differ.")
@plain_errors
def diff(store: Path, old: str | None, new: str | None, as_json: bool, exit_code: bool) -> None:
    """Say what changed from version OLD to NEW: trials, splits, settings, what was fitted.

    By default NEW is the newest version, and OLD the one before the newest.
    """
    from shards.diff import diff_versions

    found = diff_versions(store, old or _before_newest(store), new or _newest(store))
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _print_diff(found)
    if exit_code and not found.is_empty:
        raise SystemExit(1)


def _newest(store: Path) -> str:
    from shards.tags import open_version

    return open_version(store).version


def _before_newest(store: Path) -> str:
    from shards import InvalidSpecError
    from shards.writer import list_versions

    known = list_versions(store)
    if len(known) == 1:
        raise InvalidSpecError(f"{store} has one version, {known[0]}: nothing to compare it with.")
    return known[-2] if known else _newest(store)  # which says that there is none


def _print_diff(found: VersionDiff) -> None:
    click.echo(f"{found.old} -> {found.new}")
    for what in ("added", "removed", "changed"):
        ids = getattr(found, what)
        click.echo(f"{_count(len(ids), 'trial')} {what}{_some(ids)}")
    moves = [f"{moved.id} ({moved.old} -> {moved.new})" for moved in found.moved]
    click.echo(f"{_count(len(moves), 'trial')} in another split{_some(moves)}")
    click.echo(f"{_count(found.n_same, 'trial')} the same")
    for name, (one, other) in found.counts.items():
        if one != other:
            click.echo(f"{name}: {one:,} -> {other:,}")
    for name, (one, other) in found.settings.items():
        shown = "" if name.startswith("fit.") else f": {_short(one)} -> {_short(other)}"
        click.echo(f"{name}{shown or ' is another'}")


def _some(ids: Any) -> str:
    more = f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else ""
    return f": {', '.join(ids[:SHOWN])}{more}" if ids else ""


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@click.command(short_help="Remove what no version that is needed refers to.")
@click.argument("store", type=FOLDER)
@click.option(
    "--keep", type=click.IntRange(1), default=3, show_default=True,
    help="How many of the newest versions stay in any case.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@plain_errors
def gc(store: Path, keep: int, dry_run: bool) -> None:
    """Remove versions of STORE that nobody needs, and all that only they used.

    Never removed: the newest versions, tagged versions, and those that any process has open. Not
    while STORE is being built.
    """
    from shards.gc import gc_store

    _print_removal(gc_store(store, keep=keep, dry_run=dry_run), dry_run)


def _print_removal(removal: Removal, dry_run: bool) -> None:
    for version, why in removal.kept.items():
        click.echo(f"kept {version} ({why})")
    verb = "would remove" if dry_run else "removed"
    counts = (
        _count(getattr(removal, f"n_{what}s"), what) for what in ("shard", "part", "leftover")
    )
    gone = ", ".join([*removal.versions, *counts])
    click.echo(f"{verb} {gone}: {_size(removal.n_bytes)}")


@click.command(short_help="Take trials out of a data set by hand.")
@click.argument("store", type=FOLDER)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", default="", help="Why; kept with the version. Needed but with --undo.")
@click.option("--undo", is_flag=True, help="Let the next build bring the trials back.")
@plain_errors
def tombstone(store: Path, ids: tuple[str, ...], reason: str, undo: bool) -> None:
    """Publish a version of STORE without the trials ID..., which builds do not bring back.

    Nothing else changes: other trials keep their splits and values, and what was fitted on train
    trials stays as it is until `trialshards build --refit`. Earlier versions keep the trials.
    """
    from shards.tombstone import tombstone_trials

    if not undo and not reason.strip():
        raise click.UsageError("--reason is missing: say why the trials go, in a few words.")
    before = _newest(store)
    version = tombstone_trials(store, ids, reason, undo=undo)
    if version == before:
        click.echo(f"{store}: {version} says so already; nothing was published.")
    elif undo:
        click.echo(f"{store}: published {version}; the next build brings back {_some(ids)[2:]}.")
    else:
        click.echo(f"{store}: published {version} without {_some(ids)[2:]}.")


@click.command(short_help="Rewrite what many builds left in small pieces.")
@click.argument("store", type=FOLDER)
@click.option("--force", is_flag=True, help="Also if few rows are dead and few files small.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@plain_errors
def compact(store: Path, force: bool, dry_run: bool) -> None:
    """Rewrite the newest version of STORE if many builds left much waste in it.

    That is: over 20 % of its rows are dead, or it has over 64 small shards or parts. The new
    version delivers the same batches bit for bit; `gc` frees the space when the old ones go.
    """
    from shards.compact import compact_store

    _print_compaction(compact_store(store, force=force, dry_run=dry_run), dry_run)


def _print_compaction(done: Compaction, dry_run: bool) -> None:
    click.echo(
        f"{done.old}: {_count(done.n_rows, 'row')} in {_count(done.n_shards, 'shard')}, "
        f"{done.n_dead_rows:,} of them dead; {_count(done.n_parts, 'part')}"
    )
    for reason in done.reasons:
        click.echo(f"due: {reason}")
    if done.version != done.old:
        click.echo(f"published {done.version}; {_count(done.n_rewritten, 'shard')} rewritten")
    elif dry_run and done.is_due:
        click.echo(f"would rewrite {_count(done.n_rewritten, 'shard')}")
    else:
        click.echo("nothing to do")


def _size(n_bytes: int) -> str:
    if n_bytes < 2**20:
        return f"{n_bytes / 2**10:,.1f} KiB"
    return f"{n_bytes / 2**20:,.1f} MiB"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
