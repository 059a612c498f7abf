"""Whatever a data set calls them: turns of user and assistant, one mark an image."""

from pathlib import Path
from typing import Any

import pytest

from viq.data.sources.base import ImageBytes, Row, SourceError
from viq.data.sources.open import open_source
from viq.data.text.conversations import Conversation, ConversationError, Turn, conversation

PROMPT = "Describe the image."


def row(images: int = 1, /, **extras: Any) -> Row:
    refs = tuple(ImageBytes(bytes([number])) for number in range(images))
    return Row(key="k", images=refs, extras=extras, where="data.jsonl:12")


def said(talk: Conversation) -> list[str]:
    """user: ..., assistant: ..., in alternation."""
    return [f"{turn.role}: {turn.text}" for turn in talk.turns]


def official(*texts: str) -> list[dict[str, str]]:
    speakers = ("human", "gpt") * len(texts)
    return [{"from": who, "value": text} for who, text in zip(speakers, texts, strict=False)]


def test_official_conversations() -> None:
    talk = conversation(row(2, conversations=official("<image>or<image>?", "B.", "Sure?", "Yes.")))
    assert talk.turns == (
        Turn(role="user", text="<image>or<image>?"),
        Turn(role="assistant", text="B."),
        Turn(role="user", text="Sure?"),
        Turn(role="assistant", text="Yes."),
    )
    assert [image.read() for image in talk.images] == [b"\0", b"\1"]
    assert (talk.key, talk.where, talk.resize) == ("k", "data.jsonl:12", (None, None))


@pytest.mark.parametrize("field", ["conversations", "messages"])
def test_role_and_content(field: str) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]
    talk = conversation(row(**{field: turns}))
    assert said(talk) == ["user: <image>What?", "assistant: A cat."]


def test_pairs_are_one_conversation_about_one_image() -> None:
    pairs = [{"prompt": "What shape?", "text": "circle"}, {"prompt": "What color?", "text": "red"}]
    assert said(conversation(row(pairs=pairs))) == [
        "user: <image>\nWhat shape?",
        "assistant: circle",
        "user: What color?",
        "assistant: red",
    ]


def test_a_question_that_comes_again_is_asked_once() -> None:
    pairs = [{"prompt": "Say.", "text": text} for text in ("one", "two", "three")]
    pairs.insert(1, {"prompt": "Count.", "text": "1"})
    for choice, answer in [(0, "one"), (1, "two"), (5, "three"), (-1, "three")]:
        assert said(conversation(row(pairs=pairs), choice=choice)) == [
            "user: <image>\nSay.",
            f"assistant: {answer}",
            "user: Count.",
            "assistant: 1",
        ]


@pytest.mark.parametrize("field", ["caption", "captions", "text"])
def test_captions_answer_the_prompt(field: str) -> None:
    assert said(conversation(row(**{field: "A cat."}))) == [
        f"user: <image>\n{PROMPT}",
        "assistant: A cat.",
    ]
    several = row(**{field: ["A cat.", "A dog."]})
    assert said(conversation(several, prompt="What?")) == [
        "user: <image>\nWhat?",
        "assistant: A cat.",
    ]
    assert said(conversation(several, choice=3))[1] == "assistant: A dog."


def test_one_mark_for_each_image_goes_before_the_first_question() -> None:
    talk = conversation(row(3, conversations=official("Which?", "All.")))
    assert said(talk)[0] == "user: <image>\n<image>\n<image>\nWhich?"


def test_text_only() -> None:
    talk = conversation(row(0, conversations=official("2 + 2?", "4")))
    assert said(talk) == ["user: 2 + 2?", "assistant: 4"]
    assert talk.images == talk.resize == ()


def test_resize_is_one_entry_an_image() -> None:
    talk = official("Which?", "All.")
    resized = conversation(row(2, conversations=talk, resize=["896x14", None]))
    assert resized.resize == ("896x14", None)
    assert conversation(row(2, conversations=talk, resize="448x14")).resize == ("448x14",) * 2
    with pytest.raises(ConversationError, match="1 entries in resize for 2 images"):
        conversation(row(2, conversations=talk, resize=[None]))


def test_a_first_system_turn_is_the_system_text() -> None:
    first = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Use JSON."},
    ]
    rest = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    assert said(conversation(row(1, messages=first + rest))) == [
        "system: Be brief.\n\nUse JSON.",
        "user: <image>\nWhat?",
        "assistant: A cat.",
    ]
    empty = [{"from": "system", "value": ""}, *official("What?", "A cat.")]
    assert said(conversation(row(0, conversations=empty)))[0] == "system: "
    with pytest.raises(ConversationError, match="its system text contains <image>"):
        conversation(row(1, messages=[{"role": "system", "content": "<image>"}, *rest]))


def test_the_system_text_may_stand_beside_the_turns() -> None:
    said = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    told = conversation(row(0, system="Be brief", conversations=said)).turns[0]
    assert told == Turn(role="system", text="Be brief")
    own = [{"from": "system", "value": "Be kind"}, *said]
    chat = conversation(row(0, system="Be brief", conversations=own))
    assert [turn.text for turn in chat.turns] == ["Be kind", "Q", "A"]
    for value in ("", None, 3):
        assert len(conversation(row(0, system=value, conversations=said)).turns) == 2


