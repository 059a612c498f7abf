"""The command line. Every command is a thin door: it parses, calls a job, and shows its result.

Heavy modules are imported inside the commands, so that `viq --help` answers at once. Exit codes:
0 all done; 2 the command cannot run (one line says why); 3 some inputs failed, the rest is done.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from viq.console import (
    progress,
    show,
    show_failures,
    show_reconstruction,
    show_record,
    show_report,
    show_understanding,
    terminable,
)

if TYPE_CHECKING:
    from viq.models.tokenizer import VisualTokenizer

USAGE, SOME_FAILED, INTERRUPTED = 2, 3, 130

app = typer.Typer(
    name="viq",
    help="Images of any size to discrete codes, and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
eval_app = typer.Typer(help="Measure quality and stability.", no_args_is_help=True)
bench_app = typer.Typer(help="Measure speed and memory, as ratios.", no_args_is_help=True)
app.add_typer(eval_app, name="eval")
app.add_typer(bench_app, name="bench")

Images = Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")]
Model = Annotated[str, typer.Option(help="Bundled name, model folder, or Hugging Face hub id.")]
Tile = Annotated[
    int | None,
    typer.Option(help="Encode in tiles above this side, px; 0 never. Default: the model's own."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto: cuda if there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16. Other dtypes than "
                                         "float32 change a few codes.")]  # fmt: skip
ImageColumn = Annotated[
    list[str] | None, typer.Option(help="Of tables: image columns. Default: image or images.")
]
KeyColumn = Annotated[str | None, typer.Option(help="Of tables. Default: key, __key__ or id.")]
Split = Annotated[str | None, typer.Option(help="Of Hugging Face data sets with several.")]
Root = Annotated[Path | None, typer.Option(help="Of JSON: the folder of relative image paths.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Overwrite = Annotated[bool, typer.Option(help="Replace an existing output.")]

Command = TypeVar("Command", bound=Callable[..., Any])


def guarded(command: Command) -> Command:
    """Turn what can go wrong with input into one line and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        from viq.types import ViqError

        try:
            return command(*args, **kwargs)
        except ViqError as error:
            message, code = str(error), USAGE
        except KeyboardInterrupt as stop:
            message = str(stop) or "interrupted; no unfinished file was left"
            code = INTERRUPTED
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(0) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            message, code = f"{where}{error.strerror or error}", USAGE
        if kwargs.get("as_json"):
            print(json.dumps({"error": message}))
        print(f"viq: {message}", file=sys.stderr)
        raise typer.Exit(code)

    return run  # type: ignore[return-value]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False):
    """Images of any size to discrete codes, and back."""
    if version:
        import viq

        print(viq.__version__)
        raise typer.Exit()


