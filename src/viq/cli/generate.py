"""The command that makes pictures from sentences: `viq generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viq.cli.common import Device, Json, Overwrite, find_device, guarded
from viq.cli.console import show
from viq.cli.groups import SamplingOptions, grouped

GeneratorModel = Annotated[str, typer.Option("--model", help="Run folder of viq train generation.")]
Decoder = Annotated[
    str | None, typer.Option("--tokenizer", help="Another tokenizer of the same codes to paint.")
]


@guarded
@grouped
def generate(
    captions: Annotated[list[str], typer.Argument(help="What to show, one sentence a picture.")],
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="NAME.png, or a folder for several pictures.")
    ],
    model: GeneratorModel = "runs/generation",
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH in px. Default: what the model chooses.")
    ] = None,
    count: Annotated[int, typer.Option(help="Pictures of each sentence.")] = 1,
    drawn: SamplingOptions,
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
    pipeline = TextToImagePipeline.load(model, tokenizer=tokenizer, device=find_device(device))
    images = pipeline.generate(wanted, drawn.sampling(), size=_size(size), seed=drawn.seed)
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
