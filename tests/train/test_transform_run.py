"""A tokenizer with a transform code: fitted, trained, saved, loaded, used, by one recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from viq.core.types import ViqError
from viq.data.synthetic.draw import draw
from viq.metrics.images import psnr
from viq.models.tokenizer.config import decisive
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.presets import tiny
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.tokenizer.transform_code import TransformConfig
from viq.recipes.tokenizer import train_transform
from viq.train.tokenizer.recipe import TokenizerRecipe
from viq.train.tokenizer.run import TokenizerRun, TrainingData
from viq.train.tokenizer.transform_fit import TransformFitConfig
from viq.weights import checkpoint

CODE = TransformConfig(classes=8, basis=49, coefficients=12, levels=16)


def recipe(steps: int = 6) -> TokenizerRecipe:
    """The bundled recipe at a small part of its size."""
    whole = train_transform()
    model = replace(
        whole.model,
        encoder=replace(whole.model.encoder, width=60, mlp_width=60, semantic=None),
        text=None,
        quantizer=replace(whole.model.quantizer, transform=CODE),
        decoder=replace(whole.model.decoder, width=16, depth=1, refine_depth=1),  # type: ignore[arg-type]
        tile=64,
    )
    fit, decoder = whole.stages[:2]  # the others: test_fitted_stages.py
    crops = replace(decoder.data.crops, sides={3: 1.0}, patches_per_step=40, patches_per_group=20)  # type: ignore[arg-type]
    return replace(
        whole,
        model=model,
        stages=(
            replace(fit, fit=TransformFitConfig(windows=2000, rounds=2), semantic=None),
            replace(
                decoder,
                data=replace(decoder.data, crops=crops),
                loop=replace(decoder.loop, steps=steps, log_every=1, eval_every=3, save_every=3),
            ),
        ),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VisualTokenizer]:
    out = tmp_path_factory.mktemp("run")
    photos = [draw("scene", (96, 128), i).image for i in range(12)]
    data = TrainingData(photos=photos)
    model = TokenizerRun(recipe(), data, out, hidden=True).train()
    assert model is not None
    return out, model


def test_from_nothing_to_pictures_of_any_size(trained: tuple[Path, VisualTokenizer]) -> None:
    _, model = trained
    for size in ((16, 16), (33, 50), (96, 130), (1, 7)):
        image = draw("gradient", (max(16, size[0]), max(16, size[1])), 3).image.crop(
            (0, 0, size[1], size[0])
        )
        (codes,) = model.encode(image)
        assert codes.size == size and int(codes.ids.max()) < model.codebook_size
        (shown,) = model.decode(codes)
        assert shown.size == image.size
        assert model.embed(codes)[0].shape == (codes.grid[0] * codes.grid[1], model.width)
        assert model.pool(codes).shape == (1, model.width)
    image = draw("scene", (96, 128), 3).image
    shown = model.decode(model.encode(image))[0]
    assert psnr(np.asarray(image), np.asarray(shown)) > 18


def test_the_decoder_begins_as_the_inverse_and_learns(
    trained: tuple[Path, VisualTokenizer],
) -> None:
    out, model = trained
    before = VisualTokenizer.from_pretrained(out / "1-code" / "model")
    assert before.fingerprint == model.fingerprint  # codes are the same
    image = draw("scene", (64, 64), 40).image
    codes = before.encode(image)[0]
    quantizer = before.quantizer
    values = quantizer.code.dequantize(  # type: ignore[union-attr]
        quantizer.code.ids(*_patches(image))  # type: ignore[union-attr]
    )
    plain = quantizer.code.pixels(values, codes.grid)  # type: ignore[union-attr]
    plain = ((plain.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, 2).numpy()
    shown = np.asarray(before.decode(codes)[0]).astype(int)
    assert np.abs(plain.astype(int) - shown).max() <= 1
    assert not np.array_equal(shown, np.asarray(model.decode(codes)[0]))


def _patches(image: Image.Image):
    from viq.image.patches import normalize, patchify

    return patchify(normalize(np.asarray(image))), [(image.height // 16, image.width // 16)]


def test_codes_depend_on_the_image_alone(trained: tuple[Path, VisualTokenizer]) -> None:
    _, model = trained
    images = [draw("scene", (48 + 16 * i, 80), i).image for i in range(4)]
    alone = [model.encode(image)[0] for image in images]
    assert model.encode(images) == alone
    packed = model.encode(images, packed=True)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(packed, alone, strict=True))


def test_decoding_in_windows_changes_nothing(
    trained: tuple[Path, VisualTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = trained
    codes = model.encode(draw("scene", (208, 176), 5).image)
    whole = np.asarray(model.decode(codes)[0]).astype(int)
    monkeypatch.setattr("viq.models.tokenizer.inference._WINDOW", 22)
    bands = np.asarray(model.decode(codes)[0]).astype(int)
    assert np.abs(whole - bands).max() <= 1


def test_a_damaged_or_hostile_folder_is_refused(
    trained: tuple[Path, VisualTokenizer], tmp_path: Path
) -> None:
    _, model = trained
    model.save_pretrained(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert VisualTokenizer.from_pretrained(tmp_path / "a").fingerprint == model.fingerprint
    for change in (
        {"classes": 10**9}, {"basis": 60}, {"means": [8]}, {"coefficients": "12"}, {"detail": 0}
    ):  # fmt: skip
        hostile = json.loads(json.dumps(config))
        hostile["quantizer"]["transform"] |= change
        (tmp_path / "a" / "config.json").write_text(json.dumps(hostile))
        with pytest.raises(ViqError):
            VisualTokenizer.from_pretrained(tmp_path / "a")


def test_half_precision_is_stored_and_says_its_own_fingerprint(
    trained: tuple[Path, VisualTokenizer], tmp_path: Path
) -> None:
    _, model = trained
    model.save_pretrained(tmp_path, dtype=torch.float16)
    half = VisualTokenizer.from_pretrained(tmp_path)
    image = draw("scene", (64, 64), 8).image
    a, b = (np.asarray(m.decode(m.encode(image))[0]) for m in (model, half))
    assert abs(psnr(np.asarray(image), a) - psnr(np.asarray(image), b)) < 0.2


def test_what_a_transform_code_has_not_is_said(trained: tuple[Path, VisualTokenizer]) -> None:
    _, model = trained
    with pytest.raises(ViqError, match="fitted, not trained"):
        _ = model._fsq
    with pytest.raises(ValueError, match="has no transformer"):
        replace(recipe().model, encoder=replace(recipe().model.encoder, depth=1))
    with pytest.raises(ValueError, match="go together"):
        replace(recipe().model.quantizer, transform=None)


def test_language_models_read_its_features(
    trained: tuple[Path, VisualTokenizer],
) -> None:
    out, model = trained
    embedder = CodeEmbedder.from_tokenizer(out / "2-decoder" / "model")
    (codes,) = model.encode(draw("scene", (48, 64), 9).image)
    ids_TS = torch.from_numpy(codes.ids.astype(np.int64)).flatten(0, 1)
    assert torch.equal(embedder(ids_TS, [codes.grid]), model.embed(codes)[0])
    assert embedder.config.fingerprint == model.fingerprint


def test_older_fingerprints_do_not_know_it() -> None:
    assert "transform" not in decisive(tiny())["quantizer"]
    values = checkpoint.to_dict(recipe())
    assert checkpoint.from_dict(TokenizerRecipe, json.loads(json.dumps(values)), "x") == recipe()


def test_meaning_and_pooled_token_are_fitted_in_the_same_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from viq.models.tokenizer.config import TextConfig
    from viq.models.tokenizer.semantic import SemanticConfig
    from viq.models.vision.efficientnet import EfficientNetLite0
    from viq.train.tokenizer import transform_stage
    from viq.train.tokenizer.pool_fit import PoolFitConfig
    from viq.train.tokenizer.semantic_fit import SemanticFitConfig

    torch.manual_seed(0)
    network = EfficientNetLite0().requires_grad_(False).eval()
    monkeypatch.setattr(EfficientNetLite0, "from_package", lambda: network)
    asked: list[str | None] = []

    class Sentences:
        def __init__(self, name: str | None) -> None:
            asked.append(name)

        def __call__(self, texts: list[str]) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.tensor([len(t) % 6 for t in texts]), 6).float()

    monkeypatch.setattr(transform_stage, "Sentences", Sentences)
    model = replace(
        recipe().model,
        encoder=replace(
            recipe().model.encoder, width=80, semantic=SemanticConfig(hidden=8, reader=16)
        ),
        quantizer=replace(recipe().model.quantizer, transform=replace(CODE, detail=32_000)),
        text=TextConfig(width=6),
    )
    photos = [draw("scene", (64, 96), seed).image for seed in range(32)]
    made = transform_stage.fit_tokenizer(
        model, TransformFitConfig(windows=2000, rounds=2), photos, (),
        semantic=SemanticFitConfig(side=64, steps=4), pool=PoolFitConfig(steps=2, images=2),
        sentences="mine",
    )  # fmt: skip
    assert asked == ["mine"]
    (codes,) = made.encode(photos[0])
    assert int((codes.ids[..., 3] >= 32_000).sum()) == 8  # two tiles of 4 x 3 patches
    assert made.image_embeds(codes).shape == (1, 6)

    def missing(name: str | None) -> None:
        raise ViqError("no sentences")

    monkeypatch.setattr(transform_stage, "Sentences", missing)
    monkeypatch.setattr(transform_stage, "gather_windows", lambda *_: pytest.fail("work began"))
    with pytest.raises(ViqError, match="no sentences"):
        transform_stage.fit_tokenizer(model, TransformFitConfig(), photos, ())
