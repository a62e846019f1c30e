"""Finds the passages for each question: dense (exact, or through a FAISS index) or BM25.

    python -m gainRAG.retrieval_engine.retrieval --model_name_or_path contriever-msmarco --passages psgs_w100.tsv.gz \\
        --passages_embeddings embeddings/ --data_path questions/*.jsonl --output_dir retrieved/ --n_docs 100

Every input file becomes a file of the same name in --output_dir: the question's own fields and `ctxs`, best first,
each {id, title, text, score, hasanswer}. All files are searched in one pass over the embeddings. Recall@k is
printed and kept in recall.json. --plan reports what the settings need, and stops.
"""

import argparse
import glob
import itertools
import logging
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from gainRAG.common.cli import (
    UserError,
    add_overwrite_argument,
    keep_apart,
    positive_float,
    positive_int,
    require,
    run_stage,
    say_next,
    stage_parser,
)
from gainRAG.common.jsonl import Record, parse_json, read_records, write_json
from gainRAG.common.models import weights_path
from gainRAG.common.parallel import WorkerOptions, add_worker_arguments, worker_options, workers_a_machine
from gainRAG.common.progress import ProgressBar
from gainRAG.common.resume import StageOutput
from gainRAG.common.schemas import as_question, with_unique_ids
from gainRAG.common.settings import identity, stage_settings
from gainRAG.evaluation.recall import KS, MATCH, MATCHES, AnswerMatcher, match_rule, recall_at
from gainRAG.retrieval_engine.exact_search import (
    GIB,
    GPU_K,
    TopK,
    chunk_rows,
    gpu_count,
    search_shards,
)
from gainRAG.retrieval_engine.faiss_index import SearchOptions, load_or_build_index, search_index
from gainRAG.retrieval_engine.modeling import (
    SHARED,
    Encoder,
    EncoderOptions,
    add_encoder_arguments,
    encoder_dim,
    encoder_options,
)
from gainRAG.retrieval_engine.passages import PassageStore, add_store_arguments, open_store
from gainRAG.retrieval_engine.plan import plan
from gainRAG.retrieval_engine.vectors import (
    check_shards,
    embedding_settings,
    embeddings_folder,
    open_shards,
    shards_fingerprint,
)

logger = logging.getLogger(__name__)

RECALLS = "recall.json"
CHUNK = 64  # questions written at once


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add_store_arguments(parser)
    add("--passages_embeddings", nargs="+", default=[], metavar="FOLDER",
        help="embeddings: passage_embed's, or Contriever's passages_00, ...; a glob of its files will do")  # fmt: skip
    add("--data_path", "--data_path_or_dir", nargs="+", required=True, help="question files, globs or folders")
    add("--output_dir", required=True, help="folder for the results: one file an input, of the same name")
    add("--n_docs", type=positive_int, default=100, help="passages a question")
    add("--match", choices=MATCHES, default="tokens",
        help="hasanswer: DPR's rule, or the answer's characters in a row (Chinese, Japanese, Thai)")  # fmt: skip
    add("--retriever", choices=["dense", "bm25"], default="dense", help="vectors, or words (needs bm25s)")
    add("--index_type", default="Flat", help="Flat: exact; else a FAISS factory string, for example IVF4096,PQ64")
    add("--index_path", help="FAISS index to use, or to make; default: beside the embeddings")
    add("--search_params", default="", help="parameters of the FAISS index, for example nprobe=64")
    add(
        "--max_memory",
        type=positive_float,
        default=8.0,
        help="GiB of each machine that exact search and index training may take; the workers of a machine share it",
    )
    add("--plan", action="store_true", help="print passages, vectors, memory and disk for these settings, and stop")
    add("--query_prefix", default="", help='put before every question, for example "query: " for E5')
    add_overwrite_argument(parser)
    add("--save_or_load_index", action="store_true", help="of the published code; an index is always kept and reused")
    add_encoder_arguments(parser, "questions")
    add_worker_arguments(parser)
    args = parser.parse_args()
    require("bm25s" if args.retriever == "bm25" else "faiss")
    if args.num_workers > 1 and (args.retriever != "dense" or args.index_type != "Flat" or args.index_path):
        raise UserError(f"--num_workers {args.num_workers}: only exact search is shared out (dense, Flat)")
    return args


