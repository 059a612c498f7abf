"""The picture view: what it shows is what tokenizer and codecs give, and what it refuses."""

import io
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from web_client import Visitor, opened, png, visitor
from web_stores import HOSTILE

from viq.core.codes import Codes
from viq.image.codecs import fit_codec
from viq.image.open import open_image
from viq.metrics.images import psnr
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.report.samples import PICTURES
from viq.web import patches
from viq.web.app import make_app
from viq.web.config import Limits, WebConfig

PHOTO = (PICTURES / "chelsea.jpg").read_bytes()
HTML = {"Accept": "text/html"}


def test_a_photo_its_codes_and_files(client: Visitor, tokenizer: VisualTokenizer) -> None:
    original = open_image(PHOTO)
    name = client.bring(PHOTO, "my cat.jpg")
    codes = tokenizer.encode(original)[0]
    decoded = tokenizer.decode(codes)[0]
    downloaded = client.get(f"/picture/{name}/codes.viq")
    assert Codes.from_bytes(downloaded.content) == codes
    assert downloaded.headers["content-disposition"] == 'attachment; filename="my_cat.viq"'
    assert opened(client.get(f"/picture/{name}/decoded.png").content) == decoded
    assert opened(client.get(f"/picture/{name}/file/original").content) == original
    page = client.get(f"/picture/{name}", headers=HTML).text
    size = len(codes.to_bytes())
    assert f"{size:,}" in page and f"{codes.total:,}" in page and "my cat.jpg" in page
    assert f"{psnr(np.asarray(original), np.asarray(decoded)):.2f}" in page
    for codec in ("jpeg", "webp"):
        fitted = fit_codec(original, codec, size)
        assert fitted and len(fitted[0]) <= size
        assert client.get(f"/picture/{name}/file/{codec}").content == fitted[0]
        assert f"{psnr(np.asarray(original), np.asarray(fitted[1])):.2f}" in page


def test_one_patch(client: Visitor, tokenizer: VisualTokenizer) -> None:
    name = client.bring(PHOTO)
    codes = tokenizer.encode(PHOTO)[0]
    bits = tokenizer.entropy.patch_bits(codes)
    for row, col in ((0, 0), (4, 7), (18, 28)):
        told = client.get(f"/picture/{name}/patch/{row}/{col}").json()
        assert [each["id"] for each in told["codes"]] == codes.ids[row, col].tolist()
        assert told["bits"] == round(float(bits[row, col]), 1)
        alone = opened(client.get(f"/picture/{name}/patch/{row}/{col}/alone.png").content)
        one = Codes(codes.ids[row : row + 1, col : col + 1].copy(), (16, 16))
        assert alone == tokenizer.decode(one)[0]
    for place in ("19/0", "0/29", "-1/0", "0/x", "99999999999/0"):
        assert client.get(f"/picture/{name}/patch/{place}").status_code in (404, 422)
    colours = opened(client.get(f"/picture/{name}/bits.png").content)
    assert colours.size == (451, 300)
    row, col = np.unravel_index(bits.argmax(), bits.shape)
    assert colours.getpixel((int(col) * 16 + 2, int(row) * 16 + 2)) == (246, 225, 85)


def test_what_codes_say(tokenizer: VisualTokenizer) -> None:
    """The digits that are told are those that codes are made of."""
    code = tokenizer.quantizer.code
    codes = tokenizer.encode(PHOTO)[0]
    for row, col in ((0, 0), (1, 1), (7, 12)):
        says = patches._digits(code, codes.ids[row, col])
        assert len(says) == 4 and says[0].startswith("class ")
        assert says[3].startswith("meaning" if (row % 2, col % 2) == (0, 0) else "digits")
        kind = int(re.findall(r"class (\d+)", says[0])[0])
        for slot in (1, 2):
            digits = [int(d) for d in re.findall(r"\d+", says[slot].partition("digits")[2])]
            radices = [int(r) for r in code.radices[kind, slot].tolist() if r > 1]
            number = 0
            for digit, radix in zip(digits, radices, strict=True):
                number = number * radix + digit
            assert number == codes.ids[row, col, slot]
    fsq = load("viq-tiny")
    assert patches._levels(1 + 8 * 2 + 64 * 3, fsq.levels) == "levels 1 2 3 0 0 0"


def test_a_viq_file_comes_back(client: Visitor, tokenizer: VisualTokenizer) -> None:
    codes = tokenizer.encode(PHOTO)[0]
    name = client.bring(codes.to_bytes(), "a.viq")
    assert Codes.from_bytes(client.get(f"/picture/{name}/codes.viq").content) == codes
    assert client.get(f"/picture/{name}/file/original").status_code == 404
    assert "no original" in client.get(f"/picture/{name}", headers=HTML).text
    damaged = bytearray(codes.to_bytes())
    damaged[100] ^= 1
    assert "checksum" in client.error("/picture", files={"file": ("a.viq", bytes(damaged))})
    other = load("viq-tiny").encode(tiny.picture(0))[0]
    assert "were made by" in client.error("/picture", files={"file": ("a.viq", other.to_bytes())})


