"""The commands on models that draw: train, draw, eval draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from viq.cli.common import Anew, Device, Json, Overwrite, find_device, guarded
from viq.cli.console import show
from viq.cli.progress import progress

RunModel = Annotated[str, typer.Option("--model", help="Run folder of viq train draw.")]
Temperature = Annotated[float, typer.Option(help="Of sampling; 0 takes the likeliest levels.")]
TopP = Annotated[float, typer.Option(help="Only the likeliest levels of this share together.")]
Guidance = Annotated[float, typer.Option(help="How strongly the caption is followed; 1 plainly.")]
Seed = Annotated[int, typer.Option(help="Of sampling.")]
Decoder = Annotated[
    str | None, typer.Option("--tokenizer", help="Another tokenizer of the same codes to paint.")
]


@guarded
def train_draw(
    recipe: Annotated[str, typer.Argument(help="tiny, qwen, debug, or a recipe file.json.")],
    codes: Annotated[
        list[str] | None,
        typer.Option(
            help="Store or Parquet file of codes with a caption column; again for more. Default: "
            "pictures of shapes that it draws and encodes."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder; resumed if begun.")] = Path(
        "runs/draw"
    ),
    tokenizer: Annotated[
        str | None, typer.Option(help="Whose codes are written: bundled name, folder, or hub id.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Causal language model: folder or hub id.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    tensorboard: Annotated[bool, typer.Option(help="Also log for TensorBoard.")] = False,
    overwrite: Anew = False,
    show_recipe: Annotated[
        bool, typer.Option("--print", help="Print the recipe as JSON and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a language model to write codes. Run again to resume."""
    from dataclasses import replace

    from viq.recipes.generation import RECIPES
    from viq.recipes.registry import find, with_places
    from viq.train.generation.recipe import DrawRecipe
    from viq.train.generation.run import DrawRun
    from viq.weights.checkpoint import to_dict

    chosen = find(recipe, RECIPES, DrawRecipe)
    chosen = with_places(chosen, {"tokenizer": tokenizer, "language": language})
    if steps is not None:
        chosen = replace(chosen, loop=replace(chosen.loop, steps=steps))
    if show_recipe:
        print(json.dumps(to_dict(chosen), indent=2))
        return
    import torch

    if threads:
        torch.set_num_threads(threads)
    run = DrawRun(
        recipe=chosen,
        out=out,
        stores=codes or [],
        hidden=as_json,
        tensorboard=tensorboard,
        overwrite=overwrite,
    )
    model = run.train()
    if run.accelerator.is_main_process:
        hint = f'viq draw "a red circle left of a blue square" -o out.png --model {out}'
        show({"model": str(model), "next": hint}, as_json)


@guarded
def draw(
    captions: Annotated[list[str], typer.Argument(help="What to draw, one sentence a picture.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="NAME.png, or a folder for several pictures.")
    ],
    model: RunModel = "runs/draw",
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
    """Pictures from sentences, drawn code by code."""
    from viq.core.files import written_aside
    from viq.core.outputs import require_folder, require_free
    from viq.core.types import ViqError
    from viq.mllm.generation import Sampling
    from viq.mllm.text_to_image import Artist

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
    artist = Artist.load(model, tokenizer=tokenizer, device=find_device(device))
    images = artist.draw(wanted, sampling, size=_size(size), seed=seed)
    for place, image in zip(places, images, strict=True):
        with written_aside(place) as aside:
            image.save(aside, "PNG")
    show({"pictures": len(images), "captions": wanted, "out": str(out)}, as_json)


@guarded
def eval_draw(
    model: RunModel = "runs/draw",
    pictures: Annotated[int, typer.Option(help="Captions of held-out pictures.")] = 200,
    temperature: Temperature = 1.0,
    top_p: TopP = 0.95,
    guidance: Guidance = 2.0,
    seed: Seed = 0,
    tokenizer: Decoder = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write JSON here.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Also a sheet of drawn pictures: NAME.png.")
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """How often drawn pictures keep their captions, beside the model's loss."""
    from viq.core.files import write_atomically, written_aside
    from viq.core.outputs import require_free
    from viq.core.types import ViqError
    from viq.eval.generation.captions import evaluate, lines, make_sheet
    from viq.mllm.generation import Sampling
    from viq.mllm.text_to_image import Artist

    require_free(out, overwrite=overwrite)
    require_free(sheet, overwrite=overwrite, option="--sheet")
    if pictures < 1:
        raise ViqError(f"--pictures {pictures}: give at least 1")
    sampling = Sampling(temperature=temperature, top_p=top_p, guidance=guidance)
    artist = Artist.load(model, tokenizer=tokenizer, device=find_device(device))
    drawn: list = []
    with progress("drawing", pictures, hidden=as_json) as advance:
        result = evaluate(
            artist, sampling, pictures=pictures, seed=seed, progress=advance, keep=drawn.append
        )
    if out is not None:
        write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())
    if sheet is not None:
        with written_aside(sheet) as aside:
            make_sheet(drawn).save(aside, "PNG")
    print(json.dumps(result) if as_json else "\n".join(lines(result)))


def _size(text: str | None) -> tuple[int, int] | None:
    from viq.core.types import ViqError

    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ViqError(f"--size {text}: give HEIGHTxWIDTH in px, as 96x96")
    return int(height), int(width)
