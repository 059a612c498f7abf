"""Run the real lmms-eval, offline, over small files of the nine benchmarks, with the model viq.

    python scripts/lmms_eval_check.py --data tests/golden/benchmarks/fixtures

It compares every score and every answer with those of `viq eval vlm`, and fails if one differs, or
if lmms-eval wrote no results: its exit code is 0 whatever happens. `make test-lmms` makes an
environment for it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# By task: the split of its data set, and the headline metric.
TASKS = {
    "mmstar": ("val", "average"),
    "mmmu_val": ("validation", "mmmu_acc"),
    "simplevqa": ("test", "exact_match"),
    "infovqa_val": ("validation", "anls"),
    "textvqa_val": ("validation", "exact_match"),
    "docvqa_val": ("validation", "anls"),
    "ocrbench": ("test", "ocrbench_accuracy"),
    "ai2d": ("test", "exact_match"),
    "chartqa": ("test", "relaxed_overall"),
}
PREFIX = "local_"  # of our tasks, which differ from the official ones in their data alone
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def main() -> int:
    """0 if every task has a score, and `viq eval vlm`, where it is there, gets the same."""
    options = _options()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        _write_tasks(folder / "tasks", options.data.resolve())
        results, answers = _lmms_eval(folder, options)
        scores = {task: _score(results, task) for task in TASKS}
        ours, own_answers = _viq_eval(folder, options)
    if options.out:
        record = {"scores": scores, "answers": answers}
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    asked = [(task, number) for task in own_answers for number in range(len(answers[task]))]
    different = [f"{t}/{n}" for t, n in asked if own_answers[t].get(n) != answers[t][n]]
    print(f"{len(asked)} answers compared, different: {', '.join(different) or 'none'}")
    return max(_compare(scores, ours), int(bool(different)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of TASK.parquet")
    parser.add_argument("--model", default="viq-tiny-chat")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="that share the rows, on the CPU")
    parser.add_argument("--out", type=Path, help="scores and answers as JSON")
    return parser.parse_args()


def _write_tasks(folder: Path, data: Path) -> None:
    """The official tasks, on local data."""
    found = importlib.util.find_spec("lmms_eval")
    if found is None or found.origin is None:
        sys.exit("lmms-eval is not installed: make test-lmms, or pip install 'viq[lmms]'")
    official = Path(found.origin).parent / "tasks"
    folder.mkdir()
    for task, (split, _) in TASKS.items():
        (source,) = official.glob(f"*/{task}.yaml")
        lines = {
            "include": str(source),
            "task": PREFIX + task,
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(data / f"{task}.parquet")}},
        }
        text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items())
        (folder / f"{PREFIX}{task}.yaml").write_text(text)


def _lmms_eval(folder: Path, options: argparse.Namespace) -> tuple[Any, dict[str, list[str]]]:
    """Results of lmms-eval, and the answers by task, in the order of the rows."""
    launch = [sys.executable, "-m"]
    if options.processes > 1:
        launch += ["torch.distributed.run", "--standalone"]
        launch += ["--nproc_per_node", str(options.processes), "-m"]
    command = [
        *launch, "lmms_eval", "--model", "viq", "--model_args", f"pretrained={options.model}",
        "--tasks", ",".join(PREFIX + task for task in TASKS), "--include_path", folder / "tasks",
        "--batch_size", options.batch_size, "--device", "cpu", "--verbosity", "DEBUG",
        "--output_path", folder / "out", "--log_samples",
    ]  # fmt: skip
    settings = OFFLINE | {"HF_HOME": str(folder / "cache"), "ACCELERATE_USE_CPU": "true"}
    log = folder / "log"
    with log.open("w") as file:
        subprocess.run(
            list(map(str, command)), env=os.environ | settings, cwd=folder,
            stdout=file, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    results = sorted(folder.glob("out/**/*_results.json"))
    if not results:
        sys.exit(f"{log.read_text()[-6000:]}\nlmms-eval wrote no results")
    return json.loads(results[-1].read_text()), {task: _answers(folder, task) for task in TASKS}


def _answers(folder: Path, task: str) -> list[str]:
    (file,) = folder.glob(f"out/**/*_samples_{PREFIX}{task}.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    numbers = [row["doc_id"] for row in rows]
    if sorted(numbers) != list(range(len(rows))):
        sys.exit(f"{task}: rows {numbers} were asked; each should be, once")
    rows.sort(key=lambda row: row["doc_id"])
    return [row["filtered_resps"] for row in rows]


def _score(results: Any, task: str) -> float:
    """The headline metric; lmms-eval writes the name of a filter behind that of the metric."""
    values = results["results"][PREFIX + task]
    found = [name for name in values if name.split(",")[0] == TASKS[task][1]]
    if len(found) != 1:
        sys.exit(f"{task}: {TASKS[task][1]} is not one of its metrics, {', '.join(values)}")
    return float(values[found[0]])


def _viq_eval(
    folder: Path, options: argparse.Namespace
) -> tuple[dict[str, float], dict[str, dict[int, str]]]:
    """Scores of `viq eval vlm` by task, and answers by task and row.

    Empty where the package has no such command.
    """
    viq = str(Path(sys.executable).with_name("viq"))
    if subprocess.run([viq, "eval", "vlm", "--help"], capture_output=True).returncode:
        return {}, {}
    out = folder / "ours"
    command = [
        viq, "eval", "vlm", "--model", options.model, "--tasks", ",".join(TASKS),
        "--data", str(options.data), "-o", str(out), "--like", "lmms-eval", "--device", "cpu",
        "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\nviq eval vlm failed")
    scores = {name: task["score"] for name, task in json.loads(done.stdout)["tasks"].items()}
    return scores, {task: _own_answers(out / "answers" / f"{task}.jsonl") for task in TASKS}


def _own_answers(file: Path) -> dict[int, str]:
    """Answers by row, of lines {key: "TASK/ROW", answer}."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {int(row["key"].rpartition("/")[2]): row["answer"] for row in rows}


def _compare(scores: dict[str, float], ours: dict[str, float]) -> int:
    """Print both; 1 if they differ.

    To an answer that names no option of MMMU lmms-eval gives one at random, and `viq eval vlm`
    counts it wrong, so there our score may be lower.
    """
    different = [
        task
        for task in ours
        if abs(ours[task] - scores[task]) > 1e-9
        and not (task == "mmmu_val" and ours[task] < scores[task])
    ]
    print(f"{'task':14} {'lmms-eval':>10} {'viq eval vlm':>12}")
    for task, score in scores.items():
        own = f"{ours[task]:12.6f}" if task in ours else f"{'-':>12}"
        print(f"{task:14} {score:10.6f} {own}")
    if different:
        print(f"differ: {', '.join(different)}")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
