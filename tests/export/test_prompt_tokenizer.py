"""A tokenizer file with the prompt in it gives raw texts the ids that the run gives them."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

import tiny
from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.export.entry import find_entry
from taskfit.export.prompt_tokenizer import PromptTokenizer, make_prompt_tokenizer
from taskfit.tasks import BareEncoder, Label, PromptEncoder, Task, Template

# Splits as Llama 3 and Qwen do: line breaks stay with the punctuation before them.
SPLIT = r" ?[^\s\p{L}\p{N}]+[\r\n]*|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s*[\r\n]+|\s+(?!\S)|\s+"
PAIR = ("premise", "hypothesis")
LINES = {
    "label": ("Text: {text}\nAnswer:{label}", ("text",)),
    "dash": ("{text} -{label}", ("text",)),
    "pair": ("Premise: {premise}\nHypothesis: {hypothesis}\nAnswer:{label}", PAIR),
}


def task(line: str = "label", **changes: object) -> Task:
    template, columns = LINES[line]
    return Task(
        name="toy",
        version=1,
        text=columns,
        label_column="label",
        labels=(Label("good", (" yes",)), Label("bad", (" no",))),
        values={},
        template=Template(instruction="Is it good?", line=template),
        metric="accuracy",
        num_demonstrations=2,
        **changes,
    )


def rebuilt(tokenizer: PreTrainedTokenizerFast, **parts: object) -> PreTrainedTokenizerFast:
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    backend = Backend.from_str(json.dumps({**plain, **parts}))
    names = {n: getattr(tokenizer, n) for n in ("bos_token", "eos_token", "pad_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{n: name for n, name in names.items() if name}
    )


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    byte_level, metaspace = tiny.byte_level_tokenizer(), tiny.metaspace_tokenizer()
    # No token of Llama 2 has a line break beside something else.
    model = json.loads(metaspace.backend_tokenizer.to_str())["model"]
    model["merges"] = [pair for pair in model["merges"] if "\n" not in "".join(pair)]
    metaspace = rebuilt(metaspace, model=model)
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    with_start = {
        "type": "TemplateProcessing",
        "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    if kind == "line breaks":
        # Two merges that reach over the end of a text.
        plain = json.loads(byte_level.backend_tokenizer.to_str())["model"]
        for pair in (["!", "Ċ"], [".", "Ċ"]):
            plain["vocab"]["".join(pair)] = len(plain["vocab"])
            plain["merges"].append(pair)
        sequence = {"type": "Sequence", "pretokenizers": [split, {**bytes_, "use_regex": False}]}
        return rebuilt(byte_level, pre_tokenizer=sequence, model=plain)
    if kind == "one text":
        # As Llama 2: spaces are marked by the normalizer, and nothing splits.
        normalizers = [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]
        whole = {"type": "Sequence", "normalizers": normalizers}
        return rebuilt(metaspace, normalizer=whole, pre_tokenizer=None)
    if kind == "start token":
        return rebuilt(byte_level, post_processor=with_start)
    if kind == "chat":
        byte_level.chat_template = tiny.CHAT_TEMPLATE
        return byte_level
    return {
        "bytes": byte_level,
        "metaspace": metaspace,
        "word pieces": tiny.wordpiece_tokenizer(),
    }[kind]


PAIRED = ("line breaks", "one text")
Made = dict[tuple[str, str], tuple[PromptEncoder, PromptTokenizer]]
KINDS = ("bytes", "start token", "line breaks", "metaspace", "one text", "word pieces", "chat")


def made(kind: str, line: str) -> tuple[PromptEncoder, PromptTokenizer]:
    tokenizer = tokenizer_of(kind)
    own = task(line, chat=kind == "chat")
    texts = [dict.fromkeys(own.text, text) for text in ("It was lovely.", "Oh no!")]
    shown = [Example(str(i), one, ("good", "bad")[i]) for i, one in enumerate(texts)]
    encoder = PromptEncoder(tokenizer, own, shown, max_length=400)
    return encoder, make_prompt_tokenizer(encoder, tokenizer, [])


@cache
def all_made() -> Made:
    lines = {kind: ("label", "dash") for kind in KINDS} | {k: tuple(LINES) for k in PAIRED}
    return {(kind, line): made(kind, line) for kind in KINDS for line in lines[kind]}


TEXTS = (
    st.lists(
        st.sampled_from(
            [
                "The dog",
                " was",
                "good",
                "!",
                ".",
                "\n",
                " ",
                "  ",
                "\t",
                "é",
                "日本",
                "🙂",
                "12",
                "'s",
                '"',
                "</s>",
                "\x1c",
                "<s>",
                "[PAD]",
                "<0x41>",
                "Answer:",
                "-",
            ]
        )
        | st.text(max_size=4),
        min_size=1,
        max_size=8,
    )
    .map("".join)
    .filter(lambda text: bool(text.strip()))
)


@hypothesis_settings(max_examples=15, deadline=None)
@given(text=TEXTS, other=TEXTS)
def test_raw_texts_have_the_ids_of_the_run(text: str, other: str) -> None:
    for (kind, line), (encoder, found) in all_made().items():
        example = Example("x", dict(zip(encoder.task.text, (text, other), strict=False)))
        (item,) = encoder.encode([example])
        assert not item.num_tokens_cut
        assert found.ids(example) == item.prompt_ids.tolist(), (kind, line)
        assert not found.misread


def test_a_long_text_loses_the_tokens_that_it_loses_in_the_run() -> None:
    for (kind, line), (encoder, found) in all_made().items():
        columns = encoder.task.text
        example = Example("x", dict.fromkeys(columns, "The dog was good, and so " * 120))
        (item,) = encoder.encode([example])
        assert item.num_tokens_cut > 0
        ids = found.ids(example, shorten=True)
        assert len(ids) == len(item.prompt_ids) == found.tokenizer.model_max_length
        if found.shortens_text:
            assert ids == item.prompt_ids.tolist(), (kind, line)
        # Whatever is taken from the text, the question stays.
        num_asked = 1 if line == "dash" else 2
        assert ids[-num_asked:] == item.prompt_ids.tolist()[-num_asked:], (kind, line)
    shortens = {key: found.shortens_text for key, (_, found) in all_made().items()}
    assert not shortens["line breaks", "label"]
    assert not shortens["line breaks", "pair"]
    assert sum(shortens.values()) == len(KINDS) * 2 - 1


@pytest.mark.parametrize("config", [LlamaConfig, Qwen2Config])
def test_a_saved_tokenizer_is_read_again_whatever_class_the_architecture_has(
    config: type, tmp_path: Path
) -> None:
    config().save_pretrained(tmp_path)
    encoder, found = all_made()["line breaks", "label"]
    example = Example("x", {"text": "No </s> dog!"})
    entry = find_entry(encoder, tokenizer_of("line breaks"), [example])
    entry.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(example.texts["text"])["input_ids"] == found.ids(example)
    assert (tmp_path / "prompt_tokenizer.py").exists() == (config is Qwen2Config)


def test_texts_without_a_prompt_are_read_as_they_are() -> None:
    tokenizer = tokenizer_of("bytes")
    encoder = BareEncoder(tokenizer, task(), max_length=20)
    found = make_prompt_tokenizer(encoder, tokenizer, [])
    for text in ("a b", " </s>!\n", "The dog was good " * 9):
        example = Example("x", {"text": text})
        (item,) = encoder.encode([example])
        assert found.ids(example, shorten=True) == item.prompt_ids.tolist()


def test_three_columns_go_into_the_prompt_first(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bytes")
    columns = ("a", "b", "c")
    line = Template(instruction="", line="{a} {b} {c}\nAnswer:{label}")
    own = dataclasses.replace(task(), text=columns, template=line, num_demonstrations=0)
    encoder = PromptEncoder(tokenizer, own, [], max_length=99)
    with pytest.raises(PromptError, match="3 places for texts"):
        make_prompt_tokenizer(encoder, tokenizer, [])
    example = Example("x", {"a": "one", "b": "two", "c": "three"})
    entry = find_entry(encoder, tokenizer, [example])
    assert entry.texts(example) == ["one two three\nAnswer:"]
    assert "3 places for texts" in entry.notes[0]
    entry.save(tmp_path)
    assert json.loads((tmp_path / "prompt.json").read_text())["pieces"][0] == {"column": "a"}
