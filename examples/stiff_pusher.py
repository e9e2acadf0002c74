"""Pusher with contacts as hard as MuJoCo 2 made them: a variant of a task of ours in a few lines.

The object of Pusher-v5 weighs 8 mg; what makes it inert is the armature of its rails, 0.04 kg. How
hard a contact pushes depends on `body_invweight0` of its bodies. MuJoCo 2 counted the armature in
(16.7 per kg), MuJoCo 3 and later do not (127,324): the arm sinks into the object, and one contact
moves it at no more than 6 cm/s. Here the object weighs 0.04 kg and its rails have no armature: on
its rails it is as inert as before, and its contacts are nearly as hard as then (25 per kg).

    cd examples
    python sapo.py --env stiff_pusher:StiffPusher-v0 --num-envs 256 --iterations 500 \
        --actor-lr 2e-3 --target-entropy -1 --clip-worlds 30 --kl 0.05        trains
    python stiff_pusher.py stiff.xml               writes the model for Gymnasium's Pusher-v5:
    python -m diffenvs.evaluate --env DiffPusher-v0 --kwarg xml_file=stiff.xml \
        --policy policies/StiffPusher-v0.pt2
"""

import argparse
from importlib.resources import files
from pathlib import Path

import mujoco

import diffenvs
from diffenvs.tasks.pusher import Pusher

MASS = 0.04  # kg, that of the armature it stands for


def model() -> str:
    """MJCF of Pusher with mass in place of the armature of its object."""
    spec = mujoco.MjSpec.from_string(files("envs_assets").joinpath(Pusher.xml).read_text())
    thing = spec.body("object")
    for geom in thing.geoms:
        geom.mass = MASS
    for joint in thing.joints:
        joint.armature = 0.0
    spec.compile()
    return spec.to_xml()


class StiffPusher(Pusher):
    """Pusher with another object; Gymnasium has no such task."""

    gymnasium = None
    xml = model()


diffenvs.register("StiffPusher-v0", "stiff_pusher:StiffPusher", max_episode_steps=100)


def main(out: Path) -> None:
    """Write the model."""
    out.write_text(StiffPusher.xml)
    print(f"{out}: pass it on as xml_file")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the model, for Gymnasium's Pusher.")
    parser.add_argument("out", type=Path, help="MJCF file")
    main(parser.parse_args().out)
