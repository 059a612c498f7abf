"""Open any picture safely as an upright RGB image: the one place where image bytes are decoded.

Whatever goes wrong with an input ends in `ImageError`, whose message is one line: which input, what
is wrong with it, how to mend it. Nothing is printed and no Pillow setting is changed; all functions
may be called from many threads.

Unusual choices: files are matched against a short list of raster formats instead of all that Pillow
knows; Pillow's warnings are silenced on the decoding thread only; colour profiles are ignored.
Two things lie outside our reach: libtiff, below Pillow, may write a line about a damaged TIFF to
stderr, and an application that sets `ImageFile.LOAD_TRUNCATED_IMAGES` hides truncation from us.
"""

from __future__ import annotations

import io
import math
import mimetypes
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import ExifTags, Image

from viq.core.types import MAX_PIXELS, ViqError
from viq.core.untrusted import printable
from viq.image.arrays import is_tensor, to_bytes
from viq.image.pixels import to_rgb

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DECODE_LIMIT",
    "FILE_LIMIT",
    "IMAGE_SUFFIXES",
    "ImageError",
    "ImageInput",
    "find_images",
    "limit_pixels",
    "list_images",
    "open_image",
    "starts_like_an_image",
]

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor"

DECODE_LIMIT = MAX_PIXELS  # pixels; the largest phone cameras take 199.8 million
FILE_LIMIT = 2 * 2**30  # bytes of a file: so many pixels of 8 bytes, and more

# The files that `list_images` picks up in folders; lower case.
IMAGE_SUFFIXES = frozenset(
    ".apng .avif .bmp .dib .gif .ico .j2c .j2k .jfif .jp2 .jpe .jpeg .jpf .jpg .jpx .mpo .pbm .pfm"
    " .pgm .png .pnm .ppm .qoi .tga .tif .tiff .webp".split()
)

# Files with one of these are not looked into: the library's own list, not that of the machine.
_OTHER_SUFFIXES = frozenset(mimetypes.MimeTypes().types_map[1]) | frozenset(
    ".7z .arrow .bz2 .cfg .dat .db .gz .idx .ini .ipynb .jsonl .lance .license .lock .log .md"
    " .ndjson .npy .npz .onnx .parquet .part .pkl .pt .pth .rar .rst .safetensors .sh .tfrecord"
    " .tgz .toml .viq .xz .yaml .yml .zst".split()
)

# How the formats below begin, those that a text could begin like by chance with more of it.
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|....ftypavi[fs]|qoif|P[1-6]\s+[0-9#]",
    re.DOTALL,
)

# Tried in this order. None starts a program (EPS), replays drawing commands (WMF) or is a stub.
# MPO files are JPEG files. TGA has no signature, so it comes last.
_FORMATS = "JPEG PNG WEBP GIF BMP TIFF PPM JPEG2000 AVIF ICO QOI DIB TGA".split()

# A file with more pixels than the first and more pixels per byte than the second is taken for a
# decompression bomb. Deflate reaches 1032 on an empty grey picture; photographs stay below 100.
_BOMB_PIXELS, _BOMB_PIXELS_PER_BYTE = 2**26, 800

