"""Saved policies: what is written is what acts, and what is wrong with a file is said by name."""

import subprocess
import sys

import numpy as np
import pytest

from diffenvs.policy import load_policy, save_policy
from diffenvs.tasks.hopper import Hopper

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def task():
    """The hopper: 11 numbers in, 3 out."""
    return Hopper()


@pytest.fixture(scope="module")
def module():
    """A network that acts otherwise while it is trained."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(11, 3), torch.nn.Dropout(), torch.nn.Tanh())


@pytest.fixture(scope="module")
def program(module, tmp_path_factory):
    """The network in a file."""
    path = tmp_path_factory.mktemp("policy") / "policy.pt2"
    save_policy(path, module, 11)
    return path


def _write(folder, body):
    path = folder / "policy.py"
    path.write_text(f"import numpy as np\n\ndef policy(obs):\n    {body}\n")
    return path


@pytest.mark.parametrize("count", [1, 2, 7])
def test_program_vs_module(program, module, task, rng, count):
    """For any number of observations the file acts as the network does in evaluation mode."""
    obs = rng.normal(size=(count, 11))
    actions = load_policy(program, task)(obs)
    assert module.training  # saving leaves it alone
    linear, _, tanh = module
    expected = tanh(linear(torch.as_tensor(obs, dtype=torch.float32))).detach().numpy()
    assert actions.dtype == np.float32 and actions.shape == (count, 3)
    np.testing.assert_allclose(actions, expected, rtol=1e-6, atol=1e-7)


def test_program_needs_no_code_of_ours(program):
    """Torch alone reads the file."""
    code = (
        "import sys, torch; module = torch.export.load(sys.argv[1]).module(); "
        "print(tuple(module(torch.zeros(5, 11)).shape), 'diffenvs' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(program)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == "(5, 3) False"


def test_python_file(tmp_path, task):
    """A Python file acts by its function `policy`, on float32."""
    path = _write(tmp_path, "assert obs.dtype == np.float32; return -2 * obs[:, 2:5]")
    obs = np.arange(22.0).reshape(2, 11)
    np.testing.assert_array_equal(load_policy(path, task)(obs), -2 * obs[:, 2:5])


def test_python_file_needs_no_torch(tmp_path):
    """Torch is imported for a .pt2 file only, and its absence is named."""
    path = _write(tmp_path, "return obs[:, :3]")
    (tmp_path / "policy.pt2").write_bytes(b"")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from diffenvs.policy import load_policy\n"
        "from diffenvs.tasks.hopper import Hopper\n"
        f"load_policy({str(path)!r}, Hopper())\n"
        f"load_policy({str(tmp_path / 'policy.pt2')!r}, Hopper())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    message = 'DependencyNotInstalled: policy policy.pt2 needs torch; pip install "diffenvs[torch]"'
    assert message in done.stderr


def test_missing_file(task, tmp_path):
    """A file that is not there is named."""
    with pytest.raises(FileNotFoundError, match=r"policy: there is no file '.*gone.pt2'"):
        load_policy(tmp_path / "gone.pt2", task)


def test_wrong_suffix(task, module, tmp_path):
    """Other kinds of files are refused, with what is accepted; so is saving as one."""
    (tmp_path / "policy.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"policy policy.pt is none of \['.pt2', '.py'\]: a torch"):
        load_policy(tmp_path / "policy.pt", task)
    with pytest.raises(ValueError, match=r"saved as a .pt2 file, not as '.*policy.pt'"):
        save_policy(tmp_path / "policy.pt", module, 11)


def test_state_dict(task, module, tmp_path):
    """The weights alone are no policy."""
    torch.save(module.state_dict(), tmp_path / "weights.pt2")
    message = r"weights\.pt2 is not a program of torch\.export, and a state_dict is not one"
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path / "weights.pt2", task)


def test_wrong_observation(program):
    """The message says what observations the task has, and which keywords change that."""
    task = Hopper(exclude_current_positions_from_observation=False)
    message = r"policy.pt2 fails on observations of the shape \(1, 12\), which are"
    with pytest.raises(ValueError, match=message) as e:
        load_policy(program, task)
    assert "those of Hopper with exclude_current_positions_from_observation=False" in str(e.value)
    assert "(--kwarg name=value sets them)" in str(e.value)


def test_wrong_action(task, tmp_path):
    """The shape of actions is checked when the file is read."""
    path = _write(tmp_path, "return obs[:, :4]")
    message = r"1 observations gave actions of the shape \(1, 4\); Hopper takes \(1, 3\)"
    with pytest.raises(ValueError, match=message):
        load_policy(path, task)


def test_no_function(task, tmp_path):
    """A Python file without the function is refused."""
    (tmp_path / "policy.py").write_text("policy = 3\n")
    with pytest.raises(ValueError, match=r"policy policy.py defines no function policy\(obs\)"):
        load_policy(tmp_path / "policy.py", task)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def policy(obs) return 1", r"SyntaxError: .*\(policy.py, line 1\)"),
        ("raise RuntimeError('no weights')", "RuntimeError: no weights"),
    ],
)
def test_file_that_cannot_be_run(task, tmp_path, text, message):
    """What a Python file raises while it is read is said with the name of the file."""
    (tmp_path / "policy.py").write_text(text + "\n")
    message = "policy policy.py cannot be read, running the file raises " + message
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path / "policy.py", task)


def test_policy_that_raises(task, tmp_path):
    """The kind of what a policy raises is said, when it is tried and in an episode."""
    with pytest.raises(ValueError, match=r"policy policy.py fails on .*raises KeyError: 'x'"):
        load_policy(_write(tmp_path, "raise KeyError('x')"), task)
    policy = load_policy(_write(tmp_path, "return obs[:, :3] if obs[0, 0] == 0 else {}['x']"), task)
    with pytest.raises(ValueError, match=r"^policy policy.py raises KeyError: 'x'"):
        policy(np.ones((1, 11)))


def test_action_that_is_not_finite(task, tmp_path):
    """An action that is not a number is refused with the observation that led to it."""
    path = _write(tmp_path, "return np.where(obs[:, :1] > 1, np.nan, obs[:, :3])")
    policy = load_policy(path, task)
    obs = np.zeros((2, 11))
    obs[1, 0] = 2.0
    with pytest.raises(ValueError, match=r"action \[nan nan nan\] is not finite; the observation"):
        policy(obs)
