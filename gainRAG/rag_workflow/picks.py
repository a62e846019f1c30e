"""The methods by name, and the passages that each of them puts into the prompt."""

from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import Record, read_records
from gainRAG.common.schemas import as_retrieved, as_supervised, with_unique_ids
from gainRAG.evaluation.gains import gain_of

METHODS = {
    "no_retrieval": "No retrieval",
    "standard_rag": "Standard RAG",
    "rerank": "Rerank",
    "rerank_with_pseudo": "Untrained selector with pseudo-passage",
    "plain_ppl": "Selector trained on plain perplexity",
    "gainrag_no_pseudo": "GainRAG without pseudo-passage",
    "gainrag": "GainRAG",
    "shipped": "GainRAG, shipped selector",
    "best_by_gain": "Best by gain",
}
SELECTED = ("rerank", "rerank_with_pseudo", "plain_ppl", "gainrag_no_pseudo", "gainrag", "shipped")
WITH_PSEUDO = ("rerank_with_pseudo", "plain_ppl", "gainrag")  # choose among the pseudo-passage as well
BASES = ("standard_rag", "rerank")  # what a trained selector is to be better than
EXPLANATIONS = {"rerank": "untrained selector", "best_by_gain": "upper bound, knows the answer"}


def explained(method: str) -> str:
    """A method's label, with an explanation where the label alone may mislead."""
    return f"{METHODS[method]} ({EXPLANATIONS[method]})" if method in EXPLANATIONS else METHODS[method]


class Picks:
    """What each method puts into the prompt, and what that is worth by the gain. A file is read when first asked for.

    Args:
        k: passages in the prompt.
        retrieved: retrieval output, best first; None where there is none.
        selections: method -> selection output of the same questions.
        gains: supervision records of the same questions, or None.
    """

    def __init__(
        self,
        k: int,
        retrieved: str | Path | None,
        selections: Mapping[str, str | Path],
        gains: str | Path | None = None,
    ) -> None:
        self.k = k
        files = {"standard_rag": retrieved, **selections, "best_by_gain": gains}
        self.files = {method: path for method, path in files.items() if path is not None}
        self._records: dict[str, dict[str, Record]] = {}

    def _read(self, method: str) -> dict[str, Record]:
        """By question id what a method's file holds: `question`, `answers`, and `passages`, the first k of a selection
        or all whose gain was computed."""
        if method not in self._records:
            of_gains = method == "best_by_gain"
            shape = partial(as_supervised, signal="PPL_CD") if of_gains else as_retrieved
            self._records[method] = {
                str(record["id"]): {
                    "question": record["question"],
                    "answers": record["answers"],
                    "passages": record["passages"] if of_gains else record["ctxs"][: self.k],
                }
                for record in read_records(self.files[method], with_unique_ids(shape))
            }
        return self._records[method]

    @cached_property
    def candidates(self) -> dict[str, list[Record]]:
        """The passages whose gain was computed, by question id."""
        records = self._read("best_by_gain") if "best_by_gain" in self.files else {}
        return {name: record["passages"] for name, record in records.items()}

    def passages_for(self, method: str, question: Record) -> list[Record]:
        """The passages that a method picks for a question, best first; none for no_retrieval.

        Raises:
            UserError: the method's file is unusable, lacks the question, or was made for another.
        """
        if method == "no_retrieval":
            return []
        record = self._read(method).get(str(question.get("id")))
        if record is None:
            raise UserError(f"{self.files[method]}: lacks question {question.get('id')!r}, which was answered")
        self._require_same(method, record, question)
        if method == "best_by_gain":
            return sorted(record["passages"], key=lambda passage: passage["PPL_CD"])[: self.k]
        return record["passages"]

    def require(self, questions: Iterable[Record]) -> None:
        """Reads every file but the retrieval output, from which the questions come.

        Raises:
            UserError: one is unusable, lacks one of the questions, was made for others or for other gold answers, or
                for fewer passages than `k`.
        """
        by_name = {str(record["id"]): record for record in questions}
        for method in self.files:
            if method == "standard_rag":
                continue
            records = self._read(method)
            missing = [name for name in by_name if name not in records]
            if missing:
                raise UserError(
                    f"{self.files[method]}: lacks {len(missing)} questions of --data_path, the first is id "
                    f"{missing[0]!r}; if --skip_too_long left them out there, data/prepare_sample.py --also_in takes "
                    "them out here"
                )
            for name, question in by_name.items():
                self._require_same(method, records[name], question)
            if method in SELECTED:
                self._require_k(method)

    def _require_same(self, method: str, record: Record, question: Record) -> None:
        if record["question"] != question["question"]:
            raise UserError(
                f"{self.files[method]}: under id {question.get('id')!r} it has {record['question']!r:.80}, where the "
                f"question to be answered is {question['question']!r:.80}; make it from the same questions"
            )
        if method == "best_by_gain" and {*record["answers"]} != {*map(str, question["answers"])}:
            raise UserError(
                f"{self.files[method]}: gains of id {question.get('id')!r} were made for the answers "
                f"{record['answers']!r:.200}, the question to be answered has {question['answers']!r:.200}; run "
                f"construct_hf on {self.files.get('standard_rag', 'the questions answered')}"
            )

    def _require_k(self, method: str) -> None:
        held = self._most_passages(method)
        if held < self.k and held < self._most_passages("standard_rag"):
            raise UserError(
                f"{self.files[method]}: holds {held} passages a question, --K_docs {self.k} wants more; select with "
                f"--K_docs {self.k}"
            )

    def _most_passages(self, method: str) -> int:
        return max((len(record["passages"]) for record in self._read(method).values()), default=0)

    def gain_for(self, question: Record, passage: Record) -> float | None:
        """The gain of a passage for a question; None where it was not computed.

        Raises:
            UserError: the gains are unusable, or were made for another question or other gold answers.
        """
        name = str(question.get("id"))
        if name not in self.candidates:
            return None
        self._require_same("best_by_gain", self._read("best_by_gain")[name], question)
        for candidate in self.candidates[name]:
            if candidate.get("id") == passage.get("id") and candidate["text"] == passage["text"]:
                return gain_of(candidate["PPL_CD"])
        return None
