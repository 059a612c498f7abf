"""A run folder: what it was begun with, and which of its files are its own.

RUN/recipe.json   what runs
RUN/data.json     what it learns from: names, numbers of samples, digests of keys and sizes

Both are written when a run begins and must be the same whenever it goes on; a finished run belongs
to them, too. Data are told by what they hold, so they may have been moved since.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from viq.core.files import open_regular, write_atomically
from viq.core.locks import locked
from viq.core.types import ViqError
from viq.core.untrusted import printable
from viq.data.corpora.corpora import RowCorpus
from viq.image.open import IMAGE_SUFFIXES
from viq.metrics.run_log import RECIPE, read_recipe, stage_names
from viq.train.loop import TrainingError
from viq.train.old_names import with_new_names
from viq.weights import checkpoint
from viq.weights.checkpoint import read_object

DATA, MODEL, TEXT_TOKENIZER, CODES = "data.json", "model", "words", "codes"
RESERVED = (
    RECIPE,
    DATA,
    MODEL,
    TEXT_TOKENIZER,
    CODES,
    "cache",
    "codes.parquet",
)  # no stage is called so

_FORMAT = 1
_Run = TypeVar("_Run", bound=Any)
_Result = TypeVar("_Result")

_PIECE, _PIECES = 2**16, 64  # bytes of a file that are looked at: all of 4 MiB, or pieces
_DATA_SUFFIXES = frozenset({*IMAGE_SUFFIXES, ".parquet", ".tar", ".json", ".jsonl", ".ndjson",
                            ".txt"})  # fmt: skip


# What a run belongs to


def check_recipe(path: Path, recipe: Any, accelerator: Any) -> None:
    """Write the recipe of a run folder, or see that it is the one the folder was begun with.

    Raises:
        TrainingError: it is another one; names what differs.
    """
    if not accelerator.is_main_process:
        return
    now = json.loads(json.dumps(checkpoint.to_dict(recipe)))
    if path.is_file():
        differing = _differences(with_new_names(read_object(path), str(path)), now)
        if differing:
            raise TrainingError(
                f"{path}: this run was begun with another recipe ({'; '.join(differing[:4])}): "
                "give another --out, the same recipe, or --overwrite to begin anew"
            )
    write_atomically(path, _lines(now))


def alone(train: Callable[[_Run], _Result]) -> Callable[[_Run], _Result]:
    """A method of a run that is refused while another run is at work in the same folder.

    Of the processes of one run, the main one holds the lock for all.
    """

    @functools.wraps(train)
    def run(self: _Run) -> _Result:
        if not self.accelerator.is_main_process:
            return train(self)
        was_there = self.out.is_dir()
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.out):
                return train(self)
        finally:
            if not was_there:
                with suppress(OSError):
                    self.out.rmdir()  # made above; refuses a folder that holds anything

    return run


def check_data(
    out: Path, data: Mapping[str, Any], accelerator: Any, print_line: Callable[[str], None]
) -> None:
    """Write what a run learns from, or see that it is what the folder was begun with.

    Args:
        data: what an option names, by option: lists of `entry`, or plain values.

    Raises:
        TrainingError: it is something else; names both.
    """
    if not accelerator.is_main_process:
        return
    path, now = out / DATA, {"format": _FORMAT, **json.loads(json.dumps(data))}
    if path.is_file():
        before = read_object(path)
        differing = [
            f"{name} was {_shown(before[name])}, is now {_shown(now[name])}"
            for name in sorted(before.keys() & now.keys())  # what one does not tell is not compared
            if _content(before[name]) != _content(now[name])
        ]
        if differing:
            raise TrainingError(
                f"{path}: this run was begun with other data ({'; '.join(differing[:3])}): give "
                "another --out, the same data, or --overwrite to begin anew"
            )
        return
    if any((out / name).is_dir() for name in (*stage_names(read_recipe(out)), "draw")):
        print_line(
            f"{path}: this run was begun before its data were recorded; they are from now on"
        )
    write_atomically(path, _lines(now))


def entry(name: str, samples: int, *identity: Any) -> dict[str, Any]:
    """One data set in `data.json`."""
    digest = hashlib.sha256(repr(identity).encode(errors="surrogatepass")).hexdigest()[:16]
    return {"name": name, "samples": samples, "digest": digest}


def entries(corpora: Iterable[RowCorpus]) -> list[dict[str, Any]]:
    """Rows of files, told by their names."""
    return [
        entry(corpus.name, corpus.length, _digest_of(corpus.source.names())) for corpus in corpora
    ]


def sizes_of(paths: Iterable[str | Path]) -> list[int | None]:
    """Bytes of files of data; None for URLs and the like."""
    return [_bytes_of(path) for path in paths]


def contents_of(paths: Iterable[str | Path]) -> list[str | None]:
    """Digests of files of data, of large ones by pieces; None for URLs and the like.

    Pictures that lie beside what names them are not read.
    """
    return [_pieces_of(path) for path in paths]


def _pieces_of(path: str | Path) -> str | None:
    files = [os.fspath(path)] if os.path.isfile(path) else _files_of(path)
    files = [file for file in files if os.path.splitext(file)[1].lower() not in IMAGE_SUFFIXES]
    if not files:
        return None
    state = hashlib.sha256()
    for file in files:
        size = os.path.getsize(file)
        count = -(-size // _PIECE) if size <= _PIECES * _PIECE else _PIECES
        with open_regular(file) as data:
            for number in range(count):
                data.seek((size - _PIECE) * number // max(1, count - 1) if count > 1 else 0)
                state.update(data.read(_PIECE))
    return state.hexdigest()[:16]


def _digest_of(names: Iterable[str]) -> str:
    state = hashlib.sha256()
    for name in names:
        state.update(name.encode(errors="surrogatepass") + b"\n")
    return state.hexdigest()


def _bytes_of(path: str | Path) -> int | None:
    """Of a file, or of the files of data in a folder; None for what is no place here."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(map(os.path.getsize, _files_of(path))) if os.path.isdir(path) else None


