import tracemalloc
from itertools import product

import numpy as np
import pytest
from conftest import each

from gainRAG.evaluation.significance import bootstrap_interval, paired_bootstrap, paired_permutation_test


def test_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).random(2000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    low, high = bootstrap_interval(values, samples=4000)
    assert low == pytest.approx(values.mean() - half, abs=half / 10)
    assert high == pytest.approx(values.mean() + half, abs=half / 10)
    narrow_low, narrow_high = bootstrap_interval(values, confidence=0.5, samples=4000)
    assert low < narrow_low < values.mean() < narrow_high < high


def test_interval_covers_the_true_mean_as_often_as_it_says():
    random = np.random.default_rng(2)
    intervals = [bootstrap_interval(random.random(100) < 0.4, samples=400, seed=trial) for trial in range(300)]
    covered = np.mean([low <= 0.4 <= high for low, high in intervals])
    assert 0.90 < covered < 0.99


def test_the_seed_decides():
    values = np.random.default_rng(3).random(50)
    assert bootstrap_interval(values, samples=200) == bootstrap_interval(values, samples=200)
    assert bootstrap_interval(values, samples=200) != bootstrap_interval(values, samples=200, seed=1)


def test_constant_and_single_values():
    assert bootstrap_interval([0.5]) == (0.5, 0.5)
    assert bootstrap_interval([True, True]) == (1, 1)


def test_paired_bootstrap_is_about_b_minus_a():
    a = np.random.default_rng(4).random(300)
    low, high = paired_bootstrap(a, a + 0.1)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)


def test_permutation_p_is_the_exact_one():
    a = np.array([1, 0, 0, 1, 0, 0, 1, 0, 0.5])
    b = np.array([1, 1, 1, 0, 1, 1, 1, 1, 0.9])
    differences = b - a
    sums = [abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=len(a))]
    exact = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9)
    assert paired_permutation_test(a, b) == pytest.approx(exact, abs=0.01)
    assert paired_permutation_test(a, b) == paired_permutation_test(b, a)


def test_permutation_p_counts_ties_despite_rounding():
    differences = np.array([0.4, 0.2, 0.6, -0.3, 0.4, -0.3])  # several assignments sum to 1, or nearly so
    sums = np.array([abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=6)])
    exact = np.mean(sums >= 1 - 1e-9)
    assert paired_permutation_test(np.zeros(6), differences) == pytest.approx(exact, abs=0.03)


def test_permutation_p_at_the_ends():
    a = np.random.default_rng(5).random(200)
    assert paired_permutation_test(a, a) == 1
    assert paired_permutation_test(a, a + 0.1, samples=999) == pytest.approx(1 / 1000)
    assert paired_permutation_test([0.1, 0.2], [0.2, 0.1]) == 1


def test_permutation_p_is_uniform_when_nothing_differs():
    random = np.random.default_rng(6)
    ps = [paired_permutation_test(random.random(40), random.random(40), samples=200, seed=t) for t in range(300)]
    assert 0.02 < np.mean(np.array(ps) <= 0.05) < 0.09


def test_memory_is_bounded_for_a_large_question_set():
    values = np.random.default_rng(7).random(11_313)
    other = values[::-1].copy()
    tracemalloc.start()
    bootstrap_interval(values, samples=500)
    paired_permutation_test(values, other, samples=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


@each("values", [[], [float("nan"), 1], [float("inf")], [[1.0], [2.0]]])
def test_unusable_values_are_refused(values):
    with pytest.raises(ValueError):
        bootstrap_interval(values)


def test_unusable_arguments_are_refused():
    with pytest.raises(ValueError, match="not pairs"):
        paired_bootstrap([1, 2], [1])
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1, 2], confidence=95)
