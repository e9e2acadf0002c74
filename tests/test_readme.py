"""What the README shows works as it stands."""

import pathlib
import re
import runpy

from diffenvs.physics import accuracy_report

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_first_example_ends_in_a_gradient(tmp_path, capsys):
    """The first Python block runs and prints the norm of a gradient that is not zero."""
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    script = tmp_path / "readme.py"
    script.write_text(code.group(1))
    runpy.run_path(str(script))
    printed = re.findall(r"tensor\(([0-9.e+-]+)", capsys.readouterr().out)
    assert float(printed[-1]) > 0.1


def test_placeholders_are_filled():
    """No table is left out, and the two set-up commands are there."""
    text = README.read_text()
    assert not re.search(r"^[A-Z]+_TABLE$", text, re.MULTILINE)
    assert 'pip install -e ".[train]" && python examples/apg.py' in text
    assert 'pip install -e ".[test]" && pytest' in text


def test_accuracy_table():
    """The table of accuracies is what the tool measured: `accuracy --table tests/accuracy.json`."""
    results = accuracy_report.read(README.parent / "tests" / "accuracy.json", must_exist=True)
    gymnasium = [name for name in results if name not in ("humanoid41", "gripper")]
    assert len(gymnasium) == 11
    assert all(len(results[name]) == 4 for name in results)
    assert all(len(by_cone) == 2 for name in gymnasium for by_cone in results[name].values())
    assert f"\n\n{accuracy_report.markdown(results)}\n\n" in README.read_text()
    for cases in results.values():
        for by_cone in cases.values():
            for entry in by_cone.values():
                assert entry["failures"] == []