_AGAIN = "fetch or export it again"
_TOO_LARGE_FOR_PILLOW = (
    "has more pixels than Pillow allows; make it smaller or raise PIL.Image.MAX_IMAGE_PIXELS"
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation: the turn that undoes it


class ImageError(ViqError):
    """A picture cannot be used; the one-line message says which, why, and how to mend it."""


def open_image(
    source: ImageInput, *, name: str | None = None, decode_limit: int = DECODE_LIMIT
) -> Image.Image:
    """Decode `source` to a new RGB image, upright and without metadata.

    `source` is a path, the bytes of an image file, a PIL image (taken at the frame it stands at),
    or a numpy array or tensor of uint8, or of floats in [0, 1]: (H, W), (H, W, 3) or (3, H, W),
    also of 1 or 4 channels, alpha last (`arrays.py`). `name` stands for the source in messages; the
    default is its path, or "bytes", "PIL image", "array" or "Tensor".

    Animations give their first frame, the EXIF orientation is applied, and transparency is laid
    over white. Deep pixels become 8 bits so:

    - 16-bit grey: `value * 255 / 65535`, rounded. 16-bit colour: the high byte (Pillow does that).
    - 32-bit integers (mode I): as they are if all lie in 0..255, like 16-bit grey if all lie in
      0..65535 (and always for PGM), else least..greatest is stretched to 0..255.
    - floats (mode F): times 255 if all lie in 0..1, as they are if all lie in 0..255, else
      stretched. NaN and -inf become black, inf white.

    Raises `ImageError` for everything else: missing, empty, truncated or damaged files, things that
    are no images, more than `decode_limit` pixels (checked before decoding), and files so small for
    their pixels that they must be decompression bombs.
    """
    label = _one_line(name) if name is not None else _label(source)
    try:
        with _without_warnings():
            return _open(source, decode_limit)
    except ViqError as error:
        raise ImageError(f"{label}: {error}") from error.__cause__
    except MemoryError as error:
        raise ImageError(f"{label}: does not fit in memory; make it smaller") from error
    except Exception as error:  # decoders raise nearly every type on damaged input
        raise ImageError(f"{label}: cannot be read{_because(error)}; check it") from error


def limit_pixels(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """Shrink an RGB image to at most `max_pixels` pixels, keeping its aspect to the whole pixel.

    Returns `image` itself where it is small enough or `max_pixels` is None. No side falls below 1
    pixel. Raises `ValueError` for `max_pixels` < 1.
    """
    if max_pixels is not None and max_pixels < 1:
        raise ViqError(f"max_pixels is {max_pixels}; pass at least 1, or None for no limit")
    width, height = image.size
    if max_pixels is None or width * height <= max_pixels:
        return image
    # floor(side * sqrt(max_pixels / area)), exact in whole numbers; `min` matters where the other
    # side had to be raised to 1.
    new_width = min(max(1, math.isqrt(width * max_pixels // height)), max_pixels)
    new_height = min(max(1, math.isqrt(height * max_pixels // width)), max_pixels)
    # LANCZOS keeps the thin strokes of text. The gap leaves the first part of a large shrink to
    # boxes: 12 to 0.12 megapixels takes 52 ms, not 221, and no value moves by more than 1.
    return image.resize((new_width, new_height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def list_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List picture files: files as given, folders searched to any depth, each path once.

    The order is that of `paths`; within a folder it is sorted by path. Folders yield files with a
    suffix of `IMAGE_SUFFIXES` in any case, and those without a known suffix that begin like a
    picture; hidden files and folders, and links to folders, are passed over. Raises `ImageError`
    for a path that does not exist, a folder that cannot be read and a folder without pictures.
    """
    return find_images(paths)[0]


def find_images(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> tuple[list[Path], int]:
    """What `list_images` gives, and how many files of the folders it passed over."""
    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    found: dict[Path, None] = {}
    others = 0
    for path in map(Path, given):
        if not os.path.exists(path):
            raise ImageError(f"{_one_line(path)}: does not exist; check the path")
        files = [path]
        if path.is_dir():
            looked_at = list(_walk(path))
            files = sorted(file for file, is_picture in looked_at if is_picture)
            others += len(looked_at) - len(files)
        if not files:
            raise ImageError(
                f"{_one_line(path)}: holds no pictures at any depth; pass files, or a folder with"
                " JPEG, PNG, WebP or other raster pictures"
            )
        found.update(dict.fromkeys(files))
    return list(found), others


def starts_like_an_image(head: bytes) -> bool:
    """Whether a file with these first 32 bytes is of a format that is read."""
    return _SIGNATURE.match(head) is not None


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the files below `folder`, and whether each is a picture.

    Without recursion, which fails about 1000 levels down.
    """
    todo = [folder]
    while todo:
        folder = todo.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = Path(entry.path)
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(path)
                    elif entry.is_file():
                        yield path, _is_picture(path)
        except OSError as error:
            raise ImageError(
                f"{_one_line(folder)}: cannot be listed ({error.strerror}); mend its permissions"
            ) from error


def _is_picture(path: Path) -> bool:
    """By its suffix, or where that says nothing by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in _OTHER_SUFFIXES:
        return suffix in IMAGE_SUFFIXES
    try:
        with open(path, "rb", buffering=0) as file:
            return starts_like_an_image(file.read(32))
    except OSError:
        return False


_thread = threading.local()


class _OnDecodingThread(type):
    """Makes its class a parent of every warning, but only on threads that are decoding."""

    def __subclasscheck__(cls, subclass: type) -> bool:
        return getattr(_thread, "decoding", False)


class _AnyWarning(Warning, metaclass=_OnDecodingThread):
    """The category of our one entry in the list of warning filters; never raised."""


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore warnings on this thread.

    `warnings.catch_warnings` swaps a list that all threads share: two that overlap leave the wrong
    one behind. Our entry goes in once, and outside of decoding it matches nothing.
    """
    if not warnings.filters or warnings.filters[0][2] is not _AnyWarning:
        warnings.simplefilter("ignore", _AnyWarning)
    _thread.decoding = True
    try:
        yield
    finally:
        _thread.decoding = False


def _open(source: object, limit: int) -> Image.Image:
    """Do the work of `open_image`, with errors that do not name the source yet."""
    if isinstance(source, Image.Image):
        return _decode(source, limit)
    if isinstance(source, np.ndarray) or is_tensor(source):
        return _decode(_from_array(source), limit)
    if isinstance(source, bytes):
        with io.BytesIO(source) as stream:
            return _decode(_identify(stream, len(source), limit), limit)
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError("is no source of images; pass a path, bytes, PIL image, array or tensor")
    try:
        status = os.stat(source)
        # Only then opened, as opening a pipe could wait for ever.
        stream = open(source, "rb") if stat.S_ISREG(status.st_mode) else None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("does not exist; check the path") from error
    except OSError as error:
        raise ImageError(f"cannot be opened ({error.strerror}); check path and rights") from error
    if stream is None and stat.S_ISDIR(status.st_mode):
        raise ImageError("is a folder, not a file; list its pictures with list_images")
    if stream is None:
        raise ImageError("is not a regular file; copy its content into one")
    if status.st_size > FILE_LIMIT:
        stream.close()
        raise ImageError(
            f"has {status.st_size:,} bytes, the limit is {FILE_LIMIT:,}; make it smaller"
        )
    with stream:
        return _decode(_identify(stream, status.st_size, limit), limit)


def _identify(stream: IO[bytes], length: int, limit: int) -> Image.Image:
    """Read the header of a file of `length` bytes; no pixels are decoded, bar those of icons.

    This is Image.open for our formats, less its refusal of more than 2 * Image.MAX_IMAGE_PIXELS,
    a setting that belongs to the application: `decode_limit` is to mean what it says.
    """
    Image.init()
    head = stream.read(512)
    signature = head[:16].ljust(16, b"\0")  # some checks fail on fewer bytes
    for name in _FORMATS if head else ():
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(signature) is not True):
            continue
        stream.seek(0)
        try:
            image = factory(stream, "")
        except Image.DecompressionBombError as error:
            raise ImageError(_TOO_LARGE_FOR_PILLOW) from error
        except Exception as error:
            if accept is None:
                continue
            raise ImageError(
                f"starts like {name}, but its header is damaged or truncated{_because(error)};"
                f" {_AGAIN}"
            ) from error
        pixels = image.width * image.height
        if _BOMB_PIXELS < pixels <= limit and pixels > _BOMB_PIXELS_PER_BYTE * length:
            raise ImageError(
                f"looks like a decompression bomb ({image.width}x{image.height} pixels in {length}"
                " bytes); if you trust it, open it with Pillow and pass the PIL image"
            )
        if name == "JPEG2000" and not _has_end(stream):
            # OpenJPEG leaves missing tiles black without a word.
            raise ImageError(f"its JPEG2000 data is truncated (no end marker); {_AGAIN}")
        return image
    raise ImageError(_what_else(head))


def _has_end(stream: IO[bytes]) -> bool:
    """Whether the end marker of JPEG2000 is somewhere in the file."""
    stream.seek(0)
    last = b""
    while piece := stream.read(2**20):
        if b"\xff\xd9" in last + piece:
            return True
        last = piece[-1:]
    return False


def _decode(image: Image.Image, limit: int) -> Image.Image:
    """Load an identified image, unless it is too large, and make it RGB and upright."""
    width, height = image.size
    if width * height > limit:
        raise ImageError(
            f"its {width}x{height} pixels are more than the limit of {limit};"
            " make it smaller or raise decode_limit"
        )
    if width * height == 0:
        raise ImageError(f"has no pixels ({width}x{height}); pass at least 1x1")
    tiles = getattr(image, "tile", None)
    packing = tiles[0][3] if tiles else None  # how the file holds its pixels; gone once loaded
    try:
        image.load()
    except Image.DecompressionBombError as error:
        raise ImageError(_TOO_LARGE_FOR_PILLOW) from error
    except MemoryError:
        raise
    except Exception as error:
        kind = image.format or "image"
        raise ImageError(
            f"its {kind} data is truncated or damaged{_because(error)}; {_AGAIN}"
        ) from error
    rgb = to_rgb(image, packing)
    try:
        rgb = rgb.transpose(_TURNS[image.getexif()[ExifTags.Base.Orientation]])
    except Exception:  # no orientation, or damaged metadata around sound pixels
        pass
    rgb.info = {}  # else opening the result again would turn it again
    return rgb


def _from_array(source: object) -> Image.Image:
    array = to_bytes(source)
    return Image.fromarray(array[:, :, 0] if array.shape[2:] == (1,) else array)


def _what_else(head: bytes) -> str:
    """Say what a file is that no format matched, by its first bytes."""
    if not head:
        return f"is empty (zero bytes); {_AGAIN}"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, not an image; the download probably failed, fetch it again"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return "is an SVG drawing, not an image of pixels; export it as PNG"
    if start.startswith((b"%pdf", b"%!ps")):
        return "is a PDF or PostScript document, not an image; export it as PNG"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "is a HEIC image, which is not supported; convert it to JPEG"
    text = head.decode("utf-8", "replace").rstrip("\ufffd")  # the last character may be cut
    if "\ufffd" not in text and all(c.isprintable() or c.isspace() for c in text):
        return "is text, not an image; check that it is the file you meant"
    return "is not an image of a supported format, or is damaged; export it as PNG or JPEG"


def _label(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return _one_line(os.fspath(source)) if os.fspath(source) else "the empty path"
    kinds = ((bytes, "bytes"), (np.ndarray, "array"), (Image.Image, "PIL image"))
    return next((word for kind, word in kinds if isinstance(source, kind)), type(source).__name__)


def _because(error: Exception) -> str:
    """The words of `error` in brackets, where it is of a type that Pillow words for people."""
    worded = isinstance(error, (OSError, SyntaxError, ValueError)) and str(error)
    return f" ({_one_line(error)})" if worded else ""


def _one_line(text: object) -> str:
    """`text` in at most 200 printable characters: the file and row at its head stay."""
    return printable(str(text), 200)
