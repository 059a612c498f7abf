"""A model is what its config names, to the bit, or refused; autocast and casts change nothing."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import viq
from viq.core.files import BUNDLED
from viq.core.types import ViqError
from viq.image.patches import exact_pixels, normalize, patchify
from viq.jobs.info import describe
from viq.mllm.loading import load_mllm
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.vision.tower import TowerConfig, VisionTower
from viq.weights import checkpoint, verify
from viq.weights.checkpoint import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def flip(path: Path, name: str) -> None:
    """One bit of one weight."""
    weights = checkpoint.read_weights(path)
    weights[name].view(torch.uint8).flatten()[0] ^= 1
    checkpoint.write_weights(path, weights)


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_one_bit_of_any_part_is_seen(folder: Path, tmp_path: Path) -> None:
    kept = (folder / "model.safetensors").read_bytes()
    for name, what in (
        ("encoder.position", "fingerprint"),
        ("quantizer.post_shift", "fingerprint"),
        ("decoder.norm.weight", "digest"),
        ("pool_head.latent", "digest"),
    ):
        flip(folder / "model.safetensors", name)
        with pytest.raises(CheckpointError, match=f"have the {what} .* copy both files") as error:
            viq.load(folder)
        assert "\n" not in str(error.value)
        if what == "fingerprint":  # also where only a part of the weights is read
            with pytest.raises(CheckpointError, match="have the fingerprint"):
                CodeEmbedder.from_tokenizer(folder)
            with pytest.raises(CheckpointError, match="have the fingerprint"):
                describe(str(folder))
        (folder / "model.safetensors").write_bytes(kept)
    assert viq.load(folder, dtype=torch.bfloat16).fingerprint  # of what the file holds
    change(folder / "config.json", fingerprint="0123456789abcdef")
    with pytest.raises(CheckpointError, match="config.json says 0123456789abcdef"):
        viq.load(folder)


def test_folders_from_before_have_no_digest(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    digest = values["fingerprint"]
    del values["digest"]
    (folder / "config.json").write_text(json.dumps(values))
    flip(folder / "model.safetensors", "decoder.norm.weight")
    assert viq.load(folder).fingerprint == digest
    del values["fingerprint"]
    (folder / "config.json").write_text(json.dumps(values))
    assert viq.load(folder).fingerprint == digest  # computed when it is asked for


def test_the_bundled_model_is_whole() -> None:
    values = json.loads((BUNDLED / "viq-tiny" / "config.json").read_text())
    model = viq.load("viq-tiny")
    assert model.compute_fingerprint() == model.fingerprint == values["fingerprint"]
    stored = checkpoint.read_weights(BUNDLED / "viq-tiny" / "model.safetensors")
    assert verify.rest_digest(stored) == values["digest"]


def test_towers_are_verified(tmp_path: Path) -> None:
    config = TowerConfig(encoder=tiny.config().encoder, side=32)
    VisionTower(config).save_pretrained(tmp_path)
    assert VisionTower.from_pretrained(tmp_path)
    flip(tmp_path / "model.safetensors", "pool_norm.bias")
    with pytest.raises(CheckpointError, match="have the digest"):
        VisionTower.from_pretrained(tmp_path)


def test_large_files_are_hashed_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed is remembered for this very file and config, and never for another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(verify, "_LARGE", 0)
    hashed: list[Path] = []
    real = verify._computed
    monkeypatch.setattr(verify, "_computed", lambda *a: hashed.append(a[0]) or real(*a))
    for _ in range(2):
        viq.load(folder)
    assert len(hashed) == 1
    assert oct((tmp_path / "caches" / "viq" / "verified.json").stat().st_mode)[-2:] == "44"
    shutil.copytree(folder, tmp_path / "copy")
    flip(tmp_path / "copy" / "model.safetensors", "encoder.position")
    (tmp_path / "copy" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="have the fingerprint"):
        viq.load(folder)
    shutil.rmtree(folder)
    tiny.tokenizer().save_pretrained(folder)
    change(folder / "config.json", quantizer=json.loads((folder / "config.json").read_text())
           ["quantizer"] | {"rope_angle_dtype": "bfloat16"})  # fmt: skip
    with pytest.raises(CheckpointError, match="have the fingerprint"):
        viq.load(folder)
    for broken in ("[", "{}", '{"x": 3}'):
        (tmp_path / "caches" / "viq" / "verified.json").write_text(broken)
        with pytest.raises(CheckpointError, match="have the fingerprint"):
            viq.load(folder)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # cannot be written
    shutil.rmtree(folder)
    tiny.tokenizer().save_pretrained(folder)
    assert viq.load(folder)


def test_models_that_transformers_writes_are_verified_too(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED / "viq-tiny-chat", tmp_path / "chat")
    model, processor = load_mllm(tmp_path / "chat")
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    name = "projector.whitener.center_C"  # in the bundled folder as release 0.1 named it
    for folder, weight in ((tmp_path / "chat", name), (tmp_path / "again", f"model.{name}")):
        load_mllm(folder)
        flip(folder / "model.safetensors", weight)
        with pytest.raises(ViqError, match=r"its weights have the digest .* digest\.json"):
            load_mllm(folder)
        (folder / "digest.json").unlink()  # as of earlier releases
        load_mllm(folder)
    (tmp_path / "chat" / "tokenizer.json").write_text("{}")
    with pytest.raises(ViqError, match="cannot be loaded") as error:
        load_mllm(tmp_path / "chat")
    assert "\n" not in str(error.value)


def test_what_a_stage_trained_of_a_reader_is_verified(tmp_path: Path) -> None:
    weights = {"projector.weight": torch.ones(8, 8)}
    path = tmp_path / "reader.safetensors"
    checkpoint.write_weights(path, weights, digest=verify.digest_of(weights))
    verify.verify_own(path)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"reader\.safetensors: has the digest"):
        verify.verify_own(path)
    checkpoint.write_weights(path, weights)  # as of earlier releases
    verify.verify_own(path)


# The dtype


def test_autocast_around_a_call_changes_nothing() -> None:
    model = viq.load("viq-tiny")
    picture = np.asarray(tiny.picture(1, 96, 80))
    codes = model.encode(picture)[0]
    with torch.autocast("cpu", torch.bfloat16):
        again = model.encode(picture)[0]
        features = model.embed(codes)[0]
        semantic = model.pool(codes)
        image = model.decode(codes)[0]
    assert again == codes
    assert torch.equal(features, model.embed(codes)[0])
    assert torch.equal(semantic, model.pool(codes))
    assert image.tobytes() == model.decode(codes)[0].tobytes()


def test_settings_of_the_application_are_put_aside_and_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Products in fewer bits, which a GPU would make, and a default device; also among threads."""
    model = viq.load("viq-tiny")
    codes = model.encode(tiny.picture(1))[0]
    matmul: Any = torch.backends.cuda.matmul
    seen = list[str]()
    both = threading.Barrier(2)
    real = VisualTokenizer.ids

    def ids(self: VisualTokenizer, batch: Any) -> Any:
        both.wait(60)
        seen.append(matmul.fp32_precision)
        return real(self, batch)

    monkeypatch.setattr(VisualTokenizer, "ids", ids)
    torch.set_float32_matmul_precision("high")
    try:
        with ThreadPoolExecutor(2) as threads:
            made = list(threads.map(model.encode, [tiny.picture(1)] * 2))
        assert seen == ["ieee"] * 2 and made == [[codes]] * 2
        assert torch.get_float32_matmul_precision() == "high" and matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
    monkeypatch.undo()
    with torch.device("meta"):
        assert viq.load("viq-tiny").encode(tiny.picture(1))[0] == codes
        assert torch.empty(1).is_meta


