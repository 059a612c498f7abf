"""What training runs of every kind share: one recipe a folder, one text tokenizer, an observer."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viq.core.files import folder_aside
from viq.core.types import ViqError
from viq.core.untrusted import file_name
from viq.data.batching.mixture import Part, Stream
from viq.data.corpora.corpora import RowCorpus
from viq.data.text.text_tokenizer import load_text_tokenizer, train_text_tokenizer
from viq.models.language.vision_language import LanguageConfig
from viq.train.loop import Hooks, LoopConfig
from viq.train.monitor import Bar, Journal
from viq.train.run_folder import RESERVED

if TYPE_CHECKING:
    from viq.data.corpora.synthetic_corpus import SyntheticCorpus


def check_stage_names(recipe: str, names: Sequence[str]) -> None:
    """Each stage has a folder of its own, in the run folder.

    Raises:
        ViqError: no names, one given twice, or one that no folder can have.
    """
    if not names or len(set(names)) < len(names):
        raise ViqError(f"recipe {recipe}: its stages need different names, got {names}")
    for name in names:
        if file_name(name, f"recipe {recipe}, name of a stage") in RESERVED:
            raise ViqError(f"recipe {recipe}: no stage can be called {name}, as other files are")


def check_language(recipe: str, language: LanguageConfig) -> None:
    """Of recipes whose stages say it themselves: nothing that would be passed over.

    Raises:
        ViqError: adapters or gradient checkpointing are asked for in `language`.
    """
    if language.adapter or language.gradient_checkpointing:
        raise ViqError(
            f"recipe {recipe}: language.adapter and language.gradient_checkpointing belong to "
            "recipes of tokenizers; give them in a stage, where stages have them"
        )


def own_lanes(stage: str, gradient_accumulation: int, accelerator: Any) -> range:
    """The lanes of this process (data/batching/mixture.py): a micro-batch a step each.

    Raises:
        ViqError: processes would have different numbers of them.
    """
    world = accelerator.num_processes
    if gradient_accumulation % world:
        raise ViqError(
            f"{stage}: {gradient_accumulation} micro-batches a step cannot be shared by {world} "
            f"processes: set gradient_accumulation to a multiple of {world}"
        )
    return range(accelerator.process_index, gradient_accumulation, world)


def shared(parts: Sequence[Part], share: float) -> list[Part]:
    """The same parts, weighing `share` together."""
    total = sum(part.weight for part in parts)
    return [replace(part, weight=part.weight / total * share) for part in parts]


def make_text_tokenizer(
    config: LanguageConfig, folder: Path, texts: Iterable[str], accelerator: Any
) -> Any:
    """The language model's own; from scratch, one that is trained on `texts`, once, in `folder`."""
    if config.name is None:
        if accelerator.is_main_process and not folder.is_dir():
            with folder_aside(folder) as aside:
                train_text_tokenizer(texts, config.vocabulary).save_pretrained(aside)
        accelerator.wait_for_everyone()
    return load_text_tokenizer(config.name or folder)


def first_texts(
    corpora: Iterable[RowCorpus | SyntheticCorpus], seed: int, samples: int = 3000
) -> Iterator[str]:
    """Questions and answers of the first samples of every corpus."""
    rng = random.Random(seed)
    yield "system user assistant You are a helpful assistant."
    for corpus in corpora:
        for index in range(min(corpus.length or samples // 4, samples)):
            try:
                yield from corpus.texts(index, rng)
            except ViqError:
                continue


class Observer:
    """Log, bar and list of bad samples of one stage; does nothing but on the main process.

    Args:
        skipped: (key, reason) of what could not even be read.
        report_to: names of trackers that get the numbers of the log.

    Attributes:
        stream: whose bad samples are listed; set when there is one.
    """

    def __init__(
        self,
        name: str,
        loop: LoopConfig,
        folder: Path,
        accelerator: Any,
        *,
        skipped: Sequence[tuple[str, str]] = (),
        hidden: bool = False,
        report_to: Sequence[str] = (),
    ) -> None:
        self.name, self.loop, self.folder = name, loop, folder
        self.main = accelerator.is_main_process
        self.stream: Stream | None = None
        self._unread, self._hidden, self._report_to = skipped, hidden, report_to
        self._journal: Journal | None = None
        self._bar: Bar | None = None

    @property
    def journal(self) -> Journal:
        """On the main process, between beginning and end."""
        assert self._journal is not None
        return self._journal

    def __enter__(self) -> Observer:
        if self.main:
            self._journal = Journal(self.folder, report_to=self._report_to)
        return self

    def __exit__(self, *error: object) -> None:
        if self._journal:
            self._list_skipped(self._skipped())
            self._journal.close()
        if self._bar:
            self._bar.__exit__(*error)

    def hooks(self) -> Hooks:
        """For the loop."""
        return Hooks(
            log=self._log,
            evaluate=self.evaluate,
            after=self.after,
            resumed=self._resumed,
            saving=self._saving,
        )

    def after(self) -> None:
        """Called after each micro-batch."""

    def evaluate(self, step: int) -> None:
        """Called every `eval_every` steps, on every process."""

    def _resumed(self, step: int) -> None:
        self.journal.cut(step)
        self._list_skipped(self._unread)
        self._bar = Bar(
            self.name,
            self.loop.steps,
            start=step,
            log_every=self.loop.log_every,
            hidden=self._hidden,
        ).__enter__()

    def _log(self, record: dict[str, Any]) -> None:
        self.journal.log(record)
        if self._bar:
            self._bar.update(record["step"], record)

    def _saving(self) -> None:
        """List bad samples of all processes: after a checkpoint they are not drawn again."""
        from accelerate.utils import gather_object

        skipped = gather_object(self._skipped())
        if self.main:
            self._list_skipped(skipped)

    def _skipped(self) -> list[tuple[str, str]]:
        return list(self.stream.skipped.reasons.items()) if self.stream else []

    def _list_skipped(self, skipped: Iterable[tuple[str, str]]) -> None:
        for key, reason in skipped:
            self.journal.skip(key, reason)
