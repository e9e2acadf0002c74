"""The models in `envs_assets` against Gymnasium's, number by number, and the facts of our own."""

import copy
import re
from importlib.resources import files
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

ASSETS = files("envs_assets")
ALL = sorted(f.name for f in ASSETS.iterdir() if f.name.endswith(".xml"))
SHARED = {
    # our file: (Gymnasium's file, the options in which ours differs)
    "ant.xml": ("ant.xml", ["opt.integrator"]),
    "half_cheetah.xml": ("half_cheetah.xml", ["opt.integrator"]),
    "hopper.xml": ("hopper.xml", ["opt.integrator"]),
    "pusher.xml": ("pusher_v5.xml", ["opt.integrator"]),
    "reacher.xml": ("reacher.xml", ["opt.integrator"]),
    # PGS there, which mujoco_warp does not have.
    "humanoid.xml": ("humanoid.xml", ["opt.integrator", "opt.iterations", "opt.solver"]),
    "humanoid_standup.xml": (
        "humanoidstandup.xml",
        ["opt.integrator", "opt.iterations", "opt.solver"],
    ),
    "inverted_double_pendulum.xml": ("inverted_double_pendulum.xml", ["opt.integrator"]),
    "inverted_pendulum.xml": ("inverted_pendulum.xml", ["opt.integrator"]),
    "swimmer.xml": ("swimmer.xml", ["opt.integrator"]),
    "walker2d.xml": ("walker2d_v5.xml", ["opt.integrator"]),
}

# What two models of the same physics may differ in: looks, names (compared by themselves), data
# that only a reader of the file sees, and the amount of memory. Everything else is compared.
NOT_PHYSICS = re.compile(
    r"(cam|light|mat|tex|name|names|numeric)_\w+|(nn|n)umeric(data)?"
    r"|n(cam|light|mat|tex|texdata|names|buffer)|nnames_map|narena|nuser_geom"
    r"|geom_(matid|rgba|group|user|castshadow)|signature"
)
NAMED = {"body": "nbody", "joint": "njnt", "geom": "ngeom", "actuator": "nu"}


