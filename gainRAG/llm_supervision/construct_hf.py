"""The gain of every candidate passage: how much it helps the LLM produce the gold answer.

For each question the LLM writes a pseudo-passage and answers from every candidate; then the same LLM scores the gold
answers with and without each candidate (PPL_CD, retrieved_ppl: lower is better). Retrieval output in,
supervision records out. What the LLM wrote stands in OUT.generated.jsonl until the gains are complete. A run that
was stopped goes on with the same command.

    python -m gainRAG.llm_supervision.construct_hf --data_path retrieved.jsonl --output_path gains.jsonl \
        --task HotpotQA --lm_type Llama-3-8B-Instruct --alpha 0.5
"""

import argparse
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from gainRAG.common.cli import non_negative_float, positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import Record, read_records
from gainRAG.common.models import pick_device, pick_dtype, weights_path
from gainRAG.common.parallel import add_worker_arguments, check_worker_arguments, map_chunks
from gainRAG.common.resume import StageOutput, identity, remove_output, stage_settings, write_in_chunks
from gainRAG.common.schemas import as_retrieved
from gainRAG.evaluation.answers import cover_exact_match, f1_score
from gainRAG.evaluation.recall import AnswerMatcher
from gainRAG.llm_inference.background import (
    add_background_arguments,
    background_lookup,
    pseudo_passage,
    write_backgrounds,
)
from gainRAG.llm_inference.engine import (
    BACKENDS,
    add_engine_arguments,
    check_engine_arguments,
    check_tokenizer,
    generation_settings,
    load_engine,
    map_texts,
    prompt_builder,
)

logger = logging.getLogger(__name__)

CHUNK = 64  # questions: what an interruption can cost, and enough rows to fill batches


def add_construct_arguments(parser: argparse.ArgumentParser, backends: Sequence[str] = BACKENDS) -> None:
    """The flags of whatever measures candidates: data, candidates, predictions, and the LLM."""
    parser.add_argument("--data_path", required=True, help="retrieval output (questions with ctxs)")
    parser.add_argument("--output_path", required=True, help="supervision records, .jsonl or .json")
    parser.add_argument("--task", required=True, help="whose prompt to use, e.g. HotpotQA, WebQuestions, NaturalQA")
    parser.add_argument("--num_passages", type=positive_int, default=20, help="retrieved candidates a question")
    parser.add_argument(
        "--predictions",
        choices=("all", "none"),
        default="all",
        help="answer from every candidate, or leave that to the filter (filtering --generate)",
    )
    parser.add_argument("--max_new_tokens", type=positive_int, default=32, help="longest prediction, in tokens")
    parser.add_argument("--limit", type=positive_int, default=None, help="only the first questions")
    parser.add_argument("--overwrite", action="store_true", help="start afresh, whatever stands there")
    add_background_arguments(parser)
    add_engine_arguments(parser, backends)


def parse_arguments() -> argparse.Namespace:
    """The flags, checked as far as no model is needed."""
    parser = stage_parser(__doc__)
    add_construct_arguments(parser)
    add_worker_arguments(parser)
    parser.add_argument("--alpha", type=non_negative_float, default=0.5, help="contrast; 0 is plain perplexity")
    parser.set_defaults(dtype="float32")  # the signal's precision in the public code
    return parser.parse_args()


def questions_of(args: argparse.Namespace) -> Iterator[Record]:
    """The input's questions, each with its first `num_passages` candidates as supervision records name them, and the
    pseudo-passage of --background_path."""
    background_of = background_lookup(args.background_path) if args.background_path and not args.no_pseudo else None
    for record in itertools.islice(read_records(args.data_path, as_retrieved), args.limit):
        matcher = AnswerMatcher(record["answers"])
        passages = [candidate(passage, matcher) for passage in record["ctxs"][: args.num_passages]]
        question = {**{name: value for name, value in record.items() if name != "ctxs"}, "passages": passages}
        if background_of:
            add_pseudo_passage(question, background_of(question))
        yield question


def candidate(passage: Record, matcher: AnswerMatcher) -> Record:
    """A retrieved or written passage as a supervision record names its fields."""
    return {
        "id": passage.get("id"),
        "title": passage.get("title") or "",
        "text": passage["text"],
        "has_answer": passage["hasanswer"] if "hasanswer" in passage else matcher.matches(passage["text"]),
        "retrieval_score": passage.get("score"),
        "is_pseudo": passage.get("is_pseudo", False),
    }


def check_input(args: argparse.Namespace) -> int:
    """Reads every record once, so that a bad one ends the run before any model loads; returns how many there are."""
    short = total = 0
    for record in questions_of(args):
        total += 1
        short += sum(not passage["is_pseudo"] for passage in record["passages"]) < args.num_passages
    if short:
        logger.info(
            "%d of %d questions have fewer than %d candidates and use what they have", short, total, args.num_passages
        )
    return total


def settings(args: argparse.Namespace, stage: str, **more) -> Record:
    """What decides this stage's output."""
    names = ("num_passages", "predictions", "limit", "no_pseudo", "max_new_tokens", "background_tokens")
    inputs = {"data_path": args.data_path, "background_path": args.background_path}
    flags = {name: getattr(args, name) for name in names}
    return stage_settings(stage, inputs, **{**generation_settings(args), **flags, **more})


def gain_settings(args: argparse.Namespace) -> Record:
    """What decides the finished output: a server may write the texts, the gains come from weights here."""
    dtype = str(pick_dtype(args.dtype, pick_device(args.device))).removeprefix("torch.")
    weights = identity(weights_path(args.lm_type))
    return settings(args, "construct_hf", alpha=args.alpha, weights=weights, gain_dtype=dtype)


