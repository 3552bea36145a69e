"""`dataset.json`: the commit of a version, parsed once at the door (SPEC section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import xxhash

from shards.affine import is_first_minor, parse_entries
from shards.errors import CorruptStoreError, FormatVersionError, TrialShardsError
from shards.identity import FORMAT_MAJOR, canonical_json
from shards.layout import wanted_arrays
from shards.safety import check_promise, parse_json, text, truth, whole
from shards.schema import Channel, EncodedInput, PartEntry, ShardEntry, TargetSchema, Tombstone
from shards.windows import WindowSpec

__all__ = [
    "Channel", "EncodedInput", "Manifest", "PartEntry", "ShardEntry", "TargetSchema", "Tombstone",
    "sign",
]  # fmt: skip

FORMAT_MINOR = 3
FORMAT_VERSION = f"{FORMAT_MAJOR}.{FORMAT_MINOR}"
"""The newest format that this code writes; it reads all of this major up to it, and beyond."""
LAYOUTS = ("rows", "windows")
CONTAINERS = ("zarr", "parquet")
COLD = "trials.parquet"
_FILES = ("index.arrow", "quarantine.parquet", "fit.json")


@dataclass(frozen=True)
class Manifest:
    """Everything a reader must know of a version before it opens any other file."""

    name: str
    channels: tuple[Channel, ...]
    target: TargetSchema
    windows: WindowSpec
    splits: tuple[str, ...]
    observed: bool
    normalization: Mapping[str, Any]
    counts: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    fingerprint: str
    shards: tuple[ShardEntry, ...]
    files: Mapping[str, Mapping[str, Any]]
    spec: Mapping[str, Any]
    codes: tuple[EncodedInput, ...] = ()
    statics: tuple[EncodedInput, ...] = ()
    layout: str = "rows"
    container: str = "zarr"
    parts: tuple[PartEntry, ...] = ()
    tombstones: tuple[Tombstone, ...] = ()
    build: Mapping[str, Any] = field(default_factory=dict)

    @property
    def format_minor(self) -> int:
        """The lowest minor that says it all: what needs no newer format is written as ever."""
        if (self.layout, self.container) != ("rows", "zarr") or self.parts or self.tombstones:
            return FORMAT_MINOR if any(part.implied for part in self.parts) else 2
        newer = self.codes or self.statics or not is_first_minor(self.normalization)
        return 1 if newer else 0

    @property
    def version_files(self) -> tuple[str, ...]:
        """Files that the version's folder holds beside the manifest itself."""
        return _FILES if self.parts else (*_FILES, COLD)

    def to_bytes(self) -> bytes:
        """Return `dataset.json`."""
        classes = self.target.classes
        optional: dict[str, Any] = {n: [dict(vars(e)) for e in getattr(self, n)] for n in _LISTS}
        optional |= {"parts": [part.as_dict() for part in self.parts], "build": dict(self.build)}
        document: dict[str, Any] = {
            "format": {"name": "trialshards", "major": FORMAT_MAJOR, "minor": self.format_minor},
            **vars(self),
            "channels": [dict(vars(channel)) for channel in self.channels],
            "target": {
                "kind": self.target.kind,
                "columns": list(self.target.columns),
                "classes": None if classes is None else list(classes),
            },
            "windows": self.windows.as_dict(),
            "splits": list(self.splits),
            "shards": [shard.as_dict() for shard in self.shards],
            **optional,
        }
        document = {name: part for name, part in document.items() if optional.get(name, True)}
        return canonical_json(sign(document)) + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes, origin: str) -> Manifest:
        """Parse `dataset.json`.

        Args:
            raw: The file.
            origin: Its path, for messages.

        Raises:
            FormatVersionError: If the format is newer than this reader, or not ours; of a newer
                minor, if it says what this reader does not know.
            CorruptStoreError: If it is not what SPEC section 3 describes.
        """
        document: Any = None
        try:
            document = parse_json(raw, unique=False)
            _check_format(document["format"], origin)
            if raw != canonical_json(sign(document)) + b"\n":
                raise ValueError("its xxh3_128 is not that of its content")
            for name, known in (("layout", LAYOUTS), ("container", CONTAINERS)):
                if document[name] not in known:
                    raise ValueError(f"{name} is {document[name]!r}; wanted one of {known}")
            return _consistent(cls._from_document(document))
        except FormatVersionError:
            raise
        except _UNREADABLE as error:
            raise _refusal(document, error, raw, origin) from error

    @classmethod
    def _from_document(cls, document: Mapping[str, Any]) -> Manifest:
        target = document["target"]
        classes = target["classes"]
        return cls(
            name=text(document["name"], "name"),
            channels=tuple(Channel(*_names([c["name"], c["unit"]])) for c in document["channels"]),
            target=TargetSchema(
                target["kind"],
                _names(target["columns"]),
                None if classes is None else _names(classes),
            ),
            windows=WindowSpec(**{f.name: document["windows"][f.name] for f in fields(WindowSpec)}),
            splits=_names(document["splits"]),
            observed=truth(document["observed"], "observed"),
            normalization=dict(document["normalization"]),
            counts=dict(document["counts"]),
            fingerprints=dict(document["fingerprints"]),
            fingerprint=text(document["fingerprint"], "fingerprint"),
            shards=tuple(ShardEntry.from_dict(entry) for entry in document["shards"]),
            files={name: dict(promise) for name, promise in document["files"].items()},
            spec=dict(document["spec"]),
            codes=_encoded(document.get("codes", [])),
            statics=_encoded(document.get("statics", [])),
            layout=document["layout"],
            container=document["container"],
            parts=tuple(PartEntry.from_dict(entry) for entry in document.get("parts", [])),
            tombstones=tuple(Tombstone.from_dict(e) for e in document.get("tombstones", [])),
            build=dict(document.get("build", {})),
        )


