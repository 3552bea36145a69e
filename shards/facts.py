"""What is known of each trial beside its rows, as far as its digest covers it (SPEC section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.codes import static_texts
from shards.identity import trial_digest
from shards.reader import Store

Label = str | float | None


@dataclass(frozen=True)
class TrialFacts:
    """Lists with one entry per trial number.

    Attributes:
        digests: As the cold index promises them.
        labels: As digests cover them.
        categories: The dictionaries of the categorical columns; `()` without such columns.
        statics: Name -> text of the attributes that are inputs; empty without.
    """

    digests: list[str]
    labels: list[Label]
    categories: list[Any]
    statics: list[dict[str, str | None]]

    def holds(
        self, store: Store, number: int, arrays: Mapping[str, npt.NDArray[Any]]
    ) -> tuple[bool, bool]:
        """Return whether a trial is the one its digest promises, and whether its codes have words.

        Args:
            store: The version.
            number: Trial number.
            arrays: The trial's rows by array name.
        """
        categories, index = self.categories[number], store.index
        digest = trial_digest(
            index.id_of(number),
            arrays,
            self.labels[number],
            weight=float(index.weight[number]),
            categories=categories,
            statics=self.statics[number],
        )
        return digest == self.digests[number], self.has_words(number, arrays.get("codes"))

    def has_words(self, number: int, codes: npt.NDArray[np.uint16] | None) -> bool:
        """Return whether every code of a trial `[rows, columns]` has a word."""
        if codes is None:
            return True
        most = codes.max(axis=0, initial=0)
        return bool((most <= [len(words) for words in self.categories[number]]).all())


def read_facts(store: Store, trials: pa.Table) -> TrialFacts:
    """Read the facts of all trials from the cold index.

    Raises:
        ValueError: If a trial has not one list of words per categorical column.
        KeyError: If a column is missing.
    """
    n_trials, manifest = trials.num_rows, store.manifest
    categories: list[Any] = [()] * n_trials
    if manifest.codes:
        categories = trials["categories"].to_pylist()
        for number, lists in enumerate(categories):
            if len(lists or ()) != len(manifest.codes) or any(w is None for w in lists):
                raise ValueError(
                    f"trial {store.index.id_of(number)!r} has the categories {lists}; wanted "
                    f"{len(manifest.codes)} lists of words"
                )
    names = [entry.name for entry in manifest.statics]
    columns = [static_texts(trials, name).to_pylist() for name in names]
    statics: list[dict[str, str | None]] = [{}] * n_trials
    if names:
        statics = [dict(zip(names, texts, strict=True)) for texts in zip(*columns, strict=True)]
    return TrialFacts(trials["digest"].to_pylist(), _labels(store, trials), categories, statics)


def _labels(store: Store, trials: pa.Table) -> list[Label]:
    """Return each trial's label as its digest holds it.

    A class that no train trial has is no class of the version, but the trial still says it.
    """
    classes, codes = store.manifest.target.classes, store.index.label.tolist()
    known = [None if np.isnan(code) else code for code in codes]
    if classes is None:
        return known
    texts = static_texts(trials, store.manifest.target.columns[0]).to_pylist()
    # A text that is a class but has no code is a lost label: it gives a digest that fails.
    lost = [code is None and text in classes for code, text in zip(known, texts, strict=True)]
    return [
        None if missing else text if code is None else classes[int(code)]
        for code, text, missing in zip(known, texts, lost, strict=True)
    ]
