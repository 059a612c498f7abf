"""The command that shows pages in a browser: `viq web`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from viq.cli.common import Device, Json, Model, find_device, guarded
from viq.cli.console import show_json
from viq.core.files import DEFAULT_CHAT, DEFAULT_MODEL
from viq.core.remote import location


@guarded
def web(
    model: Model = DEFAULT_MODEL,
    chat: Annotated[
        str, typer.Option(help="Run folder, model folder or hub id; 'none' for no conversations.")
    ] = DEFAULT_CHAT,
    draw: Annotated[
        str | None, typer.Option(help="Run folder of viq train generation, to draw with.")
    ] = None,
    store: Annotated[
        list[Any] | None,
        typer.Option(parser=location, metavar="STORE", help="To browse; again for more."),
    ] = None,
    run: Annotated[
        list[Path] | None, typer.Option(help="Run folder of viq train to follow; again for more.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="VIQ_WEB_TOKEN",
            help="What visitors have to know; needed for another --host. 16 characters or more.",
        ),
    ] = None,
    hostname: Annotated[
        list[str] | None, typer.Option(help="Host name under which visitors come; again for more.")
    ] = None,
    max_upload: Annotated[int, typer.Option(min=1, help="MB of an upload.")] = 32,
    max_pixels: Annotated[
        int, typer.Option(min=256, help="Larger pictures are made smaller first.")
    ] = 4_000_000,
    max_seconds: Annotated[int, typer.Option(min=1, help="Of one piece of work.")] = 120,
    max_waiting: Annotated[int, typer.Option(min=1, help="Pieces of work that may wait.")] = 64,
    max_kept: Annotated[
        int, typer.Option(min=1, help="MB of pictures in memory; the oldest go first.")
    ] = 256,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Pages to look at codes, ask about pictures, and browse stores, served from this machine.

    Examples:
        viq web
        viq web --store codes --run runs/mine
        viq web --host 0.0.0.0 --token correct-horse-battery-staple
    """
    from viq.core.errors import require

    with require("fastapi", "web", "viq web"):
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    from viq.web.config import Limits, WebConfig
    from viq.web.serve import serve

    def announce(address: str) -> None:
        if as_json:
            show_json({"address": address})
        else:
            print(f"viq web: open {address} (Ctrl-C ends it)")
        sys.stdout.flush()  # who reads it through a pipe waits for it

    limits = Limits(
        upload_bytes=max_upload * 2**20, max_pixels=max_pixels, seconds=float(max_seconds),
        waiting=max_waiting, kept_bytes=max_kept * 2**20,
    )  # fmt: skip
    serve(
        WebConfig(
            model=model, chat=None if chat == "none" else chat, draw=draw,
            stores=tuple(store or ()), runs=tuple(run or ()), host=host, port=port, token=token,
            names=tuple(hostname or ()), device=find_device(device), limits=limits,
        ),
        announce,
    )  # fmt: skip
