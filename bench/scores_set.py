"""What a score is: a data set from its raw files to one figure per seed, beside a published one."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.build import build
from shards.errors import TrialShardsError
from training import TrainConfig, evaluate, train

ROOT = Path(__file__).resolve().parents[1]


class FilesMissingError(TrialShardsError, FileNotFoundError):
    """The raw files of a set are not there."""


@dataclass(frozen=True)
class ScoreSet:
    """One data set with one figure to meet.

    Attributes:
        name: As on the command line and in the tables.
        title: What is predicted, for readers.
        metric: Which of the figures that `run` returns is compared.
        better: `higher` or `lower`.
        goal: The figure to meet, on the right side of it or equal.
        source: Who published it.
        protocol: What is scored, and how everything that could be chosen was chosen.
        configs: Files whose text decides the figure; it goes into the results.
        prepare: Builds what `run` needs below a work folder; quick where it is built already.
        run: Trains and scores one seed below the work folder.
        raw: The set's folder of raw files.
        wanted: A path that is there if they are.
        archive: Name of an archive that holds them, unpacked in `raw`.
        digits: Decimals in tables.
    """

    name: str
    title: str
    metric: str
    better: str
    goal: float
    source: str
    protocol: str
    configs: tuple[Path, ...]
    prepare: Callable[[Path], None]
    run: Callable[[Path, int], dict[str, float]]
    raw: Path | None = None
    wanted: Path | None = None
    archive: str = ""
    digits: int = 3

    def texts(self) -> dict[str, str]:
        """Return the text of each config, by its path below the project."""
        return {str(path.relative_to(ROOT)): path.read_text() for path in self.configs}

    def digest(self) -> str:
        """Return what tells whether a seed's figure still holds: of configs and protocol."""
        parts = [self.metric, self.protocol, *sum(self.texts().items(), ())]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def meets(self, figure: float) -> bool:
        """Return whether a figure is as good as the goal."""
        return figure >= self.goal if self.better == "higher" else figure <= self.goal

    def unpack(self, archives: Path | None) -> None:
        """Make sure that the raw files are there.

        Args:
            archives: Folder of archives to unpack them from.

        Raises:
            FilesMissingError: If they are not, and there is no archive.
        """
        if self.wanted is None or self.raw is None or self.wanted.exists():
            return
        packed = None if archives is None else archives / self.archive
        if packed is None or not packed.exists():
            raise FilesMissingError(
                f"{self.name}: {self.wanted.relative_to(ROOT)} is not there. The README.md of "
                f"{self.raw.parent.relative_to(ROOT)} says how to get it; or say --archives FOLDER "
                f"of a folder that holds {self.archive}."
            )
        with tarfile.open(packed) as archive:
            archive.extractall(self.raw, filter="data")


def score_run(recipe: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Train the run of a config and return the metrics of its evaluation.

    A finished run is only evaluated, a broken one goes on, one of other data or config starts over.

    Args:
        recipe: The config's file.
        changes: Dotted fields that this run has otherwise: `store`, `out`, seeds.

    Returns:
        The metrics, with `best_epoch` and `best_loss`, the validation loss there.
    """
    config = TrainConfig.read(recipe).changed(changes)
    result = train(config, renew=True)
    chosen = {"best_epoch": result.best_epoch, "best_loss": result.best_loss}
    return evaluate(config).metrics | chosen


def build_changed(spec: Path, folder: Path, changes: dict[str, Any], store: Path) -> str:
    """Build a store by a specification of which single fields are otherwise; fit all of it anew.

    Args:
        spec: A dataset.yaml whose files lie in `raw` beside it.
        folder: Where the changed one is written.
        changes: Dotted fields and their values.
        store: Where the store is.

    Returns:
        The version.
    """
    document = yaml.safe_load(spec.read_text())
    for dotted, value in changes.items():
        *parents, name = dotted.split(".")
        section = document
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "raw").exists():
        (folder / "raw").symlink_to(spec.parent / "raw")
    (folder / spec.name).write_text(yaml.safe_dump(document, sort_keys=False))
    return build(folder / spec.name, store, refit=True).version  # what train alone may fit
