"""The command that writes a part of a tokenizer for other runtimes: `viq export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viq.cli.common import Json, Overwrite, guarded, load_tokenizer
from viq.cli.console import show


@guarded
def export(
    model: Annotated[str, typer.Argument(help="A tokenizer: bundled name, folder, or hub id.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="NAME.onnx or NAME.pt2 to write.")],
    to: Annotated[
        str | None, typer.Option("--to", help="onnx or torch-export. Default: by the name.")
    ] = None,
    part: Annotated[str, typer.Option(help="encoder, decoder or embedder.")] = "encoder",
    check: Annotated[
        list[Path] | None, typer.Option(help="Image files or folders to compare on, too.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Encoder, decoder or embedder for ONNX or torch.export: one file, pictures of any size.

    The file is compared with PyTorch on three sizes before it gets its name.

    Examples:
        viq export viq-tiny -o encoder.onnx
        viq export viq-tiny --part decoder -o decoder.pt2 --check kodak
    """
    from viq.image.open import list_images
    from viq.jobs.export import export as run

    pictures = list_images(check) if check else []
    tokenizer = load_tokenizer(model, "cpu", "float32")
    result = run(tokenizer, out, to=to, part=part, pictures=pictures, overwrite=overwrite)
    show(result, as_json)
