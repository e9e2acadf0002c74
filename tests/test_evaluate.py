"""Scores of a policy: every episode counts once, and both sides are what a plain loop finds."""

import json
import re

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import diffenvs
from diffenvs import command_line
from diffenvs.evaluate import both_keywords, evaluate, main, report, run_episodes
from diffenvs.policy import load_policy

HOPPER, CHEETAH = "DiffHopper-v0", "DiffHalfCheetah-v0"
FEEDBACK = {
    # Springs and dampers at the joints: both robots stand for a while, so that much happens.
    HOPPER: "return -0.5 * obs[:, 2:5] - 0.05 * obs[:, 8:11]",
    CHEETAH: "return np.clip(-0.5 * obs[:, 2:8] - 0.02 * obs[:, 11:17] + 0.3, -1, 1)",
}


@pytest.fixture
def feedback(tmp_path):
    """Function that writes the linear feedback of a robot, or other code, to a policy file."""

    def write(env, code=None):
        path = tmp_path / "feedback.py"
        body = FEEDBACK[env] if code is None else code
        path.write_text(f"import numpy as np\n\ndef policy(obs):\n    {body}\n")
        return path

    return write


def _plain_loop(id, path, env, episodes, seed, **kwargs):
    """Returns and lengths, by the loop of Gymnasium's documentation."""
    policy = load_policy(path, command_line.make_task(gym.spec(env), {}))
    single = gym.make(id, **kwargs)
    returns, lengths = [], []
    for episode in range(episodes):
        obs, _ = single.reset(seed=seed + episode)
        total, length, done = 0.0, 0, False
        while not done:
            obs, reward, terminated, truncated, _ = single.step(policy(obs[None])[0])
            total, length, done = total + float(reward), length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    single.close()
    return returns, lengths


@pytest.mark.parametrize("env", [HOPPER, CHEETAH])
def test_gymnasium_vs_plain_loop(env, feedback):
    """Five episodes, two at a time, are to the last bit those of a loop over `gym.make`."""
    path = feedback(env)
    limit = {"max_episode_steps": 700 if env == HOPPER else 40}
    scores = evaluate(env, path, "gymnasium", episodes=5, seed=3, num_envs=2, given=limit)
    found = scores["results"]["gymnasium"]
    twin = {HOPPER: "Hopper-v5", CHEETAH: "HalfCheetah-v5"}[env]
    returns, lengths = _plain_loop(twin, path, env, 5, 3, **limit)
    assert found["env"] == twin
    assert found["returns"] == returns and found["lengths"] == lengths
    assert found["return"] == pytest.approx(np.mean(returns))
    assert found["return_error"] == pytest.approx(np.std(returns, ddof=1) / np.sqrt(5))
    assert (found["return_lowest"], found["return_highest"]) == (min(returns), max(returns))
    assert found["length"] == np.mean(lengths)
    if env == HOPPER:  # it falls, at different times
        assert len(set(lengths)) > 1 and max(lengths) < 700


@pytest.mark.parametrize("env", [HOPPER, CHEETAH])
def test_ours_vs_plain_loop(env, feedback):
    """Four episodes, three at a time, are those of a loop over one world of ours."""
    path = feedback(env)
    limit = {"max_episode_steps": 30}
    scores = evaluate(env, path, "diffenvs", episodes=4, seed=3, num_envs=3, given=limit)
    found = scores["results"]["diffenvs"]
    returns, lengths = _plain_loop(env, path, env, 4, 3, **limit)
    assert found["lengths"] == lengths
    np.testing.assert_allclose(found["returns"], returns, rtol=1e-4)
    assert len(set(returns)) == 4


