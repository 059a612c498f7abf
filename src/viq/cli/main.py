"""The command line. Every command parses its options, calls a job, and shows the result.

Heavy modules are imported inside the commands, so that `viq --help` answers at once. Exit codes:
0 all done; 2 the command cannot run (one line says why); 3 some inputs failed, the rest is done;
130 interrupted; 143 training was asked to stop (SIGTERM) and has saved.
"""

from __future__ import annotations

from typing import Annotated

import typer

from viq.cli.ablate import ablate
from viq.cli.bench import bench_app
from viq.cli.chat import caption, chat
from viq.cli.codes import decode, encode
from viq.cli.compare import compare
from viq.cli.eval import eval_app
from viq.cli.export import export
from viq.cli.generate import generate
from viq.cli.help import App
from viq.cli.store import store_app
from viq.cli.tools import convert, demo, doctor, info, models, report
from viq.cli.train import train_app
from viq.cli.web import web
from viq.core.terminal import make_plain

app = App(
    name="viq",
    help="""Images of any size to discrete codes, and back.

    Examples:
        viq encode photos/ -o codes.parquet
        viq decode codes.parquet -o back/
        viq train tiny --data pairs/ --out runs/mine
        viq compare photos/ -o page.html
    """,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# What help shows together, in this order.
for panel, commands in {
    "Codes": (encode, decode, info, models, demo, web),
    "Language models": (chat, caption, generate),
    "Train and measure": (compare, ablate, report),
    "Other": (convert, export, doctor),
}.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(store_app, name="store", rich_help_panel="Codes")
app.add_typer(train_app, name="train", rich_help_panel="Train and measure")
app.add_typer(eval_app, name="eval", rich_help_panel="Train and measure")
app.add_typer(bench_app, name="bench", rich_help_panel="Train and measure")
app.command("draw", hidden=True, deprecated=True)(generate)  # its name in release 0.1


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False):
    """Images of any size to discrete codes, and back."""
    if version:
        import viq

        print(viq.__version__)
        raise typer.Exit()


def main() -> None:
    """Entry point of the `viq` command."""
    make_plain()
    app()


if __name__ == "__main__":
    main()
