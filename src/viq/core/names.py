"""Names of files that any text can have: legal on Linux, macOS and Windows, and of bounded length.

The rule, for each part of a path:

- Characters that a file system refuses or that cannot be seen (control characters, those that turn
  or hide text, `< > : " \\ | ? *`) become `_`. The text is in Unicode's composed form (NFC).
- Spaces and dots around it go: Windows drops those at its end, and a dot at its beginning would
  hide the file.
- Names that Windows keeps for devices (CON, NUL, COM1, ...) get a `_` before them.
- A part of more than 200 bytes is cut, and 16 hex digits of the hash of the whole follow.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

PART_BYTES = 200  # of a part: file systems allow 255, and a suffix and a number are to follow
PATH_BYTES = 700  # of a path: macOS allows 1024, the folder it is in included

_FORBIDDEN = re.compile(r'[<>:"\\|?*/\x00-\x1f\x7f]')
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.I | re.S)


def portable(text: str) -> str:
    """One part of a path, made of any text; "" if nothing of it is left."""
    whole = unicodedata.normalize("NFC", text)
    shown = (c if c.isprintable() and not _FORBIDDEN.match(c) else "_" for c in whole)
    plain = "".join(shown).strip(" .")
    if _DEVICES.fullmatch(plain):
        plain = "_" + plain
    return shortened(plain, text)


def shortened(part: str, whole: str, limit: int = PART_BYTES) -> str:
    """`part`, or its beginning and the hash of `whole`, in at most `limit` bytes."""
    data = part.encode()
    if len(data) <= limit:
        return part
    head = data[: limit - 17].decode(errors="ignore").rstrip(". ")
    return f"{head}-{hashed(whole)}"


def hashed(text: str) -> str:
    """16 hex digits that tell this text from others."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def folded(path: str) -> str:
    """What two paths share that some file systems take for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())
