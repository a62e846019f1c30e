"""What the report states in numbers: methods best first, paired differences, correlations, where picks come from."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from gainRAG.analysis.runs import QuestionSet, passage_key
from gainRAG.common.jsonl import Record
from gainRAG.evaluation.gains import gain_of
from gainRAG.evaluation.results import mean_with_interval
from gainRAG.evaluation.significance import LEVEL, paired_difference
from gainRAG.rag_workflow.picks import METHODS, explained

BASE, OURS, BOUND = "standard_rag", "gainrag", "best_by_gain"
# Group of ranks -> its last rank.
RANKS = {"1": 1, "2": 2, "3": 3, "4": 4, "5": 5, "6-10": 10, "11-20": 20, "21-50": 50, "51-100": 100, "101+": math.inf}
SELECTORS = {"start": "before training", "trained": "after training"}


def label(method: str) -> str:
    """A method's name as the tables show it."""
    return explained(method) if method in METHODS else method


def best_first(found: QuestionSet) -> list[str]:
    """The methods that were run, the best by the set's main metric first."""
    means = {method: result["metrics"].get(found.metric, {}).get("mean", 0) for method, result in found.results.items()}
    return sorted(means, key=lambda method: -means[method])


# --- differences ------------------------------------------------------------------------------------------------


def differences(found: QuestionSet) -> list[Record]:
    """Every method less standard RAG on the same questions, best method first.

    Returns:
        `method`, `metric`, `difference` with `low` and `high` of its 95 % interval, and `p`; percentage points, for the
        metric "gain" nats. Empty where standard RAG was not run.
    """
    rows = []
    for method in best_first(found):
        for metric in (found.metric, "f1", "gain"):
            row = None if method == BASE else difference(found, method, metric)
            if row:
                rows.append({"method": method, "metric": metric, **row})
    return rows


def difference(found: QuestionSet, method: str, metric: str) -> Record | None:
    """`difference`, `low`, `high` and `p` of one method less standard RAG; None where one of them has no such score."""
    read = found.gains_of if metric == "gain" else lambda name: found.scores_of(name, metric)
    a, b = read(BASE), read(method)
    if a is None or b is None:
        return None
    found = paired_difference(a, b)
    scale = 1 if metric == "gain" else 100
    return {name: value if name == "p" else scale * value for name, value in found.items()}


def result_sentence(sets: Sequence[QuestionSet]) -> str | None:
    """What the paired tests support about GainRAG and standard RAG, in one sentence; None where they cannot be made."""
    rows = [(found, difference(found, OURS, found.metric)) for found in sets]
    tested = [(found, row) for found, row in rows if row]
    if len(tested) == 1:
        return _one_set(*tested[0])
    if not tested:
        return None
    sure = holm([row["p"] for _, row in tested])
    ahead = sum(is_sure and row["difference"] > 0 for (_, row), is_sure in zip(tested, sure, strict=True))
    behind = sum(sure) - ahead
    return (
        f"Of {len(tested)} question sets, GainRAG answers more questions correctly than standard RAG on {ahead} and "
        f"fewer on {behind}; on {len(tested) - sum(sure)} the paired test finds no difference (permutation test, "
        f"p < {LEVEL} after Holm's correction for {len(tested)} tests)."
    )


def _one_set(found: QuestionSet, row: Record) -> str:
    ours, base = (100 * float(np.mean(found.scores_of(method, found.metric))) for method in (OURS, BASE))
    numbers = (
        f"{ours:.1f} % of {len(found.questions)} questions against {base:.1f} %; difference {row['difference']:+.1f} "
        f"points, 95 % interval {row['low']:+.1f} to {row['high']:+.1f}, p = {p_value(row['p'])}"
    )
    if row["p"] >= LEVEL:
        return f"GainRAG and standard RAG cannot be told apart by the answers on {found.name} ({numbers})."
    better = "more" if row["difference"] > 0 else "fewer"
    return f"GainRAG answers {better} questions of {found.name} correctly than standard RAG ({numbers})."


