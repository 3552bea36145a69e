"""Write the robot_arm data set: 1,200 synthetic pick-and-place trials and a few broken files.

Run from the repository root: `python data/robot_arm/generate.py`. README.md lists the columns.
Each trial draws from its own seed (seed, subject, index), so any one can be made again alone.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # a script finds its siblings, a module loaded by path does not
    sys.path.append(str(HERE))

from arm_damage import BROKEN, DAMAGE  # noqa: E402
from arm_dynamics import Arm, Floats, draw_arm, joint_torques  # noqa: E402
from arm_motion import Habits, Motion, draw_habits, plan_trial  # noqa: E402

# Part of the stamp: raise it when the same seed gives other bytes.
VERSION = 1
N_SUBJECTS = 12
N_TRIALS = 1200
CHANNELS = ("q1", "q2", "q3", "dq1", "dq2", "dq3", "tau1", "tau2", "tau3")
COLUMNS = ("t", *CHANNELS, "gripper", "payload_kg", "payload")
NOMINAL_KG = {"light": 0.5, "heavy": 2.0}
# Decimals that the sensors resolve; more would only make the files longer.
DECIMALS = {"t": 2, "q": 4, "dq": 4, "tau": 3, "payload_kg": 3}
# Runs of missing rows per cell: with 4.5 rows to a run this leaves about 1.5 % of the cells empty.
DROPOUT_RATE = 0.0033
LONG_GAP_SHARE = 0.12


@dataclass(frozen=True)
class Sensors:
    """Errors of one robot's sensors, one value per joint: offsets and gains are constant."""

    angle_offset_rad: Floats
    torque_gain: Floats
    torque_offset_n_m: Floats
    angle_noise_rad: float = 3e-4
    velocity_noise_rad_s: float = 6e-3
    torque_noise_n_m: tuple[float, float, float] = (0.22, 0.14, 0.05)


@dataclass(frozen=True)
class Robot:
    """One subject: its mechanics, its way of working and its sensors."""

    arm: Arm
    habits: Habits
    sensors: Sensors


def draw_sensors(rng: np.random.Generator) -> Sensors:
    """Draw one robot's calibration errors."""
    return Sensors(
        angle_offset_rad=rng.normal(0, 0.008, 3),
        torque_gain=rng.uniform(0.94, 1.06, 3),
        torque_offset_n_m=rng.normal(0, [0.6, 0.35, 0.08]),
    )


