"""Steps per second of a training run against the same model fed one constant batch.

python bench/train.py [--quick] [--device cuda] [--only NAME] writes bench/results/train.json (with
a device in its name beside the CPU) and prints it. `run` is the training job's own loop: stream,
move to the device, forward, loss, backward, clip, optimizer, schedule, books, records. `constant`
is forward, loss, backward, clip, optimizer and schedule on batches that are on the device from the
start: one of windows; of trials and lanes, which differ in length, the very batches that the run
takes. Both take turns in one process, there and back; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from train_store import make

from loaders import Batch
from training import TrainConfig
from training.build import move_batch
from training.carry import run_model
from training.job import Job, prepare_job
from training.loop import endless, train_epoch
from training.loss import step_loss
from training.memory import keep_freed_memory
from training.record import Observers, Recorder
from training.state import RunState, StopSignal

HERE = Path(__file__).parent
GOALS = {"cpu": 0.95, "cuda": 0.98}
LSTM64 = {"hidden": 64, "layers": 1, "dropout": 0.0, "head": [32]}
LSTM256 = {"hidden": 256, "layers": 2, "dropout": 0.0, "head": [32]}


@dataclasses.dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        model: Of the config.
        data: Likewise.
        n_steps: Of a turn on the CPU; a GPU takes ten times as many.
        rounds: Turns of each that count.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    n_steps: int
    rounds: int = 11


CASES = {
    "LSTM-64, 256 windows of 64": Case(LSTM64, {"batch_size": 256}, 20),
    "2 x LSTM-256, 1024 windows of 128": Case(
        LSTM256, {"batch_size": 1024, "windows": {"length": 128}}, 1, rounds=5
    ),
    "LSTM-64, 16 trials": Case(LSTM64, {"batch_size": 16, "batches": "trials"}, 12),
    "LSTM-64, 64 lanes of 128": Case(LSTM64, {"batch_size": 64, "batches": "lanes"}, 20),
}
QUICK = {
    "LSTM-8, 32 windows of 64": Case({"hidden": 8, "layers": 1}, {"batch_size": 32}, 2, rounds=2),
    "LSTM-8, 4 lanes of 16": Case(
        {"hidden": 8, "layers": 1},
        {"batch_size": 4, "batches": "lanes", "lanes": {"chunk": 16}}, 2, rounds=2,
    ),
}  # fmt: skip


def run_turn(job: Job, n_steps: int) -> Callable[[], Any]:
    """Return what takes the job's next steps, with all that a run does beside them."""
    state, stop = RunState(), StopSignal()
    recorder = Recorder(job, state, None, Observers())
    batches = endless(job.stream)
    turn = dataclasses.replace(job, n_batches=n_steps)

    def take() -> None:
        state.step_in_epoch = 0
        train_epoch(turn, state, batches, stop=stop, recorder=recorder)

    return take


def constant_turn(job: Job, batches: Iterator[Batch], n_steps: int) -> Callable[[], Any]:
    """Return what takes as many steps on batches that are there."""
    clip = job.config.optimizer.clip_norm
    job.model.train()

    def take() -> None:
        for batch in islice(batches, n_steps):
            output = run_model(job.model, batch, job.carry)
            loss = step_loss(output, batch, job.objective(batch))
            job.fabric.backward(loss)
            job.fabric.clip_gradients(
                job.model, job.optimizer, max_norm=clip, error_if_nonfinite=False
            )
            job.optimizer.step()
            job.scheduler.step()
            job.optimizer.zero_grad(set_to_none=True)

    return take


def seconds_of(turn: Callable[[], Any], device: torch.device) -> float:
    began = time.perf_counter()
    turn()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def compare(store: Path, scratch: Path, case: Case, device: str) -> dict[str, Any]:
    """Let run and constant take turns; a ratio is of two turns that follow each other."""
    jobs = []
    for name in ("run", "constant"):
        shutil.rmtree(scratch / name, ignore_errors=True)
        config = TrainConfig(
            store=store, out=scratch / name, model=case.model, epochs=1000,
            data={**case.data, "validation_split": None},
            optimizer={"schedule": "constant"}, device={"accelerator": device},
        )  # fmt: skip
        jobs.append(prepare_job(config))
    n_steps = case.n_steps * (10 if device == "cuda" else 1)
    on = jobs[1].fabric.device
    whole = case.data.get("batches", "windows") == "windows"
    n_kept = 1 if whole else n_steps * (case.rounds + 1)
    kept = [move_batch(batch, on) for batch in islice(endless(jobs[1].stream), n_kept)]
    turns = {
        "run": run_turn(jobs[0], n_steps), "constant": constant_turn(jobs[1], cycle(kept), n_steps)
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(case.rounds + 1):
        for name in list(turns) if number % 2 else list(reversed(turns)):
            seconds = seconds_of(turns[name], on)
            if number:  # the first round warms up
                found[name].append(seconds)
    ratio = median(c / r for c, r in zip(found["constant"], found["run"], strict=True))
    return {
        "steps_per_s": {name: round(n_steps / median(s), 2) for name, s in found.items()},
        "ratio": round(ratio, 4),
        "goal": GOALS[device],
        "met": ratio >= GOALS[device],
        "n_steps": n_steps,
        "rounds": case.rounds,
        "model": case.model,
        "data": case.data,
    }


def machine(device: str) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cores": os.cpu_count(), "load": os.getloadavg()[0], "torch": torch.__version__,
        "python": platform.python_version(), "system": platform.system(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models, some seconds")
    parser.add_argument("--device", choices=list(GOALS), default="cpu")
    parser.add_argument("--only", help="cases whose name holds this; nothing is written")
    parser.add_argument("--scratch", type=Path, default=HERE / "scratch" / "train")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"this PyTorch ({torch.__version__}) sees no CUDA device; --device cpu runs here")
    keep_freed_memory()  # as `trialshards train` does
    cases = QUICK if given.quick else CASES
    n_trials = 20 if given.quick else 600
    store = make(given.scratch / f"store-{n_trials}", n_trials)
    report: dict[str, Any] = {"machine": machine(given.device), "cases": {}}
    for name, case in cases.items():
        if given.only is None or given.only in name:
            got = report["cases"][name] = compare(store, given.scratch, case, given.device)
            rates = ", ".join(f"{k} {v:,} steps/s" for k, v in got["steps_per_s"].items())
            word = "met" if got["met"] else "MISSED"
            print(f"{name}: {rates}, ratio {got['ratio']} (goal {got['goal']}: {word})", flush=True)
    if given.only is None:
        given.results.mkdir(parents=True, exist_ok=True)
        kind = ("" if given.device == "cpu" else ".cuda") + (".quick" if given.quick else "")
        (given.results / f"train{kind}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
