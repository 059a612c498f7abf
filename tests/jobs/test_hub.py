"""Models from the hub and to it; no network."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from official_weights import refused

from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.weights import hub


def _failing(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def _http(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)  # their constructors differ between versions of the library
    Exception.__init__(error, "two\nlines")
    return error


@pytest.mark.parametrize("name", ["viq-tniy", "./missing", "../a/b", "/a/b", "a/b/c", "", "a/"])
def test_names_that_are_no_hub_id(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _failing(AssertionError()))
    with refused("there is no such folder", "owner/name"):
        hub.download(name)


@pytest.mark.parametrize(
    ("error", "options", "words"),
    [
        (errors.LocalEntryNotFoundError("x"), {}, ("not in the local cache", "network")),
        (
            errors.LocalEntryNotFoundError("x"),
            {"local_files_only": True},
            ("not in the local cache", "local_files_only"),
        ),
        (_http(errors.RepositoryNotFoundError), {}, ("not found on the hub", "private", "token")),
        (_http(errors.GatedRepoError), {}, ("gated", "https://huggingface.co/me/viq", "token")),
        (_http(errors.RevisionNotFoundError), {"revision": "v9"}, ("revision v9",)),
        (ConnectionError("reset\nby peer"), {}, ("not accessible", "ConnectionError: reset")),
    ],
)
def test_failed_downloads(
    error: Exception,
    options: dict[str, Any],
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _failing(error))
    with refused("me/viq: there is no such folder", *words):
        hub.download("me/viq", **options)


def test_from_pretrained_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for only in (False, True):
        with refused("me/viq", "not in the local cache"):
            VisualTokenizer.from_pretrained("me/viq", cache_dir=tmp_path, local_files_only=only)


def test_download(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def fake(repo_id: str, **kwargs: Any) -> str:
        calls.append((repo_id, kwargs))
        return str(converted if repo_id == "me/viq" else tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    model = VisualTokenizer.from_pretrained("me/viq", revision="v1", token="t")
    assert model.width == 64
    (repo_id, kwargs) = calls[0]
    assert repo_id == "me/viq" and kwargs["revision"] == "v1" and kwargs["token"] == "t"
    assert "*.safetensors" in kwargs["allow_patterns"] and "vae/*" in kwargs["allow_patterns"]
    with refused("me/other", "no config.json", "viq convert"):
        hub.download("me/other")


def test_upload(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class FakeApi:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("token", token))

        def create_repo(self, repo_id: str, **kwargs: Any) -> SimpleNamespace:
            calls.append(("create", repo_id, kwargs))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, *, repo_id: str, folder_path: str, **kwargs: Any) -> Any:
            again = VisualTokenizer.from_pretrained(folder_path)
            calls.append(("upload", repo_id, again.fingerprint, kwargs))
            return SimpleNamespace(commit_url="https://huggingface.co/me/viq/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    model = VisualTokenizer.from_pretrained(converted)
    address = model.push_to_hub("viq", private=True, token="t", commit_message="first")
    assert address == "https://huggingface.co/me/viq/commit/1"
    assert calls == [
        ("token", "t"),
        ("create", "viq", {"private": True, "exist_ok": True}),
        ("upload", "me/viq", model.fingerprint, {"commit_message": "first"}),
    ]
    with pytest.raises(TypeError):
        monkeypatch.setattr(FakeApi, "upload_folder", _failing(TypeError("no such argument")))
        model.push_to_hub("viq", nonsense=1)
    monkeypatch.setattr(FakeApi, "create_repo", _failing(_http(errors.RepositoryNotFoundError)))
    with refused("viq: not uploaded", "token"):
        model.push_to_hub("viq")