def _files_of(path: str | Path) -> list[str]:
    """The files of data in a folder, in an order that stays."""
    return sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if os.path.splitext(name)[1].lower() in _DATA_SUFFIXES
        and os.path.isfile(os.path.join(folder, name))
    )


def _content(value: Any) -> Any:
    """Without names, which change when data are moved."""
    if isinstance(value, list):
        return [{k: v for k, v in item.items() if k != "name"} if isinstance(item, dict) else item
                for item in value]  # fmt: skip
    return value


def _shown(value: Any) -> str:
    if not isinstance(value, list):
        return printable(str(value), 80) if value else "none"
    told = [
        f"{item.get('name')} ({item.get('samples')} samples, {str(item.get('digest'))[:8]})"
        if isinstance(item, dict)
        else str(item)
        for item in value
    ]
    return printable(", ".join(told) or "none", 160)


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two recipes in JSON, one line a value."""
    old, new = _by_name(old), _by_name(new)
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [
            line
            for name in names
            for line in _differences(old.get(name), new.get(name), f"{where}.{name}".lstrip("."))
        ]
    return [] if old == new else [printable(f"{where} was {old!s:.60}, is now {new!s:.60}")]


def _by_name(value: Any) -> Any:
    """A list of stages as a mapping from their names; other values as they are."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return {str(item.get("name", place)): item for place, item in enumerate(value)}
    return value


def _lines(values: Any) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


# Beginning anew

_TOKENIZER_FILES = (
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.json|merges\.txt|chat_template\.jinja"
)
_MODEL_FILES = (r"config\.json|generation_config\.json|digest\.json"
                r"|model\.safetensors|entropy\.safetensors"
                r"|model-\d{5}-of-\d{5}\.safetensors|model\.safetensors\.index\.json"
                r"|(pre)?processor_config\.json|vae/config\.json"
                rf"|vae/diffusion_pytorch_model\.safetensors|{_TOKENIZER_FILES}")  # fmt: skip
