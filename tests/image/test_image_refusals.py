"""What the image opener refuses, in one line; warnings, threads, and a folder of odd files.

Set VIQ_DATA to the folder that holds robustness/manifest.jsonl to run the tests on that set.
"""

import io
import json
import os
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from images_by_hand import UPRIGHT, encode, png, refusal, rgb
from PIL import Image

from viq.image import open as viq_image
from viq.image.open import ImageError, open_image

# Refusals: each names the input and the reason.


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty (zero bytes)"),
        (b"Hello, I am a text.\n", "is text"),
        ("Grüße".encode()[:3], "is text"),
        (b"\xef\xbb\xbf \n<!DOCTYPE html><p>404", "HTML page"),
        (b"<?xml version='1.0'?><svg/>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (bytes(2048), "not an image"),
        (b"\xff", "not an image"),
        (encode(Image.new("RGB", (9, 9)))[:20], "starts like PNG, but its header is damaged"),
        (encode(Image.new("RGB", (9, 9)), "JPEG")[:40], "starts like JPEG, but its header"),
        (encode(Image.new("RGB", (9, 9)), "JPEG")[:-5], "JPEG data is truncated"),
        (png(0, 5), "PNG"),
    ],
)
def test_what_is_not_an_image(tmp_path, data, reason):
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    message = refusal(path)
    assert message.startswith(f"{path}: ") and reason in message
    assert refusal(data).startswith("bytes: ") and reason in refusal(data)
    assert refusal(data, name="row 7").startswith("row 7: ")


@pytest.mark.parametrize(
    "fmt, options",
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("GIF", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("QOI", {}),
        ("TIFF", {}),
        ("JPEG2000", {"tile_size": (8, 8)}),
    ],
)
def test_cut_anywhere_refuses_or_loses_no_pixel(fmt, options):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    data = encode(Image.fromarray(pixels), fmt, **options)
    whole = rgb(data)
    refused = 0
    for length in range(len(data)):
        try:
            assert rgb(data[:length]) == whole
        except ImageError:
            refused += 1
    assert refused > 0.9 * len(data)


def test_declared_bomb():
    assert "60000x60000 pixels" in refusal(png(60000, 60000, (b"IDAT", b"")))
    assert "2147483647x1 pixels" in refusal(png(2**31 - 1, 1, (b"IDAT", b"")))


def test_real_bomb_below_the_limit():
    data = encode(Image.new("1", (9000, 9000)))
    assert "decompression bomb" in refusal(data, name="grey.png")


def test_text_chunk_bomb():
    text = b"note\0\0" + zlib.compress(bytes(80_000_000))
    assert "too large" in refusal(png(1, 1, (b"zTXt", text), (b"IDAT", b"")))


def test_decode_limit():
    image = Image.new("RGB", (10, 10))
    for source in (image, encode(image), np.asarray(image)):
        assert open_image(source, decode_limit=100).size == (10, 10)
        assert "10x10 pixels are more than the limit of 99" in refusal(source, decode_limit=99)


@pytest.mark.parametrize(
    "array, reason",
    [
        (np.full((2, 2), 2, np.float32), "values from 2 to 2 are not in [0, 1]"),
        (np.zeros((2, 2), bool), "dtype is bool"),
        (np.zeros((2, 2, 2), np.uint8), "shape is (2, 2, 2)"),
        (np.zeros(3, np.uint8), "shape is (3,)"),
        (np.zeros((1, 2, 2, 3), np.uint8), "shape is (1, 2, 2, 3)"),
        (np.zeros((0, 2, 3), np.uint8), "no pixels"),
    ],
)
def test_wrong_arrays(array, reason):
    assert refusal(array).startswith("array: ") and reason in refusal(array)


