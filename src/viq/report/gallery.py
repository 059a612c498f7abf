"""A gallery of originals, ViQ reconstructions and JPEG files of equal bytes, to look at.

    make_gallery(tokenizer, sample_pictures(), Path("demo"), title="ViQ")

Two galleries come of it: `gallery.png`, drawn with the font inside Pillow, and `gallery.html`,
whose pictures are data URIs, so that it asks for nothing outside itself. Neither adds losses of its
own: they hold PNG and lossless WebP.

Unlike `viq.eval`, bytes are those of whole .viq files, header included: that is what lies on the
disk beside a JPEG file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from viq.core.codes import Codes
from viq.core.levels import codebook_size
from viq.core.names import portable
from viq.core.outputs import Manifest, require_folder, require_free
from viq.core.types import ViqError
from viq.image.codecs import fit_codec
from viq.image.open import ImageError, ImageInput, open_image
from viq.metrics.images import fidelity
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.report.gallery_common import encoded, most_detailed
from viq.report.gallery_page import make_page, section
from viq.report.gallery_sheet import block, make_sheet

_FOR_ALL, _MANIFEST = ("gallery.png", "gallery.html"), "gallery.jsonl"


def make_gallery(
    tokenizer: VisualTokenizer,
    sources: Sequence[ImageInput | tuple[str, ImageInput]],
    out: Path,
    *,
    title: str,
    command: str = "viq demo [IMAGES...] -o FOLDER",
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Encode pictures to files, decode the files, and show both beside JPEG files.

    Writes NAME.viq (codes) and NAME.png (what they decode to) for every picture, and gallery.png
    and gallery.html for all; gallery.jsonl lists them, so that the next gallery in this folder
    replaces what this one made, and nothing else. Pictures are neither resized nor cropped, but for
    display.

    Args:
        sources: pictures, or pairs of a name and a picture. Without one, the name comes from the
            path; characters that file names cannot have are replaced, and equal names numbered.
            A PIL image may carry a line of credit in `info["credit"]`.
        out: folder for the files, made if need be.
        title: of the gallery.
        command: shown as the way to make this gallery again.
        overwrite: also replace files that no gallery made.
        progress: called with the number of pictures done after each, failed ones included.

    Returns:
        What `json.dumps(..., allow_nan=False)` accepts:

        title, command; tokenizer: name, fingerprint, levels, codebook (its size), tile (px);
        pillow: the release that wrote the JPEG files.
        images: for each, name, credit (or None), width, height, megapixels, grid (rows, columns),
            codes (how many), bytes (of the .viq file), ratio (raw RGB bytes / bytes), bpp (bits a
            pixel), detail (left, top, width, height of the crop at 1:1), viq: psnr and ssim, and
            jpeg: quality, bytes, bpp, psnr and ssim, or None if no file is small enough. A psnr of
            None means an exact copy.
        failed: name and reason of each picture that cannot be read; the others go on.
        files: names of all files written to `out`.

    Raises:
        ValueError: no picture that can be read, a tokenizer that cannot decode, or a picture that
            a file of the gallery would overwrite.
        ViqError: a file is there that no gallery made, and not `overwrite`.
    """
    if tokenizer.decoder is None:
        raise ViqError(
            f"{tokenizer.config.name} has no pixel decoder, so it gives no pictures to show: "
            "choose another model"
        )
    levels = tokenizer.levels  # raises for a continuous bottleneck
    require_folder(out)
    named = _named(sources)
    _protect(named, out)
    manifest = Manifest(out / _MANIFEST, "demo")
    _require_ours(named, manifest, overwrite)
    shown = _shown(tokenizer, named, manifest, progress)
    summary = {
        "title": title,
        "command": command,
        "tokenizer": {
            "name": tokenizer.config.name,
            "fingerprint": tokenizer.fingerprint,
            "levels": list(levels),
            "codebook": codebook_size(levels),
            "tile": tokenizer.config.tile,
        },
        "pillow": PIL.__version__,
        "images": shown.rows,
        "failed": shown.failed,
        "files": [*_pair_files(row["name"] for row in shown.rows), *_FOR_ALL, _MANIFEST],
    }
    sheet = encoded(make_sheet(summary, shown.blocks), "PNG")
    page = make_page(summary, shown.sections).encode()
    for name, data in zip(_FOR_ALL, (sheet, page), strict=True):
        manifest.write(name, data)
    manifest.tidy()
    return summary


# Pictures and numbers


