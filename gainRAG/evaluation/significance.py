"""How sure a mean is, and whether two systems differ: seeded bootstrap and permutation over questions.

Resamples are drawn in blocks of about BLOCK_DRAWS values, so memory stays at some tens of megabytes however many
questions there are. `b - a` is the difference throughout: positive means that b is better.
"""

from collections.abc import Iterator, Sequence

import numpy as np

BLOCK_DRAWS = 1 << 20
LEVEL = 0.05  # below it a difference is called shown


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron, 1979).

    Args:
        values: one score a question.
        confidence: the interval's probability, between 0 and 1.
        samples: resamples of the questions, with replacement.

    Raises:
        ValueError: no values, a value that is not finite, or a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; wanted between 0 and 1")
    row = _finite_row(values)
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [
            row[random.integers(len(row), size=(rows, len(row)), dtype=np.int32)].mean(axis=1)
            for rows in _blocks(samples, len(row))
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of mean(b - a), question by question: scores of the same questions, same order."""
    return bootstrap_interval(_differences(a, b), samples=samples, seed=seed)


def paired_permutation_test(a: Sequence[float], b: Sequence[float], samples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of "a and b do not differ": how often random swaps within pairs give a mean difference as large.

    The observed assignment counts as one of the samples, so p is at least 1 / (samples + 1) (Phipson and Smyth, 2010).
    """
    differences = _differences(a, b)
    differences = differences[differences != 0]  # swapping equal scores changes nothing
    if not len(differences):
        return 1.0
    total = differences.sum()
    # Sums of the same numbers in another order differ by rounding; without the margin ties would be lost.
    observed = abs(total) - 1e-9 * np.abs(differences).sum()
    random = np.random.default_rng(seed)
    as_large = 0
    for rows in _blocks(samples, len(differences)):
        swapped = random.integers(2, size=(rows, len(differences)), dtype=np.int8)
        as_large += int(np.count_nonzero(np.abs(total - 2 * (swapped @ differences)) >= observed))
    return (1 + as_large) / (1 + samples)


def paired_difference(a: Sequence[float], b: Sequence[float], samples: int = 10_000, seed: int = 0) -> dict[str, float]:
    """`difference` of the means, b - a, with `low` and `high` of its 95 % interval (`paired_bootstrap`) and the `p` of
    `paired_permutation_test`.

    Args:
        a, b: scores of the same questions, in the same order.
        samples: resamples of each of the two.
    """
    low, high = paired_bootstrap(a, b, samples, seed)
    p = paired_permutation_test(a, b, samples, seed)
    return {"difference": float(_differences(a, b).mean()), "low": low, "high": high, "p": p}


def _differences(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    first, second = _finite_row(a), _finite_row(b)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} scores and {len(second)} scores are not pairs")
    return second - first


def _finite_row(values: Sequence[float] | np.ndarray) -> np.ndarray:
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or not len(row):
        raise ValueError(f"wanted a row of at least one score, found shape {row.shape}")
    if not np.isfinite(row).all():
        raise ValueError(f"score {int(np.argmin(np.isfinite(row)))} is not finite")
    return row


def _blocks(samples: int, width: int) -> Iterator[int]:
    rows = max(1, BLOCK_DRAWS // width)
    for start in range(0, samples, rows):
        yield min(rows, samples - start)
