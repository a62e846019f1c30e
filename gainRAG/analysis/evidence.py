"""The experiment's numbers (docs/results/PROTOCOL.md): every one of them follows from test.jsonl.gz, a line a question.

With --work, a run's folder is read first, or those of several runs on different questions, and test.jsonl.gz written;
without, the file that is there is taken, so anyone can compute the published numbers anew. Writes evidence.json,
README.md (the tables) and the figures beside it.

    python -m gainRAG.analysis.evidence --work results/evidence --name test --output_dir docs/results
    python -m gainRAG.analysis.evidence --output_dir docs/results
"""

import argparse
import gzip
import logging
import lzma
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gainRAG.analysis.evidence_page import FIGURE, PAGE, PICKED, draw_differences, evidence_page
from gainRAG.analysis.measures import BASE, BOUND, gap_shares
from gainRAG.analysis.paper_parts import GAP_PANELS
from gainRAG.analysis.runs import QuestionSet
from gainRAG.common.cli import UserError, require, run_stage, stage_parser
from gainRAG.common.jsonl import Record, atomic_write, line_of, output_folder, parse_json, read_records, write_json
from gainRAG.common.schemas import as_supervised, is_number
from gainRAG.evaluation.recall import find_hits
from gainRAG.evaluation.results import mean_with_interval
from gainRAG.evaluation.significance import paired_difference
from gainRAG.rag_workflow.picks import BASES, METHODS

logger = logging.getLogger(__name__)

TEST, EVIDENCE = "test.jsonl.gz", "evidence.json"
METRICS = {"hit_at_1": "hit", "pick_gain": "gain", "cover_em": "cover_em", "f1": "f1"}  # metric -> a line's field
OURS = ("gainrag_no_pseudo", "gainrag")
DIGITS = 6  # of gains and scores; more would only record the processor's rounding


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("--work", type=Path, nargs="+", help="the runs' folders; None: compute from test.jsonl.gz")
    parser.add_argument("--name", default="test", help="the question set in --work that was held out")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="folder of test.jsonl.gz and what follows from it"
    )
    parser.add_argument(
        "--gains_dir",
        type=Path,
        help="also write the gains of --work, of one run, there, a compressed file a part: .jsonl.xz",
    )
    args = parser.parse_args()
    if args.gains_dir and len(args.work or ()) > 1:
        raise UserError("--gains_dir takes one run's gains: files of the same name would replace each other")
    require("matplotlib")
    return args


def main() -> None:
    """Writes the lines, where a run is given; then all that follows from them."""
    args = parse_arguments()
    folder = output_folder(args.output_dir)
    if args.work:
        write_lines(folder / TEST, pooled_lines(args.work, args.name))
        if args.gains_dir:
            gains_folder = output_folder(args.gains_dir)
            for path in sorted((args.work[0] / "gains").glob("*.jsonl")):
                write_lines(gains_folder / f"{path.name}.xz", rounded_gains(path))
    evidence = summarize_lines(read_lines(folder / TEST))
    write_json(folder / EVIDENCE, evidence)
    for name, content in {PAGE: evidence_page(evidence), FIGURE: draw_differences(evidence)}.items():
        with atomic_write(folder / name) as file:
            file.write(content)
    logger.info("%s: %d questions, %s", folder, evidence["n"], ", ".join((TEST, EVIDENCE, PAGE)))


# --- a line a question -------------------------------------------------------------------------------------------


def pooled_lines(works: Sequence[Path], name: str) -> Iterator[Record]:
    """The lines of one run, or of several, whose `dataset` then names the run's folder, too.

    Raises:
        UserError: a run has no answers, or a question is in two of them.
    """
    seen: set[str] = set()
    for work in works:
        answers = work / "answers" / name
        if not (answers / "results.json").exists():
            raise UserError(f"{answers}: no results.json; scripts/evidence.sh writes it")
        for line in question_lines(QuestionSet(work, answers)):
            if line["id"] in seen:
                raise UserError(
                    f"{work}: question {line['id']!r} is in another of --work, too; one may count only once"
                )
            seen.add(line["id"])
            yield {**line, "dataset": f"{line['dataset']} {work.name}"} if len(works) > 1 else line


