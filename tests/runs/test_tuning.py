"""Instructions and preferences are learned, kept, resumed, measured and answered."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

import tiny
from taskfit.compare.judge import judge, judge_answers, judge_rows, judgement_rows
from taskfit.data.instructions import read_instructions
from taskfit.data.messages import Message
from taskfit.errors import SettingsError, TaskfitError
from taskfit.files import read_jsonl, write_json_atomic
from taskfit.models.load import load_model
from taskfit.report.pages import write_page
from taskfit.runs.fit import FittedRun, fit
from taskfit.runs.origin import continued_settings
from taskfit.runs.tuning.data import prepare_tuning
from taskfit.runs.tuning.generate import GeneratedFile, generate_file
from taskfit.runs.tuning.model import Decoding, TunedModel
from taskfit.runs.tuning.rows import prompt_of
from taskfit.screen import SilentScreen
from taskfit.settings import RunSettings
from taskfit.settings_file import load_settings
from taskfit.tasks.chat import EncodedText
from tiny_screens import Killed, NotingScreen

NAMES = ("dog", "cat", "bird", "train")
ANSWERS = ("yes", "no", "good", "bad maybe")
FEW = Decoding(max_new_tokens=8)
Make = Callable[..., RunSettings]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def instructions(path: Path) -> Path:
    pairs = zip(NAMES, ANSWERS, strict=True)
    return write_rows(path, [{"instruction": f"Is the {n} warm?", "output": a} for n, a in pairs])


def preferences(path: Path) -> Path:
    rows = [
        {"prompt": f"Is the {n} warm?", "chosen": a, "rejected": ANSWERS[i - 1]}
        for i, (n, a) in enumerate(zip(NAMES, ANSWERS, strict=True))
    ]
    return write_rows(path, rows)


@pytest.fixture
def settings_of(tmp_path: Path, model_folder: Path) -> Make:
    files = {"sft": instructions(tmp_path / "rows.jsonl")}
    files["dpo"] = preferences(tmp_path / "pairs.jsonl")

    def make(method: str, *extra: str) -> RunSettings:
        return load_settings(
            overrides=[
                f"method.name={method}",
                f"data.train={files[method]}",
                "data.validation_fraction=0",
                f"model.name={model_folder}",
                "model.dtype=float32",
                "tuning.chat_template=headings",
                "tuning.max_new_tokens=8",
                "training.epochs=60",
                "training.batch_size=4",
                "training.learning_rate=0.02",
                "training.save_every_steps=5",
                "training.tensorboard=false",
                *extra,
            ]
        )

    return make


@pytest.fixture(scope="module")
def answering(
    tmp_path_factory: pytest.TempPathFactory, byte_level_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A run whose model has learned its four answers by heart."""
    folder = tmp_path_factory.mktemp("answering")
    tiny.tiny_model("llama", len(byte_level_tokenizer)).save_pretrained(folder / "model")
    byte_level_tokenizer.save_pretrained(folder / "model")
    settings = load_settings(
        overrides=[
            "method.name=sft",
            f"data.train={instructions(folder / 'rows.jsonl')}",
            "data.validation_fraction=0",
            f"model.name={folder / 'model'}",
            "model.dtype=float32",
            "tuning.chat_template=headings",
            "tuning.num_samples=0",
            "adapter.weights=full",
            "training.epochs=50",
            "training.batch_size=4",
            "training.learning_rate=0.003",
            "training.tensorboard=false",
        ]
    )
    fit(settings, folder / "run")
    return folder / "run"


def log_probs(tuned: TunedModel, path: Path) -> Any:
    items, _ = tuned.encode(read_instructions(str(path)).rows)
    texts: list[Any] = [t for i in items for t in ([i] if hasattr(i, "ids") else [i.chosen])]
    return tuned.log_probs(texts)


def weights_of(run: FittedRun) -> dict[str, Any]:
    return {name: p.numpy() for name, p in run.fitted.model.tree.model.state_dict().items()}


