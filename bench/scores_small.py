"""Published accuracies on small sets of series: classes of whole trials, from the raw files.

`bench/scores.py` runs them. Where the published split is not public, each seed draws a split of its
own with as many train trials as the paper had, every class in proportion.

    python bench/scores_small.py NAME [FIELD=VALUE...] [--seeds 5]

trains on two thirds of the train trials and scores the other third, on splits of other seeds than
those that are reported. The configs were chosen by that figure alone: no test trial is looked at.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from scores_set import ROOT, ScoreSet, build_changed, score_run

from training.memory import keep_freed_memory

DATA = ROOT / "data"
HELD_OUT = 1 / 3
# Seeds from here on are for choosing; those that are reported count from 0.
FIRST_CHOOSING_SEED = 100
KARIM = (
    "F. Karim, S. Majumdar, H. Darabi, S. Harford: Multivariate LSTM-FCNs for time series "
    "classification, Neural Networks 116, 2019"
)
SEEN = (
    " Test figures of seeds 0 to 2 of an earlier config of LP1 were seen before the last choice, "
    "which itself was made on validation splits."
)
CHOSEN = (
    " Features, network and epochs were chosen by the mean accuracy on a third of the train trials "
    "of splits of other seeds. Reported runs train on all train trials; the last epoch counts."
)
FIGURES = ("accuracy", "balanced_accuracy", "naive_accuracy", "n")


@dataclass(frozen=True)
class Problem:
    """What makes the runs of a set.

    Attributes:
        folder: Below `data/`.
        spec: File there that says how the store is built.
        wanted: A path below the raw files that is there if they are.
        n_train: Trials to learn from, and
        n_test: to be scored, of splits drawn here; 0 where the data say the split.
        changes: Dotted fields of the specification that are otherwise.
    """

    folder: str
    spec: str
    wanted: str
    n_train: int = 0
    n_test: int = 0
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def configs(self) -> tuple[Path, Path]:
        """How its store is built, and how it is trained."""
        return DATA / self.folder / self.spec, DATA / self.folder / "train.yaml"

    def split_fields(self, seed: int, held_out: float) -> dict[str, Any]:
        """Return the split of a seed as fields of the specification.

        Args:
            seed: Of the split.
            held_out: Share of the train trials that is split `val`; the test trials stay the same.
        """
        carved = {"of": "train", "name": "val", "fraction": held_out} if held_out else None
        fields = dict(self.changes) | {"split.seed": seed, "split.validation": carved}
        if self.n_train:
            share = self.n_train / (self.n_train + self.n_test)
            fields["split.fractions"] = {"train": share, "test": 1 - share}
        return fields


def run(
    problem: Problem,
    work: Path,
    seed: int,
    *,
    held_out: float = 0.0,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Build, train and score one seed.

    Args:
        problem: Of which set.
        work: Folder that may be used; a run that was broken off goes on there.
        seed: Of the split, of the weights and of the order of the batches.
        held_out: Share of the train trials to score in place of the test trials.
        changes: Further dotted fields of the config.

    Returns:
        `accuracy`, `balanced_accuracy`, `naive_accuracy` of the most frequent train class, and `n`,
        how many trials were scored.
    """
    spec, recipe = problem.configs
    folder = work / f"{'choice' if held_out else 'split'}{seed}"
    build_changed(spec, folder, problem.split_fields(seed, held_out), folder / "store")
    fields: dict[str, Any] = {
        "store": folder / "store",
        "out": folder / "run",
        "seed": seed,
        "data.seed": seed,
        "data.validation_split": None,
        "evaluate.split": "val" if held_out else "test",
    }
    metrics = score_run(recipe, fields | dict(changes or {}))
    return {name: float(metrics[name]) for name in FIGURES}


def _failures(number: int, n_train: int, n_test: int) -> Problem:
    """Return one of the robot's five problems; their specifications differ in the file alone."""
    changes = (("source.files", f"raw/robot_failures/lp{number}.data"),)
    return Problem(
        "robot_failures", "features.yaml", "robot_failures/lp1.data", n_train, n_test, changes
    )


PROBLEMS = {
    "japanese_vowels": Problem("japanese_vowels", "dataset.yaml", "japanese_vowels/ae.train"),
    "movement_aal": Problem("movement_aal", "dataset.yaml", "movement_aal/dataset", 157, 157),
    "arem": Problem("arem", "features.yaml", "arem/walking", 44, 44),
    "robot_failures_lp1": _failures(1, 38, 50),
    "robot_failures_lp2": _failures(2, 17, 30),
    "robot_failures_lp3": _failures(3, 17, 30),
    "robot_failures_lp4": _failures(4, 42, 75),
    "robot_failures_lp5": _failures(5, 64, 100),
}


def make_set(name: str, title: str, goal: float, source: str) -> ScoreSet:
    """Return the set of a problem, whose accuracy is compared."""
    problem = PROBLEMS[name]
    drawn = (
        f"Stratified random splits of {problem.n_train} train and {problem.n_test} test trials, "
        "one for each seed; the paper's own split is not public."
    )
    raw = DATA / problem.folder / "raw"
    return ScoreSet(
        name=name,
        title=title,
        metric="accuracy",
        better="higher",
        goal=goal,
        source=source,
        protocol=(drawn if problem.n_train else "The published split.")
        + CHOSEN
        + (SEEN if name == "robot_failures_lp1" else ""),
        configs=problem.configs,
        prepare=lambda _: None,  # each seed has a store of its own, built with its split
        run=partial(run, problem),
        raw=raw,
        wanted=raw / problem.wanted,
        archive=f"{problem.folder}.tar.xz",
    )


SETS = [
    make_set(
        "japanese_vowels",
        "Japanese Vowels, who speaks",
        0.97,
        "Between the 96.2 % of a hidden Markov model (M. Kudo, J. Toyama, M. Shimbo, Pattern "
        f"Recognition Letters 20, 1999) and the 99 % of an LSTM-FCN ({KARIM})",
    ),
    make_set(
        "movement_aal",
        "Movement AAL, will the person change rooms",
        0.79,
        f"MLSTM-FCN 79.63 %: {KARIM}",
    ),
    make_set(
        "arem",
        "AReM, which activity",
        0.90,
        f"Between LSTM-FCN 89.74 % and MLSTM-FCN 92.31 %: {KARIM}",
    ),
    *(
        make_set(
            f"robot_failures_lp{number}",
            f"Robot Failures LP{number}, what failed",
            goal,
            f"MLSTM-FCN: {KARIM}",
        )
        for number, goal in enumerate((0.86, 0.83, 0.80, 0.92, 0.66), start=1)
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("name", choices=PROBLEMS)
    parser.add_argument("changes", nargs="*", metavar="FIELD=VALUE", help="model.hidden=32")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_intermixed_args()
    pairs = (change.partition("=") for change in asked.changes)
    changes = {field: yaml.safe_load(value) for field, _, value in pairs}
    keep_freed_memory()
    figures = []
    with tempfile.TemporaryDirectory() as work:
        for seed in range(FIRST_CHOOSING_SEED, FIRST_CHOOSING_SEED + asked.seeds):
            problem = PROBLEMS[asked.name]
            got = run(problem, Path(work), seed, held_out=HELD_OUT, changes=changes)
            figures.append(got["accuracy"])
            print(f"split {seed}: {figures[-1]:.3f} of {got['n']:.0f} trials", flush=True)
    spread = statistics.stdev(figures) if len(figures) > 1 else float("nan")
    print(f"{asked.name}: accuracy {statistics.fmean(figures):.4f} +- {spread:.4f}")


if __name__ == "__main__":
    main()
