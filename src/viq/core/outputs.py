"""What a command may replace: nothing that it did not make itself, unless asked by --overwrite.

Three ways to know: nothing is there (`require_free`), a list beside the files says that this job
made just these bytes (`Manifest`), or the file says so itself (`marked`).
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from viq.core.files import open_regular, sha256_of, write_atomically
from viq.core.types import ViqError
from viq.core.untrusted import UntrustedError, parse_json

_LINE_BYTES = 64 * 2**20  # of a manifest; the key of a picture is the longest thing in it
_FORMAT = 1
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", 12  # how it begins; bytes of its last chunk


def require_free(*places: Path | None, overwrite: bool = False, option: str = "-o") -> None:
    """Refuse, before any work, places for files where something is already.

    Args:
        places: None is passed over.
        overwrite: whether a file or a link there may be replaced; nothing else ever may.

    Raises:
        ViqError: names the first such place, and the way out.
    """
    for place in places:
        mode = _mode(place) if place is not None else None
        if mode is None:
            continue
        if stat.S_ISDIR(mode):
            raise ViqError(f"{option} {place}: is a folder; give the name of a file")
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise ViqError(f"{option} {place}: is not a regular file; give another name")
        if not overwrite:
            raise ViqError(f"{option} {place}: exists; give another name, or --overwrite")


def require_folder(place: Path, option: str = "-o") -> None:
    """Refuse, before any work, a place for a folder where something else is. Raises `ViqError`."""
    if _mode(place) is not None and not place.is_dir():
        raise ViqError(f"{option} {place}: is no folder; give another name")


def is_there(path: Path) -> bool:
    """Whether anything has this name, be it a link that leads nowhere."""
    return _mode(path) is not None


def marked(data: bytes, job: str) -> bytes:
    """A PNG or HTML file with a note, which nobody sees, that `job` made just this.

    The note is a text chunk of PNG, or a comment at the end.
    """
    note, end = _note(data, job)
    return data[:end] + note + data[end:]


def is_marked(path: Path, job: str) -> bool:
    """Whether a file is one that `job` made, and nobody has changed since."""
    if path.is_symlink() or not path.is_file():
        return False
    with open_regular(path) as file:
        data = file.read()
    note, end = _note(data, job)  # of any data it is as long, and is as far from its end
    plain = data[: end - len(note)] + data[end:]
    return marked(plain, job) == data


def _note(data: bytes, job: str) -> tuple[bytes, int]:
    """What says that `job` made `data`, and where it goes."""
    note = f"viq {job}, sha256 {hashlib.sha256(data).hexdigest()}".encode()
    if not data.startswith(_PNG):
        return b"<!-- " + note + b" -->\n", len(data)
    text = b"tEXtSoftware\0" + note
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return chunk, len(data) - _PNG_END


class Manifest:
    """The list of the files that a job has written into a folder, beside them.

    Lines of JSON. The first says whose it is: {"viq": job, "format": 1}. Each other one is a file,
    {"file": name, "sha256": of its bytes, ...}, written before the file gets its name; so after a
    kill a listed file may be missing, but none that the job made is not listed.

    Raises:
        ViqError: there is a file of its name that is no such list.
    """

    def __init__(self, path: Path, job: str) -> None:
        self.path, self._job = path, job
        self._listed: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._whole_bytes = 0  # a line that a kill has torn is not among them
        self._torn = False
        if is_there(path):
            self._read()

    def is_there(self, name: str) -> bool:
        """Whether anything in the folder has this name, be it a link that leads nowhere."""
        return is_there(self.path.parent / name)

    def listed(self, name: str) -> list[dict[str, Any]]:
        """What the list says of a file, oldest first; more than once if it was written again."""
        return self._listed.get(name, [])

    def made(self, name: str) -> dict[str, Any] | None:
        """What it says of the file that is there now, if those bytes are of our making."""
        entries = self.listed(name)
        path = self.path.parent / name
        if not entries or path.is_symlink() or not path.is_file():
            return None
        digest = sha256_of(path)
        return next((e for e in reversed(entries) if e.get("sha256") == digest), None)

    def write(self, name: str, data: bytes, **facts: Any) -> None:
        """Write a file of the folder and list it. Whoever calls may replace what is there."""
        entry = {"file": name, **facts, "sha256": hashlib.sha256(data).hexdigest()}
        if entry not in self.listed(name):
            self._append(entry)
        write_atomically(self.path.parent / name, data)

    def tidy(self) -> None:
        """Write the list anew: a line for each file that is there as it was written last."""
        kept = [entry for name in list(self._listed) if (entry := self.made(name))]
        # Only a list that this job wrote itself is replaced: `_read` refuses all others.
        write_atomically(self.path, list_bytes(self._job, kept))

    def _append(self, entry: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(self.path, flags, 0o666), "ab") as file:
            if self._torn:
                file.truncate(self._whole_bytes)  # `_read` found the rest of a line of our own
                self._torn = False
            data = _line(entry) if self._whole_bytes else _line(_head(self._job)) + _line(entry)
            file.write(data)
        self._whole_bytes += len(data)
        self._listed[entry["file"]].append(dict(entry))

    def _read(self) -> None:
        where = str(self.path)
        if self.path.is_symlink():
            raise ViqError(f"{where}: is a link; viq writes its list of files there: move it away")
        with open_regular(self.path) as file:
            first = file.readline(_LINE_BYTES)
            if first and not first.endswith(b"\n") and _line(_head(self._job)).startswith(first):
                self._torn = True
                return
            if first:
                _require_head(first, self._job, where)
            self._whole_bytes = len(first)
            while (line := file.readline(_LINE_BYTES)).endswith(b"\n"):
                entry = _parsed(line, where)
                if isinstance(entry, dict) and isinstance(entry.get("file"), str):
                    self._listed[entry["file"]].append(entry)
                self._whole_bytes += len(line)
            self._torn = bool(line)


def list_bytes(job: str, entries: Iterable[Mapping[str, Any]]) -> bytes:
    """A whole list of files, as `Manifest` has it."""
    return b"".join(map(_line, [_head(job), *entries]))


def read_list(data: bytes, job: str, where: str) -> list[dict[str, Any]]:
    """The files of a whole list. Raises `ViqError` if it is none that `job` writes."""
    first, *lines = data.splitlines() or [b""]
    _require_head(first, job, where)
    entries = (_parsed(line, where) for line in lines)
    return [e for e in entries if isinstance(e, dict) and isinstance(e.get("file"), str)]


def _head(job: str) -> dict[str, Any]:
    return {"viq": job, "format": _FORMAT}


def _require_head(line: bytes, job: str, where: str) -> None:
    if _parsed(line, where) != _head(job):
        raise ViqError(
            f"{where}: is not the list of files that viq {job} writes; give another folder, or "
            "move it away"
        )


def _parsed(line: bytes, where: str) -> Any:
    try:
        return parse_json(line, where)
    except UntrustedError:
        return None


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry) + "\n").encode()


def _mode(path: Path) -> int | None:
    """Of what is at `path` itself, not at the end of a link; None for nothing."""
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ViqError(f"{path}: cannot be looked at ({error})") from None
