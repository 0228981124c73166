"""Text of a server: what `taskfit generate` writes, in pieces of whole characters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import tiny
from taskfit.data.messages import Message
from taskfit.methods.token_stream import TextPieces, sample
from taskfit.models.load import LoadedModel, load_model
from taskfit.runs.tuning.generate import load_generator
from taskfit.runs.tuning.model import Decoding, TunedModel
from taskfit.serve.engine import RunsEngine
from taskfit.serve.work import GenerateRequest, Piece, RequestError, TextsRequest
from taskfit.settings import ModelSettings, RunSettings

ASK = [{"role": "user", "content": "Is the dog warm?"}]
QUESTIONS = ["Is the dog warm?", "Is the lake cold </s>?", "é 日本"]


def write(engine: RunsEngine, model: str, prompt: Any, **more: Any) -> list[Piece]:
    given = {"temperature": 0.0, "max_tokens": 12, **more}
    return list(engine.generate(GenerateRequest(model, prompt, **given)))


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("tuned", [True, False], ids=["tuned", "bare"])
def test_greedy_text_is_that_of_generate(
    engine: RunsEngine, runs: dict[str, Path], model_folder: Path, *, question: str, tuned: bool
) -> None:
    if tuned:
        alone = load_generator(str(runs["writer"]), device="cpu")
        prompt: Any = [{"role": "user", "content": question}]
        given: Any = (Message("user", question),)
    else:
        settings = RunSettings(model=ModelSettings(name=str(model_folder), dtype="float32"))
        alone = TunedModel(settings, load_model(settings.model))
        prompt = given = question
    (wanted,) = alone.answer([given], Decoding(max_new_tokens=12))
    found = write(engine, "writer" if tuned else str(model_folder), prompt)
    assert text_of(found).strip() == wanted
    assert all(piece.finish_reason is None for piece in found[:-1])
    assert found[-1].finish_reason == ("length" if len(found) == 12 else "stop")


def test_labels_are_scored_between_two_tokens_and_neither_notices(engine: RunsEngine) -> None:
    wanted = text_of(write(engine, "writer", ASK))
    request = TextsRequest("words", ["The dog was sad."])
    (alone,) = engine.score([engine.encode(request)])
    pieces = []
    request_ = GenerateRequest("writer", ASK, max_tokens=12, temperature=0)
    for piece in engine.generate(request_):
        pieces.append(piece)
        assert engine.score([engine.encode(request)]) == [alone]
    assert text_of(pieces) == wanted


def test_text_ends_before_a_stop_text_also_across_tokens(engine: RunsEngine) -> None:
    whole = text_of(write(engine, "writer", ASK))
    for start in range(1, len(whole) - 3):
        stop = whole[start : start + 3]
        found = write(engine, "writer", ASK, stop=[stop])
        assert text_of(found) == whole[: whole.index(stop)]
        assert found[-1].finish_reason == "stop"


def test_sampling_repeats_by_its_seed_and_keeps_to_the_likeliest(engine: RunsEngine) -> None:
    def sampled(**more: Any) -> str:
        return text_of(write(engine, "writer", ASK, **{"temperature": 1.5, **more}))

    assert sampled(seed=3) == sampled(seed=3)
    assert len({sampled(seed=seed) for seed in range(4)}) > 1
    greedy = text_of(write(engine, "writer", ASK))
    assert sampled(seed=5, top_p=1e-6) == greedy


def test_log_probabilities_are_those_of_the_model(engine: RunsEngine) -> None:
    found = write(engine, "writer", ASK, top_logprobs=3)
    for piece in found:
        assert piece.score is not None
        assert len(piece.top) == 3
        # Greedy: the likeliest is what was written.
        assert piece.score == piece.top[0]
        assert piece.score.logprob <= 0
        assert piece.top[0].logprob >= piece.top[1].logprob >= piece.top[2].logprob
        assert piece.num_prompt_tokens > 0
    assert write(engine, "writer", ASK)[0].score is None


def test_sampled_tokens_come_as_often_as_the_model_says() -> None:
    """Frequencies of 5,000 draws lie within five deviations of the probabilities that are kept."""
    scores = torch.tensor([1.0, -3.0, 2.0, 0.5, 1.5])
    shares, draws = scores.softmax(-1), 5000
    likeliest = [2, 4, 0]  # 0.85 of the probability; the first two have 0.69
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor([sample(scores, 0.8, generator) for _ in range(draws)]).bincount()
    wanted = torch.zeros(5)
    wanted[likeliest] = shares[likeliest] / shares[likeliest].sum()
    deviation = (wanted * (1 - wanted) / draws).sqrt()
    assert ((found / draws - wanted).abs() <= 5 * deviation).all()


@pytest.mark.parametrize("make", [tiny.byte_level_tokenizer, tiny.metaspace_tokenizer])
def test_pieces_are_whole_characters_and_add_up(loaded: LoadedModel, make: Any) -> None:
    tokenizer: PreTrainedTokenizerFast = make()
    model = LoadedModel(loaded.tree, tokenizer, "tiny", None)
    rng = np.random.default_rng(0)
    texts = ["日本 é 👍🏽 x", "a  b\n\n c", "The dog was lovely."]
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    # And bytes that are no text at all.
    rows += [rng.integers(0, len(tokenizer), 20).tolist() for _ in range(20)]
    for place, ids in enumerate(rows):
        pieces = TextPieces(model)
        out = [pieces.take(token) for token in ids]
        if place < len(texts):
            assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in out)
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(out) + pieces.close() == whole


@pytest.mark.parametrize(
    ("model", "prompt", "more", "message"),
    [
        ("words", "a", {}, "writes no text. What writes here: writer, "),
        ("writer", "a", {"max_tokens": 0}, "max_tokens is 0; allowed is 1 or more"),
        ("writer", "a", {"temperature": -1}, "temperature is -1"),
        ("writer", "a", {"top_p": 0}, "top_p is 0"),
        ("writer", "a", {"max_tokens": 300}, r"the answer may have 300; together 256"),
        ("writer", "a " * 300, {"max_tokens": None}, "Shorten the prompt"),
        ("writer", [{"role": "robot", "content": "a"}], {}, "role 'robot'; allowed are system"),
        ("writer", [], {}, "no messages"),
        ("writer", "", {}, "empty"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(
    engine: RunsEngine, model: str, prompt: Any, more: Any, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        engine.generate(GenerateRequest(model, prompt, **more))
