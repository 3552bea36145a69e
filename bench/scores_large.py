"""Published figures on engines and patients: C-MAPSS FD001 to FD004, PhysioNet 2012 and 2019.

`bench/scores.py` runs them. Each set is the data set and the config of its folder below `data/`, as
they stand; a seed changes the weights, dropout and the order of the batches, and nothing else.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from scores_set import ROOT, ScoreSet, build_changed, score_run

from pipeline.build import build
from shards.tags import set_tag

DATA = ROOT / "data"
N_FOLDS = 5
ZHENG = (
    "S. Zheng, K. Ristovski, A. Farahat, C. Gupta: Long Short-Term Memory Network for Remaining "
    "Useful Life Estimation, ICPHM 2017, Table III"
)
# Figures of a run that go into the results, where its metrics hold them.
KEPT = (
    "rmse", "mae", "naive_rmse", "auroc", "average_precision", "positive_share", "n", "best_epoch",
    "best_loss",
)  # fmt: skip


def build_once(spec: Path, work: Path) -> None:
    """Build a set's store; again it reads nothing unless the specification changed."""
    build(spec, work / "store")


def run_once(recipe: Path, work: Path, seed: int) -> dict[str, float]:
    """Train and score one seed of a set that has a split of its own."""
    return kept(score_run(recipe, fields_of(work / "store", work / f"seed{seed}", seed)))


def build_folds(spec: Path, work: Path) -> None:
    """Build a version of one store for each fold: the files are read for the first one alone."""
    for fold in range(N_FOLDS):
        version = build_changed(spec, work / "spec", {"split.fold": fold}, work / "store")
        set_tag(work / "store", f"fold{fold}", version, force=True)


def run_folds(recipe: Path, work: Path, seed: int) -> dict[str, float]:
    """Train and score each fold; the figures are means over the folds."""
    folds = []
    for fold in range(N_FOLDS):
        fields = fields_of(work / "store", work / f"seed{seed}" / f"fold{fold}", seed)
        folds.append(kept(score_run(recipe, fields | {"version": f"fold{fold}"})))
    means = {name: sum(one[name] for one in folds) / N_FOLDS for name in folds[0]}
    return means | {f"auroc_fold{number}": one["auroc"] for number, one in enumerate(folds)}


def fields_of(store: Path, out: Path, seed: int) -> dict[str, Any]:
    """Return what a run has otherwise than its config's file."""
    return {"store": store, "out": out, "seed": seed, "data.seed": seed}


def kept(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a run that are worth keeping."""
    return {name: float(metrics[name]) for name in KEPT if metrics.get(name) is not None}


def cmapss_set(number: int, goal: float, chosen: str) -> ScoreSet:
    """Return one of the four sets of conditions."""
    folder = DATA / "cmapss"
    spec, recipe = folder / f"fd00{number}.yaml", folder / f"fd00{number}_train.yaml"
    return ScoreSet(
        name=f"cmapss_fd00{number}",
        title=f"C-MAPSS FD00{number}: remaining useful life of engines",
        metric="rmse",
        better="lower",
        goal=goal,
        source=ZHENG,
        protocol="The published test engines, one prediction for each, at its last cycle; RMSE in "
        "cycles against the true remaining life, which is not clipped. Learned from the train "
        f"engines, with targets clipped at 130 cycles. {chosen}",
        configs=(spec, recipe),
        prepare=partial(build_once, spec),
        run=partial(run_once, recipe),
        raw=folder / "raw",
        wanted=folder / "raw" / "cmapss_trials" / f"FD00{number}",
        archive="cmapss.tar.xz",
        digits=2,
    )


BY_EPOCH = "The epoch is the best one on held-out train engines"
LAST = f"{BY_EPOCH}; windows of 50 cycles and a loss on their last one were taken as they were."
RUNS = f"{BY_EPOCH}; whole runs were taken as they were."
EVERY = (
    f"{BY_EPOCH}. A loss at every cycle, and windows of 80 cycles rather than 50 or 120, were "
    "chosen by the error on held-out train engines of another split."
)
P2012, P2019 = DATA / "physionet2012", DATA / "sepsis"

SETS = [
    cmapss_set(1, 16.14, LAST),
    cmapss_set(2, 24.49, RUNS),
    cmapss_set(3, 16.18, EVERY),
    cmapss_set(4, 28.17, RUNS),
    ScoreSet(
        name="physionet2012",
        title="PhysioNet 2012, set A: death in hospital",
        metric="auroc",
        better="higher",
        goal=0.82,
        source="below the .84 of GRU-D, also five folds of set A: Z. Che, S. Purushotham, K. Cho, "
        "D. Sontag, Y. Liu: Recurrent Neural Networks for Multivariate Time Series with Missing "
        "Values, Scientific Reports 8, 2018",
        protocol="Five folds of the 4,000 stays, stratified by outcome; the mean over the folds of "
        "the AUROC in each. A seed is all five. The epoch is the best one on 15 % of the other "
        "four folds; of the config nothing was chosen.",
        configs=(P2012 / "dataset.yaml", P2012 / "train.yaml"),
        prepare=partial(build_folds, P2012 / "dataset.yaml"),
        run=partial(run_folds, P2012 / "train.yaml"),
        raw=P2012 / "raw",
        wanted=P2012 / "raw" / "set-a",
        archive="physionet2012_seta.tar.xz",
    ),
    ScoreSet(
        name="sepsis",
        title="PhysioNet 2019, set A: sepsis, each hour",
        metric="auroc",
        better="higher",
        goal=0.75,
        source="no published figure has this split; above the .63 of a two-layer LSTM on a split "
        "of its own: Kucharski et al., Computing in Cardiology 2019",
        protocol="A tenth of the patients, by a hash of the patient; AUROC over all their hours. "
        "The epoch is the best one on another tenth. Network and windows were chosen on "
        "another split of the same patients, with its test figures in view.",
        configs=(P2019 / "dataset.yaml", P2019 / "train.yaml"),
        prepare=partial(build_once, P2019 / "dataset.yaml"),
        run=partial(run_once, P2019 / "train.yaml"),
        raw=P2019 / "raw",
        wanted=P2019 / "raw" / "training_setA",
        archive="physionet2019_setA.tar.xz",
    ),
]
