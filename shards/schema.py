"""The nouns of a manifest: channels, targets, shards, parts, tombstones (SPEC section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shards.layout import DIGEST, ArraySpec, is_array_name
from shards.safety import text, truth, whole


@dataclass(frozen=True)
class Channel:
    """One numeric input: its name and, where known, its unit."""

    name: str
    unit: str = ""


@dataclass(frozen=True)
class TargetSchema:
    """What the model predicts.

    Attributes:
        kind: `forecast`, `per_step` or `per_trial`.
        columns: Channel names (forecast), target columns (per_step), or the label's name.
        classes: Class names in code order, or None when the target is a value.
    """

    kind: str
    columns: tuple[str, ...]
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class EncodedInput:
    """An input that is no channel: a text column of the rows, or an attribute of the trial.

    Attributes:
        name: Of the column or attribute.
        encoding: How a model gets it: `one_hot` or `embed`; an attribute also as a `number`.
    """

    name: str
    encoding: str


@dataclass(frozen=True)
class ShardEntry:
    """One shard as the manifest lists it.

    Attributes:
        digest: Its name.
        n_rows: Rows of each array; in layout windows a row is a window.
        n_trials: Trials of the version in it.
        arrays: What it holds.
        file: Container parquet: `size_bytes` and `xxh3_128` of its file; None for zarr.
    """

    digest: str
    n_rows: int
    n_trials: int
    arrays: Mapping[str, ArraySpec]
    file: Mapping[str, Any] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of all its arrays on disk."""
        if self.file is not None:
            return int(self.file["size_bytes"])
        return sum(array.size_bytes for array in self.arrays.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest entry."""
        chunked = self.file is None
        arrays = {name: spec.as_dict(chunked=chunked) for name, spec in self.arrays.items()}
        entry = {
            "digest": self.digest, "n_rows": self.n_rows, "n_trials": self.n_trials,
            "arrays": arrays,
        }  # fmt: skip
        return entry if self.file is None else entry | {"file": dict(self.file)}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> ShardEntry:
        """Parse a manifest entry.

        Raises:
            ValueError: If a name is not safe or the sizes contradict each other.
        """
        digest = text(entry["digest"], "shard name")
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"shard name {digest!r} is not a digest")
        for name in entry["arrays"]:
            if not is_array_name(name):
                raise ValueError(f"array name {name!r} is not allowed")
        file = _file_promise(entry["file"]) if "file" in entry else None
        arrays = {
            name: ArraySpec.from_dict(part, chunked=file is None)
            for name, part in entry["arrays"].items()
        }
        n_rows = whole(entry["n_rows"], "n_rows")
        if "values" not in arrays or any(spec.n_rows != n_rows for spec in arrays.values()):
            raise ValueError(f"arrays of shard {digest} do not have {n_rows} rows each")
        return cls(digest, n_rows, whole(entry["n_trials"], "n_trials"), arrays, file)


def _file_promise(entry: Mapping[str, Any]) -> dict[str, Any]:
    size = whole(entry["size_bytes"], "size_bytes of a file", 1)
    digest = text(entry["xxh3_128"], "xxh3_128 of a file")
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"not a digest: {digest!r}")
    return {"size_bytes": size, "xxh3_128": digest}


@dataclass(frozen=True)
class PartEntry:
    """One file of the cold index, shared by versions like a shard (SPEC section 9).

    Attributes:
        digest: XXH3-128 of the file, which is its name.
        size_bytes: Of the file.
        n_rows: Rows in it, those that no version names any more included.
        implied: Whether it leaves out statistics that follow from others (`shards.implied`).
    """

    digest: str
    size_bytes: int
    n_rows: int
    implied: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest entry; one that leaves out nothing says no more than it ever did."""
        return {name: value for name, value in vars(self).items() if name != "implied" or value}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> PartEntry:
        """Parse a manifest entry.

        Raises:
            ValueError: If it is no such entry.
        """
        part = cls(
            text(entry["digest"], "part name"),
            whole(entry["size_bytes"], "size_bytes of a part", 1),
            whole(entry["n_rows"], "n_rows of a part", 1),
            truth(entry.get("implied", False), "implied of a part"),
        )
        if not DIGEST.fullmatch(part.digest):
            raise ValueError(f"part name {part.digest!r} is not a digest")
        return part


@dataclass(frozen=True)
class Tombstone:
    """A trial that was taken out by hand; a build does not bring it back.

    Attributes:
        id: Of the trial.
        source: The file it came from, as in the cold index.
        reason: Why.
        size_bytes: Of the file.
        mtime_ns: Modification time of the file.
    """

    id: str
    source: str
    reason: str
    size_bytes: int = 0
    mtime_ns: int = 0

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Tombstone:
        """Parse a manifest entry.

        Raises:
            TypeError: If a field is no text.
        """
        texts = [entry[name] for name in ("id", "source", "reason")]
        numbers = [entry[name] for name in ("size_bytes", "mtime_ns")]
        if not all(type(text) is str for text in texts) or any(type(n) is not int for n in numbers):
            raise TypeError(f"{entry!r} is no tombstone")
        return cls(*texts, *numbers)
