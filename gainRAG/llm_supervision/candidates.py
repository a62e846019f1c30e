"""The candidates of every question, and what the LLM writes of them: what construct_hf and construct_vllm share."""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gainRAG.common.cli import add_overwrite_argument, positive_int
from gainRAG.common.jsonl import Record, read_records
from gainRAG.common.progress import report_few_passages
from gainRAG.common.schemas import as_retrieved
from gainRAG.common.settings import stage_settings
from gainRAG.evaluation.recall import AnswerMatcher, match_rule
from gainRAG.llm_inference.background import (
    PseudoPassageOptions,
    add_background_arguments,
    pseudo_passage,
    pseudo_passage_lookup,
    pseudo_passage_options,
    write_pseudo_passages,
)
from gainRAG.llm_inference.engine import (
    BACKENDS,
    EngineOptions,
    GenerationOptions,
    Writer,
    add_engine_arguments,
    generation_settings,
)
from gainRAG.llm_inference.lengths import LengthCheck, add_length_arguments
from gainRAG.llm_inference.predict import candidate, predict

CHUNK = 64  # questions: what an interruption can cost, and enough rows to fill batches


@dataclass(frozen=True)
class CandidateOptions:
    """Which passages are measured for a question; the flags of `add_candidate_arguments`.

    Attributes:
        data_path: retrieval output.
        pseudo: where the pseudo-passage comes from.
        num_passages: retrieved candidates a question.
        limit: how many questions of the file are used; None: all.
        predict: whether the LLM answers from every candidate.
        max_new_tokens: the longest of these answers, in tokens.
        skip_too_long: leave out questions that do not fit the LLM's context.
    """

    data_path: Path
    pseudo: PseudoPassageOptions
    num_passages: int
    limit: int | None
    predict: bool
    max_new_tokens: int
    skip_too_long: bool

    @property
    def written_here(self) -> bool:
        """Whether the LLM has anything to write."""
        return self.predict or self.pseudo.written_here

    @property
    def reserved_tokens(self) -> int:
        """Tokens left free behind every prompt: the same for texts and gains, so that both see the same prompts."""
        return max(self.max_new_tokens, self.pseudo.max_new_tokens)


def add_candidate_arguments(parser: argparse.ArgumentParser, backends: Sequence[str] = BACKENDS) -> None:
    """The flags of whatever measures candidates: data, candidates, predictions, and the LLM."""
    parser.add_argument("--data_path", required=True, help="retrieval output (questions with ctxs)")
    parser.add_argument("--output_path", required=True, help="supervision records, .jsonl or .json")
    parser.add_argument("--task", required=True, help="whose prompt to use, e.g. HotpotQA, WebQuestions, NaturalQA")
    parser.add_argument("--num_passages", type=positive_int, default=20, help="retrieved candidates a question")
    parser.add_argument(
        "--predictions",
        choices=("all", "none"),
        default="all",
        help="all: answer from every candidate; none: leave that to llm_supervision.filtering, which answers from the "
        "best one only",
    )
    parser.add_argument("--max_new_tokens", type=positive_int, default=32, help="longest prediction, in tokens")
    parser.add_argument("--limit", type=positive_int, default=None, help="only the first questions")
    add_overwrite_argument(parser)
    add_length_arguments(parser)
    add_background_arguments(parser)
    add_engine_arguments(parser, backends)


def candidate_options(
    *,
    data_path: str,
    num_passages: int,
    limit: int | None,
    predictions: str,
    max_new_tokens: int,
    skip_too_long: bool,
    **others,
) -> CandidateOptions:
    """From the parsed flags (`**vars(args)`) those of `add_candidate_arguments`, but for the LLM's."""
    return CandidateOptions(
        Path(data_path),
        pseudo_passage_options(**others),
        num_passages,
        limit,
        predictions == "all",
        max_new_tokens,
        skip_too_long,
    )


def filter_command(options: CandidateOptions) -> str:
    """What reads the records next: the filter that needs no LLM where every candidate has a prediction."""
    return "python data/data_filter.py" if options.predict else "python -m gainRAG.llm_supervision.filtering"


