"""Pictures of a version: what they show is counted by hand, and every odd store gets one."""

from __future__ import annotations

import io
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from stores import make_store
from trialfolders import build_checked, delivered, write_spec, write_trial, write_trials

from pipeline import pictures
from pipeline.canvas import MOST_BYTES, MOST_POINTS, extreme_places
from pipeline.pictures import (
    before_after,
    deliver,
    draw_windows,
    evenly,
    length_edges,
    length_histogram,
    missing_counts,
    missing_map,
    sample_windows,
    uneven_channel,
)
from shards import InvalidSpecError, Store, WindowSpec
from shards.manifest import TargetSchema
from shards.windows import count_windows

ALL: list[Callable[[Store], bytes]] = [
    length_histogram, missing_map, sample_windows, before_after,
]  # fmt: skip
PER_STEP = TargetSchema("per_step", ("y0", "y1"))
CLASSES = TargetSchema("per_trial", ("grade",), ("good", "b$a$d_"))
VALUE = TargetSchema("per_trial", ("dose",))
NONE = {"method": "none"}
BY_TRAIN = {"method": "zscore", "scope": "train"}


def decoded(png: bytes) -> np.ndarray[Any, Any]:
    """Return the pixels of a picture that keeps its promises: a PNG, small, not blank."""
    assert png.startswith(b"\x89PNG")
    assert len(png) <= MOST_BYTES
    image = Image.open(io.BytesIO(png))
    assert image.width == 700
    assert 50 <= image.height <= 700
    assert len(image.getcolors(image.width * image.height)) > 5
    return np.asarray(image.convert("RGB"))


