"""Measures against values computed by hand, and evaluation of a tiny real tokenizer."""

import io
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from viq.data.synthetic.draw import draw
from viq.eval.tokenizer.reconstruction import evaluate
from viq.eval.tokenizer.tiling import seams, tiling_gap
from viq.image.codecs import fit_codec
from viq.metrics.codebook import code_counts, code_use, summarize_counts
from viq.metrics.images import psnr, ssim
from viq.models.tokenizer.fsq import FSQ
from viq.models.tokenizer.quantizer import QuantizerConfig
from viq.models.tokenizer.tokenizer import TokenizerConfig, VisualTokenizer


def flat(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# PSNR


def test_psnr_by_hand():
    assert psnr(flat(5, 7, 10), flat(5, 7, 10)) == math.inf
    assert psnr(flat(5, 7, 0), flat(5, 7, 255)) == 0
    # A difference of 1 everywhere: 20 log10(255).
    assert psnr(flat(5, 7, 11), flat(5, 7, 10)) == pytest.approx(48.1308, abs=1e-4)
    # One channel of one of four pixels off by 30: mean squared error 900 / 12 = 75.
    other = flat(2, 2, 100)
    other[1, 0, 2] = 70
    assert psnr(flat(2, 2, 100), other) == pytest.approx(10 * math.log10(65025 / 75))


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (flat(4, 4, 0), flat(4, 5, 0)),
        (flat(4, 4, 0)[..., :1], flat(4, 4, 0)[..., :1]),
        (flat(4, 4, 0)[..., 0], flat(4, 4, 0)[..., 0]),
        (flat(4, 4, 0).astype(float), flat(4, 4, 0)),
        (flat(0, 4, 0), flat(0, 4, 0)),
    ],
)
def test_measures_refuse_what_does_not_match(measure, a, b):
    with pytest.raises(ValueError, match="pictures must"):
        measure(a, b)


# SSIM


@pytest.mark.parametrize("size", [(11, 11), (40, 90), (5, 30), (4, 4), (1, 1)])
def test_ssim_identities(size):
    a, b = noise(*size, seed=1), noise(*size, seed=2)
    assert ssim(a, a) == pytest.approx(1, abs=1e-9)
    assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-12)
    assert ssim(a, b) < 0.99
    assert ssim(a[::-1, ::-1], b[::-1, ::-1]) == pytest.approx(ssim(a, b), abs=1e-9)


def test_ssim_of_constant_pictures():
    # Without variance only the luminance term is left: (2 x y + C1) / (x^2 + y^2 + C1).
    expected = (2 * 100 * 120 + 6.5025) / (100**2 + 120**2 + 6.5025)
    assert ssim(flat(20, 30, 100), flat(20, 30, 120)) == pytest.approx(expected, abs=1e-9)
    # One channel of three differs.
    other = flat(20, 30, 100)
    other[..., 1] = 120
    assert ssim(flat(20, 30, 100), other) == pytest.approx((2 + expected) / 3, abs=1e-9)


