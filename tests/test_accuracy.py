"""The tool that measures the accuracy of gradients: exit codes, table, files, and its own eyes."""

import dataclasses
import json

import feature_models
import mujoco
import numpy as np
import pytest

from diffenvs.physics import accuracy
from diffenvs.physics import finite_diff as fd
from diffenvs.physics.accuracy_tool import main

NUM_STATES = 24  # as in test_step_vjp.py, which has these kernels compiled
COMMON = ["--states", str(NUM_STATES), "--jobs", "1"]


@pytest.fixture
def arm(tmp_path):
    """The file of a model without activations, with every kind of joint."""
    file = tmp_path / "arm.xml"
    file.write_text(feature_models.ARM)
    return str(file)


def columns(line):
    """The cells of a line of the table."""
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_table_and_files(arm, tmp_path, capsys):
    """A model within the thresholds: exit code 0, a line per case, the worst state, JSON."""
    saved, kept = tmp_path / "worst.npz", tmp_path / "kept.json"
    options = [*COMMON, "--save", str(saved), "--json", str(kept), "--date", "today"]
    assert main([arm, *options, "--integrator", "euler", "implicitfast"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith(f"{arm}: nq 13, nv 11, na 0, nu 6; 24 states, 1 step, seed 0, cpu")
    assert columns(lines[2])[2:6] == ["q", "v", "act", "u"]
    cells = [columns(line) for line in lines[3:5]]
    assert [c[:2] for c in cells] == [["euler", "pyramidal"], ["implicitfast", "pyramidal"]]
    for c in cells:
        assert c[4] == "-"  # there are no activations
        assert c[-1] == "ok"
        for error in (c[2], c[3], c[5]):
            median, worst = (float(x) for x in error.split(" / "))
            assert 0 < median <= worst < 3e-3
    assert cells[0][2] != cells[1][2]
    assert f"numpy.load({str(saved)!r})" in out

    worst = np.load(saved)
    assert str(worst["model"]) == arm
    mjm = mujoco.MjModel.from_xml_path(str(worst["model"]))
    mjm.opt.integrator = accuracy_integrator(str(worst["integrator"]))
    parts = (worst[name] for name in ("qpos", "qvel", "ctrl", "act"))
    again = fd.transition(fd.converged(mjm), *parts, nstep=int(worst["nstep"]))
    expected = again.vjp(worst["cotangent"])
    name = str(worst["input"])
    np.testing.assert_allclose(worst[f"oracle_{name}"], getattr(expected, name), rtol=1e-12)
    error = fd.relative_error(worst[f"ours_{name}"], worst[f"oracle_{name}"])
    assert f"relative error {error:.1e}" in out

    results = json.loads(kept.read_text())
    entry = results["arm"]["euler"]["pyramidal"]
    assert entry["settings"]["date"] == "today"
    assert entry["settings"]["versions"]["mujoco"] == mujoco.__version__
    assert entry["errors"]["act"] is None
    assert entry["errors"]["qpos"] == [float(x) for x in cells[0][2].split(" / ")]
    assert entry["compared"] + entry["kinks"] + entry["doubtful"] == NUM_STATES

    # a second run adds to the file, and is the same when it is repeated
    results["other"] = results.pop("arm")
    kept.write_text(json.dumps(results))
    assert main([arm, *options, "--cone", "pyramidal"]) == 0
    merged = json.loads(kept.read_text())
    assert merged["arm"]["euler"]["pyramidal"] == entry
    assert merged["other"] == results["other"]
    before = kept.read_text()
    capsys.readouterr()
    assert main([arm, *options, "--resume"]) == 0
    assert "(known)" in capsys.readouterr().out
    assert kept.read_text() == before

    assert main(["--table", str(kept)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| model | contacts | euler | implicitfast | set aside |"
    assert table[2].startswith("| arm (pyramidal) | ")
    assert len(table) == 4
    assert table[3].count("e-") == 4


def accuracy_integrator(name):
    """An integrator by its name in the tool."""
    return feature_models.INTEGRATORS[name]


def test_rollouts(arm, tmp_path, capsys):
    """Closed loops are printed below their case, and kept."""
    kept = tmp_path / "kept.json"
    assert main([arm, *COMMON, "--rollout", "2", "--json", str(kept)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, oracle in zip(lines[4:6], ("followed", "free"), strict=True):
        assert line.startswith(f"    rollouts, {oracle:8}: ")
        assert "of 24 compare; those: " in line
    entry = json.loads(kept.read_text())["arm"]["euler"]["pyramidal"]
    assert entry["rollout"]["free"]["compared"] > 12
    assert 0 < entry["rollout"]["free"]["those"][0] < 1e-4


def test_past_a_threshold(arm, capsys, monkeypatch):
    """Exit code 1, and the line says what is past which threshold."""
    assert main([arm, *COMMON, "--threshold-worst", "1e-9"]) == 1
    out = capsys.readouterr().out
    assert "FAILS: worst of qpos" in out
    assert "median of qpos" not in out
    monkeypatch.setattr(accuracy, "DOUBT", 0.0)  # nothing is trusted
    assert main([arm, *COMMON]) == 1
    assert "FAILS: 24 of 24 states set aside" in capsys.readouterr().out
    assert main([arm, *COMMON, "--threshold-set-aside", "1"]) == 1
    assert "FAILS: no state compares" in capsys.readouterr().out
    monkeypatch.undo()
    assert main([arm, *COMMON, "--threshold-median", "1e-9"]) == 1
    assert "FAILS: median of qpos" in capsys.readouterr().out


def test_refused_model(arm, tmp_path, capsys):
    """Exit code 2 and the message that `Physics` would raise; the other cases go on."""
    text = feature_models.ARM.replace("<option ", '<option solver="PGS" ')
    file = tmp_path / "arm_pgs.xml"
    file.write_text(text)
    assert main([str(file), *COMMON]) == 2
    assert "option solver = mjSOL_PGS: set solver to" in capsys.readouterr().err
    assert main([str(file), arm, *COMMON]) == 2
    captured = capsys.readouterr()
    assert "refused" in captured.err
    assert captured.out.rstrip().endswith("ok")
    assert main([str(file), *COMMON, "--newton"]) == 0


def test_binary_model(tmp_path, capsys):
    """An .mjb is read as well."""
    file = tmp_path / "arm.mjb"
    mujoco.mj_saveModel(feature_models.load("arm"), str(file), None)
    assert main([str(file), *COMMON]) == 0
    assert capsys.readouterr().out.rstrip().endswith("ok")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no MODEL given"),
        (["missing.xml"], "missing.xml: there is no such file"),
        (["{broken}"], "broken.xml: XML"),
        (["{arm}", "--integrator", "leapfrog"], "invalid choice: 'leapfrog'"),
        (["{arm}", "--cone", "round"], "invalid choice: 'round'"),
        (["{arm}", "--states", "0"], "--states: invalid int from 1 value: '0'"),
        (["{arm}", "--nstep", "x"], "--nstep: invalid int from 1 value: 'x'"),
        (["{arm}", "--threshold-worst", "-1"], "--threshold-worst: invalid positive number"),
        (["{arm}", "--threshold-set-aside", "0"], "--threshold-set-aside: invalid positive number"),
        (["{arm}", "--threshold-median", "nan"], "--threshold-median: invalid positive number"),
        (["{arm}", "--device", "tpu"], "--device tpu"),
        (["{arm}", "--resume"], "--resume needs --json"),
        (["{arm}", "--json", "{broken}"], "broken.xml is not JSON"),
        (["--table", "missing.json"], "missing.json"),
        (["--table", "{broken}"], "broken.xml is not JSON"),
    ],
)
def test_bad_arguments(arguments, message, arm, tmp_path, capsys):
    """Exit code 2 and one line that says why."""
    broken = tmp_path / "broken.xml"
    broken.write_text("<mujoco><")
    with pytest.raises(SystemExit) as stopped:
        main([a.format(arm=arm, broken=broken) for a in arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def measured():
    """One measurement, to be spoilt."""
    mjm = feature_models.load("arm")
    return accuracy.measure(mjm, feature_models.states(mjm, NUM_STATES, seed=1))


def spoil(found, name, values):
    """The same measurement had `Physics` given other values for one input."""
    errors = accuracy._errors(values, found.oracle[name], np.full(NUM_STATES, 1e-9))
    return dataclasses.replace(
        found, ours=found.ours | {name: values}, errors=found.errors | {name: errors}
    )


def test_failures(measured):
    """Zero, not a number, too large: each is seen; none is found where all is well."""
    assert measured.failures() == []
    name, ours = "ctrl", measured.ours["ctrl"]
    assert "median of ctrl 1e+00" in spoil(measured, name, 0 * ours).failures()
    assert "worst of ctrl inf" in spoil(measured, name, np.nan * ours).failures()
    one = ours.copy()
    one[np.flatnonzero(measured.trusted)[3]] *= 1.01
    spoilt = spoil(measured, name, one)
    assert spoilt.failures() == ["worst of ctrl 1e-02"]
    assert spoilt.worst_state()[1:] == (np.flatnonzero(measured.trusted)[3], "ctrl")
    drifted = dataclasses.replace(measured, step_error=measured.step_error + 1e-3)
    assert "the step itself differs by 1e-03" in drifted.failures()
    kinked = dataclasses.replace(measured, kink=np.arange(NUM_STATES) > 5)
    assert kinked.failures() == ["18 of 24 states set aside"]
    assert kinked.failures(set_aside=0.75) == []
    doubtful = dataclasses.replace(measured, doubt=np.where(np.arange(NUM_STATES) < 3, 1.0, 0.0))
    assert doubtful.failures() == ["3 of 24 states set aside"]
    assert dataclasses.replace(measured, doubt=(np.arange(NUM_STATES) < 2) * 1.0).failures() == []
    none = dataclasses.replace(measured, kink=np.ones(NUM_STATES, bool))
    assert none.failures(set_aside=1.0) == ["no state compares"]


def test_no_influence(measured):
    """An input that changes nothing is shown as such, unless ours says that it does."""
    nothing = np.zeros_like(measured.oracle["ctrl"])
    silent = dataclasses.replace(measured, oracle=measured.oracle | {"ctrl": nothing})
    still = spoil(silent, "ctrl", nothing)
    assert still.quantiles("ctrl") == "none"
    assert still.failures() == []
    assert still.quantiles("act") is None
    loud = spoil(silent, "ctrl", measured.ours["ctrl"])
    assert "median of ctrl inf" in loud.failures()


def test_play_without_contacts():
    """A model that can't touch anything, or hardly does, is played nevertheless."""
    mjm = feature_models.load("arm")
    mjm.geom_contype[:] = mjm.geom_conaffinity[:] = 0
    states, steep = accuracy.play(mjm, 5)
    assert states.qpos.shape == (5, mjm.nq)
    assert not states.ncon.any()
    assert steep == 0
    mjm = feature_models.load("arm")
    mjm.opt.gravity[:] = (0, 0, 9.81)
    mjm.geom_pos[mjm.geom_type == int(mujoco.mjtGeom.mjGEOM_PLANE), 2] = -3
    states, steep = accuracy.play(mjm, 5)
    assert states.qpos.shape == (5, mjm.nq)


def test_oracle_in_other_processes(measured):
    """Splitting the oracle's work changes nothing."""
    rows = [
        accuracy.differences(fd.converged(feature_models.load("arm")), part, cotangents, 1)
        for part, cotangents in zip(
            [fd.States(*(x[i : i + 1] for x in measured.states)) for i in range(2)],
            [measured.cotangents[i : i + 1] for i in range(2)],
            strict=True,
        )
    ]
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(row[0]["pulled"].qpos, measured.oracle["qpos"][i])


@pytest.mark.slow
def test_jobs(arm, capsys):
    """The numbers do not depend on the number of processes."""
    assert main([arm, *COMMON]) == 0
    alone = capsys.readouterr().out
    assert main([arm, *COMMON[:2], "--jobs", "2"]) == 0
    assert capsys.readouterr().out == alone
