"""Splits: total, disjoint, stable, and decided by ids and attributes alone."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sections import SplitSpec
from pipeline.splits import assign_splits, split_names
from shards.errors import InvalidSpecError

ids = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=60)
percents = st.lists(st.integers(0, 100), min_size=1, max_size=4).filter(any)


def fractions_of(parts: list[int]) -> dict[str, float]:
    return {f"s{i}": part / sum(parts) for i, part in enumerate(parts)}


def assign(
    trials: list[str], attributes: dict[str, Any] | None = None, **spec: Any
) -> dict[str, str]:
    splits = assign_splits(trials, attributes or {}, SplitSpec.model_validate(spec))
    assert len(splits) == len(trials)
    return dict(zip(trials, splits, strict=True))


# --- laws of every method ---------------------------------------------------------------------


@given(ids, percents, st.sampled_from(["hash", "exact"]), st.integers(0, 5))
def test_every_trial_is_in_exactly_one_split_of_a_share_above_zero(
    names: list[str], parts: list[int], method: str, seed: int
):
    fractions = fractions_of(parts)
    sides = assign(names, fractions=fractions, method=method, seed=seed)
    assert set(sides) == set(names)
    assert set(sides.values()) <= {name for name, share in fractions.items() if share > 0}


@given(ids, st.sampled_from(["hash", "exact"]), st.randoms(use_true_random=False))
def test_the_order_of_trials_does_not_matter(names: list[str], method: str, random: Any):
    shuffled = random.sample(names, len(names))
    assert assign(names, method=method) == assign(shuffled, method=method)


# --- hash -------------------------------------------------------------------------------------


@given(ids, ids, percents, st.integers(0, 5))
def test_adding_trials_never_moves_an_old_one(
    old: list[str], new: list[str], parts: list[int], seed: int
):
    both = list(dict.fromkeys([*old, *new]))
    spec = {"fractions": fractions_of(parts), "seed": seed}
    before, after = assign(old, **spec), assign(both, **spec)
    assert all(after[name] == side for name, side in before.items())


def test_a_larger_first_split_only_takes():
    """Moving a boundary moves the trials next to it, and no other."""
    names = [f"t{i}" for i in range(500)]
    small = assign(names, fractions={"train": 0.6, "test": 0.4})
    large = assign(names, fractions={"train": 0.8, "test": 0.2})
    assert all(large[name] == "train" for name, side in small.items() if side == "train")


def test_shares_are_met_and_seeds_differ():
    names = [f"s{i % 12:02d}/trial_{i:04d}" for i in range(6000)]
    sides = [assign(names, seed=seed) for seed in range(3)]
    for side in sides:
        counts = Counter(side.values())
        for name, share in {"train": 0.8, "val": 0.1, "test": 0.1}.items():
            sd = math.sqrt(6000 * share * (1 - share))
            assert abs(counts[name] - 6000 * share) < 5 * sd
    # Independent draws agree on .8^2 + .1^2 + .1^2 of the trials.
    agreed = sum(sides[0][name] == sides[1][name] for name in names) / len(names)
    assert abs(agreed - 0.66) < 0.04


def test_sides_are_pinned():
    """Another hash would move trials between train and test of every store that exists."""
    sides = assign([f"t{i}" for i in range(30)])
    assert "".join(side[1] for side in sides.values()) == PINNED


PINNED = "rrrrrrarrrrrerrerrarrrrrerrrrr"


# --- groups -----------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=60),
    st.sampled_from(["hash", "exact"]),
    st.booleans(),
    st.integers(0, 9),
)
def test_a_group_is_never_cut(subjects: list[int], method: str, carve: bool, seed: int):
    names = [f"t{i}" for i in range(len(subjects))]
    column = [f"s{s}" for s in subjects]
    validation = {"of": "train", "name": "late", "fraction": 0.5} if carve else None
    sides = assign(
        names, {"subject": column}, by="subject", method=method, seed=seed, validation=validation
    )
    of_group: dict[str, set[str]] = {}
    for name, subject in zip(names, column, strict=True):
        of_group.setdefault(subject, set()).add(sides[name])
    assert all(len(found) == 1 for found in of_group.values())


def test_an_unknown_attribute_is_refused_with_what_there_is():
    with pytest.raises(
        InvalidSpecError,
        match=r"split\.by: 1 of 1 trials have no attribute 'subjct', such as 'a'.*has: arm, day",
    ):
        assign(["a"], {"day": ["1"], "arm": ["x"]}, by="subjct")
    with pytest.raises(InvalidSpecError, match=r"split\.attribute: .*has: none.*trial_id"):
        assign(["a"], method="attribute", attribute="part")


# --- exact ------------------------------------------------------------------------------------


def largest_remainder(n: int, parts: list[int]) -> list[int]:
    exact = [Fraction(n * part, sum(parts)) for part in parts]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: (-(exact[i] - counts[i]), i))
    for i in by_remainder[: n - sum(counts)]:
        counts[i] += 1
    return counts


@given(st.integers(0, 300), percents, st.integers(0, 3))
def test_exact_counts_are_those_of_the_largest_remainder(n: int, parts: list[int], seed: int):
    names = [f"t{i}" for i in range(n)]
    sides = assign(names, fractions=fractions_of(parts), method="exact", seed=seed)
    counts = Counter(sides.values())
    got = [counts[f"s{i}"] for i in range(len(parts))]
    wanted = largest_remainder(n, parts)
    assert sum(got) == n
    # Remainders that are equal as fractions may differ in the last bit as floats.
    remainders = [Fraction(n * p, sum(parts)) % 1 for p in parts]
    if len(set(remainders)) == len(remainders):
        assert got == wanted
    else:
        assert all(abs(g - w) <= 1 for g, w in zip(got, wanted, strict=True))


@pytest.mark.parametrize("n", [10, 20, 100, 1000, 70, 110])
def test_tenths_are_exact(n: int):
    counts = Counter(assign([f"t{i}" for i in range(n)], method="exact").values())
    assert counts == {"train": n * 8 // 10, "val": n // 10, "test": n // 10}


def test_exact_counts_groups_not_trials():
    names, subjects = [f"t{i}" for i in range(40)], [f"s{i % 10}" for i in range(40)]
    sides = assign(names, {"subject": subjects}, by="subject", method="exact")
    assert Counter(sides.values()) == {"train": 32, "val": 4, "test": 4}


# --- attribute --------------------------------------------------------------------------------


def test_the_data_say_the_split():
    sides = assign(["a", "b", "c"], {"part": ["train", "test", "train"]}, method="attribute",
                   attribute="part")  # fmt: skip
    assert sides == {"a": "train", "b": "test", "c": "train"}


def test_names_map_values_and_an_unknown_value_is_refused():
    spec = {
        "method": "attribute",
        "attribute": "day",
        "names": {"1": "train", "2": "train", "3": "test"},
    }
    assert assign(["a", "b", "c"], {"day": ["1", "3", "2"]}, **spec) == {
        "a": "train",
        "b": "test",
        "c": "train",
    }
    with pytest.raises(InvalidSpecError, match=r"'day' has the value '4'.*known: 1, 2, 3"):
        assign(["a"], {"day": ["4"]}, **spec)
    with pytest.raises(
        InvalidSpecError,
        match=r"split\.attribute: 1 of 2 trials have no attribute 'day', such as 'b'",
    ):
        assign(["a", "b"], {"day": ["1", None]}, **spec)


@pytest.mark.parametrize(
    ("where", "spec"),
    [
        ("split.attribute", {"method": "attribute", "attribute": "part"}),
        ("split.by", {"by": "part"}),
        ("split.by", {"by": "part", "method": "exact"}),
    ],
)
def test_a_trial_without_the_attribute_has_no_split(where: str, spec: dict[str, str]):
    with pytest.raises(
        InvalidSpecError,
        match=rf"{where}: 2 of 3 trials have no attribute 'part', such as 'b'; .*has: day, part",
    ):
        assign(["a", "b", "c"], {"part": ["train", None, None], "day": ["1", "2", None]}, **spec)


# --- validation -------------------------------------------------------------------------------


@given(ids, st.sampled_from(["hash", "exact"]), st.floats(0.05, 1), st.integers(0, 4))
def test_validation_is_carved_from_its_split_alone(
    names: list[str], method: str, fraction: float, seed: int
):
    spec = {"method": method, "fractions": {"train": 0.6, "test": 0.4}, "seed": seed}
    whole = assign(names, **spec)
    carved = assign(names, **spec, validation={"of": "train", "name": "v", "fraction": fraction})
    for name, side in carved.items():
        assert side == whole[name] or (side == "v" and whole[name] == "train")


def test_validation_has_its_share_and_is_independent_of_the_split():
    names = [f"t{i}" for i in range(4000)]
    spec = {"fractions": {"train": 0.5, "test": 0.5}}
    sides = assign(names, **spec, validation={"fraction": 0.2})
    train = [name for name, side in assign(names, **spec).items() if side == "train"]
    carved = [name for name in train if sides[name] == "val"]
    assert abs(len(carved) / len(train) - 0.2) < 0.04
    assert set(sides.values()) == {"train", "val", "test"}
    everything = assign(names, **spec, validation={"fraction": 1.0})
    assert all(everything[name] == "val" for name in train)


@pytest.mark.parametrize("method", ["hash", "exact"])
def test_validation_of_a_split_that_the_specification_lacks_is_refused_in_it(method: str):
    with pytest.raises(ValueError, match=r"validation\.of: got 'dev'; wanted one of train, test"):
        SplitSpec.model_validate(
            {
                "method": method,
                "fractions": {"train": 0.5, "test": 0.5},
                "validation": {"of": "dev"},
            }
        )


def test_validation_of_a_split_that_the_data_lack_is_refused_when_they_are_known():
    spec = {"method": "attribute", "attribute": "part", "validation": {"of": "dev"}}
    with pytest.raises(
        InvalidSpecError, match=r"validation\.of: no trial is in split 'dev'.*test, train"
    ):
        assign(["a", "b"], {"part": ["train", "test"]}, **spec)
    assert set(assign(["a"], {"part": ["dev"]}, **spec).values()) <= {"dev", "val"}


@given(ids, ids)
def test_adding_trials_moves_none_into_validation(old: list[str], new: list[str]):
    spec = {"validation": {"fraction": 0.4}}
    before, after = assign(old, **spec), assign(list(dict.fromkeys([*old, *new])), **spec)
    assert all(after[name] == side for name, side in before.items())


# --- stratified -------------------------------------------------------------------------------


def test_a_group_belongs_to_the_stratum_that_most_of_its_trials_have():
    """Two subjects of each majority: exact halves give each side one of both."""
    names = [f"t{i}" for i in range(12)]
    subjects = ["p", "p", "p", "q", "q", "q", "r", "r", "r", "s", "s", "s"]
    labels = ["a", "a", "b", "a", "a", "b", "b", "b", "a", "b", "b", "a"]
    spec = {"method": "exact", "by": "subject", "stratify": "label"}
    for seed in range(10):
        sides = assign(
            names,
            {"subject": subjects, "label": labels},
            **spec,
            seed=seed,
            fractions={"train": 0.5, "test": 0.5},
        )
        of_subject = dict(zip(subjects, sides.values(), strict=True))
        assert {of_subject["p"], of_subject["q"]} == {"train", "test"}
        assert {of_subject["r"], of_subject["s"]} == {"train", "test"}


def test_equal_votes_go_to_the_smallest_value():
    names, subjects = ["t0", "t1", "t2", "t3"], ["p", "p", "q", "q"]
    for seed in range(10):
        sides = assign(
            names,
            {"subject": subjects, "label": ["b", "a", "a", "a"]},
            by="subject",
            method="exact",
            stratify="label",
            seed=seed,
            fractions={"train": 0.5, "test": 0.5},
        )
        assert sorted(sides.values()) == ["test", "test", "train", "train"]


def test_a_stratified_carve_takes_its_share_of_each_value():
    names = [f"t{i}" for i in range(100)]
    labels = ["rare" if i < 20 else "common" for i in range(100)]
    sides = assign(
        names,
        {"label": labels},
        method="exact",
        stratify="label",
        fractions={"train": 0.5, "test": 0.5},
        validation={"fraction": 0.2},
    )
    counts = Counter(zip(labels, sides.values(), strict=True))
    assert counts == {
        ("rare", "train"): 8, ("rare", "val"): 2, ("rare", "test"): 10,
        ("common", "train"): 32, ("common", "val"): 8, ("common", "test"): 40,
    }  # fmt: skip


def test_a_trial_without_its_stratum_is_refused():
    with pytest.raises(
        InvalidSpecError,
        match=r"split\.stratify: 1 of 2 trials have no attribute 'label', such as 'b'",
    ):
        assign(["a", "b"], {"label": ["x", None]}, method="exact", stratify="label")


# --- folds and leave one out ------------------------------------------------------------------


def test_folds_are_pinned():
    """A comparison over folds is only one if every machine deals the same."""
    names = [f"t{i}" for i in range(12)]
    folds = [assign(names, method="folds", folds=3, fold=fold) for fold in range(3)]
    dealt = "".join(str([f[name] for f in folds].index("test")) for name in names)
    assert dealt == PINNED_FOLDS


PINNED_FOLDS = "022011221100"


def test_more_folds_than_groups_are_refused():
    with pytest.raises(
        InvalidSpecError, match=r"split\.folds: got 5, but there are 2 groups \(split\.by 's'\)"
    ):
        assign(["a", "b", "c"], {"s": ["x", "y", "y"]}, method="folds", by="s")


def test_a_carve_that_takes_all_of_train_is_refused():
    with pytest.raises(InvalidSpecError, match=r"split\.validation\.fraction: nothing is left to"):
        assign(["a", "b", "c"], method="folds", folds=3, validation={"fraction": 1.0})


def test_one_value_is_held_out():
    subjects = {"subject": ["x", "y", "z", "y"]}
    spec = {"method": "leave_one_out", "by": "subject"}
    sides = assign(["a", "b", "c", "d"], subjects, **spec, held_out="y")
    assert sides == {"a": "train", "b": "test", "c": "train", "d": "test"}
    with pytest.raises(
        InvalidSpecError, match=r"held_out: got 'w'; wanted a value of 'subject': 'x', 'y', 'z'\."
    ):
        assign(["a", "b", "c", "d"], subjects, **spec, held_out="w")
    with pytest.raises(
        InvalidSpecError,
        match=r"held_out: nothing is left to train on \(groups: test 1\)\. 'x' is the only value",
    ):
        assign(["a", "b"], {"subject": ["x", "x"]}, **spec, held_out="x")


def test_a_group_that_the_data_tear_is_refused():
    attributes = {"part": ["train", "test"], "subject": ["x", "x"]}
    with pytest.raises(
        InvalidSpecError, match=r"split\.by: subject 'x' has trials in 'train' and in 'test'"
    ):
        assign(["a", "b"], attributes, method="attribute", attribute="part", by="subject")


def test_a_carve_needs_a_name_of_its_own():
    with pytest.raises(InvalidSpecError, match=r"validation\.name: got 'train', the split it is"):
        assign(["a", "b"], validation={"name": "train"})


# --- time -------------------------------------------------------------------------------------


def assign_by_time(
    spans: dict[str, tuple[float, float]], groups: list[str] | None = None, **spec: Any
) -> dict[str, str]:
    known = {"day": groups} if groups else {}
    model = SplitSpec.model_validate({"method": "time", **spec})
    sides = assign_splits(list(spans), known, model, spans=np.array(list(spans.values()), float))
    return dict(zip(spans, sides, strict=True))


SPANS = {"a": (0, 9), "b": (5, 12), "c": (10, 19), "d": (20, 30), "e": (8, 8), "f": (10, 10)}


def test_an_interval_holds_its_begin_and_what_it_does_not_hold_whole_is_purged():
    sides = assign_by_time(SPANS, boundaries={"val": 10, "test": 20})
    assert sides == {
        "a": "train", "b": "purged", "c": "val", "d": "test", "e": "train", "f": "val"
    }  # fmt: skip
    assert assign_by_time({"a": (0, 1), "b": (5, 10)}, boundaries={"test": 10}) == {
        "a": "train",
        "b": "purged",
    }


def test_what_ends_close_to_a_boundary_is_purged():
    sides = assign_by_time(SPANS, boundaries={"val": 10, "test": 20}, purge=2)
    assert sides == {
        "a": "purged", "b": "purged", "c": "purged", "d": "test", "e": "train", "f": "val"
    }  # fmt: skip


def test_a_group_in_two_intervals_is_purged_whole():
    spans = {"a": (0, 1), "b": (2, 3), "c": (11, 12), "d": (13, 14)}
    sides = assign_by_time(spans, ["x", "y", "y", "z"], by="day", boundaries={"test": 10})
    assert sides == {"a": "train", "b": "purged", "c": "purged", "d": "test"}


def test_segments_of_a_trial_are_one_span():
    spec = SplitSpec(method="time", boundaries={"test": 10})
    spans = np.array([[0.0, 1.0], [11.0, 12.0], [2.0, 3.0]])
    assert assign_splits(["a", "a", "b"], {}, spec, spans=spans) == ["purged", "purged", "train"]


def test_dates_are_utc_unless_they_say_otherwise():
    spans = {"a": (1e9, 1_719_791_999), "b": (1_719_792_000, 1_719_792_001), "c": (2e9, 2.1e9)}
    for written in ("2024-07-01", "2024-07-01T00:00", "2024-07-01T02:00+02:00"):
        sides = assign_by_time(spans, boundaries={"test": written, "last": 2e9})
        assert sides == {"a": "train", "b": "test", "c": "last"}


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [
        (
            {"val": 20, "test": 10},
            r"got val: 20.*, test: 10.*; wanted each later than",
        ),
        ({"val": 10, "test": 10}, "wanted each later"),
        ({"test": float("nan")}, "wanted each later"),
        ({"test": "soon"}, r"split\.boundaries\.test: got 'soon'; wanted an ISO date such as"),
        ({"train": 10}, "got 'train'; wanted another name"),
        ({"purged": 10}, "got 'purged'; wanted another name"),
        ({"test": -5}, r"nothing is left to train on \(groups: test 6\)\. Move the first"),
    ],
)
def test_boundaries_that_cannot_be_used_are_refused(boundaries: dict[str, Any], message: str):
    with pytest.raises(InvalidSpecError, match=message):
        assign_by_time(SPANS, boundaries=boundaries)


def test_time_needs_times():
    with pytest.raises(InvalidSpecError, match=r"split\.method: time needs source\.time"):
        assign(["a"], method="time", boundaries={"test": 1})
    with pytest.raises(InvalidSpecError, match=r"split\.method: 'b' runs from nan to 1\.0"):
        assign_by_time({"a": (0, 1), "b": (math.nan, 1)}, boundaries={"test": 1})


def test_no_trials_have_no_splits():
    for spec in ({"method": "folds"}, {"method": "time", "boundaries": {"test": 1}}, {}):
        assert assign_splits([], {}, SplitSpec.model_validate(spec)) == []


# --- the names --------------------------------------------------------------------------------


def test_codes_follow_the_specification_and_not_the_data():
    spec = SplitSpec(fractions={"train": 0.9, "test": 0.1}, validation={"name": "dev"})
    assert split_names(["test", "train"], spec) == ("train", "test", "dev")
    assert split_names([], spec) == ("train", "test", "dev")
    by_data = SplitSpec(method="attribute", attribute="part")
    assert split_names(["test", "b", "a", "test"], by_data) == ("train", "a", "b", "test")
    by_time = SplitSpec(method="time", boundaries={"zeta": 1, "eta": 2}, validation={})
    assert split_names(["purged", "train"], by_time) == ("train", "val", "zeta", "eta", "purged")
    for spec in ({"method": "folds"}, {"method": "leave_one_out", "by": "s", "held_out": "x"}):
        model = SplitSpec.model_validate({**spec, "validation": {"name": "zeta"}})
        assert split_names(["train", "test"], model) == ("train", "zeta", "test")
