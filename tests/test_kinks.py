"""Every switch within a step of C MuJoCo is seen as a kink of the differences, and only there."""

import gymnasium.envs.mujoco
import mujoco
import numpy as np
import pytest

from diffenvs.physics import finite_diff as fd
from diffenvs.physics.kinks import Stepper

CART = """
<mujoco>
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.01" gravity="0 0 0" integrator="{integrator}"/>
  <worldbody>
    <body>
      <joint name="s" type="slide" axis="1 0 0" {joint}/>
      <geom size="0.1" mass="1"/>
    </body>
  </worldbody>
  <tendon><fixed name="t" {tendon}><joint joint="s" coef="1"/></fixed></tendon>
  <actuator>{actuator}</actuator>
</mujoco>"""

INTEGRATOR = '<general joint="s" dyntype="integrator" actlimited="true" actrange="-1 1" {}/>'
# name: (actuator, joint, tendon, the input that is varied, where it switches)
SWITCHES = {
    "actrange": (INTEGRATOR.format(""), "", "", "act", 0.995),
    "actrange early": (INTEGRATOR.format('actearly="true"'), "", "", "act", 0.995),
    "muscle": ('<muscle joint="s" lengthrange="-1 1"/>', "", "", "act", 0.5),
    "ctrlrange": ('<motor joint="s" ctrlrange="-1 1"/>', "", "", "ctrl", 1.0),
    "forcerange": ('<motor joint="s" forcerange="-1 0.4"/>', "", "", "ctrl", 0.4),
    "actuatorfrcrange": (
        '<motor joint="s" gear="2"/>',
        'actuatorfrcrange="-1 1"',
        "",
        "ctrl",
        0.5,
    ),
    "tendon actuatorfrcrange": (
        '<motor tendon="t"/>',
        "",
        'actuatorfrclimited="true" actuatorfrcrange="-1 0.7"',
        "ctrl",
        0.7,
    ),
    "tendon spring": ("", "", 'stiffness="5" springlength="-0.2 0.3"', "qpos", 0.3),
    "frictionloss": ('<motor joint="s"/>', 'frictionloss="1"', "", "ctrl", None),
    "tendon frictionloss": ('<motor joint="s"/>', "", 'frictionloss="1"', "ctrl", None),
    "joint limit": ("", 'range="-1 0.6"', "", "qpos", 0.6),
    "tendon limit": ("", "", 'range="-1 0.6"', "qpos", 0.6),
}
INTEGRATORS = ["Euler", "implicitfast", "RK4", "discrete"]


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("name", SWITCHES)
def test_switch_is_a_kink(name, integrator):
    """At the switch the differences are marked, at either side of it they are not."""
    actuator, joint, tendon, varied, switch = SWITCHES[name]
    xml = CART.format(integrator=integrator, actuator=actuator, joint=joint, tendon=tendon)
    mjm = fd.converged(mujoco.MjModel.from_xml_string(xml))
    inputs = {"qpos": np.zeros(1), "qvel": np.zeros(1)}
    inputs |= {"act": np.full(mjm.na, 0.2), "ctrl": np.full(mjm.nu, 0.5)}

    def run(value):
        return fd.transition(mjm, **(inputs | {varied: np.array([value])}))

    def mask(value):
        """Where the switch is, as far as `Stepper` says."""
        data = mujoco.MjData(mjm)
        data.qpos[:], data.qvel[:], data.act[:], data.ctrl[:] = inputs.values()
        getattr(data, varied)[:] = value
        return Stepper(mjm).step(data)

    if switch is None:  # friction is soft, it slides where the force exceeds it by a little
        low, high = 0.5, 5.0
        while high - low > 1e-9:
            middle = (low + high) / 2
            low, high = (middle, high) if mask(middle) == mask(0.5) else (low, middle)
        switch = low
        assert 0.9 < switch < 1.5
    assert run(switch).kink
    before, after = run(switch - 0.01), run(switch + 0.01)
    assert not before.kink
    assert not after.kink
    assert mask(switch - 0.01) != mask(switch + 0.01)


def test_kink_in_a_stage_of_rk4():
    """What begins in the middle of a step of RK4 is seen though it is over at its end."""
    xml = CART.format(integrator="RK4", actuator="", joint='range="-1 1"', tendon="")
    mjm = fd.converged(mujoco.MjModel.from_xml_string(xml))
    h, speed = mjm.opt.timestep, 3.0

    def kink(at):
        return fd.transition(mjm, np.array([at]), np.array([speed]), np.zeros(0)).kink

    assert kink(1 - h * speed / 2)  # the second stage just reaches the limit
    assert not kink(1 - h * speed / 2 + 1e-3)
    assert not kink(1 - h * speed / 2 - 1e-3)


@pytest.mark.parametrize("name", ["ant", "humanoid"])
def test_stages_of_rk4(name):
    """The last stage made here is the one that `mj_step` leaves behind."""
    assets = f"{gymnasium.envs.mujoco.__path__[0]}/assets"
    mjm = mujoco.MjModel.from_xml_path(f"{assets}/{name}.xml")
    mjm.opt.integrator = mujoco.mjtIntegrator.mjINT_RK4
    mjm = fd.converged(mjm)
    states = fd.contact_rich_states(mjm, 3, seed=0)
    for i in range(3):
        data = mujoco.MjData(mjm)
        data.qpos[:], data.qvel[:] = states.qpos[i], states.qvel[i] * 3
        data.ctrl[:], data.qacc_warmstart[:] = states.ctrl[i], states.qacc_warmstart[i]
        *_, last = Stepper(mjm)._stages(data)
        xpos, cvel = last.xpos.copy(), last.cvel.copy()
        start = data.qpos.copy()
        mujoco.mj_step(mjm, data)
        assert np.linalg.norm(data.qpos - start) > 1e-2
        np.testing.assert_allclose(data.xpos, xpos, atol=1e-13)
        np.testing.assert_allclose(data.cvel, cvel, rtol=1e-9, atol=1e-10)