def holm(values: Sequence[float]) -> list[bool]:
    """Which p values are below LEVEL after Holm's step-down correction (1979)."""
    sure = [False] * len(values)
    for place, number in enumerate(sorted(range(len(values)), key=lambda number: values[number])):
        if values[number] >= LEVEL / (len(values) - place):
            break
        sure[number] = True
    return sure


def p_value(p: float) -> str:
    """p with three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


# --- selector scores and gains ----------------------------------------------------------------------------------


def scores_and_gains(found: QuestionSet, which: str) -> Iterator[list[tuple[float, float, bool]]]:
    """For each question its candidates as (selector score, gain, is pseudo), those that have both numbers.

    Args:
        which: a key of SELECTORS.
    """
    for name, scores in found.scored.get(which, {}).items():
        candidates = found.picks.candidates.get(name, [])
        points = [
            (float(scores[passage_key(one)]), gain_of(one["PPL_CD"]), bool(one.get("is_pseudo")))
            for one in candidates
            if passage_key(one) in scores
        ]
        if len(points) > 1:
            yield points


def correlation(questions: Sequence[list[tuple[float, float, bool]]]) -> Record | None:
    """Spearman's correlation of score and gain among a question's candidates: mean over questions, and its interval.

    Questions in which one of the two never varies are left out; None where no question is left.
    """
    found = [rank_correlation(*zip(*((x, y) for x, y, _ in points), strict=True)) for points in questions]
    values = [value for value in found if value is not None]
    return {**mean_with_interval(values), "n": len(values)} if values else None


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's correlation, equal values sharing their mean rank; None where one of the rows never varies."""
    first, second = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    size = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / size if size else None


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, place, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


# --- where picks come from --------------------------------------------------------------------------------------


def origins(found: QuestionSet) -> tuple[list[str], dict[str, list[float]]] | None:
    """Groups of ranks in retrieval, "pseudo" and perhaps "not retrieved", and for each method that selects the percent
    of its first picks in each; None where retrieval output or selections are gone."""
    methods = [method for method in best_first(found) if method in found.picks.files and method != BASE]
    if BASE not in found.picks.files or not methods:
        return None
    counts = {}
    for method in methods:
        picks = ((question, found.pick_of(method, question)) for question in found.questions)
        counts[method] = Counter(origin(found, question, pick) for question, pick in picks if pick)
    groups = [name for name in (*RANKS, "pseudo", "not retrieved") if any(name in count for count in counts.values())]
    return groups, {
        method: [100 * count[name] / max(1, count.total()) for name in groups] for method, count in counts.items()
    }


def origin(found: QuestionSet, question: Record, passage: Record) -> str:
    """ "pseudo", or the group of a passage's rank in retrieval."""
    if passage.get("is_pseudo"):
        return "pseudo"
    rank = found.ranks.get(str(question.get("id")), {}).get(passage_key(passage))
    if rank is None:
        return "not retrieved"
    return next(name for name, last in RANKS.items() if rank <= last)


# --- holding the answer, and helping ------------------------------------------------------------------------------


def gap_shares(cases: list[tuple[bool, bool]]) -> dict[str, Record | None]:
    """The shares of figure 1, from 0 to 1, each with its interval; None where a group is empty.

    Args:
        cases: of each question, whether its passages hold a gold answer, and whether it is answered rightly.
    """
    groups = {
        "wrong_of_held": [not right for held, right in cases if held],
        "not_held_of_right": [not held for held, right in cases if right],
        "wrong_though_held": [held and not right for held, right in cases],
        "right_though_not_held": [right and not held for held, right in cases],
        "right_of_not_held": [right for held, right in cases if not held],
    }
    return {name: mean_with_interval(group) if group else None for name, group in groups.items()}
