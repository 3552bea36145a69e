"""How often each trial is drawn in an epoch, and what it weighs in the loss.

Quotas are integers that add up to the windows of all trials, by the method of the largest
remainder; only those that a user gives add up to what they add up to. They are the same in every
epoch. By class and attribute they are those of groups of trials, where the order allows it
(`loaders/groups.py`): a trial's share of its group's may be less than one draw.

Shares are float64 of exact integers, and sums are exact, so that quotas and weights have the same
bits on every machine, and there may be more windows than the 2^24 that `torch.multinomial` draws
from. Drawing by chance would repeat some windows while others never come; a plan of quotas does
not.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.choices import Balance, LossWeights
from loaders.order import largest_remainder
from loaders.trialfacts import as_numbers, class_codes, given_quotas, number_values
from shards import InvalidSpecError, Store

log = logging.getLogger(__name__)

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

GROUPED = ("class", "attribute")
"""Balances by which groups of trials are drawn alike. By the others no share is below one draw: n
windows are at least sqrt(n), so of the square roots too."""

MOST_DRAWS = 1 << 31
"""Of one trial in an epoch; so (epoch x draws) stays inside int64 for 2^32 epochs."""


def draw_quotas(store: Store, balance: Balance, trials: Int64, n_windows: Int64) -> Int64:
    """Return the draws of each trial per epoch.

    Args:
        store: The open version.
        balance: What shall be drawn alike.
        trials: `[n]`, numbers of the trials of one split that a stream reads.
        n_windows: `[n]`, windows of each; not all 0.

    Returns:
        `[n]`, 0 where there are no windows; `n_windows` itself for `window`. The sum is that of
        `n_windows`, but for `quota`. `class` and `attribute` draw each class, or value, equally
        often, and within it each window alike; a trial whose share is below a draw may get 0, and
        a warning tells of it.

    Raises:
        InvalidSpecError: If the target has no classes, a trial has none, there is no such column,
            or quotas are not integers from 0 to 2^31 with a sum above 0, one for each trial, and 0
            for a trial without windows.
        TrialNotFoundError: If quotas name a trial that the version does not have.
    """
    total = int(n_windows.sum())
    if balance.by == "window":
        return n_windows
    if balance.by == "quota":
        return _own_quotas(store, balance, trials, n_windows)
    if balance.by == "trial":
        return largest_remainder(n_windows > 0, total)
    if balance.by == "sqrt":  # IEEE 754 demands the nearest float64 of a root
        return largest_remainder(np.sqrt(n_windows.astype(np.float64)), total)
    groups = draw_groups(store, balance, trials, n_windows)
    quotas = share_alike(n_windows, groups, total)
    _tell_of_never_drawn(store, balance, trials[(quotas == 0) & (n_windows > 0)], len(trials))
    return quotas


def draw_groups(store: Store, balance: Balance, trials: Int64, n_windows: Int64) -> Int64:
    """Return the number of the group of each trial, which `class` or `attribute` draw alike.

    Trials without a value are a group of their own.

    Args:
        store: The open version.
        balance: By `class` or `attribute`.
        trials: `[n]`, numbers of the trials of one split that a stream reads.
        n_windows: `[n]`, windows of each; one without any needs no class.

    Raises:
        InvalidSpecError: If the target has no classes, a trial has none, or there is no such
            column.
    """
    if balance.by == "class":
        return class_codes(store, trials, n_windows > 0, "balance")
    return number_values(store, str(balance.column), trials)


def group_quotas(n_windows: Int64, groups: Int64, total: int) -> tuple[Int64, Int64]:
    """Return draws and windows of each group; draws are alike and add up to `total`.

    By largest remainder, ties to the first: groups differ by at most 1.

    >>> group_quotas(np.array([8, 2, 1, 0]), np.array([0, 0, 1, 2]), 11)
    (array([6, 5]), array([10,  1]))

    Args:
        n_windows: `[n]` integers >= 0, not all 0.
        groups: `[n]` integers >= 0. A group without windows gets nothing.
        total: Draws to share out.
    """
    busy = np.flatnonzero(n_windows)
    windows_of = np.zeros(int(groups[busy].max()) + 1, np.int64)
    np.add.at(windows_of, groups[busy], n_windows[busy])
    return largest_remainder(windows_of > 0, total), windows_of


def share_alike(n_windows: Int64, groups: Int64, total: int) -> Int64:
    """Return integers that add up to `total`, alike for each group, in it in proportion to windows.

    Both by largest remainder, ties to the first: groups differ by at most 1, and what a trial gets
    differs by less than 1 from its exact share of what its group gets.

    >>> share_alike(np.array([8, 2, 1, 0]), np.array([0, 0, 1, 2]), 11).tolist()
    [5, 1, 5, 0]

    Args:
        n_windows: `[n]` integers >= 0, not all 0.
        groups: `[n]` integers >= 0. A group without windows gets nothing.
        total: Draws to share out.
    """
    busy = np.flatnonzero(n_windows)
    windows, group = n_windows[busy], groups[busy]
    draws_of, windows_of = group_quotas(n_windows, groups, total)
    share = windows * (draws_of / np.maximum(1, windows_of))[group]
    whole = np.floor(share).astype(np.int64)
    rest = draws_of.copy()
    np.subtract.at(rest, group, whole)
    # The rank of each trial in its group by remainder, as `largest_remainder` has it in one group;
    # below 2^52 draws, shares that were rounded up do not add up to one, and no rest is negative.
    order = np.lexsort((whole - share, group))
    sizes = np.bincount(group)
    rank = np.empty(len(busy), np.int64)
    rank[order] = np.arange(len(busy)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    whole += rank < rest[group]
    quotas = np.zeros(len(n_windows), np.int64)
    quotas[busy] = whole
    return quotas


def loss_weights(
    store: Store, weights: LossWeights, trials: Int64, quotas: Int64 | Float64
) -> Float32:
    """Return the weight in the loss of each row of each trial.

    Args:
        store: The open version.
        weights: What shall count alike.
        trials: `[n]`, numbers of the trials that a stream reads.
        quotas: `[n]`, how often each counts in an epoch: the `mean_draws` of its plan, times the
            steps that count where a row does not count as one. Where groups of trials have quotas
            they are float64, means over the epochs; so series and classes count alike on average,
            not in every epoch.

    Returns:
        `[n]`. `own`: the store's. `trial`, `class`: the store's times a factor that makes the
        series (`even_trials`) or the classes (`even_classes`) count alike. `column`: the column's,
        in place of the store's; 0 for a trial that is never drawn.

    Raises:
        InvalidSpecError: If the target has no classes, a trial has none, there is no such column,
            or it does not hold a finite number >= 0 for each trial that is drawn, not all 0.
    """
    own = store.index.weight[trials]
    if weights.by == "own":
        return own
    if weights.by == "trial":
        return even_trials(own, quotas)
    if weights.by == "class":
        return even_classes(own, class_codes(store, trials, quotas > 0, "weights"), quotas)
    return _own_weights(store, str(weights.column), trials, quotas)


def even_trials(own: Float32, quotas: Int64 | Float64) -> Float32:
    """Return weights by which each series counts the same over an epoch, times its own weight.

    Own weight / quota: 1 / windows where each window is drawn once, and right for any other quotas.
    The mean over the draws of an epoch is that of the own weights, so that a learning rate keeps
    its sense.

    Args:
        own: `[n]`, >= 0.
        quotas: `[n]` draws per epoch, or means of them; a trial without any gets 0.
    """
    weight, drawn = own.astype(np.float64), quotas > 0
    once = math.fsum(weight[drawn].tolist())
    if not once:
        return own
    factor = math.fsum((weight * quotas).tolist()) / once
    weight *= factor / np.where(drawn, quotas, 1)
    weight[~drawn] = 0
    return weight.astype(np.float32)


def even_classes(own: Float32, codes: Int64, quotas: Int64 | Float64) -> Float32:
    """Return weights by which draws of each class count the same over an epoch.

    Own weight x N / (classes x N of the class), as scikit-learn's `class_weight="balanced"`
    (https://scikit-learn.org/stable/modules/generated/sklearn.utils.class_weight.compute_class_weight.html),
    N being draws. Own weights do not change the factors, as there.

    Args:
        own: `[n]`, >= 0.
        codes: `[n]` integers >= 0, the class of each trial.
        quotas: `[n]` draws per epoch, or means of them; a class without any gets 0.
    """
    draws_of = np.zeros(int(codes.max(initial=0)) + 1, quotas.dtype)
    np.add.at(draws_of, codes, quotas)
    drawn = draws_of > 0
    # A sum of integers is exact; fsum gives that of means the same bits on every machine.
    total = int(quotas.sum()) if quotas.dtype.kind == "i" else math.fsum(quotas.tolist())
    factor = total / np.where(drawn, np.count_nonzero(drawn) * draws_of, 1) * drawn
    weight: Float32 = (own.astype(np.float64) * factor[codes]).astype(np.float32)
    return weight


def _own_quotas(store: Store, balance: Balance, trials: Int64, n_windows: Int64) -> Int64:
    """Return the quotas of a column, or of a mapping or an array, checked."""
    if balance.quotas is not None:
        given: npt.NDArray[Any] = given_quotas(store, balance.quotas, trials)
        what = "quotas"
    else:
        given = as_numbers(store, str(balance.column), trials)
        what = f"the quotas of column {balance.column!r}"
    good = (given >= 0) & (given <= MOST_DRAWS) & (given == np.floor(given))  # a gap is NaN
    if not good.all():
        at = int(np.argmin(good))
        got = "missing" if given[at] != given[at] else f"{given[at]:g}"
        raise InvalidSpecError(
            f"{what}: that of trial {_name(store, trials, at)} is {got}; wanted an integer from 0 "
            f"(never drawn) to {MOST_DRAWS}."
        )
    quotas = given.astype(np.int64)
    idle = np.flatnonzero((quotas > 0) & (n_windows == 0))
    if idle.size:
        raise InvalidSpecError(
            f"{what}: {idle.size} trials without windows shall be drawn, such as "
            f"{_name(store, trials, idle[0])} {quotas[idle[0]]} times; wanted 0 for them. "
            "Or choose shorter windows, or short='pad'."
        )
    if not quotas.any():
        raise InvalidSpecError(f"{what} are all 0; wanted at least one trial that is drawn.")
    return quotas


def _own_weights(store: Store, column: str, trials: Int64, quotas: Int64 | Float64) -> Float32:
    """Return the weights of a column, checked where a trial is drawn."""
    drawn = np.flatnonzero(quotas)
    given = as_numbers(store, column, trials[drawn])
    good = np.isfinite(given) & (given >= 0) & (given <= np.finfo(np.float32).max)
    if not good.all():
        at = int(np.argmin(good))
        got = "missing" if np.isnan(given[at]) else f"{given[at]:g}"
        raise InvalidSpecError(
            f"weights of column {column!r}: that of trial {_name(store, trials[drawn], at)} is "
            f"{got}; wanted a number >= 0 that float32 can hold. Leave the trial out by where=, or "
            "mend the column."
        )
    weights = np.zeros(len(trials), np.float32)
    weights[drawn] = given
    if not weights.any():
        raise InvalidSpecError(
            f"weights of column {column!r} are all 0; wanted at least one row that counts."
        )
    return weights


def _tell_of_never_drawn(store: Store, balance: Balance, idle: Int64, n_trials: int) -> None:
    """Say that the share of some trials is below a draw: nothing else would show it."""
    if len(idle) and multiprocessing.parent_process() is None:  # once, not from each worker
        log.warning(
            "balance by %s draws %d of %d trials of %s in no epoch, such as %s: their share is "
            "below one draw. Choose shuffle='global', by which they take turns, or give quotas "
            "of your own: Balance('quota', quotas=...).",
            balance.by, len(idle), n_trials, store.path, _name(store, idle, 0),
        )  # fmt: skip


def _name(store: Store, trials: Int64, at: int) -> str:
    return repr(store.index.id_of(int(trials[at])))
