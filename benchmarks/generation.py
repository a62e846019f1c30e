"""How much faster the hf engine decodes pseudo-passages than transformers' `generate` on plain batches.

    python benchmarks/generation.py --data_path results/demo/retrieved/demo_test.jsonl
    python benchmarks/generation.py --data_path results/demo/retrieved/demo_test.jsonl --dtype bfloat16

Both write greedily for the same questions in one process, from the same weights; in float32 the texts must be the
same. The plain way is left-padded batches of --plain_batch_tokens, sorted by length, without packed weights.
"""

import argparse
import json
from pathlib import Path

import torch
from gain import timed

from gainRAG.common.batching import BatchBudget
from gainRAG.common.cli import input_file, positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import read_records, write_json
from gainRAG.common.models import DTYPES, pick_device, weights_path
from gainRAG.common.schemas import as_question
from gainRAG.llm_inference.build_prompts import PromptBuilder, encode_prompts
from gainRAG.llm_inference.engine import EngineOptions
from gainRAG.llm_inference.inference_hf import HFEngine
from gainRAG.llm_inference.written_text import decode_texts
from gainRAG.prompts import Prompts


def arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", type=input_file, required=True, help="questions, as JSON lines")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", help="name, folder or hub id of the LLM")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the first GPU, else the CPU)")
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES), help="the weights' number format")
    parser.add_argument("--questions", type=positive_int, default=150, help="questions, from the file's start")
    parser.add_argument("--max_new_tokens", type=positive_int, default=48, help="longest text in tokens")
    parser.add_argument("--max_batch_tokens", type=positive_int, default=16384, help="tokens a batch of the engine")
    parser.add_argument("--plain_batch_tokens", type=positive_int, default=4096, help="tokens a batch of the plain way")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    return parser.parse_args()


@torch.inference_mode()
def write_plainly(model, tokenizer, prompts: list[str], max_new_tokens: int, budget: BatchBudget) -> list[str]:
    ids = encode_prompts(tokenizer, prompts, chat=True)

    def write(batch: list[int]) -> list[str]:
        inputs = tokenizer.pad({"input_ids": [ids[index] for index in batch]}, return_tensors="pt").to(model.device)
        output = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, top_k=None, top_p=None, temperature=None
        )
        return decode_texts(tokenizer, output[:, inputs.input_ids.shape[1] :].tolist())

    texts = [""] * len(prompts)
    for batch, written in budget.run([len(row) + max_new_tokens for row in ids], write):
        for index, text in zip(batch, written, strict=True):
            texts[index] = text.strip()
    return texts


def main() -> None:
    args = arguments()
    from transformers import AutoModelForCausalLM

    device = pick_device(args.device)
    engine = HFEngine(EngineOptions(args.model, "hf", args.dtype, args.device, args.max_batch_tokens))
    plain = AutoModelForCausalLM.from_pretrained(weights_path(args.model), dtype=DTYPES[args.dtype]).to(device).eval()
    plain.generation_config = engine.model.generation_config
    texts = Prompts()
    builder = PromptBuilder(texts, texts.task("HotpotQA"), engine.tokenizer)
    records = list(read_records(args.data_path, as_question))[: args.questions]
    prompts = list(dict.fromkeys(map(builder.background, records)))
    budget = BatchBudget(args.plain_batch_tokens)

    engine.generate(prompts[:2], 2)
    write_plainly(plain, engine.tokenizer, prompts[:2], 2, budget)
    longest = args.max_new_tokens
    seconds, ours = timed(lambda: engine.generate(prompts, longest), device)
    plain_seconds, theirs = timed(lambda: write_plainly(plain, engine.tokenizer, prompts, longest, budget), device)
    result = {
        "model": args.model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "texts": len(prompts),
        "tokens": sum(map(len, encode_prompts(engine.tokenizer, ours, chat=True))),
        "seconds": seconds,
        "plain_seconds": plain_seconds,
        "ratio": plain_seconds / seconds,
        "same_texts": sum(one == other for one, other in zip(ours, theirs, strict=True)),
    }
    print(json.dumps(result, indent=2))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    run_stage(main)
