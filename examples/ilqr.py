"""iLQR swings up a double pendulum on a cart, with NumPy and `diffenvs.physics` alone.

The plan is made on exact derivatives: `linearize` gives A and B of all 300 steps of a trajectory
in one call, a Riccati recursion turns them into a better plan and feedback gains, and the line
search tries ten step lengths at once, one world each. Then the plan is played in C MuJoCo, in
double precision, from disturbed starts, and held upright by a stationary gain.

    python examples/ilqr.py

One sees the cost fall from iteration to iteration, and how many of the disturbed pendulums stand at
the end.
"""

import argparse
from typing import NamedTuple

import mujoco
import numpy as np
import warp as wp

from diffenvs.physics import Physics, linearize

CART = """
<mujoco model="double_pendulum_on_a_cart">
  <option timestep="0.01" integrator="implicitfast"/>
  <default>
    <geom contype="0" conaffinity="0"/>
    <joint damping="0.02"/>
  </default>
  <worldbody>
    <body name="cart">
      <joint name="slider" type="slide" axis="1 0 0"/>
      <geom type="box" size=".15 .1 .06" mass="1"/>
      <body name="lower">
        <joint name="shoulder" axis="0 1 0"/>
        <geom type="capsule" fromto="0 0 0 0 0 .6" size=".03" mass=".2"/>
        <body name="upper" pos="0 0 .6">
          <joint name="elbow" axis="0 1 0"/>
          <geom type="capsule" fromto="0 0 0 0 0 .6" size=".03" mass=".2"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="slider" gear="30"/>
  </actuator>
</mujoco>
"""
STEPS = 300  # of the plan, 3 s
HOLD = 300  # steps after it
START = np.array([0.0, np.pi, 0.0, 0.0, 0.0, 0.0])  # hangs; (cart, shoulder, elbow), velocities
# Zero is the goal: upright, in the middle, at rest. Weights of the squares, per step and at last:
RUNNING = np.array([0.5, 0.1, 0.1, 0.01, 0.01, 0.01])
FINAL = np.array([200.0, 1000.0, 1000.0, 50.0, 50.0, 50.0])
EFFORT = 0.5  # of ctrl^2
ALPHAS = 0.6 ** np.arange(10)  # what the line search tries


