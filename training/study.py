"""A study: several plain runs from one file, each in a folder of its own below `out`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shards import InvalidSpecError
from training.config import STUDIES, TrainConfig

# What a folder may be called on every system; `study` names the files beside the folders.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,99}")
# Decided by the study itself.
_NOT_SWEPT = ("out", "replay", *STUDIES)
# Of all runs together; no run may be called so.
ENSEMBLE, POOLED = "ensemble", "pooled"


@dataclass(frozen=True)
class Run:
    """One plain run of a study.

    Attributes:
        name: Of its folder and its row in the tables.
        config: What to train; it asks for no study.
        changes: Dotted fields that the study set, and their values.
    """

    name: str
    config: TrainConfig
    changes: Mapping[str, Any]


def plan_runs(config: TrainConfig) -> tuple[Run, ...]:
    """Return the runs of a study, in order; of a plain config itself.

    Stages are not linked yet: see `stages.link_stage`.

    Raises:
        InvalidSpecError: If an entry does not fit the config, or two have one name.
    """
    plain = plain_config(config)
    asked = {
        "stages": _stages, "sweep": _sweep, "seeds": _seeds, "folds": _folds, "members": _members,
    }  # fmt: skip
    if config.study is None:
        return (Run(config.out.name, plain, {}),)
    runs = tuple(asked[config.study](config, plain))
    _check_names(config.study, [run.name for run in runs])
    return runs


def plain_config(config: TrainConfig) -> TrainConfig:
    """Return the config with its study taken off."""
    return config.model_copy(update={**dict.fromkeys(STUDIES, ()), "replay": 0.0})


def changed_config(config: TrainConfig, changes: Mapping[str, Any], where: str) -> TrainConfig:
    """Return a config with other values of dotted fields.

    Raises:
        InvalidSpecError: If one does not exist or does not take its value.
    """
    try:
        return config.changed(changes)
    except (ValueError, TypeError) as error:  # pydantic's is a ValueError
        said = str(error)
        found = getattr(error, "errors", lambda: [{"loc": (), "msg": said}])()
        said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}".strip(": ") for e in found)
        raise InvalidSpecError(
            f"{where} sets {', '.join(changes)}: {said}. Wanted dotted fields of a training "
            "configuration, such as data.windows.length: 30."
        ) from error


def _stages(config: TrainConfig, plain: TrainConfig) -> Iterable[Run]:
    for stage in config.stages:
        own = {"optimizer": stage.optimizer, "data": stage.data}
        changes = {
            "store": str(stage.store), "version": stage.version, **_dotted(own, plain.model_dump()),
        }  # fmt: skip
        if stage.epochs is not None:
            changes["epochs"] = stage.epochs
        yield _run(plain, stage.name, changes, f"stage {stage.name!r}")


def _sweep(config: TrainConfig, plain: TrainConfig) -> Iterable[Run]:
    entries = [{k: v for k, v in entry.items() if k != "name"} for entry in config.sweep]
    slugs = [_slug(entry, short=True) for entry in entries]
    if len(set(slugs)) < len(slugs):
        slugs = [_slug(entry, short=False) for entry in entries]
    for entry, changes, slug in zip(config.sweep, entries, slugs, strict=True):
        refused = [field for field in changes if field.split(".")[0] in _NOT_SWEPT]
        if refused or not changes:
            got = ", ".join(refused) or "no field"
            raise InvalidSpecError(
                f"sweep entry {slug or '{}'} sets {got}; wanted fields of one run, such as "
                "data.windows.length: 30."
            )
        name = str(entry.get("name", slug))
        yield _run(plain, name, changes, f"sweep entry {name!r}")


def _seeds(config: TrainConfig, plain: TrainConfig) -> Iterable[Run]:
    for seed in config.seeds:
        yield _run(plain, f"seed-{seed}", {"seed": seed}, f"seed {seed}")


def _folds(config: TrainConfig, plain: TrainConfig) -> Iterable[Run]:
    for version in config.folds:
        yield _run(plain, version, {"version": version}, f"fold {version!r}")


def _members(config: TrainConfig, plain: TrainConfig) -> Iterable[Run]:
    for member in config.members:
        changes = {"store": str(member.store), "version": member.version}
        yield _run(plain, member.name, changes, f"member {member.name!r}")


def _run(plain: TrainConfig, name: str, changes: Mapping[str, Any], where: str) -> Run:
    config = changed_config(plain, {**changes, "out": plain.out / name}, where)
    return Run(name, config, dict(changes))


def _dotted(part: Mapping[str, Any], known: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested fields as dotted ones, as deep as the config itself is nested."""
    flat: dict[str, Any] = {}
    for name, value in part.items():
        old = known.get(name) if isinstance(known, Mapping) else None
        if isinstance(value, Mapping) and (isinstance(old, Mapping) or not prefix or old is None):
            flat |= _dotted(value, old, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _slug(changes: Mapping[str, Any], *, short: bool) -> str:
    """Return a folder's name that tells the values: `length=30,lr=0.01`."""
    said = (f"{field.split('.')[-1] if short else field}={v}" for field, v in changes.items())
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "-", ",".join(said)).strip("-")[:100]


def _check_names(kind: str, names: list[str]) -> None:
    twice = [name for name, n in Counter(name.lower() for name in names).items() if n > 1]
    if twice:
        raise InvalidSpecError(f"{kind}: {twice[0]!r} occurs twice; wanted a name for each run.")
    for name in names:
        if not _NAME.fullmatch(name) or name in (ENSEMBLE, POOLED):
            raise InvalidSpecError(
                f"{kind}: {name!r} cannot be the name of a run's folder; wanted letters, digits "
                f"and any of ._=,+- (100 at most), and not {ENSEMBLE} or {POOLED}. Give it a name."
            )
