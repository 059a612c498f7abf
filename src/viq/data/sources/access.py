"""What names inside data may open, and the images they lead to.

A data set of somebody else is full of names: lines of a list, cells of a table, fields of JSON. By
itself it may name only

- files below its own folder (or the `root` that the user gives): relative paths, or absolute ones
  that lie there; links that lead out of it do not count as below
- http and https, within bounds, at public addresses (`viq.data.sources.fetch`)
- the place on the Hugging Face hub that it came from
- an image itself: a data: URI, or base64 text

The rest has to be allowed by the user (`Access`). Chains of file systems (`zip://a::s3://b`) and
`file://` are refused to everybody: what a chain opens is decided by the files on its way, and a
local path needs no URL. The user's own words, a URL on the command line, may be of any file system,
and may name an address of this machine or of a private network; where such a server leads on to is
again a name of somebody else.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from viq.core.errors import require
from viq.core.untrusted import UntrustedError, below, printable
from viq.data.sources.base import (
    IMAGE_BYTES,
    ImageFile,
    ImageRef,
    SourceError,
    because,
    place,
)
from viq.data.sources.fetch import FetchLimits, fetch
from viq.image.open import ImageError, starts_like_an_image

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_LINK = re.compile(r"::[A-Za-z][A-Za-z0-9+.\-]*://")  # of a chain
_WEB = ("http", "https")
_LOCAL = ("file", "local")
_HEAD = re.compile(r"[A-Za-z0-9+/_\-\s]{32}")  # 24 bytes in base64: enough for a signature


@dataclass(frozen=True, kw_only=True)
class Access:
    """What data may have opened beyond what the module says.

    Attributes:
        protocols: of file systems that fsspec knows: "s3", "gs" (`--allow-protocol`).
        absolute: local paths anywhere, and links to anywhere (`--allow-absolute`).
        private_network: http(s) at addresses of this machine and of private networks
            (`--allow-private-network`).
        limits: of a fetch; its size also holds for the other protocols.
    """

    protocols: tuple[str, ...] = ()
    absolute: bool = False
    private_network: bool = False
    limits: FetchLimits = field(default_factory=FetchLimits)

    def __post_init__(self) -> None:
        if isinstance(self.protocols, str):
            raise SourceError("protocols is one text; give a tuple of names, such as ('s3',)")
        for name in self.protocols:
            if name.lower() in _LOCAL or not _SCHEME.fullmatch(f"{name}://"):
                raise SourceError(
                    f"--allow-protocol {printable(name, 40)}: no name such as s3 or gs; local files"
                    " are allowed by --allow-absolute"
                )


@dataclass(frozen=True)
class Names:
    """The names in one data set.

    Attributes:
        folder: what relative paths begin at, and stay below.
        more: other folders whose files the data may name by absolute paths.
        origin: URLs that begin so lie where the data come from.
    """

    folder: Path
    access: Access = Access()
    more: tuple[Path, ...] = ()
    origin: str = ""

    def image(self, name: str, where: str) -> ImageRef:
        """The image that a text names, or is.

        Raises:
            SourceError: the data may not name it; says why, and what would allow it.
        """
        if is_encoded(name):
            return ImageText(name)
        if is_url(name):
            return self._url(name, where)
        return ImageFile(self.file(name, where))

    def file(self, name: str, where: str) -> Path:
        """The local file of this name. Raises `SourceError` as `image` does."""
        if not name or "\0" in name or len(os.fsencode(name)) > 4096:
            raise SourceError(f"{where}: '{printable(name, 80)}' is no path there can be")
        if self.access.absolute:
            return self.folder / name
        try:
            if not os.path.isabs(name):
                return _below(self.folder, name, where)
            for folder in (self.folder, *self.more):
                if _is_below(folder, name):
                    return Path(name)
            raise UntrustedError(
                f"{where}: '{printable(name, 80)}' is an absolute path outside of"
                f" {place(self.folder)}, the folder of the data"
            )
        except UntrustedError as error:
            raise SourceError(
                f"{error}; pass --root FOLDER, or --allow-absolute if you trust the data"
            ) from error

    def _url(self, url: str, where: str) -> ImageUrl:
        scheme, shown = scheme_of(url), f"'{printable(url, 80)}'"
        if is_chain(url):
            raise SourceError(
                f"{where}: {shown} is a chain of file systems (::), which data may not name;"
                " fetch the file first"
            )
        if scheme in _WEB:
            return ImageUrl(url, self.access)
        if scheme in _LOCAL:
            raise SourceError(
                f"{where}: {shown} is a local file, which data name by its path; a path outside of"
                " their folder needs --allow-absolute"
            )
        is_home = self.origin and url.startswith((f"{self.origin}/", f"{self.origin}@"))
        if scheme in map(str.lower, self.access.protocols) or (is_home and "/.." not in url):
            return ImageUrl(url, self.access)
        raise SourceError(
            f"{where}: {shown} is of a protocol that data may not name; pass --allow-protocol"
            f" {printable(scheme, 20)} if you trust them"
        )


@dataclass(frozen=True)
class ImageUrl:
    """A URL that may be opened.

    Attributes:
        trusted: whether the user typed it.
    """

    url: str
    access: Access = Access()
    trusted: bool = False

    def read(self) -> bytes:
        shown, limits = place(self.url), self.access.limits
        try:
            if scheme_of(self.url) in _WEB:
                private = self.access.private_network
                return fetch(self.url, limits, private=private, trusted=self.trusted)
            from fsspec.core import url_to_fs

            filesystem, path = url_to_fs(self.url)
            data = filesystem.cat_file(path, end=limits.size + 1)
        except ImageError as error:
            raise ImageError(f"{shown}: {error}") from error
        except FileNotFoundError:
            raise ImageError(f"{shown}: does not exist; check the URL") from None
        except Exception as error:  # each file system raises its own types
            raise ImageError(f"{shown}: cannot be fetched ({because(error)})") from error
        if len(data) > limits.size:
            raise ImageError(f"{shown}: has more than {limits.size:,} bytes, the limit")
        return data


@dataclass(frozen=True)
class ImageBytes:
    """An image that was fetched, or why it could not be."""

    data: bytes = field(repr=False)
    error: ImageError | None = None

    def read(self) -> bytes:
        if self.error is not None:
            raise self.error
        return self.data


def fetched(ref: ImageRef) -> ImageRef:
    """An image at a URL, fetched now; any other as it is."""
    if not isinstance(ref, ImageUrl):
        return ref
    try:
        return ImageBytes(ref.read())
    except ImageError as error:
        return ImageBytes(b"", error)


@dataclass(frozen=True)
class ImageText:
    """The image itself, as a data: URI or base64 text."""

    text: str = field(repr=False)

    def read(self) -> bytes:
        if len(self.text) > 2 * IMAGE_BYTES:
            raise ImageError(
                f"{len(self.text):,} characters are no image; the limit is as of files"
            )
        head, comma, body = self.text.partition(",")
        try:
            if not comma:
                return _from_base64(self.text)
            if head.rstrip().lower().endswith(";base64"):
                return _from_base64(unquote(body) if "%" in body else body)
            return unquote_to_bytes(body)
        except (binascii.Error, ValueError) as error:
            raise ImageError(
                f"'{self.text[:24]}...' starts like an image in base64, but is none"
                f" ({because(error)}); write it again"
            ) from error


def _from_base64(text: str) -> bytes:
    plain = "".join(text.split()).translate({45: "+", 95: "/"})  # -_ stand for them in URLs
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def is_encoded(text: str) -> bool:
    """Whether a text is an image rather than the name of one."""
    if text[:64].lstrip()[:5].lower() == "data:":
        return True
    if not _HEAD.match(text):
        return False
    head = "".join(text[:64].split())[:32].translate({45: "+", 95: "/"})
    try:
        return starts_like_an_image(base64.b64decode(head[: len(head) // 4 * 4]))
    except binascii.Error:
        return False


def is_url(name: str) -> bool:
    return "://" in name


def is_chain(url: str) -> bool:
    """Whether a URL opens one file system in another; `http://[::1]/a?b=c::d` does not."""
    if scheme_of(url) in _WEB:
        return _LINK.search(url) is not None
    return "::" in url


def scheme_of(url: str) -> str:
    """ "https" of "HTTPS://...", or the text before "://" that is no scheme."""
    return url.partition("://")[0].lower()


def require_scheme(scheme: str, where: str) -> None:
    """Raise `SourceError` now, rather than at every row, if no URL of `scheme` can be fetched."""
    with require("fsspec", "data", where, SourceError):
        fsspec = importlib.import_module("fsspec")
        if scheme in _WEB:
            importlib.import_module("aiohttp")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise SourceError(f"{where}: needs one more library ({because(error)})") from error
    except ValueError as error:
        raise SourceError(f"{where}: {because(error)}; check the URL") from error


def _below(folder: Path, name: str, where: str) -> Path:
    """As `viq.core.untrusted.below`, which asks the disk for each part of a path, every time."""
    inner, slash, last = name.rpartition("/")
    path = folder / name
    try:
        if last not in ("", ".", "..") and not os.path.islink(path):
            _inner_below(os.path.abspath(folder), inner)
            return path
    except UntrustedError:
        pass
    return below(folder, name, where)


@lru_cache(maxsize=4096)
def _inner_below(folder: str, inner: str) -> None:
    """Raises `UntrustedError`, which is not remembered, unless the folder `inner` lies below."""
    below(Path(folder), inner, "")


def _is_below(folder: Path, name: str) -> bool:
    try:
        below(folder, os.path.relpath(name, folder), "")
    except (UntrustedError, ValueError):  # on Windows, another drive
        return False
    return True