def cost(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Cost of trajectories x (STEPS + 1, n, 6) with u (STEPS, n, nu); (n,)."""
    return (x[:-1] ** 2 @ RUNNING + EFFORT * (u**2).sum(-1)).sum(0) + x[-1] ** 2 @ FINAL


def roll_out(
    physics: Physics, x: np.ndarray, u: np.ndarray, k: np.ndarray, K: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Play u + alpha k + K (x' - x) for every alpha, one per world; return what happened.

    Args:
        physics: As many worlds as there are ALPHAS.
        x: Trajectory, (STEPS + 1, 6).
        u: Its controls, (STEPS, nu).
        k: Steps of the controls, (STEPS, nu).
        K: Gains, (STEPS, nu, 6).

    Returns:
        Trajectories (STEPS + 1, n, 6) and controls (STEPS, n, nu).
    """
    nv = physics.nv
    state = physics.make_state()
    now = np.tile(x[0], (physics.nworld, 1))
    state.qpos.assign(now[:, :nv])
    state.qvel.assign(now[:, nv:])
    xs, us = [now], []
    for t in range(STEPS):
        ctrl = u[t] + ALPHAS[:, None] * k[t] + (now - x[t]) @ K[t].T
        state = physics.step(state, wp.array(ctrl, dtype=float, device=physics.device))
        now = np.concatenate([state.qpos.numpy(), state.qvel.numpy()], axis=1).astype(float)
        xs.append(now)
        us.append(ctrl)
    return np.stack(xs), np.stack(us)


class Plan(NamedTuple):
    """Better controls are u + alpha k + K (x' - x), for an alpha up to 1."""

    k: np.ndarray  # (STEPS, nu)
    K: np.ndarray  # (STEPS, nu, 6)
    linear: float  # the model of the cost promises a change of alpha * linear
    quadratic: float  # + alpha^2 * quadratic


def riccati(
    A: np.ndarray, B: np.ndarray, x: np.ndarray, u: np.ndarray, damping: float
) -> Plan | None:
    """Go back through the trajectory; None where the curvature of the cost by u is not positive.

    `damping` adds to the curvature by every next state, so that the new trajectory stays near the
    old one (Tassa et al. 2012).
    """
    nx, nu = A.shape[1], B.shape[2]
    k, K = np.zeros((STEPS, nu)), np.zeros((STEPS, nu, nx))
    slope, curve = 2 * FINAL * x[-1], 2 * np.diag(FINAL)
    linear = quadratic = 0.0
    for t in reversed(range(STEPS)):
        Qx = 2 * RUNNING * x[t] + A[t].T @ slope
        Qu = 2 * EFFORT * u[t] + B[t].T @ slope
        Qxx = 2 * np.diag(RUNNING) + A[t].T @ curve @ A[t]
        Quu = 2 * EFFORT * np.eye(nu) + B[t].T @ curve @ B[t]
        Qux = B[t].T @ curve @ A[t]
        damped = Quu + damping * B[t].T @ B[t]
        if np.linalg.eigvalsh(damped)[0] <= 0:
            return None
        k[t] = -np.linalg.solve(damped, Qu)
        K[t] = -np.linalg.solve(damped, Qux + damping * B[t].T @ A[t])
        slope = Qx + K[t].T @ Quu @ k[t] + K[t].T @ Qu + Qux.T @ k[t]
        curve = Qxx + K[t].T @ Quu @ K[t] + K[t].T @ Qux + Qux.T @ K[t]
        curve = (curve + curve.T) / 2
        linear += float(k[t] @ Qu)
        quadratic += float(k[t] @ Quu @ k[t]) / 2
    return Plan(k, K, linear, quadratic)


def optimise(
    mjm: mujoco.MjModel, iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Plan the swing up; return trajectory, controls and the gains around them."""
    physics = Physics(mjm, nworld=len(ALPHAS), device="cpu")
    nv, nu = mjm.nv, mjm.nu
    u = 0.01 * np.random.default_rng(seed).standard_normal((STEPS, nu))
    x = np.tile(START, (STEPS + 1, 1))  # only its start counts: the gains are zero
    K = np.zeros((STEPS, nu, 2 * nv))
    xs, us = roll_out(physics, x, u, np.zeros_like(u), K)
    x, u, value, damping = xs[:, 0], us[:, 0], float(cost(xs, us)[0]), 1.0
    A, B = linearize(mjm, x[:-1, :nv], x[:-1, nv:], u, device="cpu")
    for iteration in range(iterations):
        plan = riccati(A, B, x, u, damping)
        if plan is None:
            gain = 0.0
        else:
            xs, us = roll_out(physics, x, u, plan.k, plan.K)
            gains = value - cost(xs, us)
            promised = -(ALPHAS * plan.linear + ALPHAS**2 * plan.quadratic)
            gains = np.where(gains > 0.1 * promised, gains, -np.inf)  # also where it is not finite
            best = int(gains.argmax())
            gain = float(gains[best])
        if plan is not None and gain > 0:
            x, u, K, value = xs[:, best], us[:, best], plan.K, value - gain
            A, B = linearize(mjm, x[:-1, :nv], x[:-1, nv:], u, device="cpu")
            result, damping = f"alpha {ALPHAS[best]:.2f}", max(damping / 3, 1e-6)
        else:
            result, damping = "no step", damping * 5
        if iteration % 5 == 0 or iteration + 1 == iterations:
            print(f"iteration {iteration:3d}: cost {value:8.1f}, {result}, damping {damping:.0e}")
        if 0 < gain < 1e-3 * value or damping > 1e8:
            break
    print(f"Stopped after iteration {iteration} at a cost of {value:.1f}.")
    return x, u, K


def holding_gain(mjm: mujoco.MjModel) -> np.ndarray:
    """The gain that holds the pendulum upright, (nu, 6): where the recursion settles, at zero."""
    nv, nu = mjm.nv, mjm.nu
    A, B = linearize(mjm, np.zeros((1, nv)), np.zeros((1, nv)), np.zeros((1, nu)), device="cpu")
    A, B = (np.repeat(matrix, STEPS, axis=0) for matrix in (A, B))
    plan = riccati(A, B, np.zeros((STEPS + 1, 2 * nv)), np.zeros((STEPS, nu)), damping=0.0)
    assert plan is not None  # without curvature of the dynamics it is a convex problem
    return plan.K[0]


def play(mjm: mujoco.MjModel, x: np.ndarray, u: np.ndarray, K: np.ndarray, start: np.ndarray):
    """Play a plan of any length in C MuJoCo, with its gains; return the states, (steps, 6)."""
    mjd = mujoco.MjData(mjm)
    mjd.qpos[:], mjd.qvel[:] = np.split(start, 2)
    states = []
    for t in range(len(u)):
        now = np.concatenate([mjd.qpos, mjd.qvel])
        mjd.ctrl[:] = u[t] + K[t] @ (now - x[t])
        mujoco.mj_step(mjm, mjd)
        states.append(now)
    return np.stack(states)


def main(iterations: int, seed: int) -> None:
    """Plan, then play the plan from disturbed starts, with and without its feedback."""
    print("Compiling the physics; the first time this takes a minute or two.", flush=True)
    mjm = mujoco.MjModel.from_xml_string(CART)
    x, u, K = optimise(mjm, iterations, seed)
    x = np.concatenate([x[:-1], np.zeros((HOLD, x.shape[1]))])
    u = np.concatenate([u, np.zeros((HOLD, u.shape[1]))])
    K = np.concatenate([K, np.repeat(holding_gain(mjm)[None], HOLD, axis=0)])
    rng = np.random.default_rng(seed)
    starts = START + 0.05 * rng.standard_normal((20, len(START)))
    for name, gains in (("with its feedback", K), ("without feedback", 0 * K)):
        angles = np.abs([play(mjm, x, u, gains, start)[-100:, 1:3] for start in starts])
        standing = int((angles.max((1, 2)) < np.radians(5)).sum())
        print(f"In C MuJoCo, {name}: {standing} of 20 stand through the last second.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--iterations", type=int, default=60, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
