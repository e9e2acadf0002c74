"""The adjoint of contacts between all kinds of geoms, against central differences of C MuJoCo."""

import contact_models
import feature_models
import numpy as np
import pytest
import warp as wp
from assert_accurate import assert_accurate

from diffenvs.physics import Physics, step
from diffenvs.physics import finite_diff as fd
from diffenvs.physics.accuracy import step_vjp
from diffenvs.physics.check_contact import has_curved, has_shapes
from diffenvs.physics.contact_geometry_vjp import Contact, pair_geometry_vjp

ANALYTIC = [
    ("plane", "a cylinder"),
    ("plane", "a ellipsoid"),
    ("plane", "a box"),
    ("plane", "a mesh"),
    ("b sphere", "a cylinder"),
    ("b sphere", "a box"),
    ("b sphere", "a mesh"),
]
CURVED = [("b box", "a ellipsoid")]


@pytest.mark.parametrize(("cone", "condim"), [("pyramidal", 4), ("elliptic", 6)])
def test_contact_vjp_vs_central_differences(cone, condim):
    """Planes and spheres with every other kind of geom."""
    mjm = contact_models.load(ANALYTIC, cone, condim)
    assert_accurate(mjm, contact_models.states(mjm, ANALYTIC, 4, seed=1))


def test_contact_vjp_does_not_depend_on_threads(monkeypatch):
    """However many threads share the rows of a world, the sums are the same to the last bit."""
    mjm = contact_models.load(ANALYTIC, "pyramidal", 4)
    states = contact_models.states(mjm, ANALYTIC, 4, seed=1)
    cotangents = np.random.default_rng(0).normal(size=(len(states.qpos), 2 * mjm.nv))
    make, found = step.Workspace, {}
    for slots in (1, 3, 8):

        def workspace(*arguments, slots=slots):
            ws = make(*arguments)
            ws.slots = slots
            return ws

        monkeypatch.setattr(step, "Workspace", workspace)
        found[slots] = step_vjp(mjm, states, cotangents)[1]["qpos"]
    assert np.linalg.norm(found[1], axis=1).min() > 1.0
    assert np.array_equal(found[3], found[1]) and np.array_equal(found[8], found[1])


def test_contact_vjp_vs_central_differences_pair():
    """Elements <pair>: anisotropic friction, its own solref, direct solref, margin and gap."""
    pairs = ANALYTIC[3:6]
    mjm = contact_models.load(
        pairs,
        "elliptic",
        explicit='condim="4" friction="0.6 0.9 0.03 0.01 0.01" solref="-400 -15" '
        'solreffriction="0.05 1" solimp="0.8 0.97 0.03 0.4 2" margin="0.01" gap="0.004"',
    )
    assert_accurate(mjm, contact_models.states(mjm, pairs, 8, seed=3))


def test_contact_vjp_vs_central_differences_surface():
    """Surfaces that move along, and adhesion within a gap."""
    pairs = [("plane", "a cylinder"), ("plane", "a mesh"), ("b sphere", "a box")]
    mjm = contact_models.load(pairs, "pyramidal", 4)
    mjm.geom_surfacevel[:] = np.random.default_rng(0).normal(size=(mjm.ngeom, 6))
    mjm.flg_surfacevel = mjm.flg_adhesion = True
    mjm.geom_adhesion[:], mjm.geom_margin[:], mjm.geom_gap[:] = 0.7, 0.003, 0.02
    assert_accurate(mjm, contact_models.states(mjm, pairs, 8, seed=4))


