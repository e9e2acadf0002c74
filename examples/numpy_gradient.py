"""The gradient of a return, with NumPy alone: no torch, no tape.

A half cheetah plays 20 actions (1 s) open loop. `grad_step` steps it, `backward` gives the
derivative of the return by all 120 numbers of the actions, and central differences of the same
return, one pair of worlds per number, say whether it is right. Then the actions climb the gradient.

    python examples/numpy_gradient.py

One sees the relative error of the gradient, the return as it climbs, and how far the cheetah gets.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np

import diffenvs  # noqa: F401  (registers the environments)

STEPS = 20


def returns(envs: Any, actions: np.ndarray) -> np.ndarray:
    """Return of every world, all from the same state; actions (STEPS, num_envs, nu)."""
    qpos, qvel = envs.task.init_qpos, envs.task.init_qvel
    envs.set_state(np.tile(qpos, (envs.num_envs, 1)), np.tile(qvel, (envs.num_envs, 1)))
    return np.stack([envs.step(action)[1] for action in actions]).sum(axis=0, dtype=float)


def gradient(envs: Any, actions: np.ndarray) -> tuple[float, np.ndarray]:
    """Return of one world and its derivative by the actions, (STEPS, nu)."""
    envs.set_state(envs.task.init_qpos[None], envs.task.init_qvel[None])
    reward = np.stack([envs.grad_step(action[None])[1] for action in actions])
    adj_actions = envs.backward(adj_obs=None, adj_reward=np.ones_like(reward))
    return float(reward.sum()), adj_actions[:, 0]


def differences(envs: Any, actions: np.ndarray, epsilon: float) -> np.ndarray:
    """The same derivative by central differences: world i moves the i-th number up, n + i down."""
    n = actions.size
    moved = np.repeat(actions.reshape(1, n), 2 * n, axis=0)
    moved[:n] += epsilon * np.eye(n)
    moved[n:] -= epsilon * np.eye(n)
    moved = moved.reshape(2 * n, *actions.shape).swapaxes(0, 1)
    up, down = returns(envs, moved).reshape(2, n)
    return ((up - down) / (2 * epsilon)).reshape(actions.shape)


def main(iterations: int, seed: int, rate: float) -> None:
    """Compare, climb, and say what was reached."""
    print("Compiling the physics; the first time this takes a minute or two.", flush=True)
    one: Any = gym.make_vec("DiffHalfCheetah-v0", num_envs=1, window=STEPS)
    shape = (STEPS, *one.single_action_space.shape)
    many: Any = gym.make_vec("DiffHalfCheetah-v0", num_envs=2 * int(np.prod(shape)))
    for envs in (one, many):
        envs.reset(seed=seed)
    actions = 0.3 * np.random.default_rng(seed).standard_normal(shape)

    before, exact = gradient(one, actions)
    print("Relative distance of the gradient from central differences of single precision:")
    for epsilon in (1e-2, 5e-3, 2e-3):
        rough = differences(many, actions, epsilon)
        error = np.linalg.norm(exact - rough) / np.linalg.norm(rough)
        print(f"    {error:.1e} where an action is moved by {epsilon:g}")

    for iteration in range(iterations):
        score, slope = gradient(one, actions)
        actions = np.clip(actions + rate * slope / np.linalg.norm(slope), -1.0, 1.0)
        if iteration % 5 == 0:
            print(f"iteration {iteration:3d}: return {score:6.2f}")
    after, _ = gradient(one, actions)
    distance = one.state.qpos[0, 0]
    better = "The return rose" if after > before else "The return did NOT rise"
    print(
        f"{better}: {before:.2f} before, {after:.2f} after. The cheetah got {distance:.2f} m far."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--iterations", type=int, default=40, help="steps uphill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.3, help="length of a step")
    main(**vars(parser.parse_args()))
