"""Splits: total, disjoint, stable, and decided by ids and attributes alone."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any

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


# --- the names --------------------------------------------------------------------------------


def test_codes_follow_the_specification_and_not_the_data():
    spec = SplitSpec(fractions={"train": 0.9, "test": 0.1}, validation={"name": "dev"})
    assert split_names(["test", "train"], spec) == ("train", "test", "dev")
    assert split_names([], spec) == ("train", "test", "dev")
    by_data = SplitSpec(method="attribute", attribute="part")
    assert split_names(["test", "b", "a", "test"], by_data) == ("train", "a", "b", "test")
