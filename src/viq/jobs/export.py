"""A part of a tokenizer as one file for other runtimes: `viq export`.

The file holds for pictures of any size. Before it gets its name it is run on three sizes, beside
what the tokenizer itself gives: codes may differ in a thousandth (values that lie on a rounding
boundary), pixels by 0.6 levels of 255 (rounding to whole levels takes a half), features by a
ten-thousandth of the largest.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import viq
from viq.core.errors import first_line, require
from viq.core.files import written_aside
from viq.core.outputs import require_free
from viq.core.types import CODES_PER_PATCH, PATCH_SIZE, ViqError
from viq.data.synthetic.draw import draw
from viq.image.open import open_image
from viq.image.patches import normalize
from viq.models.layers.ambient import by_default
from viq.models.tokenizer.graphs import DecoderGraph, EmbedderGraph, EncoderGraph
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.tokenizer.transform_quantizer import TransformQuantizer

ONNX, TORCH_EXPORT = "onnx", "torch-export"
SUFFIXES = {ONNX: ".onnx", TORCH_EXPORT: ".pt2"}
PARTS = ("encoder", "decoder", "embedder")
SIZES = ((48, 80), (224, 224), (320, 496))  # px, on which a file is checked

FACTS = "viq.json"  # in a file of torch.export; in ONNX they are metadata, viq.NAME

# Bytes of a model whose ONNX file holds its weights; no such file may have more than 2 GiB.
_ONE_FILE = 2**30

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What one part of a tokenizer takes and gives."""

    graph: Callable[[VisualTokenizer], nn.Module]
    takes: str
    gives: str
    most: float  # difference from PyTorch: a share of codes, or as `unit` says
    unit: str


_PARTS = {
    "encoder": _Part(graph=EncoderGraph, takes="pixel_values", gives="codes", most=1e-3,
                     unit="share of codes that differ"),
    "decoder": _Part(graph=DecoderGraph, takes="codes", gives="pixel_values", most=0.6,
                     unit="largest difference in levels of 255"),
    "embedder": _Part(graph=EmbedderGraph, takes="codes", gives="features", most=1e-4,
                      unit="largest difference to the largest feature"),
}  # fmt: skip

# Names of the sides of inputs and outputs in ONNX, which knows them by name and rank.
_SIDES = {
    ("pixel_values", 3): ("channels", "height", "width"),
    ("codes", 3): ("rows", "cols", "slots"),
    ("codes", 2): ("patches", "slots"),
    ("features", 2): ("patches", "channels"),
}


