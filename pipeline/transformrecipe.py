"""The recipe of a version as new trials need it: all that makes inputs, nothing of the targets.

A new file has usually no target, no label and no split. What serves those alone is taken out of
the specification, so that nobody misses it; everything else stays as it was, and is done by the
very stages of a build.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from pipeline.buckets import plan_digest
from pipeline.derive import Derivations
from pipeline.normalize import channel_entries
from pipeline.recipe import Recipe
from pipeline.sections import ForecastTarget, Hook, ShardsSpec, SplitSpec, TableAttribute
from pipeline.spec import DatasetSpec, load_spec
from pipeline.versions import STAGES
from shards import InvalidSpecError, Store
from shards.affine import group_attribute, scope_kind


@dataclass(frozen=True)
class InputRecipe(Recipe):
    """A recipe for the inputs of new trials.

    Attributes:
        given: Attributes that are told with a trial; its file, path and tables are not asked.
        has_folder: Whether `root` is the folder of `dataset.yaml`.
    """

    given: frozenset[str] = frozenset()
    has_folder: bool = False

    @cached_property
    def needed_attributes(self) -> frozenset[str]:
        """Attributes that are inputs, or that inputs are made of."""
        return _needed(self.spec)[1] & {*self.attribute_names, *self.spec.static}

    @cached_property
    def from_outside(self) -> frozenset[str]:
        """Those of them that neither the columns of a trial nor the caller tell."""
        told = {*self.column_attributes, *self.spec.source.split_on, *self.given}
        return self.needed_attributes - told

    @property
    def reads_tables(self) -> bool:
        """Whether an attribute is looked up in a table."""
        return any(isinstance(one, TableAttribute) for one in self.spec.attributes.values())

    def check_folder(self) -> None:
        """Refuse to look up what lies beside a `dataset.yaml` that nobody named.

        Raises:
            InvalidSpecError: Naming the attribute and its table.
        """
        for name, one in self.spec.attributes.items():
            if isinstance(one, TableAttribute) and not self.has_folder:
                raise InvalidSpecError(
                    f"attributes.{name} comes from the table {one.table}, which is not in the "
                    "store. Name the folder it lies in: dataset=.../dataset.yaml, or --dataset."
                )

    def telling(self, names: Collection[str]) -> InputRecipe:
        """Return the recipe for a trial that comes with some attributes."""
        key = frozenset(names) - self.given
        if key and key not in self._told:  # what it resolves takes as long as a small trial
            attributes = {n: one for n, one in self.spec.attributes.items() if n not in key}
            spec = self.spec.model_copy(update={"attributes": attributes})
            self._told[key] = replace(self, spec=spec, given=self.given | key)
        return self._told.get(key, self)

    @cached_property
    def _told(self) -> dict[frozenset[str], InputRecipe]:
        return {}

    def _found_groups(self) -> set[str]:
        return super()._found_groups() | self.given


def open_recipe(store: Store, dataset: str | Path | None = None) -> InputRecipe:
    """Return what makes the inputs of new trials of a version.

    Args:
        store: The open version.
        dataset: The `dataset.yaml` that it was built by: needed where inputs come from hooks or
            attribute tables, which lie beside it.

    Raises:
        InvalidSpecError: If the version does not say how it was built, another release built it,
            `dataset` says something else, or it is needed and absent.
    """
    spec = _stored_spec(store)
    if dataset is None:
        inputs = inputs_only(_in_order(store, spec, store.manifest.build.get("derive")))
        hooked = [name for name, one in inputs.derive.items() if isinstance(one, Hook)]
        if hooked:
            raise InvalidSpecError(_absent(store, f"derive.{hooked[0]}", "a Python hook"))
        return InputRecipe(inputs)
    root, written = Path(dataset).parent, load_spec(dataset)
    found = plan_digest(Recipe(written, root))
    order = store.manifest.build.get("derive") or [*written.derive, *spec.derive]
    stored = _in_order(store, spec, order)
    inputs = inputs_only(stored)
    hooked = [name for name, one in inputs.derive.items() if isinstance(one, Hook)]
    same_spec = found == plan_digest(Recipe(stored, root))
    if not same_spec or (hooked and found != store.manifest.build.get("plan")):
        what = "says another recipe" if not same_spec else "has other hooks or tables beside it"
        raise InvalidSpecError(
            f"{dataset} {what} than {store.path} {store.version} was built by. Name the file of "
            "that build, or build the store again."
        )
    return InputRecipe(inputs, root, has_folder=True)


def _in_order(store: Store, spec: DatasetSpec, derive: list[str] | None) -> DatasetSpec:
    """Return the specification with the order of columns that the manifest's JSON does not keep.

    Args:
        store: The open version.
        spec: As it says it, keys sorted.
        derive: The derived columns as they were written; None if nobody said.
    """
    if derive is None:
        derive, chained = list(spec.derive), Derivations.of(spec.derive).inputs
        for name in derive:
            if chained[name] & (spec.derive.keys() - {name}):
                raise InvalidSpecError(_absent(store, f"derive.{name}", "made of another column"))
    manifest = store.manifest
    return spec.model_copy(
        update={
            "derive": {name: spec.derive[name] for name in derive if name in spec.derive},
            "categorical": {one.name: spec.categorical[one.name] for one in manifest.codes},
            "static": {one.name: spec.static[one.name] for one in manifest.statics},
        }
    )


def _absent(store: Store, field: str, what: str) -> str:
    return (
        f"{field} is {what}, which {store.path} {store.version} does not say enough of. Name the "
        "file that it was built by: dataset=.../dataset.yaml, or --dataset."
    )


def _stored_spec(store: Store) -> DatasetSpec:
    """Return the specification in the manifest, if this release builds by it what was built."""
    manifest, said = store.manifest, "was built by another release"
    try:
        spec = DatasetSpec.model_validate(manifest.spec) if manifest.spec else None
    except ValidationError:
        spec = None
    if not manifest.spec:
        said = "does not say how it was built"
    if spec is None or manifest.build.get("stages") != STAGES:
        raise InvalidSpecError(
            f"{store.path} {store.version} {said}, so new files cannot be treated alike. Build it "
            "with this release: trialshards build DATASET.YAML --store STORE"
        )
    return spec


def inputs_only(spec: DatasetSpec) -> DatasetSpec:
    """Return a specification without what serves targets, labels and splits alone."""
    derive, attributes = _needed(spec)
    target = spec.windows.target
    if not isinstance(target, ForecastTarget):  # one that needs nothing but a channel
        target = ForecastTarget(kind="forecast", channels=(spec.inputs()[0].name,))
    return spec.model_copy(
        update={
            "derive": {name: one for name, one in spec.derive.items() if name in derive},
            "attributes": {n: one for n, one in spec.attributes.items() if n in attributes},
            "split": SplitSpec(),
            "windows": spec.windows.model_copy(update={"target": target}),
            "shards": ShardsSpec(target_bytes=spec.shards.target_bytes),
        }
    )


def _needed(spec: DatasetSpec) -> tuple[frozenset[str], frozenset[str]]:
    """Return the derived columns, and the names of columns and attributes, that inputs need."""
    needed = {channel.name for channel in spec.channels}
    kept: set[str] = set()
    derivations = Derivations.of(spec.derive)
    for name in reversed(list(derivations)):  # each reads what is written before it
        if name in needed:
            kept.add(name)
            needed = needed - {name} | derivations.inputs[name]
    groups = {group_attribute(s) for _, s in channel_entries(spec) if scope_kind(s) == "group"}
    return frozenset(kept), frozenset({*needed, *spec.static, *groups})