@pytest.mark.parametrize("weights", ["lora", "full"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_handful_of_rows_is_learned_and_the_model_comes_back_from_disk(
    settings_of: Make, tmp_path: Path, method: str, weights: str
) -> None:
    rate = "0.02" if weights == "lora" else "0.003"
    extra = [f"adapter.weights={weights}", f"training.learning_rate={rate}"]
    extra.append("adapter.lora_dropout=0")
    run = fit(settings_of(method, *extra, "tuning.num_samples=1"), tmp_path / "run")
    source = str(run.fitted.settings.data.train)
    prompts = [prompt_of(row) for row in read_instructions(source).rows]
    steps = [r for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "step"]
    if method == "sft":
        assert run.fitted.answer(prompts, FEW) == list(ANSWERS)
    else:
        assert steps[0]["loss"] == pytest.approx(np.log(2), rel=1e-4)
        assert steps[0]["reward_margin"] == pytest.approx(0, abs=1e-4)
        assert steps[-1]["reward_accuracy"] == 1
    assert steps[-1]["loss"] < steps[0]["loss"] / 4
    again = TunedModel.load(tmp_path / "run", device="cpu")
    np.testing.assert_allclose(log_probs(again, source), log_probs(run.fitted, source), atol=1e-4)
    assert again.answer(prompts, FEW) == run.fitted.answer(prompts, FEW)
    samples = read_jsonl(tmp_path / "run" / "samples.jsonl")
    assert [sample["when"] for sample in samples] == ["before", "after"]
    assert samples[1]["answer"] != samples[0]["answer"]


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_killed_run_ends_bitwise_equal_with_the_same_samples(
    settings_of: Make, tmp_path: Path, method: str
) -> None:
    settings = settings_of(
        method,
        "training.epochs=6",
        "training.batch_size=2",
        "data.validation_fraction=0.25",
        "adapter.lora_dropout=0.1",
        "training.save_every_steps=3",
        "training.eval_every_steps=2",
    )
    whole = fit(settings, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(settings, tmp_path / "broken", screen=NotingScreen(5))
    with pytest.raises(TaskfitError, match=r"holds no tuned model.*taskfit fit --resume"):
        TunedModel.load(tmp_path / "broken")
    write_json_atomic(tmp_path / "broken" / "clock.json", {"seconds": 900.0, "cpu_seconds": 700.0})
    resumed = fit(settings, tmp_path / "broken", resume=True)
    assert 900 < resumed.result.duration_seconds < 1000
    assert 700 < resumed.result.cpu_seconds < 900
    ours, theirs = weights_of(resumed), weights_of(whole)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    samples = [read_jsonl(tmp_path / name / "samples.jsonl") for name in ("whole", "broken")]
    assert samples[0] == samples[1]
    times = list(dict.fromkeys(sample["when"] for sample in samples[0]))
    records = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    validated = [r for r in records if r["kind"] == "validation"]
    assert times == ["before", *(f"step {r['step']}" for r in validated), "after"]
    assert len(validated) > 2
    assert all(r["loss"] > 0 for r in validated)
    steps = [record for record in records if record["kind"] == "step"]
    assert all(("reward_margin" in record) == (method == "dpo") for record in steps)


def test_the_report_shows_numbers_and_answers_before_and_after(
    settings_of: Make, tmp_path: Path
) -> None:
    extra = ["training.epochs=3", "data.validation_fraction=0.5", "training.keep=last"]
    run = fit(settings_of("sft", *extra), tmp_path / "run", report=write_page)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for when in ("before", "after"):
        found = run.result.details[when]["validation"]
        assert f"{found['loss']:.3f}" in page
        assert f"{found['perplexity']:.3f}" in page
        assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
        assert found["loss_low"] <= found["loss"] <= found["loss_high"]
    samples = read_jsonl(tmp_path / "run" / "samples.jsonl")
    assert {sample["prompt"] for sample in samples} <= {f"Is the {n} warm?" for n in NAMES}
    plain = re.sub(r"&#?\w+;", "", page)
    for sample in samples:
        if sample["when"] in ("before", "after"):
            first = re.split(r"[<>&'\"]", sample["answer"])[0]
            assert first in plain


def test_measured_losses_are_those_of_rows_alone_and_steps_divide_by_tokens(
    settings_of: Make, tmp_path: Path
) -> None:
    run = fit(settings_of("sft", "training.epochs=1"), tmp_path / "run")
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    start = next(record for record in records if record["kind"] == "start")
    settings = run.fitted.settings
    base = TunedModel(settings, load_model(settings.model))
    texts, _ = base.encode(read_instructions(str(tmp_path / "rows.jsonl")).rows)
    items = [text for text in texts if isinstance(text, EncodedText)]
    total = sum(float(base.log_probs([item])[0]) for item in items)
    assert start["loss_before"] == pytest.approx(-total / sum(i.num_learned for i in items))


def test_before_training_the_model_is_its_own_reference(settings_of: Make, tmp_path: Path) -> None:
    run = fit(
        settings_of("dpo", "data.validation_fraction=0.5", "training.epochs=20"), tmp_path / "run"
    )
    before = run.result.details["before"]["validation"]
    assert before["loss"] == pytest.approx(np.log(2))
    assert before["reward_margin"] == 0
    assert before["reward_accuracy"] == 0.5
    after = run.result.details["after"]["validation"]
    best = min(
        record["loss"]
        for record in read_jsonl(tmp_path / "run" / "metrics.jsonl")
        if record["kind"] == "validation"
    )
    assert after["loss"] == pytest.approx(best, rel=1e-4)


def test_pairs_of_files_with_one_name_keep_their_own_reference(
    settings_of: Make, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "pairs.jsonl"
    other.parent.mkdir()
    rows = [{"prompt": "Who sang?", "chosen": "the bird", "rejected": "no"}]
    write_rows(other, rows)
    short = ["training.epochs=2", "tuning.num_samples=0"]
    settings = settings_of("dpo", f"data.validation={other}", *short)
    run = fit(settings, tmp_path / "run")
    assert run.result.details["before"]["validation"]["reward_margin"] == 0
    alone = other.rename(other.with_name("unlike.jsonl"))
    same = fit(settings_of("dpo", f"data.validation={alone}", *short), tmp_path / "same")
    assert run.result.details == same.result.details


def test_raw_texts_are_learned_and_gone_on_with(settings_of: Make, tmp_path: Path) -> None:
    rows = [{"text": f"The {n} said {a} at home"} for n, a in zip(NAMES, ANSWERS, strict=True)]
    source = write_rows(tmp_path / "texts.jsonl", rows)
    extra = ["tuning.chat_template=null", "adapter.lora_dropout=0", "tuning.num_samples=2"]
    run = fit(settings_of("sft", f"data.train={source}", *extra), tmp_path / "run")
    begun = [f"The {name} said" for name in NAMES]
    assert run.fitted.answer(begun, FEW) == [f"{answer} at home" for answer in ANSWERS]
    sample = read_jsonl(tmp_path / "run" / "samples.jsonl")[-1]
    assert f"{sample['prompt']} {sample['reference']}" in [row["text"] for row in rows]
    # A file of texts is gone on with from its end.
    write_rows(tmp_path / "begun.jsonl", [{"text": text} for text in begun])
    generate(tmp_path / "run", tmp_path / "begun.jsonl", tmp_path / "out.jsonl")
    assert [r["answer"] for r in read_jsonl(tmp_path / "out.jsonl")] == [
        f"{answer} at home" for answer in ANSWERS
    ]


def generate(run: Path, source: Path, target: Path, **more: Any) -> GeneratedFile:
    return generate_file(
        str(run),
        str(source),
        target,
        **{"decoding": FEW, "screen": SilentScreen(), "device": "cpu", **more},
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_file_is_answered_as_its_prompts_one_by_one(
    answering: Path, tmp_path: Path, kind: str
) -> None:
    source = instructions(tmp_path / "rows.jsonl")
    target = tmp_path / f"answers.{kind}"
    assert generate(answering, source, target) == (len(NAMES), 0)
    readers = {"csv": pd.read_csv, "parquet": pd.read_parquet}
    found = pd.DataFrame(read_jsonl(target)) if kind == "jsonl" else readers[kind](target)
    tuned = TunedModel.load(answering, device="cpu")
    alone = [tuned.answer([prompt_of(r)], FEW)[0] for r in read_instructions(str(source)).rows]
    assert found["answer"].tolist() == alone == list(ANSWERS)
    assert found["reference"].tolist() == list(ANSWERS)
    assert found["prompt"].tolist() == [f"Is the {name} warm?" for name in NAMES]
    assert found["id"].tolist() == [f"rows.jsonl:{line}" for line in range(1, 5)]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_every_row_of_prompts_comes_out_with_its_other_columns(
    answering: Path, tmp_path: Path, kind: str
) -> None:
    asked = [f"Is the {name} warm?" for name in NAMES]
    rows = [
        {"id": str(place), "instruction": text, "answer": "x", "team": f"t{place}", "error": "e"}
        for place, text in enumerate((asked[0], "", asked[1], "  ", asked[2]))
    ]
    source = tmp_path / f"rows.{kind}"
    if kind == "csv":
        pd.DataFrame(rows).to_csv(source, index=False)
    else:
        write_rows(source, rows)
    screen = NotingScreen()
    counts = generate(answering, source, tmp_path / "out.jsonl", screen=screen)
    assert counts == (3, 2)
    found = read_jsonl(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == list("01234")
    assert [row["team"] for row in found] == [f"t{place}" for place in range(5)]
    assert [row["answer"] for row in found] == [ANSWERS[0], None, ANSWERS[1], None, ANSWERS[2]]
    assert [row["error"] for row in found] == [
        *(None, "the row has no text", None, "the row has no text", None)
    ]
    assert {row["text_error"] for row in found} == {"e"}
    assert any("error is called text_error" in note for note in screen.notes)
    generate(answering, source, tmp_path / "alone.jsonl", only_predictions=True)
    assert list(read_jsonl(tmp_path / "alone.jsonl")[0]) == ["id", "prompt", "answer", "reference"]
    before = source.read_bytes()
    with pytest.raises(SettingsError, match="would be written over"):
        generate(answering, source, source)
    assert source.read_bytes() == before


def test_prompts_without_answers_are_enough(answering: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "p.jsonl", [{"instruction": f"Is the {NAMES[0]} warm?"}])
    generate(answering, source, tmp_path / "out.jsonl")
    (row,) = read_jsonl(tmp_path / "out.jsonl")
    assert (row["answer"], row["reference"]) == (ANSWERS[0], "")


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_killed_generation_goes_on_and_ends_equal_also_when_sampled(
    answering: Path, tmp_path: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskfit.runs.tuning.generate.CHUNK", 2)
    source = write_rows(
        tmp_path / "p.jsonl", [{"prompt": f"The {n} in the park"} for n in tiny.NOUNS[:6]]
    )
    decoding = Decoding(max_new_tokens=8, temperature=temperature, top_p=0.95)
    generate(answering, source, tmp_path / "whole.jsonl", decoding=decoding, seed=3)
    original, calls = TunedModel.answer, []

    def limited(self: TunedModel, *arguments: Any, **more: Any) -> list[str]:
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return original(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(TunedModel, "answer", limited)
        with pytest.raises(Killed):
            generate(answering, source, tmp_path / "out.jsonl", decoding=decoding, seed=3)
        assert not (tmp_path / "out.jsonl").exists()
        generate(answering, source, tmp_path / "out.jsonl", decoding=decoding, seed=3)
        assert len(calls) == 4, "finished chunks are not answered again"
    whole = (tmp_path / "whole.jsonl").read_text()
    assert (tmp_path / "out.jsonl").read_text() == whole
    assert {p.name for p in tmp_path.iterdir()} == {"p.jsonl", "whole.jsonl", "out.jsonl"}
    generate(answering, source, tmp_path / "other.jsonl", decoding=decoding, seed=4)
    assert ((tmp_path / "other.jsonl").read_text() == whole) == (temperature == 0)


def test_answers_end_at_stop_texts_and_pieces_add_up_to_the_answer(answering: Path) -> None:
    tuned = TunedModel.load(answering, device="cpu")
    prompt = (Message("user", "Is the train warm?"),)
    assert tuned.answer([prompt], FEW) == ["bad maybe"]
    for stop, expected in (((), "bad maybe"), (("may",), "bad"), (("d m", "ybe"), "ba")):
        decoding = Decoding(max_new_tokens=8, stop=stop)
        pieces: list[str] = []
        assert tuned.stream(prompt, decoding, write=pieces.append) == expected
        assert "".join(pieces).strip() == expected
        assert tuned.answer([prompt], decoding) == [expected]


def test_an_end_of_turn_that_is_no_token_ends_answers_as_text(
    settings_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = ["tuning.chat_template=chatml", "adapter.lora_dropout=0", "tuning.num_samples=0"]
    run = fit(settings_of("sft", *extra), tmp_path / "run")
    assert run.fitted.end_of_turn() == ([], "<|im_end|>")
    prompt = (Message("user", "Is the dog warm?"),)
    assert run.fitted.answer([prompt], Decoding(max_new_tokens=40)) == ["yes"]


TASK = """
name: mood
version: 1
text: text
labels: [{name: bad, words: " bad"}, {name: good, words: " good"}]
template: {line: "Text: {text}\nLabel:{label}"}
"""


def test_judging_gives_base_and_tuned_on_rows_and_tasks(answering: Path, tmp_path: Path) -> None:
    task = tmp_path / "mood.yaml"
    task.write_text(TASK)
    tests = {"new": str(tiny.write_csv(tmp_path / "new.csv", tiny.toy_examples(12)))}
    rows = read_instructions(str(instructions(tmp_path / "rows.jsonl"))).rows
    found = judge(
        answering,
        rows=rows,
        tasks=[str(task)],
        tests=tests,
        decoding=FEW,
        max_test=10,
        device="cpu",
        screen=SilentScreen(),
    )
    assert json.loads((answering / "judgement.json").read_text()) == found
    base, tuned = (found["rows"][who] for who in ("base", "tuned"))
    assert tuned["exact_match"] == tuned["rouge_l"] == 1 > base["exact_match"]
    assert tuned["perplexity"] < 1.5 < base["perplexity"]
    assert tuned["perplexity"] == pytest.approx(np.exp(tuned["loss"]))
    compared = found["tasks"][str(task)]["new"]
    assert compared["num_examples"] == 10
    difference = compared["tuned"] - compared["base"]
    assert compared["difference_low"] <= difference <= compared["difference_high"]
    lines = judgement_rows(found)
    assert [line[1] for line in lines] == [
        *("perplexity", "exact match", "rouge1", "rouge l"),
        "accuracy, zero-shot",
    ]
    *answers, task_line = [line[4] for line in lines]
    assert all(re.fullmatch(r"[+-]\d+\.\d{3}", one) for one in answers)
    assert re.fullmatch(r"[+-]0\.\d{3} \([+-]\d\.\d{3} to [+-]\d\.\d{3}\)", task_line)


@pytest.mark.parametrize("weights", ["lora", "full"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_base_that_is_judged_is_the_model_that_the_run_started_from(
    settings_of: Make, tmp_path: Path, method: str, weights: str
) -> None:
    extra = [f"adapter.weights={weights}", "training.epochs=4", "tuning.num_samples=0"]
    settings = settings_of(method, *extra, "training.learning_rate=0.003")
    fit(settings, tmp_path / "run")
    (tmp_path / "mood.yaml").write_text(TASK)
    test = tiny.write_csv(tmp_path / "new.csv", tiny.toy_examples(12))
    rows = read_instructions(str(tmp_path / "rows.jsonl")).rows
    task = str(tmp_path / "mood.yaml")
    options: dict[str, Any] = {"decoding": FEW, "screen": SilentScreen()}
    found = judge(
        tmp_path / "run",
        rows=rows,
        tasks=[task],
        tests={"new": str(test)},
        max_test=12,
        device="cpu",
        **options,
    )
    base = TunedModel(settings, load_model(settings.model))
    assert found["rows"]["base"] == judge_rows(base, rows, label="base", **options)
    assert found["rows"]["tuned"]["perplexity"] != found["rows"]["base"]["perplexity"]
    given = [f"task.name={task}", f"data.tests.new={test}", "method.name=in_context"]
    given += [f"model.name={settings.model.name}", "method.num_demonstrations=0"]
    given += ["model.dtype=float32", "model.device=cpu"]
    alone = fit(load_settings(overrides=given), tmp_path / "alone", baselines=False)
    home = next((tmp_path / "run" / "judge").glob("mood-*-base"))
    read = [pd.read_parquet(f / "predictions" / "new.parquet") for f in (home, tmp_path / "alone")]
    pd.testing.assert_frame_equal(*read)
    accuracy = alone.result.evaluations["new"].accuracy
    assert found["tasks"][task]["new"]["base"] == accuracy


def test_answers_are_compared_but_for_case_and_punctuation() -> None:
    found = judge_answers(["Yes!", "the cat sat", "unread"], ["yes", "the cat ran", " "])
    # Of two rows, as one has no reference.
    assert found["exact_match"] == 0.5
    # ROUGE by hand: two of three words agree, in order, both ways.
    assert found["rouge1"] == found["rouge_l"] == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("method", "extra", "message"),
    [
        ("sft", ["data.train=pairs.jsonl"], r"preference .* does not learn from. Use --method dpo"),
        ("dpo", ["data.train=rows.jsonl"], r"instruction .* does not learn from. Use --method sft"),
        ("sft", ["data.train=null"], "needs rows to learn from"),
        ("sft", ["data.train=bad.jsonl"], r"2 of 3 rows cannot be used.\n  line 2: output is miss"),
        ("sft", ["data.train=empty.jsonl"], r"empty\.jsonl"),
        ("sft", ["tuning.chat_template=null"], "no chat template. Name one with"),
        ("sft", ["tuning.chat_template=refuse.jinja"], r"rows\.jsonl:\d: .*refuses.*no users here"),
        ("sft", ["tuning.chat_template=broken.jinja"], r"broken\.jinja:1 is no Jinja"),
        ("sft", ["tuning.chat_template=none.jinja"], "There is no chat template none.jinja"),
        ("sft", ["model.max_length=8"], "lose their answers at 8 tokens"),
        ("sft", ["task.name=cola", "data.label=x"], "does not read data.label, task.name"),
        ("sft", ["search.trials=3"], "does not read search.trials"),
        ("sft", ["data.tests.train=rows.jsonl"], "cannot be called train"),
        ("sft", ["tuning.kind=chat"], "none of the kinds"),
        ("sft", ["data.tests.same=rows.jsonl"], "leaves no row to learn from; 4 stand"),
    ],
)
def test_what_cannot_be_learned_is_one_message_and_leaves_no_run(
    settings_of: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    extra: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text(
        '{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n{"output": "b"}\n'
    )
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "refuse.jinja").write_text("{{ raise_exception('no users here') }}")
    (tmp_path / "broken.jinja").write_text("{% for m in messages %}{{ m['content'] + 1 }}")
    with pytest.raises(TaskfitError, match=message):
        fit(settings_of(method, *extra), tmp_path / "run")
    assert not (tmp_path / "run" / "tuned.json").exists()
    assert not (tmp_path / "run" / "result.json").exists()


def test_long_rows_are_left_out_and_long_prompts_are_no_samples(
    settings_of: Make, tmp_path: Path
) -> None:
    rows = read_jsonl(tmp_path / "rows.jsonl")
    rows.append({"instruction": "warm " * 300, "output": "yes"})
    rows.append({"instruction": "Is it?", "output": "maybe " * 300})
    write_rows(tmp_path / "rows.jsonl", rows)
    settings = settings_of("sft", "training.epochs=1", "tuning.num_samples=9")
    screen = NotingScreen()
    run = fit(settings, tmp_path / "run", screen=screen)
    told = "\n".join(screen.notes)
    assert run.result.num_train == 5
    assert "left out 1 rows whose answers lie behind 256 tokens" in told
    assert "only 5 prompts leave room" in told
    start = read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]
    assert start["num_shortened"] == 1
    with pytest.raises(TaskfitError, match=r"1 of 6 prompts leave no room.*rows\.jsonl:5 \("):
        generate(tmp_path / "run", tmp_path / "rows.jsonl", tmp_path / "out.jsonl")


def test_a_tuned_model_goes_on_with_new_rows_where_it_was(
    settings_of: Make, tmp_path: Path
) -> None:
    short = ["training.epochs=4", "data.validation_fraction=0.25", "training.keep=last"]
    first = fit(settings_of("sft", *short), tmp_path / "first")
    source = tmp_path / "rows.jsonl"
    more = write_rows(
        tmp_path / "more.jsonl",
        [
            *map(json.loads, source.read_text().splitlines()),
            {"instruction": "Is the garden warm?", "output": "bad"},
        ],
    )
    settings = continued_settings(
        tmp_path / "first", {"data": {"train": str(more)}}, ["data.validation_fraction=0.25"]
    )
    second = fit(settings, tmp_path / "second")
    # The row that was held out is held out again, and no more than it.
    kept = first.result.details["after"]["validation"]
    assert second.result.details["before"]["validation"] == pytest.approx(kept, rel=1e-4)
    assert second.result.num_train == first.result.num_train + 1


def test_preferences_go_on_from_instructions_and_their_reference_is_the_tuned_model(
    settings_of: Make, tmp_path: Path
) -> None:
    fit(settings_of("sft", "training.epochs=4"), tmp_path / "sft")
    pairs = settings_of("dpo").data.train
    settings = continued_settings(
        tmp_path / "sft",
        {"data": {"train": pairs}, "method": {"name": "dpo"}},
        ["training.epochs=2"],
    )
    fit(settings, tmp_path / "dpo")
    start, first = read_jsonl(tmp_path / "dpo" / "metrics.jsonl")[:2]
    assert start["loss_before"] == pytest.approx(np.log(2), rel=1e-4)
    assert first["reward_margin"] == pytest.approx(0, abs=1e-4)
    again = TunedModel.load(tmp_path / "dpo", device="cpu")
    template = TunedModel.load(tmp_path / "sft", device="cpu").model.tokenizer.chat_template
    assert again.model.tokenizer.chat_template == template


def chat_rows(*answers: Any) -> list[dict[str, Any]]:
    """A conversation for each list of answers, or texts of one."""
    return [
        {
            "messages": [
                turn
                for number, answer in enumerate(one if isinstance(one, list) else [one])
                for turn in (
                    {"role": "user", "content": f"q{number}"},
                    answer
                    if isinstance(answer, dict)
                    else {"role": "assistant", "content": answer},
                )
            ]
        }
        for one in answers
    ]


UNTOLD = {"role": "assistant", "content": "wrong", "weight": 0}


@pytest.mark.parametrize(
    ("method", "rows", "kept", "reason"),
    [
        ("sft", chat_rows("a", "", " \n", None), [1], "3 rows whose answers are empty"),
        ("sft", chat_rows(["a", ""], [UNTOLD], "b"), [1, 3], "1 row whose turns are told not"),
        ("sft", [{"text": " "}, {"text": "t"}], [2], "1 row whose text is empty"),
        (
            "dpo",
            [
                {"prompt": "p", "chosen": "a", "rejected": "a"},
                {"prompt": "q", "chosen": "a", "rejected": ""},
                {"prompt": "r", "chosen": "", "rejected": ""},
                {"prompt": "s", "chosen": "a", "rejected": "b"},
            ],
            [2, 4],
            "1 row whose two answers are the same; 1 row whose chosen answer is empty",
        ),
    ],
)
def test_rows_that_teach_nothing_are_left_out_and_counted(
    settings_of: Make, tmp_path: Path, method: str, rows: Any, kept: list[int], reason: str
) -> None:
    path = write_rows(tmp_path / "mixed.jsonl", rows)
    found = prepare_tuning(settings_of(method, f"data.train={path}"))
    assert sorted(row.id for row in found.train) == [f"mixed.jsonl:{line}" for line in kept]
    assert found.notes == (f"{path}: left out {reason}",) or reason in found.notes[0]
    useless = [row for line, row in enumerate(rows, start=1) if line not in kept]
    path = write_rows(tmp_path / "useless.jsonl", useless)
    with pytest.raises(TaskfitError, match=f"none of {len(useless)} rows teaches anything"):
        prepare_tuning(settings_of(method, f"data.train={path}"))


def test_only_turns_that_say_something_and_are_not_told_apart_are_learned(
    settings_of: Make, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", chat_rows(["good", UNTOLD, "", "yes"], "no"))
    extra = (f"data.train={path}", "training.max_steps=1", "tuning.num_samples=0")
    tuned = fit(settings_of("sft", *extra), tmp_path / "run").fitted
    items, _ = tuned.encode(prepare_tuning(tuned.settings).train)
    decode = tuned.model.tokenizer.decode
    learned = [decode(item.ids[item.is_learned].tolist()) for item in items]  # type: ignore[union-attr]
    assert sorted(learned) == ["good</s>yes</s>", "no</s>"]


def test_what_is_not_read_and_control_tokens_are_told_once(
    settings_of: Make, tmp_path: Path
) -> None:
    rows = [{"prompt": f"p{i}</s>", "completion": "good", "rating": i + 1} for i in range(3)]
    path = write_rows(tmp_path / "rated.jsonl", rows)
    screen = NotingScreen()
    other = write_rows(tmp_path / "more.jsonl", [{"prompt": "x", "completion": "bad"}])
    extra = (f"data.train={path}", f"data.tests.more={other}", "training.max_steps=1")
    fit(settings_of("sft", *extra, "tuning.num_samples=0"), tmp_path / "run", screen=screen)
    notes = "\n".join(screen.notes)
    assert notes.count("not read: rating (3 rows)") == 1
    assert "3 of 4 rows hold control tokens of the model (first: rated.jsonl:" in notes
    assert "read as characters" in notes
