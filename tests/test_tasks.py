"""The tasks: parity with Gymnasium's v5, adjoints of the outputs kernels, what is refused."""

import warnings
from importlib.resources import files

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import warp as wp

import diffenvs
from diffenvs.physics import FORCES
from diffenvs.physics.kinematics import FIELDS as KINEMATICS
from diffenvs.step_fields import PREV
from diffenvs.task import Task
from diffenvs.tasks.cartpole_swingup import CartPoleSwingUp, CartPoleSwingUpParams
from diffenvs.tasks.hopper import Hopper
from diffenvs.vector_env import load_task

TASKS = {id: load_task(task) for id, (task, _) in diffenvs.TASKS.items()}
V5 = [id for id, task in TASKS.items() if task.gymnasium]
NWORLD = 64


class Launched:
    """The outputs kernel of a task, called on arrays of our choice."""

    def __init__(self, task, rng):
        self.task = task
        mjm = task.mjm
        self.nq, self.nv, self.nu = mjm.nq, mjm.nv, mjm.nu
        near = task.init_qpos + rng.normal(size=(NWORLD, self.nq)) * 0.3
        values = {
            "qpos_prev": near,
            "qvel_prev": rng.normal(size=(NWORLD, self.nv)),
            "qpos": near + rng.normal(size=(NWORLD, self.nq)) * 0.02,
            "qvel": rng.normal(size=(NWORLD, self.nv)) * 3.0,
            "action": rng.uniform(-1.5, 1.5, size=(NWORLD, self.nu)),
        }
        active = task.active_reads()
        self.dtypes = {}
        for field in task.reads:
            if field in values:
                continue
            dtype, size = (KINEMATICS | FORCES)[field.removesuffix(PREV)]
            columns = getattr(mjm, size) if field in active else 0
            width = wp.types.type_size(dtype)
            values[field] = rng.normal(size=(NWORLD, columns * width))
            self.dtypes[field] = dtype
        self.values = {field: values[field] for field in task.reads}
        columns = len(task.state_info) + len(task.step_info)
        self.outputs = (
            wp.zeros((NWORLD, task.obs_size), dtype=float),
            wp.zeros(NWORLD, dtype=float),
            wp.zeros(NWORLD, dtype=wp.bool),
            wp.zeros((NWORLD, columns), dtype=float),
        )

    def arrays(self, values):
        """Arrays of the kernel's fields, from matrices (NWORLD, numbers)."""
        arrays = {}
        for field, value in values.items():
            dtype = self.dtypes.get(field, float)
            numbers = np.ascontiguousarray(value, dtype=np.float32)
            if dtype is not float:
                width = wp.types.type_size(dtype)
                numbers = numbers.reshape(NWORLD, numbers.shape[1] // width, width)
            arrays[field] = wp.array(numbers, dtype=dtype, ndim=2)
        return arrays

    def __call__(self, values=None):
        """Return obs, reward, terminated, info as NumPy arrays."""
        self.task.launch_outputs(self.arrays(values or self.values), self.outputs)
        return [x.numpy().copy() for x in self.outputs]

    def vjp(self, adj_obs, adj_reward):
        """Cotangents of all fields for those of obs and reward."""
        adj = self.arrays({name: np.zeros_like(value) for name, value in self.values.items()})
        self.task.launch_outputs_vjp(
            self.arrays(self.values),
            self.outputs,
            wp.array(adj_obs, dtype=float),
            wp.array(adj_reward, dtype=float),
            adj,
        )
        return {name: array.numpy().reshape(NWORLD, -1) for name, array in adj.items()}


@pytest.fixture(params=[(id, like) for id in TASKS for like in ("ours", "v5")], ids="-".join)
def launched(request, rng):
    """The outputs kernel of each task, by default and as v5, with costs that can be seen."""
    id, like = request.param
    task = TASKS[id]
    costs = {"ctrl_cost_weight": 0.1}
    if like == "v5":
        costs |= {"contact_cost_weight": 0.01, "impact_cost_weight": 0.01}
    costs = {name: cost for name, cost in costs.items() if name in task.defaults}
    return Launched(task(**(task.v5 if like == "v5" else {}) | costs), rng)


def _reference(id, **kwargs):
    """Gymnasium's environment of the same name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gym.make(TASKS[id].gymnasium, **kwargs).unwrapped


@pytest.mark.parametrize("id", V5)
def test_keywords_and_spaces_vs_gymnasium(id):
    """Defaults, control step, action bounds and the reset's info are those of the v5 task.

    `Task.v5` names the defaults that differ, and gives the same observation and action.
    """
    task, reference = TASKS[id](**TASKS[id].v5), _reference(id)
    for name, value in task.parameters.items():
        if hasattr(reference, f"_{name}"):
            np.testing.assert_allclose(value, getattr(reference, f"_{name}"), err_msg=name)
        else:
            assert name in task.choices, f"{name} is not a keyword of {task.gymnasium}"
    assert (task.obs_size,) == reference.observation_space.shape
    bounds = np.stack([reference.action_space.low, reference.action_space.high], axis=1)
    np.testing.assert_allclose(task.mjm.actuator_ctrlrange, bounds)
    assert task.dt == pytest.approx(reference.dt)
    assert task.nstep == reference.frame_skip
    np.testing.assert_allclose(task.init_qpos, reference.init_qpos)
    vectors = {"tendon_length", "tendon_velocity"}  # columns of info are numbers
    assert set(task.state_info) == set(reference._get_reset_info()) - vectors


def test_outputs_vjp_vs_finite_differences(launched, rng):
    """The generated adjoint agrees with central differences of the kernel, in every input."""
    adj_obs = rng.normal(size=launched.outputs[0].shape).astype(np.float32)
    adj_reward = rng.normal(size=NWORLD).astype(np.float32)
    # Away from what is not differentiable: clips of velocities and forces, and the edge of health.
    launched.values["qvel"] = np.clip(launched.values["qvel"], -9.0, 9.0)
    if "contact_force_range" in launched.task.parameters:
        launched.values["cfrc_ext"] *= np.abs(np.abs(launched.values["cfrc_ext"]) - 1) > 0.03
    exact = launched.vjp(adj_obs, adj_reward)
    step = 1e-2

    def value(values):
        obs, reward, terminated, _ = launched(values)
        total = (obs.astype(float) * adj_obs).sum(axis=1) + reward.astype(float) * adj_reward
        return total, terminated

    # of obs and reward in single precision, divided by the width of the difference
    size = 1.0 + np.abs(launched()[1]).max()
    rounding = 2e-7 * size * np.abs(adj_reward).max() / step

    for name, primal in launched.values.items():
        for column in range(primal.shape[1]):
            sides = []
            for sign in (1.0, -1.0):
                moved = primal.copy()
                moved[:, column] += sign * step
                sides.append(value(launched.values | {name: moved}))
            smooth = sides[0][1] == sides[1][1]
            assert smooth.mean() > 0.7
            difference = (sides[0][0] - sides[1][0]) / (2 * step)
            np.testing.assert_allclose(
                exact[name][smooth, column],
                difference[smooth],
                rtol=1e-3,
                atol=rounding + 1e-3 * np.abs(difference).max(),
                err_msg=f"{name}[{column}]",
            )
    for name in launched.task.active_reads():
        assert np.abs(exact[name]).max() > 2e-3


def test_hopper_clip_has_no_gradient(rng):
    """A clipped velocity is 10 in the observation, and passes nothing back."""
    launched = Launched(Hopper(), rng)
    launched.values["qvel"][:, 3] = 12.0
    obs = launched()[0]
    adj = launched.vjp(np.ones_like(obs), np.zeros(NWORLD, dtype=np.float32))
    assert (obs[:, 5 + 3] == 10.0).all()
    assert (adj["qvel"][:, 3] == 0.0).all()
    assert (adj["qvel"][:, 2] == 1.0).all()


@pytest.mark.parametrize("field", ["qpos", "qvel"])
def test_ant_terminates_on_nan(field, rng):
    """A number of the state that is not finite ends the episode."""
    launched = Launched(TASKS["DiffAnt-v0"](), rng)
    launched.values[field][:, 5] = np.nan
    assert launched()[2].all()


def test_cartpole_reward_is_greatest_upright_and_centred(rng):
    """The reward is 1 at rest, upright, in the middle, and below it in every other state."""
    launched = Launched(CartPoleSwingUp(), rng)
    assert launched()[1].max() < 1.0
    for value in launched.values.values():
        value[:] = 0.0
    obs, reward, _, _ = launched()
    np.testing.assert_allclose(reward, 1.0)
    np.testing.assert_allclose(obs[0], [0, 1, 0, 0, 0])
    assert launched.task.init_qpos[1] == pytest.approx(np.pi)  # starts hanging


def test_parameters_reach_the_kernel(rng):
    """A keyword changes what it names and nothing else."""
    rewards = {}
    for weight in (1e-3, 1.0):
        launched = Launched(Hopper(ctrl_cost_weight=weight), np.random.default_rng(0))
        rewards[weight] = launched()[1]
    effort = (launched.values["action"].astype(np.float32) ** 2).sum(axis=1)
    np.testing.assert_allclose(rewards[1e-3] - rewards[1.0], 0.999 * effort, rtol=1e-3, atol=1e-3)
    launched = Launched(Hopper(terminate_when_unhealthy=False), rng)
    assert not launched()[2].any()


def test_options_of_the_model(tmp_path):
    """frame_skip, integrator and xml_file do what they say."""
    task = Hopper(frame_skip=2, integrator="euler")
    assert task.dt == pytest.approx(0.004)
    assert task.mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER
    text = files("envs_assets").joinpath("hopper.xml").read_text()
    path = tmp_path / "own.xml"
    path.write_text(text.replace('timestep="0.002"', 'timestep="0.001"'))
    assert Hopper(xml_file=str(path)).dt == pytest.approx(0.004)
    assert Hopper(xml_file=path.read_text()).dt == pytest.approx(0.004)


def test_own_model_is_not_taken_from_the_working_directory(tmp_path, monkeypatch):
    """A file of the name of a task's asset, where Python runs, is another model."""
    text = files("envs_assets").joinpath("hopper.xml").read_text()
    (tmp_path / "hopper.xml").write_text(text.replace('timestep="0.002"', 'timestep="0.001"'))
    monkeypatch.chdir(tmp_path)
    assert Hopper().dt == pytest.approx(0.008)
    assert Hopper(xml_file="hopper.xml").dt == pytest.approx(0.004)


@pytest.mark.parametrize("id", V5)
def test_v5_reward_has_all_weights_of_v5(id):
    """reward="v5" sets the weights that differ by default; one that is given goes before it."""
    task = TASKS[id]
    ours, v5 = task(reward="v5").parameters, task(**task.v5).parameters
    weights = [name for name in ours if name.endswith("_weight") or name == "reward"]
    assert {name: ours[name] for name in weights} == {name: v5[name] for name in weights}
    for name in set(weights) - {"reward"}:
        assert task(reward="v5", **{name: 0.25}).parameters[name] == 0.25


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"ctrl_cost_wieght": 1.0}, TypeError, r"Hopper has no parameter 'ctrl_cost_wieght'; did "
         r"you mean 'ctrl_cost_weight'\? It has 'forward_reward_weight', 'ctrl_cost_weight', "),
        ({"zzz": 1.0}, TypeError, r"Hopper has no parameter 'zzz'\. It has 'forward_reward_wei"),
        ({"ctrl_cost_weight": "0.1"}, TypeError, "ctrl_cost_weight is a number, not '0.1'"),
        ({"ctrl_cost_weight": float("nan")}, TypeError, "ctrl_cost_weight is a number, not nan"),
        ({"healthy_z_range": (2, 1)}, TypeError, r"two numbers \(low, high\), not \(2, 1\)"),
        ({"ctrl_cost_weight": "much"}, TypeError, "ctrl_cost_weight is a number, not 'much'"),
        ({"healthy_z_range": 0.7}, TypeError, r"healthy_z_range is two numbers \(low, high\), not"),
        ({"healthy_z_range": (0, 1, 2)}, TypeError, r"two numbers \(low, high\), not \(0, 1, 2\)"),
        ({"terminate_when_unhealthy": 1}, TypeError, "terminate_when_unhealthy is True or False"),
        ({"integrator": "RK4"}, ValueError, r"'RK4' is not one of \['euler', 'implicitfast'"),
        ({"reward": "mine"}, ValueError, "accepts only reward='v5': its reward is that of Hopper"),
        ({"frame_skip": 0}, ValueError, "frame_skip must be an integer >= 1, not 0"),
        ({"frame_skip": 1.5}, ValueError, "frame_skip must be an integer >= 1, not 1.5"),
        ({"frame_skip": True}, ValueError, "frame_skip must be an integer >= 1, not True"),
        ({"integrator": []}, ValueError, r"integrator \[\] is not one of \['euler', 'implicit"),
        ({"reset_noise_scale": -0.1}, ValueError, "reset_noise_scale is finite and >= 0, not -0.1"),
        ({"reset_noise_scale": np.nan}, TypeError, "reset_noise_scale is a number, not nan"),
        ({"reset_noise_scale": np.inf}, ValueError, "reset_noise_scale is finite and >= 0, not i"),
        ({"ctrl_cost_weight": True}, TypeError, "ctrl_cost_weight is a number, not True"),
        ({"xml_file": "no.xml"}, FileNotFoundError, "'no.xml' is neither a file nor an asset"),
    ],
)  # fmt: skip
def test_construction_refuses(kwargs, error, message):
    """What a task does not know or cannot use is refused by name, with what is accepted."""
    with pytest.raises(error, match=message):
        Hopper(**kwargs)