def test_a_model_in_half_precision_says_so() -> None:
    codes = VisualTokenizer.from_pretrained("viq-tiny", dtype=torch.bfloat16).encode(
        tiny.picture(1)
    )
    assert codes[0].dtype == "bfloat16"
    assert viq.load("viq-tiny").decode(codes)  # they can be read


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pixels_come_back_from_any_cast(dtype: torch.dtype) -> None:
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3)
    patches = patchify(normalize(every))  # 1 px high: most of it is padding
    assert (patches == 0).any() and not (normalize(every) == 0).any()
    for cast in (patches.to(dtype), patches.to(dtype).float()):
        assert torch.equal(exact_pixels(cast), patches)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact_pixels(patches.to(dtype)), patches)


def test_the_customary_cast_of_inputs_changes_no_code() -> None:
    name = str(BUNDLED / "viq-tiny-chat")
    processor = viq.ViQProcessor.from_pretrained(name)
    model = viq.ViQForConditionalGeneration.from_pretrained(name)
    inputs = processor(text="?", images=tiny.picture(1, 77, 90))
    grid = [tuple(inputs["image_grid_hw"][0].tolist())]
    wanted = torch.from_numpy(
        viq.load("viq-tiny").encode(tiny.picture(1, 77, 90))[0].ids.astype(np.int64)
    )
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        with torch.autocast("cpu", torch.bfloat16):
            cast = inputs.to("cpu", dtype)["pixel_values"]
            assert torch.equal(model.codes_of(cast, grid), wanted.flatten(0, 1))