@app.command()
@guarded
def encode(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, .tar, .parquet, .jsonl, .txt lists of paths or URLs, hf:NAME."
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="FOLDER, NAME.parquet, or NAME.viq for one image.")
    ],
    model: Model = "viq-tiny",
    tile: Tile = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Shrink larger images to this area. Default: never.")
    ] = None,
    packed: Annotated[
        int,
        typer.Option(help="Patches in one sequence, for CUDA: 16384. Flips a few codes."),
    ] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Threads that decode, and on a CPU encode. Default: all.")
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Of a folder: inputs in a shard.")] = 1000,
    compress: Annotated[
        bool, typer.Option("--compress", help="Less than half the bytes, without loss; slower.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Of a folder: try again what failed.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(help="Of --world processes, which. Also RANK.")
    ] = None,
    world: Annotated[
        int | None, typer.Option(help="Processes on one folder. Also WORLD_SIZE.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray.")] = "local",
    image_column: ImageColumn = None,
    key_column: KeyColumn = None,
    split: Split = None,
    root: Root = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Images to codes, at native resolution. A folder is resumed if begun."""
    from viq import encode as job
    from viq.pipeline import EncodeOptions
    from viq.ranks import place_among
    from viq.types import ViqError

    options = EncodeOptions(
        tile=tile, max_pixels=max_pixels, packed=packed, shard_size=shard_size, compress=compress
    )
    place = place_among(rank, world)
    input_options = {
        "image_column": image_column, "key_column": key_column, "split": split, "root": root
    }  # fmt: skip
    source = job.open_inputs(inputs, **input_options)
    common = {"retry_failed": retry_failed, "overwrite": overwrite}
    with progress("encoding", len(source), hidden=as_json) as advance, terminable():
        if engine not in ("local", "ray"):
            raise ViqError(f"--engine {engine}: give local or ray")
        if engine == "ray":
            from viq.extras import ray_engine

            report = ray_engine.encode(
                _load(model, "cpu", dtype), model, inputs, input_options, source, out, options,
                actors=workers, progress=advance, **common,
            )  # fmt: skip
        else:
            tokenizer = _load(model, device, dtype, place.local)
            report = job.encode(
                tokenizer, source, out, options, workers=workers, place=place, progress=advance,
                **common,
            )  # fmt: skip
    if report.shrunk and not as_json:
        print(f"{report.shrunk} images had more than {max_pixels:,} pixels and were made smaller")
    show_report(report, as_json)
    if report.failures:
        raise typer.Exit(SOME_FAILED)


@app.command()
@guarded
def decode(
    files: Annotated[list[Path], typer.Argument(help="Stores, .parquet or .viq files.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the PNG files.")],
    model: Model = "viq-tiny",
    device: Device = "auto",
    force: Annotated[
        bool, typer.Option(help="Decode codes that another tokenizer made. They look wrong.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Codes to PNG images at their original sizes."""
    from viq.decode import count_images, decode_files

    total = count_images(files)
    tokenizer = _load(model, device, "float32")
    with progress("decoding", total, hidden=as_json) as advance:
        report = decode_files(tokenizer, files, out, force=force, progress=lambda pixels: advance())
    show_report(report, as_json)


@app.command()
@guarded
def info(
    what: Annotated[str, typer.Argument(help="A model (bundled, folder, hub id) or a code file.")],
    as_json: Json = False,
) -> None:
    """What is this: a model's dims, levels and fingerprint; a file's counts, sizes, code use."""
    from viq import info as describe

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
    from viq.eval.reconstruction import evaluate
    from viq.image import list_images

    paths = list_images(images)
    tokenizer = _load(model, device, dtype)
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
    from viq.eval.stability import measure
    from viq.image import list_images

    paths = list_images(images)
    tokenizer = _load(model, "cpu", "float32")
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
    from viq.eval.reconstruction import compare_tiles
    from viq.image import list_images

    paths = list_images(images)
    tokenizer = _load(model, "auto", "float32")
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
    steps: Annotated[int, typer.Option(help="Training steps of each.")] = 600,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write JSON here.")] = None,
    as_json: Json = False,
) -> None:
    """Train a small language model on frozen codes and ask it about held-out pictures."""
    import torch

    from viq.data.corpora import open_corpora
    from viq.eval.understanding import UnderstandingConfig, compare, make_exam
    from viq.files import write_atomically

    if threads:
        torch.set_num_threads(threads)
    conditions = _conditions(where)
    corpora = [open_corpora(data or [], split, where=conditions) for split in ("train", "held-out")]
    held_out = {corpus.name: corpus for corpus in corpora[1]}
    rows = [(c, held_out[c.name]) for c in corpora[0] if c.name in held_out]
    config = UnderstandingConfig(seeds=seeds, steps=steps)
    exam = make_exam(rows, config)
    named = [(name, "codes") for name in models] + [(n, "continuous") for n in continuous or []]
    candidates = [(f"{name} ({kind})", _load(name, "cpu", "float32"), kind) for name, kind in named]

    def keep(result: dict[str, Any]) -> None:
        if out is not None:
            write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())

    with progress("examining", len(named) * seeds * steps, hidden=as_json) as advance:
        result = compare(exam, candidates, config, progress=lambda step: advance(), done=keep)
    if as_json:
        print(json.dumps(result))
    else:
        show_understanding(result)


