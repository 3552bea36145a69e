"""What a reader must find in a golden store: SPEC.md written out once more, slowly, row by row.

Nothing here asks the reader, the writer or the loaders.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import xxhash
from golden_cases import Golden, Trial

LISTED_ROWS = 16
"""Longer arrays are pinned by their hash alone."""
NAN = np.float32(np.nan)


def pinned(rows: Any) -> dict[str, Any]:
    """Return dtype, shape and the bytes of each row, or of long arrays the hash of all rows."""
    little = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    about = {"dtype": rows.dtype.name, "shape": list(rows.shape)}
    if len(rows) <= LISTED_ROWS:
        return {**about, "rows": [row.tobytes().hex() for row in little]}
    return {**about, "sha256": hashlib.sha256(little.tobytes()).hexdigest()}


def own_words(trial: Trial) -> list[list[str]]:
    """The different words of each categorical column, in order of first appearance."""
    if trial.lists is not None:
        return [list(words) for words in trial.lists]
    return [list(dict.fromkeys(w for w in column if w is not None)) for column in trial.words]


def trial_arrays(trial: Trial) -> dict[str, Any]:
    """The rows of a trial, as layout rows stores them."""
    arrays = {"values": trial.values}
    if trial.seen is not None:
        n_rows, n_channels = trial.seen.shape
        bits = np.zeros((n_rows, -(-n_channels // 8)), np.uint8)
        for row, j in zip(*np.nonzero(trial.seen), strict=True):
            bits[row, j // 8] |= 1 << (j % 8)
        arrays["observed"] = bits
    if trial.targets is not None:
        arrays["targets"] = trial.targets.astype(np.float32)
    if trial.words:
        lists = own_words(trial)
        codes = [
            [0 if word is None else 1 + lists[c].index(word) for c, word in enumerate(row)]
            for row in zip(*trial.words, strict=True)
        ]
        arrays["codes"] = np.array(codes, np.uint16)
    return arrays


def window_starts(n_rows: int, golden: Golden) -> list[tuple[int, int]]:
    """(first row, valid rows) of each window of a trial: every start is tried."""
    w = golden.windows
    ahead = w.horizon - 1 + w.steps if golden.target.kind == "forecast" else 0
    starts = [s for s in range(0, n_rows, w.stride) if s + w.length + ahead <= n_rows]
    if starts or w.short == "drop" or n_rows <= ahead:
        return [(start, w.length) for start in starts]
    return [(0, n_rows - ahead)]


def target_rows(start: int, valid: int, golden: Golden) -> range:
    """Rows of a window's forecast."""
    first = start + valid + golden.windows.horizon - 1
    return range(first, first + golden.windows.steps)


def stored_arrays(trial: Trial, golden: Golden) -> dict[str, Any]:
    """What the shard holds of a trial: its rows, or its windows one by one."""
    arrays, length = trial_arrays(trial), golden.windows.length
    if golden.layout == "rows":
        return arrays
    out: dict[str, list[Any]] = {name: [] for name in arrays}
    places = [golden.channels.index(name) for name in golden.target.columns if name in golden.channels]
    if golden.target.kind == "forecast":
        out["targets"] = []
    for start, valid in window_starts(len(trial.values), golden):
        for name, rows in arrays.items():
            window = np.zeros((length, rows.shape[1]), rows.dtype)
            if name == "targets":
                window[:] = np.nan
            window[:valid] = rows[start : start + valid]
            out[name].append(window.reshape(-1))
        if golden.target.kind == "forecast":
            ahead = [[trial.values[r, p] for p in places] for r in target_rows(start, valid, golden)]
            out["targets"].append(np.array(ahead, np.float32).reshape(-1))
    widths = {name: length * rows.shape[1] for name, rows in arrays.items()}
    types = {name: rows.dtype for name, rows in arrays.items()} | {"targets": np.float32}
    widths.setdefault("targets", golden.windows.steps * len(places))
    return {
        name: np.array(windows, types[name]).reshape(len(windows), widths[name])
        for name, windows in out.items()
    }


def trial_digest(trial: Trial, golden: Golden) -> str:
    """SPEC section 7."""
    fields = [trial.id.encode()]
    for name, rows in sorted(trial_arrays(trial).items()):
        fields.append(f"{name}|{rows.dtype.name}|{rows.shape[0]}x{rows.shape[1]}".encode())
        fields.append(rows.astype(rows.dtype.newbyteorder("<")).tobytes())
    if isinstance(trial.label, str):
        fields.append(b"class " + trial.label.encode())
    else:
        value = b"" if trial.label is None else np.array(trial.label, "<f4").tobytes()
        fields.append(b"" if trial.label is None else b"value " + value)
    fields.append(np.array(trial.weight, "<f4").tobytes())
    if trial.words:
        fields.append(b"categories " + json.dumps(own_words(trial), separators=(",", ":")).encode())
    if golden.statics:
        pairs = [[name, trial.attributes.get(name)] for name in golden.statics]
        fields.append(b"statics " + json.dumps(pairs, separators=(",", ":")).encode())
    whole = b"".join(len(part).to_bytes(8, "little") + part for part in fields)
    return str(xxhash.xxh3_128_hexdigest(whole))


