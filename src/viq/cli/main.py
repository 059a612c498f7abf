"""The command line. Every command is a thin door: it parses, calls a job, and shows its result.

Heavy modules are imported inside the commands, so that `viq --help` answers at once. Exit codes:
0 all done; 2 the command cannot run (one line says why); 3 some inputs failed, the rest is done;
130 interrupted; 143 training was asked to stop (SIGTERM) and has saved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from viq.cli.bench import bench_app
from viq.cli.codes import decode, encode
from viq.cli.common import (
    SOME_FAILED,
    Anew,
    Device,
    Dtype,
    Images,
    Json,
    Model,
    Overwrite,
    Tile,
    conditions,
    guarded,
    load_tokenizer,
)
from viq.cli.console import (
    show,
    show_failures,
    show_reconstruction,
    show_record,
    show_understanding,
)
from viq.cli.draw import draw, eval_draw, train_draw
from viq.cli.progress import progress
from viq.cli.store import store_app
from viq.cli.train import caption, chat, eval_features, eval_mllm, train_app
from viq.core.terminal import make_plain

app = typer.Typer(
    name="viq",
    help="Images of any size to discrete codes, and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
eval_app = typer.Typer(help="Measure quality and stability.", no_args_is_help=True)
app.add_typer(eval_app, name="eval")
app.add_typer(bench_app, name="bench")
app.add_typer(store_app, name="store")
app.add_typer(train_app, name="train")
app.command()(encode)
app.command()(decode)
app.command()(chat)
app.command()(caption)
eval_app.command("mllm")(eval_mllm)
eval_app.command("features")(eval_features)
app.command()(draw)
eval_app.command("draw")(eval_draw)
train_app.command("draw")(train_draw)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False):
    """Images of any size to discrete codes, and back."""
    if version:
        import viq

        print(viq.__version__)
        raise typer.Exit()


@app.command()
@guarded
def info(
    what: Annotated[str, typer.Argument(help="A model (bundled, folder, hub id) or a code file.")],
    as_json: Json = False,
) -> None:
    """What is this: a model's dims, levels and fingerprint; a file's counts, sizes, code use."""
    from viq.jobs import info as describe

    show(describe.describe(what), as_json)


@eval_app.command()
@guarded
def reconstruction(
    images: Images,
    model: Model = "viq-tiny",
    crop: Annotated[
        int | None, typer.Option(help="Shorter side to this many px, then the central square.")
    ] = None,
    tile: Tile = None,
    codecs: Annotated[str, typer.Option(help="Codecs to compare with, by commas.")] = "jpeg,webp",
    device: Device = "auto",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """PSNR, SSIM, bits per pixel and code use, beside JPEG and WebP at the same bytes."""
    from viq.eval.tokenizer.reconstruction import evaluate
    from viq.image.open import list_images

    paths = list_images(images)
    tokenizer = load_tokenizer(model, device, dtype)
    names = [name for name in codecs.split(",") if name]
    with progress("evaluating", len(paths), hidden=as_json) as advance:
        result = evaluate(
            tokenizer, paths, crop=crop, tile=tile, codecs=names, progress=lambda n: advance()
        )
    if as_json:
        print(json.dumps(result))
    else:
        show_reconstruction(result)
    if result["failed"]:
        show_failures(result["failed"])
        raise typer.Exit(SOME_FAILED)


@eval_app.command()
@guarded
def stability(
    images: Images,
    model: Model = "viq-tiny",
    random_sizes: Annotated[int, typer.Option(help="Add this many crops of random sizes.")] = 0,
    as_json: Json = False,
) -> None:
    """Do codes depend on batch, order, threads, dtype or device? Counts the codes that flip."""
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
    model: Model = "viq-tiny",
    as_json: Json = False,
) -> None:
    """PSNR encoded whole against encoded in tiles, and the error along the seams of tiles."""
    from viq.eval.tokenizer.tiling import compare_tiles
    from viq.image.open import list_images

    paths = list_images(images)
    tokenizer = load_tokenizer(model, "auto", "float32")
    with progress("comparing", 0, hidden=as_json):
        result = compare_tiles(tokenizer, paths, side)
    show(result, as_json)


@eval_app.command()
@guarded
def understanding(
    models: Annotated[list[str], typer.Argument(help="Models whose codes are examined.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="Pictures with questions or labels, beside drawn ones; again for more."),
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE.")] = None,
    continuous: Annotated[
        list[str] | None, typer.Option(help="Examine this model's features before quantization.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Language models trained a model.")] = 3,
    steps: Annotated[int, typer.Option(help="Training steps of each.")] = 1000,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write JSON here.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a small language model on frozen codes and ask it about held-out pictures."""
    import torch

    from viq.core.files import write_atomically
    from viq.core.outputs import require_free
    from viq.data.corpora.corpora import open_split
    from viq.eval.probes.exam import UnderstandingConfig, make_exam
    from viq.eval.probes.understanding import Features, compare
    from viq.models.tokenizer.tokenizer import VisualTokenizer

    require_free(out, overwrite=overwrite)
    if threads:
        torch.set_num_threads(threads)
    rows = open_split(data or [], where=conditions(where))
    config = UnderstandingConfig(seeds=seeds, steps=steps)
    exam = make_exam(rows, config)
    kinds: tuple[tuple[Features, list[str]], ...] = (
        ("codes", models),
        ("continuous", continuous or []),
    )
    candidates: list[tuple[str, VisualTokenizer, Features]] = [
        (f"{name} ({kind})", load_tokenizer(name, "cpu", "float32"), kind)
        for kind, names in kinds
        for name in names
    ]

    def keep(result: dict[str, Any]) -> None:
        if out is not None:
            write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())

    with progress("examining", len(candidates) * seeds * steps, hidden=as_json) as advance:
        result = compare(exam, candidates, config, progress=lambda step: advance(), done=keep)
    if as_json:
        print(json.dumps(result))
    else:
        show_understanding(result)


