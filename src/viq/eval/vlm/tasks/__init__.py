"""The nine benchmarks of the paper, by the names that lmms-eval has for them."""

from __future__ import annotations

from collections.abc import Sequence

from viq.core.untrusted import printable
from viq.eval.vlm.tasks.ai2d import AI2D
from viq.eval.vlm.tasks.base import Like, Part, Scored, Task
from viq.eval.vlm.tasks.chartqa import ChartQA
from viq.eval.vlm.tasks.docvqa import DocVQA, InfoVQA
from viq.eval.vlm.tasks.mmmu import MMMU
from viq.eval.vlm.tasks.mmstar import MMStar
from viq.eval.vlm.tasks.ocrbench import OCRBench
from viq.eval.vlm.tasks.simplevqa import SimpleVQA
from viq.eval.vlm.tasks.textvqa import TextVQA

__all__ = ["ALL", "TASKS", "Like", "Part", "Scored", "Task", "named"]

# In the order of the paper's table.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        MMStar(), MMMU(), SimpleVQA(), InfoVQA(), TextVQA(), DocVQA(), OCRBench(), AI2D(), ChartQA()
    )
}  # fmt: skip
ALL = "all"


def named(names: Sequence[str]) -> tuple[list[Task], list[str]]:
    """The tasks of these names, each once, and a line for each name that there is not."""
    wanted = [one for name in names for one in (TASKS if name == ALL else [name])]
    known = [TASKS[name] for name in dict.fromkeys(wanted) if name in TASKS]
    unknown = [
        f"--tasks {printable(name, 80)}: no such task; give all or some of {', '.join(TASKS)}"
        for name in dict.fromkeys(wanted)
        if name not in TASKS
    ]
    return known, unknown
