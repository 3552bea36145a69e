"""New trials made into inputs by the very stages that made the trials of a store.

`Transform.load(store).apply(frame)` is for one trial in memory, `read` for files. Parsing,
cleaning, derived columns, codes and normalization are those of the build, with what was fitted
then; nothing is fitted anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.files import Refusal, RefusedError, SourceFile
from pipeline.prepare import prepare_tables
from pipeline.sources.columnar import table_of_columns
from pipeline.sources.rawfile import refusal_of
from pipeline.transformfiles import finish_files, look_at, refuse_beyond
from pipeline.transformrecipe import InputRecipe, open_recipe
from pipeline.transformtrial import NewTrial, trials_of
from shards import InvalidSpecError, Store
from shards.errors import TrialShardsError

__all__ = ["NewTrial", "NewTrials", "Transform", "TrialRefusedError"]


class TrialRefusedError(TrialShardsError, ValueError):
    """A new trial is not what a build would take: mend it.

    Attributes:
        refusal: Where and why, as a build says it.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.source}: {refusal.code}: {refusal.message}")
        self.refusal = refusal


@dataclass(frozen=True)
class NewTrials:
    """What came of new files: a trial each, or several, or a refusal.

    Attributes:
        trials: In the order of paths.
        refusals: Files, and trials of files with many, that a build would quarantine.
    """

    trials: tuple[NewTrial, ...]
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Transform:
    """What a version of a store does to new trials.

    Attributes:
        store: The open version, with what was fitted.
        recipe: The part of its specification that makes inputs.
    """

    store: Store
    recipe: InputRecipe

    @classmethod
    def load(
        cls,
        store: Store | str | Path,
        version: str | None = None,
        *,
        dataset: str | Path | None = None,
    ) -> Transform:
        """Take the transform of a store.

        Args:
            store: A store or its path.
            version: Version to open when `store` is a path; by default the newest.
            dataset: The `dataset.yaml` that it was built by: needed where inputs come from hooks
                or attribute tables, which lie beside it; checked against the store.

        Raises:
            StoreNotFoundError: If there is no such store or version.
            InvalidSpecError: If the store does not say how it was built, or not by this release,
                or `dataset` says something else, or is needed and absent.
        """
        opened = store if isinstance(store, Store) else Store(store, version)
        return cls(opened, open_recipe(opened, dataset))

    def apply(
        self,
        frame: pl.DataFrame,
        *,
        trial: str = "trial",
        attributes: Mapping[str, str | float | None] | None = None,
    ) -> NewTrial:
        """Return what a frame of one trial becomes.

        Args:
            frame: Columns as the source has them, of any flat type; those that no input needs may
                be there or not.
            trial: Its id, by which attribute tables know it.
            attributes: What a build would learn from the file's path, or from anywhere else; None
                where that says nothing.

        Raises:
            TrialRefusedError: Where a build would refuse it.
            InvalidSpecError: If an attribute is an input and nothing says what it is, or the frame
                holds several trials.
        """
        given = dict(attributes or {})
        recipe = self.recipe.telling(given)
        recipe.check_folder()
        self._check_known(recipe)
        known = {name: str(said) for name, said in given.items() if said is not None}
        file = SourceFile(trial, 0, 0, trial, known)
        try:
            if recipe.reads_tables and not recipe.spec.source.holds_many:
                file = file._replace(attributes={**known, **recipe.tables.lookup(trial)})
            table = table_of_columns(file, frame.to_arrow(), recipe.layout)
        except RefusedError as error:
            raise TrialRefusedError(refusal_of(file, error)) from error
        batch = refuse_beyond(prepare_tables([table], [], recipe), recipe, self.store.fit)
        if batch.refusals:
            raise TrialRefusedError(batch.refusals[0])
        return _only(trials_of(batch, {trial: trial}, self.store), recipe)

    def read(
        self, paths: str | Path | Sequence[str | Path], *, root: str | Path | None = None
    ) -> NewTrials:
        """Return what raw files become, parsed as in a build; one bad file stops no other.

        Args:
            paths: One file, or several.
            root: Trials are named by their paths below this folder; by default see
                `transformfiles.place_of`.

        Raises:
            InvalidSpecError: If an attribute comes from a table that is not known.
        """
        named = [paths] if isinstance(paths, str | Path) else list(paths)
        new = look_at(named, self.recipe, root)
        trials: list[NewTrial] = []
        refusals = list(new.refusals)
        for batch in finish_files(new, self.recipe, self.store.fit, refusals):
            trials += trials_of(batch, new.said, self.store)
        return NewTrials(tuple(trials), tuple(sorted(refusals, key=lambda r: r.source)))

    def _check_known(self, recipe: InputRecipe) -> None:
        """Refuse a frame of which an input is told by nobody: it would count as missing."""
        unknown = sorted(recipe.from_outside - recipe.spec.attributes.keys())
        if unknown:
            raise InvalidSpecError(
                f"attribute {unknown[0]!r} is an input of {self.store.path}, and no column says "
                f"it; pass attributes={{{unknown[0]!r}: ...}}, None where it is not known."
            )


def _only(found: list[NewTrial], recipe: InputRecipe) -> NewTrial:
    if len(found) != 1:
        raise InvalidSpecError(
            f"the frame holds {len(found)} trials, by {', '.join(recipe.spec.source.split_on)}; "
            "wanted one. Apply to each by itself."
        )
    return found[0]
