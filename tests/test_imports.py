"""What importing the package loads, how long that takes, and which way its imports run."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffenvs import TASKS

PACKAGE = Path(__file__).parents[1] / "diffenvs"
ENVIRONMENTS = ("diffenvs.vector_env", "diffenvs.diffenvs", "diffenvs.torch_bridge")

# Gives `diffenvs` a bare parent module, so that only what `diffenvs.physics` imports is loaded:
# the parent's own __init__ registers environments, for which it needs Gymnasium.
PHYSICS_ALONE = """
import sys, types
parent = types.ModuleType("diffenvs")
parent.__path__ = [{path!r}]
sys.modules["diffenvs"] = parent
"""


def _python(code: str) -> str:
    """Run code in a new interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _loaded(code: str) -> set[str]:
    """Names of the top-level modules that a new interpreter has loaded once the code has run."""
    report = "\nimport json, sys; print('LOADED', json.dumps(sorted(sys.modules)))"
    line = _python(code + report).rpartition("LOADED ")[2]
    return {name.partition(".")[0] for name in json.loads(line)}


def _imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, also inside functions."""
    package = ["diffenvs", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def _importers(*names: str) -> set[str]:
    """Files of the package that import one of the modules or something below it."""
    return {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for module in _imports(path)
        if any(module == name or module.startswith(f"{name}.") for name in names)
    }


def test_import_loads_no_simulator():
    """`import diffenvs` registers the environments and loads neither simulator nor torch."""
    loaded = _loaded("import diffenvs")
    assert {"diffenvs", "gymnasium"} <= loaded
    assert not loaded & {"warp", "mujoco", "mujoco_warp", "torch"}
    assert loaded - _loaded("import gymnasium") == {"diffenvs"}
    assert not _loaded("import diffenvs.testing") & {"warp", "mujoco", "mujoco_warp", "torch"}


def test_import_is_fast():
    """`import diffenvs`, Gymnasium included, takes less than 0.3 s of a CPU; best of five tries."""
    code = "from time import process_time as t; start = t(); import gymnasium; theirs = t(); "
    code += "import diffenvs; print(theirs - start, t() - theirs)"
    times = np.array([_python(code).split() for _ in range(5)], dtype=float)
    assert times.min(axis=0).sum() < 0.3
    assert times[:, 1].min() < 0.05  # what we add to it


def test_registry_lists_the_suite_under_one_heading():
    """`gym.pprint_registry()` prints the ids of the package, and no other, below its name."""
    printed = _python("import gymnasium, diffenvs; gymnasium.pprint_registry()")
    _, *sections = re.split(r"^===== (.*) =====$", printed, flags=re.MULTILINE)
    headings, ids = sections[::2], [section.split() for section in sections[1::2]]
    assert len(headings) == len(set(headings))
    listed = dict(zip(headings, ids, strict=True))
    assert listed["diffenvs"] == sorted(TASKS)
    assert {"classic_control", "mujoco"} <= listed.keys()


@pytest.mark.parametrize("blocked", [False, True])
def test_physics_needs_no_gymnasium_and_no_torch(blocked):
    """`diffenvs.physics` loads neither Gymnasium nor torch, and works where they are missing."""
    code = PHYSICS_ALONE.format(path=str(PACKAGE))
    if blocked:
        code += "sys.modules['gymnasium'] = sys.modules['torch'] = None\n"
    code += "import diffenvs.physics as p; assert p.Physics and p.linearize\n"
    if blocked:
        code += "del sys.modules['gymnasium'], sys.modules['torch']\n"
    loaded = _loaded(code)
    assert {"warp", "mujoco", "mujoco_warp"} <= loaded
    assert not loaded & {"gymnasium", "torch"}


def test_imports_run_one_way():
    """Physics knows nothing above it, tasks nothing of environments; torch is in few files."""
    outside = {name for name in _importers("torch") if not name.startswith("training/")}
    assert outside == {"policy.py", "torch_bridge.py"}
    users = {name for name in _importers("diffenvs.training") if not name.startswith("training/")}
    assert users == set()  # it is for scripts
    above = {
        f"diffenvs.{path.stem}" if path.parent == PACKAGE else f"diffenvs.{path.name}"
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and path.name not in ("physics", "__pycache__"))
    }
    assert {"diffenvs.task", "diffenvs.tasks", *ENVIRONMENTS} <= above
    below = {name for name in _importers(*above, "gymnasium") if name.startswith("physics/")}
    assert below == set()
    environments = _importers(*ENVIRONMENTS)
    assert not {f for f in environments if f == "task.py" or f.startswith("tasks/")}


def test_scan_sees_every_form_of_import(tmp_path, monkeypatch):
    """The scan reads absolute and relative imports, also those inside a function."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "physics").mkdir()
    text = "import torch.nn\ndef f():\n  from .. import rollout\n  from ..tasks.ant import Ant\n"
    (tmp_path / "physics" / "a.py").write_text(text)
    (tmp_path / "b.py").write_text("from . import physics\nfrom diffenvs.physics import step\n")
    assert _importers("torch") == {"physics/a.py"}
    assert _importers("diffenvs.rollout") == {"physics/a.py"}
    assert _importers("diffenvs.tasks") == {"physics/a.py"}
    assert _importers("diffenvs.physics") == {"b.py"}
    assert _importers("diffenvs.physics.step") == {"b.py"}
    assert _importers("gymnasium") == set()