def candidate_settings(
    stage: str, options: CandidateOptions, engine: EngineOptions, generation: GenerationOptions, **more
) -> Record:
    """What decides the output of a stage that measures candidates."""
    flags = {
        "num_passages": options.num_passages,
        "predictions": "all" if options.predict else "none",
        "limit": options.limit,
        "skip_too_long": options.skip_too_long,
        "no_pseudo": not options.pseudo.wanted,
        "max_new_tokens": options.max_new_tokens,
        "background_tokens": options.pseudo.max_new_tokens,
        "keep_na": options.pseudo.keep_na,
    }
    inputs = {"data_path": options.data_path, "background_path": options.pseudo.path}
    return stage_settings(stage, inputs, **{**generation_settings(engine, generation), **flags, **more})


def length_check(options: CandidateOptions, engine: EngineOptions, generation: GenerationOptions) -> LengthCheck:
    """What finds questions that do not fit the context of the LLM that scores their gold answers."""
    pseudo_tokens = options.pseudo.max_new_tokens if options.pseudo.written_here else 0
    return LengthCheck(
        engine, generation, options.reserved_tokens, options.skip_too_long, pseudo_tokens, scores_answers=True
    )


def count_questions(options: CandidateOptions, lengths: LengthCheck) -> int:
    """Reads every question once, so that a bad one ends the run before a model loads; returns how many there are.

    Raises:
        UserError: a record is unusable, too long, or has no pseudo-passage in the file of them.
    """
    few = total = 0
    for record in read_candidates(options, lengths):
        total += 1
        few += sum(not passage["is_pseudo"] for passage in record["passages"]) < options.num_passages
    lengths.report(total)
    report_few_passages(few, total, "--num_passages", options.num_passages)
    return total


def read_candidates(options: CandidateOptions, lengths: LengthCheck) -> Iterator[Record]:
    """The questions, each with its first `num_passages` candidates as supervision records name them, and with the
    pseudo-passage where a file of them is given."""
    pseudo = options.pseudo
    pseudo_text_of = pseudo_passage_lookup(pseudo.path) if pseudo.wanted and pseudo.path else None

    def as_candidates(record: Record) -> Record | None:
        record = as_retrieved(record)
        matcher = AnswerMatcher(record["answers"], match_rule(record))
        passages = [candidate(passage, matcher) for passage in record.pop("ctxs")[: options.num_passages]]
        question = {**record, "passages": passages}
        if pseudo_text_of:
            add_pseudo_passage(question, pseudo_text_of(question), pseudo.keep_na)
        return lengths(question)

    return itertools.islice(read_records(options.data_path, as_candidates), options.limit)


def add_pseudo_passage(record: Record, text: str, keep_na: bool) -> None:
    """Appends a pseudo-passage to the candidates; where the LLM knew nothing only with `keep_na`."""
    pseudo = pseudo_passage(text, keep_na)
    if pseudo:
        record["passages"].append(candidate(pseudo, AnswerMatcher(record["answers"], match_rule(record))))


class CandidateWriter(Writer):
    """A worker (common.parallel): adds what the LLM writes, the pseudo-passage and an answer from every candidate."""

    def __init__(self, options: CandidateOptions, engine: EngineOptions, generation: GenerationOptions) -> None:
        super().__init__(engine, generation, options.reserved_tokens)
        self.options = options

    def __call__(self, chunk: list[Record]) -> list[Record]:
        pseudo = self.options.pseudo
        if pseudo.written_here:
            texts = write_pseudo_passages(self.engine, self.builder, chunk, pseudo.max_new_tokens)
            for record, text in zip(chunk, texts, strict=True):
                add_pseudo_passage(record, text, pseudo.keep_na)
        if self.options.predict:
            cases = [(record, passage) for record in chunk for passage in record["passages"]]
            predict(self.engine, self.builder, cases, self.options.max_new_tokens)
        return chunk
