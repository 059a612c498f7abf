"""Patches of few colours: their streams, which patches have them, and images with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refined import page, pictures, refined_tokenizer

from viq.core.codes import Codes
from viq.core.counts import PALETTE, codes_counted, ids_counted
from viq.core.types import CodesError
from viq.data.sources.open import open_source
from viq.jobs.decode import decode_files
from viq.jobs.encode import encode
from viq.jobs.info import describe
from viq.jobs.pipeline import EncodeOptions
from viq.jobs.store.lint import lint
from viq.models.tokenizer import inference, palette_search, palette_stream
from viq.models.tokenizer.lapped import LappedFilter
from viq.models.tokenizer.palette_stream import COLOURS, Palettes
from viq.store.dataset import CodeDataset
from viq.store.folder import Store

BPP = EncodeOptions(bpp=0.5)


def some_palettes(count: int, seed: int, numbered: np.ndarray) -> Palettes:
    """Stripes and noise of colours that can be told."""
    rng = np.random.default_rng(seed)
    amounts = rng.integers(1, COLOURS + 1, count)
    colours = palette_stream.tellable(rng.integers(0, 256, (count, COLOURS, 3)))
    if len(numbered):
        some = rng.random((count, COLOURS)) < 0.5
        colours[some] = numbered[rng.integers(0, len(numbered), some.sum())]
    colours[np.arange(COLOURS) >= amounts[:, None]] = 0
    stripes = np.arange(256) // rng.integers(1, 40, (count, 1))
    noise = rng.integers(0, COLOURS, (count, 256)) * (rng.random((count, 256)) < 0.1)
    return Palettes(amounts, colours, (stripes + noise) % amounts[:, None])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, palette_stream.NUMBERED), st.integers(0, 2**32 - 1))
def test_palettes_come_back_from_the_words_that_they_need(
    count: int, known: int, seed: int
) -> None:
    numbered = np.random.default_rng(seed).integers(0, 256, (known, 3)).astype(np.uint8)
    palettes = some_palettes(count, seed, np.unique(numbered, axis=0))
    numbered = np.unique(numbered, axis=0)
    words = palette_stream.words_of(palettes, numbered)
    words[0] += palette_stream.head_words(numbered)
    found = palette_stream.decode(palette_stream.encode(palettes, numbered, words), words)
    assert all(np.array_equal(a, b) for a, b in zip(found, palettes, strict=True))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_any_words_are_some_palettes(words: list[int], seed: int) -> None:
    counts = np.array(words)
    any_words = np.random.default_rng(seed).integers(0, 1 << 16, counts.sum()).astype(np.uint16)
    found = palette_stream.decode(any_words, counts)
    assert found.pixels().shape == (len(words), 256, 3)
    assert (found.indices < found.amounts[:, None]).all()


def test_a_patch_of_three_colours_is_told_exactly_and_noise_has_no_palette() -> None:
    drawn = np.full((16, 16, 3), 255, np.uint8)
    drawn[3:9], drawn[9:, 5] = (0, 0, 0), (255, 0, 0)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    pixels = np.stack([drawn, noise]).reshape(2, 256, 3)
    found = palette_search.search(pixels, np.ones((2, 256), bool), 40)
    assert found.errors_TW[0, -1] == 0 and np.isinf(found.errors_TW[1]).all()
    assert (np.diff(found.errors_TW[0]) <= 0).all()
    (shown,) = found.taken(found.picks(np.array([0]), np.array([40]))).pixels()
    assert np.array_equal(shown, pixels[0])


def test_borders_that_are_kept_apart_come_back_and_stay() -> None:
    lapped = LappedFilter()
    lapped.rotation.copy_(torch.linalg.qr(torch.randn(8, 8))[0])
    pixels, apart = torch.randn(3, 64, 80), torch.zeros(4, 5, dtype=torch.bool)
    apart[1, 2] = apart[3, 4] = True
    filtered = lapped(pixels, apart)
    assert torch.allclose(lapped.inverse(filtered, apart), pixels, atol=1e-5)
    assert torch.equal(filtered[:, 16:32, 32:48], pixels[:, 16:32, 32:48])
    assert not torch.allclose(filtered[:, :16, :16], pixels[:, :16, :16])
    assert torch.equal(lapped(pixels, torch.zeros_like(apart)), lapped(pixels))


def squared_error(image: Image.Image, shown: Image.Image) -> float:
    return float(np.square(np.asarray(image, float) - np.asarray(shown, float)).mean())


@pytest.fixture(scope="module")
def codes() -> Codes:
    return refined_tokenizer().encode(page(), bpp=0.5)[0]


def test_print_has_palettes_in_as_many_bytes_and_far_less_error(
    codes: Codes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = refined_tokenizer()
    data = codes.to_bytes()
    assert codes.palettes.mean() > 0.5 and len(data) <= 0.5 * 160 * 128 / 8
    assert data[4] == 4 and Codes.from_bytes(data) == codes
    error = squared_error(page(), tokenizer.decode(Codes.from_bytes(data))[0])
    monkeypatch.setattr(palette_search, "_SHARE", 2.0)
    without = tokenizer.encode(page(), bpp=0.5)[0]
    assert not without.palettes.any() and without.to_bytes()[4] == 3
    assert error < squared_error(page(), tokenizer.decode(without)[0]) / 2


def test_counts_of_palettes_say_which_ids_and_codes_there_are(codes: Codes) -> None:
    assert codes.counts is not None
    some = codes.palettes
    assert (ids_counted(codes.counts)[some] == 1).all()
    assert (codes_counted(codes.counts)[some] == 1 + codes.extra_counts[some]).all()
    assert not codes.kept[some][:, 1:3].any()
    assert codes.total == int(codes.kept.sum()) + len(codes.extra)
    empty = codes.counts.copy()
    empty[some] = PALETTE
    with pytest.raises(CodesError, match="a patch has 0 codes"):
        replace(codes, counts=empty, extra=codes.extra[:0])


@pytest.mark.parametrize("size", [(160, 128), (153, 119), (16, 16)])
def test_a_quality_is_met(size: tuple[int, int]) -> None:
    tokenizer = refined_tokenizer()
    found = tokenizer.encode(page(*size), psnr=34)[0]
    error = squared_error(page(*size), tokenizer.decode(found)[0])
    assert 10 * np.log10(255**2 / error) >= 33.95


def test_windows_show_the_same(codes: Codes, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = refined_tokenizer()
    whole = np.asarray(tokenizer.decode(codes)[0]).astype(int)
    monkeypatch.setattr(inference, "_WINDOW", 9)  # the first palette is in the first one alone
    parts = np.asarray(tokenizer.decode(codes)[0]).astype(int)
    assert np.abs(whole - parts).max() <= 1
    palettes = codes.palettes.repeat(16, 0).repeat(16, 1)[:128, :160]
    assert np.array_equal(whole[palettes], parts[palettes])


def test_damaged_words_are_shown_as_something(codes: Codes) -> None:
    rng = np.random.default_rng(0)
    for _ in range(3):
        extra = rng.integers(0, 1 << 16, len(codes.extra)).astype(np.uint16)
        assert refined_tokenizer().decode(replace(codes, extra=extra))[0].size == (160, 128)


def test_photos_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    (photo,) = pictures(1)
    with_search = refined_tokenizer().encode(photo, bpp=0.5)[0]
    monkeypatch.setattr(palette_search, "_SHARE", 2.0)
    assert refined_tokenizer().encode(photo, bpp=0.5)[0].to_bytes() == with_search.to_bytes()


def test_tiles_share_the_colours_of_the_picture() -> None:
    tokenizer = refined_tokenizer()
    tiled = tokenizer.encode(page(), bpp=0.5, tile=64)[0]
    assert tiled.palettes.any() and tiled.tile == 64
    assert squared_error(page(), tokenizer.decode(tiled)[0]) < 1000


def test_stores_keep_them(tmp_path: Path, codes: Codes) -> None:
    tokenizer = refined_tokenizer()
    (tmp_path / "pages").mkdir()
    page().save(tmp_path / "pages/page.png")
    pictures(1)[0].save(tmp_path / "pages/photo.png")
    encode(tokenizer, open_source(str(tmp_path / "pages")), tmp_path / "store", BPP)
    found = {Path(row.key).stem: row.codes for row in Store(tmp_path / "store").rows()}
    assert found["page"] == codes and found["photo"] is not None
    assert not found["photo"].palettes.any()
    assert lint(tmp_path / "store")["problems"] == 0
    facts = describe(str(tmp_path / "store/part-00000.parquet"))
    assert facts["palettes"] == codes.palettes.sum()
    assert facts["codes_per_patch"]["greatest"] < PALETTE
    sample = next(iter(CodeDataset(tmp_path / "store", cache=tmp_path / "cache")))
    assert sample.codes[0].ids.shape == codes.ids.shape
    decode_files(tokenizer, [tmp_path / "store"], tmp_path / "shown")
    shown = Image.open(next((tmp_path / "shown").rglob("*page*.png")))
    assert shown.tobytes() == tokenizer.decode(codes)[0].tobytes()