def question_lines(found: QuestionSet) -> Iterator[Record]:
    """A run's questions, each with what every method picked and answered.

    Yields:
        `id`, `dataset`, `methods`: for each method, as far as it has them, `pick` (the passage's id), `hit` (it holds a
        gold answer), `pseudo` where the LLM wrote it, `gain` and `selector_score`; `prediction`, `cover_em`, `f1`.
    """
    methods = dict.fromkeys([*found.results, *sorted(found.picks.files)])
    for question in found.questions:
        name = str(question["id"])
        lines = {method: _method_line(found, method, question) for method in methods}
        unpicked = [method for method, line in lines.items() if method != "no_retrieval" and "pick" not in line]
        if unpicked:
            raise UserError(
                f"{found.work}: {unpicked[0]} has no passage for question {name!r}; take such questions out first, "
                "with data/prepare_sample.py --answerable_in_top for instance"
            )
        yield {"id": name, "dataset": name.split("-")[0], "methods": lines}


def _method_line(found: QuestionSet, method: str, question: Record) -> Record:
    line: Record = {}
    pick = found.pick_of(method, question)
    if pick:
        [hit] = find_hits(question, [pick])
        gain = found.picks.gain_for(question, pick)
        if gain is None:
            raise UserError(f"{found.work}: {method}'s pick for question {question['id']!r} was not scored by its gain")
        line = {"pick": str(pick["id"]), "hit": hit, "gain": round(gain, DIGITS)}
        if pick.get("is_pseudo"):
            line["pseudo"] = True
        if is_number(pick.get("selector_score")):
            line["selector_score"] = round(pick["selector_score"], DIGITS)
    if method in found.predictions:
        record = found.predictions[method][str(question["id"])]
        scores = {"cover_em": int(record["cover_em"]), "f1": round(record["f1"], DIGITS)}
        line |= {"prediction": record["prediction"], **scores}
    return line


def rounded_gains(path: Path) -> Iterator[Record]:
    """The supervision records of a file, perplexities and retrieval scores with DIGITS digits in all."""
    for record in read_records(path, as_supervised):
        passages = [
            {name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value for name, value in one.items()}
            for one in record["passages"]
        ]
        yield {**record, "passages": passages}


def write_lines(path: Path, lines: Iterator[Record]) -> None:
    """Writes them compressed, by xz or else gzip; the same lines give the same bytes."""
    text = "".join(line_of(line) + "\n" for line in lines).encode()
    with atomic_write(path, binary=True) as file:
        # Questions share passages that lie far apart; xz finds them again, gzip does not.
        file.write(lzma.compress(text) if path.suffix == ".xz" else gzip.compress(text, 9, mtime=0))


