"""What is exported says the same as the run, in plain transformers and peft."""

import ast
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from huggingface_hub import HfApi
from jinja2 import TemplateError
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from scipy.special import softmax
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)
from typer.testing import CliRunner, Result

import taskfit
import tiny
from taskfit.cli.export import export
from taskfit.data import Example
from taskfit.errors import CheckpointError, ModelError, SettingsError, TaskfitError
from taskfit.export import check, gguf_file
from taskfit.export.classification import plain_probabilities, save_classification
from taskfit.export.decision import try_decision
from taskfit.export.entry import find_entry
from taskfit.export.export import export_run
from taskfit.export.gguf_file import interleaved
from taskfit.export.gguf_tokenizer import read_vocabulary
from taskfit.export.merge import Merged
from taskfit.export.onnx_file import PACKAGES, run_onnx
from taskfit.export.prompt import find_prompt
from taskfit.export.push import plan_upload, push
from taskfit.export.scores import read_linear
from taskfit.methods.head import Head
from taskfit.methods.label_words import LabelWords
from taskfit.methods.method import MethodContext, MethodState
from taskfit.models.load import LoadedModel
from taskfit.models.tree_model import TreeModel
from taskfit.runs.asked import Calibration
from taskfit.runs.classifier import ARRAYS, Classifier
from taskfit.runs.fit import fit
from taskfit.settings import RunSettings
from taskfit.tasks import Label, Task, Template

WORDS = {"good": (" yes",), "bad": (" no",)}
LABEL_WORDS = RunSettings.model_validate({"method": {"name": "label_words"}})


def toy_task(words: dict[str, tuple[str, ...]] = WORDS, **changes: object) -> Task:
    return Task(
        name="toy",
        version=1,
        text=("text",),
        label_column="label",
        labels=tuple(Label(name, own) for name, own in words.items()),
        values={},
        template=Template(instruction="", line="Text: {text}\nAnswer:{label}"),
        metric="accuracy",
        num_demonstrations=0,
        **changes,
    )


