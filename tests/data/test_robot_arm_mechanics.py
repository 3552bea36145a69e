"""The sample data obey mechanics: derivatives, energy, gravity, friction and payload."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from robot_arm_generator import dynamics, gen, motions


@pytest.fixture(scope="module")
def trials() -> list[dict[str, Any]]:
    return [gen.simulate_trial(0, 3, index) for index in range(1, 25)]


def planned(subject: int = 1, index: int = 1) -> tuple[Any, Any]:
    robot = gen.draw_robot(0, subject)
    rng = np.random.default_rng(index)
    return robot, motions.plan_trial(rng, robot.arm, habits=robot.habits)


def mechanical_energy(arm: Any, q: np.ndarray, dq: np.ndarray, load_kg: float) -> np.ndarray:
    """Energy (J) from forward kinematics, so that it shares no code with the dynamics."""
    angle, spin = np.cumsum(q, axis=1), np.cumsum(dq, axis=1)
    joint, speed = np.zeros((len(q), 2)), np.zeros((len(q), 2))
    energy = np.zeros(len(q))
    bodies = []
    for link in range(3):
        along = np.stack([np.cos(angle[:, link]), np.sin(angle[:, link])], axis=1)
        across = np.stack([-along[:, 1], along[:, 0]], axis=1) * spin[:, link, None]
        com, length = arm.com_m[link], arm.length_m[link]
        bodies.append((arm.mass_kg[link], joint + com * along, speed + com * across))
        energy += arm.inertia_kg_m2[link] * spin[:, link] ** 2 / 2
        joint, speed = joint + length * along, speed + length * across
    bodies.append((load_kg, joint, speed))
    for mass, place, velocity in bodies:
        energy += mass * ((velocity**2).sum(axis=1) / 2 + dynamics.GRAVITY_M_S2 * place[:, 1])
    return energy + (arm.rotor_kg_m2 * dq**2).sum(axis=1) / 2


def test_velocity_is_the_derivative_of_the_angle(trials: list[dict[str, Any]]):
    for trial in trials[:8]:
        for joint in "123":
            slope = np.gradient(trial[f"q{joint}"], 0.02)[1:-1]
            error = slope - trial[f"dq{joint}"][1:-1]
            assert np.sqrt(np.nanmean(error**2)) < 0.02  # rad/s, mostly encoder noise


def test_acceleration_is_the_derivative_of_the_velocity():
    _, motion = planned()
    error = np.gradient(motion.dq_rad_s, 0.02, axis=0)[1:-1] - motion.ddq_rad_s2[1:-1]
    assert np.sqrt(np.mean(error**2)) < 0.01 * np.abs(motion.ddq_rad_s2).max()


def test_torque_at_rest_is_the_slope_of_the_potential_energy():
    robot, motion = planned()
    q, still = motion.q_rad[::50], np.zeros_like(motion.q_rad[::50])
    torque = dynamics.joint_torques(
        robot.arm, q, dq_rad_s=still, ddq_rad_s2=still, load_kg=np.full(len(q), 2.0)
    )
    for joint in range(3):
        step = 1e-5 * np.eye(3)[joint]
        high, low = (mechanical_energy(robot.arm, q + s, still, 2.0) for s in (step, -step))
        np.testing.assert_allclose(torque[:, joint], (high - low) / 2e-5, atol=1e-6)


@pytest.mark.parametrize("load_kg", [0.0, 2.0])
def test_work_of_the_motors_is_energy_gained_plus_friction(load_kg: float):
    robot, motion = planned(subject=4)
    q, dq = motion.q_rad, motion.dq_rad_s
    torque = dynamics.joint_torques(
        robot.arm,
        q,
        dq_rad_s=dq,
        ddq_rad_s2=motion.ddq_rad_s2,
        load_kg=np.full(len(q), load_kg),
    )
    power = ((torque - dynamics.friction_torques(robot.arm, dq)) * dq).sum(axis=1)
    work = np.append(0, np.cumsum((power[1:] + power[:-1]) / 2 * 0.02))
    gained = mechanical_energy(robot.arm, q, dq, load_kg)
    assert np.ptp(gained) > 10  # J: the arm does move
    np.testing.assert_allclose(work, gained - gained[0], atol=0.01 * np.ptp(gained))


def test_friction_opposes_motion():
    robot, motion = planned()
    assert (dynamics.friction_torques(robot.arm, motion.dq_rad_s) * motion.dq_rad_s >= 0).all()


def test_measured_torque_at_rest_is_gravity_seen_through_the_sensor():
    robot, motion = planned(subject=9)
    rng = np.random.default_rng(0)
    measured = gen.measure(rng, robot, motion=motion, mass_kg=2.0)[:, 6:]
    sensors = robot.sensors
    torque = (measured - sensors.torque_offset_n_m) / sensors.torque_gain
    load = 2.0 * motion.load_fraction
    error = torque - dynamics.gravity_torques(robot.arm, motion.q_rad, load)
    rest = (motion.dq_rad_s == 0).all(axis=1)
    assert rest.sum() > 20
    assert (np.abs(error[rest].mean(axis=0)) < 0.1).all()
    assert (np.abs(error[rest]) < 6 * np.array(sensors.torque_noise_n_m)).all()


def test_a_heavy_payload_needs_more_torque_while_it_is_held(trials: list[dict[str, Any]]):
    held: dict[str, list[float]] = {"light": [], "heavy": []}
    free: dict[str, list[float]] = {"light": [], "heavy": []}
    for trial in trials:
        closed, tau = trial["gripper"] == "closed", np.abs(trial["tau1"])
        held[trial["payload"][0]].append(float(np.nanmean(tau[closed])))
        free[trial["payload"][0]].append(float(np.nanmean(tau[~closed])))
    assert np.mean(held["heavy"]) > np.mean(held["light"]) + 4  # N m
    # With empty fingers the class is not to be seen.
    assert abs(np.mean(free["heavy"]) - np.mean(free["light"])) < 2


def test_the_pose_puts_the_tip_where_it_was_asked_for():
    robot = gen.draw_robot(0, 1)
    for station in robot.habits.stations_m:
        pose = motions.joint_angles(robot.arm, station, -1.5)
        np.testing.assert_allclose(motions.tip_position(robot.arm, pose), station, atol=1e-12)
    with pytest.raises(ValueError, match="out of reach"):
        motions.joint_angles(robot.arm, np.array([1.0, 0.5]), -1.5)


def test_speed_ahead_beats_the_last_value(trials: list[dict[str, Any]]):
    ahead = 10  # steps, 0.2 s
    last, moved = [], []
    for trial in trials:
        gain = trial["q1"][ahead:] - trial["q1"][:-ahead]
        last.append(gain)
        moved.append(gain - 0.02 * ahead * trial["dq1"][:-ahead])
    rmse = [np.sqrt(np.nanmean(np.concatenate(error) ** 2)) for error in (last, moved)]
    assert rmse[1] < 0.6 * rmse[0]
