"""The command that makes pictures from sentences: `viq generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viq.cli.common import Device, Json, Overwrite, find_device, guarded
from viq.cli.console import show

GeneratorModel = Annotated[str, typer.Option("--model", help="Run folder of viq train generation.")]
Temperature = Annotated[float, typer.Option(help="Of sampling; 0 takes the likeliest levels.")]
TopP = Annotated[float, typer.Option(help="Only the likeliest levels of this share together.")]
Guidance = Annotated[float, typer.Option(help="How strongly the caption is followed; 1 plainly.")]
Seed = Annotated[int, typer.Option(help="Of sampling.")]
Decoder = Annotated[
    str | None, typer.Option("--tokenizer", help="Another tokenizer of the same codes to paint.")
]


@guarded
def generate(
    captions: Annotated[list[str], typer.Argument(help="What to show, one sentence a picture.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="NAME.png, or a folder for several pictures.")
    ],
    model: GeneratorModel = "runs/generation",
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH in px. Default: what the model chooses.")
    ] = None,
    count: Annotated[int, typer.Option(help="Pictures of each sentence.")] = 1,
    temperature: Temperature = 1.0,
    top_p: TopP = 0.95,
    guidance: Guidance = 2.0,
    seed: Seed = 0,
    tokenizer: Decoder = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Pictures from sentences, generated code by code.

    Examples:
        viq generate "a red circle" -o out.png
        viq generate "a red circle" "two blue squares" -o pictures/ --count 4 --model runs/mine
    """
    from viq.core.files import written_aside
    from viq.core.outputs import require_folder, require_free
    from viq.core.types import ViqError
    from viq.mllm.generation import Sampling
    from viq.mllm.text_to_image import TextToImagePipeline

    wanted = [caption for caption in captions for _ in range(count)]
    if not wanted:
        raise ViqError(f"--count {count}: give at least 1")
    single = out.suffix == ".png"
    if single and len(wanted) > 1:
        raise ViqError(f"--out {out}: {len(wanted)} pictures need a folder")
    places = [out] if single else [out / f"{i:04d}.png" for i in range(len(wanted))]
    if not single:
        require_folder(out)
    require_free(*places, overwrite=overwrite)
    sampling = Sampling(temperature=temperature, top_p=top_p, guidance=guidance)
    pipeline = TextToImagePipeline.load(model, tokenizer=tokenizer, device=find_device(device))
    images = pipeline.generate(wanted, sampling, size=_size(size), seed=seed)
    for place, image in zip(places, images, strict=True):
        with written_aside(place) as aside:
            image.save(aside, "PNG")
    show({"pictures": len(images), "captions": wanted, "out": str(out)}, as_json)


def _size(text: str | None) -> tuple[int, int] | None:
    from viq.core.types import ViqError

    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ViqError(f"--size {text}: give HEIGHTxWIDTH in px, as 96x96")
    return int(height), int(width)
