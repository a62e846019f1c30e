"""Keeps what training changed in a selector as a LoRA adapter over its start: 3 MB in place of 90 for MiniLM.

Each linear layer's change is cut to its --rank largest singular values (Eckart and Young, 1936); the one-logit head is
kept whole. Changes of embeddings, biases and layer norms are left out. The log names the share of the change that the
adapter keeps; measure the adapter itself before you publish it:

    cd data && python extract_adapter.py --start MiniLM-selector-start --selector results/evidence/selector \
        --output_dir my_adapter --merged_dir my_selector
"""

import argparse
import logging
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

from gainRAG.common.cli import UserError, positive_int, run_stage, stage_parser
from gainRAG.common.models import explain_load_errors, merge_adapter, weights_path

logger = logging.getLogger("extract_adapter")


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("--start", required=True, help="what training started from: a known name, a folder, a hub id")
    parser.add_argument("--selector", required=True, help="folder of the trained selector")
    parser.add_argument("--rank", type=positive_int, default=32, help="singular values kept of each layer's change")
    parser.add_argument("--output_dir", required=True, type=Path, help="the adapter's folder, as peft writes it")
    parser.add_argument("--merged_dir", type=Path, default=None, help="also write start and adapter as one model")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    start, trained = map(load, (args.start, args.selector))
    adapted, kept = make_adapter(start, trained, args.rank)
    adapted.save_pretrained(args.output_dir)
    logger.info(
        "%s: rank %d keeps %.1f %% of the squared change of the linear layers", args.output_dir, args.rank, 100 * kept
    )
    if args.merged_dir:
        merge_adapter(Path(weights_path(args.start)), args.output_dir, args.merged_dir)


def load(name: str):
    """A cross-encoder with one logit, in float32."""
    path = weights_path(name)
    with explain_load_errors(name):
        return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)


def make_adapter(start, trained, rank: int) -> tuple[PeftModel, float]:
    """The start with an adapter that makes it nearly the trained model, and the share of the squared change it keeps.

    Args:
        start, trained: two models of one architecture.

    Raises:
        UserError: they differ in their layers or shapes.
    """
    changed = dict(trained.named_modules())
    config = LoraConfig("SEQ_CLS", r=rank, lora_alpha=rank, target_modules="all-linear", modules_to_save=["classifier"])
    model = get_peft_model(start, config)
    total = kept = 0.0
    for name, layer in model.base_model.model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        other = changed.get(name)
        if other is None or other.weight.shape != layer.weight.shape:
            raise UserError(f"layer {name}: the selector has none of this shape; it was not trained from this start")
        left, values, right = torch.linalg.svd(other.weight.detach() - layer.weight.detach(), full_matrices=False)
        root, below, above = (
            values[:rank].sqrt(),
            layer.lora_A["default"].weight.data,
            layer.lora_B["default"].weight.data,
        )
        below.zero_()[: len(root)] = root[:, None] * right[:rank]
        above.zero_()[:, : len(root)] = left[:, :rank] * root
        total += float(values.square().sum())
        kept += float(values[:rank].square().sum())
    head = model.base_model.model.classifier.modules_to_save["default"]
    head.load_state_dict(trained.classifier.state_dict())
    for name, weight in model.named_parameters():
        if "default" in name:
            weight.data = weight.data.half()
    return model, kept / total if total else 1.0


if __name__ == "__main__":
    run_stage(main)
