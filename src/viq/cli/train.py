"""The commands that train: `viq train tokenizer`, `entropy`, `mllm` and `generation`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from viq.cli.common import (
    Json,
    Overwrite,
    Root,
    Threads,
    conditions,
    guarded,
    load_tokenizer,
    use_threads,
)
from viq.cli.console import show, show_record
from viq.cli.groups import DataAccess, RunOptions, grouped
from viq.cli.help import App, Group

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")  # a recipe

Out = Annotated[Path, typer.Option("-o", "--out", help="Run folder; resumed if begun.")]
Where = Annotated[
    list[str] | None, typer.Option(help="Only samples with COLUMN=VALUE, as for a licence.")
]
Language = Annotated[str | None, typer.Option(help="Causal language model: folder or hub id.")]
Workers = Annotated[int, typer.Option(help="Threads that make samples.")]


class TrainGroup(Group):
    """`viq train NAME ...` means `viq train tokenizer NAME ...`, where NAME is no command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args[:2] == ["tokenizer", "entropy"]:  # as it was spelled when it was a recipe
            args = args[1:]
        if args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = ["tokenizer", *args]
        return super().parse_args(ctx, args)


train_app = App(
    cls=TrainGroup,
    help="""Train a tokenizer (viq train NAME), or a language model on codes.

    Examples:
        viq train tiny --data pairs/ --out runs/mine
        viq train mllm tiny
    """,
)


@train_app.command("tokenizer")
@guarded
@grouped
def train_tokenizer(
    recipe: Annotated[
        str, typer.Argument(help="tiny, transform, small, so400m, g, debug, or FILE.json.")
    ],
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Pictures with captions, questions or labels: JSON, JSONL, Parquet, WebDataset, "
            "a folder, hf:OWNER/NAME. Again for more. Synthetic pictures are always there."
        ),
    ] = None,
    out: Out = Path("runs/tiny"),
    where: Where = None,
    root: Root = None,
    access: DataAccess,
    start: Annotated[str | None, typer.Option(help="SigLIP2 the encoder begins from.")] = None,
    teacher: Annotated[str | None, typer.Option(help="SigLIP2 that is distilled.")] = None,
    sentences: Annotated[
        str | None,
        typer.Option(
            help="Model of sentence-transformers that a teacher or a text head learns from: "
            "folder or hub id. Default: that of viq[sentences]."
        ),
    ] = None,
    language: Language = None,
    vae: Annotated[str | None, typer.Option(help="Folder of the Qwen-Image VAE.")] = None,
    alignment: Annotated[str | None, typer.Option(help="DINOv2 for the decoder stage.")] = None,
    options: RunOptions,
    workers: Workers = 1,
) -> None:
    """Train a tokenizer through the stages of a recipe. Run again to resume.

    Examples:
        viq train tokenizer tiny --data pairs/ --out runs/mine
        viq train tokenizer tiny --print > mine.json
        viq train tokenizer mine.json --data captions.parquet --track tensorboard
    """
    from viq.core.types import ViqError
    from viq.recipes.registry import RECIPES
    from viq.train.tokenizer.recipe import TokenizerRecipe

    if recipe == "entropy":
        raise ViqError("entropy is a command, not a recipe: viq train entropy --model MODEL")
    places = {"start": start, "teacher": teacher, "sentences": sentences, "vae": vae,
              "alignment": alignment}  # fmt: skip
    chosen = _find(recipe, RECIPES, TokenizerRecipe, {**places, "language": language}, options)
    _begin(chosen, options)
    import torch

    from viq.data.corpora.corpora import open_corpora
    from viq.train.tokenizer.run import TokenizerRun, TrainingData

    rows = conditions(where)
    corpora = open_corpora(data or [], "train", where=rows, root=root, access=access.access())
    material = TrainingData.of(corpora, data or [], rows)
    run = TokenizerRun(
        chosen, material, out, hidden=options.as_json, report_to=options.report_to,
        threads=workers, overwrite=options.overwrite, paths=data or [],
    )  # fmt: skip
    _refuse_other_model(out, options.overwrite)
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
        options.as_json,
    )