@wp.kernel(enable_backward=False)
def _no_adjoint(
    p: CartPoleSwingUpParams,
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
    """Never launched."""


@wp.struct
class _MixedParams:
    """A field of each kind."""

    number: float
    count: int
    flag: wp.bool
    limits: wp.vec2


MIXED = {"number": 1, "count": 2, "flag": True, "limits": (0.0, 1.0)}


def _define(**attributes):
    """A cart-pole with other attributes."""
    return type("Odd", (CartPoleSwingUp,), attributes)


def _mixed(**defaults):
    """A cart-pole with a keyword of each kind, with other defaults."""
    return _define(params=_MixedParams, defaults=MIXED | defaults)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"reads": ("qpos", "xmat")}, r"Odd reads \['xmat'\], which the adjoint of a step cannot"),
        ({"reads": ("qpos", "action")}, r"kernel of Odd has the arguments \['p', 'qpos_in', 'q"),
        ({"reads": ("qpos")}, r"Odd: reads is a tuple of names, not 'qpos'; one name is \('q"),
        ({"state_info": ("angle")}, r"state_info is a tuple of names, not 'angle'; one name is \("),
        ({"step_info": (1,)}, r"step_info is a tuple of names, not \(1,\)$"),
        ({"step_info": ("angle",)}, r"state_info and step_info name \['angle'\] more than once"),
        ({"reads_if": {"qpos": "upright_weight"}}, r"reads_if\['qpos'\] is a tuple of names, not"),
        ({"reads_if": {"qpos": ("uprite",)}}, r"Odd: reads_if\['qpos'\] .* not \['uprite'\]"),
        ({"reads_if": {"xpos": ("upright_weight",)}}, r"reads_if\['xpos'\] is for a field of `re"),
        ({"choices": {"reward": "v5"}}, r"choices\['reward'\] is a tuple of names, not 'v5'"),
        ({"reset_noise": ("normal", "gauss")}, r"reset_noise is a pair, .* of \['uniform', 'norm"),
        ({"reset_noise": "normal"}, "reset_noise is a pair, .*, not 'normal'"),
        ({"kernel": len}, "kernel is a function with @wp.kernel, not <built-in function len>"),
        ({"params": dict}, "params is a class with @wp.struct, not <class 'dict'>"),
    ],
)  # fmt: skip
def test_task_class_is_checked(attributes, message):
    """Attributes that contradict the kernel or each other are refused when the class is defined."""
    with pytest.raises(TypeError, match=message):
        _define(**attributes)


