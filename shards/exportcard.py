"""The card of an exported data set, as Hugging Face's hub and `datasets` read it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from shards.exportrows import TrialTable

_TYPES = {
    pa.utf8(): "string", pa.float32(): "float32", pa.float64(): "float64", pa.int64(): "int64",
    pa.bool_(): "bool",
}  # fmt: skip
_ABOUT = {
    "trial": "trial id",
    "recording": "the recording that the trial is a part of: parts of one belong on one side",
    "split": "split",
    "row": "number of the row in its trial, from 0",
    "time": "time of the row",
    "label": "target of the trial",
    "channel": "input",
    "observed": "whether the source held the value of `{of}`",
    "target": "target of the row",
    "category": "input, text",
    "attribute": "what is known of the trial",
}


@dataclass(frozen=True)
class SplitFiles:
    """What was written of one split.

    Attributes:
        split: Its name in the store.
        name: Its name in the export.
        n_examples: Rows of its files.
        n_bytes: Their bytes before compression.
    """

    split: str
    name: str
    n_examples: int
    n_bytes: int


def file_names(splits: Sequence[str]) -> list[str]:
    """Return a name for each split that may be part of a file's, and that `datasets` takes."""
    names: list[str] = []
    for split in splits:
        name = re.sub(r"\W+", "_", split, flags=re.ASCII) or "_"
        while name.casefold() in (other.casefold() for other in names):
            name += "_"
        names.append(name)
    return names


def dataset_card(table: TrialTable, splits: Sequence[SplitFiles]) -> str:
    """Return `README.md`: the YAML header that tools read, and what a person wants to know."""
    manifest = table.store.manifest
    n_bytes = sum(split.n_bytes for split in splits)
    header = {
        "license": "unknown",
        "pretty_name": manifest.name,
        "tags": ["time-series", "trialshards"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": s.name, "path": f"data/{s.name}-*"} for s in splits],
            }
        ],
        "dataset_info": {
            "features": [_feature(field) for field in table.schema],
            "splits": [
                {"name": s.name, "num_bytes": s.n_bytes, "num_examples": s.n_examples}
                for s in splits
            ],
            "dataset_size": n_bytes,
        },
    }
    top = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{top}---\n\n# {manifest.name}\n\n{_text(table, splits)}"


def _feature(field: pa.Field) -> dict[str, Any]:
    if pa.types.is_list(field.type):
        return {"name": field.name, "list": _TYPES[field.type.value_type]}
    return {"name": field.name, "dtype": _TYPES[field.type]}


def _text(table: TrialTable, splits: Sequence[SplitFiles]) -> str:
    manifest, store = table.store.manifest, table.store
    units = "in physical units" if table.physical else "normalized, as training batches hold them"
    each = "time step of a trial" if table.per == "step" else "trial; series are lists"
    about = (
        f"Exported by trialshards from `{manifest.name}` {store.version}, fingerprint "
        f"`{manifest.fingerprint}`. One row per {each}. Channels are {units}; a missing value "
        "is null. The licence is unknown: ask who recorded the data."
    )
    lines = [
        about,
        "",
        "| split | rows |",
        "|---|---|",
        *(f"| `{s.name}`{_was(s.name, s.split)} | {s.n_examples:,} |" for s in splits),
        "",
        "| column | type | what it is |",
        "|---|---|---|",
    ]
    channel_units = {channel.name: channel.unit for channel in manifest.channels}
    fields = {field.name: field.type for field in table.schema}
    for column in table.columns:
        if column.name not in fields:
            continue
        what = _ABOUT[column.role].format(of=column.of)
        if table.physical and column.role == "channel" and channel_units[column.of]:
            what += f", {channel_units[column.of]}"
        was = "" if column.role == "observed" else _was(column.name, column.of)
        lines.append(f"| `{column.name}`{was} | {fields[column.name]} | {what} |")
    return "\n".join([*lines, ""])


def _was(name: str, of: str) -> str:
    return "" if name == of else f" (`{of}` in the store)"
