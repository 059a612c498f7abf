"""Charts as SVG files of their own, which follow light and dark, in the colours of all pages."""

from __future__ import annotations

import re
from pathlib import Path

from viq.report.charts import INKS

_PALETTE = Path(__file__).parent / "templates/page.css"


def standing(svg: str) -> str:
    """An <svg> element as a file of its own, which follows light and dark."""
    light, dark = colours()
    style = f"svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}{rules('')}"
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    return svg.replace("<svg ", head, 1).replace(">", f"><style>{style}</style>", 1) + "\n"


def colours() -> tuple[str, str]:
    """Properties with the colours of reports, light and dark."""
    light, dark = (
        "".join(f"--chart-{name}:{value};" for name, value in re.findall(r"--(\w+): (#\w+)", text))
        for text in re.findall(r":root \{(.*?)\}", _PALETTE.read_text(), re.DOTALL)
    )
    return light, dark


def rules(before: str) -> str:
    font = "font-family:system-ui,'Segoe UI','Helvetica Neue',Arial,sans-serif"
    shape = "fill:none;stroke-linecap:round;stroke-linejoin:round"
    inks = "".join(
        f"{before}.stroke-{ink}{{stroke:var(--chart-{ink})}}"
        f"{before}.fill-{ink}{{fill:var(--chart-{ink})}}"
        for ink in INKS
    )
    return f"{before}text{{{font}}}{before}path{{{shape}}}{inks}"
