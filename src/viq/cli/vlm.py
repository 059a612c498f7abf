"""The command that runs the nine vision-language benchmarks: `viq eval vlm`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viq.cli.common import SOME_FAILED, Batch, Device, Json, find_device, guarded, names_of
from viq.cli.console import line, show_failures, show_json, table
from viq.cli.progress import progress
from viq.core.interrupts import stoppable

if TYPE_CHECKING:
    from viq.eval.vlm.benchmarks import Outcome
    from viq.eval.vlm.models import Model

_LIKE = ("viq", "lmms-eval")


@guarded
@stoppable()
def vlm(
    model: Annotated[
        str | None,
        typer.Option(help="Run or model folder, bundled name or hub id: ours, or image-text-to-text"
                          " of transformers."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="By commas, as lmms-eval names them; all. Default: all, or those of "
                          "--answers."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of TASK.parquet files, or of data sets. Default: the hub."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the run; gone on with if begun.")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="Score these, without a model: lists of answers by task, or JSON lines."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Rows of each task at most.")] = None,
    batch: Batch = 8,
    like: Annotated[
        str, typer.Option(help="viq; or lmms-eval: pictures of MMMU where it puts them.")
    ] = "viq",
    codes: Annotated[
        Path | None,
        typer.Option(help="Folder of codes of the pictures, to share. Default: OUT/codes."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Of a model of ours: its tokenizer, if it is not where the model says."),
    ] = None,
    device: Device = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew: remove answers in OUT; codes stay.")
    ] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """MMStar, MMMU, SimpleVQA, InfoVQA, TextVQA, DocVQA, OCRBench, AI2D and ChartQA.

    Examples:
        viq eval vlm --model viq-tiny-chat --tasks ai2d,chartqa -o runs/vlm
        viq eval vlm --answers answers.jsonl --tasks textvqa
    """
    from viq.core.types import ViqError
    from viq.eval.vlm.benchmarks import evaluate, score_ready
    from viq.eval.vlm.run_folder import CODES, opened, weights_identity

    if (model is None) == (answers is None):
        raise ViqError("give --model M to ask one, or --answers FILE to score ready answers")
    if like not in _LIKE:
        raise ViqError(f"--like {like}: give one of {', '.join(_LIKE)}")
    names = names_of(tasks)
    if answers is not None:
        outcome = score_ready(answers, names or (), data, limit=limit)
        if out is not None:
            with opened(out, {"answers": str(answers)}, overwrite=overwrite) as run:
                outcome.save(run)
        return _show(outcome, None, as_json)
    if model is None or out is None:
        raise ViqError("-o OUT: give a folder for answers and scores")
    asked = _load(model, codes or out / CODES, device, tokenizer)
    facts = {"model": model, "weights": weights_identity(asked.folder), "like": like}
    with opened(out, facts, overwrite=overwrite) as run:
        outcome = evaluate(
            asked, run, names or ("all",), data, like=like, limit=limit, batch=batch,
            report=_reporter(as_json),
        )  # fmt: skip
        outcome.save(run)
    _show(outcome, asked, as_json)


def _load(name: str, codes: Path, device: str, tokenizer: str | None) -> Model:
    """The model, in bfloat16 where the device has it."""
    import torch

    from viq.eval.vlm.code_model import CodeModel
    from viq.eval.vlm.models import is_ours
    from viq.eval.vlm.pixel_model import PixelModel

    found = find_device(device)
    half = found.startswith("cuda") and torch.cuda.is_bf16_supported()
    dtype = torch.bfloat16 if half else torch.float32
    if is_ours(name):
        return CodeModel(name, codes, device=found, dtype=dtype, tokenizer=tokenizer)
    return PixelModel(name, device=found, dtype=dtype)


def _reporter(hidden: bool) -> Callable[[str, int], Any]:
    def report(what: str, total: int) -> Any:
        return progress(what, total, hidden=hidden)

    return report


def _show(outcome: Outcome, model: Model | None, as_json: bool) -> None:
    from viq.eval.vlm.benchmarks import lines

    if as_json:
        show_json(outcome.as_json())
    else:
        table(*lines(outcome))
        print()
        if model is not None:
            line(f"pictures: {model.pictures}")
        for note in outcome.notes:
            line(note)
    if outcome.failed:
        show_failures([{"reason": reason} for reason in outcome.failed])
        raise typer.Exit(SOME_FAILED)