def test_required_attributes():
    """A task without one of the attributes that every task has is told which."""
    with pytest.raises(
        TypeError, match=r"Bare lacks \['xml', 'frame_skip', 'params', 'defaults'\]; e"
    ):

        class Bare(Task):
            kernel = CartPoleSwingUp.kernel


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"number": None}, "Odd: the default of number is True or False, a number, .* not None"),
        ({"limits": (0, 1, 2)}, r"the default of limits is True or False, .* not \(0, 1, 2\)"),
        ({"limits": [0, 1]}, r"a tuple of two numbers \(low, high\), .* not \[0, 1\]"),
        ({"other": "fast"}, "the default of other is .* or one of its `choices`, not 'fast'"),
        ({"number": True}, "default True of number asks for a wp.bool field .* of type float32"),
        ({"flag": 1}, "default 1 of flag asks for an int or a float field .* of type bool"),
        ({"count": 1.5}, "default 1.5 of count asks for a float field .* of type int32"),
        ({"number": (0.0, 1.0)}, "asks for a wp.vec2 field of the struct _MixedParams"),
    ],
)
def test_defaults_are_checked(defaults, message):
    """A default is of a kind that keywords have, and of the kind of its field."""
    with pytest.raises(TypeError, match=message):
        _mixed(**defaults)


