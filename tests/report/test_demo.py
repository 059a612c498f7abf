"""The gallery of a tiny random tokenizer: all files, and nothing from outside in the page."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from viq.core.codes import Codes
from viq.core.levels import PRESETS
from viq.image.open import open_image
from viq.models.tokenizer.decoder import DecoderConfig
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.report import gallery_common as parts
from viq.report import text
from viq.report.gallery import make_gallery
from viq.report.samples import PICTURES, SAMPLES, sample_pictures

VOID = {"meta", "img"}


def random_model(decoder: DecoderConfig | None) -> VisualTokenizer:
    torch.manual_seed(0)
    config = tiny.config(name="random <model>", decoder=decoder, tile=0)
    model = VisualTokenizer(config).eval()
    for parameter in model.parameters():  # some start at zero, which would hide the input
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> VisualTokenizer:
    return random_model(DecoderConfig(width=32, depth=1))


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


class Page(HTMLParser):
    """Tags with their attributes; fails where they do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_gallery_of_all_sizes(tokenizer, tmp_path):
    photo = noise(300, 220)
    photo.info["credit"] = "Jo & Co, CC0"
    sizes = {"dot": (1, 1), "strip": (700, 3), "tall": (5, 40), "a & <b>": (300, 220)}
    sources = [(name, noise(*size)) for name, size in list(sizes.items())[:3]]
    calls: list[int] = []
    summary = make_gallery(
        tokenizer, [*sources, ("a & <b>", photo)], tmp_path, title="T & <t>", progress=calls.append
    )
    assert calls == [1, 2, 3, 4]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert sorted(summary["files"]) == sorted(path.name for path in tmp_path.iterdir())

    safe = {"a & <b>": "a & _b_"}
    for row, (label, (width, height)) in zip(summary["images"], sizes.items(), strict=True):
        name = safe.get(label, label)
        data = (tmp_path / f"{name}.viq").read_bytes()
        codes = Codes.from_bytes(data)
        decoded = open_image(tmp_path / f"{name}.png")
        assert row["name"] == name
        assert decoded.size == (row["width"], row["height"]) == (width, height)
        assert codes.size == (height, width)
        assert decoded.tobytes() == tokenizer.decode(codes)[0].tobytes()
        assert row["grid"] == list(codes.grid)
        assert row["codes"] == codes.ids.size
        assert row["bytes"] == len(data) == 28 + 2 * codes.ids.size
        assert row["ratio"] == 3 * width * height / len(data)
        assert row["bpp"] == 8 * len(data) / (width * height)
    dot, strip, _, last = summary["images"]
    assert dot["jpeg"] is None  # no JPEG file has 36 bytes
    assert dot["detail"] == [0, 0, 1, 1]
    assert strip["detail"][2:] == [192, 3]
    assert last["credit"] == "Jo & Co, CC0"
    assert last["jpeg"]["bytes"] <= last["bytes"]

    text = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search("https?:|url\\(|@import", text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    sources_shown = [image["src"] or "" for image in page.of("img")]
    jpegs = sum(row["jpeg"] is not None for row in summary["images"])
    assert len(sources_shown) == 2 * (2 * 4 + jpegs)  # whole and detail
    for image, source in zip(page.of("img"), sources_shown, strict=True):
        head, data = source.split(",")
        assert head == "data:image/webp;base64"
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (str(shown.width), str(shown.height)) == (image["width"], image["height"])
        assert image["alt"]
    assert {link["href"] for link in page.of("a")} >= {"dot.viq", "a%20%26%20_b_.png"}
    for words in ("T & <t>", "random <model>", "Jo & Co, CC0", "does not fit in 36 bytes"):
        assert words in page.words

    with Image.open(tmp_path / "gallery.png") as sheet:
        assert sheet.width == 1584


def test_names_come_from_paths_and_never_collide(tokenizer, tmp_path):
    (tmp_path / "sub").mkdir()
    paths = [tmp_path / "Cat.png", tmp_path / "sub" / "cat.png", tmp_path / "gallery.bmp"]
    for path in paths:
        noise(8, 8).save(path)
    sources = [*paths, noise(8, 8), ("../x", np.asarray(noise(8, 8))), (" .", paths[0])]
    summary = make_gallery(tokenizer, sources, tmp_path / "out", title="names")
    names = [row["name"] for row in summary["images"]]
    assert names == ["Cat", "cat-2", "gallery-2", "image-4", "_x", "image"]


def test_given_pictures_are_never_overwritten(tokenizer, tmp_path):
    path = tmp_path / "photo.png"
    noise(8, 8).save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"photo\.png is one of the given pictures"):
        make_gallery(tokenizer, [path], tmp_path, title="t")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_that_cannot_be_read_are_named(tokenizer, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<nonsense>")
    out = tmp_path / "out"
    summary = make_gallery(tokenizer, [bad, noise(20, 20)], out, title="t")
    assert [item["name"] for item in summary["failed"]] == ["bad"]
    assert [row["name"] for row in summary["images"]] == ["image-2"]
    assert "bad is left out" in Page((out / "gallery.html").read_text(encoding="utf-8")).words
    with pytest.raises(ValueError, match=r"no picture to show: .*bad\.png"):
        make_gallery(tokenizer, [bad], out, title="t")
    with pytest.raises(ValueError, match="give at least one"):
        make_gallery(tokenizer, [], out, title="t")


def test_a_tokenizer_without_decoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no pixel decoder"):
        make_gallery(random_model(None), [noise(8, 8)], tmp_path / "out", title="t")
    assert not (tmp_path / "out").exists()


def test_the_detail_is_where_the_texture_is():
    picture = np.full((400, 640, 3), 128, np.uint8)
    picture[:, :200] = 0  # one bold edge must not win
    picture[200:392, 440:632] = np.asarray(noise(192, 192))
    left, top, width, height = parts.most_detailed(Image.fromarray(picture))
    assert (left, top, width, height) == (440, 200, 192, 192)


def test_fitting_never_invents_pixels():
    assert parts.fitted(noise(1000, 500), (480, 320)).size == (480, 240)
    assert parts.fitted(noise(2000, 1), (480, 320)).size == (480, 1)
    assert parts.fitted(noise(450, 300), (480, 320)).size == (450, 300)
    small = noise(100, 100)
    large = parts.fitted(small, (480, 320))
    assert large.size == (300, 300)
    assert large.resize((100, 100), Image.Resampling.NEAREST).tobytes() == small.tobytes()


def test_sheet_text_has_only_known_glyphs_and_fits():
    assert text.plain("Häggström 2 × 2 · 日") == "Haggstrom 2 x 2 · ?"
    lines = text.wrapped("two words " + "w" * 80, 20, 200)
    assert "".join(lines).replace(" ", "") == "twowords" + "w" * 80
    assert all(text.font(20).getlength(line) <= 200 for line in lines)


def test_sample_pictures_come_with_the_package():
    pictures = sample_pictures()
    assert {name: picture.size for name, picture in pictures} == {
        "chelsea": (451, 300),
        "coffee": (600, 400),
        "rocket": (640, 427),
        "retina": (640, 640),
        "chart": (448, 320),
        "shapes": (256, 256),
    }
    listed = (PICTURES / "README.md").read_text()
    for name, picture in pictures:
        assert picture.mode == "RGB" and SAMPLES[name].file in listed
        assert re.search("CC0|public domain", picture.info["credit"])
    assert {file.name for file in PICTURES.glob("*.*g")} == {s.file for s in SAMPLES.values()}
    assert sum(file.stat().st_size for file in PICTURES.iterdir()) < 400_000


def test_levels_are_those_of_the_tokenizer(tokenizer, tmp_path):
    summary = make_gallery(tokenizer, [Path(_saved(tmp_path))], tmp_path / "out", title="t")
    assert summary["tokenizer"]["levels"] == list(PRESETS["64k"])
    assert summary["tokenizer"]["codebook"] == 64000
    assert summary["tokenizer"]["fingerprint"] == tokenizer.fingerprint


def _saved(folder: Path) -> Path:
    noise(30, 20).save(folder / "one.png")
    return folder / "one.png"
