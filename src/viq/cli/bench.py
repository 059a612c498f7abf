"""The commands that measure speed and memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from viq.cli.common import Json, Model, guarded, load_tokenizer, save_json
from viq.cli.console import show_json
from viq.cli.help import App
from viq.core.files import DEFAULT_MODEL

bench_app = App(
    help="""Measure speed and memory, as ratios.

    Examples:
        viq bench encode --quick
        viq bench mllm --scaled
    """
)

Repeats = Annotated[int, typer.Option(help="Interleaved runs; medians are shown.")]
Only = Annotated[str | None, typer.Option(help="Sections by commas. Default: all.")]


@bench_app.command("encode")
@guarded
def bench_encode(
    model: Model = DEFAULT_MODEL,
    repeats: Repeats = 5,
    quick: Annotated[bool, typer.Option(help="Smaller sizes, about a minute.")] = False,
    only: Only = None,
    as_json: Json = False,
) -> None:
    """Images/s, patches/s, peak memory, time against size, and each fast path as a ratio.

    Examples:
        viq bench encode --quick
        viq bench encode --model viq-transform --repeats 9 --json
    """
    from viq.bench import encode as bench

    tokenizer = load_tokenizer(model, "auto", "float32")
    sections = only.split(",") if only else None
    result = bench.run(
        tokenizer, repeats=repeats, quick=quick, sections=sections, progress=_announce(as_json)
    )
    if as_json:
        show_json(result)
    else:
        print(bench.as_text(result))


@bench_app.command("store")
@guarded
def bench_store(
    model: Model = DEFAULT_MODEL,
    pictures: Annotated[
        list[Path] | None,
        typer.Option(help="A set whose codes are packed: folder, or Parquet. Again for more."),
    ] = None,
    peers: Annotated[
        Path | None, typer.Option(help="Folder that bench/peers.sh made. Default: leave them out.")
    ] = None,
    repeats: Repeats = 5,
    quick: Annotated[bool, typer.Option(help="Little work, about a minute.")] = False,
    only: Only = None,
    as_json: Json = False,
) -> None:
    """Bits a code, samples/s beside other libraries, images/s into a store, memory.

    Examples:
        viq bench store --quick
        viq bench store --pictures photos/
    """
    from viq.bench import store as bench

    result = bench.run(
        model, pictures=pictures or [], peers=peers, repeats=repeats, quick=quick,
        sections=only.split(",") if only else None, progress=_announce(as_json),
    )  # fmt: skip
    if as_json:
        show_json(result)
    else:
        print(bench.as_text(result))


@bench_app.command("mllm")
@guarded
def bench_mllm(
    llm: Annotated[str, typer.Option(help="Qwen2.5 shapes by commas.")] = "0.5b,1.5b,3b,7b",
    length: Annotated[str, typer.Option(help="Tokens of a sequence, by commas.")] = "4k,16k",
    repeats: Repeats = 5,
    full: Annotated[
        bool | None,
        typer.Option(
            "--full/--scaled",
            help="Published shapes, or smaller ones of their proportions. Default: full on CUDA.",
        ),
    ] = None,
    side: Annotated[int, typer.Option(help="Images have up to this area squared, px.")] = 768,
    text: Annotated[int, typer.Option(help="Tokens of text beside each image.")] = 128,
    checkpointing: Annotated[bool, typer.Option(help="Of the language model's layers.")] = True,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="JSON; cells are added to what is there.")
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Also draw the steps: NAME.png.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a --chart that is there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """A step on codes against a vision tower in the loop, text alone, and the paper.

    Examples:
        viq bench mllm --scaled
        viq bench mllm --llm 0.5b --length 4k -o speed.json --chart speed.png
    """
    import torch

    from viq.bench import mllm as bench
    from viq.bench.mllm_tables import chart as draw
    from viq.bench.mllm_tables import merged
    from viq.core.files import written_aside
    from viq.core.outputs import is_there, require_free
    from viq.core.types import ViqError
    from viq.report.charts import to_image

    full = torch.cuda.is_available() if full is None else full
    work = bench.MllmWorkload(
        side=side,
        text=text,
        answer=text // 2,
        checkpointing=checkpointing,
        scale=bench.REAL if full else bench.SCALED,
    )
    old = _read(out, "mllm") if out is not None and is_there(out) else None
    if old is not None:
        merged(old, bench.about(work, repeats), str(out))  # refused before the work, not after
    if chart is not None and chart.suffix != ".png":
        raise ViqError(f"--chart {chart}: give NAME.png")
    require_free(chart, overwrite=overwrite, option="--chart")
    result = bench.run(
        llm.split(","),
        length.split(","),
        repeats=repeats,
        work=work,
        progress=_announce(as_json),
    )
    if out is not None:
        result = merged(old, result, str(out)) if old is not None else result
        save_json(out, result)
    if chart is not None:
        with written_aside(chart) as aside:
            to_image(draw(result), 2).save(aside, "PNG")
    if as_json:
        show_json(result)
    else:
        print(bench.as_text(result))


@bench_app.command("growth")
@guarded
def bench_growth(
    model: Model = DEFAULT_MODEL,
    repeats: Annotated[int, typer.Option(min=1, help="Runs; medians are shown.")] = 3,
    quick: Annotated[bool, typer.Option(help="Small sizes, some minutes.")] = False,
    only: Only = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="JSON; sections are added to what is there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """How time and memory grow with pixels, samples and tokens; needs an hour and 2 GB of disk.

    Examples:
        viq bench growth --quick
        viq bench growth --only samples -o growth.json
    """
    from viq.bench import growth as bench
    from viq.bench.growth_tables import as_text
    from viq.core.outputs import is_there

    old = _read(out, "growth") if out is not None and is_there(out) else {}
    result = bench.run(
        model, repeats=repeats, quick=quick, sections=only.split(",") if only else None,
        progress=_announce(as_json),
    )  # fmt: skip
    result = {**old, **result}
    save_json(out, result)
    if as_json:
        show_json(result)
    else:
        print(as_text(result))


def _read(path: Path, benchmark: str) -> dict[str, Any]:
    from viq.core.files import read_bytes
    from viq.core.types import ViqError
    from viq.core.untrusted import CONFIG_BYTES, UntrustedError, parse_json

    try:
        found = parse_json(read_bytes(path, CONFIG_BYTES), str(path))
    except UntrustedError:
        found = {}
    if isinstance(found, dict):
        found.pop("schema_version", None)  # says nothing of the measurement
    if not isinstance(found, dict) or found.get("benchmark") != benchmark:
        raise ViqError(f"{path}: not a result of viq bench {benchmark}: give another --out")
    return found


def _announce(hidden: bool) -> Callable[[str], None]:
    def announce(name: str) -> None:
        if not hidden:
            print(f"measuring {name}", file=sys.stderr)

    return announce
