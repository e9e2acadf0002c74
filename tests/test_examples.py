"""Each example runs for two iterations, leaves what it promises and says honestly what came of it.

Windows are shortened where the example has a constant for it: every slot captures its own graph.
"""

import importlib.util
import pathlib
import re

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def load(name):
    """Import an example, without running it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(pattern, text):
    """All numbers that follow the pattern."""
    return [float(found) for found in re.findall(pattern + r"\s*(-?\d[\d.e-]*\d)", text)]


def test_numpy_gradient_agrees_with_differences(capfd, monkeypatch):
    """The gradient is that of the differences to within their own error, and leads uphill."""
    example = load("numpy_gradient")
    monkeypatch.setattr(example, "STEPS", 8)
    example.main(iterations=2, seed=0, rate=0.3)
    out = capfd.readouterr().out
    errors = [float(line.split()[0]) for line in out.splitlines() if "is moved by" in line]
    assert len(errors) == 3 and min(errors) < 5e-3
    assert "The return rose" in out


def test_trajectory_optimization_descends_and_draws(tmp_path, capfd, monkeypatch):
    """Two steps of Adam lower the cost, are no somersault, and leave a picture."""
    example = load("trajectory_optimization")
    monkeypatch.setattr(example, "STEPS", 8)
    example.main(iterations=2, num_envs=4, lr=0.1, seed=0, out=tmp_path / "out")
    out = capfd.readouterr().out
    before, after = numbers("cost", out)
    assert after < before
    assert "NO somersault" in out
    assert (tmp_path / "out" / "trajectory_optimization.png").stat().st_size > 10_000


def test_ilqr_lowers_the_cost(capfd):
    """The cost falls from one iteration to the next; a plan without feedback does not stand."""
    load("ilqr").main(iterations=2, seed=0)
    out = capfd.readouterr().out
    before, after, last = numbers("(?:cost|cost of)", out)
    assert last == after < before
    assert "without feedback: 0 of 20 stand" in out
