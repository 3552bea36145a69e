"""A golden store made by a real build: built, one file changed, built again, a trial taken out.

Every number of `expected.json` follows by hand: x is scaled by its own trial, where it lies evenly
one scale around a level; y by the train trials, where it is as often 1 as 3: mean 2, sd 1. In the
stores of format 1.3, one of each shape, y is scaled by its own trial, too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from golden_cases import Golden, Trial

from shards import WindowSpec
from shards.leases import WRITERS
from shards.manifest import TargetSchema, Tombstone

SPEC = r"""name: golden_built
source:
  files: raw/*/*.csv
  trial_id: (?P<side>train|val)/(?P<grip>[a-z]+)_\d+
  time: {column: t, max_gap: 5}
channels: [{name: x, unit: mm}, y]
categorical: {lamp: embed}
clean: {missing: none}
normalize: {method: zscore, scope: trial, channels: {y: {scope: train}}}
split: {method: attribute, attribute: side}
windows: {length: 3, stride: 2, target: {kind: per_trial, attribute: grip}}
shards: {buckets: 1}
"""
OWN = "normalize: {method: zscore, scope: trial}"
"""In place of the line of SPEC: the constants of a trial follow from its moments, in format 1.3."""
SHAPES = {f"{a}_{b}": (a, b) for a in ("rows", "windows") for b in ("zarr", "parquet")}
MTIME_NS = 1_600_000_000 * 10**9

FILES = {
    "train/pinch_1": "t,x,y,lamp\n0,9,1,on\n0.25,11,3,on\n0.5,9,,off\n0.75,11,3,\n1,9,1,on\n1.25,11,,on\n",
    "train/power_2": "t,x,y,lamp\n1,4,1,off\n2,6,3,off\n3,4,1,on\n20,6,3,on\n21,4,,on\n22.5,6,,on\n",
    "val/pinch_3": "t,x,y,lamp\n7,-1,2.5,dim\n8,-3,8,on\n",
}
CHANGED = {"train/pinch_1": "t,x,y,lamp\n0,30,3,new\n1,34,1,on\n3,30,1,on\n4,34,3,off\n"}
REMOVED, REASON = "train/power_2", "the glove slipped"

nan = float("nan")


def spec_of_shape(layout: str, container: str) -> str:
    """Return the specification of a store of format 1.3."""
    lines = [OWN if line.startswith("normalize") else line for line in SPEC.splitlines()[:-1]]
    return "\n".join([*lines, f"shards: {{buckets: 1, layout: {layout}, format: {container}}}"])


def write_shape(store: Path, layout: str, container: str) -> None:
    """Write a store of format 1.3."""
    text, turns = spec_of_shape(layout, container), (FILES, CHANGED)
    if layout == "windows":
        turns = tuple({name: _evenly(rows) for name, rows in turn.items()} for turn in turns)
    write_built(store, text, turns)


def _evenly(rows: str) -> str:
    """Return a file with its times at regular steps: layout windows keeps no others."""
    return rows.replace("\n22.5,", "\n22.0,").replace("\n3,30,1,on\n4,", "\n2,30,1,on\n3,")


def write_built(store: Path, text: str = SPEC, turns: Any = (FILES, CHANGED)) -> None:
    """Build by a specification, change a file, build again, take a trial out."""
    from pipeline.build import build
    from shards.tombstone import tombstone_trials

    with tempfile.TemporaryDirectory() as root:
        spec = Path(root) / "dataset.yaml"
        spec.write_text(text)
        for turn, files in enumerate(turns):
            for name, rows in files.items():
                path = Path(root) / "raw" / f"{name}.csv"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(rows)
                os.utime(path, ns=(MTIME_NS + turn, MTIME_NS + turn))
            build(spec, store, n_workers=1)
    tombstone_trials(store, [REMOVED], REASON)
    # A builder's own, no part of the format.
    shutil.rmtree(store / "staging", ignore_errors=True)
    (store / WRITERS).unlink()


def _trial(name: str, rows: list[tuple[float, float]], lamp: list[str | None], **facts: Any) -> Trial:
    values = np.array(rows, np.float32)
    side, grip = name.split("#")[0].split("/")
    grip = grip.split("_")[0]
    return Trial(
        name, values, ~np.isnan(values), words=(lamp,), split=side, label=grip,
        attributes={"grip": grip, "side": side}, **facts,
    )  # fmt: skip


def golden_versions() -> dict[str, Golden]:
    """What each version must hold."""
    # Levels of x: 10, 5 and -2, always 1 away.
    pinch = _trial(
        "train/pinch_1", [(-1, 1), (1, 3), (-1, nan), (1, 3), (-1, 1), (1, nan)],
        ["on", "on", "off", None, "on", "on"], clock=(0.0, 0.25), affine=([10.0, 0.0], [1.0, 1.0]),
    )  # fmt: skip
    torn: Any = {"trial": "train/power_2", "affine": ([5.0, 0.0], [1.0, 1.0]), "lists": [["off", "on"]]}
    power = [
        _trial("train/power_2#1", [(-1, 1), (1, 3), (-1, 1)], ["off", "off", "on"], clock=(1.0, 1.0), **torn),
        _trial("train/power_2#2", [(1, 3), (-1, nan), (1, nan)], ["on"] * 3, clock=[20.0, 21.0, 22.5], segment=1, **torn),
    ]  # fmt: skip
    val = _trial("val/pinch_3", [(1, 2.5), (-1, 8)], ["dim", "on"], clock=(7.0, 1.0), affine=([-2.0, 0.0], [1.0, 1.0]))
    first = Golden(
        channels=("x", "y"),
        target=TargetSchema("per_trial", ("grip",), ("pinch", "power")),
        windows=WindowSpec(length=3, stride=2),
        trials=[pinch, *power, val],
        normalize={
            "method": "zscore", "scope": "mixed", "offset": [0.0, 2.0], "scale": [1.0, 1.0],
            "channels": [{"method": "zscore", "scope": s} for s in ("trial", "train")],
        },
        codes={"lamp": ("embed", ["off", "on"])},
    )  # fmt: skip
    # Level 32, 2 away. The vocabulary is that of the first build, which knew no `new`.
    changed = _trial(
        "train/pinch_1", [(-1, 3), (1, 1), (-1, 1), (1, 3)], ["new", "on", "on", "off"],
        clock=[0.0, 1.0, 3.0, 4.0], affine=([32.0, 0.0], [2.0, 1.0]),
    )  # fmt: skip
    stone = Tombstone(REMOVED, f"raw/{REMOVED}.csv", REASON, len(FILES[REMOVED]), MTIME_NS)
    second = replace(first, trials=[changed, *power, val])
    third = replace(first, trials=[changed, val], tombstones=(stone,))
    return {"v0001": first, "v0002": second, "v0003": third}


# Of y by each trial: level and scale. Everywhere a half of the rows is one scale below.
Y_OWN = {"train/pinch_1": (2.0, 1.0), "train/power_2": (2.0, 1.0), "val/pinch_3": (5.25, 2.75)}


def shape_versions(layout: str, container: str) -> dict[str, Golden]:
    """What each version of a store of format 1.3 must hold."""
    return {
        version: replace(
            golden,
            layout=layout,
            container=container,
            normalize={"method": "zscore", "scope": "trial"},
            trials=[_by_itself(trial, layout) for trial in golden.trials],
        )
        for version, golden in golden_versions().items()
    }


def _by_itself(trial: Trial, layout: str) -> Trial:
    """Return the trial with y scaled by its own level and scale, at times that the layout keeps."""
    level, scale = Y_OWN[trial.id.split("#")[0]]
    assert trial.affine is not None
    values, (offsets, scales) = trial.values.copy(), trial.affine
    values[:, 1] = (values[:, 1] - np.float32(level)) / np.float32(scale)
    clock = trial.clock
    if layout == "windows" and isinstance(clock, list):
        clock = (clock[0], 1.0)
    affine = [offsets[0], level], [scales[0], scale]
    return replace(trial, values=values, clock=clock, affine=affine)


def physical(trial: Trial) -> Any:
    """Return the values of a trial as its file has them, float64 `[rows, channels]`."""
    assert trial.affine is not None
    offsets, scales = trial.affine
    return trial.values.astype(np.float64) * scales + offsets