@train_app.command("refinement")
@guarded
def train_refinement(
    model: Annotated[str, typer.Argument(help="With a transform code: bundled name or folder.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="Photos, and pictures with text for pages. Again for more."),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the model.")] = Path(
        "refined"
    ),
    where: Where = None,
    root: Root = None,
    crops: Annotated[int, typer.Option(help="Cut from the pictures.")] = 600,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fit what viq encode --bpp, --psnr and --nbytes need, to a tokenizer that is trained.

    Examples:
        viq train refinement runs/transform/2-decoder/model --data photos.parquet -o refined
    """
    use_threads(threads)
    import torch

    from viq.core.outputs import require_folder, require_free
    from viq.data.corpora.corpora import open_corpora
    from viq.models.tokenizer.refinement import RefinementConfig
    from viq.train.tokenizer.refinement_fit import RefinementFitConfig, refined
    from viq.train.tokenizer.run import TrainingData
    from viq.train.tokenizer.transform_stage import gather_crops
    from viq.weights.checkpoint import CONFIG_FILE, WEIGHTS_FILE

    require_folder(out)
    require_free(out / CONFIG_FILE, out / WEIGHTS_FILE, overwrite=overwrite)
    tokenizer = load_tokenizer(model, "cpu", "float32")
    rows = conditions(where)
    material = TrainingData.of(open_corpora(data or [], "train", where=rows, root=root))
    fit = RefinementFitConfig(crops=crops)
    found = gather_crops(fit, material.photos, material.rows)
    records: list[dict[str, float]] = []
    made = refined(tokenizer, found, RefinementConfig(), fit, records.append)
    made.save_pretrained(out, dtype=torch.float16)
    figures = {name: value for record in records for name, value in record.items()}
    show({"model": str(out), "crops": len(found), **figures}, as_json)


@train_app.command("entropy")
@guarded
@grouped
def train_entropy(
    *,
    model: Annotated[
        str, typer.Option(help="The tokenizer: a model folder that can be written.")
    ] = "viq-tiny",
    data: Annotated[
        list[str] | None, typer.Option(help="Photos, or stores of codes; again for more.")
    ] = None,
    root: Root = None,
    access: DataAccess,
    threads: Threads = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the entropy model that is there.")
    ] = False,
    counts_only: Annotated[
        bool,
        typer.Option("--counts-only", help="Keep its tables; fit what counts (--bpp) say."),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many pictures.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit what `viq encode --compress` needs to the codes of photos. Minutes on one core.

    Examples:
        viq train entropy --model runs/mine/model --data photos/
        viq train entropy --model runs/mine/model --data codes --overwrite
    """

    from viq.train.entropy import train_entropy as run

    use_threads(threads)
    report = (lambda record: None) if as_json else show_record
    tokenizer = load_tokenizer(model, "cpu", "float32")
    fitted = run(
        tokenizer, data or [], root=root, access=access.access(), overwrite=overwrite,
        counts_only=counts_only, limit=limit, report=report,
    )  # fmt: skip
    show(fitted, as_json)


@train_app.command("mllm")
@guarded
@grouped
def train_mllm(
    recipe: Annotated[
        str,
        typer.Argument(
            help="tiny, small, base, finetune, qwen, qwen-lora, qwen-16k, debug, or a recipe "
            "file.json."
        ),
    ],
    *,
    codes: Annotated[
        list[str] | None,
        typer.Option(
            help="Store of codes whose samples have conversations, captions or labels, as viq "
            "encode makes it; again for more. Default of tiny: pictures it draws and encodes."
        ),
    ] = None,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Beside --codes, also what the recipe draws.")
    ] = False,
    drawn: Annotated[bool, typer.Option("--drawn", hidden=True)] = False,  # of release 0.1
    text: Annotated[
        list[str] | None, typer.Option(help="File of conversations without images; again for more.")
    ] = None,
    out: Out = Path("runs/mllm"),
    tokenizer: Annotated[
        str | None, typer.Option(help="That made the codes: bundled name, folder, or hub id.")
    ] = None,
    language: Language = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Go on from a trained model: bundled name, folder, or hub id. Default of "
            "finetune: viq-transform-chat."
        ),
    ] = None,
    where: Where = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for unpacked shards. Default: in the run folder.")
    ] = None,
    options: RunOptions,
    workers: Workers = 1,
) -> None:
    """Train a language model on stored codes. Run again to resume.

    Examples:
        viq train mllm tiny
        viq train mllm finetune --codes codes --out runs/mine
        viq train mllm qwen-lora --codes codes --language Qwen/Qwen2.5-0.5B --out runs/qwen
    """
    from viq.recipes.mllm import RECIPES
    from viq.train.mllm.recipe import MllmRecipe

    places = {"tokenizer": tokenizer, "language": language, "start": start}
    chosen = _find(recipe, RECIPES, MllmRecipe, places, options)
    _begin(chosen, options)
    from viq.train.mllm.run import MllmRun

    run = MllmRun(
        recipe=chosen, out=out, stores=codes or [], synthetic=synthetic or drawn, texts=text or [],
        where=conditions(where), cache=cache, hidden=options.as_json,
        report_to=options.report_to, threads=workers, overwrite=options.overwrite,
    )  # fmt: skip
    model = run.train()
    if run.accelerator.is_main_process:
        samples = {corpus.name: corpus.length for group in run.corpora for corpus in group}
        hint = f'viq chat IMAGE "What is this?" --model {out}'
        show(
            {"model": str(model), "samples": samples, **run.listed(), "next": hint}, options.as_json
        )


