"""Laws of the prompt search: exact scores, each once; the best is found on training texts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import tiny
from taskfit.data import Example
from taskfit.errors import SettingsError
from taskfit.methods.scoring import LabelScorer
from taskfit.models.load import LoadedModel
from taskfit.screen import SilentScreen
from taskfit.search import wording_scores as prompt_scoring
from taskfit.search.wordings import (
    PromptSearch,
    SharedScorer,
    compare,
    schedule,
    search_prompts,
    write_winner,
)
from taskfit.settings import RunSettings
from taskfit.settings_file import settings_from_dict
from taskfit.tasks import EncodedExample, Label, PromptEncoder, Task, load_task
from taskfit.tasks.variants import NamedTask, encode_candidates, generate_variants

EXAMPLES = tiny.toy_examples(24)


def wordings(task: Task) -> list[NamedTask]:
    """Some variants, one with several words of several tokens a label."""
    labels = (Label("bad", (" no", " yes or no")), Label("good", (" yes",)))
    many = NamedTask("many words", replace(task, labels=labels))
    return [*generate_variants(task)[::4], many]


def settings_of(folder: Path, model: Path, **method: object) -> RunSettings:
    tiny.write_csv(folder / "train.csv", tiny.toy_examples(90))
    tiny.write_csv(folder / "test.csv", tiny.toy_examples(30, offset=100))
    return settings_from_dict(
        {
            "data": {
                "train": str(folder / "train.csv"),
                "tests": {"new": str(folder / "test.csv")},
                "label": "label",
            },
            "model": {"name": str(model), "dtype": "float32", "device": "cpu"},
            "method": {"name": "in_context", "num_demonstrations": 0, **method},
        }
    )


def search(settings: RunSettings, names: Callable[[Task], list[NamedTask]]) -> PromptSearch:
    return search_prompts(
        settings, candidates=names, num_examples=64, keep=2, screen=SilentScreen()
    )


@pytest.mark.parametrize("calibration", ["none", "contextual"])
@pytest.mark.parametrize("num_demonstrations", [0, 2])
def test_shared_trees_score_as_each_candidate_alone(
    loaded: LoadedModel, num_demonstrations: int, calibration: str
) -> None:
    settings = settings_from_dict({"method": {"name": "in_context", "calibration": calibration}})
    shown, sample = EXAMPLES[:num_demonstrations], EXAMPLES[2:]
    given = wordings(tiny.toy_task(num_demonstrations=num_demonstrations))
    encoders, _ = encode_candidates(given, loaded.tokenizer, shown, max_length=256)
    scorer = SharedScorer(loaded, settings)
    for name, encoder in encoders.items():
        scorer.add(name, encoder, sample)
    for stop in (5, 12, 22):
        scorer.score(list(encoders), stop, lambda _: None)
    assert len(encoders) > 8
    for name, encoder in encoders.items():
        per_token = None if calibration == "none" else False
        alone = LabelScorer(loaded.tree, encoder, length_normalization=per_token)
        expected = alone.log_probs(sample)
        np.testing.assert_allclose(
            scorer.wordings[name].log_probs, expected, rtol=1e-4, atol=1e-4, err_msg=name
        )
        assert (scorer.wordings[name].prior is None) == (calibration == "none")


def test_what_wordings_share_runs_once(loaded: LoadedModel) -> None:
    task = tiny.toy_task()
    words = [(" bad", " good"), (" no", " yes"), (" sad", " happy")]
    given = [
        NamedTask(a, replace(task, labels=(Label("bad", (a,)), Label("good", (b,)))))
        for a, b in words
    ]
    encoders, _ = encode_candidates(given, loaded.tokenizer, [], max_length=256)
    tokens = []
    for names in (list(encoders), list(encoders)[:1]):
        scorer = SharedScorer(loaded, RunSettings())
        for name in names:
            scorer.add(name, encoders[name], EXAMPLES)
        scorer.score(names, len(EXAMPLES), lambda _: None)
        tokens.append((scorer.num_tokens_run, scorer.num_tokens_separate()))
    # Prompts are the same and answers differ: three wordings cost hardly more than one.
    assert tokens[1][0] == tokens[1][1]
    assert tokens[0][0] < 1.5 * tokens[1][0]
    assert tokens[0][1] > 2.5 * tokens[1][1]


def test_permuting_candidates_permutes_nothing_in_the_ranking(
    tmp_path: Path, model_folder: Path
) -> None:
    settings = settings_of(tmp_path, model_folder, calibration="contextual")
    forward = search(settings, wordings)
    backward = search(settings, lambda task: wordings(task)[::-1])
    assert [one.name for one in forward.results] == [one.name for one in backward.results]
    assert forward.rounds == backward.rounds
    assert len(forward.rounds) > 1


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A model that answers right in prompts with an arrow only; and what it was asked."""
    asked: list[tuple[str, str]] = []

    def encode(self: PromptEncoder, examples: Sequence[Example]) -> list[EncodedExample]:
        items = original(self, examples)
        return [replace(item, id=f"{self.task.template.line}|{item.id}") for item in items]

    def score(self: SharedScorer, names: Sequence[str], stop: int, advance: object) -> None:
        for name in names:
            one = self.wordings[name]
            start = len(one.log_probs)
            asked.extend((name, item.id) for item in one.items[start:stop])
            right = 0.9 if "=>" in one.encoder.task.template.line else 0.5
            odds = np.log([right, 1 - right])
            rows = [odds if gold == 0 else odds[::-1] for gold in one.gold[start:stop]]
            one.log_probs = np.concatenate((one.log_probs, rows))

    original = PromptEncoder.encode
    monkeypatch.setattr(PromptEncoder, "encode", encode)
    monkeypatch.setattr(SharedScorer, "score", score)
    return asked


