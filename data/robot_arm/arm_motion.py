"""Pick-and-place motion: a chain of minimum-jerk strokes between stations, plus the gripper."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from arm_dynamics import Arm, Floats
from numpy.typing import NDArray

RATE_HZ = 50
MIN_ROWS, MAX_ROWS = 150, 900
# Weight passes between table and fingers over this time, while the arm stands still.
TRANSFER_S = 0.12
# Recordings stopped by hand before the task was done.
_STOPPED_SHARE = 0.08
_GRIPPER_STATES = np.array(["open", "closing", "closed", "opening"])
_HOME_M = np.array([0.36, 0.22])


@dataclass(frozen=True)
class Habits:
    """How one robot is set up to work.

    Attributes:
        slowness: Factor on the duration of a stroke; 1 is typical.
        pause_s: Rest before and after the gripper moves.
        grip_s: Time the fingers need to close.
        tool_angle_rad: Absolute angle of the last link; -pi/2 points straight down.
        stations_m: Places where objects wait, `[station, (x, y)]`, y = 0 at the shoulder.
    """

    slowness: float
    pause_s: float
    grip_s: float
    tool_angle_rad: float
    stations_m: Floats


@dataclass(frozen=True)
class Motion:
    """What the arm really does, before any sensor: `[row]` or `[row, joint]`, 50 rows a second."""

    t_s: Floats
    q_rad: Floats
    dq_rad_s: Floats
    ddq_rad_s2: Floats
    gripper: NDArray[np.str_]
    load_fraction: Floats


def draw_habits(rng: np.random.Generator) -> Habits:
    """Draw one robot's speed preference, timing and work place."""
    x = np.array([0.34, 0.46, 0.57]) + rng.uniform(-0.03, 0.03, 3)
    y = np.array([-0.28, -0.22, -0.12]) + rng.uniform(-0.04, 0.04, 3)
    return Habits(
        slowness=rng.uniform(0.78, 1.25),
        pause_s=rng.uniform(0.16, 0.30),
        grip_s=rng.uniform(0.22, 0.40),
        tool_angle_rad=-np.pi / 2 + rng.uniform(-0.15, 0.25),
        stations_m=np.stack([x, y], axis=1),
    )


def joint_angles(arm: Arm, point_m: Floats, tool_angle_rad: float) -> Floats:
    """Joint angles (rad, elbow up) that put the tip on a point with the tool at an angle.

    Raises:
        ValueError: If the point is out of reach.
    """
    first, second, tool = arm.length_m
    x, y = point_m - tool * np.array([np.cos(tool_angle_rad), np.sin(tool_angle_rad)])
    bend = (x * x + y * y - first**2 - second**2) / (2 * first * second)
    if abs(bend) > 1:
        raise ValueError(
            f"point ({point_m[0]:.2f}, {point_m[1]:.2f}) m is out of reach: "
            f"wrist at {np.hypot(x, y):.2f} m, reach {first + second:.2f} m. Move the station."
        )
    q2 = -np.arccos(bend)
    q1 = np.arctan2(y, x) - np.arctan2(second * np.sin(q2), first + second * np.cos(q2))
    return np.array([q1, q2, tool_angle_rad - q1 - q2])


