"""What a person writes to train a model: one YAML file, validated, every default with its reason.

```yaml
store: ../store          # relative to this file
out: ../../runs/arm      # run folder
epochs: 20
```
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from shards.userfile import read_yaml
from shards.windows import WindowSpec
from training.sections import (
    Count,
    DataConfig,
    DeviceConfig,
    EarlyStoppingConfig,
    EvaluateConfig,
    Fraction,
    MemberConfig,
    MixtureConfig,
    ModelConfig,
    OptimizerConfig,
    Section,
    StageConfig,
    StartConfig,
    TargetConfig,
)

STUDIES = ("stages", "sweep", "seeds", "folds", "members")


class TrainConfig(Section):
    """A training run. Paths are absolute after `TrainConfig.read`."""

    store: Path
    # Checkpoints, logs, plots; a run is resumed from here.
    out: Path
    # The newest version of the store; name one to train on what another run saw.
    version: str | None = None
    model: ModelConfig = ModelConfig()
    target: TargetConfig = TargetConfig()
    data: DataConfig = DataConfig()
    # More stores, interleaved.
    mixture: MixtureConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    # Weights to start from; without it random ones.
    start: StartConfig | None = None
    epochs: Count = 20
    # null trains all epochs; the best one is kept either way.
    early_stopping: EarlyStoppingConfig | None = EarlyStoppingConfig()
    device: DeviceConfig = DeviceConfig()
    # Weights and dropout.
    seed: int = 0
    evaluate: EvaluateConfig = EvaluateConfig()
    # A killed run repeats at most this many steps; a save costs some milliseconds.
    checkpoint_steps: Count | None = 500

    # Studies: several runs from one file, each in a folder of its own below `out`.
    # One data set after the other, the weights going on.
    stages: tuple[StageConfig, ...] = ()
    # Share of a stage's steps that repeat the stages before it, against forgetting.
    replay: Fraction = 0.0
    # A run for each entry: dotted fields and their values, such as {data.windows.length: 30}.
    sweep: tuple[dict[str, Any], ...] = ()
    # An ensemble: a run for each seed of the weights.
    seeds: tuple[int, ...] = ()
    # A run for each version or tag of the store: the folds of a cross-validation.
    folds: tuple[str, ...] = ()
    # An ensemble over data sets: a run for each.
    members: tuple[MemberConfig, ...] = ()

    @model_validator(mode="after")
    def _one_study(self) -> TrainConfig:
        asked = [name for name in STUDIES if getattr(self, name)]
        if len(asked) > 1:
            raise ValueError(f"{' and '.join(asked)} in one file; wanted one of them.")
        if self.replay and not self.stages:
            raise ValueError("replay without stages, of which it repeats the earlier ones.")
        if self.stages and self.mixture:
            raise ValueError("stages with a mixture; wanted one of them.")
        return self

    @property
    def study(self) -> str | None:
        """Which of `STUDIES` the file asks for; None: one plain run."""
        return next((name for name in STUDIES if getattr(self, name)), None)

    @classmethod
    def read(cls, path: str | Path) -> TrainConfig:
        """Read a config file and resolve its paths against its folder.

        Raises:
            InvalidSpecError: If it cannot be read or is not valid; the message names the line.
        """
        path = Path(path)
        return read_yaml(path, cls).resolve(path.resolve().parent)

    def resolve(self, folder: Path) -> TrainConfig:
        """Return the config with all its paths against `folder`."""
        changes: dict[str, Any] = {
            "store": (folder / self.store).resolve(),
            "out": (folder / self.out).resolve(),
            "stages": tuple(_against(folder, stage) for stage in self.stages),
            "members": tuple(_against(folder, member) for member in self.members),
            "sweep": tuple(_entry_against(folder, entry) for entry in self.sweep),
        }
        if self.mixture is not None:
            stores = tuple(_against(folder, other) for other in self.mixture.stores)
            changes["mixture"] = self.mixture.model_copy(update={"stores": stores})
        if self.start is not None:
            path = (folder / self.start.checkpoint).resolve()
            changes["start"] = self.start.model_copy(update={"checkpoint": path})
        return self.model_copy(update=changes)

    def changed(self, changes: Mapping[str, Any]) -> TrainConfig:
        """Return the config with other values of dotted fields, validated anew.

        >>> config.changed({"data.windows.length": 30, "seed": 1})

        Raises:
            pydantic.ValidationError: If a field does not exist or does not take the value.
        """
        document = self.model_dump()
        for dotted, value in changes.items():
            *parents, name = dotted.split(".")
            section = document
            for parent in parents:
                known = section.get(parent)
                section[parent] = dict(known) if isinstance(known, Mapping) else {}
                section = section[parent]
            section[name] = value
        return type(self).model_validate(document)


def _against(folder: Path, part: Any) -> Any:
    return part.model_copy(update={"store": (folder / part.store).resolve()})


def _entry_against(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of a sweep with its paths against a folder."""
    paths = {name: entry[name] for name in ("store", "start.checkpoint") if entry.get(name)}
    return entry | {name: str((folder / path).resolve()) for name, path in paths.items()}


def choose_windows(config: TrainConfig, stored: WindowSpec) -> WindowSpec:
    """Return the store's window parameters with the run's own on top.

    Raises:
        InvalidSpecError: If together they make no sense.
    """
    own = config.data.windows
    given = own.model_dump(exclude_none=True, exclude={"random_offset"}) if own else {}
    return dataclasses.replace(stored, **given)