def test_sides_agree(feedback):
    """The same policy earns the same on both sides, as far as can be told; another does not."""
    given = {"max_episode_steps": 40}
    scores = evaluate(CHEETAH, feedback(CHEETAH), episodes=48, num_envs=48, given=given)
    theirs, ours = scores["results"]["gymnasium"], scores["results"]["diffenvs"]
    error = np.hypot(theirs["return_error"], ours["return_error"])
    assert abs(theirs["return"] - ours["return"]) < 3 * error
    still = evaluate(
        CHEETAH, feedback(CHEETAH, "return obs[:, :6] * 0"), "gymnasium", 48, given=given
    )
    assert abs(still["results"]["gymnasium"]["return"] - ours["return"]) > 6 * error
    text = report(scores)
    assert "48 episodes, seeds 0 to 47; mean ± standard error" in text
    assert re.search(r"HalfCheetah-v5 \(Gymnasium, C MuJoCo\) +-?[\d.]+ ± [\d.]+ ", text)
    assert re.search(r"DiffHalfCheetah-v0 \(ours\) +-?[\d.]+ ± [\d.]+ ", text)
    assert re.search(r"Gymnasium's return less ours: -?[\d.]+ ± [\d.]+$", text)


class Counting(gym.vector.VectorEnv):
    """World i ends after 1 + seed % 5 steps, each of which pays seed; later episodes pay 1e6."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs):
        self.num_envs = num_envs

    def reset(self, *, seed=None, options=None):
        self.pay = seed + np.arange(self.num_envs)
        self.left = 1 + self.pay % 5
        return self.pay[:, None].copy(), {}

    def step(self, actions):
        reward = self.pay.astype(float)
        self.left -= 1
        done = self.left == 0
        self.pay[done], self.left[done] = 1_000_000, 2
        return self.pay[:, None].copy(), reward, done, np.zeros_like(done), {}


@pytest.mark.parametrize(("episodes", "num_envs"), [(10, 4), (8, 4), (1, 1), (3, 7)])
def test_every_episode_counts_once(episodes, num_envs):
    """Long and short episodes alike, whatever the number of worlds, and none of the next ones."""
    found = run_episodes(Counting(num_envs), lambda obs: obs, episodes, seed=20)
    seeds = 20 + np.arange(episodes)
    assert found.lengths.tolist() == (1 + seeds % 5).tolist()
    assert found.returns.tolist() == (seeds * (1 + seeds % 5)).tolist()


@pytest.mark.parametrize("env", sorted(diffenvs.TASKS))
def test_observations_of_both_sides_have_one_layout(env):
    """Gymnasium's environment is made such that its observation has the length of ours."""
    spec = gym.spec(env)
    keywords = both_keywords(spec, {})
    task = command_line.make_task(spec, keywords["diffenvs"])
    assert ("gymnasium" in keywords) == (task.gymnasium is not None)
    if task.gymnasium is not None:
        theirs = gym.make(task.gymnasium, **keywords["gymnasium"])
        assert theirs.observation_space.shape == (task.obs_size,)
        assert theirs.action_space.shape == (task.mjm.nu,)
        theirs.close()


def test_keywords_of_both_sides():
    """Layout and limits go over; weights stay Gymnasium's own, but for one that was given."""
    spec = gym.spec(HOPPER)
    theirs = both_keywords(spec, {"healthy_angle_range": (-0.3, 0.3)})["gymnasium"]
    assert theirs["healthy_angle_range"] == (-0.3, 0.3)
    assert theirs["exclude_current_positions_from_observation"] is True
    assert not [name for name in theirs if name.endswith("_weight") or name == "healthy_reward"]
    given = {"ctrl_cost_weight": 0.5, "frame_skip": 2, "integrator": "euler"}
    sides = both_keywords(spec, given)
    assert sides["gymnasium"]["ctrl_cost_weight"] == 0.5
    assert sides["gymnasium"]["frame_skip"] == 2 and "integrator" not in sides["gymnasium"]
    assert sides["diffenvs"] == {"reward": "v5"} | given