def draw_robot(seed: int, subject: int) -> Robot:
    """Draw subject 1 to 12; the same robot for all of its trials."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(subject,)))
    return Robot(draw_arm(rng), draw_habits(rng), draw_sensors(rng))


def simulate_trial(seed: int, subject: int, index: int) -> dict[str, NDArray[Any]]:
    """Simulate one trial.

    Args:
        seed: Seed of the data set.
        subject: Robot number, from 1.
        index: Trial number inside the subject, from 1.

    Returns:
        One array per entry of `COLUMNS`, all of the same length: time in s, angles in rad,
        velocities in rad/s, torques in N m (NaN = missing), `gripper` and `payload` as text.
    """
    robot = draw_robot(seed, subject)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(subject, index)))
    payload = "heavy" if rng.random() < 0.5 else "light"
    mass_kg = NOMINAL_KG[payload] * rng.uniform(0.95, 1.05)
    weighed_kg = mass_kg + rng.normal(0, 0.008)
    motion = plan_trial(rng, robot.arm, habits=robot.habits)
    measured = measure(rng, robot, motion=motion, mass_kg=mass_kg)
    drop_values(rng, measured)
    columns: dict[str, NDArray[Any]] = {"t": motion.t_s}
    columns |= dict(zip(CHANNELS, measured.T, strict=True))
    columns["gripper"] = motion.gripper
    columns["payload_kg"] = np.full(len(measured), weighed_kg)
    columns["payload"] = np.full(len(measured), payload)
    return {name: _rounded(name, values) for name, values in columns.items()}


def measure(rng: np.random.Generator, robot: Robot, *, motion: Motion, mass_kg: float) -> Floats:
    """Return what the sensors say about a motion, `[row, channel]` in the order of `CHANNELS`."""
    torque = joint_torques(
        robot.arm,
        motion.q_rad,
        dq_rad_s=motion.dq_rad_s,
        ddq_rad_s2=motion.ddq_rad_s2,
        load_kg=mass_kg * motion.load_fraction,
    )
    sensors, shape = robot.sensors, motion.q_rad.shape
    q = motion.q_rad + sensors.angle_offset_rad + rng.normal(0, sensors.angle_noise_rad, shape)
    dq = motion.dq_rad_s + rng.normal(0, sensors.velocity_noise_rad_s, shape)
    tau = sensors.torque_gain * torque + sensors.torque_offset_n_m
    tau += rng.normal(0, sensors.torque_noise_n_m, shape)
    return np.concatenate([q, dq, tau], axis=1)


def drop_values(rng: np.random.Generator, values: Floats) -> None:
    """Blank short runs of single channels in place, and in some trials one longer gap."""
    n_rows, n_channels = values.shape
    n_runs = rng.poisson(DROPOUT_RATE * values.size)
    starts = rng.integers(0, n_rows, n_runs)
    spans = rng.integers(1, 9, n_runs)
    hit = rng.integers(0, n_channels, n_runs)
    for start, span, channel in zip(starts, spans, hit, strict=True):
        values[start : start + span, channel] = np.nan
    if rng.random() < LONG_GAP_SHARE:
        start, joint = rng.integers(0, n_rows - 40), rng.integers(0, 3)
        # A joint's controller goes silent: angle, velocity and torque are lost together.
        values[start : start + rng.integers(12, 41), joint::3] = np.nan


def _rounded(name: str, values: NDArray[Any]) -> NDArray[Any]:
    decimals = DECIMALS.get(name.rstrip("123"))
    # Adding zero turns -0.0 into 0.0, which would be written with its sign.
    return values if decimals is None else np.round(values, decimals) + 0.0


def encode_csv(columns: dict[str, NDArray[Any]]) -> bytes:
    """Return a trial as CSV text with a header; NaN becomes an empty field."""
    buffer = io.BytesIO()
    pl.DataFrame(columns).fill_nan(None).write_csv(buffer, float_scientific=False)
    return buffer.getvalue()


def trial_path(subject: int, index: int) -> str:
    """Return where a trial lies below `raw/`."""
    return f"s{subject:02d}/trial_{index:04d}.csv"


def good_trials(n_trials: int) -> list[tuple[int, int]]:
    """Return (subject, index) of every good trial; broken files keep their numbers to themselves.

    Trials are dealt to the subjects in turn, so that a small data set has every robot, too.
    """
    pairs = []
    for subject in range(1, N_SUBJECTS + 1):
        wanted = len(range(subject - 1, n_trials, N_SUBJECTS))
        numbers = (i for i in range(1, n_trials + 2) if trial_path(subject, i) not in BROKEN)
        pairs += [(subject, index) for index, _ in zip(numbers, range(wanted), strict=False)]
    return pairs


def _write_trials(raw: Path, seed: int, n_trials: int) -> int:
    """Write every file below a folder and return the number of bytes."""
    for subject in range(1, N_SUBJECTS + 1):
        (raw / f"s{subject:02d}").mkdir(parents=True)
    size_bytes = 0
    for n_done, (subject, index) in enumerate(good_trials(n_trials), start=1):
        data = encode_csv(simulate_trial(seed, subject, index))
        size_bytes += (raw / trial_path(subject, index)).write_bytes(data)
        if n_done % 300 == 0:
            print(f"  {n_done:,} of {n_trials:,} trials, {size_bytes / 1e6:.1f} MB", flush=True)
    for path, (_, damage) in DAMAGE.items():
        subject, index = int(path[1:3]), int(path[-8:-4])
        data = damage(encode_csv(simulate_trial(seed, subject, index)))
        size_bytes += (raw / path).write_bytes(data)
    return size_bytes


def _replace_folder(new: Path, target: Path) -> None:
    """Rename a finished folder into place; an old one steps aside first, then goes."""
    aside = target.with_name(f"{target.name}.old-{os.getpid()}")
    if target.exists():
        target.rename(aside)
    new.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def generate(out: Path, seed: int = 0, n_trials: int = N_TRIALS, *, force: bool = False) -> Path:
    """Write the data set as `out/raw`, all of it or nothing.

    Args:
        out: Folder that gets `raw/`.
        seed: Any non-negative integer; the same seed gives the same bytes.
        n_trials: Number of good trials; the broken files come on top.
        force: Replace an existing `raw/` whatever it holds.

    Returns:
        The path of `raw/`.

    Raises:
        ValueError: If `n_trials` is below 1.
        FileExistsError: If `raw/` holds something else and `force` is false.
    """
    if n_trials < 1:
        raise ValueError(f"n_trials is {n_trials}, wanted 1 or more. Leave it out for {N_TRIALS}.")
    raw = out / "raw"
    stamp = {"version": VERSION, "seed": seed, "n_trials": n_trials, "n_broken": len(BROKEN)}
    if raw.exists() and not force:
        _require_same(raw, stamp)
        print(f"{raw} is complete already ({n_trials:,} trials, seed {seed}); nothing to do")
        return raw
    started, building = time.perf_counter(), out / f"raw.tmp-{os.getpid()}"
    try:
        stamp["n_bytes"] = _write_trials(building, seed, n_trials)
        (building / ".complete").write_text(json.dumps(stamp) + "\n")
        _replace_folder(building, raw)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    seconds, size_mb = time.perf_counter() - started, stamp["n_bytes"] / 1e6
    print(f"{raw}: {n_trials:,} trials + {len(BROKEN)} broken, {size_mb:.1f} MB, {seconds:.1f} s")
    return raw


def _require_same(raw: Path, stamp: dict[str, int]) -> None:
    """Raise unless `raw/` was finished with the same version, seed and counts."""
    path = raw / ".complete"
    found = json.loads(path.read_text()) if path.is_file() else {}
    if any(found.get(key) != value for key, value in stamp.items()):
        raise FileExistsError(
            f"{raw} holds {found or 'no .complete stamp'}, wanted {stamp}. "
            "Add --force to replace it, or --out to write elsewhere."
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder that gets raw/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=N_TRIALS, help="number of good trials")
    parser.add_argument("--force", action="store_true", help="replace an existing raw/")
    args = parser.parse_args(argv)
    try:
        generate(args.out, args.seed, args.trials, force=args.force)
    except (ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
