"""Laws of resampling: examples or counts of them, at once or in blocks."""

import numpy as np
import pytest

from taskfit.stats import bootstrap
from taskfit.stats.bootstrap import percentile_interval, resample, resample_counts


def test_the_spread_of_a_mean_is_its_standard_error_by_examples_and_by_counts() -> None:
    generator = np.random.default_rng(0)
    right = generator.random(400) < 0.3
    by_examples = resample(lambda drawn: right[drawn].mean(axis=1), len(right), generator)
    counts = np.bincount(right)
    blocks = list(resample_counts(counts, generator))
    by_counts = np.concatenate(blocks)[:, 1] / len(right)
    expected = right.std() / np.sqrt(len(right))
    for values in (by_examples, by_counts):
        assert values.shape == (bootstrap.NUM_RESAMPLES,)
        assert values.std() == pytest.approx(expected, rel=0.1)
        low, high = percentile_interval(values)
        assert (low, high) == pytest.approx(
            (right.mean() - 1.96 * expected, right.mean() + 1.96 * expected), abs=0.01
        )


@pytest.mark.parametrize("block", [1, 700, 9_999])
def test_blocks_change_no_draw(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    def drawn() -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(1)
        counts = np.concatenate(list(resample_counts(np.array([3, 1, 5]), generator)))
        return counts, resample(lambda places: places, 9, generator)

    whole = drawn()
    monkeypatch.setattr(bootstrap, "BLOCK", block)
    for one, other in zip(whole, drawn(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (whole[0].sum(axis=1) == 9).all()


def test_a_statistic_may_have_several_columns() -> None:
    values = resample(lambda drawn: np.stack([drawn.min(1), drawn.max(1)], 1), 5, _seeded())
    assert values.shape == (bootstrap.NUM_RESAMPLES, 2)
    assert (values[:, 0] <= values[:, 1]).all()


def _seeded() -> np.random.Generator:
    return np.random.default_rng(0)
