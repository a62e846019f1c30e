"""Passages a second that an encoder embeds: Encoder against batches in the order given, each waited for.

    python benchmarks/embedding.py --made_up --output_path embedding.json

The model is Contriever's shape with random weights, or --model. Both ways embed the same passages in one process, in
the same number format, best of --repeats; the vectors are compared.
"""

import tempfile
import time

import numpy as np
import torch
from made_up import demo_passages, made_up_passages

from gainRAG.common.cli import positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import write_json
from gainRAG.common.models import dtype_name, pick_device
from gainRAG.common.settings import versions
from gainRAG.retrieval_engine.modeling import GPU_BATCH, Encoder, EncoderOptions


def main() -> None:
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add("--model", help="a known name, folder or hub id; None: Contriever's shape, untrained")
    add("--made_up", action="store_true", help="passages made by code; needs no file from elsewhere")
    add("--tiny", action="store_true", help="with the untrained model: 2 layers, to try the benchmark")
    add("--passages", type=positive_int, help="passages; None: 50,000 on a GPU, 200 on a CPU")
    add("--repeats", type=positive_int, default=2, help="runs of each way, of which the fastest counts")
    add("--output_path", help="also writes the figures to this .json file")
    args = parser.parse_args()
    on_gpu = pick_device().type == "cuda"
    count = args.passages or (50_000 if on_gpu else 200)
    pool = made_up_passages() if args.made_up else demo_passages()
    texts = [f"{pool[row % len(pool)]['title']} {pool[row % len(pool)]['text']}" for row in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or random_encoder(texts[:2000], folder, args.tiny)
        encoder = Encoder(EncoderOptions(path))
        result = measure(encoder, texts, args.repeats)
    result |= {
        "model": args.model or "random weights, Contriever's shape",
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "dtype": dtype_name(encoder.dtype),
        "passages": count,
        "versions": versions(),
    }
    print(result)
    if args.output_path:
        write_json(args.output_path, result)


def random_encoder(texts: list[str], folder: str, tiny: bool) -> str:
    """A BERT of Contriever's shape with random weights; its tokenizer is trained on the texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=8000, special_tokens=special, show_progress=False)
    words.train_from_iterator((text.lower() for text in texts), trainer)
    BertTokenizerFast(vocab=words.get_vocab(), do_lower_case=True, model_max_length=512).save_pretrained(folder)
    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=30522, **(small if tiny else {}))).save_pretrained(folder)
    return folder


@torch.inference_mode()
def in_order(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """As one would write it first: batches as the texts come, tokenised before and read after each."""
    rows = encoder.budget.rows or GPU_BATCH
    vectors = []
    for start in range(0, len(texts), rows):
        padded = encoder._padded(encoder.tokenize(texts[start : start + rows]))
        vectors.append(encoder._vectors(*padded).cpu().numpy())
    return np.concatenate(vectors)


def measure(encoder: Encoder, texts: list[str], repeats: int) -> dict:
    """Passages a second of both ways, their ratio, and the largest relative difference of their vectors."""
    ways = {"Encoder": encoder.encode, "in the order given": lambda some: in_order(encoder, some)}
    seconds, found = dict.fromkeys(ways, float("inf")), {}
    for way in ways.values():
        way(texts[:512])  # warms up
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            found[name] = way(texts)
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    one, other = found.values()
    return {
        "passages_per_second": {name: len(texts) / taken for name, taken in seconds.items()},
        "ratio": seconds["in the order given"] / seconds["Encoder"],
        "largest_relative_difference": float(np.abs(one - other).max() / np.abs(other).max()),
    }


if __name__ == "__main__":
    run_stage(main)
