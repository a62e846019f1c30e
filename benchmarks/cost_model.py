"""What the paper's run must compute, move and hold, and the hours that follow from a device's rates; needs no GPU.

    python benchmarks/cost_model.py
    python benchmarks/cost_model.py --share 0.54 --json cost.json

This project's own tensor code runs on the meta device, which computes shapes alone, at one batch of the default
budget: counting.py counts its FLOPs and the bytes alive at once. A stage is so many of these batches. Every hour is
predicted, none is measured. Attention's scores count in the peaks, which fused kernels never hold; CUDA's own memory
does not. LENGTHS are assumed, not counted.
"""

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from counting import Count, count, weight_bytes
from gain import LLAMA3_8B
from selector import RERANKER_BASE

from gainRAG.common.batching import GPU_DECODING_TOKENS, LLM_TOKENS
from gainRAG.common.cli import fraction, run_stage, stage_parser
from gainRAG.common.jsonl import write_json
from gainRAG.llm_inference.decoding import _Batch, share_heads
from gainRAG.llm_supervision.answer_tree import AnswerTree, BranchedModel, Row
from gainRAG.retrieval_engine.modeling import GPU_BATCH, Encoder
from gainRAG.selector_engine.selector import BATCH_TOKENS, Selector

GB = 10**9
PASSAGES, TRAINING, EVALUATION, GROUPS = 21_015_324, 23_778, 28_525, 10_000
METHODS = 5  # of the main table
SHOWN = 4_610  # questions of the ablation (2 methods more) and the top-k table (3 methods, 1 to 5 passages)
DIM = 768
TRAINING_STATE = 16  # bytes a parameter in fp16 under DeepSpeed: weight, gradient 2 each; master weight, two moments 4
SEARCH_ROWS, SEARCH_RESULTS = 1 << 18, 101


@dataclass(frozen=True)
class Device:
    """Rates of a device: dense 16-bit and float32 FLOP/s, bytes/s; memory in bytes; where the numbers are from."""

    half: float
    single: float
    bandwidth: float
    memory: float
    source: str


DEVICES = {  # data sheets: NVIDIA's, as published pages repeat them; dense, with float32 sums
    "H100": Device(750e12, 67e12, 3.0e12, 80 * GB, "measured; float32: data sheet of the SXM"),
    "A100": Device(312e12, 19.5e12, 2.039e12, 80 * GB, "data sheet of the SXM with 80 GB"),
    "RTX 4090": Device(165.2e12, 82.6e12, 1.008e12, 24 * GB, "data sheet"),
}  # fmt: skip


@dataclass(frozen=True)
class Lengths:
    """Assumed mean tokens; the gain's prompt is that of benchmarks/gain.py.

    Attributes:
        passage: of the encoder.
        pair: question and passage of the selector.
        prompt, start, question: a prompt with a passage, what all prompts begin with, a prompt without passage.
        answer: a gold answer.
        pseudo, prediction: texts that the LLM writes; the rows of a batch are taken to end together.
        limit: new tokens that a batch reserves, as scripts/paths.sh sets.
    """

    passage: int = 145
    pair: int = 170
    prompt: int = 245
    start: int = 40
    question: int = 100
    answer: int = 4
    pseudo: int = 150
    prediction: int = 20
    limit: int = 512


LENGTHS = Lengths()


@dataclass(frozen=True)
class Cost:
    """What a stage takes.

    Attributes:
        dtype: of the products.
        parts: (FLOPs, bytes moved) of what runs one after the other: reading prompts, writing texts.
        peak: most bytes held at once, weights included.
        flags: that make it so small; none for the defaults.
    """

    stage: str
    size: str
    dtype: str
    parts: tuple[tuple[float, float], ...]
    peak: float
    flags: str = ""

    @property
    def flops(self) -> float:
        return sum(flops for flops, _ in self.parts)

    @property
    def moved(self) -> float:
        return sum(moved for _, moved in self.parts)

    def hours(self, device: Device, share: float) -> float:
        """Each part is bound by what takes longer, computing or moving, at this share of the device's rates."""
        rate = device.single if self.dtype == "float32" else device.half
        seconds = sum(max(flops / rate, moved / device.bandwidth) for flops, moved in self.parts)
        return seconds / share / 3600


@cache
def make_llm(dtype: torch.dtype, decodes: bool = False):
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA3_8B), dtype=dtype).eval()
    if decodes:
        share_heads(model)
    return model


def make_reranker(dtype: torch.dtype):
    from transformers import AutoModelForSequenceClassification, XLMRobertaConfig

    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(XLMRobertaConfig(**RERANKER_BASE), dtype=dtype)


class UncheckedModel(BranchedModel):
    def _check(self) -> None:
        """No check: it reads values, and the meta device has none."""


def gain_batch(branched: BranchedModel, rows: int, lengths: Lengths) -> None:
    """A batch of the gain: prompts behind their common start, then the answers' logits of a slice."""
    tree = AnswerTree([range(1, 1 + lengths.answer)])
    start = [1] * lengths.start
    row = Row(start + [2] * (lengths.prompt - lengths.start), tree)
    states = branched.hidden_states([row] * rows, branched.prefix(start))
    for first in range(0, rows, 16):
        branched.logits(torch.stack(states[first : first + 16]))


