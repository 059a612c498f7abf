"""The commands on multimodal language models: train, chat, caption, eval."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from viq.cli.common import Anew, Device, Json, Model, Overwrite, conditions, find_device, guarded
from viq.cli.console import show, show_quality
from viq.cli.progress import progress
from viq.core.interrupts import stoppable

RunModel = Annotated[str, typer.Option("--model", help="Run folder, model folder, or hub id.")]
Tokens = Annotated[int, typer.Option(help="Length of an answer at most.")]
Temperature = Annotated[float, typer.Option(help="Of sampling; 0 takes the likeliest word.")]


class TrainGroup(TyperGroup):
    """`viq train NAME ...` means `viq train tokenizer NAME ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = ["tokenizer", *args]
        return super().parse_args(ctx, args)


train_app = typer.Typer(
    cls=TrainGroup,
    help="Train a tokenizer (viq train NAME), or a language model on codes.",
    no_args_is_help=True,
)


@train_app.command("mllm")
@guarded
def train_mllm(
    recipe: Annotated[
        str,
        typer.Argument(
            help="tiny, small, qwen, qwen-lora, qwen-16k, debug, or a recipe file.json."
        ),
    ],
    codes: Annotated[
        list[str] | None,
        typer.Option(
            help="Store of codes whose samples have conversations, captions or labels, as viq "
            "encode makes it; again for more. Default of tiny: pictures it draws and encodes."
        ),
    ] = None,
    drawn: Annotated[
        bool, typer.Option("--drawn", help="Beside --codes, also what the recipe draws.")
    ] = False,
    text: Annotated[
        list[str] | None, typer.Option(help="File of conversations without images; again for more.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder; resumed if begun.")] = Path(
        "runs/mllm"
    ),
    tokenizer: Annotated[
        str | None, typer.Option(help="That made the codes: bundled name, folder, or hub id.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Causal language model: folder or hub id.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only samples with COLUMN=VALUE, as for a licence.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for unpacked shards. Default: in the run folder.")
    ] = None,
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
    """Train a language model on stored codes. Run again to resume."""
    from viq.recipes.mllm import RECIPES
    from viq.recipes.registry import find, scaled, with_places
    from viq.train.mllm.recipe import MllmRecipe
    from viq.train.mllm.run import MllmRun
    from viq.weights.checkpoint import to_dict

    chosen = find(recipe, RECIPES, MllmRecipe)
    chosen = with_places(chosen, {"tokenizer": tokenizer, "language": language})
    chosen = scaled(chosen, scale) if scale != 1 else chosen
    if show_recipe:
        print(json.dumps(to_dict(chosen), indent=2))
        return
    import torch

    if threads:
        torch.set_num_threads(threads)
    run = MllmRun(
        recipe=chosen, out=out, stores=codes or [], drawn=drawn, texts=text or [],
        where=conditions(where), cache=cache, hidden=as_json, tensorboard=tensorboard,
        threads=workers, overwrite=overwrite,
    )  # fmt: skip
    model = run.train()
    if run.accelerator.is_main_process:
        samples = {corpus.name: corpus.length for group in run.corpora for corpus in group}
        hint = f'viq chat IMAGE "What is this?" --model {out}'
        show({"model": str(model), "samples": samples, **run.listed(), "next": hint}, as_json)


@guarded
def chat(
    images_and_question: Annotated[
        list[str],
        typer.Argument(
            metavar="[IMAGE]... [QUESTION]",
            help="Images or .viq files, then the question, with <image> where an image goes; "
            "without any, images come first. Without a question, asks for them line by line.",
        ),
    ],
    model: RunModel = "viq-tiny-chat",
    max_tokens: Tokens = 256,
    temperature: Temperature = 0.0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Ask about images, once or in a conversation. Answers appear word by word."""
    from viq.mllm.chat import ask, sampling

    *places, question = images_and_question
    asked: Iterable[str] = [question]
    if Path(question).is_file():
        places, asked = images_and_question, _typed()
    loaded, processor = _load(model, device)
    before: list[dict[str, str]] = []
    for question in asked:
        answer = ask(
            loaded, processor, places, question, before=before, stream=not as_json,
            max_new_tokens=max_tokens, **sampling(temperature),
        )  # fmt: skip
        if as_json:
            print(json.dumps({"question": question, "images": places, "answer": answer}))
        said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        before += said if answer else []  # no turn may be empty


@guarded
@stoppable()
def caption(
    store: Annotated[str, typer.Argument(help="Store or Parquet file of codes.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="NAME.jsonl; gone on with if begun.")],
    model: RunModel = "viq-tiny-chat",
    prompt: Annotated[str, typer.Option(help="What is asked of each.")] = "Describe the image.",
    batch: Annotated[int, typer.Option(help="Samples at a time.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Samples at most. Default: all.")] = None,
    max_tokens: Tokens = 256,
    temperature: Temperature = 0.0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Describe every sample of a store, or answer one question about each, from codes alone."""
    from viq.mllm.chat import answer_store, sampling

    loaded, processor = _load(model, device)
    with progress("asking", limit or 0, hidden=as_json) as advance:
        report = answer_store(
            loaded, processor, store, out, prompt=prompt, batch=batch, limit=limit,
            progress=advance, max_new_tokens=max_tokens, **sampling(temperature),
        )  # fmt: skip
    show({**report, "answers": str(out)}, as_json)


@guarded
def eval_mllm(
    model: Annotated[str, typer.Argument(help="Run folder, model folder, or hub id.")],
    codes: Annotated[
        list[str] | None,
        typer.Option(help="Store with conversations; again for more. Default: drawn in the run."),
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE.")] = None,
    by: Annotated[
        str, typer.Option(help="Column that names kinds of questions: a text, or one an answer.")
    ] = "kinds",
    limit: Annotated[int, typer.Option(help="Questions of each store at most.")] = 500,
    batch: Annotated[int, typer.Option(help="Questions at a time.")] = 32,
    max_tokens: Tokens = 64,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write JSON here.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Ask a model questions that it was not trained on, and count right answers."""
    from viq.core.files import write_atomically
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
    loaded, processor = _load(model, device)
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
    if out is not None:
        write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())
    if as_json:
        print(json.dumps(result))
    else:
        print(*lines(result), sep="\n")


@guarded
def eval_features(
    model: Model = "viq-tiny",
    data: Annotated[
        list[str] | None,
        typer.Option(help="Pictures with questions or labels, beside drawn ones; again for more."),
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE.")] = None,
    seeds: Annotated[int, typer.Option(help="Language models trained on each kind.")] = 3,
    steps: Annotated[int, typer.Option(help="Training steps of each.")] = 1000,
    pictures: Annotated[int, typer.Option(help="To train on.")] = 3000,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write JSON here.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train the same language model on codes, on continuous features, and blind; compare them."""
    import torch

    from viq.core.files import write_atomically
    from viq.core.outputs import require_free
    from viq.data.corpora.corpora import open_split
    from viq.eval.probes.exam import UnderstandingConfig, make_exam
    from viq.eval.probes.features import KINDS, compare_features
    from viq.recipes.mllm import tiny

    require_free(out, overwrite=overwrite)
    if threads:
        torch.set_num_threads(threads)
    config = UnderstandingConfig(
        seeds=seeds, steps=steps, language=tiny().language,
        train_pictures=pictures, test_pictures=max(20, pictures * 3 // 10),
    )  # fmt: skip
    exam = make_exam(open_split(data or [], where=conditions(where)), config)

    def keep(result: dict[str, Any]) -> None:
        if out is not None:
            write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())

    with progress("training", seeds * len(KINDS), hidden=as_json) as advance:
        result = compare_features(exam, model, config, progress=advance, done=keep)
    if as_json:
        print(json.dumps(result))
    else:
        show_quality(result)


def _typed() -> Iterator[str]:
    """Lines from a terminal, until an empty one or the end, or from a pipe."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line:
            yield line
        elif prompt:
            return


def _load(model: str, device: str) -> tuple[Any, Any]:
    import torch

    from viq.mllm.loading import load_mllm

    device = find_device(device)
    half = device.startswith("cuda") and torch.cuda.is_bf16_supported()
    return load_mllm(model, device=device, dtype=torch.bfloat16 if half else torch.float32)
