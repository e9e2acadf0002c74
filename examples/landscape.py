"""The picture of the README: trained robots in motion, and how long they took to learn it.

    python examples/apg.py --env DiffHopper-v0      as often as you like, with other robots
    python examples/landscape.py                    draws all that is in runs/apg

One sees, for each robot, a few seconds of its policy in one picture, as a camera with an open
shutter and a flashing light would take it (older poses are fainter), and below it the return of an
episode while it was trained. Each run is a folder named by its environment, with `policy.pt2` and
`curve.csv` (iteration, steps, seconds, return).
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import mujoco
import numpy as np
from matplotlib.ticker import EngFormatter

import diffenvs  # noqa: F401  (registers the environments)
from diffenvs.policy import load_policy

SECONDS = 2.4  # of a robot that stays where it is
WIDTH, HEIGHT = 1200, 900  # of a picture, in pixels; it is shown smaller
SLATE, ACCENT, FAINT = "#24405e", "#e07b1f", "#dfe5ea"  # the colours of the robots


def play(id: str, policy: Path, seed: int, steps: int) -> tuple[Any, np.ndarray, float]:
    """Play an episode; return the model, qpos of every step (steps, nq) and the control step."""
    env: Any = gym.make(id, device="cpu").unwrapped
    act = load_policy(policy, env.worlds.task)
    obs, _ = env.reset(seed=seed)
    seen = [env.worlds.state.qpos[0]]
    for _ in range(steps):
        obs, _, terminated, _, _ = env.step(act(obs[None])[0])
        seen.append(env.worlds.state.qpos[0])
        if terminated:
            break
    return env.model, np.stack(seen), env.dt


def extent(model: mujoco.MjModel, qpos: np.ndarray) -> np.ndarray:
    """Corners of the boxes around all that moves, (states, 2, 3), in m."""
    data = mujoco.MjData(model)
    moving = model.geom_bodyid > 0
    middle, half = model.geom_aabb[moving, :3, None], model.geom_aabb[moving, 3:, None]
    boxes = []
    for state in qpos:
        data.qpos[:] = state
        mujoco.mj_kinematics(model, data)
        turn = data.geom_xmat[moving].reshape(-1, 3, 3)
        centre = data.geom_xpos[moving] + (turn @ middle)[..., 0]
        reach = (np.abs(turn) @ half)[..., 0]
        boxes.append([(centre - reach).min(0), (centre + reach).max(0)])
    return np.array(boxes)


def choose(boxes: np.ndarray, dt: float) -> np.ndarray:
    """Indices of the poses: how it begins, or of one that travels a stretch of its way."""
    centre = boxes.mean(1)[:, :2]
    size = float(np.median(np.linalg.norm(boxes[:, 1] - boxes[:, 0], axis=1)))
    start = len(boxes) // 3
    away = np.linalg.norm(centre[start:] - centre[start], axis=1)
    if away.max() < size:
        last = min(round(SECONDS / dt), len(boxes) - 1)
        return np.linspace(0, last, 7).round().astype(int)
    goal = min(3.0 * size, away.max())
    # Equal distances, not equal times: the poses are not to hide each other.
    return start + np.array([np.argmax(away >= part) for part in np.linspace(0.0, goal, 5)])


def camera(boxes: np.ndarray) -> dict[str, Any]:
    """A camera that stands still and sees all of the boxes, from the side."""
    low, high = boxes[:, 0].min(0), boxes[:, 1].max(0)
    way = boxes[-1].mean(0) - boxes[0].mean(0)
    azimuth = 90.0 + np.degrees(np.arctan2(way[1], way[0])) if np.linalg.norm(way) > 1 else 90.0
    width, height = np.linalg.norm((high - low)[:2]), high[2] - low[2]
    flat = height < 0.3 * width  # what lies on the floor is seen from above
    return {
        "type": 0,  # free
        "distance": 1.5 * max(width * HEIGHT / WIDTH, height),  # the field of view is 45 degrees
        "lookat": tuple((low + high) / 2),
        "azimuth": azimuth,
        "elevation": -45.0 if flat else -12.0,
    }


def flash(id: str, qpos: np.ndarray, view: dict[str, Any]) -> np.ndarray:
    """Draw all states into one picture, (HEIGHT, WIDTH, 3) in [0, 1], the last one on top."""
    env: Any = gym.make(
        id,
        device="cpu",
        render_mode="rgb_array",
        width=WIDTH,
        height=HEIGHT,
        default_camera_config=view,
    ).unwrapped
    env.reset(seed=0)
    frames = []
    for state in qpos:
        env.set_state(state, np.zeros(env.model.nv))
        frames.append(env.render() / 255.0)
    env.close()
    picture = background = np.median(frames, axis=0)
    for strength, frame in zip(np.linspace(0.35, 1.0, len(frames)), frames, strict=True):
        differs = np.abs(frame - background).max(axis=2, keepdims=True)
        picture = picture + strength * np.clip(differs / 0.06, 0.0, 1.0) * (frame - picture)
    return picture


def draw_curve(axes: Any, path: Path) -> None:
    """Draw return over steps, with nothing around it that is not needed."""
    _, steps, seconds, score = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2).T
    axes.plot(steps, score, color=ACCENT, linewidth=2.2, solid_capstyle="round")
    axes.fill_between(steps, score, min(0.0, score.min()), color=ACCENT, alpha=0.12, linewidth=0)
    axes.plot(steps[-1], score[-1], "o", color=ACCENT, markersize=6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.tick_params(length=0, colors=SLATE, labelsize=9)
    axes.locator_params(nbins=4)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k, 1M
    axes.margins(x=0.03)
    axes.set_xlabel(f"steps, {seconds[-1] / 60:.0f} min", color=SLATE, fontsize=10)


def main(runs: Path, out: Path, seed: int, steps: int, columns: int) -> None:
    """Draw every run."""
    folders = sorted(path.parent for path in runs.glob("*/policy.pt2"))
    folders = [folder for folder in folders if (folder / "curve.csv").is_file()]
    if not folders:
        raise SystemExit(f"{runs} has no folder with policy.pt2 and curve.csv: run apg.py first")
    columns = min(columns, len(folders))
    rows = -(-len(folders) // columns)
    figure, grid = plt.subplots(
        2 * rows,
        columns,
        figsize=(4 * columns, 5.2 * rows),
        height_ratios=[3, 2] * rows,
        layout="constrained",
        squeeze=False,
    )
    for index, folder in enumerate(folders):
        row, column = divmod(index, columns)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        id = folder.name
        model, qpos, dt = play(id, folder / "policy.pt2", seed, steps)
        boxes = extent(model, qpos)
        poses = choose(boxes, dt)
        above.imshow(flash(id, qpos[poses], camera(boxes[poses])), interpolation="antialiased")
        above.set_title(id.removeprefix("Diff").removesuffix("-v0"), color=SLATE, fontsize=14)
        draw_curve(below, folder / "curve.csv")
        print(f"{id}: {(poses[-1] - poses[0]) * dt:.2f} s in the picture, {len(qpos) - 1} steps")
    for axes in grid[::2].flat:
        axes.axis("off")
    for axes in grid[1::2].flat[len(folders) :]:
        axes.axis("off")
    for axes in grid[1::2, 0]:
        axes.set_ylabel("return of an episode", color=SLATE, fontsize=10)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)
    print(f"The picture is {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/apg"), help="folder of apg.py")
    parser.add_argument("--out", type=Path, default=Path("examples/landscape.png"))
    parser.add_argument("--seed", type=int, default=0, help="of the episode that is shown")
    parser.add_argument("--steps", type=int, default=250, help="of the episode, at most")
    parser.add_argument("--columns", type=int, default=4, help="robots beside each other")
    main(**vars(parser.parse_args()))
