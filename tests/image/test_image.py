"""The image opener: exact pixels by hand, every kind of source, and round trips."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from images_by_hand import UPRIGHT, encode, grey, png, rgb
from PIL import Image

from viq.image.open import ImageError, limit_pixels, list_images, open_image

# No time limits for slow machines, and no folder of examples beside the sources.
quietly = settings(database=None, deadline=None)


# Modes, by hand.


def test_grey_and_bilevel():
    assert grey(encode(Image.fromarray(np.array([[0, 7, 255]], np.uint8)))) == [[0, 7, 255]]
    assert grey(encode(Image.fromarray(np.array([[True, False]])))) == [[255, 0]]


def test_alpha_over_white():
    rgba = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(200, 100, 0, 51), (9, 8, 7, 0), (9, 8, 7, 255)]):
        rgba.putpixel((x, 0), pixel)
    # 51 / 255 is a fifth: 0.2 * 200 + 0.8 * 255 = 244
    expected = [[[244, 224, 204], [255, 255, 255], [9, 8, 7]]]
    for source in (rgba, encode(rgba), encode(rgba, "WEBP", lossless=True, exact=True)):
        assert rgb(source) == expected
    assert grey(encode(Image.new("LA", (1, 1), (0, 128)))) == [[127]]
    assert rgb(Image.new("RGBa", (1, 1), (51, 0, 0, 51))) == [[[255, 204, 204]]]
    assert grey(Image.new("La", (1, 1), (0, 51))) == [[204]]


def test_palette_alpha_over_white():
    image = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
    image.putpalette([255, 0, 0, 0, 0, 0, 10, 20, 30, 200, 100, 0])
    assert rgb(encode(image)) == [[[255, 0, 0], [0, 0, 0], [10, 20, 30], [200, 100, 0]]]
    white = [255, 255, 255]
    one_key = [[white, [0, 0, 0], [10, 20, 30], [200, 100, 0]]]
    assert rgb(encode(image, transparency=0)) == one_key
    assert rgb(encode(image, "GIF", transparency=0)) == one_key
    per_entry = encode(image, transparency=bytes([0, 128, 255, 51]))
    assert rgb(per_entry) == [[white, [127, 127, 127], [10, 20, 30], [244, 224, 204]]]


@pytest.mark.parametrize(
    "depth, row, key, expected",
    [
        (1, b"\x40", 1, [0, 255]),  # bits 0, 1; the 1 is transparent
        (2, b"\x60", 1, [255, 170]),  # values 1, 2
        (4, b"\x12", 1, [255, 34]),
        (8, b"\x01\x02", 1, [255, 2]),
        (16, b"\x12\x34\x12\x35", 0x1234, [255, 18]),
    ],
)
def test_transparent_grey_of_every_depth(depth, row, key, expected):
    data = zlib.compress(b"\0" + row)
    chunks = ((b"tRNS", struct.pack(">H", key)), (b"IDAT", data))
    assert grey(png(2, 1, *chunks, depth=depth, colour=0)) == [expected]


def test_transparent_colour_of_both_depths():
    row8, row16 = b"\x01\x02\x03\x09\x02\x03", b"\x01\xff\x02\xff\x03\xff\x09\0\x02\0\x03\0"
    for depth, row, key in ((8, row8, (1, 2, 3)), (16, row16, (0x1FF, 0x2FF, 0x3FF))):
        chunks = ((b"tRNS", struct.pack(">3H", *key)), (b"IDAT", zlib.compress(b"\0" + row)))
        assert rgb(png(2, 1, *chunks, depth=depth)) == [[[255, 255, 255], [9, 2, 3]]]


def test_cmyk():
    image = Image.new("CMYK", (2, 1), (0, 255, 255, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    expected = [[[255, 0, 0], [0, 0, 0]]]
    assert rgb(image) == expected
    assert rgb(encode(image, "TIFF")) == expected
    # JPEG holds CMYK inverted, behind an Adobe marker; flat 8x8 blocks survive nearly exactly.
    jpeg = open_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(np.asarray(jpeg).astype(int) - [255, 0, 0]).max() <= 2


def test_other_colour_spaces():
    ycbcr = np.array(rgb(Image.new("YCbCr", (1, 1), (76, 85, 255))))
    assert np.abs(ycbcr - [255, 0, 0]).max() <= 2
    lab = Image.new("LAB", (2, 1), (255, 128, 128))
    lab.putpixel((1, 0), (0, 128, 128))
    assert np.abs(np.array(rgb(lab)) - [[[255, 255, 255], [0, 0, 0]]]).max() <= 1
    assert rgb(Image.new("HSV", (1, 1), (0, 255, 255))) == [[[255, 0, 0]]]


def test_16_bit_grey_is_rounded_not_clipped():
    values = np.array([[0, 128, 129, 256, 32768, 65406, 65407, 65535]], np.uint16)
    expected = [[0, 0, 1, 1, 128, 254, 255, 255]]  # value / 257
    for fmt in ("PNG", "TIFF"):
        assert grey(encode(Image.fromarray(values), fmt)) == expected
    assert grey(Image.fromarray(values.astype(">u2"))) == expected
    assert grey(b"P5 2 1 65535\n" + b"\0\x80\0\x81") == [[0, 1]]  # dark, yet never taken for 8-bit


def test_integers_and_floats_by_range():
    def of(values, dtype):
        return grey(Image.fromarray(np.array([values], dtype)))[0]

    assert of([0, 7, 255], np.int32) == [0, 7, 255]
    assert of([0, 257, 65535], np.int32) == [0, 1, 255]
    assert of([-100, 0, 410], np.int32) == [0, 50, 255]  # stretched: 255 / 510 a step
    assert of([0, 0.2, 1], np.float32) == [0, 51, 255]
    assert of([0, 0.6, 254.6], np.float32) == [0, 1, 255]
    assert of([-1, 0, 4], np.float32) == [0, 51, 255]
    assert of([np.nan, -np.inf, 0.2, np.inf], np.float32) == [0, 0, 51, 255]
    assert of([np.nan, np.nan], np.float32) == [0, 0]
    assert of([70000, 70000], np.int32) == [0, 0]


# Orientation and frames.

STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.swapaxes(0, 1),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("fmt, options", [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_orientation(orientation, fmt, options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    image = open_image(encode(stored, fmt, exif=exif, **options))
    assert image.size == (3, 2)
    assert np.asarray(image).tolist() == UPRIGHT.tolist()
    assert rgb(image) == UPRIGHT.tolist()  # a second opening does not turn it again


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
def test_damaged_exif_is_no_reason_to_refuse(exif):
    data = encode(Image.fromarray(UPRIGHT), exif=exif)
    assert rgb(data) == UPRIGHT.tolist()


@pytest.mark.parametrize("fmt", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame(fmt):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    lossless = {"lossless": True} if fmt == "WEBP" else {}
    data = encode(frames[0], fmt, save_all=True, append_images=frames[1:], **lossless)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert open_image(data).getcolors() == [(16, (255, 0, 0))]


# Sources.


def test_every_kind_of_source_agrees(tmp_path):
    expected = UPRIGHT.tolist()
    path = tmp_path / "a.png"
    Image.fromarray(UPRIGHT).save(path)
    for source in (path, str(path), path.read_bytes(), Image.fromarray(UPRIGHT), UPRIGHT):
        assert rgb(source) == expected


def test_arrays():
    flat = UPRIGHT[:, :, 0]
    assert grey(flat) == grey(flat[:, :, None]) == flat.tolist()
    assert rgb(UPRIGHT[::-1, ::-1]) == UPRIGHT[::-1, ::-1].tolist()  # strides do not matter
    assert rgb(np.array([[[200, 100, 0, 51]]], np.uint8)) == [[[244, 224, 204]]]


def test_result_is_independent_of_the_source():
    array = UPRIGHT.copy()
    pillow = Image.fromarray(UPRIGHT)
    from_array, from_pillow = open_image(array), open_image(pillow)
    array[:] = 99
    pillow.paste("white", (0, 0, 3, 2))
    assert rgb(from_array) == rgb(from_pillow) == UPRIGHT.tolist()


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1)])
def test_extreme_sizes(size):
    assert open_image(encode(Image.new("RGB", size, "red"))).size == size


# limit_pixels and list_images.


@pytest.mark.parametrize(
    "size, limit, expected",
    [
        ((200, 100), 5000, (100, 50)),
        ((300, 300), 100, (10, 10)),
        ((3, 3), 8, (2, 2)),
        ((20000, 1), 100, (100, 1)),
        ((1, 20000), 100, (1, 100)),
        ((7, 5), 1, (1, 1)),
    ],
)
def test_limit_pixels(size, limit, expected):
    assert limit_pixels(Image.new("RGB", size), limit).size == expected


def test_limit_pixels_leaves_small_images_alone():
    image = Image.new("RGB", (6, 5))
    assert limit_pixels(image, 30) is image
    assert limit_pixels(image, None) is image
    with pytest.raises(ValueError, match="max_pixels is 0"):
        limit_pixels(image, 0)


@quietly
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 500))
def test_limit_pixels_keeps_its_word(width, height, limit):
    w, h = limit_pixels(Image.new("RGB", (width, height)), limit).size
    assert 1 <= w <= width and 1 <= h <= height and w * h <= limit
    if min(w, h) > 1:  # the aspect holds to the pixel
        assert (w - 1) * height < (h + 1) * width and (h - 1) * width < (w + 1) * height


def test_list_images(tmp_path):
    deep = tmp_path.joinpath(*["d"] * 40)
    deep.mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("b.JPG", "a.png", "notes.txt", ".c.png", ".hidden/e.png"):
        (tmp_path / name).touch()
    (deep / "z.webp").touch()
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    expected = [tmp_path / "a.png", tmp_path / "b.JPG", deep / "z.webp"]
    assert list_images(tmp_path) == list_images([str(tmp_path)]) == expected
    given_first = [tmp_path / "notes.txt", tmp_path, tmp_path / "a.png"]
    assert list_images(given_first) == [tmp_path / "notes.txt", *expected]
    assert list_images([]) == []


def test_list_images_refuses(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ImageError, match="holds no pictures"):
        list_images(tmp_path)
    with pytest.raises(ImageError, match="absent: does not exist"):
        list_images([tmp_path / "absent"])


# Round trip over modes and sizes.


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    mixed = colour.astype(int) * alpha + 255 * (255 - alpha.astype(int))
    return (mixed + 127) // 255  # rounded; 255 is odd, so there are no ties


SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@quietly
@given(st.data(), SHAPES, st.sampled_from(["1", "L", "I;16", "LA", "RGB", "RGBA"]))
def test_png_round_trip(data, shape, mode):
    dtype = {"1": np.bool_, "I;16": np.uint16}.get(mode, np.uint8)
    channels = (len(mode),) if mode in ("LA", "RGB", "RGBA") else (1,)
    values = data.draw(hnp.arrays(dtype, shape + channels))
    if mode == "1":
        expected = values * 255
    elif mode == "I;16":
        expected = (values.astype(int) + 128) // 257
    elif mode.endswith("A"):
        expected = over_white(values[..., :-1], values[..., -1:])
    else:
        expected = values
    stored = Image.fromarray(values[:, :, 0] if channels == (1,) else values)
    assert stored.mode == mode
    pixels = np.asarray(open_image(encode(stored)))
    assert pixels.shape == (*shape, 3)
    assert (pixels == expected).all()


@quietly
@given(
    SHAPES.flatmap(lambda shape: hnp.arrays(np.uint8, shape)),
    hnp.arrays(np.uint8, (256, 3)),
    hnp.arrays(np.uint8, 256),
)
def test_palette_png_round_trip(indices, palette, alphas):
    stored = Image.fromarray(indices)
    stored.putpalette(palette.tobytes())
    opaque, clear = encode(stored), encode(stored, transparency=alphas.tobytes())
    assert (np.asarray(open_image(opaque)) == palette[indices]).all()
    expected = over_white(palette, alphas[:, None])[indices]
    assert (np.asarray(open_image(clear)) == expected).all()
