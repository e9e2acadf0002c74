"""What the README shows works as it stands."""

import re
import runpy

import gymnasium as gym
import pytest
import readme_tables
from check_models import REFUSED, UNDER_DISCRETE, build
from readme_tables import README

import diffenvs
from diffenvs.physics import UnsupportedFeature, accuracy_report, check_model


def test_first_example_ends_in_a_gradient(tmp_path, capsys):
    """The first Python block runs and prints the norm of a gradient that is not zero."""
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    script = tmp_path / "readme.py"
    script.write_text(code.group(1))
    runpy.run_path(str(script))
    printed = re.findall(r"tensor\(([0-9.e+-]+)", capsys.readouterr().out)
    assert float(printed[-1]) > 0.1


def test_set_up():
    """The two set-up commands are there."""
    text = README.read_text()
    assert 'pip install -e ".[train]" && python examples/apg.py' in text
    assert 'pip install -e ".[test]" && pytest' in text


def test_linked_files_are_there():
    """Pictures and pages that the README shows or leads to."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text())
    assert {"examples/landscape.png", "examples/scaling.png"} <= set(links)
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_tables_are_what_the_script_writes():
    """Tasks, accuracy and speed stand in the README as code and measurements have them."""
    found = readme_tables.differences(README.read_text())
    assert not found, f"python tests/readme_tables.py\n{found}"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tasks", "| Hopper-v5 | 6 |", "| Hopper-v5 | 7 |"),
        ("accuracy", "| ant (pyramidal) |", "| ants (pyramidal) |"),
        ("speed", "| stock `mujoco_warp.step` |", "| old `mujoco_warp.step` |"),
    ],
)
def test_difference_is_seen(name, old, new):
    """An edit inside of a table is reported, and undone; text around tables is left alone."""
    text = "Before. " + README.read_text()
    begin, end = (text.index(f"<!-- {mark} -->") for mark in (name, f"/{name}"))
    assert old in text[begin:end]
    edited = text[:begin] + text[begin:end].replace(old, new) + text[end:]
    assert new in readme_tables.differences(edited)
    assert readme_tables.fill(edited) == text


def test_missing_marker_is_named():
    """A table that has no place is an error, and not left out."""
    text = README.read_text().replace("<!-- /speed -->", "")
    with pytest.raises(ValueError, match="must have one <!-- speed --> and one <!-- /speed -->"):
        readme_tables.fill(text)


def test_script(tmp_path, monkeypatch):
    """`--check` fails on a README that is out of date and leaves it; without it, it is written."""
    text = README.read_text()
    old = tmp_path / "README.md"
    old.write_text(text.replace("| `DiffAnt-v0` | Ant-v5 |", "| `DiffAnt-v0` | Ant-v4 |"))
    before = old.read_text()
    monkeypatch.setattr(readme_tables, "README", old)
    with pytest.raises(SystemExit, match=r"Ant-v4(.|\n)*python tests/readme_tables.py writes it"):
        readme_tables.main(["--check"])
    assert old.read_text() == before != text
    readme_tables.main([])
    assert old.read_text() == text
    readme_tables.main(["--check"])


def test_task_table():
    """Every registered task has its row, with the sizes of its spaces."""
    rows = readme_tables.tasks().splitlines()[2:]
    assert len(rows) == len(diffenvs.TASKS)
    cells = {row.split(" | ")[0].strip("| `"): row.strip("| ").split(" | ") for row in rows}
    ids = [name for name in gym.registry if name.startswith("Diff")]
    assert sorted(cells) == sorted(ids)
    row = ["ours", "2", "2", "1", "5", "±1", "40 ms", "10 ms", "implicitfast", "250"]
    assert cells["DiffCartPoleSwingUp-v0"][1:] == row


def test_accuracy_table():
    """The measurements cover what the README says of them, and none of them failed."""
    results = accuracy_report.read(README.parent / "tests" / "accuracy.json", must_exist=True)
    gymnasium = [name for name in results if name not in ("humanoid41", "gripper")]
    assert len(gymnasium) == 11
    assert all(len(results[name]) == 4 for name in results)
    assert all(len(by_cone) == 2 for name in gymnasium for by_cone in results[name].values())
    for cases in results.values():
        for by_cone in cases.values():
            for entry in by_cone.values():
                assert entry["failures"] == []


_PLUGIN = '<plugin name="act" plugin="mujoco.pid" joint="h"><config key="kp" value="1"/></plugin>'
_PEG = '<body pos="0 0 3"><joint/><geom name="peg" size="0.1"/><site name="in"/></body>'
_WRAP = '<site site="here"/><geom geom="peg" sidesite="in"/><site site="here"/>'


def _discrete(name):
    """A model of `UNDER_DISCRETE`, built as test_check.py does."""
    parts, _ = UNDER_DISCRETE[name]
    return build(**(parts | {"option": 'integrator="discrete" ' + parts.get("option", "")}))


# What the README's table says is refused: models, each with that feature alone.
CLAIMS = {
    "implicit": [REFUSED["implicit"][0]],
    "discrete with tendons, welds, sites": [
        lambda: _discrete("tendon"),
        lambda: _discrete("equality"),
        lambda: build(
            'integrator="discrete"',
            extra='<actuator><motor name="act" site="here" refsite="here"/></actuator>',
        ),
    ],
    "PGS": [REFUSED["pgs"][0]],
    "noslip": [REFUSED["noslip"][0]],
    "unconverged settings": [
        REFUSED[name][0] for name in ("iterations", "tolerance", "ls", "cg iterations")
    ],
    "springs that yield": [REFUSED["springyield"][0]],
    "side sites inside a geom": [
        lambda: build(
            world=_PEG,
            extra=f'<tendon><spatial name="t" stiffness="1">{_WRAP}</spatial></tendon>',
        )
    ],
    "flex": [REFUSED["flex"][0], REFUSED["equality of a flex"][0]],
    "slider-crank": [REFUSED["on crank"][0]],
    "adhesion of bodies": [REFUSED["on body"][0]],
    "pid": [REFUSED["pid"][0]],
    "dcmotor": [REFUSED["dcmotor"][0]],
    "delays": [REFUSED["delay"][0]],
    "plugins": [
        lambda: build(
            extra='<extension><plugin plugin="mujoco.pid"/></extension>'
            f"<actuator>{_PLUGIN}</actuator>"
        )
    ],
    "fluid on ellipsoids": [lambda: build('density="1.2"', geom='fluidshape="ellipsoid"')],
    "height fields": [REFUSED["hfield"][0]],
    "SDF": [REFUSED["sdf"][0]],
    "pyramids with friction below 0.1": [REFUSED["slippery"][0]],
}


def _claims():
    """What stands in the column "refused" of the table of features."""
    text = README.read_text()
    table = text[text.index("| | differentiated | refused") :].partition("\n\n")[0]
    cells = [line.strip("|").split("|")[-1].strip() for line in table.splitlines()[2:]]
    parts = [part.strip() for cell in cells for part in cell.split(";") if part.strip()]
    whole = [part for part in parts if part in CLAIMS]
    return whole + [
        name.strip() for part in parts if part not in CLAIMS for name in part.split(",")
    ]


def test_every_claim_of_refusal_has_a_model():
    """The column names what `CLAIMS` has, and nothing else."""
    assert set(_claims()) == set(CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS)
def test_refused_as_the_readme_says(claim):
    """What the README says is refused is refused."""
    check_model(build())
    for make in CLAIMS[claim]:
        with pytest.raises(UnsupportedFeature, match="without a gradient in diffenvs"):
            check_model(make())
