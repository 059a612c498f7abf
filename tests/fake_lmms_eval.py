"""The parts of lmms-eval 0.7.3 that the model viq touches, as small stand-ins of the same shape.

`make test-lmms` runs the real one; this keeps its interface in tests that need no 155 packages.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@dataclass(frozen=True)
class ModelManifest:
    """What an entry point gives."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class CacheHook:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.told.append((attr, req, res))


class Model:
    """The base class of models, `lmms`."""

    is_simple = True

    def __init__(self) -> None:
        self._rank = 0
        self._world_size = 1
        self.cache_hook = CacheHook()
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size


class ChatMessages:
    """Messages as objects, checked as far as the real one does."""

    def __init__(self, messages: Sequence[dict[str, Any]]) -> None:
        self.messages = [
            SimpleNamespace(
                role=message["role"], content=[SimpleNamespace(**p) for p in message["content"]]
            )
            for message in messages
        ]


@dataclass
class Instance:
    """One request; `arguments` has the six parts of a chat request."""

    arguments: tuple[Any, ...]
    request_type: str = "generate_until"
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it in the place of the real one."""
    names = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Model},
        "lmms_eval.api.instance": {"Instance": Instance},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "lmms_eval.protocol": {"ChatMessages": ChatMessages},
    }
    for name, values in names.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "viq.eval.vlm.lmms", raising=False)


def model_class(manifest: ModelManifest) -> Any:
    """The class of a manifest, found and checked as the registry does."""
    assert manifest.chat_class_path is not None
    module, _, name = manifest.chat_class_path.rpartition(".")
    found = getattr(import_module(module), name)
    assert isinstance(found, type) and issubclass(found, Model)
    assert not getattr(found, "is_simple", True)  # else it is refused as a model in chat form
    return found
