"""What a training script needs around its update; the scripts in `examples/` use it.

There is no trainer here: a script keeps its loop, its networks and its losses. This package keeps
the records: settings, checkpoints from which a run goes on bit for bit, evaluations on our
environment and on Gymnasium's, the log, the curve, the video.

    cfg = training.parse(Config, TASKS, ON_CPU)             # class Config(Settings)
    processes = training.start_processes(cfg)               # one, or those of torchrun; seeds
    envs = gym.make_vec(cfg.env, num_envs=cfg.num_envs, arrays="torch",
                        window=cfg.horizon, device=str(processes.device))
    ...                                                     # networks, optimisers
    run = training.Run(cfg, processes, envs, {"policy": policy, "optimizer": optimizer})
    for iteration in run.iterations(policy):
        obs = run.obs
        ...                                                 # horizon steps, one update
        run.log({"train/reward": reward.mean()})
        run.obs = obs.detach()
    run.finish(policy)

It needs the extra "train". Nothing else of `diffenvs` imports it.
"""

from diffenvs.training.graphs import captured
from diffenvs.training.health import GradientHealth
from diffenvs.training.networks import Normalize, mlp
from diffenvs.training.processes import Processes, start_processes
from diffenvs.training.run import Run
from diffenvs.training.settings import Settings, parse
from diffenvs.training.steps import StepSize, divergence
from diffenvs.training.worlds import ends, renew, sound, spread_episodes

__all__ = [
    "GradientHealth",
    "Normalize",
    "Processes",
    "Run",
    "Settings",
    "StepSize",
    "captured",
    "divergence",
    "ends",
    "mlp",
    "parse",
    "renew",
    "sound",
    "spread_episodes",
    "start_processes",
]
