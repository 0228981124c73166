"""Laws of the pipeline: nothing is lost, nothing is random, a killed run goes on."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import tiny
from taskfit.curate import CurateResult, SourceSettings, curate
from taskfit.curate.duplicates import near_by_cosine
from taskfit.curate.pipeline import STEPS
from taskfit.curate.select import k_center, nearest_to_centres
from taskfit.curate.settings import DEFAULT_STEPS, curate_settings, load_curate_settings
from taskfit.data.instructions import Conversation
from taskfit.data.messages import Message
from taskfit.errors import DataError, SettingsError
from taskfit.tasks.chat import ChatEncoder, find_template, template_names

Rows = list[dict[str, Any]]
RESULTS = ("data.jsonl", "removed.jsonl", "card.json", "card.html")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskfit.curate.embed.cache_folder", lambda: tmp_path / "cache")


@pytest.fixture
def run(tmp_path: Path, model_folder: Path) -> Callable[..., CurateResult]:
    """Curate rows, or files of rows, with the tiny model's tokenizer."""

    def curate_rows(
        *files: Rows, steps: list[Any], out: str = "out", names: list[str] | None = None
    ) -> CurateResult:
        sources = []
        for number, rows in enumerate(files):
            path = tmp_path / (names[number] if names else f"{number}.jsonl")
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            sources.append(SourceSettings(file=str(path)))
        settings = curate_settings({"steps": steps})
        return curate(sources, tmp_path / out, settings=settings, model=str(model_folder))

    return curate_rows


