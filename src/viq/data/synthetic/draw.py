"""Pictures this project draws itself, with exact descriptions: training without outside data.

    drawing = draw("chart", (256, 320), seed=7)
    drawing.image, drawing.facts["values"]

Only Pillow and numpy are needed. Pixels depend on the arguments alone (and on the Pillow and numpy
releases), as long as `system_fonts` stays off.
"""

import random
from collections.abc import Callable

from viq.data.synthetic.canvas import SyntheticImage, fonts
from viq.data.synthetic.charts import draw_chart
from viq.data.synthetic.fields import draw_gradient
from viq.data.synthetic.pages import draw_text, draw_word
from viq.data.synthetic.shapes import draw_plain, draw_scene, draw_shapes

__all__ = ["KINDS", "SIMPLE_KINDS", "SyntheticImage", "draw", "fonts"]

_Draw = Callable[[tuple[int, int], random.Random, bool], SyntheticImage]
_RICH: dict[str, _Draw] = {
    "text": draw_text,
    "chart": draw_chart,
    "shapes": draw_shapes,
    "gradient": draw_gradient,
}
_SIMPLE: dict[str, _Draw] = {
    "scene": draw_scene,
    "word": draw_word,
    "plain": lambda size, rng, system_fonts: draw_plain(size, rng),
    "single": lambda size, rng, system_fonts: draw_plain(size, rng, "single", (1,)),
    "several": lambda size, rng, system_fonts: draw_plain(size, rng, "several", (1, 2, 3, 4)),
}
_DRAW = _RICH | _SIMPLE
KINDS: tuple[str, ...] = tuple(_RICH)  # what tokenizers train on: adding one changes their data
SIMPLE_KINDS: tuple[str, ...] = tuple(_SIMPLE)  # few and large things, for small language models
_SMALLEST, _LARGEST = 16, 2048


def draw(
    kind: str, size: tuple[int, int], seed: int, *, system_fonts: bool = False
) -> SyntheticImage:
    """Draw one picture of `kind`, `size` = (height, width) in px, each 16 to 2048.

    The same arguments give the same pixels and facts. With `system_fonts` text also uses fonts
    found on this machine (`fonts()`), so pixels then differ between machines.
    Raises ValueError for an unknown kind or a size out of range.
    """
    if kind not in _DRAW:
        raise ValueError(f"unknown kind {kind!r}: use one of {', '.join(_DRAW)}")
    height, width = size
    if not all(_SMALLEST <= side <= _LARGEST for side in (height, width)):
        raise ValueError(
            f"size {size} is (height, width) in pixels: both must be {_SMALLEST} to {_LARGEST}"
        )
    # A text seed is hashed with SHA-512, so near seeds and sizes give unrelated pictures.
    rng = random.Random(f"{kind} {height} {width} {seed}")
    return _DRAW[kind]((height, width), rng, system_fonts)