@cache
def measure_gain(dtype: torch.dtype, rows: int) -> Count:
    return count(lambda: gain_batch(UncheckedModel(make_llm(dtype)), rows, LENGTHS))


def count_gain(stage: str, questions: int, passages: int, dtype: str, flags: str) -> Cost:
    """The questions alone are a further row each, taken as long as the others."""
    model = make_llm(getattr(torch, dtype))
    rows = LLM_TOKENS // (LENGTHS.prompt + LENGTHS.answer - 1 - LENGTHS.start)
    found, weights = measure_gain(model.dtype, rows), weight_bytes(model)
    batches = questions * (passages + 1) / rows
    parts = ((batches * found.flops, batches * weights),)
    return Cost(stage, f"{questions:,} questions x {passages} passages", dtype, parts, weights + found.peak, flags)


class Decoding:
    """A batch of texts: its prompts are read when it is made; `step` writes one token a row."""

    def __init__(self, model, rows: int, prompt: int) -> None:
        start, own = [1] * LENGTHS.start, prompt - LENGTHS.start
        self.batch = _Batch(model, [start + [2 + row] * own for row in range(rows)], LENGTHS.limit)
        size = max(1, LLM_TOKENS // (self.batch.filled - self.batch.prefix))
        parts = [slice(first, first + size) for first in range(0, rows, size)]
        self.tokens = torch.cat([self.batch.read_prompts(part) for part in parts])

    def step(self, filled: int) -> None:
        self.batch.filled = filled
        self.batch.step(self.tokens)


@cache
@torch.inference_mode()
def measure_texts(rows: int, prompt: int, new: int) -> tuple[Count, Count]:
    """Reading the prompts, and the middle one of the steps, whose peak counts no keys and values."""
    model = make_llm(torch.bfloat16, decodes=True)
    reading = count(lambda: Decoding(model, rows, prompt))
    decoding = Decoding(model, rows, prompt)
    return reading, count(lambda: decoding.step(prompt + new // 2))


def count_texts(stage: str, texts: int, prompt: int, new: int, tokens: int) -> Cost:
    """The rows of a batch end together."""
    model = make_llm(torch.bfloat16, decodes=True)
    rows = max(1, tokens // (prompt + LENGTHS.limit))
    reading, step = measure_texts(rows, prompt, new)
    weights, a_position = weight_bytes(model), rows * cache_bytes(model)
    batches = texts / rows
    moved = weights + a_position * (prompt + new / 2)
    parts = ((batches * reading.flops, batches * weights), (batches * new * step.flops, batches * new * moved))
    peak = weights + max(reading.peak, a_position * (prompt + LENGTHS.limit) + step.peak)
    return Cost(stage, f"{texts:,} texts of {new} tokens", "bfloat16", parts, peak)


def cache_bytes(model) -> int:
    """Keys and values of a token."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * size * model.dtype.itemsize


@cache
def count_embedding() -> Cost:
    from transformers import AutoModel, BertConfig

    with torch.device("meta"):
        model = AutoModel.from_config(BertConfig(), dtype=torch.bfloat16).eval()  # Contriever is BERT-base
    encoder = Encoder.__new__(Encoder)
    encoder.model, encoder.options = model, SimpleNamespace(pooling="mean", normalize=False)

    @torch.inference_mode()
    def run() -> None:
        ids = torch.zeros(GPU_BATCH, LENGTHS.passage, dtype=torch.long, device="meta")
        encoder._vectors(ids, torch.ones_like(ids, dtype=torch.bool), None)

    found, batches, weights = count(run), PASSAGES / GPU_BATCH, weight_bytes(model)
    moved = batches * weights + 4 * DIM * PASSAGES
    size, parts = f"{PASSAGES:,} passages", ((batches * found.flops, moved),)
    return Cost("embedding", size, "bfloat16", parts, weights + found.peak)


def count_search() -> Cost:
    """Each vector goes to the device once; scores are written and read once. The disk's rate is left out."""
    questions = TRAINING + EVALUATION
    flops = 2 * questions * PASSAGES * DIM
    moved = 4 * PASSAGES * DIM + 8 * questions * PASSAGES
    peak = 4 * DIM * (SEARCH_ROWS + questions) + 12 * questions * SEARCH_RESULTS + 1.5 * GB  # FAISS's own workspace
    return Cost("exact search", f"{questions:,} questions, {PASSAGES:,} vectors", "float32", ((flops, moved),), peak)


class Encoding(list):
    """Token ids, as the tokenizers library gives them."""

    ids = property(list)


@cache
def count_selection() -> Cost:
    """By the trained selector and by its start; for the ablation by a third one."""
    selector = Selector.__new__(Selector)
    selector.device, selector.model = torch.device("meta"), make_reranker(torch.float16).eval()
    selector.tokenizer = SimpleNamespace(pad_token_id=1, model_input_names=["input_ids", "attention_mask"])
    rows = BATCH_TOKENS["cuda"] // LENGTHS.pair
    pair = Encoding([5] * LENGTHS.pair)
    found = count(lambda: selector._forward([pair] * rows, list(range(rows))))
    questions, weights = 2 * EVALUATION + SHOWN, weight_bytes(selector.model)
    batches = questions * 101 / rows
    size = f"{questions:,} questions x 101 pairs"
    return Cost("selection", size, "float16", ((batches * found.flops, batches * weights),), weights + found.peak)


@cache
def count_training() -> Cost:
    """The published flags: 8 groups of 16 pairs, float16, recomputation, 2 epochs. The ablation trains once more."""
    from gainRAG.selector_finetune.modeling import DistilledCrossEncoder

    base = make_reranker(torch.float16).train()
    options = {"use_reentrant": False, "preserve_rng_state": False}
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model = DistilledCrossEncoder(base, lambda *_, **__: {"input_ids": [5]})  # asked for "Yes" alone
    length = -(-LENGTHS.pair // 8) * 8

    def step() -> None:
        ids = torch.zeros(8 * 16, length, dtype=torch.long, device="meta")
        teacher = torch.zeros(8, 16, device="meta")
        model({"input_ids": ids}, teacher, torch.ones(8, device="meta")).loss.backward()

    found, updates = count(step), 2 * 2 * GROUPS / 8
    weights = sum(weight.numel() for weight in base.parameters())
    moved = updates * 2 * TRAINING_STATE * weights
    size = f"2 times {GROUPS:,} groups x 16 pairs x 2 epochs"
    peak = (TRAINING_STATE - 2) * weights + found.peak  # the gradients are in the peak already
    return Cost("training", size, "float16", ((updates * found.flops, moved),), peak)


def model_costs(small: bool = False) -> list[Cost]:
    """The stages, in the order of the run; `small`: with the flags that a device of 24 GB needs."""
    dtype, flags = ("bfloat16", "--gain_dtype bfloat16") if small else ("float32", "")
    tokens = LLM_TOKENS if small else GPU_DECODING_TOKENS
    question, prompt, three_passages = LENGTHS.question, LENGTHS.prompt, LENGTHS.prompt + 2 * LENGTHS.passage
    pseudo, prediction = LENGTHS.pseudo, LENGTHS.prediction
    return [
        count_embedding(),
        count_search(),
        count_texts("pseudo-passages, training", TRAINING, question, pseudo, tokens),
        count_texts("predictions of the filter", TRAINING * 21, prompt, prediction, tokens),
        count_gain("gains", TRAINING, 21, dtype, flags),
        count_training(),
        count_texts("pseudo-passages, evaluation", EVALUATION, question, pseudo, tokens),
        count_selection(),
        count_texts("answers, 5 methods", METHODS * EVALUATION, prompt, prediction, tokens),
        count_texts("answers of ablation and top-k", 17 * SHOWN, three_passages, prediction, tokens),
        count_gain("gains of the picks (`GAINS=1`)", EVALUATION, 101, dtype, flags),
    ]


def total_hours(costs: list[Cost], device: Device, share: float) -> float:
    """Without embedding, whose vectors can be downloaded, and without GAINS=1, which is not the default."""
    return sum(cost.hours(device, share) for cost in costs if cost.stage != "embedding" and "GAINS" not in cost.stage)


def table(full: list[Cost], small: list[Cost], share: float) -> str:
    """The table of docs/cluster.md, of what `model_costs` gives without and with `small`."""
    lines = [
        "| stage | size | PFLOP | TB moved | peak GB | H100 hours | A100 hours | RTX 4090: GB | hours | flags | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cost, less in zip(full, small, strict=True):
        hours = [cost.hours(DEVICES[name], share) for name in ("H100", "A100")]
        cells = [cost.stage, f"{cost.size}, {cost.dtype}", f"{cost.flops / 1e15:,.0f}", f"{cost.moved / 1e12:,.1f}"]
        cells += [f"{cost.peak / GB:.1f}", *(f"{value:.2f}" for value in hours), f"{less.peak / GB:.1f}"]
        flags = f"`{less.flags}`" if less.flags else ""
        cells += [f"{less.hours(DEVICES['RTX 4090'], share):.2f}", flags, "*predicted*"]
        lines.append("| " + " | ".join(cells) + " |")
    h100, a100 = (total_hours(full, DEVICES[name], share) for name in ("H100", "A100"))
    lines.append(f"| total, without embedding and `GAINS=1` | | | | | {h100:.1f} | {a100:.1f} | | "
                 f"{total_hours(small, DEVICES['RTX 4090'], share):.1f} | | *predicted* |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--share", type=fraction, default=0.5, help="share of the device's rates that is reached")
    parser.add_argument("--json", type=Path, help="write the stages' costs, and the hours on each device, to this file")
    args = parser.parse_args()
    full = model_costs()
    print(table(full, model_costs(small=True), args.share))
    if args.json:
        rows = [asdict(cost) | {"hours": {name: cost.hours(device, args.share) for name, device in DEVICES.items()},
                "kind": "predicted"} for cost in full]  # fmt: skip
        write_json(args.json, {"share": args.share, "stages": rows})


if __name__ == "__main__":
    run_stage(main)