def test_ssim_of_one_window_by_hand():
    """11x11 px hold a single window; its sums written out with a two-dimensional Gaussian."""
    a, b = noise(11, 11, 3), noise(11, 11, 4)
    d = np.arange(-5, 6)
    window = np.exp(-(d[:, None] ** 2 + d**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for channel in range(3):
        x, y = a[..., channel].astype(float), b[..., channel].astype(float)
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        c1, c2 = 6.5025, 58.5225
        values.append((2 * mx * my + c1) * (2 * cov + c2) / (mx**2 + my**2 + c1) / (vx + vy + c2))
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-9)


def test_ssim_is_the_mean_over_windows_in_every_band():
    """Taller than one band of rows: equal to the mean over all 11-row strips."""
    a, b = noise(90, 11, 5), noise(90, 11, 6)
    strips = [ssim(a[top : top + 11], b[top : top + 11]) for top in range(80)]
    assert ssim(a, b) == pytest.approx(np.mean(strips), abs=1e-9)


# Code use


def test_code_use_by_hand():
    use = code_use([np.array([0, 0], np.uint16), np.array([[1], [5]], np.uint16)], (2, 3))
    assert use == {
        "codes": 4,
        "codebook": 6,
        "used": 3,
        "share": 0.5,
        "entropy_bits": 1.5,
        "perplexity": pytest.approx(2**1.5),
        "levels": [[2, 2], [3, 0, 1]],  # 5 = 1 + 2 * 2
    }


def test_code_use_extremes():
    single = code_use([np.full((2, 2, 4), 7, np.uint16)], (2, 2, 2))
    assert (single["used"], single["entropy_bits"], single["perplexity"]) == (1, 0, 1)
    even = code_use([np.arange(12)], (3, 4))
    assert even["share"] == 1
    assert even["perplexity"] == pytest.approx(12)
    assert even["levels"] == [[4, 4, 4], [3, 3, 3, 3]]


def test_level_histograms_agree_with_fsq():
    levels = (8, 5, 3, 2)
    ids = np.random.default_rng(0).integers(0, 240, (50, 4))
    by_fsq = FSQ(levels).levels_of(torch.from_numpy(ids)).reshape(-1, 4).numpy()
    expected = [np.bincount(by_fsq[:, i], minlength=n).tolist() for i, n in enumerate(levels)]
    assert code_use([ids], levels)["levels"] == expected


def test_code_use_refuses():
    with pytest.raises(ValueError, match="not in the codebook"):
        code_use([np.array([6])], (2, 3))
    with pytest.raises(ValueError, match="must be integers"):
        code_counts(np.array([0.5]), (2, 3))
    with pytest.raises(ValueError, match="no codes"):
        code_use([], (2, 3))
    with pytest.raises(ValueError, match="need counts of 6"):
        summarize_counts(np.zeros(5, np.int64), (2, 3))


# Codecs

_PHOTO = draw("gradient", (96, 128), 3).image


@settings(max_examples=15, deadline=None)
@given(codec=st.sampled_from(["jpeg", "webp", "avif"]), limit=st.integers(0, 20_000))
def test_fit_codec_keeps_the_limit(codec: Any, limit: int):
    for image in (_PHOTO, Image.fromarray(noise(40, 40))):
        fitted = fit_codec(image, codec, limit)
        if fitted is None:
            assert limit < 2000  # neither picture needs more at the lowest quality
            continue
        data, decoded, quality = fitted
        assert len(data) <= limit
        assert 0 <= quality <= 100
        assert (decoded.mode, decoded.size) == ("RGB", image.size)
        with Image.open(io.BytesIO(data)) as again:
            assert again.format == codec.upper()
            assert again.convert("RGB").tobytes() == decoded.tobytes()


@pytest.mark.parametrize(("codec", "lowest"), [("jpeg", 1), ("webp", 0)])
def test_fit_codec_at_both_ends(codec, lowest):
    top = fit_codec(_PHOTO, codec, 10**6)
    assert top is not None and top[2] == 100
    assert fit_codec(_PHOTO, codec, 10) is None
    fitting = (fit_codec(_PHOTO, codec, limit) for limit in range(100, 3000, 50))
    smallest = next(fitted for fitted in fitting if fitted)
    assert smallest[2] <= lowest + 15
    # The file of that very size fits; one byte less does not, or only at a lower quality.
    exact = fit_codec(_PHOTO, codec, len(smallest[0]))
    assert exact is not None and exact[2] == smallest[2]
    below = fit_codec(_PHOTO, codec, len(smallest[0]) - 1)
    assert below is None or below[2] < smallest[2]


@pytest.mark.parametrize("codec", ["jpeg", "webp", "avif"])
def test_fit_codec_counts_pixels_not_metadata(codec):
    plain, tagged = _PHOTO.copy(), _PHOTO.copy()
    tagged.info = {"comment": b"x" * 5000, "exif": b"Exif\0\0" + b"y" * 5000, "xmp": b"z" * 5000}
    assert fit_codec(tagged, codec, 10**6) == fit_codec(plain, codec, 10**6)
    assert "comment" in tagged.info


def test_fit_codec_refuses():
    unknown: Any = "png"
    with pytest.raises(ValueError, match="unknown codec 'png'"):
        fit_codec(_PHOTO, unknown, 1000)
    with pytest.raises(ValueError, match="must be RGB"):
        fit_codec(_PHOTO.convert("L"), "jpeg", 1000)
    assert fit_codec(Image.new("RGB", (16384, 1)), "webp", 10**6) is None


# Reconstruction


@pytest.fixture(scope="module")
def tokenizer() -> VisualTokenizer:
    torch.manual_seed(0)
    return VisualTokenizer(tiny.config(name="tiny", tile=0)).requires_grad_(False).eval()


def test_evaluate(tokenizer, tmp_path):
    broken, drawn = tmp_path / "broken.jpg", tmp_path / "drawn.png"
    broken.write_bytes(b"\xff\xd8\xff not a picture")
    draw("chart", (150, 200), 1).image.save(drawn)
    images = [Image.new("RGB", (33, 20), "red"), broken, drawn, draw("shapes", (256, 320), 2).image]
    done: list[int] = []
    result = evaluate(tokenizer, images, progress=done.append)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert done == [1, 2, 3, 4]

    assert result["tokenizer"] == {"name": "tiny", "fingerprint": tokenizer.fingerprint}
    assert result["settings"]["crop"] is None
    assert result["settings"]["tile"] == 0
    assert result["settings"]["codecs"] == ["jpeg", "webp"]
    assert [item["key"] for item in result["failed"]] == [str(broken)]
    assert "broken.jpg" in result["failed"][0]["reason"]

    rows = result["images"]
    assert [row["key"] for row in rows] == ["0", str(drawn), "3"]
    assert [(row["height"], row["width"]) for row in rows] == [(20, 33), (150, 200), (256, 320)]
    # 2 x 3, 10 x 13 and 16 x 20 patches of four codes of two bytes.
    assert [row["bytes"] for row in rows] == [48, 1040, 2560]
    assert rows[2]["bpp"] == 0.25
    assert rows[0]["codecs"] == {"jpeg": None, "webp": None}  # 48 bytes hold no file

    pixels = np.asarray(images[3])
    restored = np.asarray(tokenizer.decode(tokenizer.encode(images[3]))[0])
    assert rows[2]["psnr"] == psnr(pixels, restored)
    assert rows[2]["ssim"] == ssim(pixels, restored)

    totals = result["totals"]
    assert (totals["images"], totals["bytes"]) == (3, 3648)
    assert totals["bpp"] == pytest.approx(8 * 3648 / (20 * 33 + 150 * 200 + 256 * 320))
    assert totals["psnr"] == pytest.approx(np.mean([row["psnr"] for row in rows]))
    assert totals["ssim"] == pytest.approx(np.mean([row["ssim"] for row in rows]))
    assert result["code_use"]["codes"] == 3648 // 2
    assert result["code_use"]["codebook"] == 64000
    for codec, summary in totals["codecs"].items():
        fits = [row for row in rows if row["codecs"][codec]]
        theirs = [row["codecs"][codec] for row in fits]
        assert summary["fits"] == len(fits) >= 1
        assert all(t["bytes"] <= row["bytes"] for t, row in zip(theirs, fits, strict=True))
        area = sum(row["height"] * row["width"] for row in fits)
        assert summary["bpp"] == pytest.approx(8 * sum(t["bytes"] for t in theirs) / area)
        for key in ("psnr", "ssim"):
            assert summary[key] == pytest.approx(np.mean([t[key] for t in theirs]))
            assert summary["ours"][key] == pytest.approx(np.mean([row[key] for row in fits]))


def test_evaluate_compares_over_the_same_images(tokenizer):
    """A codec copies a black picture exactly: that psnr is None, and left out on both sides."""
    images = [Image.new("RGB", (320, 256)), draw("shapes", (256, 320), 2).image]
    result = evaluate(tokenizer, images, codecs=["jpeg"])
    first, second = result["images"]
    assert first["codecs"]["jpeg"]["psnr"] is None
    assert first["codecs"]["jpeg"]["ssim"] == pytest.approx(1)
    summary = result["totals"]["codecs"]["jpeg"]
    assert summary["fits"] == 2
    assert summary["psnr"] == second["codecs"]["jpeg"]["psnr"]
    assert summary["ours"]["psnr"] == second["psnr"]
    assert result["totals"]["psnr"] == pytest.approx((first["psnr"] + second["psnr"]) / 2)


def test_evaluate_crops_the_centre(tokenizer):
    image = draw("text", (100, 300), 5).image
    result = evaluate(tokenizer, [image], crop=50, codecs=())
    row = result["images"][0]
    assert (row["height"], row["width"], result["settings"]["crop"]) == (50, 50, 50)
    assert row["codecs"] == {}
    plain = image.resize((150, 50), Image.Resampling.BICUBIC).crop((50, 0, 100, 50))
    expected = evaluate(tokenizer, [plain], codecs=())
    assert row["psnr"] == expected["images"][0]["psnr"]


def test_evaluate_without_images(tokenizer):
    result = evaluate(tokenizer, [b"nothing"])
    assert (result["images"], result["code_use"]) == ([], None)
    assert result["failed"][0]["key"] == "0"
    nothing = dict.fromkeys(("bpp", "psnr", "ssim", "ms_ssim", "blockiness"))
    codec = {"fits": 0, **nothing, "ours": nothing}
    assert result["totals"] == {
        "images": 0, "bytes": 0, **nothing, "codecs": {"jpeg": codec, "webp": codec}
    }  # fmt: skip


def test_evaluate_refuses_before_reading(tokenizer):
    def images() -> Iterator[bytes]:
        raise AssertionError("read an image")
        yield b""

    wrongs: list[dict[str, Any]] = [{"codecs": ["gif"]}, {"crop": 0}, {"tile": 17}, {"tile": -16}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"codec|crop|tile"):
            evaluate(tokenizer, images(), **wrong)
    config = TokenizerConfig(encoder=tokenizer.config.encoder, quantizer=QuantizerConfig(heads=2))
    with pytest.raises(ValueError, match="no pixel decoder"):
        evaluate(VisualTokenizer(config), images())


class Marked:
    """Stands for a tokenizer whose pictures are off by 10 beside seams, by 5 beside borders."""

    def __init__(self, real: VisualTokenizer) -> None:
        self.config, self.decoder, self.levels = real.config, real.decoder, real.levels
        self.encode = real.encode

    def decode(self, codes):
        picture = np.zeros((*codes.size, 3), np.uint8)
        picture[12:20] = picture[:, 28:36] = 5
        for x in (16, 48):
            picture[:, x - 4 : x + 4] = 10
        return [Image.fromarray(picture)]


def test_seams_by_hand(tokenizer):
    # 2 x 4 patches in tiles of at most 2: columns 0-2 | 2-4 in px 0-32 | 32-64.
    black = Image.new("RGB", (64, 32))
    marked: Any = Marked(tokenizer)
    found = seams(marked, black, 32)
    assert (found["tile"], found["seams"], found["band"]) == (32, 1, 4)
    # Beside the seam at column 32: columns 28 to 36, all 5.
    assert found["mse_seam"] == 25
    # Beside other borders: columns 12-20 and 44-52 (all 10, 32 rows each), and rows 12-20 of the
    # other 40 columns (5).
    assert found["mse_border"] == pytest.approx((16 * 32 * 100 + 40 * 8 * 25) / (16 * 32 + 40 * 8))
    assert found["mse_elsewhere"] == pytest.approx((16 * 32 * 100 + 40 * 8 * 25) / (56 * 32))
    assert found["ratio"] == pytest.approx(25 / found["mse_elsewhere"])
    assert found["ratio_border"] == pytest.approx(25 / found["mse_border"])


def test_seams_follow_the_tiles(tokenizer):
    # 5 x 7 patches in tiles of at most 2: 3 rows and 4 columns of tiles.
    found = seams(tokenizer, noise(75, 110), 32)
    assert found["seams"] == 2 + 3
    assert found["ratio"] == pytest.approx(found["mse_seam"] / found["mse_elsewhere"])
    for wrong in (0, 112, 30):
        with pytest.raises(ValueError, match="tile"):
            seams(tokenizer, noise(75, 110), wrong)


def test_tiling_gap(tokenizer):
    large, small = noise(80, 64, 1), noise(32, 32, 2)
    found = tiling_gap(tokenizer, [large, small, b"nothing"], 32)
    assert (found["tile"], found["images"], found["smaller"]) == (32, 1, 1)
    assert [item["key"] for item in found["failed"]] == ["2"]
    for side, key in ((0, "psnr_whole"), (32, "psnr_tiled")):
        restored = tokenizer.decode(tokenizer.encode(large, tile=side))[0]
        assert found[key] == psnr(large, np.asarray(restored))
    assert found["gap"] == found["psnr_whole"] - found["psnr_tiled"]
    assert tiling_gap(tokenizer, [small], 32)["gap"] is None
    with pytest.raises(ValueError, match="tile is 0"):
        tiling_gap(tokenizer, [small], 0)