def room(args: argparse.Namespace) -> int:
    """Tokens left free behind every prompt: the same in both passes, so that both see the same prompts."""
    return max(args.max_new_tokens, args.background_tokens)


def generate(args: argparse.Namespace, path: Path, total: int) -> None:
    """First pass: pseudo-passages, and a prediction for every candidate. The engine is gone when it returns."""
    with StageOutput(path, settings(args, "construct_hf, what the LLM writes"), args.overwrite) as writer:
        if writer.complete:
            return
        if args.predictions == "all" or not (args.no_pseudo or args.background_path):
            work = partial(map_texts, args, partial(TextWorker, args))
        else:
            work = iter  # the LLM has nothing to write
        write_in_chunks(writer, questions_of(args), CHUNK, work, "writing", total)


class TextWorker:
    """What the LLM writes of each question; see `workers.Worker`."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.engine = load_engine(args)
        self.builder = prompt_builder(args, self.engine.tokenizer, self.engine.context_length, room(args))

    def __call__(self, chunks: Iterator[list[Record]]) -> Iterable[list[Record]]:
        return map(self.write, chunks)

    def write(self, chunk: list[Record]) -> list[Record]:
        """The chunk with its pseudo-passages and predictions."""
        add_pseudo_passages(self.args, self.engine, self.builder, chunk)
        if self.args.predictions == "all":
            add_predictions(self.engine, self.builder, chunk, self.args.max_new_tokens)
        return chunk

    def close(self) -> None:
        self.engine.close()


def add_pseudo_passages(args: argparse.Namespace, engine, builder, chunk: list[Record]) -> None:
    """Appends the LLM's own passage to every question's candidates, where the questions do not bring it along."""
    if args.no_pseudo or args.background_path:
        return
    texts = write_backgrounds(engine, builder, chunk, args.background_tokens)
    for record, text in zip(chunk, texts, strict=True):
        add_pseudo_passage(record, text)


def add_pseudo_passage(record: Record, background: str) -> None:
    """Appends a background to the candidates; none where the LLM knew nothing."""
    pseudo = pseudo_passage(background)
    if pseudo:
        record["passages"].append(candidate(pseudo, AnswerMatcher(record["answers"])))


def add_predictions(engine, builder, chunk: list[Record], max_new_tokens: int) -> None:
    """Answers every question of the chunk from each of its candidates alone; see `predict`."""
    predict(engine, builder, [(record, passage) for record in chunk for passage in record["passages"]], max_new_tokens)


def predict(engine, builder, cases: Sequence[tuple[Record, Record]], max_new_tokens: int) -> None:
    """Answers each question from one passage, and notes with the passage `prediction`, `EM_with_retrieval`
    (containment) and `F1_with_retrieval`.

    Args:
        cases: (question, passage) pairs.
    """
    prompts = [builder.with_passages(record, [passage]) for record, passage in cases]
    for (record, passage), text in zip(cases, engine.generate(prompts, max_new_tokens), strict=True):
        passage["prediction"] = text
        passage["EM_with_retrieval"] = float(cover_exact_match(text, record["answers"]))
        passage["F1_with_retrieval"] = f1_score(text, record["answers"])


class GainWorker:
    """Second pass: the gains, by `decoding.GainScorer`; see `workers.Worker`."""

    def __init__(self, args: argparse.Namespace) -> None:
        from gainRAG.llm_inference.inference_hf import context_length, load_causal_lm, load_tokenizer
        from gainRAG.llm_supervision.gain import GainScorer

        tokenizer = load_tokenizer(args.lm_type)
        model = load_causal_lm(args.lm_type, pick_device(args.device), args.dtype)
        self.builder = prompt_builder(args, tokenizer, context_length(model.config), room(args))
        self.scorer = GainScorer(model, tokenizer, alpha=args.alpha, max_batch_tokens=args.max_batch_tokens)

    def __call__(self, chunks: Iterator[list[Record]]) -> Iterable[list[Record]]:
        return map(self.add_gains, chunks)

    def add_gains(self, chunk: list[Record]) -> list[Record]:
        """The chunk with PPL_CD and retrieved_ppl of every candidate."""
        from gainRAG.llm_supervision.gain import GainRequest

        requests = [
            GainRequest(
                question_prompt=self.builder.without_passage(record),
                passage_prompts=[self.builder.with_passages(record, [passage]) for passage in record["passages"]],
                answers=record["answers"],
            )
            for record in chunk
        ]
        for record, gains in zip(chunk, self.scorer.score(requests), strict=True):
            for passage, gain in zip(record["passages"], gains, strict=True):
                passage["PPL_CD"], passage["retrieved_ppl"] = gain.ppl_cd, gain.ppl
        return chunk

    def close(self) -> None:
        if self.builder.cut:
            logger.info("%d prompts were too long for the LLM and were cut inside the passage", self.builder.cut)


def main() -> None:
    args = parse_arguments()
    check_worker_arguments(args)
    check_engine_arguments(args)
    if args.backend == "openai":
        check_tokenizer(args)  # the server writes the texts, the gains need the LLM here
    wanted = gain_settings(args)
    total = check_input(args)
    with StageOutput(args.output_path, wanted, args.overwrite) as writer:
        generated = Path(args.output_path).with_suffix(".generated.jsonl")
        if not writer.complete:
            generate(args, generated, total)
            work = partial(map_chunks, args, partial(GainWorker, args))
            write_in_chunks(writer, read_records(generated), CHUNK, work, "gains", total)
    remove_output(generated)  # all of it stands in the finished file


if __name__ == "__main__":
    run_stage(main)
