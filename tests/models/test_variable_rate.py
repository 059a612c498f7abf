"""As many codes a patch as a rate asks for: it is kept, and more bits are never worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from refined import REFINEMENT, pictures, plain_tokenizer, refined_tokenizer

import viq
from viq.core.codes import Codes
from viq.core.types import CodesError, ViqError
from viq.data.synthetic.draw import draw
from viq.metrics.images import psnr
from viq.models.tokenizer.config import decisive
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.tokenizer.variable_rate import Choice

RATES = (0.12, 0.2, 0.3, 0.5, 0.9)


def kept(model: VisualTokenizer, image: Image.Image, codes: Codes) -> float:
    return psnr(np.asarray(image), np.asarray(model.decode(codes)[0]))


def test_a_size_is_kept_and_used_and_more_bits_are_better() -> None:
    model = refined_tokenizer()
    for image in (pictures(1, 90)[0], draw("text", (128, 160), 3).image):
        found = []
        for bpp in RATES:
            (codes,) = model.encode(image, bpp=bpp)
            size, room = len(codes.to_bytes()), int(bpp * image.width * image.height / 8)
            assert room - 8 <= size <= room
            found.append(kept(model, image, codes))
        assert all(after > before for before, after in zip(found, found[1:], strict=False))
    (codes,) = model.encode(image, nbytes=700)
    assert 692 <= len(codes.to_bytes()) <= 700


def test_a_quality_is_reached_with_few_bytes() -> None:
    model, image = refined_tokenizer(), pictures(1, 91)[0]
    sizes = []
    for aim in (20.0, 22.0, 24.0, 26.0):
        (codes,) = model.encode(image, psnr=aim)
        assert aim <= kept(model, image, codes) < aim + 0.6
        sizes.append(len(codes.to_bytes()))
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_counts_beat_four_codes_in_the_same_bytes() -> None:
    model, image = refined_tokenizer(), pictures(1, 92)[0]
    (plain,) = model.encode(image)
    (codes,) = model.encode(image, nbytes=len(plain.to_bytes()))
    assert plain.counts is None and codes.counts is not None
    assert kept(model, image, codes) > kept(model, image, plain) + 0.5


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (33, 50), (150, 300)])
def test_any_size_comes_back_through_a_file(size: tuple[int, int]) -> None:
    model = refined_tokenizer()
    image = draw("scene", (max(16, size[0]), max(16, size[1])), 3).image
    image = image.crop((0, 0, size[1], size[0]))
    (codes,) = model.encode(image, psnr=20.0)
    again = viq.Codes.from_bytes(codes.to_bytes())
    assert again == codes and again.tile == codes.tile == (128 if max(size) > 128 else 0)
    first, second = (np.asarray(model.decode(each)[0]) for each in (codes, again))
    assert np.array_equal(first, second)
    assert kept(model, image, codes) >= 20.0


def test_four_ids_a_patch_are_read_whatever_the_count() -> None:
    """Ids beyond the count are not stored; a tokenizer makes them from those before."""
    model, image = refined_tokenizer(), pictures(1, 93)[0]
    (codes,) = model.encode(image, bpp=0.2)
    assert codes.counts is not None and (codes.counts < 4).any()
    again = Codes.from_bytes(codes.to_bytes())
    assert not np.array_equal(again.ids, codes.ids)  # zeros beyond the count
    features = model.embed(codes)[0]
    assert torch.equal(model.embed(again)[0], features)
    assert torch.equal(model.pool(again), model.pool(codes))
    # A reader that does not know of counts, as that of a store, reads almost the same.
    plain = replace(codes, counts=None, extra=np.zeros(0, np.uint16))
    assert torch.equal(model.embed(plain)[0], features)
    zeros = replace(again, counts=None, extra=np.zeros(0, np.uint16))
    assert kept(model, image, plain) > kept(model, image, zeros)


def test_codes_are_the_same_alone_and_in_a_list() -> None:
    model, images = refined_tokenizer(), pictures(3, 94)
    together = model.encode(images, bpp=0.4)
    assert [model.encode(image, bpp=0.4)[0] for image in images] == together
    assert model.encode(images[::-1], bpp=0.4) == together[::-1]


def test_windows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = refined_tokenizer(), draw("scene", (112, 176), 5).image
    (codes,) = model.encode(image, bpp=1.0)
    whole = np.asarray(model.decode(codes)[0], np.int16)
    monkeypatch.setattr("viq.models.tokenizer.inference._WINDOW", 5)
    assert np.abs(np.asarray(model.decode(codes)[0], np.int16) - whole).max() <= 1


def test_saved_and_loaded_it_reads_the_same_codes(tmp_path) -> None:
    model, image = refined_tokenizer(), pictures(1, 95)[0]
    model.save_pretrained(tmp_path / "m")
    loaded = VisualTokenizer.from_pretrained(tmp_path / "m")
    assert loaded.fingerprint == model.fingerprint == plain_tokenizer().fingerprint
    (codes,) = model.encode(image, bpp=0.5)
    assert loaded.encode(image, bpp=0.5) == [codes]
    first, second = (np.asarray(each.decode(codes)[0]) for each in (model, loaded))
    assert np.array_equal(first, second)
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    half = VisualTokenizer.from_pretrained(tmp_path / "half")
    with pytest.raises(CodesError, match="made with the refinement .* but the one of viq-refined"):
        half.decode(replace(codes, fingerprint=""))
    (own,) = half.encode(image, bpp=0.5)
    assert abs(kept(half, image, own) - kept(model, image, codes)) < 0.2


def test_what_cannot_be_is_said_in_one_line() -> None:
    model, image = refined_tokenizer(), pictures(1, 96)[0]
    with pytest.raises(ViqError, match=r"^20 bytes are too few for 128x96 px: \d+ are the least"):
        model.encode(image, nbytes=20)
    with pytest.raises(ViqError, match=r"^90.0 dB are more than .*: \d\d.\d\d dB are the most$"):
        model.encode(image, psnr=90.0)
    with pytest.raises(ViqError, match="^a rate is one of bpp, psnr and nbytes$"):
        model.encode(image, psnr=30, bpp=1)
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ViqError, match="give a number above 0"):
            model.encode(image, bpp=wrong)
    plain = plain_tokenizer()
    with pytest.raises(ViqError, match="viq-refined: has no refinement.* viq train refinement"):
        plain.encode(image, bpp=1)
    with pytest.raises(CodesError, match="have a count for each patch, but .* has no refinement"):
        plain.decode(model.encode(image, bpp=1))


def test_counts_beyond_what_the_model_has_are_refused() -> None:
    model, image = refined_tokenizer(), pictures(1, 97)[0]
    (codes,) = model.encode(image, bpp=0.3)
    counts = np.full(codes.grid, 127, np.uint8)
    words = np.zeros(counts.size * 127 - int(codes.slots.sum()), np.uint16)
    hostile = Codes.from_bytes(replace(codes, counts=counts, extra=words).to_bytes())
    with pytest.raises(CodesError, match=f"more than {REFINEMENT.words} extra codes.*damaged"):
        model.decode(hostile)


def test_any_words_are_decoded_to_some_picture() -> None:
    model, image = refined_tokenizer(), pictures(1, 98)[0]
    (codes,) = model.encode(image, bpp=0.8)
    for seed in range(5):
        words = np.random.default_rng(seed).integers(0, 2**16, len(codes.extra)).astype(np.uint16)
        assert model.decode(replace(codes, extra=words))[0].size == image.size


def test_a_refinement_is_off_by_default_and_in_no_fingerprint() -> None:
    assert plain_tokenizer().config.refinement is None
    assert "refinement" not in str(decisive(refined_tokenizer().config))
    with pytest.raises(ValueError, match="a refinement needs a transform code and a decoder"):
        replace(refined_tokenizer().config, decoder=None)


def test_meaning_is_kept_whatever_the_count() -> None:
    from viq.models.tokenizer.loading import load
    from viq.train.tokenizer.refinement_fit import RefinementFitConfig, refined

    bundled = load("viq-transform")
    crops = [np.asarray(picture) for picture in pictures(3)]
    model = refined(bundled, crops, REFINEMENT, RefinementFitConfig(patches=60))
    assert model.fingerprint == bundled.fingerprint
    image = draw("scene", (80, 112), 4).image
    (plain,), (codes,) = model.encode(image), model.encode(image, bpp=0.25)
    again = Codes.from_bytes(codes.to_bytes())
    for each in (codes, again):
        assert np.array_equal(each.ids[::2, ::2, 3], plain.ids[::2, ::2, 3])
        assert each.meaning and (each.slots[::2, ::2] == 3).all() and (each.slots[1::2] == 4).all()
    assert torch.equal(model.embed(again)[0], model.embed(codes)[0])


def test_prices_give_the_best_numbers() -> None:
    """Against all ways to give 6 codes to three patches."""
    errors = np.array([[9, 5, 3, 2], [20, 8, 4, 1], [2, 1.5, 1.2, 1]], np.float32)
    choice = Choice(errors, np.ones(3, np.int64), np.zeros_like(errors, bool))
    counts = choice.within(6)
    assert counts.sum() <= 6
    grids = np.array(np.meshgrid(*[range(1, 5)] * 3)).reshape(3, -1).T
    best = min(choice.error(each) for each in grids if each.sum() <= 6)
    assert choice.error(counts) <= best + 1e-5
    assert choice.error(choice.reaching(8.0)) <= 8.0
