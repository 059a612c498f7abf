"""`viq export`: files for ONNX and torch.export give what PyTorch gives, for any size."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from viq.cli import app
from viq.core.types import ViqError
from viq.image.patches import normalize
from viq.jobs import export as job
from viq.models.tokenizer.config import TokenizerConfig
from viq.models.tokenizer.decoder import DecoderConfig
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.tokenizer.quantizer import QuantizerConfig
from viq.models.tokenizer.semantic import SemanticConfig
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.tokenizer.transform_code import TransformConfig

SIZES = [(16, 16), (16, 80), (112, 48), (160, 144)]  # px


@pytest.fixture(scope="module")
def model() -> VisualTokenizer:
    """Of the official structure: a position grid that is resized, angles rounded to bfloat16."""
    config = TokenizerConfig(
        encoder=EncoderConfig(width=32, depth=1, heads=2, mlp_width=32, position_grid=5),
        quantizer=QuantizerConfig(
            heads=2, pre_depth=1, slot_depth=1, slot_attention_width=16, slot_mlp_ratio=1,
            post_depth=1, rope_angle_dtype="bfloat16",
        ),
        decoder=DecoderConfig(width=16, depth=1, kernel_size=3),
    )  # fmt: skip
    torch.manual_seed(0)
    model = VisualTokenizer(config).requires_grad_(False).eval()
    for weight in model.parameters():  # wide enough apart that codes differ from patch to patch
        weight.mul_(3 if weight.ndim > 1 else 1)
    return model


@pytest.fixture(scope="module")
def transform() -> VisualTokenizer:
    """A transform code with meaning, whose tables are noise."""
    shape = TransformConfig(classes=8, basis=10, coefficients=2, levels=16, detail=32_000)
    base = tiny.config()
    config = replace(
        base,
        encoder=EncoderConfig(
            width=48, depth=0, heads=2, mlp_width=32, semantic=SemanticConfig(hidden=8, reader=24)
        ),
        quantizer=QuantizerConfig(bottleneck="transform", transform=shape),
        decoder=DecoderConfig(width=16, depth=1, kernel_size=3, refine_depth=1),
    )
    torch.manual_seed(0)
    model = VisualTokenizer(config).requires_grad_(False).eval()
    for name, values in model.quantizer.code.named_buffers():
        if name in ("values", "short_values", "directions", "basis", "fine"):
            values.normal_()
        elif name == "radices":
            values.fill_(2)
        elif name == "window":
            values.copy_(torch.tensor([-100.0, 100.0]).expand_as(values))  # any patch, any class
    return model


def onnx_run(path: Path) -> Callable[[Tensor], Tensor]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda given: torch.from_numpy(session.run(None, {name: given.numpy()})[0])


@pytest.fixture(scope="module")
def exporter() -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install 'viq[onnx]'")


def ids_of(model: VisualTokenizer, picture: Image.Image) -> Tensor:
    return torch.from_numpy(model.encode(picture, tile=0)[0].ids.astype(np.int64))


def test_one_onnx_file_encodes_pictures_of_any_size(
    model: VisualTokenizer, exporter: None, tmp_path: Path
) -> None:
    result = job.export(model, tmp_path / "encoder.onnx")
    assert result["check"] == {"48x80": 0.0, "224x224": 0.0, "320x496": 0.0}
    run, seen = onnx_run(tmp_path / "encoder.onnx"), set[int]()
    for number, (height, width) in enumerate(SIZES):
        picture = tiny.picture(number, height, width)
        wanted = ids_of(model, picture)
        assert torch.equal(run(normalize(np.asarray(picture))), wanted), (height, width)
        seen |= set(wanted.flatten().tolist())
    assert len(seen) > 100  # a file that always gave the same codes would show
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    assert session.get_inputs()[0].shape == [3, "height", "width"]
    assert session.get_outputs()[0].shape == ["rows", "cols", 4]
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["viq.fingerprint"] == model.fingerprint and facts["viq.part"] == "encoder"
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]


def test_an_onnx_decoder_paints_codes_of_any_grid(
    model: VisualTokenizer, exporter: None, tmp_path: Path
) -> None:
    job.export(model, tmp_path / "decoder.onnx", part="decoder")
    run = onnx_run(tmp_path / "decoder.onnx")
    for height, width in SIZES:
        grid = height // 16, width // 16
        codes = torch.randint(0, model.codebook_size, (*grid, 4))
        pixels = run(codes)
        assert pixels.shape == (3, height, width)
        patches_TD = model.reconstruct(model.features(codes.flatten(0, 1)), [grid])
        assert torch.allclose(pixels[:, :16, :16].flatten(), patches_TD[0], atol=1e-4)


@pytest.mark.parametrize("part", job.PARTS)
def test_torch_export_holds_for_any_size(model: VisualTokenizer, part: str, tmp_path: Path) -> None:
    out, small = tmp_path / "part.pt2", tmp_path / "small.png"
    tiny.picture(0, 21, 15).save(small)
    result = job.export(model, out, part=part, pictures=[small])
    assert result["format"] == "torch-export" and result["check"]["pictures"]["codes"] == 8
    extra = {job.FACTS: ""}
    program = torch.export.load(out, extra_files=extra)
    assert json.loads(extra[job.FACTS])["fingerprint"] == model.fingerprint
    picture = tiny.picture(3, 64, 176)
    codes = ids_of(model, picture)
    features_TC = model.embed(model.encode(picture))[0]
    if part == "encoder":
        assert torch.equal(program.module()(normalize(np.asarray(picture))), codes)
    elif part == "decoder":
        shown = model.decode(model.encode(picture))[0]
        pixels = program.module()(codes)
        assert torch.allclose(pixels.clamp(-1, 1), normalize(np.asarray(shown)), atol=0.005)
    else:
        assert torch.allclose(program.module()(codes.flatten(0, 1)), features_TC, atol=1e-5)
    weights = {name for name in program.state_dict if ".decoder." in name}
    assert bool(weights) == (part == "decoder")  # a file carries its own part alone


@pytest.mark.slow
def test_torch_export_of_a_transform_decoder(transform: VisualTokenizer, tmp_path: Path) -> None:
    result = job.export(transform, tmp_path / "decoder.pt2", part="decoder")
    assert max(result["check"].values()) < 0.01


def test_weights_that_are_too_many_lie_beside(
    model: VisualTokenizer, exporter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_ONE_FILE", 0)
    out, data = tmp_path / "e.onnx", tmp_path / "e.onnx.data"
    data.write_bytes(b"mine")
    with pytest.raises(ViqError, match=r"e\.onnx\.data: exists"):
        job.export(model, out, part="embedder")
    assert data.read_bytes() == b"mine" and not out.exists()
    job.export(model, out, part="embedder", overwrite=True)
    assert data.stat().st_size > out.stat().st_size
    codes = torch.randint(0, model.codebook_size, (5, 4))
    assert torch.allclose(onnx_run(out)(codes), model.features(codes), atol=1e-5)


def test_what_the_exporters_raise_is_one_line(
    model: VisualTokenizer, exporter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ViqError, match=r"its embedder .* as ONNX by .* \(no such operator\)$"):
        job.export(model, tmp_path / "e.onnx", part="embedder")
    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(ViqError, match=r"its embedder .* recorded .* \(no such operator\)$"):
        job.export(model, tmp_path / "e.pt2", part="embedder")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_the_same_is_not_left(
    model: VisualTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_difference", lambda *_: 0.5)
    with pytest.raises(ViqError, match="embedder is not the same as in PyTorch .*: 0.5, 0.0001"):
        job.export(model, tmp_path / "e.pt2", part="embedder")
    assert not list(tmp_path.iterdir())


def refused(folder: Path, *arguments: object) -> str:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert result.exit_code == 2 and not list(folder.iterdir())
    (line,) = result.stderr.splitlines()
    return line


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path: Path) -> None:
    out = ["-o", tmp_path / "a.pt2"]
    assert "encode with viq encode" in refused(tmp_path, "viq-transform", *out)
    embedder = ["viq-transform", "--part", "embedder"]
    assert "depend on the grid of a picture" in refused(tmp_path, *embedder, *out)
    assert "--part soul: give one of" in refused(tmp_path, "viq-tiny", "--part", "soul", *out)
    assert "--to coreml: give onnx" in refused(tmp_path, "viq-tiny", "--to", "coreml", *out)
    assert "end in .onnx" in refused(tmp_path, "viq-tiny", "--to", "onnx", *out)
    assert "--to onnx or torch" in refused(tmp_path, "viq-tiny", "-o", tmp_path / "a.bin")
    assert "nothing.png: does not exist" in refused(
        tmp_path, "viq-tiny", "--check", "nothing.png", *out
    )
    assert "language model" in refused(tmp_path, "viq-tiny-chat", *out)


def test_what_is_missing_and_what_is_there(
    model: VisualTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ViqError, match=r"^--to onnx needs onnx, .*: pip install 'viq\[onnx\]'$"):
        job.export(model, tmp_path / "a.onnx")
    (tmp_path / "a.pt2").write_bytes(b"mine")
    with pytest.raises(ViqError, match="exists; give another name, or --overwrite"):
        job.export(model, tmp_path / "a.pt2")
    no_decoder = tiny.tokenizer(decoder=None)
    with pytest.raises(ViqError, match="has no pixel decoder of its own"):
        job.export(no_decoder, tmp_path / "b.pt2", part="decoder")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]
    job.export(model, tmp_path / "a.pt2", part="embedder", overwrite=True)
    assert (tmp_path / "a.pt2").stat().st_size > 4
