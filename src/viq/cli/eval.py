"""The commands that measure quality and stability: `viq eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viq.cli.common import (
    SOME_FAILED,
    Batch,
    Device,
    Dtype,
    Images,
    Json,
    JsonOut,
    Model,
    Overwrite,
    Tile,
    Tokens,
    Where,
    conditions,
    find_device,
    guarded,
    load_mllm,
    load_tokenizer,
    save_json,
)
from viq.cli.console import show, show_failures, show_json, show_reconstruction
from viq.cli.generate import Decoder, GeneratorModel
from viq.cli.groups import SamplingOptions, grouped
from viq.cli.help import App
from viq.cli.probes import features, naming, understanding
from viq.cli.progress import progress
from viq.cli.vlm import vlm
from viq.core.files import DEFAULT_MODEL

eval_app = App(
    help="""Measure quality and stability.

    Examples:
        viq eval reconstruction photos/
        viq eval mllm runs/mllm
    """
)
eval_app.command()(vlm)


@eval_app.command()
@guarded
def reconstruction(
    images: Images,
    model: Model = DEFAULT_MODEL,
    crop: Annotated[
        int | None, typer.Option(help="Shorter side to this many px, then the central square.")
    ] = None,
    tile: Tile = None,
    codecs: Annotated[str, typer.Option(help="Codecs to compare with, by commas.")] = "jpeg,webp",
    perceptual: Annotated[
        bool, typer.Option("--perceptual", help="Also how different EfficientNet-Lite0 finds them.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """PSNR, SSIM, MS-SSIM, blockiness, code use, beside JPEG and WebP at the same bytes.

    Examples:
        viq eval reconstruction photos/
        viq eval reconstruction kodak/ --model viq-transform --crop 256 --perceptual
    """
    from viq.eval.tokenizer.perceptual import EfficientNetDistance
    from viq.eval.tokenizer.reconstruction import evaluate
    from viq.image.open import list_images

    paths = list_images(images)
    tokenizer = load_tokenizer(model, device, dtype)
    names = [name for name in codecs.split(",") if name]
    with progress("evaluating", len(paths), hidden=as_json) as advance:
        result = evaluate(
            tokenizer, paths, crop=crop, tile=tile, codecs=names, progress=lambda n: advance(),
            perceptual=EfficientNetDistance() if perceptual else None,
        )  # fmt: skip
    if as_json:
        show_json(result)
    else:
        show_reconstruction(result)
    if result["failed"]:
        show_failures(result["failed"])
        raise typer.Exit(SOME_FAILED)


@eval_app.command()
@guarded
def stability(
    images: Images,
    model: Model = DEFAULT_MODEL,
    random_sizes: Annotated[int, typer.Option(help="Add this many crops of random sizes.")] = 0,
    as_json: Json = False,
) -> None:
    """Do codes depend on batch, order, threads, dtype or device? Counts the codes that flip.

    Examples:
        viq eval stability photos/
        viq eval stability photos/ --random-sizes 20
    """
    from viq.eval.tokenizer.stability import measure
    from viq.image.open import list_images

    paths = list_images(images)
    tokenizer = load_tokenizer(model, "cpu", "float32")
    with progress("comparing", 0, hidden=as_json):
        result = measure(tokenizer, paths, random_sizes=random_sizes)
    show(result, as_json)


@eval_app.command()
@guarded
def tiles(
    images: Images,
    side: Annotated[int, typer.Option("--tile", help="Side of the tiles, px.")] = 1024,
    model: Model = DEFAULT_MODEL,
    as_json: Json = False,
) -> None:
    """PSNR encoded whole against encoded in tiles, and the error along the seams of tiles.

    Examples:
        viq eval tiles photos/ --tile 512
    """
    from viq.eval.tokenizer.tiling import compare_tiles
    from viq.image.open import list_images

    paths = list_images(images)
    tokenizer = load_tokenizer(model, "auto", "float32")
    with progress("comparing", 0, hidden=as_json):
        result = compare_tiles(tokenizer, paths, side)
    show(result, as_json)


@eval_app.command("mllm")
@guarded
def eval_mllm(
    model: Annotated[str, typer.Argument(help="Run folder, model folder, or hub id.")],
    codes: Annotated[
        list[str] | None,
        typer.Option(help="Store with conversations; again for more. Default: drawn in the run."),
    ] = None,
    where: Where = None,
    by: Annotated[
        str, typer.Option(help="Column that names kinds of questions: a text, or one an answer.")
    ] = "kinds",
    limit: Annotated[int, typer.Option(help="Questions of each store at most.")] = 500,
    batch: Batch = 32,
    max_tokens: Tokens = 64,
    device: Device = "auto",
    out: JsonOut = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Ask a model questions that it was not trained on, and count right answers.

    Examples:
        viq eval mllm runs/mllm
        viq eval mllm runs/mllm --codes codes --limit 200 -o scores.json
    """
    from viq.core.outputs import require_free
    from viq.core.types import ViqError
    from viq.data.batching.code_batches import open_stores
    from viq.eval.vlm.held_out import evaluate, lines
    from viq.train.mllm.run import CACHE, CODES

    require_free(out, overwrite=overwrite)
    drawn, cache = Path(model, CODES), Path(model, CACHE)
    stores = codes or ([str(drawn)] if drawn.is_dir() else [])
    if not stores:
        raise ViqError(f"{model}: has no pictures of its own; give a store of codes (--codes)")
    loaded, processor = load_mllm(model, device)
    train, held_out = (
        open_stores(
            stores,
            split,
            fingerprint=processor.fingerprint,
            where=conditions(where),
            cache=cache if cache.is_dir() else None,
        )
        for split in ("train", "held-out")
    )
    total = sum(corpus.length for corpus in held_out)
    with progress("asking", min(total, limit * len(stores)), hidden=as_json) as advance:
        result = {"model": model} | evaluate(
            loaded, processor, held_out, train, by=by, limit=limit, batch=batch,
            max_new_tokens=max_tokens, progress=advance,
        )  # fmt: skip
    save_json(out, result)
    if as_json:
        show_json(result)
    else:
        print(*lines(result), sep="\n")


