"""What notebooks show: tables in place of objects, and one bar in place of lines of progress."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from html import escape
from typing import Any


def in_notebook() -> bool:
    """Whether this is the process of a Jupyter notebook, where text cannot be drawn over."""
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None else None
    return type(found).__name__ == "ZMQInteractiveShell"


def html_table(title: str, facts: Mapping[str, Any]) -> str:
    """Facts as HTML, for `_repr_html_`; all text is escaped."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<div><b>{escape(title)}</b><table>{rows}</table></div>"


class NotebookBar:
    """A bar below a cell, a widget where ipywidgets is installed: tqdm, as other libraries have it.

    Args:
        what: in front of the bar.
        total: of what is counted; 0 if unknown.
        done: of it, before.
    """

    def __init__(self, what: str, total: float, done: float = 0) -> None:
        from tqdm.auto import tqdm

        self._bar: Any = tqdm(total=total or None, initial=done, desc=what)

    def to(self, done: float, total: float, beside: str) -> None:
        """How far it is, and what is said beside it."""
        self._bar.total = total or None
        self._bar.set_postfix_str(beside, refresh=False)
        self._bar.update(done - self._bar.n)

    def print_line(self, line: str) -> None:
        """A line that leaves the bar whole."""
        self._bar.write(line)

    def close(self) -> None:
        self._bar.close()