def lines(result: CurateResult, name: str = "data.jsonl") -> Rows:
    text = (result.out / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def rows_of(count: int) -> Rows:
    """Rows that all differ."""
    return [
        {"prompt": f"{example.texts['text']} What is it like?", "completion": f"It was {i} times."}
        for i, example in enumerate(tiny.toy_examples(count))
    ]


def answers(result: CurateResult) -> list[str]:
    return [row["messages"][-1]["content"] for row in lines(result)]


def mixed() -> Rows:
    """Rows of which every filter and both searches for duplicates remove something."""
    rows = rows_of(20)
    rows += [
        {"prompt": "Say it.", "completion": "  "},
        {"prompt": "", "completion": "Something."},
        {"prompt": "Name it.", "completion": "I'm sorry, but I can't help with that."},
        {"prompt": "Who?", "completion": "As an AI language model, I am nobody."},
        {"prompt": "What?", "completion": "Ã©t\ufffd\ufffd"},
        {"prompt": "Tell.", "completion": "word " * 50 + "and then we"},
        {"prompt": "Code.", "completion": "word " * 50 + "```python\nx = 1"},
        {"prompt": rows[3]["prompt"].upper(), "completion": rows[3]["completion"] + " "},
        {"prompt": rows[4]["prompt"], "completion": rows[4]["completion"].replace(".", "!")},
    ]
    return rows


def all_steps(encoder: Path) -> list[dict[str, Any]]:
    near = {"step": "near", "encoder": str(encoder), "threshold": 0.9999}
    assert [s["step"] for s in DEFAULT_STEPS[-2:]] == ["near", "near"]
    return [*DEFAULT_STEPS[:-2], {**DEFAULT_STEPS[-2], "jaccard": 0.95}, near]


def test_a_pipeline_of_no_steps_keeps_every_row(run: Callable[..., CurateResult]) -> None:
    rows = mixed()
    result = run(rows, steps=[])
    assert [[m["content"] for m in row["messages"]] for row in lines(result)] == [
        [row["prompt"], row["completion"]] for row in rows
    ]
    assert lines(result, "removed.jsonl") == []


def test_what_is_kept_and_what_is_removed_are_the_input(
    run: Callable[..., CurateResult], encoder_folder: Path
) -> None:
    everything = lines(run(mixed(), steps=[], out="all"))
    result = run(mixed(), steps=all_steps(encoder_folder))
    kept, removed = lines(result), lines(result, "removed.jsonl")
    whole = {row["id"]: row["messages"] for row in [*kept, *removed]}
    assert len(kept) + len(removed) == len(everything)
    assert whole == {row["id"]: row["messages"] for row in everything}
    assert [row["id"] for row in kept] == [r["id"] for r in everything if r in kept]
    reasons = {row["reason"] for row in removed}
    assert reasons >= {
        *("empty answer", "empty prompt", "refusal", "speaks as a language model"),
        *("spoilt characters", "answer breaks off", "code block left open", "exact duplicate"),
    }


def test_each_step_counts_before_and_after(run: Callable[..., CurateResult]) -> None:
    result = run(mixed(), steps=["empty", "exact", {"step": "top", "k": 5}])
    assert [(s.name, s.before, s.kept) for s in result.steps] == [
        ("read", 29, 29),
        ("empty", 29, 27),
        ("exact", 27, 26),
        ("top", 26, 5),
    ]
    for step in result.steps:
        assert sum(step.histogram["counts"]["row"]) == step.kept
        assert sum(step.reasons.values()) == step.removed


def test_running_twice_gives_the_same_bytes(
    run: Callable[..., CurateResult], encoder_folder: Path
) -> None:
    first = run(mixed(), steps=all_steps(encoder_folder), out="first")
    second = run(mixed(), steps=all_steps(encoder_folder), out="second")
    assert not any(step.resumed for step in second.steps)
    for name in RESULTS:
        assert (first.out / name).read_bytes() == (second.out / name).read_bytes()


@pytest.mark.parametrize("killed_in", ["exact", "near"])
def test_a_killed_run_goes_on_and_ends_the_same(
    run: Callable[..., CurateResult],
    encoder_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_in: str,
) -> None:
    steps = all_steps(encoder_folder)
    whole = run(mixed(), steps=steps, out="whole")

    def die(*_: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(STEPS, killed_in, die)
        with pytest.raises(KeyboardInterrupt):
            run(mixed(), steps=steps)
    result = run(mixed(), steps=steps)
    names = [step.name for step in result.steps]
    assert [s.name for s in result.steps if s.resumed] == names[: names.index(killed_in)]
    for name in RESULTS:
        assert (whole.out / name).read_bytes() == (result.out / name).read_bytes()


def test_a_step_killed_halfway_leaves_nothing_that_counts(
    run: Callable[..., CurateResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(mixed(), steps=["empty"], out="whole")

    def break_off(step: Any, items: Any, context: Any) -> Any:
        yield from [(item, None) for item in list(items)[:3]]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("taskfit.curate.pipeline.verdicts_of", break_off)
        with pytest.raises(KeyboardInterrupt):
            run(mixed(), steps=["empty"])
    result = run(mixed(), steps=["empty"])
    assert (whole.out / "data.jsonl").read_bytes() == (result.out / "data.jsonl").read_bytes()


def test_a_changed_step_runs_anew_with_all_behind_it(run: Callable[..., CurateResult]) -> None:
    run(mixed(), steps=["empty", {"step": "tokens", "max": 500}, "exact"])
    result = run(mixed(), steps=["empty", {"step": "tokens", "max": 501}, "exact"])
    assert [step.resumed for step in result.steps] == [True, True, False, False]


def test_a_changed_file_is_read_anew(run: Callable[..., CurateResult]) -> None:
    run(rows_of(5), steps=["empty"])
    assert len(lines(run(rows_of(6), steps=["empty"]))) == 6


def test_of_equal_rows_the_first_is_kept_whatever_the_order(
    run: Callable[..., CurateResult],
) -> None:
    rows = rows_of(6)
    twins = [{**row, "prompt": f" {row['prompt'].swapcase()}  "} for row in rows]
    for seed in range(3):
        mixed_up = [*rows, *twins]
        random.Random(seed).shuffle(mixed_up)
        result = run(mixed_up, steps=["exact"], out=f"out{seed}")
        first = {}
        for number, row in enumerate(mixed_up, start=1):
            first.setdefault(row["completion"], f"0.jsonl:{number}")
        assert [row["id"] for row in lines(result)] == list(first.values())
        assert {r["of"] for r in lines(result, "removed.jsonl")} == set(first.values())


@pytest.mark.parametrize("method", ["embedding", "minhash"])
def test_a_planted_near_duplicate_is_found_and_the_longer_answer_stays(
    run: Callable[..., CurateResult], encoder_folder: Path, method: str
) -> None:
    long = "The teacher was lovely in the park and the garden, and everybody said so, yes or no"
    rows = [
        {"prompt": "Tell me of the teacher, the dog and the river.", "completion": f"{long}."},
        {"prompt": "Tell me of the teacher, the dog and the river.", "completion": f"{long}!!"},
        {"prompt": "0 1 2 0 1 2 0 1 2", "completion": "日本 é ü 日本 é ü"},
    ]
    # The tiny encoder is random, so that all texts are near; this tells equal from different.
    near = {"step": "near", "method": method, "encoder": str(encoder_folder), "threshold": 0.98}
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        files = [[rows[i]] for i in order]
        result = run(*files, steps=[near], out=f"out{order}")
        assert sorted(answers(result)) == sorted([rows[1]["completion"], rows[2]["completion"]])
        assert lines(result, "removed.jsonl")[0]["of"] == f"{order.index(1)}.jsonl:1"


def test_no_two_kept_rows_are_near_and_each_removed_row_is_near_to_a_kept_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = np.random.default_rng(0)
    vectors = np.repeat(draw.normal(size=(60, 8)), 5, axis=0) + 0.2 * draw.normal(size=(300, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    # Less than the rows, so that rows meet others of their block and of earlier ones.
    monkeypatch.setattr("taskfit.curate.duplicates.BLOCK", 64)
    found = near_by_cosine(vectors, threshold=0.9)
    kept = np.flatnonzero(found.kept_row < 0)
    removed = np.flatnonzero(found.kept_row >= 0)
    cosines = vectors @ vectors.T
    assert len(kept) > 20
    assert len(removed) > 20
    assert (cosines[np.ix_(kept, kept)] - np.eye(len(kept)) < 0.9).all()
    partners = found.kept_row[removed]
    assert np.isin(partners, kept).all()
    assert (partners < removed).all()
    np.testing.assert_allclose(cosines[removed, partners], found.similarity[removed], atol=1e-5)
    assert (found.similarity[removed] >= 0.9).all()


@pytest.mark.parametrize("method", ["embedding", "minhash"])
def test_the_order_of_files_does_not_change_which_near_duplicates_stay(
    run: Callable[..., CurateResult], encoder_folder: Path, method: str
) -> None:
    near: dict[str, Any] = {"step": "near", "encoder": str(encoder_folder), "threshold": 0.97}
    near |= {"method": method, "jaccard": 0.6}
    first, second = rows_of(40)[:20], rows_of(40)[20:]
    one = run(first, second, steps=[near], out="one")
    other = run(second, first, steps=[near], out="other")
    assert 0 < len(answers(one)) < 40
    assert sorted(answers(one)) == sorted(answers(other))


def test_auto_takes_minhash_above_the_stated_number_of_rows(
    run: Callable[..., CurateResult], encoder_folder: Path
) -> None:
    near = {"step": "near", "encoder": str(encoder_folder)}
    few = run(rows_of(6), steps=[{**near, "max_embedded": 6}], out="few")
    many = run(rows_of(7), steps=[{**near, "max_embedded": 6}], out="many")
    assert few.steps[-1].facts["method"].startswith("embedding")
    assert many.steps[-1].facts["method"] == "minhash"


def test_rows_of_an_evaluation_set_are_removed(
    run: Callable[..., CurateResult], tmp_path: Path
) -> None:
    rows = rows_of(6)
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    rows[5] = {"prompt": f"Continue: {words}", "completion": "fourteen"}
    (tmp_path / "exam.jsonl").write_text(
        json.dumps({"prompt": rows[2]["prompt"].upper()})
        + "\n"
        + json.dumps({"prompt": f"Well, {words}."})
    )
    sets = {"exam": {"file": str(tmp_path / "exam.jsonl")}}
    result = run(rows, steps=[{"step": "overlap", "sets": sets, "threshold": None}])
    removed = lines(result, "removed.jsonl")
    assert [(r["id"], r["reason"], r["of"]) for r in removed] == [
        ("0.jsonl:3", "stands in exam", "exam:1"),
        ("0.jsonl:6", "13 words of exam", "exam:2"),
    ]


def test_rows_near_to_an_evaluation_set_are_removed(
    run: Callable[..., CurateResult], tmp_path: Path, encoder_folder: Path
) -> None:
    rows = [
        {"prompt": "the dog was happy at home?", "completion": "x"},
        {"prompt": "日本 é ü 日本 é ü", "completion": "y"},
    ]
    (tmp_path / "exam.jsonl").write_text(json.dumps({"text": "the dog was happy at home!"}))
    sets = {"exam": {"file": str(tmp_path / "exam.jsonl")}}
    # The tiny encoder is random: texts of the same letters are nearer to each other than others.
    overlap = {"step": "overlap", "sets": sets, "encoder": str(encoder_folder), "words": None}
    result = run(rows, steps=[{**overlap, "threshold": 0.97}])
    removed = lines(result, "removed.jsonl")
    assert [(r["id"], r["reason"]) for r in removed] == [("0.jsonl:1", "near to exam")]
    assert 0.97 <= removed[0]["similarity"] < 1


def test_top_keeps_the_longest_answers_in_their_order(run: Callable[..., CurateResult]) -> None:
    rows = [{"prompt": "p", "completion": "é" * n} for n in (3, 9, 5, 7, 1)]
    result = run(rows, steps=[{"step": "top", "k": 2}])
    assert answers(result) == ["é" * 9, "é" * 7]
    result = run(rows, steps=[{"step": "top", "k": 2, "lowest": True}])
    assert answers(result) == ["é" * 3, "é"]


def test_top_by_score_uses_the_column_that_is_named(
    tmp_path: Path, model_folder: Path, run: Callable[..., CurateResult]
) -> None:
    rows = [{"prompt": f"p{n}", "completion": "c", "grade": g} for n, g in enumerate((1, 3.5, 2))]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = curate_settings({"steps": [{"step": "top", "k": 1, "by": "score"}]})
    source = SourceSettings(file=str(path), columns={"score": "grade"})
    result = curate([source], tmp_path / "out", settings=settings, model=str(model_folder))
    assert [row["score"] for row in lines(result)] == [3.5]
    with pytest.raises(DataError, match="has no score"):
        run(rows, steps=[{"step": "top", "k": 1, "by": "score"}], out="other")


@pytest.mark.parametrize("method", ["k-center", "k-means"])
def test_diverse_keeps_k_rows_whatever_the_order(
    run: Callable[..., CurateResult], encoder_folder: Path, method: str
) -> None:
    step = {"step": "diverse", "k": 7, "method": method, "encoder": str(encoder_folder)}
    rows = rows_of(30)
    one = run(rows, steps=[step], out="one")
    other = run(rows[::-1], steps=[step], out="other")
    assert len(answers(one)) == 7
    assert answers(one) == answers(other)[::-1]


def test_diverse_takes_one_row_of_each_cluster() -> None:
    draw = np.random.default_rng(0)
    centres = np.linalg.qr(draw.normal(size=(16, 16)))[0][:6]
    vectors = np.repeat(centres, 20, axis=0) + 0.02 * draw.normal(size=(120, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    assert sorted(k_center(vectors, 6) // 20) == list(range(6))
    chosen = nearest_to_centres(vectors, 10, seed=0)
    assert len(set(chosen.tolist())) == 10


def test_limits_on_tokens_are_the_tokenizers_own(
    run: Callable[..., CurateResult], byte_level_tokenizer: Any
) -> None:
    rows = [{"prompt": f"mood é {'park ' * n}", "completion": f"{n}."} for n in range(12)]
    limit = 12
    result = run(rows, steps=[{"step": "tokens", "of": "prompt", "max": limit}])
    expected = [
        row["completion"]
        for row in rows
        if len(byte_level_tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]) <= limit
    ]
    assert 0 < len(expected) < 12
    assert answers(result) == expected


def test_chats_are_written_in_a_template_with_a_preview(run: Callable[..., CurateResult]) -> None:
    rows = [{"prompt": "Hi", "completion": "Yo"}]
    chat = {"step": "chat", "template": "chatml", "system": "Be kind."}
    result = run(rows, steps=[chat])
    text = (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYo<|im_end|>\n"
    )
    assert lines(result) == [{"id": "0.jsonl:1", "text": text}]
    assert result.steps[-1].facts["previews"] == [text]


@pytest.mark.parametrize("name", template_names())
def test_a_template_writes_what_tuning_would_learn(
    run: Callable[..., CurateResult], byte_level_tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    result = run([{"prompt": "Hi", "completion": "Yo"}], steps=[{"step": "chat", "template": name}])
    (row,) = lines(result)
    tokenizer = copy.deepcopy(byte_level_tokenizer)
    tokenizer.chat_template = find_template(name)
    encoder = ChatEncoder(tokenizer, max_length=200)  # type: ignore[arg-type]
    turns = (Message("user", "Hi"), Message("assistant", "Yo"))
    (item,) = encoder.conversations([Conversation("0", turns)])
    assert row["text"] == tokenizer.decode(item.ids.tolist())


def test_rows_that_a_template_refuses_are_removed_with_its_message(
    run: Callable[..., CurateResult], tmp_path: Path
) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% if messages[0]['content'] == 'bad' %}{{ raise_exception('not this') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    rows = [{"prompt": "bad", "completion": "x"}, {"prompt": "good", "completion": "x"}]
    result = run(rows, steps=[{"step": "chat", "template": str(template)}])
    assert [row["text"] for row in lines(result)] == ["good"]
    assert "not this" in lines(result, "removed.jsonl")[0]["detail"]


def test_a_chat_that_holds_a_control_token_is_not_written_as_a_text(
    run: Callable[..., CurateResult],
) -> None:
    rows = [{"prompt": "Hi </s>", "completion": "x"}, {"prompt": "Hi", "completion": "x"}]
    result = run(rows, steps=[{"step": "chat", "template": "plain"}])
    assert [row["id"] for row in lines(result)] == ["0.jsonl:2"]
    (removed,) = lines(result, "removed.jsonl")
    assert (removed["reason"], removed["detail"]) == ("it holds a control token", "</s>")


def test_what_is_not_read_of_rows_or_left_out_stands_in_the_card(
    run: Callable[..., CurateResult],
) -> None:
    rows = [{"prompt": "p", "completion": str(i), "label": i > 0, "rating": 1} for i in range(3)]
    (source,) = run(rows, steps=[]).steps[0].facts["sources"]
    assert source["rows"] == 2
    first, second = source["notes"]
    assert "left out 1 row whose label is false" in first
    assert "not read: rating (2 rows)" in second


def test_a_language_that_is_not_wanted_is_removed(run: Callable[..., CurateResult]) -> None:
    pytest.importorskip("py3langid")
    german = "Der schnelle braune Fuchs springt über den faulen Hund, und alle sehen ihm dabei zu."
    english = "The quick brown fox jumps over the lazy dog, and everybody watches it with delight."
    rows = [{"prompt": text, "completion": text} for text in (german, english)]
    result = run(rows, steps=["language"])
    assert answers(result) == [english]
    assert lines(result, "removed.jsonl")[0]["reason"] == "language de"


def test_an_empty_result_names_the_step_that_emptied_it(
    run: Callable[..., CurateResult], tmp_path: Path
) -> None:
    steps = ["empty", {"step": "tokens", "min": 10_000, "max": None}, "exact"]
    with pytest.raises(DataError) as caught:
        run(rows_of(5), steps=steps)
    assert "Step 2, tokens, removed the last 5 rows" in str(caught.value)
    assert not (tmp_path / "out").exists()
    removed = next((tmp_path / "out.work").glob("02-*/removed.jsonl"))
    assert len(removed.read_text().splitlines()) == 5


def test_a_folder_of_somebody_elses_is_not_replaced(
    run: Callable[..., CurateResult], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingsError, match="was not written by taskfit curate"):
        run(rows_of(3), steps=[])
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_two_files_of_one_name_have_ids_of_their_own(
    run: Callable[..., CurateResult], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    result = run(rows_of(2), rows_of(2), steps=[], names=["a/x.jsonl", "b/x.jsonl"])
    assert len({row["id"] for row in lines(result)}) == 4


def test_text_in_rows_is_no_html(run: Callable[..., CurateResult]) -> None:
    result = run(
        [{"prompt": "<script>alert(1)</script>", "completion": ""}, *rows_of(1)], steps=["empty"]
    )
    page = (result.out / "card.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("steps: [exactly]", "step 1 .exactly.: there is no such step"),
        ("steps:\n- step: near\n  treshold: 0.9", "step 1 .near., treshold: there is no such"),
        ("steps:\n- step: near\n  threshold: 2", "less than or equal to 1"),
        ("steps:\n- step: top", "step 1 .top., k: field required"),
        ("steps: 3", "steps: "),
        ("stages: []", "stages: there is no such setting"),
        ("[1", "is not YAML"),
        ("- 1", "holds no settings"),
    ],
)
def test_a_steps_file_that_is_wrong_is_one_message(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "steps.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=what):
        load_curate_settings(path)


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        (["overlap"], "there is no evaluation set"),
        (["chat"], "has no chat template"),
        ([{"step": "chat", "template": "none.jinja"}], "no chat template none.jinja"),
        ([{"step": "chat", "template": "chatml"}, "exact"], "Put chat last"),
        ([{"step": "tokens", "min": 5, "max": 4}], "below min"),
        ([{"step": "refusals", "patterns": ["("]}], "not a regular expression"),
    ],
)
def test_steps_that_do_not_fit_are_one_message(
    run: Callable[..., CurateResult], steps: list[Any], what: str
) -> None:
    with pytest.raises(SettingsError, match=what):
        run(rows_of(3), steps=steps)


def test_an_absent_package_is_one_message_that_says_what_to_install(
    run: Callable[..., CurateResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"taskfit\[curate\]"):
        run(rows_of(3), steps=["near"])
