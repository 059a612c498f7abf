"""One way to do what is dangerous: found by reading our own code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import viq

ROOT = Path(viq.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
REMOVES = re.compile(
    r"\.rmtree\(|\.unlink\(|os\.(replace|rename|remove|rmdir)\(|\.rmdir\(|copytree\("
)
# Each may do in one way what is refused elsewhere.
PICKLE = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
RUNS_CODE = {"eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads",
             "yaml.load", "importlib.import_module", "subprocess.call"}  # fmt: skip


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_removal_says_why_it_meets_our_own_files_alone(path: Path) -> None:
    lines = path.read_text().splitlines()
    silent = [
        f"{number + 1}: {line.strip()}"
        for number, line in enumerate(lines)
        if REMOVES.search(line) and not line.strip().startswith("#")
        if "  # " not in line and not lines[number - 1].strip().startswith("#")
    ]
    assert silent == []


def test_nothing_is_unpickled_and_no_text_is_run() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{call.lineno} {name}"
        for path in FILES
        for name, call in calls(path)
        if (name in PICKLE and PICKLE[name] not in ast.unparse(call))
        or (name in RUNS_CODE and not all(isinstance(a, ast.Constant) for a in call.args))
    ]
    assert wrong == []


def test_models_of_others_bring_no_code() -> None:
    """transformers runs code of a model folder only where it is told to trust it."""
    wrong = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in FILES
        for name, call in calls(path)
        if "trust_remote_code=True" in ast.unparse(call)
    ]
    assert wrong == []


def test_the_umask_is_never_touched() -> None:
    assert [p.name for p in FILES for name, _ in calls(p) if name == "os.umask"] == []
