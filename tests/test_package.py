"""The wheel: what is in it, and that an environment that has nothing else makes every task."""

import importlib.util
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from diffenvs import TASKS

ROOT = Path(__file__).parents[1]
REQUIRED = ("gymnasium", "mujoco", "mujoco_warp", "numpy", "warp")

MAKE_EVERYTHING = """
import importlib.metadata, pathlib, sys
import gymnasium as gym
import diffenvs, envs_assets

for package in (diffenvs, envs_assets):
    assert pathlib.Path(sys.prefix).resolve() in pathlib.Path(package.__file__).resolve().parents
assert diffenvs.__version__ == importlib.metadata.version("diffenvs")

ids = sorted(name for name in gym.registry if name.startswith("Diff"))
assert ids == sorted(diffenvs.TASKS), ids
for name in ids:
    env = gym.make(name)
    env.reset(seed=0)
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(obs), name
    env.close()
    print("MADE", name)
"""


def _run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return what it printed."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _third_party() -> list[str]:
    """Folders from which this process gets the libraries that the package requires."""
    specs = [importlib.util.find_spec(name) for name in REQUIRED]
    origins = [Path(spec.origin) for spec in specs if spec is not None and spec.origin]
    assert len(origins) == len(REQUIRED)
    return sorted({str(origin.parents[1]) for origin in origins})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this tree, built by pip with the build back end that is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    _run(sys.executable, "-m", "pip", "wheel", *offline, "-w", folder, ROOT, cwd=folder)
    (built,) = folder.glob("diffenvs-*.whl")
    return built


def test_wheel_holds_the_packages_and_the_models(wheel):
    """Both packages are in the wheel whole: modules, models, typing marker and licence."""
    with zipfile.ZipFile(wheel) as archive:
        content = {n: archive.read(n) for n in archive.namelist() if ".dist-info/" not in n}
        licences = [n for n in archive.namelist() if n.endswith("/LICENSE")]
    assert len(licences) == 1
    assert "diffenvs/py.typed" in content
    wanted = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for package in ("diffenvs", "envs_assets")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix in (".py", ".xml", ".md", ".typed")
    }
    assert sum(name.endswith(".xml") for name in wanted) >= len(TASKS)
    assert content.keys() >= wanted.keys()
    assert content == wanted


def test_wheel_makes_every_environment(wheel, tmp_path):
    """Installed in an empty environment and run from another folder, the wheel makes every task."""
    builder = venv.EnvBuilder(system_site_packages=False, with_pip=False)
    home = builder.ensure_directories(tmp_path / "venv")
    builder.create(tmp_path / "venv")
    python = Path(home.env_exe)
    _run(
        *(sys.executable, "-m", "pip", "--python", python, "install"),
        *("--no-deps", "--no-index", wheel),
        cwd=tmp_path,
    )
    # The libraries come from here, without a download. Folders that a .pth file names are not
    # searched for further .pth files, so an editable installation in them stays out of sight.
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = _run(python, "-c", where, cwd=tmp_path).strip()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "script.py").write_text(MAKE_EVERYTHING)
    Path(site, "libraries.pth").write_text("\n".join(_third_party()) + "\n")
    printed = _run(python, "-I", "script.py", cwd=elsewhere)  # -I: no PYTHONPATH either
    made = {line.split()[1] for line in printed.splitlines() if line.startswith("MADE ")}
    assert made == set(TASKS)