def test_command(feedback, tmp_path, capsys):
    """The command prints the table and writes everything to a file."""
    path, result = feedback(HOPPER), tmp_path / "scores.json"
    options = "--on gymnasium --episodes 3 --seed 7 --kwarg max_episode_steps=5".split()
    main(["--env", HOPPER, "--policy", str(path), *options, "--json", str(result)])
    printed = capsys.readouterr().out
    assert "3 episodes, seeds 7 to 9" in printed and "5.0 ± 0.0" in printed
    scores = json.loads(result.read_text(), parse_constant=pytest.fail)  # strict JSON
    found = scores["results"]["gymnasium"]
    assert scores["env"] == HOPPER and scores["policy"] == str(path)
    assert found["keywords"]["healthy_z_range"] == "(0.7, inf)"
    assert found["lengths"] == [5, 5, 5] and len(found["returns"]) == 3
    assert f"{found['return']:.1f}" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--env", "DiffCartPoleSwingUp-v0", "--on", "gymnasium"],
            "DiffCartPoleSwingUp-v0 is a task of its own: Gymnasium has no environment to score it",
        ),
        (["--env", "Hopper-v5"], "Hopper-v5 is not an environment of diffenvs; those are Diff"),
        (["--env", "DiffHoper-v0"], "doesn't exist"),
        (["--env", HOPPER, "--episodes", "0"], "episodes must be an integer >= 1, not 0"),
        (["--env", HOPPER, "--num-envs", "0"], "num_envs must be an integer >= 1, not 0"),
        (["--env", HOPPER, "--kwarg", "ctrl_cost_wieght=1"], "did you mean 'ctrl_cost_weight'"),
        (["--env", HOPPER, "--kwarg", "max_episode_steps=None"], "has no time limit; give max_epi"),
        (
            ["--env", HOPPER, "--kwarg", "autoreset_mode=DISABLED"],
            "autoreset_mode is no keyword to give: episodes are counted in SAME_STEP",
        ),
        (
            ["--env", HOPPER, "--kwarg", "num_envs=7"],
            "num_envs is no keyword to give: it is an argument of its own, on the command",
        ),
        (["--env", HOPPER, "--json", "/gone/x.json"], "--json /gone/x.json cannot be written: "),
        (["--env", HOPPER, "--json", "/"], "--json / is a folder"),
        (["--env", HOPPER, "--policy", "gone.py"], "policy: there is no file 'gone.py'"),
    ],
)  # fmt: skip
def test_messages(options, message, feedback, capsys):
    """What cannot be scored is said in one line, before anything is compiled or played."""
    with pytest.raises(SystemExit, match=re.escape(message)):
        main(["--policy", str(feedback(HOPPER)), *options])
    captured = capsys.readouterr()
    assert "Compiling" not in captured.err and not captured.out


def test_seed_below_zero(feedback, capsys):
    """A seed that no environment takes is refused at once, from the command line and by name."""
    path = feedback(HOPPER)
    with pytest.raises(SystemExit):
        main(["--env", HOPPER, "--policy", str(path), "--seed", "-1"])
    assert "argument --seed: '-1' is not an integer >= 0" in capsys.readouterr().err
    with pytest.raises(ValueError, match="evaluate: seed must be an integer >= 0, not -1"):
        evaluate(HOPPER, path, seed=-1)


def test_task_of_ours_alone(feedback, capsys):
    """Without a counterpart the default scores ours, and says so."""
    path = feedback(None, "return obs[:, :1]")
    few = "--episodes 2 --num-envs 1 --kwarg max_episode_steps=3".split()
    main(["--env", "DiffCartPoleSwingUp-v0", "--policy", str(path), *few])
    printed = capsys.readouterr().out
    assert "DiffCartPoleSwingUp-v0 (ours)" in printed
    assert "Gymnasium has no environment for DiffCartPoleSwingUp-v0: scored on ours" in printed


def test_other_autoreset_mode_is_refused():
    """Modes in which steps or episodes would be counted wrongly are refused."""
    envs = Counting(2)
    envs.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    with pytest.raises(ValueError, match="needs an environment in SAME_STEP, not in"):
        run_episodes(envs, lambda obs: obs, 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("weight=0.5", 0.5),
        ("range=(-1, 2)", (-1, 2)),
        ("flag=False", False),
        ("integrator=rk4", "rk4"),
        ("reward='v5'", "v5"),
    ],
)
def test_keyword_on_the_command_line(text, value):
    """Values are Python's, and otherwise strings."""
    assert command_line.keyword(text) == (text.partition("=")[0], value)


def test_keyword_without_a_value(feedback, capsys):
    """A keyword without "=" is refused."""
    with pytest.raises(SystemExit):
        main(["--env", HOPPER, "--policy", str(feedback(HOPPER)), "--kwarg", "weight"])
    assert "'weight' is not NAME=VALUE" in capsys.readouterr().err