def test_default_of_a_choice():
    """The default of a choice is one of its choices."""
    with pytest.raises(
        TypeError, match=r"the default of count is one of its choices, \['a', 'b'\]"
    ):
        _define(params=_MixedParams, defaults=MIXED, choices={"count": ("a", "b")})


def test_numbers_keep_their_kind():
    """An int field takes integers, a float field any number, and neither takes a flag."""
    task = _mixed()(number=0.5, count=np.int64(7), limits=np.array([1, 2]))
    assert (task.p.number, task.p.count, task.parameters["count"]) == (0.5, 7, 7)
    assert type(task.parameters["count"]) is int
    assert tuple(task.p.limits) == (1.0, 2.0)
    for kwargs, message in (
        ({"count": 1.5}, "Odd: count is an integer, not 1.5"),
        ({"count": True}, "Odd: count is an integer, not True"),
        ({"number": True}, "Odd: number is a number, not True"),
        ({"limits": (0, None)}, r"Odd: limits is two numbers \(low, high\), not \(0, None\)"),
    ):
        with pytest.raises(TypeError, match=message):
            _mixed()(**kwargs)


def test_struct_fields_without_a_value():
    """A field of the struct that nothing fills is named."""
    task = _define(params=_MixedParams, defaults={"number": 1.0, "flag": True})
    with pytest.raises(
        TypeError, match=r"nothing fills the fields \['count', 'limits'\] of _Mixed"
    ):
        task()


