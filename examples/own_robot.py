"""A robot of one's own as a task, in one file: a plate catches a ball and rolls it to its middle.

The file has all that a task needs: a model (MJCF), a Warp kernel that turns a step into
observation, reward and termination, and a class that names them. `diffenvs.register` makes it an
environment like any other, with gradients through the contact of ball and plate. A small policy is
then trained by the gradient of 1.3 s of play.

    python examples/own_robot.py

One sees the return rise, how many of 64 balls lie in the middle at the end, and a strip of pictures
of one of them (PNG, where pictures can be drawn).
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import warp as wp

import diffenvs
from diffenvs import Task

WINDOW = 32  # steps, 1.3 s
EPISODE = 75  # steps, 3 s
PLATE = """
<mujoco model="ball_on_plate">
  <compiler angle="radian"/>
  <option timestep="0.01" integrator="implicitfast" cone="elliptic"/>
  <visual>
    <headlight ambient=".4 .4 .4" diffuse=".4 .4 .4" specular="0 0 0"/>
    <global offwidth="640" offheight="640"/>
    <quality shadowsize="2048"/>
  </visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" width="64" height="384"
             rgb1=".96 .97 .99" rgb2=".70 .80 .90"/>
    <material name="plate" rgba=".16 .36 .58 1" specular=".3"/>
    <material name="ring" rgba=".93 .96 .99 1"/>
    <material name="ball" rgba=".93 .55 .20 1" specular=".6" shininess=".6"/>
    <material name="steel" rgba=".45 .50 .56 1"/>
  </asset>
  <worldbody>
    <light directional="true" pos="-1 -2 4" dir=".3 .5 -1" diffuse=".6 .6 .58"/>
    <geom name="post" type="capsule" fromto="0 0 -.5 0 0 -.03" size=".02" material="steel"
          contype="0" conaffinity="0"/>
    <body name="plate">
      <joint name="tilt_x" axis="1 0 0" damping=".05" armature=".01"/>
      <joint name="tilt_y" axis="0 1 0" damping=".05" armature=".01"/>
      <geom name="plate" type="cylinder" size=".3 .01" mass=".5" material="plate"/>
      <geom name="ring" type="cylinder" size=".06 .0102" mass="0" material="ring" contype="0"
            conaffinity="0"/>
    </body>
    <body name="ball" pos="0 0 .12">
      <freejoint/>
      <geom name="ball" type="sphere" size=".04" mass=".1" material="ball" solref=".03 1"/>
    </body>
  </worldbody>
  <actuator>
    <position joint="tilt_x" kp="8" kv=".5" ctrlrange="-.3 .3"/>
    <position joint="tilt_y" kp="8" kv=".5" ctrlrange="-.3 .3"/>
  </actuator>
