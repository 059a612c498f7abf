"""Make the pictures that `viq demo` shows: `python scripts/make_samples.py`, with scikit-image.

Photos in the public domain or under CC0 from the files of scikit-image 0.26, and two pictures that
the project draws. Run again, it gives the same pixels with the same releases of Pillow and numpy.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from viq.data.synthetic.draw import draw
from viq.report.samples import PICTURES, SAMPLES

_PHOTOS = {"chelsea": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg",
           "retina": "retina.jpg"}  # fmt: skip
_DRAWN = {"chart": ("chart", (320, 448), 3), "shapes": ("scene", (256, 256), 1)}
_LARGEST_SIDE = 640  # px; the retina has 1,411
_JPEG = {"quality": 92, "subsampling": 0, "optimize": True}


def main() -> None:
    found = find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install scikit-image")
    folder = Path(found.submodule_search_locations[0], "data")
    for name, file in _PHOTOS.items():
        photo = Image.open(folder / file).convert("RGB")
        photo.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
        photo.save(PICTURES / SAMPLES[name].file, "JPEG", **_JPEG)
    for name, (kind, size, seed) in _DRAWN.items():
        draw(kind, size, seed).image.save(PICTURES / SAMPLES[name].file, "PNG", optimize=True)


if __name__ == "__main__":
    main()