@dataclass
class Plan:
    """Strokes and gripper events in the order of time; `sample` turns them into rows."""

    pose_rad: Floats
    clock_s: float = 0.0
    strokes: list[tuple[float, float, Floats]] = field(default_factory=list)
    grips: list[tuple[float, str]] = field(default_factory=lambda: [(0.0, "open")])

    def reach(self, pose_rad: Floats, *, slowness: float, blend: float = 0.0) -> None:
        """Add a stroke; `blend` is the share of it that overlaps the end of the last one."""
        step = pose_rad - self.pose_rad
        duration = slowness * (0.30 + 0.55 * float(np.abs(step).max()))
        start = self.clock_s - blend * duration
        self.strokes.append((start, duration, step))
        self.pose_rad, self.clock_s = pose_rad, start + duration

    def grip(self, states: tuple[str, str], *, grip_s: float, pause_s: float) -> None:
        """Pause, run the fingers through two states, pause again."""
        begin = self.clock_s + pause_s
        self.grips += [(begin, states[0]), (begin + grip_s, states[1])]
        self.clock_s = begin + grip_s + max(pause_s, TRANSFER_S)

    def sample(self, start_rad: Floats) -> Motion:
        """Evaluate the plan at 50 Hz: strokes add up, so velocity and acceleration are exact."""
        n_rows = int(np.clip(round(self.clock_s * RATE_HZ), MIN_ROWS, MAX_ROWS))
        t = np.arange(n_rows) / RATE_HZ
        starts, spans = (np.array([s[i] for s in self.strokes]) for i in (0, 1))
        steps = np.stack([s[2] for s in self.strokes])
        u = np.clip((t[:, None] - starts) / spans, 0.0, 1.0)
        blends = (
            u**3 * (10 - 15 * u + 6 * u**2),
            30 * u**2 * (1 - u) ** 2 / spans,
            60 * u * (1 - u) * (1 - 2 * u) / spans**2,
        )
        # einsum, not BLAS: the same sums in the same order whatever library numpy was built with.
        q, dq, ddq = (np.einsum("rk,kj->rj", b, steps) for b in blends)
        gripper, load = self._gripper_at(t)
        return Motion(t, start_rad + q, dq, ddq, gripper, load)

    def _gripper_at(self, t: Floats) -> tuple[NDArray[np.str_], Floats]:
        """Finger state as text, and the share of the object's weight that the fingers carry."""
        times = np.array([time for time, _ in self.grips])
        names = np.array([name for _, name in self.grips], dtype=_GRIPPER_STATES.dtype)
        load = np.zeros_like(t)
        for time, name in self.grips:
            if name == "closed":
                load += np.clip((t - time) / TRANSFER_S, 0, 1)
            elif name == "opening":
                load -= np.clip((t - time + TRANSFER_S) / TRANSFER_S, 0, 1)
        return names[np.searchsorted(times, t, side="right") - 1], np.clip(load, 0, 1)


def plan_trial(rng: np.random.Generator, arm: Arm, *, habits: Habits) -> Motion:
    """Plan one trial: one to three objects are picked up, carried and put down."""
    pace = habits.slowness * rng.uniform(0.88, 1.14)
    home = joint_angles(arm, _HOME_M + rng.normal(0, 0.015, 2), habits.tool_angle_rad + 0.5)
    plan = Plan(home, clock_s=rng.uniform(0.2, 0.8))
    for _ in range(rng.choice([1, 2, 3], p=[0.36, 0.40, 0.24])):
        pick, place = rng.choice(len(habits.stations_m), size=2, replace=False)
        _visit(plan, rng, arm, habits=habits, station=int(pick), pace=pace)
        plan.grip(("closing", "closed"), grip_s=habits.grip_s, pause_s=_pause(rng, habits))
        _visit(plan, rng, arm, habits=habits, station=int(place), pace=pace)
        plan.grip(("opening", "open"), grip_s=0.8 * habits.grip_s, pause_s=_pause(rng, habits))
    if rng.random() < 0.8:  # one recording in five is stopped at the last station
        plan.reach(home, slowness=pace)
    plan.clock_s += rng.uniform(0.1, 0.7)
    if rng.random() < _STOPPED_SHARE:
        plan.clock_s *= rng.uniform(0.55, 0.95)
    return plan.sample(home)


def _pause(rng: np.random.Generator, habits: Habits) -> float:
    return habits.pause_s * rng.uniform(0.85, 1.2)


def _visit(
    plan: Plan,
    rng: np.random.Generator,
    arm: Arm,
    *,
    habits: Habits,
    station: int,
    pace: float,
) -> None:
    """Lift, travel above a station and come down on it, without stopping in between."""
    spot = habits.stations_m[station] + rng.normal(0, [0.02, 0.008])
    above = _raised(spot, rng.uniform(0.10, 0.17))
    here = plan.pose_rad
    if plan.strokes:  # not from home, which is high already
        over = _raised(tip_position(arm, here), rng.uniform(0.08, 0.13))
        lift = joint_angles(arm, over, float(here.sum()))
        plan.reach(lift, slowness=pace * rng.uniform(0.95, 1.05))
    for point, blend in ((above, 0.3 if plan.strokes else 0.0), (spot, 0.25)):
        angle = habits.tool_angle_rad + rng.normal(0, 0.03)
        pose = joint_angles(arm, point, angle)
        plan.reach(pose, slowness=pace * rng.uniform(0.95, 1.05), blend=blend)


def _raised(point_m: Floats, by_m: float) -> Floats:
    raised: Floats = point_m + np.array([0.0, by_m])
    return raised


def tip_position(arm: Arm, q_rad: Floats) -> Floats:
    """Position (m) of the tip for one pose; the inverse of `joint_angles`."""
    angle = np.cumsum(q_rad)
    tip: Floats = np.array([arm.length_m @ np.cos(angle), arm.length_m @ np.sin(angle)])
    return tip
