"""The pages in a real browser: a photo and a broken file, the slider, a patch, a conversation, a
store, three widths. Set VIQ_SHOTS to a folder to keep the screenshots."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from web_browser import chromium
from web_client import opened, serving

from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.report.samples import PICTURES
from viq.web.app import make_app
from viq.web.config import WebConfig

pytest.importorskip("playwright", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium: apt-get install chromium")
WIDTHS = {1280: "light", 768: "dark", 390: "light"}
Shot = Callable[[str], Image.Image]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM
    with sync_playwright() as playwright, chromium(playwright, CHROMIUM) as found:
        yield found


@pytest.fixture(params=list(WIDTHS))
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of one width, on which no script fails and which asks for nothing elsewhere."""
    width = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=WIDTHS[width]
    )
    context.set_default_timeout(120_000)  # of a machine that is busy
    found, faults = context.new_page(), []
    found.on("pageerror", lambda error: faults.append(str(error)))
    found.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    found.on("request", lambda asked: faults.append(asked.url) if foreign(asked.url) else None)
    yield found
    context.close()
    assert not faults


def foreign(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "data:", "blob:"))


@pytest.fixture
def shot(page: Any) -> Shot:
    """Take a screenshot of the whole page, which must not be wider than the window."""

    def take(name: str) -> Image.Image:
        width = page.viewport_size["width"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        data = page.screenshot(full_page=True)
        if folder := os.environ.get("VIQ_SHOTS"):
            (Path(folder) / f"{name}-{width}.png").write_bytes(data)
        return opened(data)

    return take


def bring(page: Any, served: str, file: Path) -> None:
    page.goto(served)
    page.set_input_files("#file", file)
    page.wait_for_url("**/picture/*")
    page.wait_for_function("() => document.querySelector('[data-codes] b').textContent !== '–'")


def test_a_photo_and_a_broken_file(page: Any, served: str, shot: Shot, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((PICTURES / "chelsea.jpg").read_bytes()[:3000])
    page.goto(served)
    shot("home")
    page.set_input_files("#file", broken)
    page.wait_for_selector(".status .bad")
    told = page.inner_text("[data-status]")
    assert "broken.jpg" in told and "\n" not in told
    assert page.url.rstrip("/") == served  # the page is still there for another
    bring(page, served, PICTURES / "chelsea.jpg")
    assert page.inner_text("h1") == "chelsea.jpg"
    assert re.search(r"PSNR", page.inner_text("table"))
    page.wait_for_load_state("networkidle")
    shot("picture")


def test_the_slider_moves(page: Any, served: str) -> None:
    """By keyboard: at 100% the stage shows the original, at 0% what the codes decode to."""
    bring(page, served, PICTURES / "coffee.jpg")
    slider = page.locator("[data-slider]")
    assert slider.input_value() == "50"
    seen = {}
    for key, value in (("End", "100"), ("Home", "0")):
        slider.focus()
        page.keyboard.press(key)
        assert slider.input_value() == value
        page.evaluate("document.querySelector('[data-mark]').style.display = 'none'")
        page.evaluate("document.querySelector('[data-bar]').style.display = 'none'")
        seen[value] = opened(page.locator("[data-stage]").screenshot())
    base = page.url
    for value, file in (("100", "original"), ("0", "viq")):
        wanted = opened(page.request.get(f"{base}/file/{file}").body())
        error = [np.abs(np.asarray(seen[v].resize(wanted.size), int) - np.asarray(wanted)).mean()
                 for v in (value, "0" if value == "100" else "100")]  # fmt: skip
        assert error[0] < error[1], (value, error)
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert "inset(0px 99% 0px 0px)" in page.eval_on_selector(
        "[data-over]", "image => image.style.clipPath"
    )


def test_a_patch_by_pointer_and_keyboard(page: Any, served: str, shot: Shot) -> None:
    bring(page, served, PICTURES / "shapes.png")
    box = page.locator("[data-stage]").bounding_box()
    side = box["width"] / 256 * 16  # 16 patches across
    page.mouse.click(box["x"] + 3.5 * side, box["y"] + 5.5 * side)
    assert (page.input_value("[data-row]"), page.input_value("[data-col]")) == ("5", "3")
    page.locator("[data-col]").focus()
    page.keyboard.press("ArrowUp")
    assert page.input_value("[data-col]") == "4"
    wanted = page.request.get(f"{page.url}/patch/5/4").json()["codes"]
    page.wait_for_function(
        "id => document.querySelector('[data-codes] b').textContent === id",
        arg=str(wanted[0]["id"]),
    )
    shown = page.eval_on_selector_all("[data-codes] b", "all => all.map(x => x.textContent)")
    assert shown == [str(code["id"]) for code in wanted]
    page.check("[data-show=bits]")
    page.check("[data-show=lines]")
    assert page.locator("[data-legend]").is_visible()
    page.wait_for_load_state("networkidle")
    shot("overlays")
    page.check("input[value=jpeg]")
    assert page.inner_text("[data-under-name]") == "JPEG"


def test_drop_and_paste(page: Any, served: str) -> None:
    """A picture that another program hands over, by both ways."""
    data = list((PICTURES / "shapes.png").read_bytes())
    for event in ("drop", "paste"):
        page.goto(served)
        page.evaluate(
            """([data, event]) => {
              const file = new File([new Uint8Array(data)], "handed.png", { type: "image/png" });
              const all = new DataTransfer();
              all.items.add(file);
              const options = event === "drop" ? { dataTransfer: all } : { clipboardData: all };
              const kind = event === "drop" ? DragEvent : ClipboardEvent;
              dispatchEvent(new kind(event, { bubbles: true, cancelable: true, ...options }));
            }""",
            [data, event],
        )
        page.wait_for_url("**/picture/*")
        assert page.inner_text("h1") == "handed.png"


def test_a_conversation(page: Any, served: str, shot: Shot) -> None:
    bring(page, served, PICTURES / "shapes.png")
    page.click("text=Ask about it")
    page.fill("#question", "What color is the triangle?")
    page.keyboard.press("Enter")
    said = page.locator(".said p")
    page.wait_for_function("() => !document.querySelector('[data-ask]').dataset.busy")
    answer = said.last.inner_text()
    assert answer not in ("", "…", "(no answer)")
    shot("ask")
    page.reload()
    assert said.last.inner_text() == answer  # history
    page.click("text=New conversation")
    assert said.count() == 0


def test_the_token(browser: Any, tokenizer: VisualTokenizer) -> None:
    """As visitors of another address give it."""
    with serving(make_app(WebConfig(token="t" * 20, chat=None), tokenizer)) as address:
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        assert page.url == f"{address}/login"
        page.fill("#token", "wrong" * 5)
        page.keyboard.press("Enter")
        page.wait_for_selector("text=That is not the token")
        page.fill("#token", "t" * 20)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{address}/")
        assert page.inner_text("h1") == "What codes keep of a picture"
        context.close()


def test_pages_of_a_store(page: Any, served: str, shot: Shot) -> None:
    page.goto(f"{served}/store/0")
    assert page.locator(".cards li").count() == 24
    page.wait_for_load_state("networkidle")
    shot("store")
    page.click("text=Next")
    page.wait_for_url("**at=2")
    assert "key0024" in page.inner_text(".cards")
    page.fill("input[name=key]", "0599")
    page.keyboard.press("Enter")
    page.wait_for_url("**key=0599**")
    assert page.locator(".cards li").count() == 1
    page.goto(f"{served}/store/0?at=1")
    page.click("a[aria-label='Open key0000']")
    page.wait_for_url("**/picture/*")
    page.click("text=Near-duplicates")
    page.wait_for_url("**/found/*")
    assert page.inner_text(".cards .key >> nth=0") == "key0000"


def test_a_run(page: Any, served: str, shot: Shot) -> None:
    page.goto(f"{served}/runs/0")
    assert page.locator("svg").count() > 5
    page.wait_for_load_state("networkidle")
    shot("run")


def test_nothing_moves_while_pages_load(page: Any, served: str) -> None:
    """The cumulative layout shift of each view stays below what counts as good, 0.1."""
    bring(page, served, PICTURES / "chelsea.jpg")
    for address in ("/", page.url.removeprefix(served), "/store/0", "/runs/0"):
        page.goto(served + address)
        page.wait_for_load_state("networkidle")
        moved = page.evaluate(
            """() => new Promise((done) => {
              let sum = 0;
              new PerformanceObserver((list) => {
                for (const entry of list.getEntries()) sum += entry.value;
              }).observe({ type: "layout-shift", buffered: true });
              setTimeout(() => done(sum), 300);
            })"""
        )
        assert moved < 0.1, (address, moved)


def test_everything_is_reached_by_keyboard(page: Any, served: str) -> None:
    bring(page, served, PICTURES / "shapes.png")
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.outerHTML.slice(0, 80)"))
    text = "\n".join(reached)
    for wanted in ("Skip to", "data-slider", "name=\"under\"", "data-show=\"lines\"", "data-row",
                   "data-zoom", "codes.viq", "/ask/"):  # fmt: skip
        assert wanted in text, wanted
