"""Pages about the commands, from the command line itself: its help texts, options and examples.

One page for each command of `viq`, one for each group of commands with all that are in it.
"""

from __future__ import annotations

import re
from typing import Any

import typer

from viq.cli import app
from viq.cli.help import PANELS


def command_pages() -> dict[str, str]:
    """Markdown by the name of the command; commands that help hides have none."""
    root: Any = typer.main.get_command(app)
    pages = {}
    for name, command in _shown(root):
        parts = [f"# viq {name}\n", *_body(command, f"viq {name}")]
        for inner, below in _shown(command):
            parts += [f"\n## viq {name} {inner}\n", *_body(below, f"viq {name} {inner}")]
        pages[name] = "\n".join(parts) + "\n"
    return pages


def first_sentences() -> dict[str, str]:
    """What `viq --help` says of each command."""
    root: Any = typer.main.get_command(app)
    return {name: _first(command.help) for name, command in _shown(root)}


def _shown(group: Any) -> list[tuple[str, Any]]:
    commands = getattr(group, "commands", {})
    return [(name, command) for name, command in commands.items() if not command.hidden]


def _first(text: str | None) -> str:
    return (text or "").split("\n\n")[0].replace("\n", " ")


def _body(command: Any, words: str) -> list[str]:
    context = typer.Context(command, info_name=words)
    usage = _metavars(" ".join([words, *command.collect_usage_pieces(context)]))
    lines = [_plain(command.help or ""), "", "```text", usage, "```", ""]
    if command.examples:
        lines += ["```bash", command.examples, "```", ""]
    if getattr(command, "commands", None):
        inner = (f"viq {words.partition(' ')[2]} {name}" for name, _ in _shown(command))
        links = [f"- [{name}](#{name.replace(' ', '-')})" for name in inner]
        return [*lines, *links, ""]
    for panel in (None, *PANELS):
        records = _records(command, context, panel)
        if records:
            lines += [f"**{panel or 'Arguments'}**", ""]
            for names, said in records:
                lines += [f"`{_metavars(names)}`", f": {_plain(said) or '...'}", ""]
    return lines


def _records(command: Any, context: Any, panel: str | None) -> list[tuple[str, str]]:
    """Names and help of the arguments (panel None), or of the options in a panel."""
    found = []
    for parameter in (*command.params, command.get_help_option(context)):
        if parameter.rich_help_panel == panel and not parameter.hidden:
            record = parameter.get_help_record(context)
            found += [record] if record else []
    return found


def _metavars(text: str) -> str:
    """What stands for a value: <str> for typer's <list[str]>, INPUT for its {input}."""
    text = re.sub(r"<list\[(.+?)\]>", r"<\1>", text).replace(" <Any>", "")
    return re.sub(r"\{(\w+)\}", lambda match: match[1].upper(), text)


def _plain(text: str) -> str:
    """Text whose signs mean nothing to Markdown; what stands in backquotes stays code."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"([\\*_<\[\]#|~])", r"\\\1", piece)
        for piece in pieces
    )
