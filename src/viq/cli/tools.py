"""The commands info, models, convert, report, demo and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viq.cli.common import Json, Model, Overwrite, guarded, load_tokenizer
from viq.cli.console import show, show_json
from viq.cli.progress import progress


@guarded
def info(
    what: Annotated[str, typer.Argument(help="A model (bundled, folder, hub id) or a code file.")],
    as_json: Json = False,
) -> None:
    """What is this: a model's dims, levels and fingerprint; a file's counts, sizes, code use.

    Examples:
        viq info viq-tiny
        viq info codes.parquet --json
    """
    from viq.jobs import info as describe

    show(describe.describe(what), as_json)


@guarded
def models(as_json: Json = False) -> None:
    """The models that come with the package: names, sizes, and what each is for.

    Examples:
        viq models
        viq models --json
    """
    from viq.jobs.info import bundled_models

    found = bundled_models()
    if as_json:
        show_json({"models": found})
    else:
        show({model.pop("name"): model for model in found}, False)


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
    """Weights of the official release to a model folder.

    Examples:
        viq convert model_viq_fsq_64k.pth -o viq-64k
        viq convert weights.safetensors -o mine --levels 8,8,8,5,5,5
    """
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


@guarded
def report(
    run: Annotated[Path, typer.Argument(help="Folder that viq train wrote.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="NAME.html or NAME.png; default in the run.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Curves, code use and pictures of a training run in one file.

    Examples:
        viq report runs/mine
        viq report runs/mine -o mine.png
    """
    from viq.report.run_page import make_report

    show(make_report(run, out or run / "report.html", overwrite=overwrite), as_json)


@guarded
def demo(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files or folders; else sample pictures.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")] = Path("demo"),
    model: Model = "viq-transform",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Originals, reconstructions and JPEGs of equal size, in one PNG and one HTML file.

    Examples:
        viq demo
        viq demo a.jpg photos/ -o demo --model viq-tiny
    """
    import shlex

    from viq.image.open import list_images
    from viq.report.gallery import make_gallery
    from viq.report.samples import sample_pictures

    sources = list_images(images) if images else sample_pictures()
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
        show_json(result)
    else:
        print(f"wrote {out / 'gallery.html'} and {out / 'gallery.png'}")


@guarded
def doctor(as_json: Json = False) -> None:
    """Versions, devices, known traps, and what to install for what.

    Examples:
        viq doctor
        viq doctor --json
    """
    from viq.jobs.doctor import diagnose

    show(diagnose(), as_json)
