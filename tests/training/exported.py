"""Exported models as other programs run them, fed by the slow way from raw numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from trialfolders import build_checked, write_spec, write_trial

from loaders import Batch
from shards import Store
from training import TrainConfig
from training.export import KEY, open_standalone
from training.streams import open_stream

Arrays = dict[str, np.ndarray[Any, Any]]
Run = Callable[[Arrays], Arrays]
SCOPES = {
    "a": "train", "b": "window", "c": "trial", "d": "group:machine", "e": "regime", "f": "prefix(5)"
}  # fmt: skip


PART = "(?P<part>train|val|test)/(?P<machine>[^_]+)_(?P<site>[^_]+)_(?P<kg>[^/]*)"


def full_store(folder: Path, method: str = "zscore") -> Store:
    """Build a store with every scope of normalization and every kind of input, and holes."""
    for number in range(20):
        rng = np.random.default_rng(number)
        part, n = ("train", "train", "train", "val", "test")[number % 5], int(rng.integers(9, 25))
        machine = "new" if number == 19 else f"m{number % 3}"
        columns: dict[str, Any] = {name: rng.normal(k, k + 1, n) for k, name in enumerate(SCOPES)}
        columns["a"] += 50 * (rng.random(n) > 0.5)
        for name in SCOPES:
            columns[name][rng.random(n) < 0.1] = np.nan
        for name in ("gear", "mode"):
            columns[name] = rng.choice(
                ["low", "high", "rare" if part == "test" else ""], n
            ).tolist()
        weight = "" if number == 3 else str(50 + number)
        write_trial(folder, f"{part}/{machine}_s{number % 2}_{weight}/t{number:02d}", columns)
    spec = write_spec(
        folder,
        source={"trial_id": "/".join([".*", PART, r"t\d+"])},
        channels=list(SCOPES),
        categorical={"gear": "embed", "mode": "one_hot"},
        static={"site": "one_hot", "kg": "number", "machine": "embed"},
        clean={
            "missing": "none", "then": "mask", "drop_trial_if_missing": 1.0, "observed": True
        },
        normalize={
            "method": method, "channels": {name: {"scope": s} for name, s in SCOPES.items()},
            "regimes": {"channels": ["a"], "count": 2},
        },
        split={"method": "attribute", "attribute": "part"},
        windows={"length": 8, "stride": 3, "target": {
            "kind": "forecast", "channels": ["a", "b", "c", "d"], "steps": 2}},
    )  # fmt: skip
    return build_checked(spec, folder / "store")[1]


def in_python(checkpoint: Path, **options: Any) -> tuple[Run, dict[str, Any]]:
    """Return the same before it is traced, which takes a second."""
    model, description = open_standalone(checkpoint, **options)

    def run(feed: Arrays) -> Arrays:
        said = model(**{name: torch.from_numpy(array) for name, array in feed.items()})
        return {name: tensor.numpy() for name, tensor in said.items()}

    return run, description


def opened(path: Path) -> tuple[Run, dict[str, Any]]:
    """Return what runs an exported file, without anything of ours, and what it says of itself."""
    if path.suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(path)
        names = [port.name for port in session.get_outputs()]
        text = session.get_modelmeta().custom_metadata_map[KEY]
        return lambda feed: dict(zip(names, session.run(None, feed), strict=True)), json.loads(text)
    extra = {KEY: ""}
    program = torch.export.load(path, extra_files=extra).module()

    def run(feed: Arrays) -> Arrays:
        said = program(**{name: torch.from_numpy(array) for name, array in feed.items()})
        return {name: tensor.numpy() for name, tensor in said.items()}

    return run, json.loads(extra[KEY])


def raw_inputs(store: Store, batch: Batch, description: dict[str, Any]) -> Arrays:
    """Return what a file asks for of a batch's rows: the sources' numbers, and junk as padding."""
    trials = batch.trial.clamp(min=0).tolist()
    values = np.full(batch.values.shape, 1e6, np.float32)
    for at, (trial, start, n) in enumerate(_rows(batch)):
        values[at, :n] = store.physical_rows(max(trial, 0))[start : start + n]
    affine = [np.float64(x)[trials if len(x) > 1 else [0] * len(trials)]
              for x in store.physical_affine()]  # fmt: skip
    asked: dict[str, Callable[[], Any]] = {
        "values": lambda: values,
        "lengths": lambda: batch.lengths.numpy(),
        "observed": lambda: (batch.observed | ~batch.valid[:, :, None]).numpy(),
        "codes": lambda: batch.codes.numpy(),
        "numbers": lambda: np.array(
            _texts(store, description["numbers"], trials, _number)
        ).T.copy(),
        "words": lambda: _coded(store, description["words"], trials),
        "groups": lambda: _coded(store, description["groups"], trials),
        "offset": lambda: affine[0],
        "scale": lambda: affine[1],
    }
    return {p["name"]: asked[p["name"]]() for p in description["inputs"] if p["name"] != "state"}


def _rows(batch: Batch) -> Iterator[tuple[int, int, int]]:
    return zip(batch.trial.tolist(), batch.start.tolist(), batch.lengths.tolist(), strict=True)


def _texts(store: Store, names: Any, trials: list[int], read: Callable[[Any], Any]) -> list[Any]:
    texts = [store.cold_index.attribute(name).to_pylist() for name in names]
    return [[read(column[trial]) for trial in trials] for column in texts]


def _number(text: str | None) -> float:
    return float(text) if text else np.nan


def _coded(store: Store, parts: list[dict[str, Any]], trials: list[int]) -> Any:
    columns = []
    for part in parts:
        known = {word: place + 1 for place, word in enumerate(part["words"])}
        columns += _texts(store, [part["name"]], trials, lambda word, of=known: of.get(word, 0))
    return np.array(columns, np.int64).T.copy()


def check_parity(config: TrainConfig, run: Run, description: dict[str, Any], rtol: float) -> int:
    """Compare what a file says with `predictions.parquet`; return the number of rows there."""
    store, target = Store(config.store), description["target"]
    stream = open_stream(store, config, config.evaluate.split)
    said: dict[Any, list[Arrays]] = {}
    for batch in stream:
        answer = run(raw_inputs(store, batch, description))
        for key, place in placed(description, batch):
            said.setdefault(key, []).append({name: x[place] for name, x in answer.items()})
    table = pq.read_table(config.out / "scored" / "predictions.parquet").to_pylist()
    ends = target["kind"] in ("class", "per_trial")
    for row in table:
        trial = store.trial_number(row["trial"])
        found = said[trial if ends else (trial, row["row"], row["ahead"])]
        one = {name: np.mean([part[name] for part in found], axis=0) for name in found[0]}
        check_row(one if ends else found[0], row, description, rtol)
    return len(table)


def check_row(said: Arrays, row: dict[str, Any], description: dict[str, Any], rtol: float) -> None:
    target, levels = description["target"], description["quantiles"]
    if target["classes"]:
        (column,) = target["columns"]
        assert row[f"predicted_{column}"] == said["probability"].argmax()
        wanted = [value for name, value in row.items() if name.startswith("probability_")]
        assert len(wanted) == len(target["classes"])
        np.testing.assert_allclose(said["probability"], wanted, rtol=rtol, atol=rtol)
        return
    wanted = [row[f"predicted_{column}"] for column in target["columns"]]
    np.testing.assert_allclose(said["predicted"], wanted, rtol=rtol, atol=rtol)
    if levels:
        of_row = [value for name, value in row.items() if re.search(r"_q\d+$", name)]
        np.testing.assert_allclose(np.ravel(said["quantiles"]), of_row, rtol=rtol, atol=rtol)


def placed(description: dict[str, Any], batch: Batch) -> Iterator[tuple[Any, Any]]:
    """Yield (trial, row, ahead), or the trial, and where the answer has it."""
    kind, windows = description["target"]["kind"], description["windows"]
    dense = kind != "forecast" or description["batches"] != "windows"
    for at, (trial, start, n) in enumerate(_rows(batch)):
        if trial < 0:
            continue
        if kind in ("class", "per_trial"):
            yield trial, at
            continue
        for step in range(n) if dense else [n - 1]:
            place = (at, step) if dense else (at,)
            if kind != "forecast":
                yield (trial, start + step, 0), place
                continue
            for ahead in range(windows["steps"]):
                more = ahead + windows["horizon"]
                yield (trial, start + step + more, more), (*place, ahead)
