"""Features before anything is rounded."""

import numpy as np
import pytest
import torch
from torch import Tensor

import tests.tiny as tiny
from viq.core.types import ViqError
from viq.data.synthetic.draw import draw
from viq.eval.probes.understanding import features_of, kinds_of, read_features
from viq.image.patches import normalize, pack
from viq.models.tokenizer.tokenizer import VisualTokenizer

SIZES = ((64, 96), (40, 57), (16, 80))  # whole patches, parts of patches, a row of an odd number


@pytest.fixture(scope="module")
def transform() -> VisualTokenizer:
    return VisualTokenizer.from_pretrained("viq-transform")


def pictures() -> list[np.ndarray]:
    return [np.asarray(draw("scene", size, 3).image) for size in SIZES]


def read(tokenizer: VisualTokenizer, picture: np.ndarray, kind: str) -> Tensor:
    (found,) = features_of(tokenizer, [picture], kind)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("picture", pictures(), ids=map(str, SIZES))
def test_codes_round_what_continuous_features_say(
    transform: VisualTokenizer, picture: np.ndarray
) -> None:
    exact, coded = (read(transform, picture, kind) for kind in ("continuous", "codes"))
    assert exact.shape == coded.shape
    basis, detail = transform.quantizer.code.config.basis, transform.quantizer.detail_width
    assert torch.equal(exact[:, basis:detail], coded[:, basis:detail])  # the class is the same
    pixels = [transform.quantizer.values(found) for found in (exact, coded)]
    meaning = [found[:, detail:] for found in (exact, coded)]
    for (values, rounded), most in ((pixels, 0.5), (meaning, 0.2)):
        assert 0.01 * values.norm() < (values - rounded).norm() < most * values.norm()


def test_values_of_pixels_are_all_that_the_shared_basis_holds(transform: VisualTokenizer) -> None:
    (picture, *_) = pictures()
    code, (batch, grid) = transform.quantizer.code, (pack([normalize(picture)]), (4, 6))
    values_TV = transform.quantizer.values(read(transform, picture, "continuous"))
    seen_3HW, normal_3HW = code.pixels(values_TV, grid), normalize(picture)
    coded_3HW = code.pixels(code.dequantize(transform.ids(batch)), grid)
    assert (seen_3HW - normal_3HW).norm() < 0.8 * (coded_3HW - normal_3HW).norm()


def test_features_are_those_of_the_codes_that_encode_gives(transform: VisualTokenizer) -> None:
    """Also of pictures that are no whole patches, which each model continues in its own way."""
    for tokenizer in (transform, tiny.tokenizer()):
        for picture in pictures():
            wanted = tokenizer.embed(tokenizer.encode(picture))[0]
            assert torch.equal(read(tokenizer, picture, "codes"), wanted)


def test_continuous_features_do_not_depend_on_other_pictures(transform: VisualTokenizer) -> None:
    for kind in ("continuous", "teacher"):
        together = features_of(transform, pictures(), kind)  # type: ignore[arg-type]
        for picture, found in zip(pictures(), together, strict=True):
            torch.testing.assert_close(found, read(transform, picture, kind))


def test_a_learned_code_is_made_of_the_tokens_of_its_encoder() -> None:
    tokenizer = tiny.tokenizer()
    batch = pack([normalize(picture) for picture in pictures()])
    assert torch.equal(tokenizer.continuous_features(batch), tokenizer.encoder(batch))
    assert kinds_of(tokenizer) == ("codes", "continuous")


def test_the_network_that_taught_is_read_where_a_tokenizer_carries_it(
    transform: VisualTokenizer,
) -> None:
    assert kinds_of(transform) == ("codes", "continuous", "teacher")
    (picture, *_) = pictures()
    found = read(transform, picture, "teacher").view(4, 6, -1)
    semantic = transform.encoder.semantic
    groups = semantic.standardised(semantic.features(normalize(picture)[None]))[0]
    torch.testing.assert_close(found[::2, ::2], groups)
    assert torch.equal(found[1::2, 1::2], found[::2, ::2])


def test_a_transform_code_without_meaning_has_no_teacher(transform: VisualTokenizer) -> None:
    semantic, transform.encoder.semantic = transform.encoder.semantic, None
    try:
        assert kinds_of(transform) == ("codes", "continuous")
        with pytest.raises(ViqError, match="no pretrained trunk"):
            read_features(transform, pictures()[:1], "teacher")
    finally:
        transform.encoder.semantic = semantic