def test_contact_vjp_vs_central_differences_curved():
    """Contacts of ellipsoids are refined, and then differentiated.

    The search of C MuJoCo leaves noise in the closest points, which asks for wide differences:
    two widths are extrapolated.
    """
    mjm = contact_models.load(CURVED)
    assert has_curved(mjm)
    states = contact_models.states(mjm, CURVED, 24, seed=2)
    cotangents = np.random.default_rng(0).normal(size=(len(states.qpos), 2 * mjm.nv))
    after, pulled = step_vjp(mjm, states, cotangents)
    exact = fd.converged(mjm)
    errors, drift = [], []
    for i, cotangent in enumerate(cotangents):
        found = fd.transition(exact, states.qpos[i], states.qvel[i], states.ctrl[i], eps=3e-4)
        near, far = (cotangent @ jacobian for jacobian in found.jacobians[:2])
        expected = np.split(near + (near - far) / 99, 2)
        if found.kink or fd.relative_error(near, np.hstack(expected)) > 1e-3:
            continue
        ours = pulled["qpos"][i], pulled["qvel"][i]
        errors += [[fd.relative_error(a, b) for a, b in zip(ours, expected, strict=True)]]
        drift += [fd.relative_error(after[i], np.hstack([found.qpos, found.qvel]))]
    assert len(errors) >= 12
    assert max(drift) < 2e-6
    assert np.median(errors, axis=0).max() <= 1e-4
    assert np.max(errors) <= 3e-3


def test_simple_models_need_no_shapes():
    """Planes, spheres, capsules and boxes on planes do without the kernels of other shapes."""
    for name in feature_models.MODELS:
        mjm = feature_models.load(name)
        assert not has_shapes(mjm)
        assert not has_curved(mjm)
    mjm = contact_models.load(ANALYTIC)
    assert has_shapes(mjm)
    assert not has_curved(mjm)


@wp.kernel
def _pairs(c: Contact, F1: wp.array[wp.mat22], F2: wp.array[wp.mat22], out: wp.array[wp.vec3]):
    i = wp.tid()
    g = pair_geometry_vjp(c, F1[i], F2[i], 0.1)
    out[4 * i] = g.force1
    out[4 * i + 1] = g.torque1
    out[4 * i + 2] = g.force2
    out[4 * i + 3] = g.torque2


def test_parallel_features_are_finite():
    """Faces and edges that are parallel have one-sided derivatives; forces always add up."""
    point, face, edge, side = (np.diag(x) for x in ((0, 0), (1, 1), (1, 0), (1, 0.3)))
    flatness = [point, face, edge, side]
    first, second = zip(*((a, b) for a in flatness for b in flatness), strict=True)
    c = Contact()
    c.pos, c.dist, c.kappa = wp.vec3(0.1, 0.2, 0.3), -0.01, 0.7
    c.n, c.e2, c.e3 = wp.vec3(1.0, 0, 0), wp.vec3(0, 1.0, 0), wp.vec3(0, 0, 1.0)
    c.P, c.N = wp.vec3(0.3, -0.2, 0.5), wp.vec3(-0.4, 0.6, 0.1)
    F1, F2 = (wp.array(np.float32(F), dtype=wp.mat22) for F in (first, second))
    out = wp.zeros(4 * len(first), dtype=wp.vec3)
    wp.launch(_pairs, dim=len(first), inputs=[c, F1, F2], outputs=[out])
    force1, torque1, force2, torque2 = np.moveaxis(out.numpy().reshape(-1, 4, 3), 1, 0)
    assert np.isfinite(out.numpy()).all()
    # both bodies moved together: the point follows, the frame turns
    size = np.abs(force1).max(axis=1, keepdims=True)
    assert np.abs((force1 + force2 - np.array(c.P)) / size).max() < 1e-5
    turn = np.array(c.N) - [c.N[0], 0, 0]  # about the normal the tangents follow the world
    size = np.abs(torque1).max(axis=1, keepdims=True) + 1
    assert np.abs((torque1 + torque2 - turn)[:, 1:] / size).max() < 1e-4


def test_most_contacts_counts_points():
    """By default there is room for all points of a cylinder or a mesh on a plane."""
    mjm = contact_models.load([("plane", "a cylinder"), ("plane", "a mesh")])
    assert Physics(mjm).nconmax == 8