@dataclass(frozen=True)
class _Shown:
    """What a gallery says of its pictures, and how sheet and page show each."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    blocks: list[Image.Image] = field(default_factory=list)
    sections: list[dict[str, Any]] = field(default_factory=list)


def _shown(
    tokenizer: VisualTokenizer,
    named: Sequence[tuple[str, ImageInput]],
    manifest: Manifest,
    progress: Callable[[int], None] | None,
) -> _Shown:
    """Write the files of all pictures that can be read. Raises `ViqError` if there is none."""
    shown = _Shown()
    for done, (name, source) in enumerate(named, 1):
        try:
            original = open_image(source)
        except ImageError as error:
            shown.failed.append({"name": name, "reason": str(error)})
        else:
            credit = source.info.get("credit") if isinstance(source, Image.Image) else None
            figures, pictures = _compare(tokenizer, name, original, manifest)
            row = {"name": name, "credit": str(credit) if credit else None, **figures}
            shown.rows.append(row)
            # Full-size pictures go no further: a gallery may hold many.
            shown.blocks.append(block(row, pictures))
            shown.sections.append(section(row, pictures))
        if progress is not None:
            progress(done)
    if not shown.rows:
        reason = f": {shown.failed[0]['reason']}" if shown.failed else "; give at least one"
        raise ViqError(f"no picture to show{reason}")
    return shown


def _compare(
    tokenizer: VisualTokenizer, name: str, original: Image.Image, manifest: Manifest
) -> tuple[dict[str, Any], list[Image.Image | None]]:
    """Write the files of one picture; its numbers, and original, ViQ and JPEG picture."""
    manifest.write(f"{name}.viq", tokenizer.encode(original)[0].to_bytes())
    # From the disk: what is shown is what the file alone gives.
    data = (manifest.path.parent / f"{name}.viq").read_bytes()
    codes = Codes.from_bytes(data)
    decoded = tokenizer.decode(codes)[0]
    manifest.write(f"{name}.png", encoded(decoded, "PNG"))
    jpeg = fit_codec(original, "jpeg", len(data))
    pixels = original.width * original.height
    row: dict[str, Any] = {
        "width": original.width,
        "height": original.height,
        "megapixels": pixels / 1e6,
        "grid": list(codes.grid),
        "codes": int(codes.ids.size),
        "bytes": len(data),
        "ratio": 3 * pixels / len(data),
        "bpp": 8 * len(data) / pixels,
        "detail": list(most_detailed(original)),
        "viq": fidelity(np.asarray(original), np.asarray(decoded)),
        "jpeg": None,
    }
    if jpeg is None:
        return row, [original, decoded, None]
    written, picture, quality = jpeg
    row["jpeg"] = {
        "quality": quality,
        "bytes": len(written),
        "bpp": 8 * len(written) / pixels,
        **fidelity(np.asarray(original), np.asarray(picture)),
    }
    return row, [original, decoded, picture]


# Files


def _named(sources: Sequence[ImageInput | tuple[str, ImageInput]]) -> list[tuple[str, ImageInput]]:
    """Each source with a name that is good for files, and its own."""
    taken = {"gallery"}  # ours
    named = []
    for place, item in enumerate(sources, 1):
        if isinstance(item, tuple):
            label, source = item
        else:
            source = item
            label = f"image-{place}"
            if isinstance(source, str | os.PathLike):
                label = Path(source).stem
        base = name = portable(label) or "image"
        number = 1
        while name.casefold() in taken:  # many disks take A and a for the same
            number += 1
            name = f"{base}-{number}"
        taken.add(name.casefold())
        named.append((name, source))
    return named


def _protect(named: Sequence[tuple[str, ImageInput]], out: Path) -> None:
    """Refuse to overwrite a picture that was given."""
    given = {
        _identity(source)
        for _, source in named
        if isinstance(source, str | os.PathLike) and os.path.exists(source)
    }
    for name in _files_of(named):
        target = out / name
        if target.exists() and _identity(target) in given:
            raise ViqError(
                f"{target} is one of the given pictures and would be overwritten: choose another "
                "output folder"
            )


def _require_ours(
    named: Sequence[tuple[str, ImageInput]], manifest: Manifest, overwrite: bool
) -> None:
    """Refuse to replace files that no gallery made, or that have changed since."""
    for name in _files_of(named):
        place = manifest.path.parent / name
        if manifest.made(name) is None:
            require_free(place, overwrite=overwrite)


def _files_of(named: Sequence[tuple[str, ImageInput]]) -> list[str]:
    return [*_pair_files(name for name, _ in named), *_FOR_ALL]


def _pair_files(names: Iterable[str]) -> list[str]:
    """Codes and picture of each."""
    return [f"{name}.{kind}" for name in names for kind in ("viq", "png")]


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