def test_wrong_sources(tmp_path):
    assert "does not exist" in refusal(tmp_path / "absent.png")
    assert "does not exist" in refusal("")
    assert "is a folder" in refusal(tmp_path)
    assert "null" in refusal("a\0b.png")
    assert "cannot be opened" in refusal("x" * 5000)
    assert refusal(12).startswith("int: is no source")
    assert refusal(None).startswith("NoneType: is no source")
    assert refusal(tmp_path / "two\nlines.png").startswith(f"{tmp_path}/two\\nlines.png: ")
    assert refusal(Image.new("RGB", (0, 3))).startswith("PIL image: has no pixels")
    lazy = Image.open(io.BytesIO(encode(Image.fromarray(UPRIGHT), "BMP")[:-9]))
    assert refusal(lazy).startswith("PIL image: its BMP data is truncated")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")


# Warnings and threads.


def test_warnings_do_not_escape_and_settings_stay(monkeypatch, capfd):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # TIFF warns above it, fails above twice it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(encode(Image.new("RGB", (3, 2)), "TIFF")).size == (3, 2)
        assert "more pixels than Pillow allows" in refusal(encode(Image.new("L", (9, 9)), "TIFF"))
        with pytest.raises(UserWarning):  # the caller's own filters work again
            warnings.warn("mine", stacklevel=1)
    assert Image.MAX_IMAGE_PIXELS == 4
    assert capfd.readouterr() == ("", "")


def test_other_threads_keep_their_warnings():
    inside, leave = threading.Event(), threading.Event()

    def decode():
        with viq_image._without_warnings():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=decode)
    with pytest.warns(UserWarning, match="mine"):
        thread.start()
        inside.wait(10)
        warnings.warn("mine", stacklevel=1)
    leave.set()
    thread.join()


def test_many_threads_agree():
    data = encode(Image.fromarray(UPRIGHT), "TIFF")
    results = []
    threads = [
        threading.Thread(target=lambda: results.extend(rgb(data) for _ in range(50)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [UPRIGHT.tolist()] * 400


# The set of odd and broken files.


@pytest.fixture(scope="module")
def robustness() -> Path:
    folder = Path(os.environ.get("VIQ_DATA", ""), "robustness")
    if "VIQ_DATA" not in os.environ or not (folder / "manifest.jsonl").is_file():
        pytest.skip("VIQ_DATA is not set to a folder that holds robustness/manifest.jsonl")
    return folder


def entries(folder: Path, *kinds: str) -> list[dict]:
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    found = [entry for entry in map(json.loads, lines) if entry["expect"] in kinds]
    assert found
    return found


def test_must_decode(robustness):
    for entry in entries(robustness, "must_decode"):
        path = robustness / entry["file"]
        image = open_image(path)
        size = (entry["pillow"]["width"], entry["pillow"]["height"])
        assert image.mode == "RGB", path
        assert image.size in (size, size[::-1]), path
        turned = "orientation" in path.name or path.parent.name == "exif_orientation"
        assert turned or image.size == size, path
        assert open_image(path.read_bytes()).tobytes() == image.tobytes(), path


def test_must_reject(robustness):
    for entry in entries(robustness, "must_reject", "bomb"):
        path = robustness / entry["file"]
        assert path.name in refusal(path)


def test_may_decode(robustness):
    for entry in entries(robustness, "may_decode"):
        path = robustness / entry["file"]
        try:
            assert open_image(path).mode == "RGB"
        except ImageError:
            assert path.name in refusal(path)


@pytest.mark.parametrize(
    "pattern, model, tolerance",
    [
        ("exif_orientation/Landscape_?.jpg", "exif_orientation/Landscape_1.jpg", 4),
        ("exif_orientation/Portrait_?.jpg", "exif_orientation/Portrait_1.jpg", 4),
        ("valid/hopper_orientation_?.jpg", "valid/hopper.jpg", 6),
        ("valid/hopper_orientation_?.webp", "valid/hopper.jpg", 6),
    ],
)
def test_orientation_files_match(robustness, pattern, model, tolerance):
    upright = np.asarray(open_image(robustness / model)).astype(int)
    paths = list(robustness.glob(pattern))
    assert paths
    for path in paths:
        pixels = np.asarray(open_image(path))
        assert pixels.shape == upright.shape, path
        assert np.abs(pixels - upright).mean() < tolerance, path
