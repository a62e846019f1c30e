"""Makes the adapter that the demo's selector starts from: an encoder taught to rank, as LoRA weights.

bge-reranker-base, the paper's start, already ranks. Where no such model is at hand, this trains one from an encoder
with sentence-transformers' cross-encoder trainer, in two phases of groups with one right passage each:

  (a) over the corpus: the query is a sentence of a passage with its title replaced by "it", the right passage is the
      rest of that passage, the wrong ones are near neighbours of it (the inverse cloze task of Lee et al. 2019);
  (b) over retrieved questions: the right passage is a retrieved one with an answer, the wrong ones have none. With
      --backgrounds what an LLM wrote on the question is in every group as well, unless it too holds an answer.

    cd data && python prepare_selector_start.py --corpus questions/wiki_summaries.jsonl \\
        --retrieved questions/dev_retrieved.jsonl --output_dir my_selector_start

--adapter trains on from one that is there, on the questions it was trained on, and ends halfway between the two.
--max_groups 64 tries it all in minutes on a CPU. Writes adapter_config.json, adapter_model.safetensors, questions.json
(trained on, held out) and quality.json (hit@1 and hit@3 on the held-out questions).
"""

import argparse
import logging
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gainRAG.common.cli import (
    UserError,
    input_file,
    non_negative_int,
    positive_float,
    positive_int,
    run_stage,
    stage_parser,
)
from gainRAG.common.jsonl import FieldError, Record, output_folder, parse_json, read_records, write_json
from gainRAG.common.models import pick_device, pick_dtype, weights_path
from gainRAG.common.schemas import as_retrieved, passage_text
from gainRAG.evaluation.recall import mark_hits, match_rule, recall_at
from gainRAG.llm_inference.background import pseudo_passage

logger = logging.getLogger("prepare_selector_start")

Group = tuple[str, list[str]]  # a query; its passages, the right one first
NEIGHBOURS = 30  # wrong passages of phase (a) are drawn from so many
CANDIDATES = 20  # retrieved passages that phase (b) and the evaluation look at
SPLIT = ("held_out", "trained_on")
RANK, ALPHA, TARGETS = 32, 64, ["query", "key", "value", "dense"]


def parse_arguments() -> argparse.Namespace:
    flags = stage_parser(__doc__)
    add = flags.add_argument
    add("--corpus", type=input_file, help="passages with title and text, .jsonl, for phase (a)")
    add("--retrieved", type=input_file, required=True, help="dev questions with ctxs, by retrieval.py")
    add("--output_dir", type=Path, required=True, help="folder for the adapter; must not hold one")
    add("--model_name_or_path", default="all-MiniLM-L6-v2", help="the encoder: name, folder or hub id")
    add("--adapter", type=Path, help="train on from this folder's adapter, on its split of the questions")
    add("--backgrounds", type=input_file, help="question and pseudo-passage, written by an LLM (selector_gainRag's)")
    add("--held_out", type=positive_int, default=600, help="questions that are kept for measuring")
    add("--max_groups", type=non_negative_int, default=0,
        help="a trial: at most so many passages, training and held-out questions; 0 takes all")  # fmt: skip
    add("--group_size", type=positive_int, default=8, help="passages a group, one of them right")
    add("--batch_size", type=positive_int, default=16, help="groups a step")
    add("--max_length", type=positive_int, default=192, help="tokens of query and passage together")
    add("--corpus_passes", type=non_negative_int, default=3, help="passes of phase (a)")
    add("--question_passes", type=non_negative_int, default=4, help="passes of phase (b)")
    add("--corpus_learning_rate", type=positive_float, default=5e-4, help="highest of phase (a)")
    add("--question_learning_rate", type=positive_float, default=2e-4, help="highest of phase (b)")
    add("--device", help="cpu or cuda; None takes the GPU if there is one")
    add("--seed", type=int, default=42, help="seed of all draws and of the weights")
    args = flags.parse_args()
    if (args.output_dir / "adapter_config.json").exists():
        raise UserError(f"{args.output_dir}: holds an adapter already; name another folder")
    if args.corpus_passes and not args.corpus:
        raise UserError("--corpus is missing; phase (a) reads it, --corpus_passes 0 leaves that phase out")
    return args