</mujoco>
"""


@wp.struct
class BallOnPlateParams:
    """Parameters of the reward and of termination."""

    distance_cost_weight: float  # per m^2
    velocity_cost_weight: float  # per (m/s)^2
    ctrl_cost_weight: float  # per rad^2
    lowest: float  # m


@wp.kernel
def ball_on_plate_outputs(
    p: BallOnPlateParams,
    # In:
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    action_in: wp.array2d[float],
    # Out:
    obs_out: wp.array2d[float],
    reward_out: wp.array[float],
    terminated_out: wp.array[wp.bool],
    info_out: wp.array2d[float],
):
    """Observation, reward, termination and info of one step."""
    world = wp.tid()
    for i in range(5):  # the tilts, and place and velocity of the ball, but not how it is turned
        obs_out[world, i] = qpos_in[world, i]
        obs_out[world, 5 + i] = qvel_in[world, i]
    x, y, z = qpos_in[world, 2], qpos_in[world, 3], qpos_in[world, 4]
    vx, vy = qvel_in[world, 2], qvel_in[world, 3]
    ax, ay = action_in[world, 0], action_in[world, 1]
    distance = -p.distance_cost_weight * (x * x + y * y)
    velocity = -p.velocity_cost_weight * (vx * vx + vy * vy)
    ctrl = -p.ctrl_cost_weight * (ax * ax + ay * ay)
    reward_out[world] = 1.0 + distance + velocity + ctrl
    terminated_out[world] = z < p.lowest
    info_out[world, 0] = wp.sqrt(x * x + y * y)
    info_out[world, 1] = distance
    info_out[world, 2] = velocity
    info_out[world, 3] = ctrl


class BallOnPlate(Task):
    """Tilt a plate so that a ball that falls on it comes to rest in the middle.

    Action (2): the angles that the two hinges are driven to (rad). Observation (10): the angles
    (rad), place of the ball (m), and their velocities. Reward: 1 less costs. Terminates when the
    ball has fallen off.
    """

    xml = PLATE
    frame_skip = 4
    kernel = ball_on_plate_outputs
    reads = ("qpos", "qvel", "action")
    params = BallOnPlateParams
    obs_dim = 10
    state_info = ("distance",)
    step_info = ("reward_distance", "reward_velocity", "reward_ctrl")
    camera = {"distance": 0.9, "lookat": (0.0, 0.0, -0.03), "elevation": -35.0, "azimuth": 90.0}
    defaults = {
        "distance_cost_weight": 50.0,
        "velocity_cost_weight": 1.0,
        "ctrl_cost_weight": 0.1,
        "lowest": -0.2,
        "reset_noise_scale": 0.1,
    }


diffenvs.register("BallOnPlate-v0", f"{__name__}:BallOnPlate", EPISODE)


def train(envs: Any, policy: torch.nn.Module, iterations: int, lr: float) -> None:
    """Climb the gradient of the return of the first window of every episode."""
    adam = torch.optim.Adam(policy.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.1, max(1, iterations))
    for iteration in range(iterations):
        obs, _ = envs.reset()  # other starts in every iteration
        total = torch.zeros(envs.num_envs)
        for _ in range(WINDOW):
            obs, reward, *_ = envs.grad_step(policy(obs))
            total = total + reward
        adam.zero_grad()
        (-total.mean()).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        adam.step()
        schedule.step()
        if iteration % 10 == 0 or iteration + 1 == iterations:
            print(f"iteration {iteration:3d}: {total.mean():6.2f} of {WINDOW}")


@torch.no_grad()
def distances(envs: Any, policy: torch.nn.Module, seed: int) -> torch.Tensor:
    """Distance of every ball from the middle at the end of an episode, m; of those lost, inf."""
    obs, _ = envs.reset(seed=seed)
    lost = torch.zeros(envs.num_envs, dtype=torch.bool)
    distance = torch.zeros(envs.num_envs)
    for _ in range(EPISODE):
        obs, _, terminated, _, info = envs.step(policy(obs))
        lost |= terminated  # the world goes on with another ball
        distance = info["final_info"]["distance"]
    return torch.where(lost, torch.inf, distance)


@torch.no_grad()
def film(policy: torch.nn.Module, seed: int, path: Path) -> str:
    """Draw six pictures of an episode side by side; return where they are, or why there is none."""
    env: Any = gym.make("BallOnPlate-v0", render_mode="rgb_array", width=360, height=300)
    obs, _ = env.reset(seed=seed)
    frames = []
    try:
        for t in range(60):
            if t % 10 == 0:
                frames.append(env.render())
            obs, *_ = env.step(policy(torch.as_tensor(obs)[None])[0].numpy())
        env.close()
    except gym.error.DependencyNotInstalled as error:
        return f"no picture: {error}"
    plt.imsave(path, np.concatenate(frames, axis=1))
    return f"the picture is {path}"


def main(iterations: int, num_envs: int, lr: float, seed: int, out: Path) -> None:
    """Train, count, draw."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    print("Compiling the physics; the first time this takes a minute or two.", flush=True)
    make: dict[str, Any] = {"arrays": "torch", "device": "cpu"}
    envs: Any = gym.make_vec("BallOnPlate-v0", num_envs=num_envs, window=WINDOW, **make)
    judge: Any = gym.make_vec("BallOnPlate-v0", num_envs=64, **make)
    envs.reset(seed=seed)
    policy = torch.nn.Sequential(
        torch.nn.Linear(10, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2), Squash()
    )
    test_seed = seed + 1_000_000  # starts that training has not seen
    before = distances(judge, policy, test_seed)
    train(envs, policy, iterations, lr)
    after = distances(judge, policy, test_seed)
    for name, found in (("Before", before), ("After", after)):
        print(
            f"{name} training {int((found < 0.03).sum())} of 64 balls lie within 3 cm of the middle"
            f" after 3 s, and {int(found.isinf().sum())} have fallen off."
        )
    out.mkdir(parents=True, exist_ok=True)
    print(film(policy, test_seed, out / "own_robot.png"))


class Squash(torch.nn.Module):
    """Into the limits of the hinges."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Squash."""
        return 0.3 * torch.tanh(x)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--iterations", type=int, default=60, help="steps of Adam")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/own_robot"))
    main(**vars(parser.parse_args()))
