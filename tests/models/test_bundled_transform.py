"""The bundled `viq-transform`: what its card says of it, and that it is sharper than JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import viq
from viq.image.codecs import fit_codec
from viq.metrics.images import blockiness, psnr
from viq.models.tokenizer.tokenizer import VisualTokenizer

FOLDER = Path(viq.__file__).parent / "bundled" / "viq-transform"


@pytest.fixture(scope="module")
def tokenizer() -> VisualTokenizer:
    return viq.load("viq-transform")


def test_its_card_names_its_fingerprint_and_its_credits(tokenizer: VisualTokenizer) -> None:
    card = (FOLDER / "README.md").read_text()
    assert f"`{tokenizer.fingerprint}`" in card
    assert "Apache-2.0" in card and "EfficientNet-Lite0" in card
    credits = (FOLDER / "CREDITS.md").read_text()
    assert "Caltech101" in credits and "CC BY-SA 4.0" in credits


@pytest.mark.parametrize("name", ["chelsea", "astronaut"])
def test_it_beats_jpeg_at_the_same_bytes(tokenizer: VisualTokenizer, name: str) -> None:
    data = pytest.importorskip("skimage.data")
    image = Image.fromarray(getattr(data, name)())
    original = np.asarray(image)
    (codes,) = tokenizer.encode(image)
    shown = np.asarray(tokenizer.decode(codes)[0])
    fitted = fit_codec(image, "jpeg", codes.nbytes)
    assert fitted is not None
    jpeg = np.asarray(fitted[1])
    assert psnr(original, shown) > psnr(original, jpeg) + 0.5
    ours, theirs = blockiness(shown, original), blockiness(jpeg, original)
    assert ours is not None and theirs is not None and ours < 1.3 < theirs


def test_one_code_of_sixteen_is_meaning(tokenizer: VisualTokenizer) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 64, 3), np.uint8))
    (codes,) = tokenizer.encode(image)
    last = codes.ids[..., 3]
    assert (last[::2, ::2] >= 32_000).all()
    assert (last >= 32_000).sum() == 3 * 2
    assert tokenizer.encode([image, image])[1] == codes


def test_commands_that_look_inside_know_that_it_has_no_transformer(tmp_path: Path) -> None:
    """Benchmark and stability go on where a transformer's parts are looked at."""
    from viq.bench import encode
    from viq.eval.tokenizer.stability import measure

    model = viq.load("viq-transform")
    result = encode.run(model, repeats=1, quick=True, sections=["attention", "folding"])
    assert result["dtype"] == "float32" and "no transformer" in result["folding"]["skipped"]
    assert "skipped: a transform code has no transformer" in encode.as_text(result)
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 48, 3), np.uint8)).save(path)
    found = measure(model, [path])
    assert found["margin"] is None and found["flips"]["again"] == 0
