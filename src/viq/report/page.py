"""HTML pages that ask for nothing outside themselves, from the templates beside this file.

Whatever a template is given is escaped, unless it is `Markup`. Styles are in the page, pictures are
data URIs, and a policy in the head forbids requests, should an edited page hold any.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from viq.report.charts import INKS
from viq.report.gallery_common import encoded


@dataclass(frozen=True)
class Picture:
    """A picture in a page: its data URI and its size in px."""

    uri: str
    width: int
    height: int

    @classmethod
    def of(cls, image: Image.Image) -> Picture:
        """As WebP without loss."""
        data = base64.b64encode(encoded(image, "WEBP", lossless=True)).decode()
        return cls(f"data:image/webp;base64,{data}", image.width, image.height)


def render(template: str, **values: Any) -> str:
    """The page of a template."""
    return _environment().get_template(template).render(values, inks=list(INKS))


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,  # a value that a page forgot is an error, not a gap
        trim_blocks=True,
        lstrip_blocks=True,
    )