def main() -> None:
    args = parse_arguments()
    workers = worker_options(**vars(args))
    encoder, search = (None, None) if args.retriever == "bm25" else dense_options(args)
    no_title = bool(args.no_title) if encoder is None else encoder.no_title
    if args.plan:
        for name, value in plan(args.passages, args.passages_store, no_title, args.model_name_or_path, search):
            print(f"{name:<12} {value}")
        return
    folder = Path(args.output_dir)
    targets = output_files(question_files(args.data_path), folder)
    read_recalls(folder)
    store = open_store(args.passages, args.passages_store, no_title)
    settings = retrieval_settings(store, args.n_docs, encoder, search)
    if args.match != "tokens":
        settings["flags"]["match"] = args.match
    with ExitStack() as open_outputs:  # all are finished at its end, and none before
        outputs = {}
        for source, target in targets.items():
            inputs = {**settings["inputs"], "data_path": identity(source)}
            output = StageOutput(target, {**settings, "inputs": inputs}, args.overwrite)
            outputs[source] = open_outputs.enter_context(output)
        records = {
            source: read_questions(source, args.match) for source, output in outputs.items() if not output.complete
        }
        # A score's last digits depend on the questions searched for at once: a run that is resumed searches for those
        # of its first attempt again, so that its bytes are those of a run that was never stopped.
        if any(outputs[source].done < len(records[source]) for source in records):
            questions = [record["question"] for source in records for record in records[source]]
            logger.info("%d questions, %d passages", len(questions), len(store))
            found = find(questions, store, args.n_docs, encoder, search, workers)
            write_found(records, found, store, outputs)
    report({source.name: output.records() for source, output in outputs.items()}, folder, args.n_docs)
    first = next(iter(targets.values()))
    command = f"python -m gainRAG.llm_supervision.construct_hf --data_path {first} --output_path GAINS.jsonl "
    say_next("questions with passages", folder, command + "--task TASK --lm_type LLM")


def dense_options(args: argparse.Namespace) -> tuple[EncoderOptions, SearchOptions]:
    """How questions are encoded, as their passages were where the flags do not say, and what is searched how.

    Raises:
        UserError: neither embeddings nor an index is given, or an option contradicts the passages'.
    """
    embeddings = embeddings_folder(args.passages_embeddings)
    index_path = Path(args.index_path) if args.index_path else None
    if not embeddings and not index_path:
        raise UserError("--passages_embeddings FOLDER (passage_embed makes it) or --index_path FILE is needed")
    if not embeddings and not index_path.exists():
        raise UserError(f"{index_path}: no such index; --passages_embeddings and --index_type make one there")
    if not index_path and args.index_type != "Flat":
        index_path = embeddings / f"{args.index_type.replace('/', '_')}.faiss"
    search = SearchOptions(
        embeddings, args.index_type, index_path, args.search_params, args.max_memory * GIB, bool(args.overwrite)
    )
    return encode_as_passages(args, embeddings or index_path), search


def encode_as_passages(args: argparse.Namespace, place: Path) -> EncoderOptions:
    """The flags of the encoder; what they leave open is as it was for the passages in `place`.

    Raises:
        UserError: a flag contradicts the passages'.
    """
    made_with = embedding_settings(place)
    passages = made_with["flags"] if made_with else SHARED
    no_title = passages.get("no_title", False) if args.no_title is None else args.no_title
    options = encoder_options(vars(args), passages, prefix=args.query_prefix, no_title=no_title)
    for name, value in {**options.shared, "no_title": no_title}.items():
        if made_with and value != passages.get(name, value):
            raise UserError(f"--{name} {value}: the passages in {place} were embedded with {passages[name]}")
    encoder = identity(weights_path(args.model_name_or_path))
    if made_with and encoder != made_with["inputs"]["model_name_or_path"]:
        logger.warning("%s was embedded with another encoder than %s; right only for encoders trained as a pair",
                       place, args.model_name_or_path)  # fmt: skip
    return options


def question_files(patterns: Iterable[str]) -> list[Path]:
    """The files that names, globs and folders (their .jsonl and .json) mean, in order.

    Raises:
        UserError: one means nothing.
    """
    files = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(file for ending in ("*.jsonl", "*.json") for file in path.glob(ending))
            found = [file for file in found if not file.name.endswith((".settings.json", RECALLS))]
        else:
            found = [path] if path.exists() else sorted(map(Path, glob.glob(pattern)))
        if not found:
            raise UserError(f"--data_path {pattern}: no such file, folder with .jsonl or .json files, or match")
        files += found
    return list(dict.fromkeys(files))


def output_files(sources: list[Path], folder: Path) -> dict[Path, Path]:
    """Each input and its output: the same name in `folder`.

    Raises:
        UserError: two inputs have one name, or an output would take its input's place.
    """
    outputs: dict[Path, Path] = {}
    for source in sources:
        output = folder / source.name
        keep_apart(output, source)
        if output in outputs.values():
            raise UserError(f"--data_path: two files are named {source.name}, and so would be their outputs")
        outputs[source] = output
    return outputs


def read_questions(path: Path, match: str) -> list[Record]:
    """The questions of a file, with the rule by which their answers are looked for unless it is DPR's."""
    noted = {} if match == "tokens" else {MATCH: match}
    return [{**record, **noted} for record in read_records(path, with_unique_ids(as_question))]