def main() -> None:
    from transformers import set_seed

    args = parse_arguments()
    path, device = weights_path(args.model_name_or_path), str(pick_device(args.device))
    questions = read_usable_questions(args.retrieved, args.group_size)
    corpus = read_corpus(args.corpus, args.group_size) if args.corpus_passes else []
    rng = random.Random(args.seed)
    held_out, trained_on = split_questions(questions, args.retrieved, args.adapter, args.held_out, rng)
    output_folder(args.output_dir)
    if args.backgrounds:
        add_own_passages(trained_on, args.backgrounds)
    if args.max_groups:
        held_out, trained_on = held_out[: args.max_groups], trained_on[: args.max_groups]
        corpus = rng.sample(corpus, min(len(corpus), max(args.max_groups, args.group_size)))
    logger.info("%d passages, %d training and %d held-out questions", len(corpus), len(trained_on), len(held_out))

    set_seed(args.seed)
    model = adapt_encoder(path, args.max_length, device, args.adapter)
    if args.corpus_passes:
        near = near_passages(corpus, path, device)
        passes = [corpus_groups(corpus, near, args.group_size, rng) for _ in range(args.corpus_passes)]
        train(model, sum(passes, []), args.corpus_learning_rate, args.batch_size, args.seed)
    if args.question_passes:
        passes = [question_groups(trained_on, args.group_size, rng) for _ in range(args.question_passes)]
        train(model, sum(passes, []), args.question_learning_rate, args.batch_size, args.seed)
    if args.adapter:
        turn_halfway_back(model, args.adapter)

    quality = {"held_out": len(held_out), "trained_on": len(trained_on), "retrieval": hit_rates(held_out, None)}
    quality["adapter"] = hit_rates(held_out, lambda pairs: model.predict(pairs, show_progress_bar=False).tolist())
    quality["settings"] = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()}
    for config in model.model.peft_config.values():
        config.base_model_name_or_path = args.model_name_or_path  # not the folder where it lies on this machine
    model.model.save_pretrained(args.output_dir)
    wording = {k: [q["question"] for q in kept] for k, kept in zip(SPLIT, (held_out, trained_on), strict=True)}
    write_json(args.output_dir / "questions.json", wording)
    write_json(args.output_dir / "quality.json", quality)
    logger.info("%s: retrieval %s, adapter %s", args.output_dir, quality["retrieval"], quality["adapter"])


# --- reading -----------------------------------------------------------------------------------------------------


def read_usable_questions(path: Path, group_size: int) -> list[Record]:
    """Retrieved questions with an answer among their CANDIDATES and enough passages without.

    Raises:
        UserError: no question is usable.
    """
    usable = []
    for question in read_records(path, as_retrieved):
        question["ctxs"] = mark_hits(question["ctxs"][:CANDIDATES], question["answers"], match_rule(question))
        right, wrong = right_and_wrong(question)
        if right and len(wrong) >= group_size - 1:
            usable.append(question)
    if not usable:
        raise UserError(f"{path}: no question has an answer in its top {CANDIDATES} and {group_size - 1} without")
    return usable


def add_own_passages(questions: list[Record], backgrounds: Path) -> None:
    """Gives each question that the file knows the LLM's passage on it, as `own`."""
    known = {record.get("question"): record.get("background") for record in read_records(backgrounds)}
    for question in questions:
        passage = pseudo_passage(known.get(question["question"]) or "")
        if passage:
            question["own"] = mark_hits([passage], question["answers"], match_rule(question))


def split_questions(
    questions: list[Record], path: Path, adapter: Path | None, held_out: int, rng: random.Random
) -> tuple[list[Record], list[Record]]:
    """Held-out and training questions: as `adapter`, which is trained on, had them, else drawn.

    Raises:
        UserError: one of the two would be empty; names `path`, where the questions come from.
    """
    if adapter:
        file = input_file(adapter / "questions.json")
        lists = parse_json(file.read_bytes(), str(file))
        parts = [[question for question in questions if question["question"] in set(lists[k])] for k in SPLIT]
        if not all(parts):
            raise UserError(f"{path}: holds none of the adapter's held-out or none of its training questions")
        return parts[0], parts[1]
    if len(questions) <= held_out:
        raise UserError(f"{path}: {len(questions)} usable questions, --held_out {held_out} leaves none")
    rng.shuffle(questions)
    return questions[:held_out], questions[held_out:]


def read_corpus(path: Path, group_size: int) -> list[Record]:
    """The corpus as a list of {id, title, text}.

    Raises:
        UserError: an entry has no title or text, or there are fewer than one group needs.
    """
    corpus = list(read_records(path, _titled))
    if len(corpus) < group_size:
        raise UserError(f"{path}: {len(corpus)} passages; a group needs {group_size}")
    return corpus


def _titled(record: Record) -> Record:
    if not isinstance(record.get("title", 0), str | None):
        raise FieldError("title", "missing, or not text")
    if not isinstance(record.get("text"), str) or not record["text"].strip():
        raise FieldError("text", "missing, empty or not text")
    return {**record, "title": record["title"] or ""}


# --- groups -----------------------------------------------------------------------------------------------------


def cloze(passage: Record, rng: random.Random) -> Group | None:
    """A sentence that does not name its subject, and the passage without it; None if there is but one sentence."""
    sentences = re.split(r"(?<=[.!?])\s+(?=\S)", passage["text"].strip())
    if len(sentences) < 2:
        return None
    chosen = rng.randrange(len(sentences))
    subject = re.sub(r"\s*\(.*?\)$", "", passage["title"])
    query = sentences[chosen]
    if subject:
        query = re.sub(rf"(?<!\w){re.escape(subject)}(?!\w)", "it", query, flags=re.IGNORECASE)
    rest = " ".join(sentences[:chosen] + sentences[chosen + 1 :])
    return query, [passage_text({"title": passage["title"], "text": rest})]


def near_passages(corpus: list[Record], encoder_path: str, device: str) -> list[list[int]]:
    """For each passage the positions of its nearest others by the encoder, those of the same title left out."""
    from sentence_transformers import SentenceTransformer, util

    encoder = SentenceTransformer(encoder_path, device=device)
    texts = [passage_text(passage) for passage in corpus]
    vectors = encoder.encode(texts, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=True)
    titles = [passage["title"] for passage in corpus]
    hits = util.semantic_search(vectors, vectors, top_k=min(NEIGHBOURS + 1, len(corpus)))
    others = ([hit["corpus_id"] for hit in found if hit["corpus_id"] != own] for own, found in enumerate(hits))
    return [[n for n in near if not title or titles[n] != title] for near, title in zip(others, titles, strict=True)]


def corpus_groups(corpus: list[Record], near: list[list[int]], size: int, rng: random.Random) -> list[Group]:
    """One pass of phase (a): a fresh sentence and fresh wrong passages for every passage that has enough of them."""
    groups = []
    for passage, others in zip(corpus, near, strict=True):
        group = cloze(passage, rng)
        if group and len(others) >= size - 1:
            wrong = rng.sample(others, size - 1)
            groups.append((group[0], group[1] + [passage_text(corpus[position]) for position in wrong]))
    return groups


def question_groups(questions: list[Record], size: int, rng: random.Random) -> list[Group]:
    """One pass of phase (b): a drawn right passage and drawn wrong ones for every question, the LLM's own if wrong."""
    groups = []
    for question in questions:
        right, wrong = right_and_wrong(question)
        own = [passage for passage in question.get("own", ()) if not passage["hasanswer"]]
        passages = [rng.choice(right), *own, *rng.sample(wrong, size - 1 - len(own))]
        groups.append((question["question"], [passage_text(passage) for passage in passages]))
    return groups


def right_and_wrong(question: Record) -> tuple[list[Record], list[Record]]:
    """The passages of a question that `mark_hits` has marked, those with an answer and those without."""
    split: dict[bool, list[Record]] = {True: [], False: []}
    for passage in question["ctxs"]:
        split[passage["hasanswer"]].append(passage)
    return split[True], split[False]


# --- training and measuring --------------------------------------------------------------------------------------


def adapt_encoder(path: str, max_length: int, device: str, adapter: Path | None = None) -> Any:
    """The encoder as a cross-encoder with one logit, LoRA on all its linear layers and a trained head: new ones, or
    those of `adapter`."""
    from peft import LoraConfig, TaskType, set_peft_model_state_dict
    from sentence_transformers.cross_encoder import CrossEncoder

    model = CrossEncoder(path, num_labels=1, max_length=max_length, device=device)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, exclude_modules=["classifier"],
        modules_to_save=["classifier"],
    )  # fmt: skip
    model.add_adapter(config)
    if adapter:
        missed = set_peft_model_state_dict(model.model, adapter_weights(adapter)).unexpected_keys
        if missed:
            raise UserError(f"{adapter}: does not fit {path}: {missed[0]} has no place there")
    return model


def adapter_weights(adapter: Path) -> dict:
    """The adapter's tensors under the names they have inside the model."""
    from safetensors.torch import load_file

    weights = load_file(adapter / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): tensor for name, tensor in weights.items()}


def turn_halfway_back(model: Any, adapter: Path) -> None:
    """Leaves the model halfway between the adapter it began with and what it became: it keeps what it knew and takes
    up what it learned (Wortsman et al. 2022, robust fine-tuning by averaging weights)."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    before, now = adapter_weights(adapter), get_peft_model_state_dict(model.model)
    set_peft_model_state_dict(model.model, {name: (now[name] + before[name].to(now[name])) / 2 for name in now})


def train(model: Any, groups: list[Group], learning_rate: float, batch_size: int, seed: int) -> None:
    """Softmax cross-entropy over each group, one pass over `groups`; 10 % warm-up, then linear decay to zero.

    ListNet's loss (Cao et al. 2007) takes the softmax of the labels as its target: with -inf for the wrong passages
    that is one for the right passage and nothing for the others.
    """
    import torch
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import ListNetLoss

    if not groups:
        raise UserError("--corpus: no passage has two sentences and enough neighbours of other titles")
    queries, passages = map(list, zip(*groups, strict=True))
    labels = [[0.0] + [float("-inf")] * (len(passages[0]) - 1)] * len(groups)
    data = Dataset.from_dict({"query": queries, "passages": passages, "labels": labels})
    on_gpu = model.device.type == "cuda"

    class Settings(CrossEncoderTrainingArguments):
        """One GPU at most: with several, transformers' DataParallel would cut groups apart."""

        @property
        def n_gpu(self) -> int:
            return min(1, super().n_gpu)

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            output_dir=folder,
            num_train_epochs=1,  # `groups` holds all passes, each drawn anew
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0.1,
            bf16=on_gpu and pick_dtype("auto", model.device) is torch.bfloat16,
            use_cpu=not on_gpu,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            seed=seed,
        )
        CrossEncoderTrainer(model=model, args=settings, train_dataset=data, loss=ListNetLoss(model)).train()


def hit_rates(questions: list[Record], score: Callable[[list[tuple[str, str]]], list[float]] | None) -> Record:
    """Share of questions with an answer in the first 1 and 3 of CANDIDATES passages; unscored: in retrieval's order."""
    ranked = []
    for question in questions:
        passages = question["ctxs"][:CANDIDATES]
        if score:
            scores = score([(question["question"], passage_text(passage)) for passage in passages])
            order = sorted(range(len(passages)), key=lambda position: -scores[position])
            passages = [passages[position] for position in order]
        ranked.append({"ctxs": passages})
    return {f"hit@{k}": round(share, 4) for k, share in recall_at(ranked, (1, 3)).items()}


if __name__ == "__main__":
    run_stage(main)
