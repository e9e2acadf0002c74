"""What a task states, and what every task shares: its keywords, its model, its start states.

A task is one file: an MJCF model, one Warp kernel that turns a step into observation, reward and
termination, and a class of attributes that names them (`diffenvs.tasks.hopper` is a good one to
copy). Nothing else is needed: `diffenvs.vector_env` makes the environments from it, with gradients.

The kernel runs one thread per world, after the physics, and keeps the adjoint that Warp generates
for it. Its arguments are, in this order::

    p               the task's struct of parameters
    <field>_in      one per entry of `Task.reads`, see `READABLE`
    obs_out         (num_envs, obs_dim) float32
    reward_out      (num_envs,) float32
    terminated_out  (num_envs,) bool
    info_out        (num_envs, columns) float32: the columns of `state_info`, then of `step_info`

What can be read, and what it means, is in `diffenvs.step_fields`: the states before and after the
step, kinematics of both, forces of the last physics step. `mujoco.MjData` holds kinematics that are
one forward pass old after a step; these are fresh, so a reward on the position of a body sees all
that the action did to it.

Every thread writes every entry of its row of the outputs, with `=`, and nothing else, and reads the
rows of its own world; `diffenvs.kernel_trial` sees to that when an environment is made.

Warp differentiates the kernel, which asks something of it: a variable that is changed in a loop is
a sum, and a norm is kept away from zero, where it has no derivative.
"""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import mujoco
import numpy as np
import warp as wp

from diffenvs.env_kernels import reset_worlds
from diffenvs.make_options import count
from diffenvs.physics import State
from diffenvs.task_checks import (
    NOISE,
    check_task_class,
    field_type,
    is_integer,
    is_number,
    is_range,
)

INTEGRATORS = {
    "euler": mujoco.mjtIntegrator.mjINT_EULER,
    "implicitfast": mujoco.mjtIntegrator.mjINT_IMPLICITFAST,
    "rk4": mujoco.mjtIntegrator.mjINT_RK4,
}


def pays(name: str) -> bool:
    """Say whether a keyword decides what is paid, and not what is seen or simulated."""
    return name in ("reward", "healthy_reward") or name.endswith("_weight")


