"""Where a JSON record names its images, and what is left of it without them.

The first of these that has any is taken:

1. the fields that the user names (`image_column`), in that order
2. `image`, else `images`
3. the parts of messages: {"type": "image", "image" or "path" or "url": ...} and {"type":
   "image_url", "image_url": {"url": ...} or text}, in the order of the text
4. the first of `img`, `image_path`, `img_path`, `image_file`, `image_url`, `img_url`; and of
   `file_name`, `filename`, `path`, `url` if it names a file with the suffix of an image

What is read as an image is no extra of the row. A part of a message stays there as a bare mark.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from viq.core.untrusted import printable
from viq.data.sources.access import Names, is_encoded, is_url
from viq.data.sources.base import ROW_IMAGES, ImageRange, ImageRef, SourceError
from viq.image.open import IMAGE_SUFFIXES

IMAGE_PLACEHOLDER = "<image>"
CONVERSATIONS = ("conversations", "messages")

_SURE = ("img", "image_path", "img_path", "image_file", "image_url", "img_url")
_PERHAPS = ("file_name", "filename", "path", "url")  # may name other things as well
_PART_TYPES = ("image", "image_url", "input_image")
# Under which an object says where its image is, the first that is there. As in tables, bytes go
# before the path of the file that they once were.
_PLACES = ("bytes", "img_path", "image_path", "image", "image_url", "path", "file_name", "url")


def is_image_part(part: dict[str, Any]) -> bool:
    """Whether a part of a message is an image rather than text."""
    kind = part.get("type")
    # Without a type: tables give each part of a message all fields, those of others as None.
    return kind in _PART_TYPES if isinstance(kind, str) else part.get("image") is not None


def part_source(part: dict[str, Any]) -> Any:
    """What an image part says its image is; None if it is a mark alone."""
    found = next((part[name] for name in _PLACES if part.get(name) is not None), None)
    return found.get("url") if isinstance(found, dict) and "url" in found else found


def content_of(message: dict[str, Any]) -> Any:
    """What a message says: its `value`, else its `content`."""
    said = message.get("value")
    return message.get("content") if said is None else said


def take_images(
    record: dict[str, Any], chosen: Sequence[str] | None, names: Names, where: str
) -> tuple[ImageRef, ...]:
    """The images of a record, which lose their fields in it; `resize` gets one entry an image.

    Args:
        chosen: the fields that hold images; None to look for them.

    Raises:
        SourceError: an entry is no image or may not be named, or the text has a mark for an image
            and no image is found.
    """
    entries = _entries(record, chosen)
    if len(entries) > ROW_IMAGES:
        raise SourceError(f"{where}: has {len(entries):,} images, the limit is {ROW_IMAGES:,}")
    images = tuple(_image(entry, names, where) for entry in entries)
    sizes = [entry.get("resize") if isinstance(entry, dict) else None for entry in entries]
    if any(size is not None for size in sizes):
        record["resize"] = sizes
    if not images and chosen is None and _has_mark(record):
        raise SourceError(
            f"{where}: its text has a mark for an image, but no field names one (its fields:"
            f" {printable(', '.join(record), 100)}); name the field that does (--image-column)"
        )
    return images


def _entries(record: dict[str, Any], chosen: Sequence[str] | None) -> list[Any]:
    if chosen is not None:
        return [entry for name in chosen for entry in _listed(record.pop(name, None))]
    given = _listed(record.pop("image" if record.get("image") is not None else "images", None))
    if record.get("image", "") is None:
        del record["image"]
    if given:
        return given
    if found := list(_in_parts(record)):
        return found
    for name in (*_SURE, *_PERHAPS):
        value = record.get(name)
        if value and (name in _SURE or (isinstance(value, str) and _looks_like_image(value))):
            return _listed(record.pop(name))
    return []


def _in_parts(record: dict[str, Any]) -> Iterator[Any]:
    """What the image parts of messages name; the parts become bare marks."""
    for message in _messages(record):
        content = content_of(message)
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and is_image_part(part):
                source = part_source(part)
                if source is not None:
                    for name in _PLACES:
                        part.pop(name, None)
                    part["type"] = "image"
                    yield source


def _has_mark(record: dict[str, Any]) -> bool:
    for message in _messages(record):
        content = content_of(message)
        if isinstance(content, str) and IMAGE_PLACEHOLDER in content:
            return True
        parts = content if isinstance(content, list) else ()
        if any(isinstance(part, dict) and is_image_part(part) for part in parts):
            return True
    return False


def _messages(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in CONVERSATIONS:
        if isinstance(record.get(name), list):
            yield from (item for item in record[name] if isinstance(item, dict))
            return


def _image(entry: Any, names: Names, where: str) -> ImageRef:
    match entry:
        case str(place) if place:
            return names.image(place, where)
        case {"patch": str(patch), "start_num": int(start), "size": int(size)} if (
            start >= 0 and size > 0
        ):
            flag = entry.get("base64")
            path = names.file(patch, where)
            return ImageRange(path, start, size, None if flag is None else bool(flag))
        case dict():
            source = part_source(entry)
            if isinstance(source, str) and source:
                return names.image(source, where)
    raise SourceError(
        f"{where}: an image is {printable(json.dumps(entry)[:100])}; give a path, an img_path, or"
        " patch, start_num and size"
    )


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [] if given is None else [given]


def _looks_like_image(value: str) -> bool:
    if is_encoded(value):
        return True
    path = urlsplit(value).path if is_url(value) else Path(value).as_posix()
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES
