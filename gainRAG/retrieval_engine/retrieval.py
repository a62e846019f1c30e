"""Finds the passages for each question: dense (exact, or through a FAISS index) or BM25.

    python -m gainRAG.retrieval_engine.retrieval --model_name_or_path contriever-msmarco --passages psgs_w100.tsv.gz \\
        --passages_embeddings embeddings/ --data_path questions/*.jsonl --output_dir retrieved/ --n_docs 100

Every input file becomes a file of the same name in --output_dir: the question's own fields and `ctxs`, best first,
each {id, title, text, score, hasanswer}. All files are searched in one pass over the embeddings. Recall@k is
printed and kept in recall.json. --plan says what the settings need, and stops.
"""

import argparse
import glob
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gainRAG.common.cli import UserError, positive_float, positive_int, require, run_stage, stage_parser
from gainRAG.common.jsonl import Record, parse_json, read_records, write_json
from gainRAG.common.models import DTYPES, pick_device, pick_dtype, weights_path
from gainRAG.common.parallel import add_worker_arguments, check_worker_arguments
from gainRAG.common.resume import StageOutput, fingerprint, identity, stage_settings, versions
from gainRAG.common.schemas import as_question
from gainRAG.evaluation.recall import KS, AnswerMatcher, recall_at
from gainRAG.retrieval_engine.exact_search import (
    GB,
    GPU_K,
    Best,
    chunk_rows,
    gpu_count,
    search_on_workers,
    search_shards,
)
from gainRAG.retrieval_engine.faiss_index import index_path, load_or_build_index, search_index
from gainRAG.retrieval_engine.modeling import POOLINGS, encoder_dim, encoder_of
from gainRAG.retrieval_engine.normalize import TextOptions
from gainRAG.retrieval_engine.passages import PassageStore, open_store
from gainRAG.retrieval_engine.plan import print_plan
from gainRAG.retrieval_engine.vectors import check_shards, embedding_settings, open_shards, shards_fingerprint

logger = logging.getLogger(__name__)

RECALLS = "recall.json"

# What passages and questions must share, and what it is where the embeddings do not say (Contriever's).
SHARED = {"pooling": "mean", "normalize": False, "lowercase": False, "normalize_text": False}


def main() -> None:
    args = parse_args()
    require("bm25s" if args.retriever == "bm25" else "faiss")
    check_worker_arguments(args)
    if args.num_workers > 1 and (args.retriever != "dense" or args.index_type != "Flat" or args.index_path):
        raise UserError(f"--num_workers {args.num_workers}: only exact search is shared out (dense, Flat)")
    if args.retriever == "dense":
        settle_encoding(args)
        weights_path(args.model_name_or_path)
    if args.plan:
        print_plan(args)
        return
    outputs = output_files(question_files(args.data_path), Path(args.output_dir))
    former_recalls(Path(args.output_dir))
    store = open_store(args.passages, args.passages_store)
    settings = retrieval_settings(args, store)
    writers = {}
    for source, output in outputs.items():
        inputs = {**settings["inputs"], "data_path": fingerprint(source)}
        writers[source] = StageOutput(output, {**settings, "inputs": inputs}, args.overwrite)
    retrieve(args, store, writers)
    report({source.name: writer.records() for source, writer in writers.items()}, Path(args.output_dir), args.n_docs)


def question_files(patterns: Iterable[str]) -> list[Path]:
    """The files that names, globs and folders (their .jsonl and .json) stand for, in order.

    Raises:
        UserError: one stands for nothing.
    """
    files = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(file for ending in ("*.jsonl", "*.json") for file in path.glob(ending))
            found = [file for file in found if not file.name.endswith(".settings.json")]
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
        if output.resolve() == source.resolve():
            raise UserError(f"--output_dir {folder}: the output would replace its own input {source}")
        if output in outputs.values():
            raise UserError(f"--data_path: two files are named {source.name}, and so would be their outputs")
        outputs[source] = output
    return outputs


def settle_encoding(args: argparse.Namespace) -> None:
    """Fills in the encoding options not given from the embeddings' (or the index's) own settings.

    Raises:
        UserError: no embeddings and no index are given, or an option contradicts the passages'.
    """
    place = args.passages_embeddings or args.index_path
    if not place:
        raise UserError("--passages_embeddings FOLDER (passage_embed makes it) or --index_path FILE is needed")
    if not args.passages_embeddings and not Path(args.index_path).exists():
        raise UserError(f"{args.index_path}: no such index; --passages_embeddings and --index_type make one there")
    made_with = embedding_settings(place)
    passages = made_with["flags"] if made_with else SHARED
    for option in SHARED:
        given = getattr(args, option)
        if given is not None and made_with and given != passages[option]:
            raise UserError(f"--{option} {given}: the passages in {place} were embedded with {passages[option]}")
        if given is None:
            setattr(args, option, passages[option])
    encoder = identity(weights_path(args.model_name_or_path))
    if made_with and encoder != made_with["inputs"]["model_name_or_path"]:
        logger.warning("%s was embedded with another encoder than %s; right only for encoders trained as a pair",
                       place, args.model_name_or_path)  # fmt: skip


def retrieval_settings(args: argparse.Namespace, store: PassageStore) -> Record:
    """What decides the output, questions apart."""
    flags = {"passages": store.digest, "n_docs": args.n_docs, "retriever": args.retriever}
    if args.retriever == "bm25":
        return stage_settings("retrieval", {}, **flags, searched_with=versions(["bm25s"]))
    inputs = {
        "model_name_or_path": weights_path(args.model_name_or_path),
        "passages_embeddings": args.passages_embeddings and shards_fingerprint(open_shards(args.passages_embeddings)),
        "index_path": None if args.passages_embeddings else args.index_path,
    }
    return stage_settings(
        "retrieval",
        inputs,
        **flags,
        **{option: getattr(args, option) for option in SHARED},
        query_prefix=args.query_prefix,
        max_length=args.max_length,
        dtype=str(pick_dtype(args.dtype, pick_device(args.device))).removeprefix("torch."),
        index_type=args.index_type,
        search_params=args.search_params,
        searched_with=versions(["faiss-cpu", "faiss-gpu"]),
    )


def retrieve(args: argparse.Namespace, store: PassageStore, writers: dict[Path, StageOutput]) -> None:
    """Searches for all questions at once, writes file after file, and finishes them together.

    A score's last digits depend on the questions searched for at once. So a run that goes on searches for those of its
    first attempt again, however far the writing got: the bytes are those of a run that was never stopped.
    """
    open_files = {source: writer for source, writer in writers.items() if not writer.complete}
    records = {source: list(read_records(source, as_question)) for source in open_files}
    if any(writer.done < len(records[source]) for source, writer in open_files.items()):
        best = search(args, store, [record["question"] for source in records for record in records[source]])
        found = zip(best.scores, best.positions, strict=True)
        for source, writer in open_files.items():
            for number, record in enumerate(tqdm(records[source], desc=source.name, unit="question")):
                scores, positions = next(found)
                if number >= writer.done:
                    writer.append({**record, "ctxs": contexts(store, record, scores, positions)})
    for writer in open_files.values():
        writer.finish()


def search(args: argparse.Namespace, store: PassageStore, questions: list[str]) -> Best:
    """The best passages of each question."""
    logger.info("%d questions, %d passages", len(questions), len(store))
    if args.n_docs > len(store):
        logger.warning("--n_docs %d: the corpus has %d passages", args.n_docs, len(store))
    if args.retriever == "bm25":
        from gainRAG.retrieval_engine.bm25 import search_bm25

        return search_bm25(questions, store, args.n_docs)
    dim = encoder_dim(args.model_name_or_path)
    shards = open_shards(args.passages_embeddings) if args.passages_embeddings else []
    check_shards(shards, dim, store)
    if path := index_path(args.index_type, args.index_path, args.passages_embeddings):
        index = load_or_build_index(args, path, shards, store, dim)
        return search_index(encoded(args, questions), index, args.n_docs)
    if gpu_count() and args.n_docs >= GPU_K:
        raise UserError(f"--n_docs {args.n_docs}: FAISS finds fewer than {GPU_K} on a GPU")
    max_bytes = args.max_memory * GB
    chunk_rows(np.broadcast_to(np.float32(0), (len(questions), dim)), min(args.n_docs, len(store)), max_bytes)
    work = search_shards if args.num_workers == 1 else partial(search_on_workers, args)
    return work(encoded(args, questions), shards, store, args.n_docs, max_bytes)


def encoded(args: argparse.Namespace, questions: list[str]) -> np.ndarray:
    """The questions' vectors, float32, (questions, dim)."""
    encoder = encoder_of(args)
    options = TextOptions(args.lowercase, args.normalize_text, query_prefix=args.query_prefix)
    texts = [options.query(question) for question in questions]
    with tqdm(total=len(texts), desc="questions", unit="question") as bar:
        return encoder.encode(texts, bar.update)


def contexts(store: PassageStore, record: Record, scores: np.ndarray, positions: np.ndarray) -> list[Record]:
    """A question's `ctxs`, best first; places that the search left empty are left out."""
    matcher = AnswerMatcher(record["answers"])
    found = []
    for score, position in zip(scores.tolist(), positions.tolist(), strict=True):
        if position >= 0:
            passage = store[position]
            found.append({**passage, "score": score, "hasanswer": matcher.matches(passage["text"])})
    return found


def report(results: dict[str, Iterable[Record]], folder: Path, n_docs: int) -> None:
    """Prints Recall@k, for k up to `n_docs`, of each file as a table, and adds it to recall.json."""
    ks = [k for k in KS if k <= n_docs]
    recalls = former_recalls(folder)
    width = max(map(len, [*results, "Recall@k, %"]))
    print(f"{'Recall@k, %':{width}}" + "".join(f"{k:>8}" for k in ks))
    for name, records in results.items():
        recall = recall_at(records, ks)
        recalls[name] = {str(k): share for k, share in recall.items()}
        print(f"{name:{width}}" + "".join(f"{100 * share:8.2f}" for share in recall.values()))
    write_json(folder / RECALLS, recalls)


def former_recalls(folder: Path) -> Record:
    """The Recall@k that earlier runs left in the folder, by file.

    Raises:
        UserError: their file is no such thing.
    """
    path = folder / RECALLS
    recalls = parse_json(path.read_bytes(), str(path)) if path.exists() else {}
    if not isinstance(recalls, dict):
        raise UserError(f"{path}: wanted an object of Recall@k by file; remove it")
    return recalls


def parse_args() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", default="contriever-msmarco", help="encoder: a known name, a folder or a hub id")
    add("--passages", required=True, help="corpus: psgs_w100.tsv, .tsv.gz, .jsonl or .jsonl.gz")
    add("--passages_store", help="folder for the passage store; default: beside the corpus")
    add("--passages_embeddings", help="folder of embeddings: passage_embed's, or Contriever's passages_00, ...")
    add("--data_path", nargs="+", required=True, help="question files, globs or folders")
    add("--output_dir", required=True, help="folder for the results: one file an input, of the same name")
    add("--n_docs", type=positive_int, default=100, help="passages a question")
    add("--retriever", choices=["dense", "bm25"], default="dense", help="vectors, or words (needs bm25s)")
    add("--index_type", default="Flat", help="Flat: exact; else a FAISS factory string, for example IVF4096,PQ64")
    add("--index_path", help="FAISS index to use, or to make; default: beside the embeddings")
    add("--search_params", default="", help="parameters of the FAISS index, for example nprobe=64")
    add("--max_memory", type=positive_float, default=8.0, help="GB that exact search and index training may take")
    add("--plan", action="store_true", help="print passages, vectors, memory and disk for these settings, and stop")
    add("--pooling", choices=POOLINGS, help="default: as the passages were embedded, else mean")
    add("--normalize", action="store_const", const=True, help="vectors of length 1; default: as the passages")
    add("--lowercase", action="store_const", const=True, help="lower-case questions; default: as the passages")
    add("--normalize_text", action="store_const", const=True, help="as in passage_embed; default: as the passages")
    add("--query_prefix", default="", help='put before every question, for example "query: " for E5')
    add("--max_length", type=positive_int, default=512, help="tokens a question is cut to")
    add("--batch_size", type=positive_int, help="questions a forward pass; default: 256 on a GPU, 1024 tokens on a CPU")
    add("--device", help="cpu, cuda or cuda:N for the encoder; default: the first GPU, or the CPU")
    add("--dtype", choices=["auto", *DTYPES], default="auto", help="auto: bfloat16 where the hardware has it")
    add("--overwrite", action="store_true", help="start afresh instead of going on or refusing")
    add_worker_arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":
    run_stage(main)