def draw_all(store: Store) -> list[bytes]:
    """Draw every picture: it is fine, and matplotlib complains of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pngs = [picture(store) for picture in ALL]
    for png in pngs:
        decoded(png)
    return pngs


def test_the_same_version_gives_the_same_bytes(tmp_path):
    store = make_store(tmp_path, [30, 20, 9, 1], missing=True, n_shards=2)
    assert draw_all(store) == draw_all(Store(tmp_path))


def built(root: Path, **sections: Any) -> Store:
    return build_checked(write_spec(root, **sections), root / "store")[1]


@pytest.fixture(params=["observed", "nan", "whole"])
def holed(request, tmp_path) -> Store:
    """A version of 30 trials that says what is missing in one of three ways."""
    write_trials(tmp_path, 30, missing=0.0 if request.param == "whole" else 0.2)
    clean = {"missing": "none", "then": "mask", "drop_trial_if_missing": 1.0}
    return built(tmp_path, clean={**clean, "observed": request.param == "observed"})


def absent_by_hand(store: Store, trial: int) -> np.ndarray[Any, Any]:
    """Return `[rows, channels]`, bit by bit as SPEC section 4 says."""
    if not store.manifest.observed:
        return np.isnan(store.trial_rows(trial))
    packed = store.trial_rows(trial, "observed")
    bits = [packed[:, j // 8] >> (j % 8) & 1 for j in range(len(store.manifest.channels))]
    return np.stack(bits, axis=1) == 0


@pytest.mark.parametrize("most", [1, 7, 30, 200])
def test_missing_counts_are_those_counted_by_hand(holed, most, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_BINS", most)
    monkeypatch.setattr(pictures, "BLOCK_ROWS", 7)
    missing, n_rows, counted = missing_counts(holed)
    assert missing.shape == (2, min(most, 30))
    assert counted.sum() == 30
    assert counted.max() - counted.min() <= 1
    first = np.concatenate([[0], np.cumsum(counted)])
    for place in range(len(counted)):
        parts = [absent_by_hand(holed, t) for t in range(first[place], first[place + 1])]
        assert missing[:, place].tolist() == np.concatenate(parts).sum(axis=0).tolist()
        assert n_rows[place] == sum(len(part) for part in parts)
    decoded(missing_map(holed))


@pytest.mark.parametrize("limit", ["MOST_TRIALS", "MOST_VALUES"])
def test_of_many_or_long_trials_a_sample_is_counted(tmp_path, limit, monkeypatch):
    store = make_store(tmp_path, [5, 6, 7, 8, 9, 10, 11, 12], missing=True, n_shards=3)
    monkeypatch.setattr(pictures, limit, 3 if limit == "MOST_TRIALS" else 3 * 3 * 9)
    missing, n_rows, counted = missing_counts(store)
    assert counted.tolist() == [1, 1, 1]
    assert n_rows.tolist() == [5, 8, 12]  # trials 0, 3 and 7
    by_hand = [absent_by_hand(store, trial).sum(axis=0) for trial in (0, 3, 7)]
    assert missing.T.tolist() == np.stack(by_hand).tolist()
    decoded(missing_map(store))


def test_a_version_without_a_hole_is_said_to_have_none(tmp_path):
    whole = missing_map(make_store(tmp_path / "whole", [20, 30]))
    holed = missing_map(make_store(tmp_path / "holed", [20, 30], missing=True))
    assert decoded(whole).shape[0] < 100 < decoded(holed).shape[0]


@given(n=st.integers(0, 10_000), most=st.integers(1, 300))
def test_an_even_choice_rises_and_holds_both_ends(n, most):
    chosen = evenly(n, most)
    assert len(chosen) == min(n, most)
    assert (np.diff(chosen) > 0).all()
    if n:
        assert chosen[0] == 0
        assert chosen[-1] == (n - 1 if most > 1 else 0)


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=50), st.integers(1, 10**5))
def test_every_length_lies_in_one_bar_and_the_axis_shows_the_window(lengths, need):
    edges = length_edges(np.array(lengths), need)
    assert (np.diff(edges) > 0).all()
    assert len(edges) <= pictures.MOST_BARS + 2
    assert np.histogram(lengths, edges)[0].sum() == len(lengths)
    assert edges[0] <= need < edges[-1]
    assert edges[0] <= min(lengths) <= max(lengths) < edges[-1]


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32) | st.just(float("nan"))


@given(arrays(np.float32, st.integers(0, 500), elements=FLOATS), st.integers(2, 100))
def test_a_thinned_line_keeps_peak_trough_order_and_wide_gaps(line, most):
    places = extreme_places(line, most)
    assert (np.diff(places) > 0).all()
    assert len(places) <= max(most, 2)
    drawn = line[places]
    if np.isnan(line).all():
        assert np.isnan(drawn).all()
    else:
        assert np.nanmin(drawn) == np.nanmin(line)
        assert np.nanmax(drawn) == np.nanmax(line)
    if len(line) <= most:
        assert len(places) == len(line)
    else:
        size = -(-len(line) // (most // 2))
        for start in range(0, len(line), size):
            if np.isnan(line[start : start + size]).all():
                assert start in places


def test_windows_are_those_of_train_without_repetition(tmp_path):
    lengths, splits = [3, 40, 7, 5, 30], ["train", "test", "train", "val", "train"]
    spec = WindowSpec(length=4, stride=3, steps=2, horizon=2)
    store = make_store(tmp_path, lengths, splits=splits, windows=spec)
    windows = draw_windows(store, 10**6, 0)
    wanted = [
        (trial, number * 3, min(4, lengths[trial] - 3))
        for trial in (0, 2, 4)
        for number in range(int(count_windows(np.array(lengths[trial]), spec)))
    ]
    assert windows == wanted
    assert draw_windows(store, 3, 5) == draw_windows(store, 3, 5)
    assert len(set(draw_windows(store, 3, 5)) & set(wanted)) == 3
    assert len({tuple(draw_windows(store, 3, seed)) for seed in range(20)}) > 1
    assert sample_windows(store, seed=1) != sample_windows(store, seed=2)


@pytest.mark.parametrize("normalize", [NONE, BY_TRAIN, {"method": "minmax", "scope": "trial"}])
def test_lines_are_what_a_model_gets(tmp_path, normalize):
    write_trials(tmp_path, 12, missing=0.1)
    clean = {"missing": "none", "then": "mask", "drop_trial_if_missing": 1.0}
    store = built(tmp_path, normalize=normalize, clean=clean)
    for number, wanted in enumerate(delivered(store).values()):
        got = deliver(store, number)
        assert got.dtype == np.float32
        assert np.array_equal(np.isnan(got), np.isnan(store.trial_rows(number)))
        assert np.array_equal(np.nan_to_num(got), wanted)


def test_the_most_uneven_channel_is_found_in_any_unit(tmp_path):
    rng = np.random.default_rng(0)
    for trial in range(8):
        noise = rng.normal(0, 1, (40, 3))
        columns = {
            "empty": np.full(40, np.nan),
            "fixed": np.full(40, 10.0 * trial),  # a setting: no normalization shows on it
            "large": 1e6 * noise[:, 0],
            "drift": 1e-3 * (noise[:, 1] + 9 * trial),
            "small": noise[:, 2] + trial,
        }
        write_trial(tmp_path, f"t{trial}", columns)
    for name, scope in (("a", "train"), ("b", "trial")):
        spec = write_spec(
            tmp_path, channels=["empty", "fixed", "large", "drift", "small"],
            normalize={"method": "zscore", "scope": scope}, clean={"then": "mask"},
            windows={"target": {"channels": ["drift"]}},
        )  # fmt: skip
        store = build_checked(spec, tmp_path / name)[1]
        assert store.manifest.channels[uneven_channel(store)].name == "drift"
    assert draw_all(store)[ALL.index(before_after)] == before_after(store, channel="drift")
    for channel in ("empty", "fixed"):
        decoded(before_after(store, channel=channel, n=9))


def test_an_unknown_channel_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(InvalidSpecError, match=r"'c9'.*c0, c1, c2"):
        before_after(make_store(tmp_path, [20]), channel="c9")


@pytest.mark.parametrize(
    ("lengths", "options"),
    [
        ([20], {}),
        ([1], {}),
        ([3], {}),  # shorter than a window: padded
        ([4, 4, 4], {"windows": WindowSpec(length=9, steps=1, short="drop")}),
        ([20, 30], {"splits": ["test", "val"]}),
        ([10, 10_000], {"windows": WindowSpec(length=5_000, stride=7, steps=3, horizon=9)}),
        ([30, 40], {"n_channels": 45, "missing": True}),
        ([30, 40], {"n_channels": 130, "missing": True}),
        ([30, 3], {"target": PER_STEP, "scale": (5.0, 2.0), "missing": True}),
        ([30, 3], {"target": CLASSES, "labels": [1, 0]}),
        ([30, 3], {"target": VALUE, "labels": [1.5, float("nan")]}),
        ([9] * 300, {"missing": True, "n_shards": 7}),
        ([30, 3, 40], {"layout": "windows", "windows": WindowSpec(4, stride=9, steps=1)}),
        ([30, 3], {"layout": "windows", "target": PER_STEP, "missing": True}),
        ([30, 3], {"layout": "windows", "target": CLASSES, "labels": [1, 0]}),
    ],
)
def test_every_odd_store_has_its_pictures(tmp_path, lengths, options):
    draw_all(make_store(tmp_path, lengths, **options))


def test_names_are_drawn_as_they_are_written(tmp_path):
    names = ["_hidden", "$x$", "a$_{", "größe/µm", "字", "tab\there", "n" * 90]
    rng = np.random.default_rng(0)
    for trial in ("_t", "$a_$", "Übung$", "漢字", "x" * 80, "l^{$"):
        write_trial(tmp_path, trial, {name: rng.normal(0, 1, 20) for name in names})
    split = {"fractions": {"train": 1.0}}
    target = {"kind": "forecast", "channels": ["$x$", "_hidden"]}
    store = built(tmp_path, channels=names, windows={"target": target}, split=split)
    assert len(store.index) == 6
    draw_all(store)
    for name in ("字", "n" * 90):
        decoded(before_after(store, channel=name, n=6))


def test_a_peak_in_a_long_trial_stays_on_the_page(tmp_path):
    x = np.zeros(50_000)
    x[31_234] = 1e3
    write_trial(tmp_path, "t", {"x": x, "y": x})
    write_trial(tmp_path, "u", {"x": x, "y": x + 1})
    store = built(tmp_path, normalize=NONE, split={"fractions": {"train": 1.0}})
    line = deliver(store, 0)[:, 0]
    assert line[extreme_places(line, MOST_POINTS)].max() == 1e3
    decoded(before_after(store))


def seconds_of(work: Callable[[Store], Any], store: Store) -> float:
    """Return the lesser of two runs: others use this machine, too."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        work(store)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def peak_bytes(work: Callable[[Store], Any], store: Store) -> int:
    """Return the most bytes held at once."""
    tracemalloc.start()
    try:
        work(store)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_more_trials_than_the_sample_cost_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_TRIALS", 500)
    few = make_store(tmp_path / "few", [3] * 500, missing=True, n_shards=4)
    many = make_store(tmp_path / "many", [3] * 4_000, missing=True, n_shards=4)
    for work in (missing_counts, uneven_channel, partial(draw_windows, n=4, seed=0)):
        work(few)  # what is read once is no matter here
        assert seconds_of(work, many) < 4 * seconds_of(work, few) + 0.01, work
        assert peak_bytes(work, many) < 2 * peak_bytes(work, few) + 1e6, work
    draw_all(many)
    assert missing_counts(many)[2].sum() == 500


def test_a_build_needs_no_picture():
    program = "import sys, pipeline.build; assert not {'matplotlib', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
