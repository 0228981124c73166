"""Results of runs that never ran, for what reads results."""

import numpy as np

from taskfit.runs.records import RunResult
from taskfit.stats import Evaluation, evaluate_probabilities


def evaluation(
    num_examples: int = 40, labels: tuple[str, ...] = ("bad", "good"), seed: int = 0
) -> Evaluation:
    """Measured on random probabilities."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(len(labels)), num_examples)
    gold = generator.integers(0, len(labels), num_examples)
    return evaluate_probabilities(probabilities, gold, labels=labels)


def run_result(name: str = "tuned", **evaluations: Evaluation) -> RunResult:
    """A result with these evaluation sets."""
    return RunResult(
        name=name,
        method="label_words",
        weights="lora",
        model="tiny",
        task="toy v1",
        num_train=54,
        num_demonstrations=2,
        seed=3,
        evaluations=evaluations,
        duration_seconds=12.345678901234567,
        training_seconds=1 / 3,
        peak_memory_bytes=123_456_789,
        memory_by_stage={"model": 100_000_000, "forward": 0, "training": 23_456_789},
        tokens={"unique": 1000, "padded": 7654},
        num_parameters=135_000_000,
        num_trainable=4_884_480,
        best_step=8,
        cpu_seconds=20.5,
        evaluation_seconds=dict.fromkeys(evaluations, 0.5),
        latency_seconds=0.01,
    )
