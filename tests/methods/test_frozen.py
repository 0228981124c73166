"""Frozen features, their cache, retrieval and the probe: each computed once and right."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.method_settings import method_settings
from taskfit.methods.features import EncoderFeatures, FeatureReader
from taskfit.methods.linear import LinearModel
from taskfit.methods.method import MethodContext, MethodState
from taskfit.methods.probe import Probe
from taskfit.methods.retrieval import Retriever
from taskfit.methods.table import METHODS
from taskfit.models.adapters import add_adapter
from taskfit.models.load import LoadedModel
from taskfit.models.quantize import count_parameters
from taskfit.settings import AdapterSettings
from taskfit.settings_file import load_settings
from taskfit.tasks import Task, task_from_columns

EXAMPLES = tiny.toy_examples(9)
TASK = task_from_columns(name="toy", text=["text"], label_column="label", labels=["bad", "good"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test; returns where features lie."""
    monkeypatch.setattr("taskfit.methods.features.cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "features"


def context_of(loaded: LoadedModel, *overrides: str) -> MethodContext:
    return MethodContext(load_settings(overrides=list(overrides)), TASK, EXAMPLES[:2], loaded)


@pytest.mark.parametrize("prompt", ["true", "false"])
def test_features_are_the_last_hidden_state_of_a_plain_pass(
    loaded: LoadedModel, prompt: str
) -> None:
    reader = FeatureReader(context_of(loaded, f"method.prompt={prompt}"))
    found = reader.features(EXAMPLES[2:])
    for row, item in zip(found, reader._encoder.encode(EXAMPLES[2:]), strict=True):
        with loaded.tree.plain_attention() as plain, torch.no_grad():
            ids = torch.from_numpy(item.prompt_ids)[None]
            hidden = plain.get_decoder()(input_ids=ids).last_hidden_state[0, -1]
        np.testing.assert_allclose(row, hidden.numpy(), rtol=1e-4, atol=1e-4)


def test_a_second_reading_runs_no_token_and_other_weights_are_another_model(
    loaded: LoadedModel, cache: Path
) -> None:
    context = context_of(loaded)
    first = FeatureReader(context).features(EXAMPLES)
    before = loaded.tree.num_tokens_run
    shuffled = FeatureReader(context).features(EXAMPLES[::-1])
    assert loaded.tree.num_tokens_run == before
    np.testing.assert_array_equal(shuffled[::-1], first)
    add_adapter(loaded.tree.model, AdapterSettings(), seed=0)
    with torch.no_grad():
        for name, parameter in loaded.tree.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    # Features are the model's from before training, whatever an adapter says by now.
    with_adapter = FeatureReader(context).features(EXAMPLES)
    np.testing.assert_allclose(with_adapter, first, atol=1e-6)
    with torch.no_grad():
        loaded.tree.model.get_input_embeddings().weight.mul_(1.5)
    moved = FeatureReader(context).features(EXAMPLES)
    assert np.abs(moved - first).max() > 1e-3
    assert len(list(cache.iterdir())) == 3


def test_what_a_cache_spares_is_counted_once_and_only_if_another_run_paid_it(
    loaded: LoadedModel,
) -> None:
    context = context_of(loaded)
    first = FeatureReader(context)
    first.features(EXAMPLES[:2])
    first.features(EXAMPLES[:2])
    assert first.cached_seconds == 0
    second = FeatureReader(context)
    second.features(EXAMPLES[:1])
    one = second.cached_seconds
    second.features(EXAMPLES)
    assert one > 0
    assert second.cached_seconds == pytest.approx(2 * one)


@pytest.mark.parametrize("method", ["probe", "knn"])
def test_a_fitted_run_reads_the_cache_and_keeps_no_text_of_its_users(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("taskfit.methods.features.cache_folder", lambda: tmp_path)
    settings = (f"method.name={method}", *(["method.retriever=model"] if method == "knn" else []))
    kind = METHODS[method]
    fresh = kind(context_of(loaded, *settings))
    fresh.prepare(EXAMPLES[2:6], [])
    [file] = (tmp_path / "features").iterdir()
    fitted = kind(context_of(loaded, *settings))
    fitted.restore(fresh.state())
    before = file.read_bytes()
    found = fitted.probabilities(EXAMPLES[2:])
    assert file.read_bytes() == before
    np.testing.assert_array_equal(found, fresh.probabilities(EXAMPLES[2:]))
    assert file.read_bytes() != before


@pytest.mark.parametrize("retriever", ["model", "encoder"])
def test_the_nearest_examples_are_found_the_most_similar_last_and_never_the_text_itself(
    loaded: LoadedModel, encoder_folder: Path, retriever: str
) -> None:
    name = "model" if retriever == "model" else str(encoder_folder)
    found = Retriever(context_of(loaded, "method.name=knn", "method.prompt=false"), name)
    found.fit(EXAMPLES)
    for example, shown in zip(EXAMPLES, found.nearest(EXAMPLES, 3), strict=True):
        assert len(shown) == 3
        assert all(one.texts != example.texts for one in shown)
        row = found.similarities([example])[0]
        places = [EXAMPLES.index(one) for one in shown]
        assert row[places].tolist() == sorted(row[places])
        others = [i for i, e in enumerate(EXAMPLES) if e.texts != example.texts and i not in places]
        assert row[others].max() <= row[places].min() + 1e-6
    np.testing.assert_allclose(np.linalg.norm(found.embed(EXAMPLES), axis=1), 1, rtol=1e-5)
    with pytest.raises(DataError, match="10 demonstrations are asked for"):
        found.nearest(EXAMPLES, 10)


def test_retrieval_comes_back_from_its_state(loaded: LoadedModel) -> None:
    context = context_of(loaded, "method.name=knn")
    first = Retriever(context, "model")
    first.fit(EXAMPLES[:6])
    again = Retriever(context, "model")
    again.restore(first.state())
    queries = [Example(e.id, e.texts) for e in EXAMPLES[6:]]
    np.testing.assert_allclose(again.similarities(queries), first.similarities(queries), rtol=1e-5)
    ids = [[e.id for e in shown] for shown in again.nearest(queries, 2)]
    assert ids == [[e.id for e in shown] for shown in first.nearest(queries, 2)]


def test_an_encoder_embeds_a_text_once_whatever_the_run_and_pays_for_it_once(
    loaded: LoadedModel, encoder_folder: Path, cache: Path
) -> None:
    context = context_of(loaded)
    first = EncoderFeatures(context, str(encoder_folder))
    found = first.features(EXAMPLES[:4])
    assert first.cached_seconds == 0
    second = EncoderFeatures(context, str(encoder_folder))
    seen: list[int] = []
    np.testing.assert_array_equal(second.features(EXAMPLES[3::-1]), found[::-1])
    assert second._encoder.num_tokens_run == 0
    assert second.cached_seconds > 0
    second.features(EXAMPLES[:6], advance=seen.append)
    assert (seen[0], sum(seen)) == (4, 6)
    [file] = cache.iterdir()
    before = file.read_bytes()
    second.keep_no_more()
    assert second.features(EXAMPLES).shape == (len(EXAMPLES), found.shape[1])
    assert file.read_bytes() == before
    assert second.features([]).shape == (0, found.shape[1])


def test_an_encoder_with_other_weights_or_another_tokenizer_is_another_encoder(
    loaded: LoadedModel, encoder_folder: Path, tmp_path: Path, cache: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(encoder_folder, other)
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    changed = text.replace('"lowercase": true', '"lowercase": false')
    assert changed != text
    (other / "tokenizer.json").write_text(changed, encoding="utf-8")
    shifted = tmp_path / "shifted"
    shutil.copytree(encoder_folder, shifted)
    weights = load_file(shifted / "model.safetensors")
    save_file({name: w + 0.01 for name, w in weights.items()}, shifted / "model.safetensors")
    for folder in (encoder_folder, other, shifted):
        EncoderFeatures(context_of(loaded), str(folder)).features(EXAMPLES[:1])
    assert len(list(cache.iterdir())) == 3


ALL = tiny.toy_examples(500)
# Every third, so that both have every word; the two share no text.
TRAIN, NEW = ALL[1::3], ALL[2::9]


@pytest.fixture(params=["encoder", "both"])
def features(
    request: pytest.FixtureRequest, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """What a probe reads, with the tiny encoder in place of MiniLM."""
    monkeypatch.setattr("taskfit.methods.probe.BESIDE", str(encoder_folder))
    return str(encoder_folder) if request.param == "encoder" else "both"


def probe_of(loaded: LoadedModel, features: str, task: Task = TASK) -> Probe:
    settings = ["method.name=probe", f"method.features={features}", "method.prompt=false"]
    model = loaded if features in ("model", "both") else None
    return Probe(MethodContext(load_settings(overrides=settings), task, (), model))


def right(probe: Probe) -> float:
    answers = probe.probabilities(NEW).argmax(axis=1)
    gold = [probe.task.label_names.index(str(example.label)) for example in NEW]
    return float((answers == gold).mean())


def test_a_probe_reads_an_encoder_and_comes_back_the_same(
    loaded: LoadedModel, features: str
) -> None:
    probe = probe_of(loaded, features)
    probe.prepare(TRAIN, [])
    assert right(probe) > 0.9
    state = probe.state()
    again = probe_of(loaded, features)
    again.restore(MethodState(json.loads(json.dumps(state.values)), state.arrays))
    np.testing.assert_array_equal(again.probabilities(NEW), probe.probabilities(NEW))
    # What it has learned holds for the features as they are.
    weight, bias = probe.weights_of_features()
    raw = LinearModel(weight, bias, multi_label=False, strength=1.0)
    np.testing.assert_allclose(
        raw.probabilities(probe._features(NEW)), probe.probabilities(NEW), atol=1e-6
    )


def test_a_second_probe_reads_what_the_first_has_left(loaded: LoadedModel, features: str) -> None:
    first, second = probe_of(loaded, features), probe_of(loaded, features)
    first.prepare(TRAIN, [])
    assert first.cached_seconds == 0
    before = loaded.tree.num_tokens_run
    second.prepare(TRAIN, [])
    assert loaded.tree.num_tokens_run == before
    assert all(reader.cached_seconds > 0 for reader in second._readers)
    np.testing.assert_array_equal(second.probabilities(NEW), first.probabilities(NEW))


def test_a_probe_counts_the_weights_of_all_that_it_reads(
    loaded: LoadedModel, encoder_folder: Path, features: str
) -> None:
    probe = probe_of(loaded, features)
    width = probe._features(NEW[:1]).shape[1]
    probe.prepare(TRAIN, [])
    encoder = EncoderFeatures(context_of(loaded), str(encoder_folder))._encoder.model
    model = count_parameters(loaded.tree.model) if features == "both" else 0
    assert probe.num_parameters == model + count_parameters(encoder) + 2 * (width + 1)


def test_labels_in_another_order_give_their_probabilities_in_that_order(
    loaded: LoadedModel, features: str
) -> None:
    names = ["good", "bad"]
    task = task_from_columns(name="toy", text=["text"], label_column="label", labels=names)
    found = []
    for one in (TASK, task):
        probe = probe_of(loaded, features, one)
        probe.prepare(TRAIN, [])
        found.append(probe.probabilities(NEW))
    np.testing.assert_allclose(found[1][:, ::-1], found[0], atol=1e-4)


def test_a_probe_of_several_labels_reads_an_encoder(loaded: LoadedModel, features: str) -> None:
    task = task_from_columns(
        name="toy", text=["text"], label_column="label", labels=["good", "park"]
    )
    task = dataclasses.replace(task, multi_label=True)

    def labelled(example: Example) -> Example:
        there = "park" in example.texts["text"] or "lake" in example.texts["text"]
        target = {"good": float(example.label == "good"), "park": float(there)}
        return dataclasses.replace(example, label="", target=target)

    probe = probe_of(loaded, features, task)
    probe.prepare([labelled(e) for e in TRAIN], [])
    wanted = np.array([labelled(e).target_vector(task.label_names) for e in NEW])
    assert ((probe.probabilities(NEW) > 0.5) == wanted).mean() > 0.9


def test_a_probe_needs_a_language_model_exactly_if_it_reads_one() -> None:
    for name, reads in (("model", True), ("both", True), ("minilm", False), ("a/b", False)):
        settings = method_settings("probe", features=name)
        assert settings.reads_model is reads
        assert settings.shows_demonstrations is reads
        assert not settings.model_copy(update={"prompt": False}).shows_demonstrations
    assert method_settings("probe").reads_model