def export(
    tokenizer: VisualTokenizer,
    out: Path,
    *,
    to: str | None = None,
    part: str = "encoder",
    pictures: Sequence[Path] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write one part of a tokenizer to a file, and compare the file with PyTorch.

    Args:
        tokenizer: in float32, on the CPU.
        out: the file; an ONNX file of more than 2 GiB has its weights beside it, in `OUT.data`.
        to: "onnx" or "torch-export"; None: what the name of the file says.
        part: "encoder" takes `pixel_values` (3, H, W) float32 in [-1, 1], sides of whole patches,
            and gives `codes` (rows, cols, 4) int64; "decoder" takes those and gives `pixel_values`,
            about [-1, 1]; "embedder" takes `codes` (patches, 4) and gives `features` (patches, C).
        pictures: to compare on as well, each whole, in one tile.

    Returns:
        What was written, and how far it is from PyTorch: for each of three sizes, and for the
        pictures together, the share of all their codes or the largest difference.

    Raises:
        ViqError: no such part or format, a part that this tokenizer lacks or that no graph can
            hold, a library that is missing, a place that is taken, or a file that is too far from
            PyTorch; then none is left.
    """
    to = _format_of(out, to)
    _require_exportable(tokenizer, part)
    apart = to == ONNX and _bytes_of(tokenizer) > _ONE_FILE
    require_free(out, _data_file(out) if apart else None, overwrite=overwrite)
    if to == ONNX:
        _require_onnx()
    what, about = _PARTS[part], _about(tokenizer, part)
    graph = what.graph(tokenizer).eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    with _silence(), by_default(tokenizer.device), torch.no_grad(), _folder_for(out) as folder:
        program, aside = _recorded(graph, tokenizer, part), folder / out.name
        if to == ONNX:
            about["opset"] = _write_onnx(program, aside, what, about, apart=apart)
            run = _onnx_run(aside)
        else:
            torch.export.save(program, aside, extra_files={FACTS: json.dumps(about)})
            # Guards refuse sides of one or two patches, with which the operations get on well.
            run = torch.export.load(aside).module(check_guards=False)
        checked = _checked(_Compared(run, tokenizer, part), pictures)
        _move(folder, out)
    return {
        "file": str(out), "format": to, **about, "bytes": out.stat().st_size,
        "input": what.takes, "output": what.gives, "compared": what.unit, "check": checked,
    }  # fmt: skip


def _format_of(out: Path, to: str | None) -> str:
    by_name = {suffix: form for form, suffix in SUFFIXES.items()}.get(out.suffix)
    if to is None and by_name is None:
        raise ViqError(f"-o {out}: ends in neither .onnx nor .pt2; say --to onnx or torch-export")
    if to is not None and to not in SUFFIXES:
        raise ViqError(f"--to {to}: give {ONNX} or {TORCH_EXPORT}")
    if to and by_name and to != by_name:
        raise ViqError(f"-o {out}: --to {to} writes files that end in {SUFFIXES[to]}")
    return to or str(by_name)


def _require_exportable(tokenizer: VisualTokenizer, part: str) -> None:
    """Refuse parts that are not there, and those whose work depends on what they see."""
    name = tokenizer.config.name
    if part not in _PARTS:
        raise ViqError(f"--part {part}: give one of {', '.join(PARTS)}")
    if part == "encoder" and isinstance(tokenizer.quantizer, TransformQuantizer):
        raise ViqError(
            f"{name}: its encoder sorts patches by what they hold, which no graph can; export "
            "--part decoder, and encode with viq encode"
        )
    if part == "embedder" and getattr(tokenizer.quantizer, "reader", None) is not None:
        raise ViqError(
            f"{name}: its features of meaning depend on the grid of a picture, which an embedder "
            "of flat codes does not have; take CodeEmbedder of viq.models.tokenizer.embedder"
        )
    if part == "decoder" and tokenizer.decoder is None:
        raise ViqError(f"{name}: has no pixel decoder of its own; export --part embedder")


def _require_onnx() -> None:
    with require("onnx, onnxscript and onnxruntime", "onnx", f"--to {ONNX}"):
        import_module("onnx")
        import_module("onnxscript")
        import_module("onnxruntime")


def _about(tokenizer: VisualTokenizer, part: str) -> dict[str, Any]:
    """What a reader of the file has to know."""
    return {
        "model": tokenizer.config.name,
        "part": part,
        "fingerprint": tokenizer.fingerprint,
        "codebook": tokenizer.codebook_size,  # of a continuous bottleneck it raises
        "tile": tokenizer.config.tile,
        "viq": viq.__version__,
    }


def _recorded(graph: nn.Module, tokenizer: VisualTokenizer, part: str) -> Any:
    """The operations of a part, as `torch.export` records them, sides left open."""
    patch = tokenizer.config.encoder.patch_size
    rows, cols = torch.export.Dim("rows"), torch.export.Dim("cols")
    if isinstance(tokenizer.quantizer, TransformQuantizer):  # a filter across borders of patches
        rows, cols = torch.export.Dim("rows", min=3), torch.export.Dim("cols", min=3)
    shapes: dict[str, tuple[Tensor, dict[int, Any]]] = {
        "encoder": (torch.zeros(3, 4 * patch, 5 * patch), {1: patch * rows, 2: patch * cols}),
        "decoder": (torch.zeros(4, 5, CODES_PER_PATCH).long(), {0: rows, 1: cols}),
        "embedder": (torch.zeros(20, CODES_PER_PATCH).long(), {0: torch.export.Dim("patches")}),
    }
    example, open_sides = shapes[part]
    try:
        return torch.export.export(graph, (example,), dynamic_shapes=(open_sides,))
    except Exception as error:  # what it raises depends on what it meets
        raise ViqError(
            f"{tokenizer.config.name}: its {part} cannot be recorded by torch {torch.__version__} "
            f"({first_line(error)})"
        ) from None


def _write_onnx(
    program: Any, path: Path, what: _Part, about: Mapping[str, Any], *, apart: bool
) -> int:
    """Write an ONNX file, with what a reader has to know in its metadata; gives its opset."""
    try:
        made: Any = torch.onnx.export(
            program, dynamo=True, output_names=[what.gives], verbose=False
        )
    except Exception as error:  # what it raises depends on what it meets
        raise ViqError(
            f"{about['model']}: its {about['part']} cannot be written as ONNX by torch "
            f"{torch.__version__} ({first_line(error)})"
        ) from None
    model = made.model
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = type(value.shape)(
            side if isinstance(side, int) else name
            for side, name in zip(value.shape, _SIDES[value.name, len(value.shape)], strict=True)
        )
    model.metadata_props.update({f"viq.{name}": str(value) for name, value in about.items()})
    made.save(path, external_data=apart)
    return model.opset_imports[""]


def _onnx_run(path: Path) -> Run:
    """The file under onnxruntime, on the CPU."""
    onnxruntime: Any = import_module("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (takes,) = (value.name for value in session.get_inputs())
    return lambda given: torch.from_numpy(session.run(None, {takes: given.numpy()})[0])


@dataclass(frozen=True)
class _Compared:
    """A written file beside what users of the tokenizer get."""

    run: Run
    tokenizer: VisualTokenizer
    part: str

    def on(self, image: Image.Image) -> tuple[float, int]:
        """How much differs on a picture, by the unit of the part; and how many codes it has."""
        (codes,) = self.tokenizer.encode(image, tile=0)
        ids = torch.from_numpy(codes.ids.astype(np.int64))
        height, width = codes.size
        if self.part == "encoder":
            pixels, (rows, cols) = normalize(np.asarray(image)), codes.grid
            short = (0, cols * PATCH_SIZE - width, 0, rows * PATCH_SIZE - height)
            got, wanted = self.run(F.pad(pixels, short)), ids
        elif self.part == "decoder":
            got = self.run(ids).clamp(-1, 1)[:, :height, :width]
            wanted = normalize(np.asarray(self.tokenizer.decode(codes)[0]))
        else:
            got, wanted = self.run(ids.flatten(0, 1)), self.tokenizer.embed(codes)[0]
        return _difference(got, wanted, self.part), ids.numel()


def _checked(compared: _Compared, pictures: Sequence[Path]) -> dict[str, Any]:
    """Differences of a written file from PyTorch, by size of the picture.

    Raises:
        ViqError: one is more than the part may have.
    """
    found: dict[str, Any] = {}
    for number, (height, width) in enumerate(SIZES):
        image = draw("shapes", (height, width), seed=number).image
        found[f"{height}x{width}"] = compared.on(image)[0]
    worst, what = max(found.values()), _PARTS[compared.part]
    if pictures:
        found["pictures"] = _on_pictures(compared, pictures)
        worst = max(worst, found["pictures"]["difference"])
    if not worst <= what.most:
        raise ViqError(
            f"{compared.tokenizer.config.name}: the exported {compared.part} is not the same as in "
            f"PyTorch ({what.unit}: {worst:.3g}, {what.most:g} is allowed); nothing was written"
        )
    return found


def _on_pictures(compared: _Compared, pictures: Sequence[Path]) -> dict[str, Any]:
    each = [compared.on(open_image(path)) for path in pictures]
    codes = sum(count for _, count in each)
    difference = max(found for found, _ in each)
    if compared.part == "encoder":
        difference = sum(share * count for share, count in each) / codes
    return {"pictures": len(each), "codes": codes, "difference": difference}


def _difference(got: Tensor, wanted: Tensor, part: str) -> float:
    """By the unit of the part; infinite for another shape."""
    if got.shape != wanted.shape:
        return math.inf
    if part == "encoder":
        return float((got != wanted).double().mean())
    apart = float((got - wanted).abs().max())
    return apart * 127.5 if part == "decoder" else apart / float(wanted.abs().max())


def _bytes_of(tokenizer: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in tokenizer.parameters())


def _data_file(out: Path) -> Path:
    return out.with_name(out.name + ".data")


@contextmanager
def _folder_for(out: Path) -> Iterator[Path]:
    """A folder beside a file, where it is written and looked at before it gets its name."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".viq-export-") as folder:
        yield Path(folder)


def _move(folder: Path, out: Path) -> None:
    """Give a written file its name; weights beside it first, as it is nothing without them."""
    for path in (_data_file(folder / out.name), folder / out.name):
        if path.exists():
            with written_aside(out.with_name(path.name)) as aside:
                os.replace(path, aside)  # both written above


@contextmanager
def _silence() -> Iterator[None]:
    """Without what PyTorch says of its own code, and of a torchvision that nobody needs here."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
