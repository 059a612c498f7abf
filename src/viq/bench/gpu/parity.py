"""Whether a GPU computes what the CPU does: golden numbers, attention, codes.

Nothing here is a time. Errors are relative: the largest absolute difference over the largest
absolute reference. A flip is a code that is another one.

T = patches of all images, N = heads, c = values of a head.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viq.bench.gpu.cells import Cells
from viq.core.codes import Codes
from viq.image import patches
from viq.image.patches import PatchBatch
from viq.jobs import official_names as official
from viq.models.layers.attention import looped_attention, varlen_attention
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.tokenizer.latent_head import LatentConfig
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.quantizer import QuantizerConfig
from viq.models.tokenizer.tokenizer import TokenizerConfig, VisualTokenizer
from viq.report.samples import sample_pictures
from viq.weights.checkpoint import load_strictly, read_weights

MODELS = ("viq-tiny", "viq-transform")
_LENGTHS = (1, 7, 64, 64, 300, 1024, 2304)  # patches of images, up to 768x768 px
_HEADS = ((16, 96), (4, 256))  # heads and values of a head: trunk of g, and slots
_MOST_S = 40.0  # seconds a cell; most take one


def measure(
    cells: Cells,
    golden: Path | None,
    *,
    lengths: Sequence[int] = _LENGTHS,
    side: int | None = None,
) -> None:
    """All cells of this part.

    Args:
        golden: the folder `tests/golden`; None leaves those cells out.
        lengths: tokens of the images on which attention is compared.
        side: px, to which the pictures that come with the package are made smaller; None: not.
    """
    device = cells.device
    half = torch.bfloat16
    if golden is not None:
        for dtype in (torch.float32, half):
            cells.run(
                "parity",
                f"golden, {_name(dtype)}",
                _calling(golden_errors, golden, device, dtype),
                expected=_MOST_S,
            )
    for heads, head_dim in _HEADS:
        for causal in (False, True):
            cells.run(
                "parity",
                f"attention, {heads} heads of {head_dim}" + (", causal" if causal else ""),
                _calling(attention_errors, heads, head_dim, lengths, device, causal),
                expected=_MOST_S,
            )
    for model in MODELS:
        for dtype in (torch.float32, half):
            cells.run(
                "parity",
                f"codes of {model}, {_name(dtype)}",
                _calling(flips, model, device, dtype, side),
                expected=_MOST_S,
            )


# Golden numbers


def golden_model(folder: Path) -> VisualTokenizer:
    """The model of the golden fixtures `encoder_tiny`, in eval mode, on the CPU."""
    settings = json.loads((folder / "drawer_tiny" / "config.json").read_text())
    model = VisualTokenizer(
        TokenizerConfig(
            encoder=EncoderConfig(
                width=settings["width"],
                depth=settings["depth"],
                heads=settings["heads"],
                mlp_width=settings["width"] * settings["mlp_ratio"],
                position_grid=settings["pos_grid"],
            ),
            quantizer=QuantizerConfig(
                levels=tuple(settings["levels"]),
                heads=settings["fusion_heads"],
                slot_attention_width=settings["max_head_dim"],
            ),
            latents=LatentConfig(heads=settings["drawer_heads"]),
        )
    )
    weights = read_weights(folder / "encoder_tiny" / "weights.safetensors")
    weights |= read_weights(folder / "drawer_tiny" / "weights.safetensors")
    load_strictly(model, official.convert_weights(weights), "golden")
    return model.requires_grad_(False).eval()


@torch.inference_mode()
def golden_errors(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Errors of each stage against the numbers of the official code (fp32, CPU), and flips."""
    model = golden_model(folder).to(device, dtype)
    inputs = read_weights(folder / "encoder_tiny" / "inputs.safetensors")
    expected = read_weights(folder / "encoder_tiny" / "outputs.safetensors")
    batch = _on(patches.pack([inputs[f"image.{i}"].squeeze(0) for i in range(6)]), device, dtype)
    with exact():
        trunk = model.encoder(batch)
        output = model(batch)
        found = {
            "trunk": trunk[None],
            "z": output.z_TSd.flatten(0, 1)[None],
            "pooled": model.pooled(output.features_TC, batch.grids_hw),
        }
        features = output.features_TC.split(patches.lengths_of(batch.grids_hw))
        ids = model.ids(batch)
    errors = {name: _error(value, expected[f"list.{name}"]) for name, value in found.items()}
    errors["features"] = max(
        _error(part[None], expected[f"list.features.{i}"]) for i, part in enumerate(features)
    )
    wanted = torch.cat([expected[f"list.indices.{i}"].flatten() for i in range(6)]).long()
    flipped = int((ids.flatten().cpu() != wanted).sum())
    return {"errors": errors, "codes": len(wanted), "flips": flipped, "rate": flipped / len(wanted)}


