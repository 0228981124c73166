"""The engine of a server: what it answers is what `taskfit predict` says, whatever else it does."""

import itertools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from taskfit.cli.given import GivenTexts
from taskfit.models.lean import LeanPass
from taskfit.models.whole import NotFiniteError
from taskfit.runs.predict import predict_windows
from taskfit.screen import SilentScreen
from taskfit.serve.engine import RunsEngine, load_engine
from taskfit.serve.work import (
    Answers,
    Option,
    Question,
    RequestError,
    StateRequest,
    TextsRequest,
)

TEXTS = [e.texts["text"] for e in tiny.toy_examples(7, offset=30)]
LABELLING = ["words", "few-shot", "head", "blend", "text", "whole", "tfidf", "several"]
TONE = Question("choice", "Which tone?", (Option("warm"), Option("warm and kind"), Option("cold")))
RAIN = Question("noul", "Does it rain?", (Option("true", "drops fall"), Option("false")))
STARS = Question("score", "How many stars?", tuple(Option(str(i), f"{i} stars") for i in range(4)))


@pytest.fixture(scope="module")
def predicted(runs: dict[str, Path]) -> dict[str, list[dict[str, dict[str, float]]]]:
    """What `taskfit predict` says of the texts, each run loaded alone."""
    found = {}
    for name in LABELLING:
        given = GivenTexts(TEXTS)
        (table,) = predict_windows(runs[name], given, screen=SilentScreen(), device="cpu")
        by_question = {
            question or "label": [shares for _, shares in table.answers(question)]
            for question in table.labels
        }
        found[name] = [
            {question: shares[i] for question, shares in by_question.items()}
            for i in range(len(TEXTS))
        ]
    return found


def answers(engine: RunsEngine, *requests: TextsRequest | StateRequest) -> list[Answers]:
    found = engine.score([engine.encode(request) for request in requests])
    for one in found:
        assert isinstance(one, Answers), one
    return [one for one in found if isinstance(one, Answers)]


def assert_same(
    found: Sequence[Mapping[str, Mapping[str, float]]],
    wanted: Sequence[Mapping[str, Mapping[str, float]]],
    atol: float = 1e-5,
) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for question, shares in one.items():
            assert shares == pytest.approx(dict(other[question]), abs=atol)


def test_runs_over_one_base_share_it(engine: RunsEngine) -> None:
    assert engine.num_bases == 1
    trees = {
        id(served.own._classifier.method.context.need_model().tree.model)  # type: ignore[union-attr]
        for name, served in engine._served.items()
        if name in LABELLING and name not in ("whole", "tfidf")
    }
    assert len(trees) == 1