_MODEL = re.compile(rf"(language/)?({_MODEL_FILES})")
_STAGE = re.compile(
    r"(log|codes|skipped)\.jsonl|trackers\.json|reader\.safetensors|grids/step-\d{6}\.png"
    r"|tensorboard/events\.out\.tfevents\.[^/]+|step-\d{1,16}/state\.(json|safetensors|pt)"
    rf"|(model|tower)/(language/)?({_MODEL_FILES})"
)
_RUN = re.compile(
    rf"recipe\.json|data\.json|codes\.parquet|words/({_TOKENIZER_FILES})"
    rf"|model/(language/)?({_MODEL_FILES})"
    r"|codes/(part-\d{5,}\.parquet|_index\.json|_job\.json|_failures\.jsonl"
    r"|\.huggingface\.yaml"
    r"|_entropy-[0-9a-f]{1,64}\.safetensors)"
)
_WHOLE = re.compile(r"words/.*|[^/]+/model/.*|[^/]+/step-\d+/.*")  # folders that come whole


def begin_anew(
    out: Path,
    print_line: Callable[[str], None],
    *,
    reads: Iterable[str | Path | None] = (),
    extra_stages: Sequence[str] = (),
) -> None:
    """Remove what earlier runs wrote into a run folder, file by file, by the names they give.

    Args:
        say: is told what else lies there; it stays.
        reads: data and models that the new run is to read; names of the hub are no places here.
        extra_stages: of runs whose recipe lists none.

    Raises:
        ViqError: a folder that is to be written anew holds something else, or what is to be read;
            nothing is removed.
    """
    if not (out / RECIPE).is_file():
        return
    for place in reads:
        if place is not None and Path(os.path.realpath(place)).is_relative_to(out.resolve()):
            raise ViqError(f"{place}: lies in {out}, which --overwrite empties; move it out first")
    stages = [*stage_names(read_recipe(out)), *extra_stages]
    own, others = _split(out, lambda name: _is_own(name, stages))
    others = [name for name in others if name != ".lock"]  # of this very process
    if blocking := [name for name in others if _WHOLE.fullmatch(name)]:
        raise ViqError(
            f"{out}: --overwrite cannot replace {printable(blocking[0], 100)}, which no run wrote: "
            "move it away"
        )
    own.sort(key=lambda name: name == RECIPE)  # last: with it goes what tells that this is a run
    _remove(out, own)
    others = [name for name in others if not name.startswith("cache/")]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        shown = printable(", ".join(others[:3]), 200)
        print_line(f"{out}: {shown}{more} stay, as no run wrote them")


def empty_model(folder: Path) -> None:
    """Make room for a model where a killed process, or release 0.1, left a part of one.

    Raises:
        ViqError: the folder holds something else; nothing is removed.
    """
    own, others = _split(folder, _MODEL.fullmatch)
    if others:
        raise ViqError(
            f"{folder / others[0]}: is in the way of the model that is to be written; move it away"
        )
    _remove(folder, own)


def _is_own(name: str, stages: Sequence[str]) -> bool:
    if _RUN.fullmatch(name):
        return True
    stage, _, rest = name.partition("/")
    return stage in stages and bool(_STAGE.fullmatch(rest))


def _split(root: Path, is_own: Callable[[str], object]) -> tuple[list[str], list[str]]:
    """Names below a folder, with slashes: plain files that are our own, and all else."""
    own: list[str] = []
    others: list[str] = []
    for folder, folders, names in os.walk(root):  # does not follow links
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in [*names, *links]:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            plain = path.is_file() and not path.is_symlink()
            (own if plain and is_own(relative) else others).append(relative)
    return own, sorted(others)


def _remove(root: Path, names: Sequence[str]) -> None:
    """Remove files, and then the folders that this leaves empty."""
    for name in names:
        (root / name).unlink(missing_ok=True)  # a plain file with a name that only we give
    folders = {parent for name in names for parent in (root / name).parents if parent != root}
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        if folder.is_relative_to(root):
            try:
                folder.rmdir()  # refuses one that still holds anything
            except OSError:
                continue
