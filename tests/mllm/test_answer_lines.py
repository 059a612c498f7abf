"""Files of answers."""

from pathlib import Path

import pytest

from viq.core.types import ViqError


@pytest.mark.parametrize(
    "content",
    [b'{"precious": 1}', b'{"precious": 1}\n', b"", b"[1]\n", b"text", b'{"key": 1, "answer": 2}\n',
     b'{"key": "a", "value": "b"}', b"{", b"\xff\n", b'{"key": "a"}\n'],
)  # fmt: skip
def test_a_file_that_is_none_of_answers_is_refused_untouched(
    content: bytes, tmp_path: Path
) -> None:
    from viq.mllm.answer_lines import read_answers

    (tmp_path / "only.json").write_bytes(content)
    if content:
        with pytest.raises(ViqError, match="is no file of answers"):
            read_answers(tmp_path / "only.json")
    else:
        assert read_answers(tmp_path / "only.json") == ({}, 0)
    (tmp_path / "link.jsonl").symlink_to("only.json")  # lines would be added to what it leads to
    with pytest.raises(ViqError, match="is a link"):
        read_answers(tmp_path / "link.jsonl")
    assert (tmp_path / "only.json").read_bytes() == content


def test_only_a_torn_line_of_answers_is_cut_off(tmp_path: Path) -> None:
    from viq.mllm.answer_lines import answer_line, read_answers

    keys = ["a", "b\nc", "\ud83d", "\u2028\x1b[2J"]
    answers = {key: f"answer {key} \ud800" for key in keys}
    whole = b"".join(answer_line(key, answer) for key, answer in answers.items())
    assert whole.isascii() and whole.count(b"\n") == len(keys)
    for torn in (b"", b"{", b'{"key": "', b'{"key": "x", "answer": "y"}'):
        (tmp_path / "a.jsonl").write_bytes(whole + torn)
        assert read_answers(tmp_path / "a.jsonl") == (answers, len(whole))
        assert (tmp_path / "a.jsonl").read_bytes() == whole + torn