def loaded(architecture: str, tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    # Windows so wide that the text is seen.
    model = tiny.tiny_model(architecture, len(tokenizer), window=16)
    model.requires_grad_(False)
    return LoadedModel(TreeModel(model), tokenizer, "tiny", None)


def settings_of(folder: Path, model: Path, **sections: dict[str, object]) -> RunSettings:
    return RunSettings.model_validate(
        {
            "data": {"train": str(tiny.write_csv(folder / "train.csv", tiny.toy_examples(40)))},
            "model": {"name": str(model), "dtype": "float32", "device": "cpu"},
            "method": {"name": "label_words"},
            "training": {
                "max_steps": 3,
                "learning_rate": 0.02,
                "keep": "last",
                "tensorboard": False,
            },
            **sections,
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A finished LoRA run of label words with a temperature."""
    folder = tmp_path_factory.mktemp("run")
    words = {"good": " yes", "bad": " no"}
    fit(settings_of(folder, model_folder, task={"label_words": words}), folder / "run")
    cool(folder / "run", 1.7)
    return folder / "run"


def cool(run: Path, temperature: float) -> None:
    """Give a run a temperature."""
    path = run / "classifier.json"
    saved = json.loads(path.read_text())
    saved["calibration"]["temperature"] = temperature
    path.write_text(json.dumps(saved))


@pytest.fixture(scope="module")
def tuned_run(
    tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A finished LoRA run of sft on a Llama with a chat template."""
    folder = tmp_path_factory.mktemp("tuned")
    tiny.tiny_model("llama", len(chat_tokenizer)).save_pretrained(folder / "model")
    chat_tokenizer.save_pretrained(folder / "model")
    rows = [{"instruction": e.texts["text"], "output": str(e.label)} for e in tiny.toy_examples(30)]
    (folder / "rows.json").write_text(json.dumps(rows))
    settings = RunSettings.model_validate(
        {
            "data": {"train": str(folder / "rows.json")},
            "method": {"name": "sft"},
            "model": {"name": str(folder / "model"), "dtype": "float32", "device": "cpu"},
            "tuning": {"num_samples": 1, "max_new_tokens": 4},
            "training": {"max_steps": 3, "learning_rate": 0.02, "tensorboard": False},
        }
    )
    fit(settings, folder / "run")
    return folder / "run"


def texts(count: int = 4) -> list[Example]:
    return tiny.toy_examples(count, offset=200)


def test_a_merged_classifier_scores_in_plain_transformers_as_the_run(
    run: Path, tmp_path: Path
) -> None:
    export_run(run, tmp_path / "out", form="merged", device="cpu")
    classifier = Classifier.load(run, device="cpu")
    expected = classifier.probabilities(texts())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert "PeftModel" not in type(model).__name__
    for item, row in zip(classifier.method.encoder.encode(texts()), expected, strict=True):
        scores = model(torch.tensor([item.prompt_ids.tolist()])).logits[0, -1].detach()
        own = scores[[int(ids[0]) for ids in item.completions]].double().numpy() / 1.7
        np.testing.assert_allclose(softmax(own), row, atol=1e-4)
    assert tokenizer(" no")["input_ids"] == [int(item.completions[0][0])]
    assert (tmp_path / "out" / "generation_config.json").is_file()
    assert not any("adapter" in p.name for p in (tmp_path / "out").iterdir())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_a_runs_own_adapter_loads_with_plain_peft(run: Path, model_folder: Path) -> None:
    classifier = Classifier.load(run, device="cpu")
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    with_adapter = PeftModel.from_pretrained(base, run / "adapter")
    (item,) = classifier.method.encoder.encode(texts(1))
    scores = with_adapter(torch.tensor([item.prompt_ids.tolist()])).logits[0, -1].detach()
    own = scores[[int(ids[0]) for ids in item.completions]].double().numpy() / 1.7
    np.testing.assert_allclose(softmax(own), classifier.probabilities(texts(1))[0], atol=1e-4)


def test_the_plain_pipeline_gives_the_probabilities_of_the_run(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = export_run(run, out, form="classification", device="cpu")
    expected = Classifier.load(run, device="cpu").probabilities(texts())
    raw = [e.texts["text"] for e in texts()]
    classify = pipeline("text-classification", model=str(out), top_k=None, device="cpu")
    for found, row in zip(classify(raw, batch_size=3), expected, strict=True):
        by_name = {entry["label"]: entry["score"] for entry in found}
        np.testing.assert_allclose([by_name["bad"], by_name["good"]], row, atol=1e-4)
    assert all(c.difference <= c.tolerance for c in exported)


def printed_by_the_card(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run the example of a card as it stands; return what it prints."""
    card = (folder / "README.md").read_text()
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(card.split("```python\n")[1].split("```")[0], {})
    return ast.literal_eval(capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("form", ["classification", "adapter", "merged"])
def test_the_example_in_the_card_gives_the_probabilities_of_the_run(
    form: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export_run(run, tmp_path / "out", form=form, device="cpu")
    expected = taskfit.load(run, device="cpu")("This is a text.")
    found = printed_by_the_card(tmp_path / "out", monkeypatch, capsys)
    if form == "merged":
        probabilities = found["label"]["probabilities"]
    else:
        (of_the_text,) = found
        probabilities = {entry["label"]: entry["score"] for entry in of_the_text}
    assert probabilities == pytest.approx(expected, abs=1e-4)
    assert next(iter(expected.values())) > 0.51, "probabilities that are all alike show nothing"
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("## Results", "hash of train", "allowed: 0.0001", "licence"):
        assert part in card
    assert ("temperature 1.7" in card) == (form != "merged")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        ("llama", "head"),
        ("qwen2", "label_words"),
    ],
)
def test_an_adapter_says_the_same_in_plain_peft(
    architecture: str, method: str, tmp_path: Path
) -> None:
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.pad_token = None  # as models for generation have it; what ends texts serves
    tiny.tiny_model(architecture, len(tokenizer) + 8).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = settings_of(
        tmp_path,
        tmp_path / "model",
        method={"name": method},
        training={"max_steps": 2, "learning_rate": 1e-3, "tensorboard": False},
        adapter={"layers": 1},
        task={"label_words": {"good": " yes", "bad": " no"}},
        data={
            "train": str(tiny.write_csv(tmp_path / "t.csv", tiny.toy_examples(100))),
            "test_fraction": 0.4,
        },
    )
    fit(settings, tmp_path / "run", baselines=False)
    if architecture == "llama":  # as runs of earlier versions have it
        path = tmp_path / "run" / ARRAYS
        save_file({**load_file(path), "head.bias": torch.tensor([4e-4, -4e-4])}, path)
    cool(tmp_path / "run", 30.0)  # random models are surer than trained ones
    checks = export_run(tmp_path / "run", tmp_path / "out", form="adapter", device="cpu")
    assert all(found.difference <= 1e-4 for found in checks)
    assert any("bias apart" in found.what for found in checks) == (architecture == "llama")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "out", dtype=torch.float32, pad_token_id=again.pad_token_id
    ).eval()
    batch = again([e.texts["text"] for e in texts()], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = softmax(model(**batch).logits.double().numpy(), axis=1)
    expected = Classifier.load(tmp_path / "run", device="cpu").probabilities(texts())
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.ptp(expected[:, 0]) > 2e-4, "probabilities that are all alike show nothing"


def test_a_bias_that_no_weights_can_carry_is_refused(
    byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    method = head_of("llama", byte_level_tokenizer)  # with biases of 0.7 and -1.9
    merged = Merged(method.model, np.zeros((1, 2)), None, "float32", "float32", [])
    with pytest.raises(CheckpointError, match=r"bias .* does not say the same"):
        save_classification(merged, Classifier(method), tmp_path, texts=tiny.toy_examples(32))


def test_transformers_decision_pipeline_answers_the_runs_own_question(
    run: Path, tmp_path: Path
) -> None:
    export_run(run, tmp_path / "out", form="merged", device="cpu")
    expected = Classifier.load(run, device="cpu").probabilities(texts())
    decide = pipeline("decision", model=str(tmp_path / "out"), device="cpu")

    def asked(text: str, labels: list[str]) -> dict[str, Any]:
        question = {"type": "choice", "criteria": dict.fromkeys(labels)}
        return {"state": text, "questions": {"mood": question}}

    for example, row in zip(texts(), expected, strict=True):
        found = decide(asked(example.texts["text"], ["bad", "good"]))["mood"]
        assert list(found["probabilities"].values()) == pytest.approx(list(row), abs=1e-5)
        assert found["confidence"] == pytest.approx((row.max() - 0.5) / 0.5, abs=1e-4)
        assert decide(asked(example.texts["text"], ["bad", "good"]) | {"state": example.texts})
    with pytest.raises(TemplateError, match="a choice with the criteria bad, good, in this order"):
        decide(asked("a", ["good", "bad"]))


def test_onnx_files_say_what_the_run_says(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in PACKAGES:
        pytest.importorskip(name, reason=f"--onnx needs {name}")
    out = tmp_path / "out"
    checks = export_run(run, out, form="onnx", device="cpu")
    asserted = [found for found in checks if "not asserted" not in found.what]
    assert all(found.difference <= 1e-4 for found in asserted)
    assert len(checks) == len(asserted) + 1
    expected = Classifier.load(run, device="cpu").probabilities(texts())
    inputs = [[e.texts["text"]] for e in texts()]
    found = run_onnx(out, "model.onnx", inputs, several=False)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    in_8_bits = run_onnx(out, "model_int8.onnx", inputs, several=False)
    assert 0 < np.abs(in_8_bits - expected).max() < 0.2
    assert (out / "model_int8.onnx").stat().st_size < 0.9 * (out / "model.onnx").stat().st_size
    card = (out / "README.md").read_text()
    assert re.search(
        r"same label to [\d.]+%, and its accuracy is 0\.\d+, that of `model.onnx` 0", card
    )
    shown = {e["label"]: e["score"] for e in printed_by_the_card(out, monkeypatch, capsys)}
    of_the_run = taskfit.load(run, device="cpu")("This is a text.")
    assert shown == pytest.approx(of_the_run, abs=1e-4)
    assert not list(out.glob("*.safetensors"))


def test_onnx_without_its_packages_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskfit.export.onnx_file.PACKAGES", ("no_such_package",))
    with pytest.raises(SettingsError, match=r"no_such_package, which is not.*taskfit\[onnx\]"):
        export_run(run, tmp_path / "out", form="onnx", device="cpu")


def test_what_the_decision_pipeline_cannot_answer_is_said(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    several = {"good": (" yes", " good"), "bad": (" no",)}
    long = {"good": (" yes and no",), "bad": (" yes",)}
    for words, reason in ((several, "several words"), (long, "start with the same token")):
        model = loaded("llama", byte_level_tokenizer)
        method = LabelWords(MethodContext(LABEL_WORDS, toy_task(words), [], model))
        assert reason in (found := str(try_decision(Classifier(method), texts())))
        assert "--merge" not in found
    head = Classifier(head_of("llama", byte_level_tokenizer))
    assert "has a head instead" in str(try_decision(head, texts()))


SERVED = [name for name in tiny.ARCHITECTURES if name not in ("gemma2", "granite", "cohere")]


@pytest.mark.parametrize("architecture", SERVED)
def test_label_words_become_a_classification_head_on_every_architecture(
    architecture: str, byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = loaded(architecture, byte_level_tokenizer)
    if (bias := model.tree.model.get_output_embeddings().bias) is not None:
        bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(0)))
    method = LabelWords(MethodContext(LABEL_WORDS, toy_task(), [], model))
    classifier = Classifier(method, calibrations={"": Calibration(8.0)})
    assert_equal_when_exported(classifier, tmp_path)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "opt", "phi"])
@pytest.mark.parametrize("several", [False, True])
def test_a_trained_head_with_its_bias_moves_into_the_final_layer_norm(
    architecture: str,
    several: bool,
    byte_level_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    method = head_of(architecture, byte_level_tokenizer, multi_label=several)
    assert_equal_when_exported(Classifier(method, calibrations={"": Calibration(1.3)}), tmp_path)


def head_of(
    architecture: str, tokenizer: PreTrainedTokenizerFast, *, has_bias: bool = True, **changes: bool
) -> Head:
    """A head; with a bias, as runs of earlier versions have it, or without."""
    model = loaded(architecture, tokenizer)
    method = Head(MethodContext(RunSettings(), toy_task(**changes), [], model))
    (weight,) = method.state().arrays.values()
    weight = np.random.default_rng(1).normal(scale=0.2, size=weight.shape).astype(np.float32)
    bias = {"head.bias": np.array([0.7, -1.9], dtype=np.float32)} if has_bias else {}
    method.restore(MethodState(arrays={"head.weight": weight, **bias}))
    assert set(method.state().arrays) == {"head.weight", *bias}
    return method


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma", "mistral", "gpt2", "opt"])
def test_a_head_has_no_bias_and_becomes_a_classifier_as_it_is(
    architecture: str, byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    method = head_of(architecture, byte_level_tokenizer, has_bias=False)
    assert_equal_when_exported(Classifier(method, calibrations={"": Calibration(2.0)}), tmp_path)


def assert_equal_when_exported(classifier: Classifier, folder: Path) -> None:
    method = classifier.method
    expected = classifier.probabilities(texts())
    merged = Merged(method.model, expected, None, "float32", "float32", [])
    save_classification(merged, classifier, folder, texts=tiny.toy_examples(64))
    entry = find_entry(method.encoder, method.model.tokenizer, texts())
    assert entry.prompt is None, "raw texts go in"
    assert entry.places == (0, 1, 2, 3)
    entry.save(folder)
    found = plain_probabilities(folder, [[e.texts["text"]] for e in texts()], dtype=torch.float32)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(expected[:, 0]) > 1e-3, "probabilities that are all alike show nothing"


def test_a_head_with_a_bias_on_a_model_that_ends_in_rms_norm_is_refused(
    byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    method = head_of("llama", byte_level_tokenizer)
    classifier = Classifier(method)
    merged = Merged(method.model, np.zeros((1, 2)), None, "float32", "float32", [])
    with pytest.raises(ModelError, match=r"no bias of its own.*--merge"):
        save_classification(merged, classifier, tmp_path)
    with torch.no_grad():
        method.head.bias.fill_(0.3)  # what all labels share changes no probability
    assert_equal_when_exported(classifier, tmp_path)


@pytest.mark.parametrize(
    ("architecture", "words", "message"),
    [
        ("gemma2", WORDS, "final_logit_softcapping"),
        ("granite", WORDS, "no sequence classification class"),
        ("cohere", WORDS, "no sequence classification class"),
        ("llama", {"good": (" yes", " good"), "bad": (" no",)}, "several words"),
        ("llama", {"good": (" yes and no",), "bad": (" yes",)}, "start with the same token"),
    ],
)
def test_what_cannot_be_exact_is_refused_in_one_message(
    architecture: str,
    words: dict[str, tuple[str, ...]],
    message: str,
    byte_level_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    model = loaded(architecture, byte_level_tokenizer)
    if architecture == "gemma2":
        model.tree.model.config.final_logit_softcapping = 30.0
    classifier = Classifier(LabelWords(MethodContext(LABEL_WORDS, toy_task(words), [], model)))
    merged = Merged(model, np.zeros((1, 2)), None, "float32", "float32", [])
    with pytest.raises(TaskfitError, match=message):
        save_classification(merged, classifier, tmp_path)


def test_words_of_several_tokens_are_exact_where_their_first_tokens_decide(
    byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    words = {"good": (" yes and yes",), "bad": (" no",), "none": (" maybe",)}

    def classifier(loss: str) -> Classifier:
        settings = RunSettings.model_validate({"method": {"name": "label_words", "loss": loss}})
        model = loaded("llama", byte_level_tokenizer)
        return Classifier(LabelWords(MethodContext(settings, toy_task(words), [], model)))

    assert_equal_when_exported(classifier("branches"), tmp_path)
    with pytest.raises(SettingsError, match="tokens for this model"):
        read_linear(classifier("labels"))


@pytest.mark.parametrize("loss", ["labels", "vocabulary", "branches"])
def test_words_that_start_each_other_are_no_linear_layer(
    byte_level_tokenizer: PreTrainedTokenizerFast, loss: str
) -> None:
    settings = RunSettings.model_validate({"method": {"name": "label_words", "loss": loss}})
    task = toy_task({"short": (" yes",), "long": (" yes or no",)})
    model = loaded("llama", byte_level_tokenizer)
    classifier = Classifier(LabelWords(MethodContext(settings, task, [], model)))
    with pytest.raises(SettingsError, match=r"start.* a later (token|one) decides.*--merge"):
        read_linear(classifier)


@pytest.mark.parametrize("chat", [False, True])
def test_the_recorded_prompt_gives_the_ids_of_the_run_with_one_start_token(chat: bool) -> None:
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    model = loaded("llama", tokenizer)
    method = LabelWords(MethodContext(LABEL_WORDS, toy_task(chat=chat), [], model))
    prompt, _ = find_prompt(method.encoder, tokenizer, texts())
    for item, example in zip(method.encoder.encode(texts()), texts(), strict=True):
        assert tokenizer(prompt.fill(example.texts))["input_ids"] == item.prompt_ids.tolist()
        assert item.prompt_ids.tolist()[:2] != [1, 1]


@pytest.mark.parametrize("outtype", ["f32", "f16", "q8_0"])
def test_a_gguf_file_is_read_again_and_says_the_same(
    outtype: str, tuned_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (*_, found) = export_run(tuned_run, out, form="gguf", outtype=outtype, device="cpu")
    assert found.difference <= check.TOLERANCE[gguf_file.TYPES[outtype][1]]
    tokenizer = AutoTokenizer.from_pretrained(out, gguf_file=f"model-{outtype}.gguf")
    before = AutoTokenizer.from_pretrained(tuned_run / "adapter")
    for text in ("The dog was lovely, so they said: yes!", "日本 é 12"):
        assert tokenizer(text)["input_ids"] == before(text)["input_ids"]
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_a_gguf_file_in_the_wrong_order_of_rows_is_found_out(
    tuned_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "interleaved", lambda weights, num_heads: weights)
    with pytest.raises(CheckpointError, match="does not say the same"):
        export_run(tuned_run, tmp_path / "out", form="gguf", outtype="f32", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_rows_of_rotary_pairs_stand_side_by_side() -> None:
    rows = torch.arange(8.0)[:, None]
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_sentencepiece_vocabularies_keep_the_order_of_their_merges(
    metaspace_tokenizer: PreTrainedTokenizerFast,
) -> None:
    found = read_vocabulary(metaspace_tokenizer, len(metaspace_tokenizer) + 3)
    merges = json.loads(metaspace_tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert found.model == "llama"
    assert found.add_start
    scores = dict(zip(found.tokens, found.scores or [], strict=True))
    ranks = [scores["".join(pair)] for pair in merges]
    assert ranks == sorted(ranks, reverse=True)
    assert found.kinds[-3:] == [5, 5, 5]
    assert found.kinds[found.tokens.index("<0x41>")] == 6


def test_gguf_of_other_architectures_needs_llama_cpp(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny.tiny_model("gpt2", len(byte_level_tokenizer))
    with pytest.raises(ModelError, match="Llama architecture only, and this is GPT2LMHeadModel"):
        gguf_file._check_architecture(model)


def test_llama_cpps_converter_is_used_where_it_is(
    tuned_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama").mkdir()
    script = tmp_path / "llama" / gguf_file.SCRIPT
    script.write_text("import sys\nprint('this model is unknown', file=sys.stderr)\nsys.exit(1)\n")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama"))
    with pytest.raises(CheckpointError, match="this model is unknown"):
        export_run(tuned_run, tmp_path / "out", form="gguf", device="cpu")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(SettingsError, match=r"no convert_hf_to_gguf.py in it"):
        export_run(tuned_run, tmp_path / "out", form="gguf", device="cpu")


def test_what_llama_cpps_converter_writes_is_checked_as_well(
    tuned_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_run(tuned_run, tmp_path / "ours", form="gguf", outtype="f32", device="cpu")
    script = tmp_path / gguf_file.SCRIPT
    # A stand-in with the same command line, since llama.cpp is not installed with the tests.
    script.write_text(
        "import shutil, sys\n"
        "from pathlib import Path\n"
        "folder, _, path, _, name = sys.argv[1:]\n"
        "assert (Path(folder) / 'model.safetensors').is_file()\n"
        f"shutil.copyfile('{tmp_path}/ours/model-' + name + '.gguf', path)\n"
    )
    monkeypatch.setenv("LLAMA_CPP", str(script))
    out = tmp_path / "out"
    exported = export_run(tuned_run, out, form="gguf", outtype="f32", device="cpu")
    assert exported[-1].difference < 1e-4
    assert {p.name for p in out.iterdir()} == {"README.md", "export.json", "model-f32.gguf"}


def test_a_run_on_a_base_in_four_bits_merges_into_the_unquantized_one(
    tmp_path: Path, model_folder: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    adapter = {"weights": "qlora", "layers": "all"}
    settings = settings_of(tmp_path, model_folder, adapter=adapter)
    fit(settings, tmp_path / "run")
    checks = export_run(tmp_path / "run", tmp_path / "out", form="merged", device="cpu")
    weights, base = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "out", model_folder)
    )
    norm, query = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
    assert weights[query].dtype == torch.float32
    assert torch.equal(weights[norm], base[norm])
    # What training added is of low rank, and nothing of the 4 bits' rounding is in it.
    singular = torch.linalg.svdvals(weights[query] - base[query])
    assert singular[0] > 1e-4
    assert singular[8:].max() < 1e-4 * singular[0]
    four_bits = next(check for check in checks if "4 bits" in check.what)
    assert four_bits.difference > 1e-4
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


@pytest.mark.parametrize(
    "adapter",
    [
        {"layers": 1},
        {"layers": 1, "dora": True},
        {"layers": 1, "rank_stabilized": True},
        {"layers": "all", "dora": True, "rank_stabilized": True},
        {"layers": 1, "targets": ["q_proj", "down_proj"]},
        {"layers": 1, "weights": "full"},
    ],
    ids=lambda adapter: "-".join(map(str, adapter)),
)
def test_adapters_of_every_shape_merge_to_the_same_predictions(
    adapter: dict[str, object], tmp_path: Path, model_folder: Path
) -> None:
    settings = settings_of(
        tmp_path,
        model_folder,
        adapter=adapter,
        task={"label_words": {"good": " yes", "bad": " no"}},
    )
    fit(settings, tmp_path / "run", baselines=False)
    out = tmp_path / "out"
    checks = export_run(tmp_path / "run", out, form="merged", device="cpu")
    assert all(found.difference <= found.tolerance for found in checks)
    classifier = Classifier.load(tmp_path / "run", device="cpu")
    expected = classifier.probabilities(texts())
    model = AutoModelForCausalLM.from_pretrained(out)
    base = AutoModelForCausalLM.from_pretrained(model_folder)

    def probabilities(of: torch.nn.Module) -> np.ndarray:
        rows = []
        for item in classifier.method.encoder.encode(texts()):
            scores = of(torch.tensor([item.prompt_ids.tolist()])).logits[0, -1].detach()
            own = scores[[int(ids[0]) for ids in item.completions]].double().numpy()
            rows.append(softmax(own / classifier.only.calibration.temperature))
        return np.stack(rows)

    np.testing.assert_allclose(probabilities(model), expected, atol=1e-4)
    assert np.abs(probabilities(base) - expected).max() > 1e-3, "training changed nothing"
    changed = {
        name.split(".")[2]
        for (name, one), two in zip(model.named_parameters(), base.parameters(), strict=True)
        if not torch.equal(one, two) and ".layers." in name
    }
    assert changed == ({"0", "1"} if adapter["layers"] == "all" else {"1"})
    shown = (out / "README.md").read_text()
    assert all(f"{key}:" in shown for key in adapter if key != "layers")


def test_the_card_says_what_was_trained_and_what_is_no_part_of_the_export(
    run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    saved = json.loads((copy / "classifier.json").read_text())
    saved["blend"] = {
        **{"features": ["model", "minilm"], "weights": [0.4, 0.35, 0.25]},
        **{"num_held_out": 60, "states": [{}, {}]},
    }
    saved["calibration"]["thresholds"] = {"acceptable": 0.1234, "not": 0.5}
    (copy / "classifier.json").write_text(json.dumps(saved))
    for folder, blended in ((run, False), (copy, True)):
        out = tmp_path / f"out-{blended}"
        export_run(folder, out, form="merged", device="cpu")
        card = (out / "README.md").read_text()
        assert ("a threshold of its own on, which is not in this model" in card) == blended
        assert ("0.1234" in card) == blended
        assert "LoRA of the upper two thirds of the layers trained" in card
        told = "a probe on model (35%) and a probe on minilm (25%), which are no part of this model"
        assert (told in " ".join(card.split())) == blended


@pytest.mark.parametrize("form", ["classification", "gguf"])
def test_other_forms_of_a_run_with_adapters_on_the_top_layer_say_the_same(
    form: str, tmp_path: Path, model_folder: Path
) -> None:
    settings = settings_of(
        tmp_path,
        model_folder,
        adapter={"layers": 1, "dora": True},
        task={"label_words": {"good": " yes", "bad": " no"}},
    )
    fit(settings, tmp_path / "run", baselines=False)
    exported = export_run(
        tmp_path / "run", tmp_path / "out", form=form, outtype="f32", device="cpu"
    )
    assert len(exported) >= 2
    assert all(found.difference <= 1e-4 for found in exported)


def command(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(export)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_dry_run_shows_what_would_go_and_an_export_can_be_pushed_later(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    push_options = ("--push", "me/model", "--dry-run")
    done = command(run, "-o", out, "--merge", "--device", "cpu", *push_options)
    assert done.exit_code == 0, done.output
    again = command(run, "-o", out, *push_options)
    for found in (done.output, again.output):
        assert "me/model (private if it is new). Nothing was sent" in found
        size = (out / "model.safetensors").stat().st_size
        assert f"{size:,}" in found


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskfit.export.push.get_token", lambda: None)


def test_without_a_token_nothing_is_lost(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(run, "-o", out, "--merge", "--device", "cpu", "--push", "me/model")
    assert "There is no token for the hub" in str(done.exception)
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Give one of --merge"),
        (("--merge", "--gguf"), "exports of their own"),
        (("--as", "pickle"), "what there is is sequence-classification"),
        (("--merge", "--outtype", "f16"), "--outtype is about --gguf"),
        (("--gguf", "--outtype", "q2"), "allowed are f32, f16, bf16, q8_0"),
        (("--merge", "--dtype", "int8"), "allowed are float32, bfloat16, float16"),
        (("--merge", "--public"), "about --push"),
        (("--merge", "--push", "model"), "OWNER/NAME"),
        (("--push", "me/model"), "holds no export to push"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: tuple[str, ...], message: str, run: Path, tmp_path: Path
) -> None:
    done = command(run, "-o", tmp_path / "out", *options)
    assert isinstance(done.exception, TaskfitError)
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_tuned_model_merges_with_its_chat_template(tuned_run: Path, tmp_path: Path) -> None:
    export_run(tuned_run, tmp_path / "out", form="merged", device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    before = json.loads((tuned_run / "result.json").read_text())["details"]["before"]
    assert f"{before['validation']['loss']:.3f}" in (tmp_path / "out" / "README.md").read_text()


def test_a_merge_that_loses_the_adapter_is_found_out_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self: self.unload(), raising=False)
    with pytest.raises(CheckpointError, match=r"after merging does not say the same.*allowed"):
        export_run(run, tmp_path / "out", form="merged", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})()
    monkeypatch.setattr("taskfit.export.merge.shutil.disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"needs 0\.03 GB, and 0\.00 GB are free"):
        export_run(run, tmp_path / "out", form="merged", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(SettingsError, match="nothing is overwritten"):
        export_run(run, tmp_path / "out", form="merged")


def test_runs_without_a_trained_language_model_and_unfinished_ones_are_refused(
    run: Path, tmp_path: Path, model_folder: Path
) -> None:
    with pytest.raises(CheckpointError, match="no finished run to export"):
        export_run(tmp_path, tmp_path / "out", form="merged")
    fit(settings_of(tmp_path, model_folder, method={"name": "majority"}), tmp_path / "run")
    with pytest.raises(SettingsError, match="majority, which trains no causal language model"):
        export_run(tmp_path / "run", tmp_path / "out", form="merged")


def test_a_run_of_full_fine_tuning_is_copied(tmp_path: Path, model_folder: Path) -> None:
    settings = settings_of(
        tmp_path,
        model_folder,
        method={"name": "head", "start": "zero"},
        adapter={"weights": "full"},
    )
    fit(settings, tmp_path / "run")
    arrays = load_file(tmp_path / "run" / ARRAYS)
    # As in a run that is blended or calibrated.
    save_file({**arrays, "blend.coefficients": torch.ones(2)}, tmp_path / "run" / ARRAYS)
    export_run(tmp_path / "run", tmp_path / "out", form="merged", device="cpu")
    file = "model.safetensors"
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "run/model" / file).read_bytes()
    assert set(load_file(tmp_path / "out" / "head.safetensors")) == {"head.weight"}
    with pytest.raises(SettingsError, match="has no adapter"):
        export_run(tmp_path / "run", tmp_path / "adapter", form="adapter", device="cpu")
    with pytest.raises(SettingsError, match="leave out --dtype"):
        export_run(tmp_path / "run", tmp_path / "adapter", form="adapter", dtype="float16")


def test_a_bias_moves_into_the_final_norm_unless_the_labels_rows_depend_on_each_other() -> None:
    from taskfit.export.classification import _bias_in_norm

    body = torch.nn.Module()
    body.norm = torch.nn.LayerNorm(4)
    row = torch.ones(4, dtype=torch.float64)
    bias = torch.tensor([1.0, -1.0]).double()
    assert _bias_in_norm(body, torch.stack([row, row]), bias) is None
    weight = torch.stack([row, torch.arange(4.0).double()])
    name, shifted = _bias_in_norm(body, weight, bias)
    assert name == "norm.bias"
    torch.testing.assert_close(weight @ shifted.double(), bias, rtol=0, atol=1e-6)


def test_an_upload_lists_every_file_and_needs_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text("{}")
    upload = plan_upload(tmp_path, "me/model", private=True)
    assert upload.files == (("a.json", 2),)
    monkeypatch.setattr("taskfit.export.push.get_token", lambda: None)
    with pytest.raises(CheckpointError, match=r"no token.*hf auth login.*The export stays"):
        push(tmp_path, upload)
    monkeypatch.setattr("taskfit.export.push.get_token", lambda: "hf_no")
    with pytest.raises(CheckpointError, match=r"could not take it.*The export stays"):
        push(tmp_path, upload)  # the tests run in the hub's offline mode
    without_network = partial(HfApi, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr("taskfit.export.push.HfApi", without_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(CheckpointError, match=r"could not take it.*The export stays"):
        push(tmp_path, upload)
    with pytest.raises(SettingsError, match="OWNER/NAME"):
        plan_upload(tmp_path, "model", private=True)
