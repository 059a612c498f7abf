"""The command that compares tokenizers and codecs: `viq compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viq.cli.common import (
    SOME_FAILED,
    Json,
    Overwrite,
    Threads,
    Tile,
    find_device,
    guarded,
    names_of,
    use_threads,
)
from viq.cli.console import line, show_failures, show_json, table
from viq.cli.progress import progress
from viq.core.files import DEFAULT_MODEL


@guarded
def compare(
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders of them, or tables with images.")
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option("--with", help="By commas: viq-tiny or another tokenizer of ours, jpeg, webp, "
                                    "avif, qlip:FOLDER, unitok:FOLDER, simvq:FOLDER. Behind ours "
                                    "and codecs, @0.25: at most so many bits a pixel."),
    ] = None,
    crop: Annotated[
        int | None, typer.Option(help="Shorter side to this many px, then the central square.")
    ] = None,
    sizes: Annotated[
        str, typer.Option("--bytes", help="Of codecs: equal (those of the first tokenizer), or "
                                          "native: a sweep of qualities.")
    ] = "equal",
    ocr: Annotated[
        bool, typer.Option("--ocr", help="Also how much of the text is still legible.")
    ] = False,
    transcript: Annotated[
        str | None,
        typer.Option(help="Of tables: the column with the text on a picture. Default: transcript, "
                          "if there; else what the OCR reads on the original."),
    ] = None,
    each: Annotated[
        int | None,
        typer.Option(help="Only the first so many pictures of each table or folder."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many pictures.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed runs; 0 measures no speed.")] = 3,
    timed: Annotated[int, typer.Option(help="Pictures that speed is measured on.")] = 4,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also peak memory, in a fresh process a row.")
    ] = False,
    shown: Annotated[int, typer.Option(help="Pictures on the page.")] = 4,
    tile: Tile = None,
    compress: Annotated[
        bool, typer.Option("--compress", help="Ours with @: bits as viq encode --compress stores.")
    ] = False,
    device: Annotated[str, typer.Option(help="Of our tokenizers: cpu, cuda, mps or auto.")] = "cpu",
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="NAME.html, to look at.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Tokenizers and codecs on the same pictures: bits, quality, text, speed, side by side.

    Examples:
        viq compare photos/ -o page.html
        viq compare photos/ --with viq-tiny,viq-transform,jpeg --bytes native
        viq compare pages.parquet --ocr --transcript text
    """
    import shlex
    import sys

    from viq.core.types import ViqError
    from viq.eval.compare.legibility import Reader
    from viq.eval.compare.run import Options, chosen
    from viq.eval.compare.run import compare as run
    from viq.jobs.inputs import open_inputs
    from viq.report.compare_page import require_page, write_page

    if out is not None:
        require_page(out, overwrite)
    if transcript is not None and not ocr:
        raise ViqError("--transcript: says what --ocr should read; give --ocr, too")
    use_threads(threads)
    options = Options(
        crop=crop, bytes=sizes, each=each, limit=limit, tile=tile, compress=compress,
        device=find_device(device), transcript=transcript, timed=timed, repeats=repeats,
        memory=memory, shown=shown if out else 0,
    )  # fmt: skip
    names = names_of(methods) or [DEFAULT_MODEL, "jpeg", "webp", "avif"]
    source = open_inputs(images)
    count = len(chosen(source, each, limit))
    with progress("comparing", count, hidden=as_json) as advance:
        found = run(
            source, names, options, reader=Reader() if ocr else None, progress=lambda: advance()
        )
    if out is not None:
        command = shlex.join(["viq", *sys.argv[1:]])
        write_page(out, found.result, found.sections, command)
    if as_json:
        show_json(found.result)
    else:
        _show(found.result, out)
    if found.result["failed"]:
        show_failures(found.result["failed"])
    if found.result["failed"] or found.result["left_out"]:
        raise typer.Exit(SOME_FAILED)


def _show(result: dict, out: Path | None) -> None:
    """The table, and what one has to know to read it."""
    from viq.report.compare_table import headings_and_cells, left_out, notes

    table(*headings_and_cells(result))
    print()
    for name, why in left_out(result):
        line(f"{name} is left out: {why}")
    for note in notes(result):
        line(note)
    if out is not None:
        line(f"wrote {out}")
