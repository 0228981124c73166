"""What is learned of a conversation is what the assistant says, by any template."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import tiny
from taskfit.curate.settings import ChatStep
from taskfit.data.instructions import Conversation, Preference, Raw
from taskfit.data.messages import Message
from taskfit.errors import PromptError, SettingsError
from taskfit.settings import TuningSettings
from taskfit.tasks.chat import ChatEncoder, EncodedText, find_template, template_names

DOCS = Path(__file__).parents[2] / "docs"
TURNS = (
    Message("system", "Be brief."),
    Message("user", "good or bad?"),
    Message("assistant", "good it is"),
    Message("user", "why?"),
    Message("assistant", "no reason"),
)
ROW = Conversation("rows.jsonl:1", TURNS)


def encoder_with(
    template: str | None, *, turns: str = "all", max_length: int = 500
) -> tuple[PreTrainedTokenizerFast, ChatEncoder]:
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.chat_template = template
    return tokenizer, ChatEncoder(tokenizer, max_length=max_length, turns=turns)  # type: ignore[arg-type]


def learned_text(tokenizer: PreTrainedTokenizerFast, item: EncodedText) -> str:
    return str(tokenizer.decode(item.ids[item.is_learned].tolist()))


@pytest.mark.parametrize("name", template_names())
def test_the_packaged_templates_mark_the_answers_with_their_ends(name: str) -> None:
    tokenizer, encoder = encoder_with(find_template(name))
    end = "<|im_end|>\n" if name == "chatml" else tokenizer.eos_token
    (item,) = encoder.conversations([ROW])
    assert learned_text(tokenizer, item) == f"good it is{end}no reason{end}"
    whole = tokenizer.decode(item.ids.tolist())
    for message in TURNS:
        assert message.content in whole


def test_with_last_only_the_last_answer_is_learned_and_nothing_behind_it_stays() -> None:
    tokenizer, encoder = encoder_with(find_template("chatml"), turns="last")
    more = Conversation("x", (*TURNS, Message("user", "thanks")))
    first, second = encoder.conversations([ROW, more])
    assert learned_text(tokenizer, first) == "no reason<|im_end|>\n"
    assert first.ids.tolist() == second.ids.tolist()


def test_the_ids_are_those_of_the_whole_text_and_start_with_the_prompt() -> None:
    tokenizer, encoder = encoder_with(find_template("chatml"))
    (item,) = encoder.conversations([ROW])
    text = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in TURNS], tokenize=False
    )
    assert tokenizer.decode(item.ids.tolist()) == text
    prompt = encoder.prompt_ids(TURNS[:-1])
    assert item.ids[: len(prompt)].tolist() == prompt


def test_both_answers_of_a_preference_start_with_the_same_prompt_and_only_answers_are_learned() -> (
    None
):
    tokenizer, encoder = encoder_with(find_template("headings"))
    row = Preference("p", TURNS[:2], chosen="good", rejected="bad")
    (item,) = encoder.preferences([row])
    end = tokenizer.eos_token
    assert learned_text(tokenizer, item.chosen) == f"good{end}"
    assert learned_text(tokenizer, item.rejected) == f"bad{end}"
    shared = len(encoder.prompt_ids(TURNS[:2]))
    assert item.chosen.ids[:shared].tolist() == item.rejected.ids[:shared].tolist()
    assert not item.chosen.is_learned[:shared].any()


def test_every_token_of_a_raw_text_is_learned_but_the_first() -> None:
    tokenizer, encoder = encoder_with(None)
    (item,) = encoder.raw([Raw("r", "good or bad")], end_id=tokenizer.eos_token_id)
    assert item.ids[-1] == tokenizer.eos_token_id
    assert item.is_learned.tolist() == [False] + [True] * (len(item.ids) - 1)


def test_a_long_text_loses_its_end_and_says_how_much() -> None:
    _, encoder = encoder_with(find_template("chatml"))
    (whole,) = encoder.conversations([ROW])
    _, short = encoder_with(find_template("chatml"), max_length=len(whole.ids) - 4)
    (cut,) = short.conversations([ROW])
    assert cut.num_tokens_cut == 4
    assert cut.ids.tolist() == whole.ids[:-4].tolist()
    assert cut.is_learned.tolist() == whole.is_learned[:-4].tolist()


def test_a_template_that_rewrites_earlier_turns_is_refused_unless_only_the_last_counts() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ':' + (m['content'] if loop.last or m['role'] != "
        "'assistant' else '...') + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer, encoder = encoder_with(template)
    with pytest.raises(PromptError, match=r"rows\.jsonl:1: the chat template writes turn 3 other"):
        encoder.conversations([ROW])
    tokenizer, encoder = encoder_with(template, turns="last")
    (item,) = encoder.conversations([ROW])
    assert learned_text(tokenizer, item) == "no reason\n"


def test_a_prompt_that_would_share_a_token_with_its_answer_is_read_as_when_it_is_asked() -> None:
    # ' good' is one token, so a prompt that ends in a space would swallow the answer's start.
    spaced = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    for turn in (2, 4):
        _, encoder = encoder_with(spaced, turns="last")
        (item,) = encoder.conversations([Conversation("x", TURNS[: turn + 1])])
        prompt = encoder.prompt_ids(TURNS[:turn])
        assert item.ids[: len(prompt)].tolist() == prompt
        assert item.is_learned[len(prompt)]


def test_what_cannot_be_rendered_is_one_message_with_the_row() -> None:
    with pytest.raises(PromptError, match=r"no chat template.*alpaca, chatml, headings, plain"):
        encoder_with(None)[1].conversations([ROW])
    refusing = "{{ raise_exception('only two turns') }}"
    with pytest.raises(PromptError, match=r"rows\.jsonl:1: the chat template refuses.*only two"):
        encoder_with(refusing)[1].conversations([ROW])
    silent = Conversation("s", TURNS[:2])
    with pytest.raises(PromptError, match="s has no turn of the assistant"):
        encoder_with(find_template("chatml"))[1].conversations([silent])
    with pytest.raises(SettingsError, match=r"no chat template nonsense.*chatml"):
        find_template("nonsense")


def test_all_helps_name_the_packaged_templates() -> None:
    names = ", ".join(template_names())
    assert names in (TuningSettings.model_fields["chat_template"].description or "")
    assert names in (ChatStep.model_fields["template"].description or "")
    for page in ("curate.md", "settings.md"):
        assert names in (DOCS / page).read_text("utf-8"), page
    source = (DOCS.parent / "src" / "taskfit" / "cli" / "tuning.py").read_text("utf-8")
    assert f'help="{names}, or a file' in source


def test_a_template_file_is_read_whole_or_refused_with_its_place(tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    text = (
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    )
    own.write_text(text)
    assert find_template(str(own)) == text
    own.write_text("{{ eos_token }}\n{% for m in messages %}")
    with pytest.raises(SettingsError, match=r"own\.jinja:2 is no Jinja"):
        find_template(str(own))
    own.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"own\.jinja cannot be read"):
        find_template(str(own))
