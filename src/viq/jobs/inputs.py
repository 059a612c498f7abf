"""All inputs of a job as one source, and what of them is left over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from viq.core.remote import Location
from viq.core.types import ViqError
from viq.data.sources.base import Source
from viq.data.sources.files import FileSource
from viq.data.sources.open import concatenate, files_of, open_source
from viq.jobs.summary import Summary


def open_inputs(specs: Sequence[str], **options: Any) -> Source:
    """One source of all inputs, in their order; see `open_source` for kinds and options.

    Files given twice, as themselves and through a folder, are there once. Of several, one that is
    damaged as a whole is one input that fails.
    """
    sources = [open_source(spec, alone=len(specs) == 1, **options) for spec in specs]
    if len(sources) > 1 and all(isinstance(source, FileSource) for source in sources):
        return _Files(sources)
    return concatenate(sources)


def require_not_among(out: Location, specs: Sequence[str]) -> None:
    """Refuse to write over a file that is itself, or holds, one of the inputs.

    Raises:
        ViqError: `out` is one of the files of the inputs, by whatever name.
    """
    if (
        isinstance(out, str) or out.is_symlink() or not out.is_file()
    ):  # a link is replaced, not what it leads to
        return
    for spec in specs:
        if any(_is_same(out, path) for path in files_of(spec)):
            raise ViqError(f"-o {out}: is one of the inputs, {spec}; give another name")


def _is_same(first: Path, second: Path) -> bool:
    with suppress(OSError, ValueError):
        return os.path.samefile(first, second)
    return False


class _Files(FileSource):
    """The files of several inputs, each once."""

    def __init__(self, sources: Sequence[Source]) -> None:
        super().__init__([Path(key) for source in sources for key in source.keys()])
        self._left_over = dict(sum((Counter(s.leftovers()) for s in sources), Counter[str]()))

    def leftovers(self) -> dict[str, int]:
        return self._left_over


def require_all(source: Source) -> None:
    """Refuse a source that leaves anything over. Raises `ViqError`."""
    found = left_over(source)
    if found:
        listed = ", ".join(f"{count:,} {what}" for what, count in found.items())
        raise ViqError(f"--strict: not all of the input is encoded: {listed}; remove or name them")


def left_over(source: Source, report: Summary | None = None) -> dict[str, int]:
    """What of the input has no part in the codes: how many of what."""
    found = {what: count for what, count in source.leftovers().items() if count}
    if report is not None and report.no_image:
        found["rows without an image"] = report.no_image
    return found
