"""What pyproject.toml says of the package: extras, Pythons, and what they are for."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import viq
from viq.jobs.doctor import EXTRAS

ROOT = Path(viq.__file__).parent

# Modules of requirements that are named otherwise.
MODULES = {"tensorboard": "torch.utils.tensorboard"}
# Of extras: what another library of the extra needs, and does not set.
BOUNDS = {"lmms: filelock"}
# What a library that we depend on, or one of an extra, brings itself.
BROUGHT = {"markupsafe": "jinja2", "tokenizers": "transformers", "tqdm": "huggingface_hub"}
# For those who work on the project, and the one that holds others.
NO_EXTRAS = {"dev", "docs", "all"}
# Libraries that are measured beside ours, in environments of their own (bench/peers.sh).
PEERS = {"litdata", "streaming", "webdataset"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml")
    file = ROOT.parent.parent / "pyproject.toml"
    if not file.is_file():
        pytest.skip("needs the source tree")
    return tomllib.loads(file.read_text())["project"]


def _module(requirement: str) -> str:
    return re.split(r"[\[<>=]", requirement)[0].replace("-", "_")


def _imported() -> Iterator[tuple[str, str]]:
    """Files, and the libraries that they import, at their head or where they are used."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path.name, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                yield path.name, node.module.partition(".")[0]


def test_every_import_is_a_dependency_or_of_an_extra(project: dict[str, Any]) -> None:
    own = {*sys.stdlib_module_names, "viq", "_typeshed", *BROUGHT, *PEERS}
    needed = {_module(each) for each in project["dependencies"]} | {"PIL", "yaml"}
    optional = {module for _, modules in EXTRAS.values() for module in modules}
    strays = {each for each in _imported() if each[1] not in own | needed | optional}
    assert not strays, "add the library to an extra, here and in viq.jobs.doctor.EXTRAS"


def test_extras_hold_only_what_the_package_imports(project: dict[str, Any]) -> None:
    code = "\n".join(path.read_text() for path in ROOT.rglob("*.py"))
    unused = set()
    for extra, requirements in project["optional-dependencies"].items():
        for name in () if extra in NO_EXTRAS else map(_module, requirements):
            module = re.escape(MODULES.get(name, name))
            if not re.search(rf"(import|from) {module}\b|(_spec\(|_module\(|: )\"{module}\"", code):
                unused.add(f"{extra}: {name}")
    assert unused == BOUNDS


def test_doctor_knows_every_extra(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - NO_EXTRAS
    for name, (what, modules) in EXTRAS.items():
        bound = {f"{name}: {module}" for module in map(_module, extras[name])} & BOUNDS
        assert {f"{name}: {module}" for module in modules} == {
            f"{name}: {module}" for module in map(_module, extras[name])
        } - bound
        assert what


def test_all_holds_the_extras_that_go_together(project: dict[str, Any]) -> None:
    (all_of_them,) = project["optional-dependencies"]["all"]
    held = set(all_of_them.removeprefix("viq[").rstrip("]").split(","))
    assert held == set(EXTRAS) - {"lmms", "lpips"}


def test_chat_brings_nothing_for_training(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    assert [_module(each) for each in extras["chat"]] == ["transformers"]
    assert set(extras["chat"]) < set(extras["train"])
    assert not any("minilm" in each for each in extras["train"])


def test_every_extra_that_a_message_names_is_there() -> None:
    code = "\n".join(path.read_text() for path in ROOT.rglob("*.py"))
    named = set(",".join(re.findall(r"viq\[([a-z0-9,]+)\]", code)).split(","))
    named |= set(re.findall(r"\brequire\(\s*\"[^\"]+\", \"([a-z0-9]+)\"", code))
    assert {"chat", "train"} <= named <= set(EXTRAS) | {"all"}


def test_pythons_and_types_are_told(project: dict[str, Any]) -> None:
    told = {each.rpartition(":: ")[2] for each in project["classifiers"]}
    assert {f"3.{minor}" for minor in range(10, 15)} <= told and "Typed" in told
    assert project["urls"] and (ROOT / "py.typed").is_file()