@train_app.command("generation")
@train_app.command("draw", hidden=True, deprecated=True)
@guarded
@grouped
def train_generation(
    recipe: Annotated[
        str, typer.Argument(help="tiny, transform, qwen, debug, or a recipe file.json.")
    ],
    *,
    codes: Annotated[
        list[str] | None,
        typer.Option(
            help="Store or Parquet file of codes with a caption column; again for more. Default: "
            "pictures of shapes that it draws and encodes."
        ),
    ] = None,
    out: Out = Path("runs/generation"),
    tokenizer: Annotated[
        str | None, typer.Option(help="Whose codes are written: bundled name, folder, or hub id.")
    ] = None,
    language: Language = None,
    steps: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    options: RunOptions,
) -> None:
    """Train a language model to write codes. Run again to resume.

    Examples:
        viq train generation tiny
        viq train generation tiny --codes codes --steps 2000 --out runs/mine
    """
    from dataclasses import replace

    from viq.core.types import ViqError
    from viq.recipes.generation import RECIPES
    from viq.train.generation.recipe import GenerationRecipe

    if steps is not None and options.scale != 1:
        raise ViqError("--steps and --scale: give one of them")
    places = {"tokenizer": tokenizer, "language": language}
    chosen = _find(recipe, RECIPES, GenerationRecipe, places, options)
    if steps is not None:
        chosen = replace(chosen, loop=replace(chosen.loop, steps=steps))
    _begin(chosen, options)
    from viq.train.generation.run import GenerationRun

    run = GenerationRun(
        recipe=chosen,
        out=out,
        stores=codes or [],
        hidden=options.as_json,
        report_to=options.report_to,
        overwrite=options.overwrite,
    )
    model = run.train()
    if run.accelerator.is_main_process:
        hint = f'viq generate "a red circle left of a blue square" -o out.png --model {out}'
        show({"model": str(model), "next": hint}, options.as_json)


def _find(
    name: str,
    recipes: Mapping[str, Callable[[], R]],
    kind: type[R],
    places: Mapping[str, str | None],
    options: RunOptions,
) -> R:
    """The recipe that the options ask for, with its places and length."""
    from viq.recipes.registry import find, scaled, with_places

    chosen = with_places(find(name, recipes, kind), places)
    return scaled(chosen, options.scale) if options.scale != 1 else chosen


def _begin(recipe: Any, options: RunOptions) -> None:
    """Print the recipe and end the command where that is asked for; else prepare to train."""
    from viq.core.errors import require
    from viq.weights.checkpoint import to_dict

    if options.show_recipe:
        print(json.dumps(to_dict(recipe), indent=2))
        raise typer.Exit()
    with require("accelerate", "train", "training"):  # before libraries that viq[chat] brings, too
        import accelerate  # noqa: F401
    use_threads(options.threads)


def _refuse_other_model(run: Path, overwrite: bool) -> None:
    """The result goes to RUN/model; what is there before a run has begun is not of a run."""
    from viq.core.types import ViqError

    taken = run / "model"
    if not overwrite and not (run / "recipe.json").exists() and taken.exists():
        raise ViqError(f"{taken}: exists, but no run was begun in {run}; give another --out")
