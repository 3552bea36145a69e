"""Rigid-body inverse dynamics of a planar arm with three revolute joints.

The arm moves in a vertical plane. Joint angles are relative (rad, zero = straight, horizontal),
the y axis points up. Everything is vectorised over the rows of a trial.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GRAVITY_M_S2 = 9.81
# Coulomb friction changes sign through a tanh this wide, so that torque stays smooth at rest.
STICTION_WIDTH_RAD_S = 0.03


@dataclass(frozen=True)
class Arm:
    """Physical constants of one robot; every field holds one value per link or joint.

    Attributes:
        length_m: Link lengths.
        mass_kg: Link masses.
        com_m: Distance of each link's centre of mass from its joint.
        inertia_kg_m2: Link inertia about its centre of mass.
        rotor_kg_m2: Motor inertia as seen from the joint side of the gear.
        viscous_n_m_s: Viscous friction per rad/s.
        coulomb_n_m: Coulomb friction.
    """

    length_m: Floats
    mass_kg: Floats
    com_m: Floats
    inertia_kg_m2: Floats
    rotor_kg_m2: Floats
    viscous_n_m_s: Floats
    coulomb_n_m: Floats


def draw_arm(rng: np.random.Generator) -> Arm:
    """Draw one robot: the same model, with the spread of manufacture, cabling and wear."""
    length = np.array([0.40, 0.35, 0.16])
    mass = np.array([4.2, 2.6, 0.9]) * rng.uniform(0.88, 1.12, 3)
    com = length * np.array([0.48, 0.45, 0.55]) * rng.uniform(0.95, 1.05, 3)
    return Arm(
        length_m=length,
        mass_kg=mass,
        com_m=com,
        inertia_kg_m2=mass * length**2 / 12,
        rotor_kg_m2=np.array([0.30, 0.15, 0.03]),
        viscous_n_m_s=np.array([1.6, 1.0, 0.25]) * rng.uniform(0.6, 1.6, 3),
        coulomb_n_m=np.array([1.4, 0.9, 0.25]) * rng.uniform(0.6, 1.6, 3),
    )


def _outboard_mass(arm: Arm) -> Floats:
    """Mass (kg) that hangs on the far end of each link, payload excluded."""
    return np.append(np.cumsum(arm.mass_kg[::-1])[::-1][1:], 0.0)


def _gravity_arm(arm: Arm, load_kg: Floats) -> Floats:
    """First moment of mass (kg m) of each link with all it carries, `[row, link]`."""
    empty = arm.mass_kg * arm.com_m + arm.length_m * _outboard_mass(arm)
    return empty + load_kg[:, None] * arm.length_m


def _coupling(arm: Arm, load_kg: Floats) -> Floats:
    """Inertial coupling (kg m^2) between absolute link angles, `[row, link, link]`."""
    outboard = _outboard_mass(arm)
    moment = arm.mass_kg * arm.com_m + arm.length_m * outboard
    upper = np.triu(np.outer(arm.length_m, moment), k=1)
    own = arm.inertia_kg_m2 + arm.mass_kg * arm.com_m**2 + arm.length_m**2 * outboard
    tip = np.outer(arm.length_m, arm.length_m)
    return upper + upper.T + np.diag(own) + load_kg[:, None, None] * tip


def _to_joints(force: Floats) -> Floats:
    """Torque per joint from generalised forces on absolute angles: a joint carries all outboard."""
    return np.cumsum(force[:, ::-1], axis=1)[:, ::-1]


def gravity_torques(arm: Arm, q_rad: Floats, load_kg: Floats) -> Floats:
    """Torque (N m) that holds the arm still.

    Args:
        arm: The robot.
        q_rad: Joint angles, `[row, joint]`.
        load_kg: Mass at the tip, `[row]`.

    Returns:
        Joint torques in N m, `[row, joint]`.
    """
    angle = np.cumsum(q_rad, axis=1)
    return _to_joints(GRAVITY_M_S2 * _gravity_arm(arm, load_kg) * np.cos(angle))


def friction_torques(arm: Arm, dq_rad_s: Floats) -> Floats:
    """Viscous plus smoothed Coulomb friction (N m), zero at rest."""
    sign = np.tanh(dq_rad_s / STICTION_WIDTH_RAD_S)
    return arm.viscous_n_m_s * dq_rad_s + arm.coulomb_n_m * sign


def joint_torques(
    arm: Arm, q_rad: Floats, *, dq_rad_s: Floats, ddq_rad_s2: Floats, load_kg: Floats
) -> Floats:
    """Torque (N m) that makes the arm follow a motion: inertia, Coriolis, gravity and friction.

    In absolute link angles the Lagrangian of a planar chain is short: the coupling of links i and
    j is a constant times cos(angle_i - angle_j), so the Coriolis terms reduce to the sine.

    Args:
        arm: The robot.
        q_rad: Joint angles, `[row, joint]`.
        dq_rad_s: Joint velocities, `[row, joint]`.
        ddq_rad_s2: Joint accelerations, `[row, joint]`.
        load_kg: Point mass at the tip, `[row]`.

    Returns:
        Joint torques in N m, `[row, joint]`.
    """
    angle, speed, accel = (np.cumsum(x, axis=1) for x in (q_rad, dq_rad_s, ddq_rad_s2))
    between = angle[:, :, None] - angle[:, None, :]
    pull = np.cos(between) * accel[:, None, :] + np.sin(between) * speed[:, None, :] ** 2
    inertial = _to_joints((_coupling(arm, load_kg) * pull).sum(axis=2))
    held = gravity_torques(arm, q_rad, load_kg)
    return inertial + held + arm.rotor_kg_m2 * ddq_rad_s2 + friction_torques(arm, dq_rad_s)
