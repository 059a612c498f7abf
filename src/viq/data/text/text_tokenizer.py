"""A small text tokenizer of one's own: byte-level BPE with the special tokens of ChatML, trained in
seconds.

For language models trained from scratch. Larger ones bring theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from viq.core.errors import first_line, require
from viq.core.files import require_regular
from viq.core.types import ViqError
from viq.core.untrusted import INDEX_BYTES
from viq.data.text.chat_template import END, START, own_template

PAD = "<|mm_pad|>"


def train_text_tokenizer(texts: Iterable[str], size: int) -> Any:
    """A fast Hugging Face tokenizer of at most `size` tokens; the same for the same texts."""
    with require("transformers", "chat", "a text tokenizer"):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.BPE())
    # Digits stand alone, as in Qwen2.5: numbers are read figure by figure.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def load_text_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a language model: a folder or a Hugging Face hub id.

    Raises:
        ViqError: there is none, or it neither knows the special tokens of ChatML nor has a chat
            template that can be used.
    """
    with require("transformers", "chat", "a text tokenizer"):
        from transformers import AutoTokenizer
    try:
        _refuse_huge(Path(folder))
        # The name is the user's, and no code of the folder is run.
        tokenizer = AutoTokenizer.from_pretrained(  # nosec B615
            str(folder), trust_remote_code=False
        )
    except Exception as error:  # what damage makes the libraries raise is anyone's guess
        raise ViqError(
            f"{folder}: no text tokenizer can be loaded from there ({first_line(error)}); give a "
            "folder or hub id of an instruct language model"
        ) from None
    try:
        own = own_template(tokenizer)
    except ViqError as error:
        raise ViqError(f"{folder}: {error}") from None
    missing = [mark for mark in (START, END) if mark not in tokenizer.get_vocab()]
    if missing and own is None:
        raise ViqError(
            f"{folder}: its tokenizer does not know {' and '.join(missing)} and has no chat "
            "template: use an instruct model, such as those of Qwen, Llama, Gemma or Mistral"
        )
    return tokenizer


def _refuse_huge(folder: Path) -> None:
    """Files that would be read whole; those of the largest vocabularies have 35 MB."""
    for path in folder.glob("*.json") if folder.is_dir() else ():
        require_regular(path)
        if path.stat().st_size > INDEX_BYTES:
            raise ViqError(f"{path.name} has more than {INDEX_BYTES:,} bytes")