def test_the_planted_winner_is_found_and_beats_the_task_as_given(
    tmp_path: Path, model_folder: Path, planted: list[tuple[str, str]]
) -> None:
    found = search(settings_of(tmp_path, model_folder), generate_variants)
    assert "=>" in found.winner.task.template.line
    assert found.winner.metric == 1.0
    assert found.comparison is not None
    assert found.comparison.interval[0] > 0
    assert found.comparison.caution is None
    assert found.base in {one.name for one in found.results if one.dropped_in_round is None}
    assert "=>" in found.prompt


def test_halving_doubles_the_examples_and_drops_the_worse_half(
    tmp_path: Path, model_folder: Path, planted: list[tuple[str, str]]
) -> None:
    found = search(settings_of(tmp_path, model_folder), generate_variants)
    counts = [count for count, _ in found.rounds]
    assert [stop for _, stop in found.rounds] == [16, 32, 64]
    for before, after in pairwise(counts):
        assert after <= before // 2 + 2
    for one in found.results:
        number = one.dropped_in_round or len(found.rounds)
        assert one.evaluation.num_examples == found.rounds[number - 1][1]


def test_every_candidate_and_example_is_scored_at_most_once_and_no_evaluation_text(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[tuple[int, str]] = Counter()
    original = prompt_scoring.JOINT.log_probs

    def counted(model: object, items: Sequence[EncodedExample], *rest: object, **more: object):
        asked.update((id(item), item.id) for item in items)
        return original(model, items, *rest, **more)

    monkeypatch.setattr(prompt_scoring.JOINT, "log_probs", counted)
    settings = settings_of(tmp_path, model_folder, num_demonstrations=2)
    found = search(settings, wordings)
    assert set(asked.values()) == {1}
    assert len(asked) == sum(one.evaluation.num_examples for one in found.results)
    assert all("train.csv" in name for _, name in asked)


def test_demonstrations_are_the_same_for_all_and_not_in_the_sample(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], set[str]]] = []
    original = SharedScorer.add

    def add(
        self: SharedScorer, name: str, encoder: PromptEncoder, sample: Sequence[Example]
    ) -> None:
        seen.append(([d.id for d in encoder.demonstrations], {e.id for e in sample}))
        original(self, name, encoder, sample)

    monkeypatch.setattr(SharedScorer, "add", add)
    search(settings_of(tmp_path, model_folder, num_demonstrations=3), wordings)
    shown, sample = seen[0]
    assert len(shown) == 3
    assert len(sample) == 64
    assert not set(shown) & sample
    assert all(one == seen[0] for one in seen)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((48, 128, 4, 16), [(48, 16), (24, 32), (12, 64), (6, 128)]),
        ((48, 1024, 4, 16), [(48, 64), (24, 128), (12, 256), (6, 512), (4, 1024)]),
        ((3, 100, 4, 16), [(3, 100)]),
        ((40, 20, 1, 16), [(40, 20)]),
    ],
)
def test_the_schedule_halves_candidates_and_doubles_examples(
    arguments: tuple[int, int, int, int], expected: list[tuple[int, int]]
) -> None:
    candidates, examples, keep, fewest = arguments
    assert schedule(candidates, examples, keep=keep, fewest=fewest) == expected


@pytest.mark.parametrize("metric", ["accuracy", "mcc", "macro_f1"])
def test_the_paired_interval_is_that_of_resampled_examples(
    metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if metric != "accuracy":
        monkeypatch.setattr("taskfit.stats.bootstrap.NUM_RESAMPLES", 100)
    generator = np.random.default_rng(0)
    gold = generator.integers(0, 3, 120)
    first = np.where(generator.random(120) < 0.8, gold, 0)
    second = np.where(generator.random(120) < 0.6, gold, 1)
    found = compare(gold, first, second, metric=metric)
    swapped = compare(gold, second, first, metric=metric)
    same = compare(gold, first, first, metric=metric)
    assert found.difference == pytest.approx(-swapped.difference)
    assert same.interval == (0, 0)
    assert same.caution is not None
    if metric == "accuracy":
        each = (first == gold).astype(float) - (second == gold)
        assert found.difference == pytest.approx(each.mean())
        drawn = each[generator.integers(0, 120, (4000, 120))].mean(axis=1)
        np.testing.assert_allclose(found.interval, np.quantile(drawn, [0.025, 0.975]), atol=0.03)


def test_the_winners_file_reads_back_as_the_same_task_and_overwrites_nothing(
    tmp_path: Path, model_folder: Path, planted: list[tuple[str, str]]
) -> None:
    found = search(settings_of(tmp_path, model_folder), generate_variants)
    path = tmp_path / "winner.yaml"
    write_winner(found, path, table=True)
    assert load_task(str(path)) == found.winner.task
    lines = (tmp_path / "winner.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("rank,name,accuracy,low,high,log_loss,num_examples")
    before = path.read_bytes()
    with pytest.raises(SettingsError, match="is there already"):
        write_winner(found, path)
    assert path.read_bytes() == before
    with pytest.raises(SettingsError, match="name that ends in"):
        write_winner(found, tmp_path / "winner.txt")


def test_what_cannot_be_searched_is_refused_all_at_once(tmp_path: Path, model_folder: Path) -> None:
    settings = settings_of(
        tmp_path,
        model_folder,
        calibration="batch",
        num_orders=3,
        option_orders=2,
        demonstrations="nearest",
    )
    with pytest.raises(SettingsError) as caught:
        search_prompts(settings, num_examples=1, keep=0, screen=SilentScreen())
    for part in (
        "1 examples",
        "keep=0",
        "nearest",
        "num_orders=3",
        "option_orders=2",
        "calibration=batch",
    ):
        assert part in str(caught.value)
