"""Every fold of a cross-validation as a version of one store, each under a tag of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.build import build_space
from pipeline.outcome import OnProgress
from pipeline.recipe import Recipe
from pipeline.sections.splits import SplitSpec
from pipeline.workspace import Workspace
from shards.errors import InvalidSpecError
from shards.reader import Store
from shards.tags import read_tags, set_tag

PREFIX = "fold"


@dataclass(frozen=True)
class Fold:
    """One fold.

    Attributes:
        tag: `fold-0` and so on.
        version: What it stands for.
        test: The part, or the group, that is the test split.
        n_trials: Of each split.
    """

    tag: str
    version: str
    test: str
    n_trials: dict[str, int]


def build_folds(
    spec_path: str | Path,
    store: str | Path,
    *,
    prefix: str = PREFIX,
    on_progress: OnProgress | None = None,
    n_workers: int | None = None,
) -> Iterator[Fold]:
    """Build the folds of `method: folds`, or of `leave_one_out` each group's, and tag them.

    Files are read for the first one only. A fold whose tag stands for the same data already keeps
    it; the version that this build made of it beside is left to `gc`.

    Args:
        spec_path: `dataset.yaml`; its `split.fold` or `split.held_out` is not looked at.
        store: Store root, made if absent.
        prefix: Of the tags.
        on_progress: Called after every batch of files.
        n_workers: Threads; by default one per processor.

    Yields:
        Each fold when it is built.

    Raises:
        InvalidSpecError: If the split is of another method.
        TrialShardsError: What `build` raises.
    """
    space = Workspace.open(spec_path, store)
    split = space.spec.split

    def build_one(**changes: Any) -> str:
        own = _with_split(space, **changes)
        return build_space(own, on_progress=on_progress, n_workers=n_workers).version

    if split.method == "folds":
        for number in range(split.folds):
            version = build_one(fold=number)
            yield _tag(space.store, version, f"{prefix}-{number}", str(number))
    elif split.method == "leave_one_out":
        first = str(split.held_out)
        versions = {first: build_one()}  # which groups there are is known when one is built
        for number, group in enumerate(_groups(space.store, versions[first], split.by)):
            version = versions.get(group) or build_one(held_out=group)
            yield _tag(space.store, version, f"{prefix}-{number}", group)
    else:
        raise InvalidSpecError(
            f"split.method of {spec_path} is {split.method!r}; wanted folds, or leave_one_out. "
            "Write split: {method: folds, folds: 5}."
        )


def _groups(store: Path, version: str, attribute: str) -> list[str]:
    """Return the values of an attribute, in order."""
    texts = Store(store, version).cold_index.attribute(attribute)
    return sorted({text for text in texts.to_pylist() if text is not None})


def _with_split(space: Workspace, **changes: Any) -> Workspace:
    """Return the workspace with other fields of `split`."""
    split = SplitSpec.model_validate(space.spec.split.model_dump() | changes)
    spec = space.spec.model_copy(update={"split": split})
    return dataclasses.replace(space, recipe=Recipe(spec, space.root).check())


def _tag(store: Path, version: str, tag: str, test: str) -> Fold:
    opened = Store(store, version)
    known = read_tags(store).get(tag)
    if known is None or known.fingerprint != opened.fingerprint:
        set_tag(store, tag, version, force=True)
        known = read_tags(store)[tag]
    counts = dict(opened.manifest.counts["trials_by_split"])
    return Fold(tag, known.version, test, counts)