@bench_app.command("encode")
@guarded
def bench_encode(
    model: Model = "viq-tiny",
    repeats: Annotated[int, typer.Option(help="Interleaved runs; medians are shown.")] = 5,
    quick: Annotated[bool, typer.Option(help="Smaller sizes, about a minute.")] = False,
    only: Annotated[str | None, typer.Option(help="Sections by commas. Default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Images/s, patches/s, peak memory, time against size, and each fast path as a ratio."""
    from viq.bench import encode as bench

    tokenizer = _load(model, "auto", "float32")
    announce = None if as_json else lambda name: print(f"measuring {name}", file=sys.stderr)
    sections = only.split(",") if only else None
    result = bench.run(
        tokenizer, repeats=repeats, quick=quick, sections=sections, progress=announce
    )
    print(json.dumps(result) if as_json else bench.format(result))


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
    from viq.extras.convert import convert as run
    from viq.types import ViqError

    if rope_angle not in ("bfloat16", "float32"):
        raise ViqError(f"--rope-angle {rope_angle}: give bfloat16 or float32")
    try:
        numbers = [int(level) for level in levels.split(",")] if levels else None
    except ValueError:
        raise ViqError(f"--levels {levels}: give integers by commas, as 8,8,8,5,5,5") from None
    show(
        run(
            source, out, size=size, levels=numbers, heads=heads, name=name,
            rope_angle_dtype=rope_angle, force=overwrite,
        ),
        as_json,
    )  # fmt: skip


@app.command()
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
        codes_of = [Path(place) for place in data or []]
        show(train_entropy(_load(model, "cpu", "float32"), codes_of, report=told), as_json)
        return
    from viq.checkpoint import to_dict
    from viq.recipes import find_recipe, scaled, with_places

    places = {"start": start, "teacher": teacher, "vae": vae, "alignment": alignment}
    chosen = with_places(find_recipe(recipe), {**places, "language": language})
    chosen = scaled(chosen, scale) if scale != 1 else chosen
    if show_recipe:
        print(json.dumps(to_dict(chosen), indent=2))
        return
    import torch

    from viq.data.corpora import open_corpora
    from viq.train.stages import Run, TrainingData

    if threads:
        torch.set_num_threads(threads)
    # Numbers too small for the normal range make a CPU many times slower and mean nothing here.
    torch.set_flush_denormal(True)
    material = TrainingData.of(open_corpora(data or [], "train", where=_conditions(where)))
    run = Run(chosen, material, out, hidden=as_json, tensorboard=tensorboard, threads=workers)
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


def _conditions(where: list[str] | None) -> dict[str, str] | None:
    from viq.types import ViqError

    for condition in where or []:
        if "=" not in condition:
            raise ViqError(f"--where {condition}: give COLUMN=VALUE")
    return dict(condition.split("=", 1) for condition in where or []) or None


@app.command()
@guarded
def report(
    run: Annotated[Path, typer.Argument(help="Folder that viq train wrote.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="NAME.html or NAME.png; default in the run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Curves, code use and pictures of a training run in one file."""
    from viq.train.report import make_report

    show(make_report(run, out or run / "report.html"), as_json)


@app.command()
@guarded
def demo(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files or folders; else sample photos.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")] = Path("demo"),
    model: Model = "viq-tiny",
    as_json: Json = False,
) -> None:
    """Originals, reconstructions and JPEGs of equal size, in one PNG and one HTML file."""
    import shlex

    from viq.demo.gallery import make_gallery, sample_photos
    from viq.image import list_images

    sources = list_images(images) if images else sample_photos()
    tokenizer = _load(model, "auto", "float32")
    command = shlex.join(["viq", "demo", *map(str, images or []), "-o", str(out)])
    with progress("rebuilding", len(sources), hidden=as_json) as advance:
        result = make_gallery(
            tokenizer, sources, out, title="ViQ", command=command, progress=lambda n: advance()
        )
    if as_json:
        print(json.dumps(result))
    else:
        print(f"wrote {out / 'gallery.html'} and {out / 'gallery.png'}")


@app.command()
@guarded
def doctor(as_json: Json = False) -> None:
    """Versions, devices, known traps, and what to install for what."""
    from viq.doctor import examine

    show(examine(), as_json)


def _load(model: str, device: str, dtype: str, local_rank: int = 0) -> VisualTokenizer:
    import torch

    from viq.loading import load
    from viq.types import ViqError

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in dtypes:
        raise ViqError(f"--dtype {dtype}: give one of {', '.join(dtypes)}")
    if device == "auto":
        count = torch.cuda.device_count()  # ranks on one machine take one each
        device = f"cuda:{local_rank % count}" if count else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ViqError(f"--device {device}: not available here; see viq doctor") from None
    return load(model, device=device, dtype=dtypes[dtype])


def main() -> None:
    """Entry point of the `viq` command."""
    app()


if __name__ == "__main__":
    main()
