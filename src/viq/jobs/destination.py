"""Where `viq encode` writes: what may be there, the list of failures beside it, full disks."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from viq.core.outputs import is_there, require_folder, require_free
from viq.core.remote import Location, RemoteFolder, suffix_of
from viq.core.types import ViqError
from viq.image.open import IMAGE_SUFFIXES
from viq.jobs.unfinished import replaces
from viq.store.facts import require_ledger
from viq.store.folder import INDEX, JOB, LEDGER, PARQUET, SINGLE, shard_name
from viq.store.job import Failure, clear, count_shards, read_job, write_ledger
from viq.store.remote_job import clear_remote

# Names with a dot are those of folders, too, but these are surely meant for files.
_NO_FOLDERS = frozenset((*IMAGE_SUFFIXES, ".txt", ".json", ".jsonl", ".csv", ".tar", ".zip", ".npy",
                         ".npz", ".arrow", ".pt", ".pth", ".safetensors"))  # fmt: skip


def check_out(out: Location, count: int, overwrite: bool) -> bool:
    """Whether `out` is to be a store. Raises ViqError if it cannot be written."""
    if isinstance(out, str):
        if suffix_of(out) in (PARQUET, SINGLE):
            raise ViqError(f"-o {out}: behind a URL only folders are written; give one")
        RemoteFolder(out).require_writable()
        return True
    is_store = out.suffix not in (PARQUET, SINGLE) or out.is_dir()
    if is_store and out.suffix.lower() in _NO_FOLDERS and not out.is_dir():
        raise ViqError(
            f"-o {out}: give NAME{PARQUET}, NAME{SINGLE} for a single image, or a folder"
        )
    if out.suffix == SINGLE and count != 1:
        raise ViqError(f"-o {out}: holds one image, got {count}: write NAME{PARQUET} instead")
    if not is_store:
        require_free(out, overwrite=overwrite or replaces(out))
        require_ledger(_ledger(out))
    else:
        require_folder(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):  # know now, not after an hour of encoding
            pass
    except OSError as error:
        raise ViqError(
            f"-o {out}: cannot be written ({error.strerror}); choose another place"
        ) from None
    return is_store


def begin_afresh(out: Location) -> None:
    """Remove the store in `out` that is to be replaced; call when nothing else can be refused.

    A folder without the file that each store begins with is left as it is: `open_job` refuses it.

    Raises:
        ViqError: other files lie beside the store; nothing was removed.
    """
    if isinstance(out, str):
        clear_remote(out)
        return
    if not (out / JOB).is_file():
        return
    shards = {shard_name(number) for number in range(count_shards(read_job(out)))}
    for name in sorted(path.name for path in out.iterdir()):
        ours = name in shards or name in (INDEX, JOB, LEDGER) or name.startswith((".", "_entropy-"))
        if not ours:
            raise ViqError(
                f"-o {out}: holds {name} beside the store; nothing was removed. Move it away, or "
                "give another folder"
            )
    clear(out)  # only the files that this store consists of


def _ledger(out: Path) -> Path:
    is_taken = out.suffix == SINGLE and is_there(out.with_suffix(PARQUET))  # it has such a list too
    return out.with_name(f"{out.stem}{'-viq' * is_taken}.failures.jsonl")


def list_failures(out: Path, failures: Sequence[Failure]) -> list[Path]:
    """Write the ledger beside `out`, or remove the one of an earlier run: no stale list is left."""
    ledger = _ledger(out)
    write_ledger(ledger, failures)  # where nothing is, or a list that viq wrote: it looks
    return [ledger] if failures else []


@contextmanager
def stops_named(out: Path | str, saved: Callable[[], str]) -> Iterator[None]:
    """Say what there is when a full disk or an interrupt ends a job."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {saved()}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        said = ""
        with suppress(OSError):  # there may be no room even for what is to be saved
            said = f"; {saved()}"
        raise ViqError(f"-o {out}: the disk is full{said}") from None
