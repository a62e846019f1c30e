"""Keeps what training changed in a selector as a LoRA adapter over its start: 3 MB in place of 90 for MiniLM.

Of several selectors, trained from one start with other seeds, the mean change is taken; --share keeps only a part of
it: a point on the way from the start to what was trained. Both often pick better than one whole selector (Wortsman et
al., 2022, "Model soups" and "Robust fine-tuning of zero-shot models"); choose the share on dev questions.

Each linear layer's change is cut to --rank such that the layer's outputs on the training pairs move least: the singular
vectors are those of the change times the square root of its inputs' second moment. Biases, layer norms and the
one-logit head are kept whole, changes of embeddings are left out. The log names the share that the adapter keeps of the
squared change of outputs; measure the adapter itself before you publish it:

    cd data && python extract_adapter.py --start MiniLM-selector-start --selector seed_0/selector seed_1/selector \\
        --share 0.6 --train_data run/train.jsonl --output_dir my_adapter --merged_dir my_selector
"""

import argparse
import itertools
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from tqdm import tqdm

from gainRAG.common.cli import UserError, fraction, keep_apart, positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import read_records
from gainRAG.common.models import merge_adapter, weights_path
from gainRAG.common.schemas import as_training_group
from gainRAG.selector_engine.selector import load_selector

logger = logging.getLogger("extract_adapter")

BATCH = 32  # pairs
RIDGE = 1e-4  # of the mean variance of a layer's inputs: directions that the pairs never show count a little


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("--start", required=True, help="what training started from: a known name, a folder, a hub id")
    parser.add_argument(
        "--selector", required=True, nargs="+", help="folder of the trained selector; several: their mean"
    )
    parser.add_argument(
        "--share", type=fraction, default=1.0, help="of the change: 1 keeps all of it, near 0 is the start"
    )
    parser.add_argument("--train_data", required=True, help="the groups that it was trained on; the first are read")
    parser.add_argument("--groups", type=positive_int, default=200, help="so many of them weigh what may be cut")
    parser.add_argument("--max_length", type=positive_int, default=128, help="tokens of a question and passage")
    parser.add_argument("--rank", type=positive_int, default=32, help="directions kept of each layer's change")
    parser.add_argument("--output_dir", required=True, type=Path, help="the adapter's folder, as peft writes it")
    parser.add_argument("--merged_dir", type=Path, help="also write start and adapter as one model")
    parser.add_argument("--mean_dir", type=Path, help="also write the whole change, not cut to --rank")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    for output in (args.output_dir, args.merged_dir, args.mean_dir):
        if output:
            keep_apart(output, weights_path(args.start), *args.selector)
    (start, tokenizer), *found = (
        load_selector(name, torch.device("cpu"), torch.float32) for name in (args.start, *args.selector)
    )
    trained = mix(start, [model for model, _ in found], args.share)
    if args.mean_dir:
        trained.save_pretrained(args.mean_dir)
        tokenizer.save_pretrained(args.mean_dir)
    moments = input_moments(trained, tokenizer, read_pairs(args.train_data, args.groups), args.max_length)
    adapted, kept = make_adapter(start, trained, args.rank, moments)
    adapted.peft_config["default"].base_model_name_or_path = args.start
    adapted.save_pretrained(args.output_dir)
    logger.info("%s: rank %d keeps %.1f %% of the squared change of outputs", args.output_dir, args.rank, 100 * kept)
    if args.merged_dir:
        merge_adapter(Path(weights_path(args.start)), args.output_dir, args.merged_dir)


def read_pairs(path: str, groups: int) -> list[tuple[str, str]]:
    """(question, passage) of the file's first groups."""
    found = itertools.islice(read_records(path, as_training_group), groups)
    return [(group["query"], passage) for group in found for passage in (*group["pos"], *group["neg"])]


@torch.no_grad()
def mix(start, selectors: Sequence, share: float):
    """The first of the selectors, made the start plus `share` of their mean change.

    Raises:
        UserError: they differ in their layers or shapes.
    """
    weights = [dict(model.named_parameters()) for model in selectors]
    for name, weight in start.named_parameters():
        others = [found.get(name) for found in weights]
        if any(other is None or other.shape != weight.shape for other in others):
            raise UserError(f"{name}: a selector has none of this shape; it was not trained from this start")
        others[0].copy_(torch.lerp(weight, torch.stack(others).mean(0), share))
    return selectors[0]


@torch.no_grad()
def input_moments(model, tokenizer, pairs: list[tuple[str, str]], max_length: int) -> dict[str, Tensor]:
    """The mean of x x^T over a linear layer's inputs x, (inputs, inputs), float64; by the layer's name."""
    sums: dict[str, Tensor] = {}
    shown: dict[str, Tensor] = {}

    def note(name: str, layer, inputs: tuple[Tensor]) -> None:
        rows = inputs[0][shown["mask"]] if inputs[0].dim() == 3 else inputs[0]
        rows = rows.double()
        sums[name] = sums.get(name, 0) + rows.T @ rows / len(pairs)

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers]
    for first in tqdm(range(0, len(pairs), BATCH), desc="reading pairs", unit="batch", disable=None):
        batch = pairs[first : first + BATCH]
        encoded = tokenizer(batch, truncation="only_second", max_length=max_length, padding=True, return_tensors="pt")
        shown["mask"] = encoded["attention_mask"].bool()
        model(**encoded)
    for hook in hooks:
        hook.remove()
    return sums


def make_adapter(start, trained, rank: int, moments: dict[str, Tensor]) -> tuple[PeftModel, float]:
    """The start with an adapter that makes it nearly the trained model, and the share of the squared change of outputs
    that it keeps.

    Args:
        start, trained: two models of one architecture.
        moments: of the trained model's inputs, from `input_moments`.

    """
    changed = dict(trained.named_modules())
    kinds = {"target_modules": "all-linear", "modules_to_save": ["LayerNorm"], "bias": "all"}  # and, by peft, the head
    config = LoraConfig("SEQ_CLS", r=rank, lora_alpha=rank, **kinds)
    model = get_peft_model(start, config)
    total = kept = 0.0
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, ModulesToSaveWrapper):
            layer.modules_to_save["default"].load_state_dict(changed[name].state_dict())
        if not hasattr(layer, "lora_A"):
            continue
        other = changed[name]
        below, above, values = cut(other.weight.detach() - layer.weight.detach(), moments[name])
        layer.lora_A["default"].weight.data.zero_()[: len(below)] = below[:rank]
        layer.lora_B["default"].weight.data.zero_()[:, : len(below)] = above[:, :rank]
        if other.bias is not None:
            layer.base_layer.bias.data = other.bias.data
        total += float(values.square().sum())
        kept += float(values[:rank].square().sum())
    for name, weight in model.named_parameters():
        if "default" in name or name.endswith("bias"):
            weight.data = weight.data.half()
    return model, kept / total if total else 1.0


def cut(change: Tensor, moment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of a layer's change, most important directions first.

    Args:
        change: (outputs, inputs).
        moment: of its inputs, (inputs, inputs).

    Returns:
        (k, inputs) and (outputs, k), whose product is the change, and k singular values: the root of the squared change
        of outputs that each direction is worth.
    """
    eased = moment + RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    root = torch.linalg.cholesky(eased)
    left, values, right = torch.linalg.svd(change.double() @ root, full_matrices=False)
    below = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    return (values.sqrt()[:, None] * below).float(), (left * values.sqrt()).float(), values


if __name__ == "__main__":
    run_stage(main)
