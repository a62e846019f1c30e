"""The methods by name, and the passages that each of them puts into the prompt."""

from collections.abc import Callable, Iterable, Mapping
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
        self._passages: dict[str, dict[str, list[Record]]] = {}
        self._wordings: dict[tuple[str, str], str] = {}  # (method, question id) -> the question in the method's file
        self._answers: dict[str, list[str]] = {}  # question id -> the gold answers that the gains were made for

    @cached_property
    def candidates(self) -> dict[str, list[Record]]:
        """The passages whose gain was computed, by question id."""
        if "best_by_gain" not in self.files:
            return {}
        shape = with_unique_ids(partial(as_supervised, signal="PPL_CD"))
        return self._by_id("best_by_gain", shape, "passages")

    def passages_for(self, method: str, question: Record) -> list[Record]:
        """The passages that a method picks for a question, best first; none for no_retrieval.

        Raises:
            UserError: the method's file is unusable, lacks the question, or was made for another.
        """
        if method == "no_retrieval":
            return []
        passages = self._of(method).get(str(question.get("id")))
        if passages is None:
            raise UserError(f"{self.files[method]}: lacks question {question.get('id')!r}, which was answered")
        self._require_same(method, question)
        return passages

    def require(self, questions: Iterable[Record]) -> None:
        """Reads every file but the retrieval output, from which the questions come.

        Raises:
            UserError: one is unusable, lacks one of the questions, was made for others or for other gold answers, or
                for fewer passages than `k`.
        """
        by_name = {str(record["id"]): record for record in questions}
        for method, path in self.files.items():
            known = by_name if method == "standard_rag" else self._of(method)
            missing = [name for name in by_name if name not in known]
            if missing:
                raise UserError(
                    f"{path}: lacks {len(missing)} questions of --data_path, the first is id {missing[0]!r}; "
                    "if --skip_too_long left them out there, data/prepare_sample.py --also_in takes them out here"
                )
            for record in by_name.values():
                self._require_same(method, record)
            if method in SELECTED:
                self._require_k(method)

    def _require_same(self, method: str, question: Record) -> None:
        wording = self._wordings.get((method, str(question.get("id"))), question["question"])
        if wording != question["question"]:
            raise UserError(
                f"{self.files[method]}: under id {question.get('id')!r} it has {wording!r:.80}, where the question "
                f"to be answered is {question['question']!r:.80}; make it from the same questions"
            )
        answers = self._answers.get(str(question.get("id"))) if method == "best_by_gain" else None
        if answers is not None and {*answers} != {*map(str, question["answers"])}:
            raise UserError(
                f"{self.files[method]}: gains of id {question.get('id')!r} were made for the answers {answers!r:.200}, "
                f"the question to be answered has {question['answers']!r:.200}; run construct_hf on "
                f"{self.files.get('standard_rag', 'the questions answered')}"
            )

    def _require_k(self, method: str) -> None:
        held = max(map(len, self._of(method).values()), default=self.k)
        if held < self.k and held < max(map(len, self._of("standard_rag").values()), default=0):
            raise UserError(
                f"{self.files[method]}: holds {held} passages a question, --K_docs {self.k} wants more; select with "
                f"--K_docs {self.k}"
            )

    def gain_for(self, question: Record, passage: Record) -> float | None:
        """The gain of a passage for a question; None where it was not computed.

        Raises:
            UserError: the gains are unusable, or were made for another question or other gold answers.
        """
        candidates = self.candidates.get(str(question.get("id")), [])
        self._require_same("best_by_gain", question)
        for candidate in candidates:
            if candidate.get("id") == passage.get("id") and candidate["text"] == passage["text"]:
                return gain_of(candidate["PPL_CD"])
        return None

    def _of(self, method: str) -> dict[str, list[Record]]:
        if method not in self._passages:
            self._passages[method] = self._best_by_gain() if method == "best_by_gain" else self._read(method)
        return self._passages[method]

    def _read(self, method: str) -> dict[str, list[Record]]:
        found = self._by_id(method, with_unique_ids(as_retrieved), "ctxs")
        return {name: passages[: self.k] for name, passages in found.items()}

    def _by_id(self, method: str, shape: Callable[[Record], Record], field: str) -> dict[str, list[Record]]:
        found = {}
        for record in read_records(self.files[method], shape):
            name = str(record["id"])
            self._wordings[method, name] = record["question"]
            if method == "best_by_gain":
                self._answers[name] = record["answers"]
            found[name] = record[field]
        return found

    def _best_by_gain(self) -> dict[str, list[Record]]:
        return {
            question: sorted(passages, key=lambda passage: passage["PPL_CD"])[: self.k]
            for question, passages in self.candidates.items()
        }
