"""Cut windows are what window arithmetic says, one by one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shards import WindowSpec
from shards.cutting import Cut, cut_windows, join_windows, stored_digest
from shards.windows import count_windows, window_rows

specs = st.builds(
    WindowSpec,
    length=st.integers(1, 9),
    stride=st.integers(1, 11),
    horizon=st.integers(1, 4),
    steps=st.integers(0, 4),
    short=st.sampled_from(["pad", "drop"]),
)
lengths = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def rows_of(n_rows: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n_rows, 3)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    return {
        "values": values,
        "observed": rng.integers(0, 8, (n_rows, 1)).astype(np.uint8),
        "codes": rng.integers(0, 9, (n_rows, 2)).astype(np.uint16),
    }


def slow_window(rows: Any, start: int, n_valid: int, length: int, fill: float) -> Any:
    out = np.full((length, rows.shape[1]), fill, rows.dtype)
    for step in range(n_valid):
        out[step] = rows[start + step]
    return out.reshape(-1)


@given(specs, lengths, st.integers(0, 99), st.booleans())
def test_windows_are_those_cut_one_by_one(windows, lengths, seed, per_step):
    arrays = rows_of(sum(lengths), seed)
    if per_step:
        arrays["targets"] = arrays["values"][:, :2] + 1
    ahead = (2, 0) if windows.steps and not per_step else ()
    n_rows = np.array(lengths)
    got = cut_windows(arrays, n_rows, Cut(windows, ahead))
    wanted: dict[str, list[Any]] = {name: [] for name in got}
    begin = 0
    for n in lengths:
        for number in range(int(count_windows(np.array(n), windows))):
            start, n_valid = (int(x) for x in window_rows(np.array(n), np.array(number), windows))
            for name, rows in arrays.items():
                own, fill = rows[begin : begin + n], np.nan if name == "targets" else 0
                wanted[name].append(slow_window(own, start, n_valid, windows.length, fill))
            if ahead:
                first = begin + start + n_valid + windows.horizon - 1
                assert first + windows.steps <= begin + n
                later = arrays["values"][first : first + windows.steps, [2, 0]]
                wanted["targets"].append(later.reshape(-1))
        begin += n
    assert set(got) == set(arrays) | ({"targets"} if ahead else set())
    for name, rows in wanted.items():
        assert len(got[name]) == count_windows(n_rows, windows).sum()
        assert got[name].flags.c_contiguous
        assert got[name].dtype == (np.float32 if name == "targets" else arrays[name].dtype)
        if rows:
            assert got[name].tobytes() == np.array(rows).tobytes()


@given(specs, st.integers(1, 40), st.integers(0, 99))
def test_joined_windows_are_the_rows_that_lie_in_one(windows, n_rows, seed):
    rows = rows_of(n_rows, seed)["values"]
    cut = cut_windows({"values": rows}, np.array([n_rows]), Cut(windows))
    back = join_windows(cut["values"], n_rows, windows, np.nan)
    inside = np.zeros(n_rows, np.bool_)
    for number in range(len(cut["values"])):
        start, n_valid = window_rows(np.array(n_rows), np.array(number), windows)
        inside[start : start + n_valid] = True
    assert back[inside].tobytes() == rows[inside].tobytes()
    assert np.isnan(back[~inside]).all()


@given(specs, lengths, st.integers(0, 99))
def test_a_trial_is_cut_alike_whatever_lies_beside_it(windows, lengths, seed):
    arrays, n_rows = rows_of(sum(lengths), seed), np.array(lengths)
    ahead = (1,) if windows.steps else ()
    together = cut_windows(arrays, n_rows, Cut(windows, ahead))
    edges = np.cumsum([0, *lengths])
    alone = [
        cut_windows({n: a[b:e] for n, a in arrays.items()}, np.array([e - b]), Cut(windows, ahead))
        for b, e in itertools.pairwise(edges.tolist())
    ]
    for name, rows in together.items():
        assert rows.tobytes() == b"".join(part[name].tobytes() for part in alone)


@given(specs, lengths)
def test_window_bytes_are_what_a_window_takes(windows, lengths):
    arrays, cut = rows_of(sum(lengths), 1), Cut(windows, (0, 1) if windows.steps else ())
    got = cut_windows(arrays, np.array(lengths), cut)
    n_windows = int(count_windows(np.array(lengths), windows).sum())
    assert sum(rows.nbytes for rows in got.values()) == n_windows * cut.window_bytes(arrays)


def test_the_digest_of_windows_tells_any_of_their_bytes_and_names():
    arrays = {"values": np.zeros((2, 3), np.float32), "codes": np.zeros((2, 1), np.uint16)}
    other = {**arrays, "values": arrays["values"].copy()}
    other["values"][1, 2] = -0.0  # equal as a number, not as bytes
    renamed = {"values": arrays["values"], "observed": arrays["codes"]}
    moved = {**arrays, "values": arrays["values"].reshape(3, 2)}
    seen = [stored_digest(a) for a in (arrays, other, renamed, moved, {"values": arrays["values"]})]
    assert len(set(seen)) == len(seen)
    assert stored_digest(dict(reversed(arrays.items()))) == seen[0]
    assert stored_digest({"values": np.zeros((0, 3), np.float32)})
