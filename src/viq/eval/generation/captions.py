"""How often generated pictures keep their captions, beside the loss of their model.

Captions are of held-out pictures, and the judge is exact (`viq.eval.generation.shapes`). Three
figures stand beside each other: true pictures (what the judge itself misses), true pictures through
codes and back (the most that codes and decoder allow), and generated ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw

from viq.data.batching.generation_batches import CodePair, encode_generation, pack_generation
from viq.data.synthetic.captions import Captioned, CaptionedShapes, satisfies
from viq.eval.generation.shapes import find_shapes
from viq.metrics.intervals import of_share
from viq.mllm.generation import Sampling
from viq.mllm.text_to_image import TextToImagePipeline

_GROUP = 32


def evaluate(
    pipeline: TextToImagePipeline,
    sampling: Sampling,
    *,
    pictures: int = 200,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
    keep: Callable[[tuple[str, Image.Image, bool]], None] = lambda picture: None,
) -> dict[str, Any]:
    """Figures in percent by kind of picture, and losses.

    Args:
        progress: called after each picture.
        keep: called with each generated picture, its caption, and whether it keeps it.
    """
    shapes = CaptionedShapes("held-out", pipeline.size)
    kept: dict[str, Counter[str]] = {name: Counter() for name in ("true", "codes", "generated")}
    nats: Counter[str] = Counter()
    for start in range(0, pictures, _GROUP):
        pairs = [shapes.pair(i) for i in range(start, min(pictures, start + _GROUP))]
        codes = pipeline.tokenizer.encode([pair.image for pair in pairs])
        captions = [pair.caption for pair in pairs]
        generated = pipeline.generate(
            captions, sampling, size=pipeline.size, seed=seed * pictures + start
        )
        for name, images in (
            ("true", [pair.image for pair in pairs]),
            ("codes", pipeline.tokenizer.decode(codes)),
            ("generated", generated),
        ):
            for pair, image in zip(pairs, images, strict=True):
                verdict = judge(pair, image)
                kept[name].update(verdict)
                if name == "generated":
                    keep((pair.caption, image, bool(verdict["caption"])))
                    progress()
        named = [CodePair(caption=c, codes=item) for c, item in zip(captions, codes, strict=True)]
        nats.update(_nats(pipeline, named))
    return {
        "pictures": pictures,
        "size": list(pipeline.size),
        "sampling": vars(sampling),
        "kept": {
            name: {what: of_share(counts[what], pictures) for what in JUDGED}
            for name, counts in kept.items()
        },
        "loss": {
            "nats_per_word": nats["text"] / nats["answers"],
            "nats_per_patch": nats["codes"] / nats["patches"],
            "bits_per_code": nats["codes"] / nats["patches"] / 4 / math.log(2),
        },
    }


JUDGED = ("caption", "colors", "shapes", "number")
_KINDS = {
    "true": "true pictures (the judge)",
    "codes": "through codes and back (the most possible)",
    "generated": "generated",
}


def lines(result: dict[str, Any]) -> list[str]:
    """The result of `evaluate` as text."""
    rows: list[tuple[str, ...]] = [("percent kept", *JUDGED)]
    for name, title in _KINDS.items():
        shares = (result["kept"][name][what] for what in JUDGED)
        rows.append((title, *(f"{s['percent']:.1f} +- {s['interval']:.1f}" for s in shares)))
    height, width = result["size"]
    sampling = ", ".join(f"{name} {value:g}" for name, value in result["sampling"].items())
    losses = ", ".join(f"{v:.3f} {k.replace('_', ' ')}" for k, v in result["loss"].items())
    return [
        f"{result['pictures']} held-out captions, {width}x{height} px; {sampling}",
        *(f"  {row[0]:<44}" + "".join(f"{cell:>16}" for cell in row[1:]) for row in rows),
        f"loss: {losses}",
    ]


def make_sheet(generated: Sequence[tuple[str, Image.Image, bool]], most: int = 24) -> Image.Image:
    """Generated pictures with their captions; those that do not keep them are marked."""
    generated, columns = generated[:most], 6
    side = max(max(image.size) for _, image, _ in generated)
    wide, tall = max(190, side + 16), side + 52
    sheet = Image.new("RGB", (columns * wide, -(-len(generated) // columns) * tall), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (caption, image, kept) in enumerate(generated):
        x, y = number % columns * wide + 8, number // columns * tall + 4
        sheet.paste(image, (x, y))
        words = caption.split(" ")
        half = " ".join(words[:3]), " ".join(words[3:])
        for line, text in enumerate(half):
            pen.text((x, y + side + 4 + 14 * line), text, "black" if kept else "firebrick")
    return sheet


def judge(pair: Captioned, image: Image.Image) -> dict[str, int]:
    """Whether a picture keeps the whole caption, and only its colours, shapes or their number."""
    found = find_shapes(image)
    return {
        "caption": int(satisfies(pair.caption, found, (image.height, image.width))),
        "colors": int(sorted(s.color for s in found) == sorted(s.color for s in pair.shapes)),
        "shapes": int(sorted(s.shape for s in found) == sorted(s.shape for s in pair.shapes)),
        "number": int(len(found) == len(pair.shapes)),
    }


@torch.inference_mode()
def _nats(pipeline: TextToImagePipeline, pairs: Sequence[CodePair]) -> dict[str, float]:
    """Sums of the losses of true pictures, and what they are counted by."""
    model = pipeline.generator
    pack = pack_generation([encode_generation(pair, pipeline.text_tokenizer) for pair in pairs])
    pack = pack.to(next(model.parameters()).device)
    sums = model(
        pack.ids_L, pack.targets_L, pack.lengths, pack.codes_TS, pack.grids_hw, pack.scored_T
    )
    return {"text": float(sums["text"]), "codes": float(sums["codes"]), **pack.counts}
