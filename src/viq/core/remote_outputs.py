"""The files that a job writes into a folder behind a URL, and the list of them."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from typing import Any

from viq.core.outputs import list_bytes, read_list
from viq.core.remote import RemoteFolder

_LIST_BYTES = 1 << 30  # of the list of a folder
_GROUP, _GROUP_BYTES = 64, 1 << 26  # files, and bytes of them, that are written at a time


class RemoteManifest:
    """What `viq.core.outputs.Manifest` is here, where nothing can be added to a file.

    Files are written in groups, each after a part of the list that names them; `finish` makes one
    list of all parts. So after a kill a listed file may be missing, but none that the job made is
    not listed. A file that is there is taken for the one that is listed if it has as many bytes.

    Args:
        name: of the list; the parts lie in a folder `_NAME`.

    Raises:
        ViqError: there is a file of its name that is no such list; or, from all methods, one that
            cannot be read or written.
    """

    def __init__(self, folder: RemoteFolder, name: str, job: str) -> None:
        folder.require_writable()
        self.folder, self._name, self._job = folder, name, job
        self._listed: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._waiting: list[tuple[dict[str, Any], bytes]] = []
        self._sizes = folder.sizes(deep=True)
        parts = re.compile(rf"_{re.escape(name)}/part-\d{{5,9}}\.jsonl")
        self._parts = sorted(filter(parts.fullmatch, self._sizes), key=_number)
        for part in [name] * (name in self._sizes) + self._parts:
            data = folder.read(part, _LIST_BYTES) or b""
            for entry in read_list(data, job, f"{folder.url}/{part}"):
                self._listed[entry["file"]].append(entry)

    def is_there(self, name: str) -> bool:
        """Whether there is a file of this name, or it waits to be written."""
        return name in self._sizes

    def listed(self, name: str) -> list[dict[str, Any]]:
        """What the list says of a file, oldest first; more than once if it was written again."""
        return self._listed.get(name, [])

    def made(self, name: str) -> dict[str, Any] | None:
        """What it says of the file that is there now, if it looks like one of our making."""
        size = self._sizes.get(name)
        return next((e for e in reversed(self.listed(name)) if e.get("bytes") == size), None)

    def write(self, name: str, data: bytes, **facts: Any) -> None:
        """Write a file soon, and list it. Whoever calls may replace what is there."""
        digest = hashlib.sha256(data).hexdigest()
        entry = {"file": name, **facts, "sha256": digest, "bytes": len(data)}
        self._listed[name].append(entry)
        self._sizes[name] = len(data)
        self._waiting.append((entry, data))
        if len(self._waiting) >= _GROUP or sum(len(d) for _, d in self._waiting) >= _GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        """Write what waits, and one list of what is there."""
        self._flush()
        kept = [entry for name in list(self._listed) if (entry := self.made(name))]
        if self._parts:
            self.folder.write(self._name, list_bytes(self._job, kept))
        for part in self._parts:
            self.folder.remove(part)  # of the list that was just written as a whole
        self._parts = []

    def _flush(self) -> None:
        if not self._waiting:
            return
        number = _number(self._parts[-1]) + 1 if self._parts else 0
        part = f"_{self._name}/part-{number:05}.jsonl"
        self.folder.write(part, list_bytes(self._job, [entry for entry, _ in self._waiting]))
        self._parts.append(part)
        for entry, data in self._waiting:
            self.folder.write(entry["file"], data)
        self._waiting = []


def _number(part: str) -> int:
    return int(part.rpartition("-")[2].removesuffix(".jsonl"))