@pytest.mark.parametrize("seed", range(4))
def test_answers_are_those_of_predict_whatever_batch_mates(
    engine: RunsEngine, predicted: dict[str, Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    requests, wanted = [], []
    for _ in range(12):
        name = str(rng.choice(LABELLING))
        places = rng.choice(len(TEXTS), size=rng.integers(1, 4))
        requests.append(TextsRequest(name, [TEXTS[i] for i in places]))
        wanted.append([predicted[name][i] for i in places])
    for found, other in zip(answers(engine, *requests), wanted, strict=True):
        assert_same(found.probabilities, other)


def test_adapters_make_a_difference(predicted: dict[str, Any]) -> None:
    first = {name: predicted[name][0].get("label") for name in LABELLING}
    for one, other in itertools.combinations(["words", "head", "text", "few-shot"], 2):
        assert first[one] != pytest.approx(first[other], abs=1e-3)


def test_own_questions_are_answered_as_texts_are(
    engine: RunsEngine, predicted: dict[str, Any]
) -> None:
    asked = {
        "a": Question("choice", "", (Option("bad"), Option("good"))),
        "b": Question("noul", "Is it so?", (Option("true"), Option("false"))),
        "c": Question("score", "", (Option("0"), Option("1"), Option("2"))),
    }
    (found,) = answers(engine, StateRequest("several", {"text": TEXTS[0]}, asked))
    wanted = predicted["several"][0]
    (row,) = found.probabilities
    assert list(row) == ["a", "b", "c"]
    assert list(row["a"]) == ["bad", "good"]
    assert row["a"] == pytest.approx(wanted["mood"], abs=1e-5)
    assert row["b"]["true"] == pytest.approx(wanted["park"]["yes"], abs=1e-5)
    assert row["c"] == pytest.approx(wanted["stars"], abs=1e-5)


@pytest.mark.parametrize("model", ["words", "several", "few-shot", "base"])
def test_questions_of_a_request_do_not_see_each_other(
    engine: RunsEngine, model: str, model_folder: Path
) -> None:
    name = str(model_folder) if model == "base" else model
    asked = {"tone": TONE, "rain": RAIN, "stars": STARS}
    if model != "base":
        asked["own"] = Question("choice", "", (Option("good"), Option("bad")))
    state = TEXTS[1]
    alone = {
        key: answers(engine, StateRequest(name, state, {key: question}))[0].probabilities[0][key]
        for key, question in asked.items()
    }
    for order in itertools.permutations(asked):
        request = StateRequest(name, state, {key: asked[key] for key in order})
        (found,) = answers(engine, request)
        assert list(found.probabilities[0]) == list(order)
        assert_same(found.probabilities, [{key: alone[key] for key in order}], atol=1e-6)
    assert sum(alone["tone"].values()) == pytest.approx(1)


def test_requests_of_all_kinds_go_together(engine: RunsEngine, model_folder: Path) -> None:
    requests: list[TextsRequest | StateRequest] = [
        TextsRequest("words", TEXTS[:2]),
        StateRequest("words", {"any": ["json", 1]}, {"tone": TONE}),
        StateRequest(str(model_folder), TEXTS[2], {"tone": TONE, "rain": RAIN}),
        TextsRequest("blend", TEXTS[:1]),
        StateRequest("words", TEXTS[3], {"stars": STARS}),
    ]
    alone = [answers(engine, request)[0].probabilities for request in requests]
    together = answers(engine, *requests)
    for found, wanted in zip(together, alone, strict=True):
        assert_same(found.probabilities, wanted)


def test_an_option_that_starts_another_is_told_from_it(engine: RunsEngine) -> None:
    """Exact multi-token words: each option's share is that of its tokens with their end."""
    (found,) = answers(engine, StateRequest("words", TEXTS[0], {"tone": TONE}))
    shares = found.probabilities[0]["tone"]
    assert list(shares) == ["warm", "warm and kind", "cold"]
    turned = Question("choice", TONE.instructions, TONE.options[:2])
    (fewer,) = answers(engine, StateRequest("words", TEXTS[0], {"tone": turned}))
    assert all(
        0 < share < 1 for share in [*shares.values(), *fewer.probabilities[0]["tone"].values()]
    )


def test_a_single_option_is_certain(engine: RunsEngine) -> None:
    only = Question("choice", "Which?", (Option("all"),))
    (found,) = answers(engine, StateRequest("words", "x", {"q": only, "r": RAIN}))
    assert found.probabilities[0]["q"] == {"all": 1.0}


def test_over_all_orders_it_is_all_the_same_how_options_are_listed(model_folder: Path) -> None:
    name = str(model_folder)
    mood = [Option(one) for one in ("happy", "sad", "warm and bright")]
    stars = [Option(str(i), f"{i} stars") for i in range(4)]

    def asked(orders: int, turn: int) -> tuple[dict[str, float], dict[str, float]]:
        engine = load_engine({}, base=name, device="cpu", option_orders=orders)
        listed = tuple(mood[turn:] + mood[:turn])
        rated = tuple(stars[:: -1 if turn else 1])
        questions = {
            "mood": Question("choice", "Which?", listed),
            "stars": Question("score", "How many?", rated),
        }
        (found,) = answers(engine, StateRequest(name, "The dog was so.", questions))
        return dict(found.probabilities[0]["mood"]), dict(found.probabilities[0]["stars"])

    for first, second in zip(asked(6, 0), asked(6, 2), strict=True):
        assert first == pytest.approx(second, abs=1e-5)
    given, turned = asked(1, 0), asked(1, 2)
    assert given[0] != pytest.approx(turned[0], abs=1e-3)
    # Levels stay in a row, so there are two orders of them, however many are asked for.
    assert asked(2, 0)[1] == pytest.approx(asked(6, 0)[1], abs=1e-6)


@pytest.mark.parametrize("knows", [True, False])
def test_an_engine_is_warm_when_loaded_and_says_what_reads(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, *, knows: bool
) -> None:
    if not knows:
        monkeypatch.setattr("taskfit.models.lean.free_bytes", lambda: 1000)
    made = []
    make = LeanPass._make
    monkeypatch.setattr(LeanPass, "_make", lambda *a, **k: (made.append(1), make(*a, **k))[1])
    engine = load_engine({}, base=str(model_folder), device="cpu")
    assert len(engine.notes) == (0 if knows else 1)
    assert all("GB free" in note for note in engine.notes)
    answers(engine, StateRequest(str(model_folder), "It pours.", {"rain": RAIN}))
    assert len(made) == 1  # before the first request


def test_what_clients_write_makes_no_control_tokens(engine: RunsEngine, model_folder: Path) -> None:
    name, end = str(model_folder), 2
    asked = Question("choice", "Is </s> there?", (Option("a</s>", "has </s>"), Option("b")))
    job = engine.encode(StateRequest(name, "</s> x", {"q": asked}))
    (item,) = job.free["q"].encoded
    assert item is not None
    assert end not in item.prompt_ids.tolist()
    assert all(end not in ids[:-1].tolist() for ids in item.completions)


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (TextsRequest("word", ["a"]), 404, r"no model 'word' here; .* Did you mean words\?"),
        (TextsRequest("words", ["a", " "]), 422, "no text"),
        (TextsRequest("words", [{"txt": "a"}]), 422, "no column 'text'; it has 'txt'"),
        (TextsRequest("words", [{"text": "a", "Text": "b"}]), 422, "'Text' that .*mean text"),
        (TextsRequest("writer", ["a"]), 422, "no labels of its own"),
        (TextsRequest("words", ["a " * 400]), 422, r"too long: \d+ tokens .* at most 256 are"),
        (StateRequest("words", "a " * 400, {"q": TONE}), 422, "too long: .* at most 256 are"),
        (StateRequest("head", "a", {"q": TONE}), 422, r"label \(bad, good\)"),
        (
            StateRequest(
                "words", {"a": 1}, {"q": Question("choice", "", (Option("good"), Option("bad")))}
            ),
            422,
            "the column 'text'",
        ),
        (
            StateRequest("words", "a", {"q": Question("choice", "?", (Option("a"), Option("a")))}),
            422,
            "stand",
        ),
    ],
)
def test_what_cannot_be_served_is_one_message(
    engine: RunsEngine, request_: Any, status: int, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as raised:
        engine.encode(request_)
    assert raised.value.status == status


def test_texts_that_are_too_long_are_shortened_where_that_is_asked_for(engine: RunsEngine) -> None:
    long = "The dog was lovely. " * 100
    found = answers(
        engine,
        TextsRequest("words", ["The cat.", long], shorten=True),
        StateRequest("words", long, {"q": TONE}, shorten=True),
    )
    assert [list(one.shortened) for one in found] == [[1], [0]]


def test_what_fails_costs_no_other_its_answer(
    engine: RunsEngine, predicted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = engine._served["words"].own
    assert own is not None
    true = own.probabilities

    def fails(examples: Any) -> Any:
        if any("poison" in example.texts["text"] for example in examples):
            raise NotFiniteError("scores", "so it is")
        return true(examples)

    monkeypatch.setattr(own, "probabilities", fails)
    requests = [TextsRequest("words", [text]) for text in [*TEXTS[:3], "poison", *TEXTS[3:5]]]
    found = engine.score([engine.encode(request) for request in requests])
    assert isinstance(found.pop(3), NotFiniteError)
    for i, one in enumerate(found):
        assert isinstance(one, Answers)
        assert_same(one.probabilities, predicted["words"][i : i + 1])


def test_memory_that_runs_out_for_many_suffices_for_fewer(
    engine: RunsEngine, predicted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = engine._served["words"].own
    assert own is not None
    tree = own._classifier.method.context.need_model().tree
    true = tree.hidden

    def limited(found: Any, *rest: Any, **more: Any) -> Any:
        if len(found) > 40:
            raise MemoryError("out of memory")
        return true(found, *rest, **more)

    monkeypatch.setattr(tree, "hidden", limited)
    found = answers(engine, *(TextsRequest("words", [text]) for text in TEXTS))
    for i, one in enumerate(found):
        assert_same(one.probabilities, predicted["words"][i : i + 1])


def test_requests_are_encoded_from_many_threads_at_once(engine: RunsEngine) -> None:
    requests: list[TextsRequest | StateRequest] = [TextsRequest(name, TEXTS) for name in LABELLING]
    requests += [StateRequest("words", text, {"tone": TONE, "rain": RAIN}) for text in TEXTS]
    wanted = [engine.encode(request).num_tokens for request in requests]
    found: list[list[int]] = []

    def work() -> None:
        found.append([engine.encode(request).num_tokens for request in requests])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 8


def test_cards_say_what_can_be_asked(engine: RunsEngine, model_folder: Path) -> None:
    cards = {card.name: card for card in engine.models()}
    assert list(cards) == [*LABELLING, "writer", str(model_folder)]
    assert [question.kind for question in cards["several"].questions.values()] == [
        "choice",
        "noul",
        "score",
    ]
    # What a card names is answered by the run itself.
    for card in cards.values():
        for name, question in card.questions.items():
            request = StateRequest(card.name, TEXTS[0], {name: question})
            assert name in engine.encode(request).own
    assert [name for name, card in cards.items() if card.generates] == ["writer", str(model_folder)]
    assert not cards["head"].asks_anything
    assert cards["words"].max_length == 256


def test_the_tokens_of_a_prompt_say_which_part_they_are(engine: RunsEngine) -> None:
    tokens = engine.tokens(TextsRequest("words", ["The dog was lovely."]))
    by_part = {
        part: "".join(token.text for token in tokens if token.part == part)
        for part in ("prompt", "text", "question")
    }
    assert by_part == {"prompt": "Text:", "text": " The dog was lovely.", "question": "\nLabel:"}
    tokens = engine.tokens(StateRequest("words", "It rains.", {"rain": RAIN}))
    text = "".join(token.text for token in tokens)
    assert text.startswith("State: It rains.\nQuestion: Does it rain?")
    assert "".join(t.text for t in tokens if t.part == "text").strip() == "It rains."
    # A run of several questions is asked others in the words that it was trained in.
    for state in ("It rains.", {"text": "It rains."}):
        tokens = engine.tokens(StateRequest("several", state, {"rain": RAIN}))
        assert "".join(token.text for token in tokens).startswith("Text: It rains.\nQuestion: Does")
    assert not engine.tokens(TextsRequest("tfidf", ["The dog was lovely."]))