def row_times(trial: Trial) -> list[float] | None:
    """When each row was measured."""
    if trial.clock is None or isinstance(trial.clock, list):
        return None if trial.clock is None else [float(t) for t in trial.clock]
    start, step = trial.clock
    return [start + k * step for k in range(len(trial.values))]


def label_code(trial: Trial, golden: Golden) -> float | None:
    """The label of the hot index."""
    if isinstance(trial.label, str):
        return float((golden.target.classes or ()).index(trial.label))
    return trial.label


# --- delivery -------------------------------------------------------------------------------------


def folded_sum(numbers: list[float]) -> float:
    """The sum in the order of SPEC section 5."""
    while len(numbers) > 1:
        half = -(-len(numbers) // 2)
        numbers = [
            a + numbers[i + half] if i + half < len(numbers) else a
            for i, a in enumerate(numbers[:half])
        ]
    return numbers[0]


def window_statistics(method: str, column: Any, length: int) -> tuple[float, float]:
    """Offset and scale of one channel of one window, float64."""
    steps = [float(x) for x in column] + [float("nan")] * (length - len(column))
    known = sorted(x for x in steps if x == x)
    if not known:
        return 0.0, 1.0
    n, low = len(known), known[0]
    if method == "minmax":
        offset, scale = low, known[-1] - low
    elif method == "robust":
        quartiles = []
        for share in (0.25, 0.5, 0.75):
            below = int(share * (n - 1))
            a, b = known[below], known[min(below + 1, n - 1)]
            quartiles.append(a + (b - a) * (share * (n - 1) - below))
        offset, scale = quartiles[1], quartiles[2] - quartiles[0]
    else:
        offset = low + folded_sum([x - low if x == x else 0.0 for x in steps]) / n
        off = [x - offset if x == x else 0.0 for x in steps]
        total, squares = folded_sum(off), folded_sum([e * e for e in off])
        scale = max(0.0, (squares - total * total / n) / n) ** 0.5
    return offset, scale if scale > 1e-30 else 1.0


def row_regime(row: Any, golden: Golden) -> int:
    """The regime of a stored row; their number where it is in none."""
    known = golden.normalize["regimes"]
    best, found = np.float32(np.inf), len(known["centres"])
    for number, centre in enumerate(known["centres"]):
        far = np.float32(0)
        for name, level, spread in zip(known["channels"], centre, known["spread"], strict=True):
            part = (row[golden.channels.index(name)] - np.float32(level)) * np.float32(1 / spread)
            far = far + part * part
        if far < best:
            best, found = far, number
    return found


def constants(trial: Trial, rows: Any, golden: Golden, channel: int) -> list[tuple[float, float]]:
    """Offset and scale (float64) of one channel at each of a window's rows."""
    fit, (method, scope) = golden.normalize, golden.entries[channel]
    train = [(fit[k] if k in fit else [0] * 99)[channel] for k in ("offset", "scale")]
    if scope == "window":
        own = window_statistics(method, rows[:, channel], golden.windows.length)
        return [own] * len(rows)
    if scope == "regime":
        table, out = fit["regimes"], []
        for row in rows:
            at = row_regime(row, golden)
            known = at < len(table["centres"])
            out.append((table["offset"][at][channel], table["scale"][at][channel]) if known else train)
        return [(offset, scale) for offset, scale in out]
    if scope.startswith("group:"):
        table, name = fit["groups"][scope[6:]], trial.attributes.get(scope[6:])
        if name in table["values"]:
            at = table["values"].index(name)
            train = [table[k][at][channel] for k in ("offset", "scale")]
    elif scope != "train":
        train = [0.0, 1.0]
    return [(train[0], train[1])] * len(rows)


def apply(x: Any, offset: float, scale: float) -> Any:
    """Two separately rounded float32 operations."""
    return (np.float32(x) - np.float32(offset)) * np.float32(1 / np.float64(scale))


def delivered_window(number: int, start: int, valid: int, golden: Golden) -> dict[str, Any]:
    """Every tensor's row for one window."""
    trial, length = golden.live[number], golden.windows.length
    rows, n_channels = trial.values[start : start + valid], len(golden.channels)
    kind, scopes = golden.target.kind, [scope for _, scope in golden.entries]
    table = [constants(trial, rows, golden, j) for j in range(n_channels)]
    values = np.zeros((length, n_channels), np.float32)
    for r in range(valid):
        for j in range(n_channels):
            values[r, j] = np.nan_to_num(apply(rows[r, j], *table[j][r]), nan=0.0)
    out = {
        "values": values,
        "valid": np.arange(length) < valid,
        "lengths": np.int64(valid),
        "weights": np.float32(trial.weight),
        "trial": np.int64(number),
        "start": np.int64(start),
    }
    if kind == "forecast":
        places = [golden.channels.index(name) for name in golden.target.columns]
        ahead = target_rows(start, valid, golden)
        out["targets"] = np.array(
            [[apply(trial.values[r, j], *table[j][0]) for j in places] for r in ahead], np.float32
        )
    elif kind == "per_step":
        out["targets"] = np.full((length, trial.targets.shape[1]), NAN)
        out["targets"][:valid] = trial.targets[start : start + valid]
    else:
        code = label_code(trial, golden)
        has_classes = golden.target.classes is not None
        out["targets"] = np.int64(-1 if code is None else code) if has_classes else np.float32(
            np.nan if code is None else code)
    if golden.observed:
        out["observed"] = np.zeros((length, n_channels), np.bool_)
        out["observed"][:valid] = trial.seen[start : start + valid]
    if "regime" in scopes:
        n_regimes = len(golden.normalize["regimes"]["centres"])
        out["regimes"] = np.full(length, n_regimes, np.uint8)
        out["regimes"][:valid] = [row_regime(row, golden) for row in rows]
    if "window" in scopes:
        own = [t[0] if s == "window" else (0, 1) for t, s in zip(table, scopes, strict=True)]
        out["window_offset"] = np.array([offset for offset, _ in own], np.float32)
        out["window_scale"] = np.array([scale for _, scale in own], np.float32)
    return out | delivered_codes(trial, start, valid, golden)


def delivered_codes(trial: Trial, start: int, valid: int, golden: Golden) -> dict[str, Any]:
    """Codes by the vocabularies of train, and static inputs."""
    out: dict[str, Any] = {}
    if golden.codes:
        out["codes"] = np.zeros((golden.windows.length, len(golden.codes)), np.int64)
        for j, (_, vocabulary) in enumerate(golden.codes.values()):
            for r, word in enumerate(trial.words[j][start : start + valid]):
                out["codes"][r, j] = vocabulary.index(word) + 1 if word in vocabulary else 0
    numbers, embedded = [], []
    for name, (encoding, fitted) in golden.statics.items():
        text = (trial.attributes.get(name) or "").strip()
        if encoding == "number":
            mean, sd = fitted
            numbers.append((float(text) - mean) / sd if text else 0.0)
        elif encoding == "one_hot":
            numbers += [float(word == text) for word in fitted]
        else:
            embedded.append(fitted.index(text) + 1 if text in fitted else 0)
    if numbers:
        out["statics"] = np.array(numbers, np.float32)
    if embedded:
        out["static_codes"] = np.array(embedded, np.int64)
    return out


def delivered_epoch(golden: Golden, split: str) -> dict[str, Any]:
    """Every tensor of an epoch in order none: by trial number, then by start; no filler rows."""
    rows = [
        delivered_window(number, start, valid, golden)
        for number, trial in enumerate(golden.live)
        if trial.split == split
        for start, valid in window_starts(len(trial.values), golden)
    ]
    return {name: np.stack([row[name] for row in rows]) for name in (rows[0] if rows else ())}


# --- what is pinned -------------------------------------------------------------------------------


def expected_trial(trial: Trial, golden: Golden) -> dict[str, Any]:
    """What must be found of one trial."""
    arrays = trial_arrays(trial)
    found = {
        "id": trial.id, "split": trial.split, "weight": trial.weight, "label": trial.label,
        "label_code": label_code(trial, golden), "attributes": dict(trial.attributes),
        "trial": trial.trial or trial.id, "segment": trial.segment, "time": row_times(trial),
        "is_regular": isinstance(trial.clock, tuple), "categories": own_words(trial),
        "n_rows": len(trial.values), "n_windows": len(window_starts(len(trial.values), golden)),
        "digest": trial_digest(trial, golden),
        "arrays": {name: pinned(rows) for name, rows in arrays.items()},
    }  # fmt: skip
    if golden.layout == "windows":
        stored = stored_arrays(trial, golden)
        found["stored"] = {name: pinned(rows) for name, rows in stored.items()}
    return found


def expected(golden: Golden) -> dict[str, Any]:
    """What must be found of a store."""
    epochs = {}
    for split in dict.fromkeys(trial.split for trial in golden.live):
        tensors = delivered_epoch(golden, split)
        epochs[split] = {
            name: {"dtype": t.dtype.name, "shape": list(t.shape),
                   "sha256": hashlib.sha256(np.ascontiguousarray(t).tobytes()).hexdigest()}
            for name, t in tensors.items()
        }  # fmt: skip
    return {
        "layout": golden.layout,
        "container": golden.container,
        "tombstones": [vars(stone) for stone in golden.tombstones],
        "trials": [expected_trial(trial, golden) for trial in golden.live],
        "epochs": epochs,
    }
