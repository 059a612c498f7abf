"""Make docs/gallery.jpg and docs/details.jpg: details at 1:1 of the pictures that come along.

    python scripts/make_gallery.py [--model viq-transform]

Of each picture a detail of the original, of what codes keep of it, and of a JPEG and a WebP file of
at most as many bytes as the codes. The choice of details is written below: some that suit the
codes, and some that do not, with small print and thin lines. details.jpg has the first three.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import viq
from viq.image import open_image
from viq.image.codecs import fit_codec
from viq.metrics.images import psnr
from viq.report.text import font, plain

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "src/viq/report/pictures"
# Name, and left and top of the detail in px.
DETAILS = (
    ("chelsea.jpg", 120, 40),
    ("coffee.jpg", 220, 100),
    ("chart.png", 0, 20),
    ("rocket.jpg", 180, 190),
    ("retina.jpg", 90, 230),
    ("shapes.png", 30, 60),
)
_SIDE = (200, 150)  # px of a detail
_GAP, _HEAD, _FOOT, _EDGE = 6, 26, 22, 10
_INK, _SOFT = "#1a1a1a", "#5f5f5f"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="viq-transform")
    model = parser.parse_args().model
    whole = gallery(viq.load(model), model)
    first = _EDGE + _HEAD + 3 * (_SIDE[1] + _FOOT + _GAP)
    for name, sheet in (
        ("gallery", whole),
        ("details", whole.crop((0, 0, whole.width, first))),
    ):
        path = ROOT / f"docs/{name}.jpg"
        sheet.save(path, quality=93, subsampling="4:4:4", optimize=True)
        print(f"wrote {path}, {sheet.width}x{sheet.height} px")


def gallery(tokenizer: viq.VisualTokenizer, name: str) -> Image.Image:
    width, height = _SIDE
    wide = 2 * _EDGE + 4 * width + 3 * _GAP
    row = height + _FOOT + _GAP
    sheet = Image.new("RGB", (wide, _EDGE + _HEAD + row * len(DETAILS)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(("original", name, "JPEG, same bytes", "WebP, same bytes")):
        place = (_EDGE + column * (width + _GAP), _EDGE + 16)
        draw.text(place, plain(head), _INK, font(15), anchor="ls")
    for line, (file, left, top) in enumerate(DETAILS):
        original = open_image(PICTURES / file)
        y = _EDGE + _HEAD + line * row
        for column, (picture, words) in enumerate(_versions(tokenizer, original)):
            x = _EDGE + column * (width + _GAP)
            if picture:
                sheet.paste(picture.crop((left, top, left + width, top + height)), (x, y))
            draw.text((x, y + height + 14), plain(words), _SOFT, font(12), anchor="ls")
    return sheet


def _versions(
    tokenizer: viq.VisualTokenizer, original: Image.Image
) -> list[tuple[Image.Image | None, str]]:
    """The original, its codes as a picture, and codecs within their bytes; what each takes."""
    (codes,) = tokenizer.encode([original])
    (painted,) = tokenizer.decode(codes)
    found: list[tuple[Image.Image | None, str]] = [
        (original, f"{3 * original.width * original.height:,} bytes"),
        (painted, _facts(original, painted, codes.nbytes)),
    ]
    for codec in ("jpeg", "webp"):
        fit = fit_codec(original, codec, codes.nbytes)
        found.append((fit[1], _facts(original, fit[1], len(fit[0]))) if fit else (None, "none"))
    return found


def _facts(original: Image.Image, picture: Image.Image, size: int) -> str:
    return f"{size:,} bytes, {psnr(np.asarray(original), np.asarray(picture)):.1f} dB"


if __name__ == "__main__":
    main()
