"""What users call: encode, embed, pool, decode, load and save; and codes that never depend on
an image's neighbours."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import viq
from viq.data.synthetic.draw import KINDS, draw
from viq.eval.tokenizer import stability
from viq.image.open import ImageError
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.train.tokenizer.handover import begin
from viq.train.tokenizer.init import fit_fsq
from viq.weights.checkpoint import CheckpointError, read_weights

MODEL = tiny.tokenizer()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_shapes_and_types_of_the_public_face(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture(20, 50)).save(path)
    images = [path, str(path), path.read_bytes(), Image.open(path), picture(20, 50), picture(7, 90)]
    codes = MODEL.encode(images)
    assert all(c == codes[0] for c in codes[:5])
    assert codes[0].ids.shape == (2, 4, 4)
    assert codes[0].ids.dtype == np.uint16
    assert [c.size for c in codes] == [(20, 50)] * 5 + [(7, 90)]
    features = MODEL.embed(codes)
    assert [f.shape for f in features] == [(8, 32)] * 5 + [(6, 32)]
    assert MODEL.pool(codes).shape == (6, 32)
    assert MODEL.pool([]).shape == (0, 32)
    # Together, also beside one that is too large to be computed with others, as each alone.
    several = [*codes, *MODEL.encode(picture(16, 16 * 4100)), codes[5]]
    alone = torch.cat([MODEL.pool(item) for item in several])
    torch.testing.assert_close(MODEL.pool(several), alone)
    pictures = MODEL.decode(codes)
    assert [p.size for p in pictures] == [(50, 20)] * 5 + [(90, 7)]
    assert all(p.mode == "RGB" for p in pictures)
    assert MODEL.encode(path) == codes[:1]  # one image instead of a list
    assert len(MODEL.decode(codes[0])) == 1


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=1, max_size=5))
def test_codes_do_not_depend_on_neighbours(shapes: list[tuple[int, int]]) -> None:
    images = [picture(h, w, i) for i, (h, w) in enumerate(shapes)]
    alone = [MODEL.encode(image)[0] for image in images]
    assert MODEL.encode(images) == alone
    assert MODEL.encode(images[::-1])[::-1] == alone
    assert [p.size for p in MODEL.decode(alone)] == [(w, h) for h, w in shapes]


def test_codes_of_200_random_sizes_are_stable() -> None:
    drawings = [draw(kind, (500, 640), seed).image for seed in range(3) for kind in KINDS]
    images = stability.random_crops(drawings, 200, seed=1, largest=200)
    model = viq.load("viq-tiny")
    alone = [model.encode(image)[0] for image in images]
    assert len(alone) == 200
    assert stability.count_flips(alone, model.encode(images)) == 0
    assert stability.count_flips(alone, model.encode(images[::-1])[::-1]) == 0


def test_kodak_codes_are_stable(data: Path) -> None:
    images = [Image.open(p) for p in sorted((data / "kodak").glob("*.png"))]
    assert len(images) == 24
    model = viq.load("viq-tiny")
    alone = [model.encode(image)[0] for image in images]
    assert stability.count_flips(alone, model.encode(images[::-1])[::-1]) == 0


def test_flips_are_counted() -> None:
    codes = MODEL.encode([picture(20, 50)])
    other = [replace(codes[0], ids=codes[0].ids ^ np.uint16(1))]
    assert stability.count_flips(codes, codes) == 0
    assert stability.count_flips(codes, other) == 32


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (700, 1), (16, 16), (17, 33)])
def test_odd_sizes_round_trip(size: tuple[int, int]) -> None:
    codes = MODEL.encode(picture(*size))
    assert MODEL.decode(codes)[0].size == size[::-1]


def test_tiles_are_encoded_alone_and_stitched() -> None:
    image = picture(100, 70)
    (codes,) = MODEL.encode(image, tile=48)  # 7x5 patches: tiles of 2, 2, 3 by 2, 3 patches
    assert codes.tile == 48
    assert np.array_equal(codes.ids[2:4, 2:5], MODEL.encode(image[32:64, 32:70])[0].ids)
    assert np.array_equal(codes.ids[4:7, :2], MODEL.encode(image[64:, :32])[0].ids)
    (whole,) = MODEL.encode(image, tile=0)
    assert whole.tile == 0
    assert whole.ids.shape == codes.ids.shape
    assert MODEL.encode(image, tile=112)[0] == whole  # small enough: not tiled
    assert MODEL.encode(image, tile=48, packed=True)[0].ids.shape == codes.ids.shape
    with pytest.raises(ValueError, match="multiple of 16 px, got 50"):
        MODEL.encode(image, tile=50)


def test_decoding_in_windows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.tokenizer()
    for parameter in model.parameters():  # residual branches start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    codes = model.encode(picture(300, 90))
    whole = np.asarray(model.decode(codes)[0], int)
    monkeypatch.setattr("viq.models.tokenizer.inference._WINDOW", 14)
    banded = np.asarray(model.decode(codes)[0], int)
    assert abs(whole - banded).max() <= 1  # a value on a rounding boundary


def test_max_pixels_is_the_only_resize() -> None:
    (codes,) = MODEL.encode(picture(100, 400), max_pixels=10_000)
    assert codes.size == (50, 200)
    assert MODEL.encode(picture(100, 100), max_pixels=10_000)[0].size == (100, 100)


def test_save_and_load(tmp_path: Path) -> None:
    model = tiny.tokenizer(seed=3)
    model.save_pretrained(tmp_path / "model")
    loaded = viq.load(tmp_path / "model")
    assert loaded.config == model.config
    assert loaded.fingerprint == model.fingerprint
    image = picture(40, 60)
    assert loaded.encode(image) == model.encode(image)
    assert loaded.decode(loaded.encode(image))[0].tobytes() == (
        model.decode(model.encode(image))[0].tobytes()
    )
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    stored = viq.load(tmp_path / "half")
    assert stored.fingerprint == stored.compute_fingerprint() != model.fingerprint
    assert stored.encoder.position.dtype == torch.float32
    half = viq.load(tmp_path / "model", dtype=torch.bfloat16)
    assert half.embed(half.encode(image))[0].dtype == torch.bfloat16
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


@pytest.mark.parametrize("note", ["", "a longer header", "and another one..."])
def test_weights_lie_as_pytorch_lays_them_wherever_they_are_in_the_file(
    tmp_path: Path, note: str
) -> None:
    """On some processors the last bit of a matrix product depends on it, and a code on that."""
    save_file(MODEL.state_dict(), tmp_path / "w.safetensors", metadata={"note": note})
    assert all(t.data_ptr() % 64 == 0 for t in read_weights(tmp_path / "w.safetensors").values())


def test_fingerprint_covers_codes_not_decoders(tmp_path: Path) -> None:
    model = tiny.tokenizer()
    before = model.compute_fingerprint()
    assert model.decoder is not None
    model.decoder.project_out.bias.data += 1
    assert model.compute_fingerprint() == before
    model.quantizer.bottleneck.project_in.bias.data += 1
    assert model.compute_fingerprint() != before
    model.save_pretrained(tmp_path / "m")  # and saving notices
    assert json.loads((tmp_path / "m" / "config.json").read_text())["fingerprint"] != before
    assert model.half().float().compute_fingerprint() != before


def test_codes_of_another_model_are_refused() -> None:
    codes = tiny.tokenizer(seed=1).encode(picture(20, 20))
    other = tiny.tokenizer(seed=2)
    for use in (other.decode, other.embed, other.pool):
        with pytest.raises(viq.CodesError, match="load the tokenizer that made them"):
            use(codes)
    unknown = viq.Codes(codes[0].ids, codes[0].size)
    assert len(other.decode(unknown)) == 1


def test_codes_outside_the_codebook_are_refused() -> None:
    codes = viq.Codes(np.full((1, 1, 4), 64000, np.uint16), (9, 9))
    with pytest.raises(viq.CodesError, match="64000 is outside the codebook of 64000"):
        MODEL.decode(codes)


def test_a_bad_image_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "note.jpg"
    path.write_text("no picture")
    with pytest.raises(ImageError, match="note.jpg"):
        MODEL.encode([path])


def test_bad_model_folders_are_one_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny.tokenizer().save_pretrained(folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    good = config.read_text()

    def refused(*words: str) -> None:
        with pytest.raises(CheckpointError) as error:
            viq.load(folder)
        assert "\n" not in str(error.value)
        assert all(word in str(error.value) for word in words)

    config.write_text(good[:100])
    refused("config.json", "JSON")
    config.write_text(good.replace('"tile"', '"tiles"'))
    refused("unknown config fields ['tiles']")
    config.write_text(good.replace('"width": 32', '"width": 64', 1))
    refused("of another shape", "file [", "model [")
    config.write_text(good)
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    refused("model.safetensors")
    weights.unlink()
    refused("model.safetensors: missing")
    config.unlink()
    refused("no config.json")
    with pytest.raises(CheckpointError, match="no-such-model"):
        viq.load("no-such-model")


def test_fsq_begins_where_the_proximal_stage_ended() -> None:
    """Fitted to the proximal model, FSQ restores its features better than drawn at random."""
    from viq.image.patches import normalize, pack

    previous = tiny.tokenizer("proximal", seed=5)
    batches = [pack([normalize(picture(64, 64, seed))]) for seed in range(4)]
    target = previous(batches[0]).features_TC
    errors = {}
    for fitted in (False, True):
        model = begin(tiny.config(), "fsq", previous, 5)
        if fitted:
            fit_fsq(model, previous, batches)
        with torch.inference_mode():
            restored = model(batches[0]).features_TC
        errors[fitted] = float((restored - target).square().mean())
    assert errors[True] < 0.7 * errors[False]


def test_the_bundled_model_is_what_its_card_says() -> None:
    model = viq.load("viq-tiny")
    assert isinstance(model, VisualTokenizer)
    assert model.levels == (8, 8, 8, 5, 5, 5)
    assert model.config.tile == 1024
    assert model.compute_fingerprint() == model.fingerprint
    weights = Path(viq.__file__).parent / "bundled" / "viq-tiny" / "model.safetensors"
    assert weights.stat().st_size <= 16_000_000


@pytest.mark.parametrize("grid", [(433, 578), (1, 100_000), (3, 5000), (70, 60), (65, 64), (9, 9)])
def test_windows_are_about_square_and_bounded(grid: tuple[int, int]) -> None:
    """The context around flat ones would be most of the work."""
    from viq.models.tokenizer.inference import _WINDOW, _window_sides

    down, across = _window_sides(grid)
    assert down * across <= _WINDOW
    count = -(-grid[0] // down) * -(-grid[1] // across)
    assert count <= 2 * -(-grid[0] * grid[1] // _WINDOW)
    if min(grid) > 64:
        assert max(down, across) <= 2 * min(down, across)