_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def sign(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with the digest of everything else in it."""
    rest = {name: value for name, value in document.items() if name != "xxh3_128"}
    return {**rest, "xxh3_128": xxhash.xxh3_128_hexdigest(canonical_json(rest))}


_LISTS = ("codes", "statics", "tombstones")
_MOST_STEPS = 2**40
_ENCODINGS = {"codes": ("one_hot", "embed"), "statics": ("number", "one_hot", "embed")}


def _encoded(entries: Any) -> tuple[EncodedInput, ...]:
    return tuple(EncodedInput(*_names([e["name"], e["encoding"]])) for e in entries)


def _names(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{values!r} is no list of names")
    return tuple(values)


def _consistent(manifest: Manifest) -> Manifest:
    """Return the manifest, but refuse what a reader would stumble over later, or over-read.

    Raises:
        ValueError: Naming the contradiction.
    """
    channels = [channel.name for channel in manifest.channels]
    target = manifest.target
    if target.kind not in ("forecast", "per_step", "per_trial") or not target.columns:
        raise ValueError(f"target is {target}")
    if target.kind == "forecast" and not set(target.columns) <= set(channels):
        raise ValueError(f"forecast columns {target.columns} are no channels")
    entries = dict(zip(channels, parse_entries(manifest.normalization, len(channels)), strict=True))
    if target.kind == "forecast" and any(entries[name][1] == "regime" for name in target.columns):
        raise ValueError(f"forecast columns {target.columns} have normalization scope 'regime'")
    if set(manifest.fingerprints) != set(manifest.splits):
        raise ValueError("fingerprints are not those of the splits")
    if missing := set(manifest.version_files) - set(manifest.files):
        raise ValueError(f"files lack {sorted(missing)}")
    _check_encoded(manifest)
    _check_numbers(manifest)
    wanted = _wanted_arrays(manifest)
    for shard in manifest.shards:
        got = {name: (spec.dtype, spec.n_columns) for name, spec in shard.arrays.items()}
        timed = got.pop("time", _TIME) if manifest.layout == "rows" else _TIME
        if timed != _TIME or got != wanted:
            raise ValueError(f"shard {shard.digest} has arrays {got}; wanted {wanted}")
        if (shard.file is not None) != (manifest.container == "parquet"):
            raise ValueError(f"shard {shard.digest} is not in container {manifest.container}")
    return manifest


_TIME = ("float64", 1)


def _wanted_arrays(manifest: Manifest) -> dict[str, tuple[str, int]]:
    """Return dtype and columns of each array that every shard must have, and no other."""
    return wanted_arrays(
        n_channels=len(manifest.channels),
        target=manifest.target.kind,
        n_targets=len(manifest.target.columns),
        observed=manifest.observed,
        n_codes=len(manifest.codes),
        windows=manifest.windows if manifest.layout == "windows" else None,
    )


def _check_numbers(manifest: Manifest) -> None:
    """Refuse what is no number where one is wanted, and what is there twice."""
    for name in ("length", "stride", "horizon", "steps"):
        whole(getattr(manifest.windows, name), f"windows.{name}", most=_MOST_STEPS)
    for name in ("files", "trials", "rows", "segments"):
        whole(manifest.counts.get(name, 0), f"counts.{name}")
    for split, count in manifest.counts.get("windows", {}).items():
        whole(count, f"counts.windows.{split}")
    truth(manifest.counts.get("has_missing", True), "counts.has_missing")
    for split, fingerprint in manifest.fingerprints.items():
        text(fingerprint, f"fingerprint of {split}")
    for name, promise in manifest.files.items():
        check_promise(promise, name)
    for what, names in (
        ("channels", [channel.name for channel in manifest.channels]),
        ("splits", manifest.splits),
        ("shards", [shard.digest for shard in manifest.shards]),
    ):
        if len(set(names)) < len(names):
            raise ValueError(f"{what} has one twice")


def column_names(manifest: Manifest) -> dict[str, list[str]]:
    """Return what the columns of the arrays are called, of one step; for shards in Parquet."""
    named = {
        "values": [channel.name for channel in manifest.channels],
        "targets": list(manifest.target.columns),
        "codes": [entry.name for entry in manifest.codes],
    }
    return {name: columns for name, columns in named.items() if columns}


def _check_encoded(manifest: Manifest) -> None:
    for where, known in _ENCODINGS.items():
        entries: tuple[EncodedInput, ...] = getattr(manifest, where)
        if not {entry.encoding for entry in entries} <= set(known):
            raise ValueError(f"{where} has encodings other than {known}: {entries}")
        if len({entry.name for entry in entries}) < len(entries):
            raise ValueError(f"{where} names one twice: {entries}")


_KNOWS = f"this reader knows trialshards up to {FORMAT_VERSION}"
_UPGRADE = "pip install -U trialshards"


def _written(got: Mapping[str, Any]) -> str:
    return f"{got.get('name')} {got.get('major')}.{got.get('minor')}"


def _check_format(got: Mapping[str, Any], origin: str) -> None:
    if got.get("name") != "trialshards" or whole(got["major"], "format.major") > FORMAT_MAJOR:
        raise FormatVersionError(
            f"{origin} has format {_written(got)}; {_KNOWS}. Upgrade: {_UPGRADE}"
        )


def _refusal(document: Any, error: Exception, raw: bytes, origin: str) -> TrialShardsError:
    """Return the error of what cannot be read: is it newer, or broken?"""
    why = f"({type(error).__name__}: {error})"
    try:
        written, minor = _written(document["format"]), whole(document["format"]["minor"], "minor")
        intact = raw == canonical_json(sign(document)) + b"\n"
    except _UNREADABLE:
        return CorruptStoreError(
            f"{origin} is not a manifest of this format {why}. "
            "Restore the file, or open another version."
        )
    if intact and minor > FORMAT_MINOR:
        return FormatVersionError(
            f"{origin} has format {written}, and says what this reader cannot deliver {why}; "
            f"{_KNOWS}. Upgrade: {_UPGRADE}"
        )
    return CorruptStoreError(
        f"{origin} is not a manifest of this format {why}. It has format {written}; {_KNOWS}. "
        f"Restore the file, or open another version. If a newer trialshards wrote it: {_UPGRADE}."
    )
