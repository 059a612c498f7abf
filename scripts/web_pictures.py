"""The animated picture of docs/web.md: `viq web` in a browser, a few steps through its views.

    viq web --store codes &
    python scripts/web_pictures.py http://127.0.0.1:7860 -o docs/web.webp

Needs Chromium at /usr/bin/chromium and playwright. Screenshots are scaled to three quarters, which
makes letters smaller but no page simpler.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image

from viq.report.samples import PICTURES

_OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
_SIZE = (1200, 820)  # px of the window


class Film:
    """Frames and how long each is shown, ms."""

    def __init__(self, page: Any) -> None:
        self._page = page
        self.frames, self.times = list[Image.Image](), list[int]()

    def take(self, ms: int) -> None:
        data = self._page.screenshot()
        image = Image.open(io.BytesIO(data)).convert("RGB")
        self.frames.append(image.resize((image.width * 3 // 4, image.height * 3 // 4)))
        self.times.append(ms)


def play(page: Any, address: str) -> Film:
    film = Film(page)
    page.goto(address)
    page.wait_for_load_state("networkidle")
    film.take(1500)
    page.set_input_files("#file", PICTURES / "chelsea.jpg")
    page.wait_for_url("**/picture/*")
    page.wait_for_load_state("networkidle")
    film.take(900)
    for share in (65, 80, 95, 75, 50, 25, 5, 30, 50):
        page.locator("[data-slider]").fill(str(share))
        film.take(220)
    for row, col in ((6, 9), (6, 10), (6, 11), (7, 20)):
        page.locator("[data-row]").fill(str(row))
        page.locator("[data-col]").fill(str(col))
        page.wait_for_timeout(600)
        film.take(700)
    page.check("[data-show=bits]")
    page.check("[data-show=lines]")
    page.wait_for_timeout(800)
    film.take(1600)
    page.goto(page.url.replace("/picture/", "/ask/"))
    page.fill("#question", "What is this?")
    film.take(700)
    page.keyboard.press("Enter")
    page.wait_for_function("() => !document.querySelector('[data-ask]').dataset.busy")
    film.take(1800)
    page.goto(f"{address}/store/0")
    page.wait_for_load_state("networkidle")
    film.take(2000)
    return film


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=_OPTIONS)
        page = browser.new_page(viewport={"width": _SIZE[0], "height": _SIZE[1]})
        page.set_default_timeout(120_000)
        film = play(page, options.address)
        browser.close()
    first, *rest = film.frames
    first.save(
        options.out, "WEBP", save_all=True, append_images=rest, duration=film.times, loop=0,
        quality=80, method=6,
    )  # fmt: skip
    print(f"{options.out}: {len(film.frames)} frames, {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