@app.command()
@guarded
def convert(
    source: Annotated[Path, typer.Argument(help="Official weights: .pth or .safetensors.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Model folder to write.")],
    size: Annotated[str | None, typer.Option(help="2k, 4k, 8k, 16k or 64k.")] = None,
    levels: Annotated[str | None, typer.Option(help="FSQ levels by commas: 8,8,8,5,5,5")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    rope_angle: Annotated[
        str, typer.Option(help="bfloat16 as published weights need it, or float32.")
    ] = "bfloat16",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Weights of the official release to a model folder."""
    from viq.core.types import ViqError
    from viq.jobs.convert import convert as run

    if rope_angle not in ("bfloat16", "float32"):
        raise ViqError(f"--rope-angle {rope_angle}: give bfloat16 or float32")
    try:
        numbers = [int(level) for level in levels.split(",")] if levels else None
    except ValueError:
        raise ViqError(f"--levels {levels}: give integers by commas, as 8,8,8,5,5,5") from None
    show(
        run(
            source, out, size=size, levels=numbers, heads=heads, name=name,
            rope_angle_dtype=rope_angle, overwrite=overwrite,
        ),
        as_json,
    )  # fmt: skip


@train_app.command("tokenizer")
@guarded
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="tiny, so400m, g, debug, a recipe file.json, or entropy for encode --compress."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Pictures with captions, questions or labels: JSON, JSONL, Parquet, WebDataset, "
            "a folder, hf:OWNER/NAME. Again for more. Drawn pictures are always there."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder; resumed if begun.")] = Path(
        "runs/tiny"
    ),
    model: Annotated[
        str, typer.Option(help="Of entropy: the tokenizer, a folder that can be written.")
    ] = "viq-tiny",
    where: Annotated[
        list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE, as for a licence.")
    ] = None,
    start: Annotated[str | None, typer.Option(help="SigLIP2 the encoder begins from.")] = None,
    teacher: Annotated[str | None, typer.Option(help="SigLIP2 that is distilled.")] = None,
    language: Annotated[str | None, typer.Option(help="Causal language model.")] = None,
    vae: Annotated[str | None, typer.Option(help="Folder of the Qwen-Image VAE.")] = None,
    alignment: Annotated[str | None, typer.Option(help="DINOv2 for the decoder stage.")] = None,
    scale: Annotated[float, typer.Option(help="Times the steps of every stage.")] = 1.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    workers: Annotated[int, typer.Option(help="Threads that make samples.")] = 1,
    tensorboard: Annotated[bool, typer.Option(help="Also log for TensorBoard.")] = False,
    overwrite: Anew = False,
    show_recipe: Annotated[
        bool, typer.Option("--print", help="Print the recipe as JSON and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a tokenizer through the stages of a recipe. Run again to resume."""
    if recipe == "entropy":
        import torch

        from viq.train.entropy import train_entropy

        if threads:
            torch.set_num_threads(threads)
        told = (lambda record: None) if as_json else show_record
        tokenizer = load_tokenizer(model, "cpu", "float32")
        show(train_entropy(tokenizer, data or [], overwrite=overwrite, report=told), as_json)
        return
    from viq.recipes.registry import find_recipe, scaled, with_places
    from viq.weights.checkpoint import to_dict

    places = {"start": start, "teacher": teacher, "vae": vae, "alignment": alignment}
    chosen = with_places(find_recipe(recipe), {**places, "language": language})
    chosen = scaled(chosen, scale) if scale != 1 else chosen
    if show_recipe:
        print(json.dumps(to_dict(chosen), indent=2))
        return
    import torch

    from viq.data.corpora.corpora import open_corpora
    from viq.train.tokenizer.run import Run, TrainingData

    if threads:
        torch.set_num_threads(threads)
    rows = conditions(where)
    material = TrainingData.of(open_corpora(data or [], "train", where=rows), data or [], rows)
    run = Run(
        chosen, material, out, hidden=as_json, tensorboard=tensorboard, threads=workers,
        overwrite=overwrite, paths=data or [],
    )  # fmt: skip
    _refuse_other_model(out, overwrite)
    trained = run.train()
    if trained is None or not run.accelerator.is_main_process:
        return
    trained.save_pretrained(out / "model", dtype=torch.float16)
    show(
        {
            "model": str(out / "model"),
            "rows": {corpus.name: corpus.length for corpus in material.rows},
            "photos": len(material.photos),
            "report": f"viq report {out}",
        },
        as_json,
    )


def _refuse_other_model(run: Path, overwrite: bool) -> None:
    """The result goes to RUN/model; what is there before a run has begun is not of a run."""
    from viq.core.types import ViqError

    taken = run / "model"
    if not overwrite and not (run / "recipe.json").exists() and taken.exists():
        raise ViqError(f"{taken}: exists, but no run was begun in {run}; give another --out")


@app.command()
@guarded
def report(
    run: Annotated[Path, typer.Argument(help="Folder that viq train wrote.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="NAME.html or NAME.png; default in the run.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Curves, code use and pictures of a training run in one file."""
    from viq.report.run_page import make_report

    show(make_report(run, out or run / "report.html", overwrite=overwrite), as_json)


@app.command()
@guarded
def demo(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files or folders; else sample photos.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")] = Path("demo"),
    model: Model = "viq-tiny",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Originals, reconstructions and JPEGs of equal size, in one PNG and one HTML file."""
    import shlex

    from viq.image.open import list_images
    from viq.report.gallery import make_gallery, sample_photos

    sources = list_images(images) if images else sample_photos()
    tokenizer = load_tokenizer(model, "auto", "float32")
    command = shlex.join(["viq", "demo", *map(str, images or []), "-o", str(out)])
    with progress("rebuilding", len(sources), hidden=as_json) as advance:
        result = make_gallery(
            tokenizer,
            sources,
            out,
            title="ViQ",
            command=command,
            overwrite=overwrite,
            progress=lambda n: advance(),
        )
    if as_json:
        print(json.dumps(result))
    else:
        print(f"wrote {out / 'gallery.html'} and {out / 'gallery.png'}")


@app.command()
@guarded
def doctor(as_json: Json = False) -> None:
    """Versions, devices, known traps, and what to install for what."""
    from viq.jobs.doctor import examine

    show(examine(), as_json)


def main() -> None:
    """Entry point of the `viq` command."""
    make_plain()
    app()


if __name__ == "__main__":
    main()
