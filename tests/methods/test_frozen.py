"""Frozen features, their cache, retrieval and linear models: each computed once and right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

import tiny
from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.methods.features import FeatureReader
from taskfit.methods.linear import STRENGTHS, fit_linear
from taskfit.methods.method import MethodContext
from taskfit.methods.retrieval import Retriever
from taskfit.methods.table import METHODS
from taskfit.models import LoadedModel, add_adapter
from taskfit.settings import AdapterSettings
from taskfit.settings_file import load_settings
from taskfit.tasks import task_from_columns

EXAMPLES = tiny.toy_examples(9)
TASK = task_from_columns(name="toy", text=["text"], label_column="label", labels=["bad", "good"])


def context_of(loaded: LoadedModel, *overrides: str) -> MethodContext:
    return MethodContext(load_settings(overrides=list(overrides)), TASK, EXAMPLES[:2], loaded)


@pytest.mark.parametrize("prompt", ["true", "false"])
def test_features_are_the_last_hidden_state_of_a_plain_pass(
    loaded: LoadedModel, tmp_path: Path, prompt: str
) -> None:
    reader = FeatureReader(context_of(loaded, f"method.prompt={prompt}"), cache=tmp_path)
    found = reader.features(EXAMPLES[2:])
    for row, item in zip(found, reader._encoder.encode(EXAMPLES[2:]), strict=True):
        with loaded.tree.plain_attention() as plain, torch.no_grad():
            ids = torch.from_numpy(item.prompt_ids)[None]
            hidden = plain.get_decoder()(input_ids=ids).last_hidden_state[0, -1]
        np.testing.assert_allclose(row, hidden.numpy(), rtol=1e-4, atol=1e-4)


def test_a_second_reading_runs_no_token_and_other_weights_are_another_model(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    context = context_of(loaded)
    first = FeatureReader(context, cache=tmp_path).features(EXAMPLES)
    before = loaded.tree.num_tokens_run
    shuffled = FeatureReader(context, cache=tmp_path).features(EXAMPLES[::-1])
    assert loaded.tree.num_tokens_run == before
    np.testing.assert_array_equal(shuffled[::-1], first)
    add_adapter(loaded.tree.model, AdapterSettings(), seed=0)
    with torch.no_grad():
        for name, parameter in loaded.tree.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    moved = FeatureReader(context, cache=tmp_path).features(EXAMPLES)
    assert np.abs(moved - first).max() > 1e-3
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_cache_spares_is_counted_once_and_only_if_another_run_paid_it(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    context = context_of(loaded)
    first = FeatureReader(context, cache=tmp_path)
    first.features(EXAMPLES[:2])
    first.features(EXAMPLES[:2])
    assert first.spared_seconds == 0
    second = FeatureReader(context, cache=tmp_path)
    second.features(EXAMPLES[:1])
    one = second.spared_seconds
    second.features(EXAMPLES)
    assert one > 0
    assert second.spared_seconds == pytest.approx(2 * one)


@pytest.mark.parametrize("method", ["probe", "knn"])
def test_a_fitted_run_reads_the_cache_and_keeps_no_text_of_its_users(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("taskfit.methods.features.cache_folder", lambda: tmp_path)
    settings = (f"method.name={method}", "method.retriever=model")
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
    found = Retriever(context_of(loaded, f"method.retriever={name}", "method.prompt=false"))
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
    with pytest.raises(DataError, match="10 demonstrations are wanted"):
        found.nearest(EXAMPLES, 10)


def test_retrieval_comes_back_from_its_state(loaded: LoadedModel) -> None:
    context = context_of(loaded, "method.retriever=model")
    first = Retriever(context)
    first.fit(EXAMPLES[:6])
    again = Retriever(context)
    again.restore(first.state())
    queries = [Example(e.id, e.texts) for e in EXAMPLES[6:]]
    np.testing.assert_allclose(again.similarities(queries), first.similarities(queries), rtol=1e-5)
    ids = [[e.id for e in shown] for shown in again.nearest(queries, 2)]
    assert ids == [[e.id for e in shown] for shown in first.nearest(queries, 2)]


def blobs(num_classes: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    gold = np.repeat(np.arange(num_classes), 20)
    centres = generator.normal(size=(num_classes, 5)) * 2
    return centres[gold] + generator.normal(size=(len(gold), 5)), gold


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("sparse", [False, True])
def test_one_hot_targets_give_scikit_learns_regression(num_classes: int, sparse: bool) -> None:
    features, gold = blobs(num_classes)
    given = csr_matrix(features) if sparse else features
    found = fit_linear(given, np.eye(num_classes)[gold], multi_label=False, balanced=False, seed=0)
    assert found.strength in STRENGTHS
    reference = LogisticRegression(C=found.strength, max_iter=5000, tol=1e-8).fit(features, gold)
    np.testing.assert_allclose(
        found.probabilities(given), reference.predict_proba(features), atol=5e-3
    )


def test_labels_that_never_occur_get_no_probability() -> None:
    features, gold = blobs(2)
    targets = np.eye(4)[gold * 2]
    found = fit_linear(features, targets, multi_label=False, balanced=False, seed=0)
    probabilities = found.probabilities(features)
    assert probabilities[:, [1, 3]].max() < 1e-6
    assert (probabilities.argmax(axis=1) == gold * 2).mean() > 0.9
    only = fit_linear(
        features, np.eye(2)[np.zeros_like(gold)], multi_label=False, balanced=False, seed=0
    )
    assert only.probabilities(features)[:, 0].min() > 0.999


def test_balanced_weights_move_the_boundary_towards_the_frequent_class() -> None:
    generator = np.random.default_rng(1)
    gold = np.array([0] * 90 + [1] * 10)
    features = generator.normal(size=(100, 2)) + gold[:, None]
    targets = np.eye(2)[gold]
    plain, balanced = (
        fit_linear(features, targets, multi_label=False, balanced=b, seed=0) for b in (False, True)
    )
    assert (
        (balanced.probabilities(features)[:, 1]).mean()
        > plain.probabilities(features)[:, 1].mean() + 0.1
    )
