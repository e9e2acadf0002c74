"""The humanoids: what their keywords include, and what these cost."""

import numpy as np
import pytest

from diffenvs.tasks.humanoid import Humanoid
from diffenvs.tasks.humanoid_standup import HumanoidStandup

NUM_ENVS = 8
INCLUDED = {name: value for name, value in Humanoid.v5.items() if name.startswith("include_")}
STANDUP = "DiffHumanoidStandup-v0"


def test_impact_keywords_are_used(make, actions):
    """Weights scale their terms, and the cost of impacts is clipped to its range."""
    envs = make(
        STANDUP,
        impact_cost_weight=1e-3,
        impact_cost_range=(0.5, 0.75),
        ctrl_cost_weight=0.2,
    )
    envs.reset(seed=0)
    impacts = []
    for action in actions(envs, 6):
        _, reward, *_, info = envs.step(action)
        impacts.append(info["reward_impact"])
        terms = [info[f"reward_{name}"] for name in ("linup", "quadctrl", "impact")]
        np.testing.assert_allclose(terms[0], envs.state.qpos[:, 2] / 0.003, rtol=1e-5)
        np.testing.assert_allclose(terms[1], -0.2 * np.sum(action**2, axis=1), rtol=1e-5)
        np.testing.assert_allclose(sum(terms) + 1, reward, rtol=1e-5)
    assert np.min(impacts) == pytest.approx(-0.75) and np.max(impacts) == pytest.approx(-0.5)


@pytest.mark.parametrize("task", [Humanoid, HumanoidStandup])
def test_observation_size(task):
    """Each keyword adds its entries to the 45 of the state."""
    assert task().obs_size == 45
    sizes = {"cinert": 130, "cvel": 78, "qfrc_actuator": 17, "cfrc_ext": 78}
    for name, size in sizes.items():
        assert task(**{f"include_{name}_in_observation": True}).obs_size == 45 + size
    everything = INCLUDED | {"exclude_current_positions_from_observation": False}
    assert task(**everything).obs_size == 350
