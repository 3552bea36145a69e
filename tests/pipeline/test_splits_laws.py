"""Laws that every split method keeps, whatever the trials, groups, times and strata."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.sections import SplitSpec
from pipeline.splits import assign_splits, split_names
from shards.errors import InvalidSpecError

METHODS = ["hash", "exact", "attribute", "time", "folds", "leave_one_out"]


@st.composite
def trial_sets(draw: Any, min_size: int = 1, max_size: int = 40) -> dict[str, Any]:
    """Trials with a subject, a label, a told split per subject, and a span on whole numbers."""
    n = draw(st.integers(min_size, max_size))
    subjects = draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    starts = draw(st.lists(st.integers(0, 100), min_size=n, max_size=n))
    lengths = draw(st.lists(st.integers(0, 20), min_size=n, max_size=n))
    return {
        "ids": [f"t{i}" for i in range(n)],
        "subject": [f"s{s}" for s in subjects],
        "label": draw(st.lists(st.sampled_from("abc"), min_size=n, max_size=n)),
        "part": [("train", "test", "dev")[s % 3] for s in subjects],
        "spans": np.array([[s, s + k] for s, k in zip(starts, lengths, strict=True)], float),
    }


@st.composite
def specs(draw: Any, *methods: str, stratified: bool | None = None) -> SplitSpec:
    """Any method with any of its options, over the attributes of `trial_sets`."""
    method = draw(st.sampled_from(methods or METHODS))
    by = "subject" if method == "leave_one_out" else draw(st.sampled_from(["trial", "subject"]))
    spec: dict[str, Any] = {"method": method, "by": by, "seed": draw(st.integers(0, 3))}
    wanted = draw(st.booleans()) if stratified is None else stratified
    if method in ("exact", "folds") and wanted:
        spec["stratify"] = "label"
    if method == "attribute":
        spec["attribute"] = "part"
    if method == "time":
        begins = sorted(draw(st.sets(st.integers(1, 110), min_size=1, max_size=3)))
        spec["boundaries"] = dict(zip(["val", "test", "last"], begins, strict=False))
        spec["purge"] = draw(st.one_of(st.none(), st.integers(1, 20)))
    if method == "folds":
        spec["folds"] = draw(st.integers(2, 6))
        spec["fold"] = draw(st.integers(0, spec["folds"] - 1))
    if method == "leave_one_out":
        spec["held_out"] = f"s{draw(st.integers(0, 5))}"
    if draw(st.booleans()):
        spec["validation"] = {"fraction": draw(st.floats(0.05, 1)), "name": "late"}
    return SplitSpec.model_validate(spec)


def assign(trials: dict[str, Any], spec: SplitSpec, rows: list[int] | None = None) -> list[str]:
    """Return the split of each row; by default every trial is one row."""
    rows = list(range(len(trials["ids"]))) if rows is None else rows
    attributes = {
        name: [trials[name][row] for row in rows] for name in ("subject", "label", "part")
    }
    ids = [trials["ids"][row] for row in rows]
    return assign_splits(ids, attributes, spec, spans=trials["spans"][rows].reshape(-1, 2))


def assign_or_assume(trials: dict[str, Any], spec: SplitSpec) -> list[str]:
    """Pass over trials that the method refuses."""
    try:
        return assign(trials, spec)
    except InvalidSpecError:
        assume(False)
        raise


def groups_of(trials: dict[str, Any], spec: SplitSpec) -> list[str]:
    return trials["ids"] if spec.by == "trial" else trials["subject"]


def strata_of(trials: dict[str, Any], spec: SplitSpec) -> dict[str, str]:
    """Return group -> the label that most of its trials have, the smallest of equals."""
    groups = groups_of(trials, spec)
    out = {}
    for group in set(groups):
        labels = [v for g, v in zip(groups, trials["label"], strict=True) if g == group]
        out[group] = min(labels, key=lambda v: (-labels.count(v), v)) if spec.stratify else ""
    return out


# --- all methods ------------------------------------------------------------------------------


@given(trial_sets(), specs())
def test_every_trial_has_one_split_that_has_a_code(trials: dict[str, Any], spec: SplitSpec):
    sides = assign_or_assume(trials, spec)
    assert len(sides) == len(trials["ids"])
    names = split_names(sides, spec)
    assert set(sides) <= set(names)
    assert len(set(names)) == len(names)


@given(trial_sets(), specs())
def test_no_group_is_torn(trials: dict[str, Any], spec: SplitSpec):
    sides = assign_or_assume(trials, spec)
    of_group: dict[str, set[str]] = {}
    for group, side in zip(groups_of(trials, spec), sides, strict=True):
        of_group.setdefault(group, set()).add(side)
    assert all(len(found) == 1 for found in of_group.values())


@given(trial_sets(), specs(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(trials: dict[str, Any], spec: SplitSpec, random: Any):
    rows = random.sample(range(len(trials["ids"])), len(trials["ids"]))
    try:
        sides = assign(trials, spec)
    except InvalidSpecError:
        with pytest.raises(InvalidSpecError):
            assign(trials, spec, rows)
        return
    assert assign(trials, spec, rows) == [sides[row] for row in rows]


@given(trial_sets(max_size=20), specs(), st.data())
def test_segments_are_one_trial_and_count_once(trials: dict[str, Any], spec: SplitSpec, data: Any):
    n = len(trials["ids"])
    sides = assign_or_assume(trials, spec)
    again = data.draw(st.lists(st.integers(0, n - 1), max_size=30))
    rows = data.draw(st.permutations([*range(n), *again]))
    assert assign(trials, spec, rows) == [sides[row] for row in rows]


@given(trial_sets(), specs())
def test_without_a_carve_there_is_nothing_but_what_was_asked_for(
    trials: dict[str, Any], spec: SplitSpec
):
    """A carve moves groups from its split to its name, and no other."""
    whole = spec.model_copy(update={"validation": None})
    before, after = assign_or_assume(trials, whole), assign_or_assume(trials, spec)
    for old, new in zip(before, after, strict=True):
        assert new == old or (old, new) == ("train", "late")


# --- hash -------------------------------------------------------------------------------------


@given(trial_sets(), specs("hash"), st.data())
def test_a_trial_keeps_its_side_when_others_come_or_go(
    trials: dict[str, Any], spec: SplitSpec, data: Any
):
    sides = assign(trials, spec)
    rows = sorted(data.draw(st.sets(st.integers(0, len(sides) - 1))))
    assert assign(trials, spec, rows) == [sides[row] for row in rows]


# --- exact ------------------------------------------------------------------------------------


def counts_by_stratum(
    trials: dict[str, Any], spec: SplitSpec, sides: list[str]
) -> dict[str, Counter[str]]:
    """Return stratum -> groups per split."""
    of_group = dict(zip(groups_of(trials, spec), sides, strict=True))
    out: dict[str, Counter[str]] = {}
    for group, stratum in strata_of(trials, spec).items():
        out.setdefault(stratum, Counter())[of_group[group]] += 1
    return out


@given(trial_sets(max_size=60), specs("exact"), st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_strata_are_shared_out_within_one_of_proportion(
    trials: dict[str, Any], spec: SplitSpec, parts: list[int]
):
    assume(sum(parts) > 0)
    fractions = {f"p{i}": part / sum(parts) for i, part in enumerate(parts)}
    spec = spec.model_copy(update={"fractions": fractions, "validation": None})
    total: Counter[str] = Counter()
    for counts in counts_by_stratum(trials, spec, assign(trials, spec)).values():
        total += counts
        for name, share in fractions.items():
            exact = share * counts.total()
            assert math.floor(exact + 1e-6) <= counts[name] <= math.ceil(exact - 1e-6)
    # Rounding is paid back in the next stratum, so that the whole is in proportion too.
    assert all(abs(total[name] - share * total.total()) < 2 for name, share in fractions.items())


def test_small_strata_do_not_leave_small_splits_empty():
    """Strata of three groups, each rounded alone, would give every group to train."""
    n = 300
    labels = [f"k{i // 3:03d}" for i in range(n)]
    spec = SplitSpec(method="exact", stratify="label")
    sides = assign_splits([f"t{i}" for i in range(n)], {"label": labels}, spec)
    assert Counter(sides) == {"train": 240, "val": 30, "test": 30}


@given(trial_sets(max_size=60), specs("exact", "folds", stratified=True), st.floats(0.05, 0.95))
def test_a_stratified_carve_is_within_one_of_proportion(
    trials: dict[str, Any], spec: SplitSpec, fraction: float
):
    whole = spec.model_copy(update={"validation": None})
    carve = SplitSpec.model_validate(
        {**whole.model_dump(), "validation": {"name": "late", "fraction": fraction}}
    )
    before = counts_by_stratum(trials, whole, assign_or_assume(trials, whole))
    after = counts_by_stratum(trials, carve, assign_or_assume(trials, carve))
    for stratum, counts in before.items():
        exact = counts["train"] * fraction
        assert math.floor(exact + 1e-6) <= after[stratum]["late"] <= math.ceil(exact - 1e-6)
        assert after[stratum]["late"] + after[stratum]["train"] == counts["train"]


# --- folds and leave one out ------------------------------------------------------------------


@given(trial_sets(max_size=60), specs("folds"))
def test_every_group_is_tested_in_exactly_one_fold(trials: dict[str, Any], spec: SplitSpec):
    spec = spec.model_copy(update={"validation": None})
    groups = groups_of(trials, spec)
    assume(len(set(groups)) >= spec.folds)
    folds = [
        {g for g, side in zip(groups, assign(trials, one), strict=True) if side == "test"}
        for one in (spec.model_copy(update={"fold": fold}) for fold in range(spec.folds))
    ]
    assert sorted(group for fold in folds for group in fold) == sorted(set(groups))
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    strata = strata_of(trials, spec)
    for stratum in set(strata.values()):
        sizes = [sum(strata[group] == stratum for group in fold) for fold in folds]
        assert max(sizes) - min(sizes) <= 1


@given(trial_sets(), specs("leave_one_out"))
def test_leaving_each_out_in_turn_tests_every_group_once(trials: dict[str, Any], spec: SplitSpec):
    subjects = sorted(set(trials["subject"]))
    assume(len(subjects) > 1)
    tested: Counter[str] = Counter()
    for subject in subjects:
        one = spec.model_copy(update={"held_out": subject, "validation": None})
        sides = assign(trials, one)
        tested.update(t for t, side in zip(trials["ids"], sides, strict=True) if side == "test")
        assert {s for s, side in zip(trials["subject"], sides, strict=True) if side == "test"} == {
            subject
        }
    assert tested == Counter(trials["ids"])


# --- time -------------------------------------------------------------------------------------


@given(trial_sets(), specs("time"))
def test_spans_lie_in_their_interval_and_end_before_the_purge(
    trials: dict[str, Any], spec: SplitSpec
):
    spec = spec.model_copy(update={"validation": None})
    sides = assign_or_assume(trials, spec)
    begins = [-math.inf, *spec.boundaries.values(), math.inf]
    purge = spec.purge.amount if spec.purge else 0.0
    for side, (first, last) in zip(sides, trials["spans"], strict=True):
        if side != "purged":
            place = ["train", *spec.boundaries].index(side)
            assert begins[place] <= first <= last < begins[place + 1]
            assert last <= begins[place + 1] - purge


@given(trial_sets(), specs("time"))
def test_nothing_is_purged_without_a_reason(trials: dict[str, Any], spec: SplitSpec):
    sides = assign_or_assume(trials, spec)
    purge = spec.purge.amount if spec.purge else 0.0
    groups = groups_of(trials, spec)
    for group, side in zip(groups, sides, strict=True):
        if side == "purged":
            of_group = trials["spans"][[g == group for g in groups]]
            first, last = of_group[:, 0].min(), of_group[:, 1].max()
            assert any(
                first < begin and (last >= begin or last > begin - purge)
                for begin in spec.boundaries.values()
            )


@given(trial_sets(), specs("time"))
def test_no_earlier_split_reaches_into_a_later_one(trials: dict[str, Any], spec: SplitSpec):
    """Whatever is trained on has ended, purge included, before a later split begins."""
    sides = np.array(assign_or_assume(trials, spec.model_copy(update={"validation": None})))
    purge = spec.purge.amount if spec.purge else 0.0
    order = ["train", *spec.boundaries]
    for i, earlier in enumerate(order):
        for later in order[i + 1 :]:
            ends = trials["spans"][sides == earlier, 1]
            starts = trials["spans"][sides == later, 0]
            if ends.size and starts.size:
                assert ends.max() + purge <= starts.min()