def test_kernel_needs_its_adjoint():
    """A kernel without an adjoint would be noticed in the first backward only."""
    with pytest.raises(TypeError, match="kernel _no_adjoint has no adjoint, because it or its mod"):
        _define(kernel=_no_adjoint)()


SLIDER = """<mujoco><worldbody><body name="cart"><joint type="slide"/><geom size=".1"/></body>
</worldbody></mujoco>"""


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("DiffReacher-v0", r"\(nq=1, nv=1, nbody=2\) does not have: \"?Invalid name 'fingertip'"),
        ("DiffPusher-v0", "does not have: \"?Invalid name 'tips_arm'"),
        (
            "DiffHumanoidStandup-v0",
            "an observation has .* not 0; the model has nq=1, nv=1",
        ),
        ("DiffCartPoleSwingUp-v0", r"the key frame 'hanging' .* does not have; it has \[\]"),
        ("DiffWalker2d-v0", "does not have: index 1 is out of bounds for axis 0"),
    ],
)
def test_robot_without_what_the_task_names(id, message):
    """Another robot that lacks a body, a joint or a key frame of the task."""
    with pytest.raises(ValueError, match=f"{TASKS[id].__name__}: .*{message}"):
        TASKS[id](xml_file=SLIDER)


@pytest.mark.parametrize("size", [0, 2.0, True])
def test_observation_size_is_checked(size):
    """An observation has at least one entry, and a whole number of them."""
    with pytest.raises(ValueError, match=f"has an integer >= 1 of entries .* not {size!r}"):
        _define(obs_dim=size)()
