"""The adjoint of contacts between all kinds of geoms, against central differences of C MuJoCo."""

import contact_models
import pytest
from test_step_vjp import check

ANALYTIC = [
    ("plane", "a cylinder"),
    ("plane", "a ellipsoid"),
    ("plane", "a box"),
    ("plane", "a mesh"),
    ("b sphere", "a cylinder"),
    ("b sphere", "a box"),
    ("b sphere", "a mesh"),
]


@pytest.mark.parametrize(("cone", "condim"), [("pyramidal", 4), ("elliptic", 3)])
def test_contact_vjp_vs_central_differences(cone, condim):
    """Planes and spheres with every other kind of geom."""
    mjm = contact_models.load(ANALYTIC, cone, condim)
    check(mjm, contact_models.states(mjm, ANALYTIC, 6, seed=1))
