"""A batch of worlds on the device: reset, step, recorded step, and the adjoint of recorded steps.

One environment step is, on the device and without a host read,

1. the start state and the action are kept (recorded steps only);
2. the physics, `frame_skip` steps of it;
3. the task's outputs kernel: observation, reward, termination and info of the step;
4. `finish_step`: time limit, which worlds are done, which are reset;
5. where worlds reset themselves: their start states, and what is observed of these.

Everything between an action and the outputs is one captured graph, on CUDA and on the CPU: replay
costs microseconds where the launches cost milliseconds. A graph is bound to its arrays: with
retain="substeps" each step of the window has a graph for itself and one for its adjoint, captured
when first used; with "steps" the steps share them, see `diffenvs.window`.

The window: recorded step number t of a window keeps what its adjoint needs until the next window
has a step of that number. The record of a step carries a version, and whoever holds a `Ticket` of
an older version is refused: an overwritten record cannot be differentiated.

The adjoint of a step reads and overwrites the buffers of `Rollout.adj`, and otherwise only scratch:
it is a pure function of the record and the cotangents, and can be run as often as one likes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import warp as wp

from diffenvs import env_kernels as kernels
from diffenvs.kernel_trial import try_kernel
from diffenvs.packed import Packed
from diffenvs.physics import Physics, State
from diffenvs.physics.load import load_kernels, one_at_a_time, paused_collector
from diffenvs.physics.record import Record
from diffenvs.physics.tape import paused_tape
from diffenvs.step_arrays import Adjoint, Outputs, Slot
from diffenvs.step_fields import StepFields
from diffenvs.task import Task
from diffenvs.window import KeptSteps, Ticket, WindowMemory


class Rollout:
    """Worlds of one task, stepped together.

    Args:
        task: The task.
        num_envs: Number of worlds.
        device: Warp device.
        mode: NEXT_STEP, SAME_STEP or DISABLED of `env_kernels`.
        max_episode_steps: Time limit; 0 is none.
        window: Number of steps that can be recorded before the window has to begin anew.
        retain: "substeps" or "steps": what a recorded step keeps, see `diffenvs.window`.
        nconmax: Contacts for which memory is set aside, see `Physics`.
        njmax: Constraint rows for which memory is set aside, see `Physics`.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int,
        device: wp.Device,
        mode: int,
        max_episode_steps: int,
        window: int,
        retain: str = "substeps",
        nconmax: int | None = None,
        njmax: int | None = None,
    ) -> None:
        try_kernel(task, device)
        self.task = task
        self.num_envs = num_envs
        self.device = device
        self.mode = int(mode)
        self.max_episode_steps = max_episode_steps
        self.window = window
        self.recorded = 0
        self._unchecked = 0  # steps since the last `check_health`
        self.physics = Physics(
            task.mjm, num_envs, device, nstep=task.nstep, nconmax=nconmax, njmax=njmax
        )
        self.fields = StepFields(task.reads, task.active_reads(), self.physics)
        self.state = self.physics.make_state()
        self.seed = self._array(dtype=int)
        self.episode = self._array(dtype=int)
        self.elapsed = self._array(dtype=int)
        self.cut = self._array(dtype=wp.bool)
        self.packed = self._pack()
        packed = self.packed.arrays
        self.pending, self.misused = packed["pending"], packed["misused"]
        self.obs, self.info, self.truncated = (packed[k] for k in ("obs", "info", "truncated"))
        # `step_out` is what the step itself gives; `obs` and `info` show the start state instead
        # where a world was reset in the same step.
        self.step_out = Outputs(
            obs=packed.get("final_obs", self.obs),
            reward=packed["reward"],
            terminated=packed["terminated"],
            info=packed.get("final_info", self.info),
        )
        self._start = task.make_start(device)
        self._start_out = self._make_outputs()
        self._no_action = self._array(self.physics.nu)
        self._no_forces = self._make_forces()
        self._plain = self._make_slot(record=False)
        self.last = self._plain
        """Slot of the last step; `last.reset` says which worlds it reset."""
        self._slots: list[Slot] = []  # with "steps" one, of all steps
        self._kept = KeptSteps(task.name, self.physics, window) if retain == "steps" else None
        self._versions = defaultdict[int, int](int)  # by number in the window
        self._adj: Adjoint | None = None
        self._loaded: set[bool] = set()  # kernels of steps: recorded ones, plain ones
        self._capture_stream = wp.Stream(device) if device.is_cuda else None

    # Memory

    def _array(self, *shape: int, dtype: Any = float) -> wp.array:
        return wp.zeros((self.num_envs, *shape), dtype=dtype, device=self.device)

    def _columns(self) -> int:
        return len(self.task.state_info) + len(self.task.step_info)

    def _make_outputs(self) -> Outputs:
        return Outputs(
            obs=self._array(self.task.obs_size),
            reward=self._array(),
            terminated=self._array(dtype=wp.bool),
            info=self._array(self._columns()),
        )

    def _pack(self) -> Packed:
        """What the host looks at after a step: `StepOutputs`, and whether something is wrong."""
        n = self.num_envs
        obs, info = ((n, self.task.obs_size), wp.float32), ((n, self._columns()), wp.float32)
        flag = ((n,), wp.bool)
        fields = {"obs": obs, "reward": ((n,), wp.float32), "info": info}
        fields |= dict.fromkeys(("terminated", "truncated", "pending"), flag)
        fields |= {"misused": ((1,), wp.int32), "overflow": ((n,), wp.int32)}
        if self.mode == kernels.SAME_STEP:
            fields |= {"final_obs": obs, "final_info": info}
        return Packed(self.device, fields)

    def _make_forces(self) -> Any:
        return self.physics.make_forces(self.fields.forces) if self.fields.forces else None

    def _make_slot(self, record: bool) -> Slot:
        made = self.physics.make_record() if record else None
        return Slot(
            # The physics keeps the start of a step in the record, so we write it there at once.
            start=self.state if made is None else _start_of(made),
            state=self.physics.make_state(),
            action=self._array(self.physics.nu),
            forces=self._make_forces(),
            reset=self._array(dtype=wp.bool),
            cut=self._array(dtype=wp.bool),
            record=made,
        )

    def _slot(self, number: int) -> Slot:
        """Return the slot of a step of the window, allocated when first asked for."""
        if self._kept is not None:
            self._kept.choose(number)
            number = 0
        if number == len(self._slots):
            self._slots.append(self._make_slot(record=True))
        return self._slots[number]

    def window_memory(self) -> WindowMemory:
        """Bytes that recorded steps keep; allocates the first slot to know."""
        if not self._slots:
            self._slots.append(self._make_slot(record=True))
        slot = self._slots[0].nbytes()
        if self._kept is None:
            return WindowMemory(0, slot, slot * len(self._slots))
        return WindowMemory(slot, self._kept.nbytes(), slot + self._kept.allocated())

    @property
    def adj(self) -> Adjoint:
        """The cotangent buffers, allocated when first asked for."""
        if self._adj is None:
            make_state, nobs, nu = self.physics.make_state, self.task.obs_size, self.physics.nu
            self._adj = Adjoint(
                obs=self._array(nobs),
                final_obs=self._array(nobs),
                reward=self._array(),
                next_state=make_state(),
                state=make_state(),
                action=self._array(nu),
                step_obs=self._array(nobs),
                step_state=make_state(),
                prev=make_state(),
                direct_action=self._array(nu),
                forces=self._make_forces(),
            )
        return self._adj

    # Reset

    def reset(
        self,
        mask: wp.array,
        reseed: wp.array,
        seed: wp.array,
        start: tuple[wp.array, ...] | None = None,
    ) -> None:
        """Begin new episodes in the worlds of the mask; `obs` and `info` then show their start.

        Args:
            mask: Worlds to reset.
            reseed: Worlds that take a new seed and begin its first episode; the others begin the
                next episode of the seed that they have.
            seed: New seeds, read where `reseed` is set.
            start: qpos, qvel and act in which the episodes begin; None: random ones.
        """
        wp.launch(
            kernels.mark_reset,
            dim=self.num_envs,
            inputs=[mask, reseed, seed],
            outputs=[self.seed, self.episode, self.elapsed, self.pending, self.cut],
            device=self.device,
        )
        self._launch_start(mask, False, self.obs, self.info, start)

    def _launch_start(
        self,
        mask: wp.array,
        keep_step_info: bool,
        obs: wp.array,
        info: wp.array,
        start: tuple[wp.array, ...] | None = None,
    ) -> None:
        """Write start states into the masked worlds and show what is observed of them.

        Args:
            mask: Worlds that are reset.
            keep_step_info: Whether they still show what info says of the step.
            obs: What the other worlds show.
            info: What the other worlds show.
            start: As in `reset`.
        """
        task, out = self.task, self._start_out
        if start is None:
            task.launch_reset(mask, self.seed, self.episode, self._start, self.state)
        else:
            wp.launch(
                kernels.write_start,
                dim=self.num_envs,
                inputs=[mask, *start],
                outputs=self.state.arrays(),
                device=self.device,
            )
        self._launch_start_outputs()
        wp.launch(
            kernels.show_start,
            dim=(self.num_envs, out.obs.shape[1] + out.info.shape[1]),
            inputs=[mask, len(task.state_info), keep_step_info, out.obs, out.info, obs, info],
            outputs=[self.obs, self.info],
            device=self.device,
        )

    def _launch_start_outputs(self) -> None:
        """Compute what is seen of a state to which no step led."""
        state = self.state
        fields = self.fields.launch(state, state, self._no_action, self._no_forces)
        self.task.launch_outputs(fields, tuple(self._start_out))

    def observe(self) -> None:
        """Make `obs` and `info` show the present state, after it was set from outside."""
        out = self._start_out
        self._launch_start_outputs()
        wp.copy(self.obs, out.obs)
        wp.copy(self.info, out.info)

    def carried(self) -> dict[str, wp.array]:
        """The arrays that decide how the worlds go on, and `obs`, what is seen of them now."""
        return vars(self.state) | {
            "seed": self.seed,
            "episode": self.episode,
            "elapsed": self.elapsed,
            "pending": self.pending,
            "obs": self.obs,
        }

    # Step

    def step(self, action: Any) -> None:
        """Step without a record. The window begins anew: a record has to be of successive steps."""
        self.recorded = 0
        self.last = self._plain
        self._plain.action.assign(action)
        self._replay(self._plain, "step", lambda: self._launch_step(self._plain, None))
        self._watch()

    def grad_step(self, action: Any) -> Ticket:
        """Step with a record in the next slot of the window."""
        if self.recorded == self.window:
            raise RuntimeError(
                f"{self.task.name}: the window of {self.window} grad_steps is full. Take the "
                "gradient (loss.backward(), or backward(...) of the environment), then call "
                f"detach() to begin the next window; window= (now {self.window}) makes it longer"
            )
        if self.recorded == 0:
            self.cut.zero_()  # a reset before the window cuts nothing inside it
        slot = self._slot(self.recorded)
        self._versions[self.recorded] += 1
        self.last = slot
        slot.action.assign(action)
        self._replay(slot, "step", lambda: self._launch_grad_step(slot))
        self.recorded += 1
        self._watch()
        return self.ticket(self.recorded - 1)

    def _launch_grad_step(self, slot: Slot) -> None:
        """Launch one step in `slot`, and keep what its adjoint needs."""
        wp.launch(
            kernels.begin_step,
            dim=self.num_envs,
            inputs=self.state.arrays(),
            outputs=[self.cut, *slot.start.arrays(), slot.cut],
            device=self.device,
        )
        if self._kept is None:
            self._launch_step(slot, slot.record)
        else:
            self._launch_step(slot, None)
            self._kept.launch_keep(slot)

    def _launch_step(self, slot: Slot, record: Record | None) -> None:
        """Launch one step in `slot`, see the module docstring."""
        self.physics.launch_step(slot.start, slot.action, slot.state, record, slot.forces)
        fields = self.fields.launch(slot.start, slot.state, slot.action, slot.forces)
        self.task.launch_outputs(fields, tuple(self.step_out))
        wp.launch(
            kernels.finish_step,
            dim=self.num_envs,
            inputs=[self.mode, self.max_episode_steps, *slot.state.arrays()],
            outputs=[
                self.step_out.reward,
                self.step_out.terminated,
                self.pending,
                self.elapsed,
                self.episode,
                self.misused,
                self.truncated,
                slot.reset,
                *self.state.arrays(),
            ],
            device=self.device,
        )
        if self.mode != kernels.DISABLED:
            same = self.mode == kernels.SAME_STEP
            self._launch_start(slot.reset, same, self.step_out.obs, self.step_out.info)

    # Adjoint

    def ticket(self, number: int) -> Ticket:
        """The ticket of a step of the present window."""
        return Ticket(number, self._versions[number])

    def check(self, ticket: Ticket) -> None:
        """Refuse a step whose record was overwritten."""
        if self._versions[ticket.number] != ticket.version:
            raise RuntimeError(
                f"{self.task.name}: the record of grad_step {ticket.number} of an earlier window "
                "was overwritten by a later window, so its gradient cannot be taken any more. Take "
                "the gradient of a window before the grad_steps of the next one"
            )

    def backward(self, ticket: Ticket) -> None:
        """Pull the cotangents `adj.obs`, `.final_obs`, `.reward`, `.next_state` back to the start.

        Overwrites `adj.state` and `adj.action`, and leaves the incoming cotangents as they are.
        """
        self.check(ticket)
        self.settle()
        slot, adj = self._slot(ticket.number), self.adj
        self._replay(slot, "backward", lambda: self._launch_backward(slot, adj))

    def _launch_backward(self, slot: Slot, adj: Adjoint) -> None:
        """Launch the adjoint of `_launch_grad_step`, in reverse."""
        assert slot.record is not None
        if self._kept is not None:
            self._kept.launch_recall(slot)
            self.physics.launch_step(slot.start, slot.action, slot.state, slot.record, slot.forces)
        cleared = [*adj.prev.differentiable(), adj.direct_action]
        wp.launch(
            kernels.finish_step_vjp,
            dim=self.num_envs,
            inputs=[slot.reset, *adj.next_state.differentiable(), adj.obs, adj.final_obs],
            outputs=[*adj.step_state.differentiable(), adj.step_obs, *cleared],
            device=self.device,
        )
        fields = self.fields.launch(slot.start, slot.state, slot.action, slot.forces)
        adj_fields = self.fields.zero_adj(adj.prev, adj.step_state, adj.direct_action, adj.forces)
        self.task.launch_outputs_vjp(
            fields, tuple(self.step_out), adj.step_obs, adj.reward, adj_fields
        )
        self.fields.launch_vjp(slot.start, slot.state, adj.prev, adj.step_state)
        self.physics.launch_step_vjp(slot.record, adj.step_state, adj.state, adj.action, adj.forces)
        wp.launch(
            kernels.join_step_vjp,
            dim=self.num_envs,
            inputs=[slot.cut, *adj.prev.differentiable(), adj.direct_action],
            outputs=[*adj.state.differentiable(), adj.action],
            device=self.device,
        )

    def detach(self) -> None:
        """Begin the next window at the present state."""
        self.recorded = 0

    def set_state(self, qpos: Any, qvel: Any, act: Any) -> None:
        """Put all worlds into a given state, with a cold start of the solver, none of them done."""
        self.state.qpos.assign(qpos)
        self.state.qvel.assign(qvel)
        if self.physics.na:
            self.state.act.assign(act)
        self.state.qacc_warmstart.zero_()
        self.pending.zero_()
        self.elapsed.zero_()
        self.observe()

    # Graphs and checks

    def _replay(self, slot: Slot, name: str, launch: Callable[[], None]) -> None:
        """Replay a graph of the slot, capturing it first if it is not there yet.

        Before the first capture of a kind of step the kernels are loaded, which a capture may not
        do; those of the adjoint together with those of the recorded step.
        """
        graph = slot.graphs.get(name)
        if graph is None:
            recorded = slot.record is not None
            # Capture is not possible on every stream that a caller may have made current.
            stream = self._capture_stream
            own = nullcontext() if stream is None else wp.ScopedStream(stream, sync_enter=False)
            with one_at_a_time, paused_collector(), paused_tape():
                if recorded not in self._loaded:
                    adjoint = [lambda: self._launch_backward(slot, self.adj)] if recorded else []
                    load_kernels(self.device, launch, *adjoint)
                    self._loaded.add(recorded)
                with own, wp.ScopedCapture(device=self.device) as capture:
                    launch()
            graph = capture.graph
            assert graph is not None
            slot.graphs[name] = graph
        wp.capture_launch(graph, stream=self.device.stream if self.device.is_cuda else None)

    def _watch(self) -> None:
        """Look after every step on the CPU; on CUDA, where it means waiting, every 64 steps."""
        self._unchecked += 1
        if self.device.is_cpu or self._unchecked >= 64:
            self.check_health()

    def settle(self) -> None:
        """Look now, if there was a step since the last look."""
        if self._unchecked:
            self.check_health()

    def check_health(self) -> None:
        """Read back (a host synchronisation) whether anything went wrong since the last call.

        All of `packed` is read back with it, in one copy: the outputs of the last step are there.
        """
        self._unchecked = 0
        wp.copy(self.packed.arrays["overflow"], self.physics.d.overflow)
        self.packed.fetch()
        if self.packed.host["overflow"].any():
            self.physics.check_overflow()
        if self.packed.host["misused"][0]:
            self.misused.zero_()
            raise AssertionError(
                f"{self.task.name}: worlds that were done were stepped. With "
                "autoreset_mode=DISABLED reset them first: "
                "reset(options={'reset_mask': terminated | truncated})"
            )


def _start_of(record: Record) -> State:
    """Arrays in which a record keeps the state before the step."""
    d = record.substeps[0].d
    return State(d.qpos, d.qvel, d.act, d.qacc_warmstart)
