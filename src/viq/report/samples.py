"""Pictures that come with the package, to try things on: photos that anybody may use, and drawings.

`scripts/make_samples.py` made them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from viq.image.open import open_image

PICTURES = Path(__file__).parent / "pictures"


class Sample(NamedTuple):
    file: str
    credit: str


SAMPLES = {
    "chelsea": Sample("chelsea.jpg", "Photo: Stefan van der Walt, CC0"),
    "coffee": Sample("coffee.jpg", "Photo: Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0"),
    "rocket": Sample("rocket.jpg", "Photo: SpaceX, public domain"),
    "retina": Sample("retina.jpg", "Photo: Mikael Häggström, CC0"),
    "chart": Sample("chart.png", "Drawn by viq, CC0"),
    "shapes": Sample("shapes.png", "Drawn by viq, CC0"),
}


def sample_pictures() -> list[tuple[str, Image.Image]]:
    """Names and RGB pictures at their own sizes; the credit of each is in `info["credit"]`.

    Four photos, as JPEG files of high quality (92, no chroma subsampling), and two drawings:

    - chelsea, 451x300 px: a cat, by Stefan van der Walt; CC0.
    - coffee, 600x400 px: a cup, by Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0.
    - rocket, 640x427 px: launch of DSCOVR on a Falcon 9, by SpaceX; public domain.
    - retina, 640x640 px: fundus photograph of a left eye, by Mikael Häggström; CC0; made smaller.
    - chart, 448x320 px, and shapes, 256x256 px: drawn by `viq.data.synthetic`.
    """
    pictures = []
    for name, (file, credit) in SAMPLES.items():
        picture = open_image(PICTURES / file)
        picture.info["credit"] = credit
        pictures.append((name, picture))
    return pictures
