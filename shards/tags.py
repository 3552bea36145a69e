"""Names for versions: `tags/<name>.json`, and finding the version that a name stands for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from shards.disk import remove_all, replace_file
from shards.errors import CorruptStoreError, InvalidSpecError, StoreNotFoundError
from shards.identity import canonical_json
from shards.leases import Lease, building, refuse_link
from shards.manifest import Manifest
from shards.safety import parse_json, read_inside
from shards.writer import VERSION_NAME, list_versions

_TAG_NAME = re.compile(r"(?!v[0-9]+\Z)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Tag(NamedTuple):
    """What a tag stands for.

    Attributes:
        version: A version's name.
        fingerprint: Of that version, so that another one of the same name is not taken for it.
    """

    version: str
    fingerprint: str


class OpenVersion(NamedTuple):
    """A version that nobody can remove while `lease` lives."""

    version: str
    manifest: Manifest
    lease: Lease


def open_version(store: Path, wanted: str | None = None) -> OpenVersion:
    """Find a version and keep it from being removed.

    Args:
        store: Store root.
        wanted: A version's name, or a tag; by default the newest version.

    Raises:
        StoreNotFoundError: If there is no such store, version or tag.
        CorruptStoreError: If the manifest cannot be read, or is not the one that was tagged.
        FormatVersionError: If a newer trialshards wrote it.
    """
    while True:
        versions = list_versions(store)
        tag = None
        if wanted is not None and wanted not in versions:
            tag = _find_tag(store, wanted, versions)
        elif not versions:
            raise _not_found(store, "committed version", versions)
        version = tag.version if tag else wanted or versions[-1]
        path = store / "versions" / version / "dataset.json"
        try:
            lease = Lease(store, path)
        except FileNotFoundError:  # removed since it was listed: look again
            continue
        manifest = Manifest.from_bytes(lease.content, str(path))
        if tag and manifest.fingerprint != tag.fingerprint:
            raise CorruptStoreError(
                f"tag {wanted!r} of {store} was given to {version} with fingerprint "
                f"{tag.fingerprint}, but {version} now has {manifest.fingerprint}. Tag it again: "
                f"trialshards tag {store} {wanted} VERSION --force"
            )
        return OpenVersion(version, manifest, lease)


def _find_tag(store: Path, wanted: str, versions: list[str]) -> Tag:
    path = _path_of(store, wanted) if _TAG_NAME.fullmatch(wanted) else None
    if path is None or not path.is_file():
        raise _not_found(store, f"version {wanted}" if wanted else "committed version", versions)
    tag = _read_tag(path)
    if tag.version not in versions:
        raise StoreNotFoundError(
            f"tag {wanted!r} of {store} stands for {tag.version}, which is gone (found: "
            f"{', '.join(versions) or 'none'}). Delete it: trialshards tag {store} {wanted} "
            "--delete"
        )
    return tag


def _not_found(store: Path, what: str, versions: list[str]) -> StoreNotFoundError:
    found = ", ".join([*versions, *(f"tag {name}" for name in _tag_names(store))])
    return StoreNotFoundError(
        f"no {what} in {store} (found: {found or 'none'}). "
        f"Build it: trialshards build DATASET.yaml --store {store}"
    )


def read_tags(store: Path) -> dict[str, Tag]:
    """Return the tags of a store by name, in order.

    Raises:
        CorruptStoreError: If one cannot be read.
    """
    return {name: _read_tag(_path_of(store, name)) for name in _tag_names(store)}


def set_tag(store: Path, name: str, version: str | None = None, *, force: bool = False) -> Tag:
    """Give a version a name of its own, which also keeps it from being removed.

    Args:
        store: Store root.
        name: A letter or digit, then up to 63 letters, digits, `.`, `_` or `-`.
        version: A version or another tag; by default the newest version.
        force: Move the tag if it stands for another version.

    Raises:
        InvalidSpecError: If the name cannot be one, or stands for another version and is not to
            be moved.
        StoreNotFoundError: If there is no such store, version or tag.
        CorruptStoreError: If the folder of tags is a link.
    """
    if not _TAG_NAME.fullmatch(name):
        raise InvalidSpecError(
            f"{name!r} cannot be a tag; wanted a letter or digit, then up to 63 letters, digits, "
            "'.', '_' or '-', and nothing that looks like a version (v0001)."
        )
    open_version(store, version)  # before the store gets a new file
    with building(store):  # a version that is tagged must not be removed meanwhile
        found, manifest, _ = open_version(store, version)
        tag, path = Tag(found, manifest.fingerprint), _path_of(store, name)
        if path.is_file() and not force and (old := _read_tag(path)) != tag:
            raise InvalidSpecError(
                f"tag {name!r} of {store} stands for {old.version}. Move it to {found}: "
                f"trialshards tag {store} {name} {found} --force"
            )
        refuse_link(path.parent)
        replace_file(path, canonical_json(tag._asdict()) + b"\n")
    return tag


def delete_tag(store: Path, name: str) -> None:
    """Forget a tag; its version stays until `gc`.

    Raises:
        StoreNotFoundError: If there is no such tag.
    """
    names = _tag_names(store)
    if name not in names:
        raise StoreNotFoundError(
            f"no tag {name!r} in {store} (found: {', '.join(names) or 'none'}). "
            f"List them: trialshards tag {store}"
        )
    remove_all([_path_of(store, name)])


def _path_of(store: Path, name: str) -> Path:
    return store / "tags" / f"{name}.json"


def _tag_names(store: Path) -> list[str]:
    names = (path.stem for path in (store / "tags").glob("*.json"))
    return sorted(name for name in names if _TAG_NAME.fullmatch(name))


def _read_tag(path: Path) -> Tag:
    try:
        return _parse_tag(read_inside(path.parent.parent, path, most_bytes=4096))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptStoreError(
            f"{path} is not a tag ({type(error).__name__}: {error}). Restore it, or delete it: "
            f"trialshards tag {path.parent.parent} {path.stem} --delete"
        ) from error


def _parse_tag(content: bytes) -> Tag:
    document = parse_json(content)
    tag = Tag(document["version"], document["fingerprint"])
    if not VERSION_NAME.fullmatch(tag.version) or not isinstance(tag.fingerprint, str):
        raise ValueError(f"it says {tag}")
    return tag