def read_lines(path: Path) -> list[Record]:
    """The lines of a test.jsonl.gz.

    Raises:
        UserError: it is not there, or not what `write_lines` writes.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; give the run's folder with --work")
    try:
        rows = gzip.decompress(path.read_bytes()).splitlines()
    except (OSError, EOFError, zlib.error) as problem:
        raise UserError(f"{path}: is not a gzip file ({problem})") from None
    if not rows:
        raise UserError(f"{path}: holds no questions")
    return [parse_json(row, f"{path}:{number}") for number, row in enumerate(rows, 1)]


# --- what follows ------------------------------------------------------------------------------------------------


def summarize_lines(lines: Sequence[Record]) -> Record:
    """Every number that the page prints.

    Returns:
        `n`; `datasets`: their questions; `methods` and `by_dataset`: means with 95 % intervals; `tests` and
        `tests_by_dataset`: GainRAG less standard RAG and less the untrained selector, metric by metric, with interval
        and p of a paired permutation test; `share_won`: of what "best by gain" wins over standard RAG, in gain;
        `variants`: selectors trained otherwise, and their differences; `gap`: the paper's figure 1. Shares are from 0
        to 1, gains in nats.
    """
    names = sorted({line["dataset"] for line in lines})
    parts = {name: [line for line in lines if line["dataset"] == name] for name in names}
    methods = list(lines[0]["methods"])
    named = [method for method in METHODS if method in methods]
    return {
        "n": len(lines),
        "datasets": {name: len(part) for name, part in parts.items()},
        "methods": {method: method_means(lines, method) for method in named},
        "by_dataset": {name: {method: method_means(part, method) for method in named} for name, part in parts.items()},
        "tests": paired_tests(lines),
        "tests_by_dataset": {name: paired_tests(part) for name, part in parts.items()},
        "share_won": {method: share_won(lines, method) for method in ("rerank", *OURS) if method in named},
        "variants": {method: variant(lines, method) for method in methods if method not in named},
        "gap": {
            method: gap(lines, method)
            for method in named
            if all(scores(lines, method, metric) is not None for metric in ("hit_at_1", "cover_em"))
        },
    }


def scores(lines: Sequence[Record], method: str, metric: str) -> np.ndarray | None:
    """A method's score for each question; None where it has none."""
    row = [line["methods"].get(method, {}).get(METRICS[metric]) for line in lines]
    return None if None in row else np.array(row, dtype=np.float64)


def method_means(lines: Sequence[Record], method: str) -> Record:
    """The means of a method's scores, with intervals, and how often it picks the pseudo-passage."""
    found = {metric: scores(lines, method, metric) for metric in METRICS}
    means = {metric: mean_with_interval(row.tolist()) for metric, row in found.items() if row is not None}
    pseudo = [float(line["methods"][method].get("pseudo", False)) for line in lines]
    return {**means, "pseudo_share": sum(pseudo) / len(pseudo)}


def paired_tests(lines: Sequence[Record]) -> list[Record]:
    """Each of OURS less each of BASES on the same questions."""
    return [
        {"metric": metric, "a": a, "b": b, **found}
        for metric in METRICS
        for a in BASES
        for b in OURS
        if (found := paired_test(lines, metric, a, b))
    ]


def paired_test(lines: Sequence[Record], metric: str, a: str, b: str) -> Record | None:
    """`paired_difference` of two methods, b less a; None where one of them has no such score."""
    first, second = scores(lines, a, metric), scores(lines, b, metric)
    if first is None or second is None:
        return None
    return paired_difference(first, second)


def share_won(lines: Sequence[Record], method: str) -> float | None:
    """Of the gain that the best pick has over standard RAG's, the share that a method's pick has; None where standard
    RAG always picks the best."""
    ours, base, best = (scores(lines, name, "pick_gain").mean() for name in (method, BASE, BOUND))
    return float((ours - base) / (best - base)) if best > base else None


def variant(lines: Sequence[Record], method: str) -> Record:
    """Means of a selector whose picks were not answered from, its share won, and its differences to BASES."""
    tests = [
        {"metric": metric, "a": a, **found}
        for metric in PICKED
        for a in BASES
        if (found := paired_test(lines, metric, a, method))
    ]
    return {**method_means(lines, method), "share_won": share_won(lines, method), "tests": tests}


def gap(lines: Sequence[Record], method: str) -> Record:
    """How often holding the answer and helping part ways (the paper's figure 1): of the questions whose pick holds a
    gold answer the share answered wrongly, and of those answered rightly the share whose pick holds none."""
    hit, right = (scores(lines, method, metric).astype(bool).tolist() for metric in ("hit_at_1", "cover_em"))
    shares = gap_shares(list(zip(hit, right, strict=True)))
    return {name: shares[name] for name in GAP_PANELS}


if __name__ == "__main__":
    run_stage(main)
