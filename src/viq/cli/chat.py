"""The commands that ask a multimodal language model: chat, caption."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from viq.cli.common import Device, Json, Tokens, guarded, load_mllm
from viq.cli.console import show, show_json
from viq.cli.progress import progress
from viq.core.files import DEFAULT_CHAT
from viq.core.interrupts import stoppable

RunModel = Annotated[str, typer.Option("--model", help="Run folder, model folder, or hub id.")]
Temperature = Annotated[float, typer.Option(help="Of sampling; 0 takes the likeliest word.")]


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
    model: RunModel = DEFAULT_CHAT,
    max_tokens: Tokens = 256,
    temperature: Temperature = 0.0,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            help="Say that it is not known where the model is less sure, from 0 to 1. Default: "
            "that of the model.",
            min=0.0,
            max=1.0,
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Ask about images, once or in a conversation. Answers appear word by word.

    Examples:
        viq chat photo.jpg "What is this?"
        viq chat photo.jpg --model runs/mllm
        viq chat a.png b.png "Which is red, <image> or <image>?" --json
    """
    from viq.jobs.info import purpose_of
    from viq.mllm.chat import ask, sampling

    *places, question = images_and_question
    asked: Iterable[str] = [question]
    if Path(question).is_file():
        places, asked = images_and_question, _typed()
    loaded, processor = load_mllm(model, device)
    if sys.stderr.isatty() and (purpose := purpose_of(model)):
        print(f"{model}: {purpose}", file=sys.stderr)
    before: list[dict[str, str]] = []
    for question in asked:
        answer = ask(
            loaded, processor, places, question, before=before, stream=not as_json,
            min_confidence=min_confidence, max_new_tokens=max_tokens, **sampling(temperature),
        )  # fmt: skip
        if as_json:
            show_json({"question": question, "images": places, "answer": answer})
        said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        before += said if answer else []  # no turn may be empty


@guarded
@stoppable()
def caption(
    store: Annotated[str, typer.Argument(help="Store or Parquet file of codes.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="NAME.jsonl; gone on with if begun.")],
    model: RunModel = DEFAULT_CHAT,
    prompt: Annotated[str, typer.Option(help="What is asked of each.")] = "Describe the image.",
    batch: Annotated[int, typer.Option(help="Samples at a time.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Samples at most. Default: all.")] = None,
    max_tokens: Tokens = 256,
    temperature: Temperature = 0.0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Describe every sample of a store, or answer one question about each, from codes alone.

    Examples:
        viq caption codes -o captions.jsonl --model runs/mllm
        viq caption codes -o answers.jsonl --prompt "Is there text in it?" --limit 100
    """
    from viq.mllm.chat import answer_store, sampling

    loaded, processor = load_mllm(model, device)
    with progress("asking", limit or 0, hidden=as_json) as advance:
        report = answer_store(
            loaded, processor, store, out, prompt=prompt, batch=batch, limit=limit,
            progress=advance, max_new_tokens=max_tokens, **sampling(temperature),
        )  # fmt: skip
    show({**report, "answers": str(out)}, as_json)


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
