"""Model folders on the Hugging Face hub: fetch one, publish one.

Every failure becomes one line that says what happened and how to mend it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from viq.core.errors import first_line
from viq.core.files import bundled
from viq.weights import checkpoint
from viq.weights.checkpoint import CheckpointError

# Not everything: repositories often hold the same weights in other formats too.
_PATTERNS = ["config.json", "preprocessor_config.json", "*.safetensors", "*.md", "vae/*"]
# Stricter than the hub, which also has old ids without an owner: no model of ours is one, and
# a mistyped folder name should not become a request.
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(name: str | os.PathLike[str], **download_options: Any) -> Path:
    """The folder of a model: a folder itself, one that comes with the package, or of the hub.

    Raises:
        CheckpointError: nothing under that name.
    """
    if Path(name).is_dir():
        return Path(name)
    return bundled(name) or download(str(name), **download_options)


def download(
    repo_id: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    patterns: Sequence[str] = _PATTERNS,
) -> Path:
    """The folder in the local cache that holds a hub repository, fetched if it is not there.

    Raises:
        CheckpointError: not an id, not on the hub, not reachable, gated, or no viq model.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise CheckpointError(
            f"{repo_id}: there is no such folder, and it is not a hub id, which looks like "
            "owner/name: check the path"
        )
    import huggingface_hub as hub  # after the check above: it takes a while to import

    try:
        folder = Path(
            hub.snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=local_files_only,
                allow_patterns=list(patterns),
            )
        )
    except Exception as error:
        # All of them: which library raises network errors changes with huggingface_hub.
        offline = local_files_only and _is(error, "LocalEntryNotFoundError")
        hint = (
            "not in the local cache: allow the download, without local_files_only"
            if offline
            else _explain(error, repo_id, revision)
        )
        raise CheckpointError(f"{repo_id}: there is no such folder, and it is {hint}") from error
    if not (folder / checkpoint.CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{repo_id}: this hub repository has no {checkpoint.CONFIG_FILE}, so it is no viq "
            "model; official ViQ weights (.pth) must first go through viq convert"
        )
    return folder


def upload(folder: Path, repo_id: str, *, private: bool | None = None, **kwargs: Any) -> str:
    """Publish a folder as a hub repository, created if need be; gives the address of the commit.

    Args:
        folder: as `save_pretrained` of a model wrote it.
        repo_id: owner/name, or a name under the account of the token.
        private: for a new repository only; None leaves the choice to the account's settings.
        kwargs: `token`, and what `HfApi.upload_folder` takes: `commit_message`, `revision`,
            `create_pr` and so on.

    Raises:
        CheckpointError: the hub refused it or could not be reached.
    """
    import huggingface_hub as hub

    api = hub.HfApi(token=kwargs.pop("token", None))
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo.repo_id, folder_path=folder, **kwargs)
    except TypeError:
        raise  # an argument that upload_folder does not take: the caller's mistake
    except Exception as error:
        hint = _explain(error, repo_id, kwargs.get("revision"))
        raise CheckpointError(f"{repo_id}: not uploaded; it is {hint}") from error
    return str(commit.commit_url)


def _explain(error: Exception, repo_id: str, revision: str | None) -> str:
    """What is wrong with a repository, as the end of a sentence "it is ..."."""
    if _is(error, "GatedRepoError"):  # before its parent class, RepositoryNotFoundError
        return (
            f"gated on the hub: accept its terms at https://huggingface.co/{repo_id}, then log in "
            "with `hf auth login` or pass a token"
        )
    if _is(error, "RevisionNotFoundError"):
        return f"on the hub without a revision {revision}: check the branch, tag or commit"
    if _is(error, "RepositoryNotFoundError"):
        return (
            "not found on the hub, or private: check the name, and for a private one log in with "
            "`hf auth login` or pass a token"
        )
    if _is(error, "LocalEntryNotFoundError", "OfflineModeIsEnabled"):
        return (
            "not in the local cache while the hub cannot be reached: check the network and "
            "HF_HUB_OFFLINE, or give the path of a model folder"
        )
    if _is(error, "HFValidationError"):
        return "not a valid hub id, which looks like owner/name"
    return f"not accessible on the hub ({type(error).__name__}: {first_line(error)}); try again"


def _is(error: Exception, *names: str) -> bool:
    """Whether an error is of a class of `huggingface_hub.errors`, by name: not all are old."""
    from huggingface_hub import errors

    return any(isinstance(error, getattr(errors, name, ())) for name in names)