def test_fields_that_a_table_left_empty_are_not_there() -> None:
    """A table gives all turns the fields of each, those of others as None."""
    said = [
        {"role": "user", "content": "Q", "from": None, "value": None},
        {"role": None, "content": None, "from": "gpt", "value": "A"},
    ]
    assert [turn.text for turn in conversation(row(0, messages=said)).turns] == ["Q", "A"]


def test_tools_are_written_as_qwen_writes_them() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "1 + 1, 1 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "name": "add", "content": "2"},
        {"role": "tool", "name": "add", "content": {"sum": 3}},
        {"role": "assistant", "content": "2 and 3."},
    ]
    block = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    result = '<tool_response>\n2\n</tool_response>\n<tool_response>\n{"sum": 3}\n</tool_response>'
    assert said(conversation(row(0, messages=messages))) == [
        "user: 1 + 1, 1 + 2?",
        f"assistant: {block}\n{block}",
        f"user: {result}",
        "assistant: 2 and 3.",
    ]
    called = [
        {"from": "human", "value": "<image>Which?"},
        {"from": "function_call", "value": '{"name": "see"}'},
        {"from": "observation", "value": "a cat"},
        {"from": "gpt", "value": "A cat."},
    ]
    assert said(conversation(row(1, conversations=called)))[1:3] == [
        'assistant: <tool_call>\n{"name": "see"}\n</tool_call>',
        "user: <tool_response>\na cat\n</tool_response>",
    ]


def test_every_form_of_an_image_part_is_a_mark() -> None:
    for part in (
        {"type": "image"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"image": "a.png"},
    ):
        content = [part, {"type": "text", "text": "What?"}]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}]
        assert said(conversation(row(1, messages=turns)))[0] == "user: <image>What?"


def turns(*speakers: str) -> list[dict[str, str]]:
    return [{"from": speaker, "value": "words"} for speaker in speakers]


@pytest.mark.parametrize(
    ("images", "extras", "reason"),
    [
        (
            1,
            {"conversations": official("<image><image>?", "No.")},
            "more <image> placeholders than images",
        ),
        (
            2,
            {"conversations": official("<image>?", "No.")},
            "more images than <image> placeholders",
        ),
        (0, {"conversations": official("<image>?", "No.")}, r"\(1 placeholders, 0 images\)"),
        (1, {"conversations": official("What?", "<image>")}, "an answer contains <image>"),
        (1, {"conversations": turns("gpt", "human")}, "assistant where user should speak"),
        (1, {"conversations": turns("human", "human")}, "user where assistant should speak"),
        (1, {"conversations": turns("human", "gpt", "human")}, "does not end with an answer"),
        (1, {"conversations": turns("human", "gpt", "system")}, "a turn of system after others"),
        (1, {"conversations": turns("narrator", "human", "gpt")}, "a turn of 'narrator'"),
        (1, {"conversations": turns("system")}, "does not end with an answer"),
        (1, {"conversations": turns("gpt", "observation")}, "assistant where user should speak"),
        (1, {"conversations": turns("human", "gpt", "tool")}, "does not end with an answer"),
        (1, {"conversations": [{"value": "What?"}]}, "a turn of None"),
        (1, {"conversations": official("What?", " \n")}, "a turn of assistant is empty"),
        (0, {"conversations": official("", "Yes.")}, "a turn of user is empty"),
        (1, {"conversations": [{"from": "human", "value": 7}]}, "human is int, not text"),
        (1, {"conversations": ["What?"]}, "must hold objects, not str"),
        (1, {"conversations": []}, "a list with at least one entry"),
        (1, {"conversations": "What?"}, "a list with at least one entry"),
        (1, {"pairs": [{"prompt": "What?"}]}, "text of a pair is NoneType"),
        (1, {"pairs": ["What?"]}, "pairs must hold"),
        (1, {"caption": ["a", ["b"]]}, "caption is list, not text"),
        (1, {"caption": "  "}, "a turn of assistant is empty"),
        (0, {"caption": "A cat."}, "no image to describe"),
        (1, {"label": "cat", "caption": None}, r"no conversations.*\(its fields: label, caption\)"),
        (1, {}, "its fields: none"),
    ],
)
def test_what_cannot_be_used_is_named(images: int, extras: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConversationError, match=reason) as error:
        conversation(row(images, **extras), choice=1)
    assert isinstance(error.value, SourceError)
    assert str(error.value).startswith("data.jsonl:12: ") and "\n" not in str(error.value)


def test_real_pairs(data: Path) -> None:
    files = sorted((data / "vl").glob("*.parquet"))
    assert files
    for file in files:
        source = open_source(file)
        for index in (0, len(source) // 2, len(source) - 1):
            some = source[index]
            talk = conversation(some)
            questions = {pair["prompt"] for pair in some.extras["pairs"]}
            assert len(talk.turns) == 2 * len(questions)
            assert talk.turns[0].text.startswith("<image>\n")
            assert talk.turns[1].text == some.extras["pairs"][0]["text"]
            assert some.open().size == (some.extras["width"], some.extras["height"])