@eval_app.command("generation")
@eval_app.command("draw", hidden=True, deprecated=True)
@guarded
@grouped
def eval_generation(
    *,
    model: GeneratorModel = "runs/generation",
    pictures: Annotated[int, typer.Option(help="Captions of held-out pictures.")] = 200,
    drawn: SamplingOptions,
    tokenizer: Decoder = None,
    out: JsonOut = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Also a sheet of the pictures: NAME.png.")
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """How often generated pictures keep their captions, beside the model's loss.

    Examples:
        viq eval generation --model runs/generation
        viq eval generation --pictures 50 --sheet pictures.png
    """
    from viq.core.files import written_aside
    from viq.core.outputs import require_free
    from viq.core.types import ViqError
    from viq.eval.generation.captions import evaluate, lines, make_sheet
    from viq.mllm.text_to_image import TextToImagePipeline

    require_free(out, overwrite=overwrite)
    require_free(sheet, overwrite=overwrite, option="--sheet")
    if pictures < 1:
        raise ViqError(f"--pictures {pictures}: give at least 1")
    pipeline = TextToImagePipeline.load(model, tokenizer=tokenizer, device=find_device(device))
    generated: list = []
    with progress("generating", pictures, hidden=as_json) as advance:
        result = evaluate(
            pipeline,
            drawn.sampling(),
            pictures=pictures,
            seed=drawn.seed,
            progress=advance,
            keep=generated.append,
        )
    save_json(out, result)
    if sheet is not None:
        with written_aside(sheet) as aside:
            make_sheet(generated).save(aside, "PNG")
    if as_json:
        show_json(result)
    else:
        print(*lines(result), sep="\n")


for probe in (naming, understanding, features):
    eval_app.command()(probe)