def _ours(name: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(ASSETS.joinpath(name).read_text())


@pytest.fixture
def warnings_of_mujoco():
    """Collects what MuJoCo warns of, which it would otherwise write to a file beside the tests."""
    heard: list[str] = []
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(heard.append)
    yield heard
    mujoco.set_mju_user_warning(before)


@pytest.fixture
def theirs(warnings_of_mujoco):
    """Loads a model of the installed Gymnasium."""
    folder = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    return lambda name: mujoco.MjModel.from_xml_path(str(folder / name))


def _numbers(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Every number of a compiled model that is physics, by the name of its field."""
    found = {}
    for prefix, part in (("", model), ("opt.", model.opt), ("stat.", model.stat)):
        for field in dir(part):
            value = getattr(part, field)
            number = isinstance(value, int | float | np.ndarray) and not isinstance(value, type)
            if number and not field.startswith("_") and not NOT_PHYSICS.fullmatch(field):
                found[prefix + field] = np.asarray(value)
    return {k: v for k, v in found.items() if v.dtype.kind in "biuf"}


def _differences(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
    """Names of the fields in which two models differ, beyond the rounding of their compilers."""
    assert a.keys() == b.keys()
    different = [field for field in a if not np.array_equal(a[field], b[field])]
    return [
        field
        for field in different
        if a[field].shape != b[field].shape
        or not np.allclose(a[field], b[field], rtol=1e-9, atol=1e-12)
    ]


def _names(model: mujoco.MjModel, kind: str) -> list[str]:
    return [getattr(model, kind)(i).name for i in range(getattr(model, NAMED[kind]))]


@pytest.mark.parametrize("name", SHARED)
def test_numbers_vs_gymnasium(name, theirs):
    """The compiled models agree in every number of the physics but the options of the solution."""
    file, options = SHARED[name]
    assert _differences(_numbers(_ours(name)), _numbers(theirs(file))) == options


@pytest.mark.parametrize("name", SHARED)
def test_names_vs_gymnasium(name, theirs):
    """Bodies, joints, geoms and actuators stand in Gymnasium's order under Gymnasium's names."""
    ours, reference = _ours(name), theirs(SHARED[name][0])
    for kind in NAMED:
        names, expected = _names(ours, kind), _names(reference, kind)
        assert all(names[kind == "body" :]), f"a {kind} has no name"
        # Where Gymnasium gives no name (lower legs of the ant, motors) ours is a free choice.
        assert [n if e else "" for n, e in zip(names, expected, strict=True)] == expected
    # A motor to which Gymnasium gives no name has that of its joint.
    joints = [ours.joint(j).name for j in ours.actuator_trnid[:, 0]]
    given = _names(reference, "actuator")
    assert _names(ours, "actuator") == [n or j for n, j in zip(given, joints, strict=True)]


@pytest.mark.parametrize("name", SHARED)
def test_comparison_sees_every_field(name):
    """A change of one entry of any compared array or option is reported, and nothing else is."""
    model = _ours(name)
    numbers = _numbers(model)
    assert _differences(_numbers(copy.copy(model)), numbers) == []
    seen = set()
    for field, value in numbers.items():
        part, _, last = field.rpartition(".")
        if value.size == 0 or not (part or value.ndim):
            continue  # empty, or a size of the model, which cannot be written
        changed = copy.copy(model)
        owner = getattr(changed, part) if part else changed
        if value.ndim:
            entries = getattr(owner, last).reshape(-1)
            entries[-1] = not value.flat[-1] if value.dtype == bool else value.flat[-1] * 1.001 + 1
            assert np.shares_memory(entries, getattr(owner, last))
        else:
            setattr(owner, last, type(getattr(owner, last))(value * 1.001 + 1))
        assert _differences(_numbers(changed), numbers) == [field]
        seen.add(field)
    # Fields without which the comparison would be worth little.
    assert seen >= set(
        "body_mass body_inertia body_pos body_quat body_ipos body_iquat body_parentid "
        "jnt_type jnt_axis jnt_pos jnt_range jnt_limited jnt_stiffness jnt_margin jnt_solref "
        "jnt_solimp dof_damping dof_armature dof_frictionloss geom_type geom_size geom_pos "
        "geom_quat geom_friction geom_condim geom_contype geom_conaffinity geom_margin geom_gap "
        "geom_solref geom_solimp geom_solmix geom_priority actuator_gear actuator_ctrlrange "
        "actuator_ctrllimited actuator_forcerange actuator_gainprm actuator_biasprm "
        "actuator_trnid qpos0 qpos_spring opt.timestep opt.gravity opt.cone opt.solver "
        "opt.iterations opt.tolerance opt.impratio opt.disableflags opt.integrator "
        "stat.meaninertia".split()
    )


@pytest.mark.parametrize(
    ("name", "old", "new", "field"),
    [
        ("ant.xml", 'gear="150"', 'gear="150.001"', "actuator_gear"),
        ("ant.xml", 'range="30 70"', 'range="30 71"', "jnt_range"),
        ("half_cheetah.xml", 'density="660.88', 'density="661.88', "body_mass"),
        ("half_cheetah.xml", 'euler="0 .52 0"', 'euler="0 .53 0"', "geom_quat"),
        ("hopper.xml", 'friction="2"', 'friction="1.9"', "geom_friction"),
        ("hopper.xml", 'timestep="0.002"', 'timestep="0.0025"', "opt.timestep"),
    ],
)
def test_comparison_sees_an_edit(name, old, new, field, theirs):
    """An edit of the file itself is reported under the field that it belongs to."""
    text = ASSETS.joinpath(name).read_text()
    assert text.count(old) == 1
    edited = mujoco.MjModel.from_xml_string(text.replace(old, new))
    assert field in _differences(_numbers(edited), _numbers(theirs(SHARED[name][0])))


@pytest.mark.parametrize("name", ALL)
def test_model_compiles_without_a_warning(name, warnings_of_mujoco):
    """Nothing in our models is deprecated; they integrate alike and have the camera "track"."""
    model = _ours(name)
    assert warnings_of_mujoco == []
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    assert model.opt.solver == mujoco.mjtSolver.mjSOL_NEWTON
    assert model.camera("track").id == 0
    assert np.isfinite(model.qpos0).all() and model.actuator_ctrllimited.all()


def test_cartpole_hangs_at_pi():
    """The key frame "hanging" is the stable equilibrium and angle 0 the unstable one."""
    model = _ours("cartpole_swingup.xml")
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("hanging").id)
    assert data.qpos == pytest.approx([0, np.pi])
    mujoco.mj_forward(model, data)
    assert data.qacc == pytest.approx([0, 0], abs=1e-12)
    for angle, sign in ((np.pi, -1), (0.0, 1)):  # what gravity makes of a small angle
        data.qpos[1] = angle + 1e-3
        mujoco.mj_forward(model, data)
        assert data.qacc[1] * sign > 1e-3
    data.qpos[1] = 0.0
    mujoco.mj_forward(model, data)
    height = data.geom("tip").xpos[2] - data.body("pole").xpos[2]
    assert height == pytest.approx(1.0)


def test_cartpole_rail_ends_softly():
    """At full force the cart overruns the rail by 20 cm at most; the end sets in without a jump."""
    model = _ours("cartpole_swingup.xml")
    assert model.jnt_limited.tolist() == [1, 0]
    assert model.jnt_range[0].tolist() == [-1.8, 1.8]
    data = mujoco.MjData(model)
    data.qpos[1] = np.pi
    data.ctrl[:] = 1
    reached = []
    for _ in range(500):
        mujoco.mj_step(model, data)
        reached.append(data.qpos[0])
        assert data.ncon == 0
    assert 1.8 < max(reached) < 2.0
    force = []
    for overrun in (-1e-6, 1e-6, 0.05):
        mujoco.mj_resetData(model, data)
        data.qpos[0] = 1.8 + overrun
        mujoco.mj_forward(model, data)
        force.append(-data.qfrc_constraint[0])
    assert force[0] == 0
    assert 0 <= force[1] < 1e-3 < 1 < force[2]
