"""What goes into the golden stores of formats 1.1 and 1.2: every number is written out here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shards import WindowSpec
from shards.manifest import TargetSchema, Tombstone

Words = Sequence[str | None]


@dataclass(frozen=True)
class Trial:
    """One trial segment.

    Attributes:
        values: float32 `[rows, channels]` as stored; NaN where missing.
        seen: bool `[rows, channels]`: what the source held; None where that is not stored.
        targets: float32 `[rows, K]`, of a target per step.
        words: Texts of each categorical column.
        lists: Of a segment, the words of its whole trial: a list per column.
        label: Class name, or value.
        clock: (start, step) of regular times, or a list of irregular ones.
        trial: Of which trial it is segment number `segment`, where gaps cut that.
        affine: Offset and scale per channel, of channels stored normalized.
        dead: It lies in shard and part, and no index row names it.
    """

    id: str
    values: Any
    seen: Any = None
    targets: Any = None
    words: Sequence[Words] = ()
    attributes: Mapping[str, str | None] = field(default_factory=dict)
    split: str = "train"
    weight: float = 1.0
    label: str | float | None = None
    clock: tuple[float, float] | list[float] | None = None
    trial: str | None = None
    segment: int = 0
    affine: tuple[list[float], list[float]] | None = None
    dead: bool = False
    lists: Sequence[list[str]] | None = None


@dataclass(frozen=True)
class Golden:
    """One data set.

    Attributes:
        normalize: That part of `fit.json`.
        codes: Categorical column -> (encoding, vocabulary of the train trials).
        statics: Attribute -> (encoding, vocabulary, or (mean, sd) of the train trials).
        tombstones: Of dead trials.
    """

    channels: Sequence[str]
    target: TargetSchema
    windows: WindowSpec
    trials: Sequence[Trial]
    normalize: Mapping[str, Any]
    codes: Mapping[str, tuple[str, list[str]]] = field(default_factory=dict)
    statics: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    layout: str = "rows"
    container: str = "zarr"
    n_shards: int = 1
    n_parts: int = 0
    tombstones: Sequence[Tombstone] = ()

    @property
    def observed(self) -> bool:
        return self.trials[0].seen is not None

    @property
    def live(self) -> list[Trial]:
        """The trials in the order of their numbers."""
        return sorted((t for t in self.trials if not t.dead), key=lambda t: t.id.encode())

    @property
    def entries(self) -> list[tuple[str, str]]:
        """(method, scope) of each channel."""
        parts = self.normalize.get("channels", [self.normalize] * len(self.channels))
        return [(part["method"], part["scope"]) for part in parts]


def numbers(trial: int, n_rows: int, n_channels: int) -> Any:
    """Rows that name themselves and are not even: 100 * trial + row ** 2 + channel / 16."""
    rows = np.arange(n_rows)[:, None] ** 2 + np.arange(n_channels)[None, :] / 16
    return (100 * trial + rows).astype(np.float32)


def holed(trial: int, n_rows: int, n_channels: int) -> tuple[Any, Any]:
    """The same with every 5th value not seen, of which every other one was filled in."""
    values = numbers(trial, n_rows, n_channels)
    place = np.arange(values.size).reshape(values.shape)
    values[place % 10 == 3] = np.nan
    return values, place % 5 != 3


def steps(trial: int, n_rows: int, n_columns: int) -> Any:
    """Targets per step, one of which is missing."""
    targets = (trial + np.arange(n_rows)[:, None] / 4 - np.arange(n_columns)[None, :]).astype("<f4")
    targets[n_rows // 2, 0] = np.nan
    return targets


CLASSES = ("push", "poussée", "pull")
NONE = {"method": "none", "scope": "none"}
LEVELS = {"offset": [2.0, 100.5, -3.0], "scale": [8.0, 0.3, 40.0]}


def _coded() -> Golden:
    """1.1: codes and statics of every encoding, group scope, a group and words unknown to train."""
    gate = ["open", "shut", None, "open", "ajar", "shut", "open", "open", "shut"]
    tool = ["été", "axe", "axe", None, "axe", "été", "axe", "axe", "axe"]
    sites, kg = ["north", "south", "north", "east", None], ["2", "4", None, "-1e1", " 3 "]
    trials = []
    for i, n_rows in enumerate([9, 3, 7, 6, 5]):
        values, seen = holed(i, n_rows, 3)
        words = ([*gate[i:], *gate[:i]][:n_rows], [*tool[i:], *tool[:i]][:n_rows])
        if i == 3:
            words = (["only here"] * n_rows, words[1])
        attributes = {"site": sites[i], "kg": kg[i], "dock": ["a", "b", "b", "z", None][i]}
        split = ["train", "train", "train", "val", "val"][i]
        trials.append(Trial(f"t{i}", values, seen, None, words, attributes, split))
    group = {"values": ["north", "south"], "n_trials": [2, 1]}
    group |= {"offset": [[1.0, 2.0, 3.0], [0.1, 0.2, 0.3]], "scale": [[4.0, 5.0, 6.0]] * 2}
    return Golden(
        channels=("a", "b", "c"),
        target=TargetSchema("forecast", ("c", "a")),
        windows=WindowSpec(length=4, stride=2, horizon=1, steps=2),
        trials=trials,
        normalize={"method": "zscore", "scope": "group:site", **LEVELS, "groups": {"site": group}},
        codes={
            "gate": ("one_hot", ["ajar", "open", "shut"]),
            "tool": ("embed", ["axe", "été"]),
        },
        # Of train 2 and 4: mean 3, population sd 1.
        statics={
            "kg": ("number", (3.0, 1.0)),
            "site": ("one_hot", ["north", "south"]),
            "dock": ("embed", ["a", "b"]),
        },
        n_shards=2,
    )


def _window() -> Golden:
    """1.1: scope window, a target per step, short windows, a channel that is all equal."""
    trials = []
    for i, n_rows in enumerate([6, 2, 9]):
        values, seen = holed(i, n_rows, 3)
        values[:, 2] = 7.5
        split = ["train", "val", "train"][i]
        trials.append(Trial(f"t{i}", values, seen, steps(i, n_rows, 2), split=split))
    return Golden(
        channels=("a", "b", "c"),
        target=TargetSchema("per_step", ("y0", "y1")),
        windows=WindowSpec(length=4, stride=3),
        trials=trials,
        normalize={"method": "zscore", "scope": "window"},
    )


def _mixed() -> Golden:
    """1.1: a scope of each kind side by side; a target per trial, with classes."""
    scopes = ["trial", "window", "window", "train", "group:site", "regime", "none", "prefix(2)"]
    methods = ["zscore", "minmax", "robust", "minmax", "zscore", "zscore", "none", "robust"]
    trials = []
    for i, n_rows in enumerate([7, 4, 5]):
        values = numbers(i, n_rows, 8)
        values[:, 6] = [0.0, 8.0, 1.0, 9.0, np.nan, 4.0, 4.5][:n_rows]  # tells the regime
        values[1, 2] = np.nan
        offset, scale = np.zeros(8), np.ones(8)
        offset[[0, 7]], scale[[0, 7]] = (10.0 * i, -1.5), (2.0, 0.25)
        trials.append(
            Trial(
                f"t{i}", values, attributes={"site": ["x", "y", None][i]}, weight=[1, 0.5, 2][i],
                label=[CLASSES[1], None, CLASSES[0]][i], affine=(offset.tolist(), scale.tolist()),
                split=["train", "train", "val"][i],
            )
        )  # fmt: skip
    ones, zeros = [1.0] * 8, [0.0] * 8
    offset = [0.0, 0.0, 0.0, 5.0, 6.0, 7.0, 0.0, 0.0]
    scale = [1.0, 1.0, 1.0, 3.0, 4.0, 5.0, 1.0, 1.0]
    site = {"values": ["x", "y"], "n_trials": [1, 1]}
    site |= {"offset": [[*zeros[:4], v, *zeros[:3]] for v in (0.7, 100.0)]}
    site |= {"scale": [[*ones[:4], v, *ones[:3]] for v in (0.9, 3.0)]}
    regimes = {"channels": ["c6"], "centres": [[0.5], [8.5]], "spread": [4.0], "n_rows": [5, 5]}
    regimes |= {"offset": [[*zeros[:5], v, *zeros[:2]] for v in (1.25, 110.0)]}
    regimes |= {"scale": [[*ones[:5], v, *ones[:2]] for v in (2.0, 7.0)]}
    entries = [{"method": m, "scope": s} for m, s in zip(methods, scopes, strict=True)]
    return Golden(
        channels=tuple(f"c{j}" for j in range(8)),
        target=TargetSchema("per_trial", ("gesture",), CLASSES),
        windows=WindowSpec(length=3, stride=2),
        trials=trials,
        normalize={
            "method": "mixed", "scope": "mixed", "channels": entries, "offset": offset,
            "scale": scale, "n_trials": 2, "groups": {"site": site}, "regimes": regimes,
        },
    )  # fmt: skip


def _forecast(layout: str, container: str) -> Golden:
    """1.2: gaps, regular and irregular times, codes, statics, a mask, short windows, forecast."""
    # `n` is too short for any window, `u` was cut at two gaps, `x` is dead.
    clocks: dict[str, Any] = {
        "a": (0.5, 0.25), "n": (7.0, 0.5), "u#1": (0.0, 1.0), "u#2": (100.0, 0.1),
        "u#3": (500.0, 0.0), "x": (3.0, 1.0), "z": (-1.0, 2.0),
    }  # fmt: skip
    if layout == "rows":
        clocks["a"] = [0.0, 0.5, 0.75, 2.0, 2.125, 3.0, 9.0, 10.0, 11.0]
    lengths = {"a": 9, "n": 2, "x": 5, "u#1": 6, "u#2": 4, "u#3": 1, "z": 8}
    trials = []
    for i, (name, n_rows) in enumerate(lengths.items()):
        values, seen = holed(i, n_rows, 9)
        words = ([["red", None, "blue"][(i + k) % 3] for k in range(n_rows)],)
        torn = name[:1] == "u"
        trials.append(
            Trial(
                name, values, seen, words=words, attributes={"kg": ["1", "3"][i % 2]},
                split="val" if name == "z" else "train", weight=[1.0, 0.5][i % 2],
                clock=clocks[name], trial="u" if torn else None,
                segment=int(name[2:]) - 1 if torn else 0, dead=name == "x",
                lists=[["red", "blue"]] if torn else None,
            )
        )  # fmt: skip
    return Golden(
        channels=tuple("abcdefghi"),
        target=TargetSchema("forecast", ("h", "a")),
        windows=WindowSpec(length=4, stride=2, horizon=2, steps=2),
        trials=trials,
        normalize={
            "method": "zscore", "scope": "train",
            "offset": [0.1 * j for j in range(9)], "scale": [3.0 + j for j in range(9)],
        },
        codes={"light": ("embed", ["blue", "red"])},
        statics={"kg": ("number", (2.0, 1.0))},
        layout=layout, container=container, n_shards=2, n_parts=2,
        tombstones=(Tombstone("x", "x.csv", "the cable was loose"),),
    )  # fmt: skip


def _per_step(layout: str, container: str) -> Golden:
    """1.2: a target per step, short windows, scope window."""
    trials = []
    for i, (name, n_rows) in enumerate({"k": 6, "gone": 3, "m": 2, "p": 7}.items()):
        values, seen = holed(i, n_rows, 2)
        clock: Any = (10.0 * i, 0.125) if layout == "windows" or i else [0.0, 1, 2, 4, 8, 16.5]
        split = "val" if name == "m" else "train"
        trials.append(
            Trial(name, values, seen, steps(i, n_rows, 2), split=split, clock=clock, dead=i == 1)
        )
    return Golden(
        channels=("a", "b"),
        target=TargetSchema("per_step", ("y0", "y1")),
        windows=WindowSpec(length=4, stride=3),
        trials=trials,
        normalize={"method": "robust", "scope": "window"},
        layout=layout, container=container, n_parts=2,
        tombstones=(Tombstone("gone", "gone.csv", "asked for by the subject", 40, 10**18),),
    )  # fmt: skip


def _per_trial(layout: str, container: str) -> Golden:
    """1.2: classes, no mask, codes in two columns, short windows dropped, no times."""
    trials = []
    for i, (name, n_rows) in enumerate({"g": 6, "gone": 4, "h": 2, "j": 5}.items()):
        words = (["on", "off", None, "on", "off", "on"][:n_rows], [None, "x", "y"][i % 3 :][:1] * n_rows)
        label = [CLASSES[2], CLASSES[0], None, CLASSES[1]][i]
        trials.append(
            Trial(name, numbers(i, n_rows, 2), words=words, label=label, dead=i == 1,
                  attributes={"hand": ["left", "left", None, "right"][i]})
        )  # fmt: skip
    return Golden(
        channels=("a", "b"),
        target=TargetSchema("per_trial", ("gesture",), CLASSES),
        windows=WindowSpec(length=3, stride=1, short="drop"),
        trials=trials,
        normalize={"method": "zscore", "scope": "train", "offset": [1.0, 2.0], "scale": [3.0, 7.0]},
        codes={"lamp": ("one_hot", ["off", "on"]), "axis": ("embed", ["y"])},
        statics={"hand": ("one_hot", ["left", "right"])},
        layout=layout, container=container, n_parts=2,
        tombstones=(Tombstone("gone", "gone.csv", "recorded twice"),),
    )  # fmt: skip


V1_1 = {"codes_group": _coded(), "window": _window(), "mixed": _mixed()}
V1_2 = {
    "rows_zarr": _forecast("rows", "zarr"),
    "rows_parquet": _per_step("rows", "parquet"),
    "windows_zarr": _per_trial("windows", "zarr"),
    "windows_parquet": _forecast("windows", "parquet"),
    "windows_parquet_per_step": _per_step("windows", "parquet"),
}