def retrieval_settings(
    store: PassageStore, n_docs: int, encoder: EncoderOptions | None, search: SearchOptions | None
) -> Record:
    """What decides the output, questions apart."""
    if encoder is None:
        return stage_settings("retrieval", {}, ["bm25s"], passages=store.fingerprint, n_docs=n_docs, retriever="bm25")
    inputs = {
        "model_name_or_path": weights_path(encoder.model_name_or_path),
        "passages_embeddings": search.embeddings and shards_fingerprint(open_shards(search.embeddings)),
        "index_path": None if search.embeddings else search.index_path,
    }
    return stage_settings(
        "retrieval",
        inputs,
        ["faiss-cpu", "faiss-gpu"],
        passages=store.fingerprint,
        n_docs=n_docs,
        retriever="dense",
        **encoder.shared,
        query_prefix=encoder.prefix,
        max_length=encoder.max_length,
        dtype=encoder.computed_in,
        index_type=search.index_type,
        search_params=search.search_params,
    )


def find(
    questions: list[str],
    store: PassageStore,
    k: int,
    encoder: EncoderOptions | None,
    search: SearchOptions | None,
    workers: WorkerOptions,
) -> TopK:
    """The k best passages of each question."""
    if k > len(store):
        logger.warning("--n_docs %d: the corpus has %d passages", k, len(store))
    if encoder is None:
        from gainRAG.retrieval_engine.bm25 import search_bm25

        return search_bm25(questions, store, k)
    dim = encoder_dim(encoder.model_name_or_path)
    shards = open_shards(search.embeddings) if search.embeddings else []
    check_shards(shards, dim, store)
    if search.index_path:
        index = load_or_build_index(search, shards, store, dim)
        return search_index(encode_questions(questions, encoder), index, k, store.empty)
    if gpu_count() and k >= GPU_K:
        raise UserError(f"--n_docs {k}: FAISS finds fewer than {GPU_K} on a GPU")
    devices = max(1, gpu_count()) if workers.num_workers == 1 else 1
    share = search.max_bytes / workers_a_machine(workers)  # as many as may meet on one: so all search alike
    chunk_rows(len(questions), dim, min(k, len(store)), share, devices)  # refuses before the encoder loads
    queries = encode_questions(questions, encoder)
    return search_shards(queries, shards, store, k, share, workers=workers)


def encode_questions(questions: list[str], options: EncoderOptions) -> np.ndarray:
    """The questions' vectors, float32, (questions, dim)."""
    encoder = Encoder(options)
    with ProgressBar(total=len(questions), desc="questions", unit="question") as bar:
        return encoder.encode(list(map(options.question_text, questions)), bar.update)


def write_found(
    records: dict[Path, list[Record]], found: TopK, store: PassageStore, outputs: dict[Path, StageOutput]
) -> None:
    """Writes each question with its `ctxs`, file after file."""
    without = int((found.positions < 0).all(axis=1).sum())
    if without:
        logger.warning("%d questions have no passage, as they share no word with any", without)
    rows = zip(found.scores, found.positions, strict=True)
    for source, questions in records.items():
        with_found = list(zip(questions, itertools.islice(rows, len(questions)), strict=True))
        for chunk in outputs[source].remaining(with_found, CHUNK, source.name):
            outputs[source].append([{**record, "ctxs": contexts(store, record, *row)} for record, row in chunk])


def contexts(store: PassageStore, record: Record, scores: np.ndarray, positions: np.ndarray) -> list[Record]:
    """A question's `ctxs`, best first; places that the search left empty are left out."""
    matcher = AnswerMatcher(record["answers"], match_rule(record))
    found = []
    for score, position in zip(scores.tolist(), positions.tolist(), strict=True):
        if position >= 0:
            passage = store[position]
            found.append({**passage, "score": score, "hasanswer": matcher.matches(passage["text"])})
    return found


def report(results: dict[str, Iterable[Record]], folder: Path, n_docs: int) -> None:
    """Prints Recall@k, for k up to `n_docs`, of each file as a table, and adds it to recall.json."""
    ks = [k for k in KS if k <= n_docs]
    recalls = read_recalls(folder)
    width = max(map(len, [*results, "Recall@k, %"]))
    print(f"{'Recall@k, %':{width}}" + "".join(f"{k:>8}" for k in ks))
    for name, records in results.items():
        recall = recall_at(records, ks)
        recalls[name] = {str(k): fraction for k, fraction in recall.items()}
        print(f"{name:{width}}" + "".join(f"{100 * fraction:8.2f}" for fraction in recall.values()))
    write_json(folder / RECALLS, recalls)


def read_recalls(folder: Path) -> Record:
    """The Recall@k that earlier runs left in the folder, by file.

    Raises:
        UserError: their file is no such thing.
    """
    path = folder / RECALLS
    recalls = parse_json(path.read_bytes(), str(path)) if path.exists() else {}
    if not isinstance(recalls, dict):
        raise UserError(f"{path}: wanted an object of Recall@k by file; remove it")
    return recalls


if __name__ == "__main__":
    run_stage(main)