def bomb(width: int, height: int) -> bytes:
    """A PNG file of few bytes that claims many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 2**16)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no picture at all", "a.png"),
        (PHOTO[:2000], "a.png"),
        (b"%PDF-1.4", "a.png"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "a.png"),
        (bomb(60_000, 60_000), "more than the limit"),
        (bomb(2000, 2000), "more than the limit"),
        (b"ViQc" + b"\xff" * 100, "codes of format 255"),
    ],
)
def test_what_is_no_picture_is_one_line(client: Visitor, data: bytes, words: str) -> None:
    assert words in client.error("/picture", files={"file": ("a.png", data)})


def test_nothing_or_no_sample(client: Visitor) -> None:
    answer = client.submit("/picture", files={"file": ("a.png", b"")})
    assert (answer.status_code, "empty" in answer.json()["error"]) == (400, True)
    assert client.submit("/picture", data={"sample": "../README.md"}).status_code == 404
    assert client.submit("/picture", data={"other": "x"}).status_code == 404
    assert client.submit("/picture", content=b"{}").status_code in (400, 404)


def test_names_are_text(client: Visitor) -> None:
    picture = png(tiny.picture(0))
    for given in (HOSTILE, '"><img src=x onerror=alert(1)>', "a\r\nSet-Cookie: x=1", "‮gnp.exe"):
        name = client.done("/picture", files={"file": (given, picture)})["picture"]
        page = client.get(f"/picture/{name}", headers=HTML)
        assert "<script>alert" not in page.text and "<img src=x" not in page.text
        assert "‮" not in page.text
        head = client.get(f"/picture/{name}/codes.viq").headers
        assert re.fullmatch(r'attachment; filename="[\w.-]+\.viq"', head["content-disposition"])
        home = client.get("/", headers=HTML).text
        assert "<script>alert" not in home and "<img src=x" not in home


def test_a_large_picture_is_made_smaller(client: Visitor) -> None:
    name = client.bring(png(Image.new("RGB", (800, 600), "teal")))  # more than the 200,000 px
    page = client.get(f"/picture/{name}", headers=HTML).text
    assert "Made smaller, from 800 × 600 px" in page
    width, height = opened(client.get(f"/picture/{name}/decoded.png").content).size
    assert 190_000 < width * height <= 200_000


def test_turned_and_odd_pictures(client: Visitor) -> None:
    """EXIF turns are applied, and pictures of one pixel, of grey or of 16 bits are shown."""
    turned = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    turned.save(stream, "JPEG", exif=exif)
    name = client.bring(stream.getvalue(), "a.jpg")
    assert opened(client.get(f"/picture/{name}/decoded.png").content).size == (20, 40)
    for odd in (Image.new("L", (1, 1)), Image.new("I;16", (17, 3)), Image.new("RGBA", (5, 90))):
        name = client.bring(png(odd))
        assert client.get(f"/picture/{name}", headers=HTML).status_code == 200
        assert opened(client.get(f"/picture/{name}/decoded.png").content).size == odd.size


def test_each_visitor_has_own_pictures(app: Any, client: Visitor) -> None:
    name = client.bring(png(tiny.picture(3)), "mine.png")
    assert "mine.png" in client.get("/", headers=HTML).text
    with visitor(app) as other:
        assert "mine.png" not in other.get("/", headers=HTML).text
        # Who is given the address may look: it cannot be guessed.
        assert len(name) >= 22
        assert other.get(f"/picture/{name}").status_code == 200


def test_old_pictures_make_room(tokenizer: VisualTokenizer) -> None:
    app = make_app(WebConfig(limits=Limits(kept_bytes=300_000), chat=None), tokenizer)
    with visitor(app) as client:
        names = [client.bring(png(tiny.picture(i, 160, 160))) for i in range(6)]
        found = [client.get(f"/picture/{name}").status_code for name in names]
        assert found[0] == 404 and found[-1] == 200
        assert "room" in client.get(f"/picture/{names[0]}", headers=HTML).text
        assert client.get("/ask", headers=HTML).status_code == 404  # no chat here


def test_events_are_json_lines(client: Visitor) -> None:
    events = client.events("/picture", files={"file": ("a.png", png(tiny.picture(1)))})
    assert {"encoding", "decoding"} <= {event.get("stage") for event in events}
    assert json.loads(json.dumps(events)) == events and list(events[-1]) == ["done"]


def test_errors_are_pages_for_people_and_json_for_scripts(client: Visitor) -> None:
    page = client.get("/picture/none", headers=HTML)
    assert page.status_code == 404 and "<h1>" in page.text
    assert client.get("/picture/none").json().keys() == {"error"}
    assert client.get("/picture").status_code == 405


def test_photos_of_many_kinds(data: Path, client: Visitor) -> None:
    """Real files: each is shown or refused in one line."""
    files = sorted((data / "robustness").rglob("*"))[:40] if (data / "robustness").is_dir() else []
    files = [f for f in files if f.is_file() and f.stat().st_size < 900_000]
    if not files:
        pytest.skip("needs robustness/ in VIQ_DATA")
    for file in files:
        events = client.events("/picture", files={"file": (file.name, file.read_bytes() or b"x")})
        assert events[-1].keys() <= {"done", "error"}, file
        assert "went wrong" not in events[-1].get("error", ""), (file, events[-1])