# Attention


def attention_errors(
    heads: int, head_dim: int, lengths: Sequence[int], device: torch.device, causal: bool
) -> dict[str, Any]:
    """Both twins against float64, values and gradients. Without CUDA the fast one is left out."""
    seed = torch.Generator().manual_seed(0)
    shape = (4, sum(lengths), heads, head_dim)
    drawn = torch.randn(shape, generator=seed)
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    ways = {"looped": looped_attention, **({"varlen": varlen_attention} if cuda else {})}
    rounded = drawn.to(device, dtype)
    results = {name: _both(way, rounded, lengths, causal) for name, way in ways.items()}
    exact_ = _both(looped_attention, rounded.double(), lengths, causal)
    parts = ("out", "dq", "dk", "dv")
    return {
        "tokens": sum(lengths),
        "dtype": _name(dtype),
        "errors": {
            name: {p: _error(x, y) for p, x, y in zip(parts, got, exact_, strict=True)}
            for name, got in results.items()
        },
    }


def _both(
    way: Callable[..., Tensor], drawn: Tensor, lengths: Sequence[int], causal: bool
) -> list[Tensor]:
    *qkv, upstream = drawn.unbind()
    leaves = [x.detach().clone().requires_grad_() for x in qkv]
    out = way(*leaves, lengths, causal=causal)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


# Codes


def flips(
    name: str, device: torch.device, dtype: torch.dtype, side: int | None = None
) -> dict[str, Any]:
    """Codes of the pictures that come with the package: how many differ from those of the CPU in
    fp32, and on the device from picture to picture in one sequence, turned round, and again."""
    pictures = [picture for _, picture in sample_pictures()]
    if side is not None:
        for picture in pictures:
            picture.thumbnail((side, side))
    reference = load(name).encode(pictures)
    model = load(name, device=device)
    model.to(dtype)
    alone = model.encode(pictures)
    together = model.encode(pictures, packed=True)
    turned = model.encode(pictures[::-1], packed=True)[::-1]
    again = model.encode(pictures)
    total = sum(item.ids.size for item in reference)
    counts = {
        "to_cpu": _differing(reference, alone),
        "packed": _differing(alone, together),
        "order": _differing(together, turned),
        "again": _differing(alone, again),
    }
    result: dict[str, Any] = {"codes": total, "flips": counts}
    result["rates"] = {kind: count / total for kind, count in counts.items()}
    if model.decoder is not None:
        result["psnr_db"] = _psnr_to_cpu(name, model, reference)
    return result


def _psnr_to_cpu(name: str, model: VisualTokenizer, codes: Sequence[Codes]) -> float | None:
    """dB between the pictures of both decoders for the same codes, the worst; None: equal."""
    cpu = load(name)
    worst = None
    for item in codes[:2]:
        item = Codes(ids=item.ids, size=item.size, tile=item.tile)  # of a model in another dtype
        ours, theirs = (np.asarray(m.decode(item)[0], float) for m in (model, cpu))
        error = float(((ours - theirs) ** 2).mean())
        if error:
            worst = min(worst or np.inf, 10 * np.log10(255**2 / error))
    return worst


def _differing(one: Sequence[Codes], other: Sequence[Codes]) -> int:
    return sum(int((a.ids != b.ids).sum()) for a, b in zip(one, other, strict=True))


# Common


@contextmanager
def exact() -> Iterator[None]:
    """Products of fp32 in fp32, no TF32."""
    from viq.models.layers.ambient import by_default

    with by_default(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
        yield


def _error(found: Tensor, reference: Tensor) -> float:
    reference = reference.double().to(found.device)
    return float((found.double() - reference).abs().max() / reference.abs().max())


def _on(batch: PatchBatch, device: torch.device, dtype: torch.dtype) -> PatchBatch:
    return PatchBatch(patches_TD=batch.patches_TD.to(device, dtype), grids_hw=batch.grids_hw)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _calling(function: Callable[..., dict[str, Any]], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)