class Task:
    """A model, an outputs kernel and a start distribution; subclass it and set the attributes.

    Args:
        xml_file: MJCF to use instead of the task's own: a path, or its text.
        frame_skip: Physics steps per environment step; the task's own if not given.
        integrator: "euler", "implicitfast" or "rk4"; what the model file says if not given.
        **parameters: Weights and limits of the task, by the names in `defaults`.
    """

    gymnasium: ClassVar[str | None] = None
    """Id of the task of Gymnasium that this one is, for example "Ant-v5"."""
    v5: ClassVar[dict[str, Any]] = {}
    """Keywords with which this task is `gymnasium` without any, but for single precision and the
    age of kinematics. The keyword reward="v5" stands for the weights among them."""
    xml: ClassVar[str]
    """MJCF: its text, the path of a file, or the name of a file of the package `envs_assets`."""
    frame_skip: ClassVar[int]
    """Physics steps per environment step."""
    kernel: ClassVar[wp.Kernel]
    """Outputs kernel, see the module docstring."""
    reads: ClassVar[tuple[str, ...]] = ("qpos_prev", "qpos", "qvel", "action")
    """Fields that the kernel reads, in the order of its arguments."""
    reads_if: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Fields of `reads` that cost something: field -> keywords. While all of these are False or 0
    the field is not computed: its array has no columns, and the kernel may not look at it."""
    params: ClassVar[Any]
    """`wp.struct` of the kernel. Each field is a keyword of `defaults` or a key of `derived`."""
    defaults: ClassVar[dict[str, Any]]
    """Every keyword of the task with its default: a flag, a number, a range or a choice. A default
    that is an integer takes integers only, unless it fills a float field of `params`."""
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Keywords that are strings: name -> what is accepted. The kernel gets the place in it."""
    refused: ClassVar[dict[str, tuple[Any, str]]] = {}
    """Keywords that are known but accept one value: name -> (the value, why no other)."""
    obs_dim: ClassVar[int | None] = None
    """Length of the observation; None: all of qpos but its first `skipped_qpos`, and qvel. Where
    it depends on other keywords, override `observation_size`."""
    skipped_qpos: ClassVar[int] = 0
    """Entries of qpos that `exclude_current_positions_from_observation` leaves out."""
    state_info: ClassVar[tuple[str, ...]] = ()
    """Info columns that describe a state; `reset` returns them too."""
    step_info: ClassVar[tuple[str, ...]] = ()
    """Info columns that describe a step, among them the terms of the reward, "reward_..."."""
    init_key: ClassVar[str | None] = None
    """Key frame of the model at which episodes start; None: its reference configuration."""
    reset_noise: ClassVar[tuple[str, str]] = ("uniform", "uniform")
    """Distribution of the noise on the start's qpos and qvel, "uniform" on [-1, 1] or "normal"; it
    is scaled by the keyword `reset_noise_scale`."""
    reset_kernel: ClassVar[wp.Kernel] = reset_worlds
    """Kernel that writes start states; one of your own has the same arguments."""
    camera: ClassVar[dict[str, Any]] = {}
    """Attributes of the viewer's free camera, as Gymnasium's `default_camera_config`."""

    def __init_subclass__(cls) -> None:
        """Refuse attributes that do not fit together, such as a kernel of other arguments."""
        check_task_class(cls)

    def __init__(
        self,
        xml_file: str | None = None,
        frame_skip: int | None = None,
        integrator: str | None = None,
        **parameters: Any,
    ) -> None:
        self.name = type(self).__name__
        self.parameters = self._merge(parameters)
        self.mjm = self._load(xml_file, integrator)
        nstep = self.frame_skip if frame_skip is None else frame_skip
        self.nstep = count(self.name, "frame_skip", nstep)
        self.dt = float(self.mjm.opt.timestep) * self.nstep
        self.init_qpos, self.init_qvel = self._start()
        self.obs_size = self._observation_size()
        self.p = self._struct()
        options = self.kernel.module.options | self.kernel.options
        if not options["enable_backward"]:
            raise TypeError(
                f"{self.name}: the outputs kernel {self.kernel.key} has no adjoint, because it or "
                "its module has enable_backward=False, and with it there is no gradient. Leave "
                "that option out"
            )

    def _merge(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the defaults with `given` put in, every value checked against its default."""
        values = dict(self.defaults)
        refused = dict(self.refused)
        if self.gymnasium and "reward" not in values:
            refused["reward"] = ("v5", f"its reward is that of {self.gymnasium}, but for weights")
        if given.get("reward") == "v5":
            values |= {name: value for name, value in self.v5.items() if pays(name)}
        for name, value in given.items():
            if name in refused:
                accepted, reason = refused[name]
                if value != accepted:
                    raise ValueError(f"{self.name} accepts only {name}={accepted!r}: {reason}")
            elif name not in values:
                close = difflib.get_close_matches(name, values, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                names = ", ".join(repr(known) for known in values)
                raise TypeError(f"{self.name} has no parameter {name!r}{hint} It has {names}")
            else:
                values[name] = self._convert(name, value, self.defaults[name])
        scale = values.get("reset_noise_scale", 0.0)
        if not 0.0 <= scale < float("inf"):
            raise ValueError(f"{self.name}: reset_noise_scale is finite and >= 0, not {scale!r}")
        return values

    def _convert(self, name: str, value: Any, default: Any) -> Any:
        """Return `value` in the type of `default`: a flag, a choice, a range or a number."""
        if name in self.choices:
            if isinstance(value, str) and value in self.choices[name]:
                return value
            accepted = list(self.choices[name])
            raise ValueError(f"{self.name}: {name}={value!r} is not one of {accepted}")
        if isinstance(default, bool):
            if isinstance(value, bool | np.bool_):
                return bool(value)
            raise TypeError(f"{self.name}: {name} is True or False, not {value!r}")
        dtype = field_type(type(self), name)
        if isinstance(default, tuple):
            wanted = "two numbers (low, high)"
            if isinstance(value, list | np.ndarray):
                value = tuple(value)
            if is_range(value):
                return float(value[0]), float(value[1])
        elif is_integer(default) and not wp.types.type_is_float(dtype):
            wanted = "an integer"
            if is_integer(value):
                return int(value)
        else:
            wanted = "a number"
            if is_number(value):
                return float(value)
        raise TypeError(f"{self.name}: {name} is {wanted}, not {value!r}")

    def _load(self, xml_file: str | None, integrator: str | None) -> mujoco.MjModel:
        """Compile the model, from MJCF text, from a path or from `envs_assets`.

        A file that happens to be called as the task's own asset, where Python was started, is not
        taken for it.
        """
        xml = str(self.xml if xml_file is None else xml_file)
        if xml.lstrip().startswith("<"):
            mjm = mujoco.MjModel.from_xml_string(xml)
        else:
            path, asset = Path(xml), files("envs_assets").joinpath(xml)
            own = xml_file is None and path.name == xml and asset.is_file()
            if path.is_file() and not own:
                mjm = mujoco.MjModel.from_xml_path(xml)
            elif asset.is_file():
                mjm = mujoco.MjModel.from_xml_string(asset.read_text())
            else:
                raise FileNotFoundError(
                    f"{self.name}: {xml!r} is neither a file nor an asset of `envs_assets`"
                )
        if integrator is not None:
            if not isinstance(integrator, str) or integrator not in INTEGRATORS:
                raise ValueError(
                    f"{self.name}: integrator {integrator!r} is not one of {list(INTEGRATORS)}"
                )
            mjm.opt.integrator = INTEGRATORS[integrator]
        return mjm

    def derived(self) -> dict[str, float]:
        """Return the fields of `params` that follow from the model: `dt` (s), the control step."""
        return {"dt": self.dt}

    def _struct(self) -> Any:
        """Fill the kernel's struct from the parameters and from what follows from the model."""
        p = self.params()
        try:
            derived = self.derived()
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"{self.name}: its derived() asks for what the model (nq={self.mjm.nq}, "
                f"nv={self.mjm.nv}, nbody={self.mjm.nbody}) does not have: {error.args[0]}. With "
                f"an xml_file, use a robot of the task's kind, or a task of your own"
            ) from error
        values = self.parameters | derived
        unknown = [field for field in self.params.vars if field not in values]
        if unknown:
            raise TypeError(
                f"{self.name}: nothing fills the fields {unknown} of {self.params.key}; each is "
                f"a keyword of `defaults`, {list(self.defaults)}, or a key of derived(), "
                f"{list(derived)}"
            )
        for field in self.params.vars:
            value = values[field]
            if field in self.choices:
                value = self.choices[field].index(value)
            setattr(p, field, wp.vec2(*value) if isinstance(value, tuple) else value)
        return p

    def _observation_size(self) -> int:
        """Return `observation_size()`, checked."""
        size = self.observation_size()
        if not is_integer(size) or size < 1:
            raise ValueError(
                f"{self.name}: an observation has an integer >= 1 of entries (`obs_dim` or "
                f"observation_size()), not {size!r}; the model has nq={self.mjm.nq}, "
                f"nv={self.mjm.nv}"
            )
        return int(size)

    def observation_size(self) -> int:
        """Return the length of the observation under the present parameters."""
        if self.obs_dim is not None:
            return self.obs_dim
        excluded = self.parameters.get("exclude_current_positions_from_observation", False)
        return self.mjm.nq + self.mjm.nv - self.skipped_qpos * excluded

    def active_reads(self) -> list[str]:
        """Return the fields that the kernel looks at under the present parameters."""
        return [
            field
            for field in self.reads
            if field not in self.reads_if
            or any(self.parameters[name] for name in self.reads_if[field])
        ]

    def _start(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the state around which episodes start: a key frame or the reference."""
        if self.init_key is None:
            return self.mjm.qpos0.copy(), np.zeros(self.mjm.nv)
        names = [self.mjm.key(i).name for i in range(self.mjm.nkey)]
        if self.init_key not in names:
            raise ValueError(
                f"{self.name}: episodes start at the key frame {self.init_key!r} (`init_key`), "
                f"which the model does not have; it has {names}. Add it to the <keyframe> of "
                "the MJCF"
            )
        key = self.mjm.key(self.init_key)
        return key.qpos.copy(), key.qvel.copy()

    def make_start(self, device: wp.Device) -> tuple[wp.array, wp.array]:
        """Copy the start state to the device, for `launch_reset`."""
        return (
            wp.array(self.init_qpos, dtype=float, device=device),
            wp.array(self.init_qvel, dtype=float, device=device),
        )

    def launch_reset(
        self,
        mask: wp.array,
        seed: wp.array,
        episode: wp.array,
        start: tuple[wp.array, wp.array],
        state: State,
    ) -> None:
        """Write a start state into the worlds in `mask`, random by (seed, episode) alone."""
        wp.launch(
            self.reset_kernel,
            dim=mask.shape[0],
            inputs=[
                mask,
                seed,
                episode,
                *start,
                NOISE[self.reset_noise[0]],
                NOISE[self.reset_noise[1]],
                self.parameters.get("reset_noise_scale", 0.0),
            ],
            outputs=[state.qpos, state.qvel, state.act, state.qacc_warmstart],
            device=mask.device,
        )

    def launch_outputs(self, fields: dict[str, wp.array], outputs: tuple[wp.array, ...]) -> None:
        """Compute (obs, reward, terminated, info) from the fields of `reads`, given by name."""
        wp.launch(
            self.kernel,
            dim=outputs[1].shape[0],
            inputs=[self.p, *(fields[field] for field in self.reads)],
            outputs=list(outputs),
            device=outputs[1].device,
        )

    def launch_outputs_vjp(
        self,
        fields: dict[str, wp.array],
        outputs: tuple[wp.array, ...],
        adj_obs: wp.array,
        adj_reward: wp.array,
        adj_fields: dict[str, wp.array],
    ) -> None:
        """Add to the cotangents of the fields those of obs and reward.

        Args:
            fields: As in `launch_outputs`.
            outputs: As in `launch_outputs`.
            adj_obs: Cotangent of the observation.
            adj_reward: Cotangent of the reward.
            adj_fields: Cotangents of the fields of `reads` by name, accumulated.
        """
        wp.launch(
            self.kernel,
            dim=outputs[1].shape[0],
            inputs=[self.p, *(fields[field] for field in self.reads)],
            outputs=list(outputs),
            adj_inputs=[self.params(), *(adj_fields[field] for field in self.reads)],
            adj_outputs=[adj_obs, adj_reward, None, None],
            device=outputs[1].device,
            adjoint=True,
        )
