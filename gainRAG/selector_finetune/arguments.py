"""Arguments of the selector's training: FlagEmbedding's and transformers', checked before anything loads.

Added to theirs: --eval_data, --group_sampling, --teacher_temperature, and the two flags of the published command
that transformers 5 no longer knows, --warmup_ratio and --overwrite_output_dir.
"""

import dataclasses
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from FlagEmbedding.abc.finetune.reranker import AbsRerankerDataArguments, AbsRerankerModelArguments

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import parse_json
from gainRAG.common.models import weights_path
from gainRAG.common.settings import TRAINING_BATCH, versions

logger = logging.getLogger(__name__)

LOWER_IS_BETTER = ("loss", "gain_regret")
DEEPSPEED_BATCHES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@dataclass
class ModelArguments(AbsRerankerModelArguments):
    """The cross-encoder to start from: a name of gainRAG's model table, a folder or a hub id."""

    def __post_init__(self) -> None:
        if self.model_type != "encoder":
            raise UserError(f"--model_type {self.model_type}: the selector is a cross-encoder; leave the flag out")
        self.model_name_or_path = weights_path(self.model_name_or_path)


@dataclass
class DataArguments(AbsRerankerDataArguments):
    """The groups to learn from. FlagEmbedding's options that would silently do nothing here are refused."""

    train_data: list[str] = field(
        default=None,
        metadata={"help": "One or more .jsonl or .json: query, pos, neg, pos_scores, neg_scores each.", "nargs": "+"},
    )
    eval_data: str | None = field(
        default=None,
        metadata={
            "help": "Held-out groups in the same format, measured each epoch by default: "
            "top1_agreement, gain_regret, ndcg@10, over all passages of a question."
        },
    )
    train_group_size: int = field(
        default=16,
        metadata={
            "help": "Passages a group: a positive one and sampled negatives. A question with fewer has a smaller "
            "group; none is repeated."
        },
    )
    query_max_len: int = field(
        default=512,
        metadata={
            "help": "Tokens; a pair is cut to query_max_len + passage_max_len, or to what the model can read if "
            "that is less. The passage is cut, not the question."
        },
    )
    passage_max_len: int = field(default=512, metadata={"help": "Tokens; see --query_max_len."})
    knowledge_distillation: bool = field(
        default=True, metadata={"help": "Learn from the teacher's scores. The only way the selector learns."}
    )
    group_sampling: str = field(
        default="epoch",
        metadata={
            "help": "epoch: each epoch draws its own negatives, the same for any number of workers, restarts and "
            "GPUs. fixed: every epoch sees the first epoch's.",
            "choices": ["epoch", "fixed"],
        },
    )

    def __post_init__(self) -> None:
        if not self.train_data:
            raise UserError("--train_data is missing; give the .jsonl that data/data2selector.py writes")
        if not self.knowledge_distillation:
            raise UserError(
                "--knowledge_distillation False: without the teacher's scores the loss would only say that one passage "
                "is right and the rest equally wrong, which is not what gain measures; leave the flag out or True"
            )
        for name, least in (("train_group_size", 2), ("query_max_len", 1), ("passage_max_len", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)}: wanted a whole number from {least}")
        used = {*DataArguments.__annotations__, "pad_to_multiple_of"}
        for option in dataclasses.fields(AbsRerankerDataArguments):
            if option.name not in used and getattr(self, option.name) != option.default:
                raise UserError(f"--{option.name} does nothing for a selector; leave it out")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' own, with the published values as defaults and the published command's two retired flags; the traps
    of this training are closed."""

    learning_rate: float = field(default=6e-5, metadata={"help": "The highest, after the warm-up (published: 6e-5)."})
    num_train_epochs: float = field(default=2.0, metadata={"help": "Passes over the groups; 0 only measures."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's, on all but biases and LayerNorm."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Train into --output_dir even if it holds files; its old checkpoint-* folders are deleted."},
    )
    warmup_ratio: float | None = field(
        default=None,
        metadata={"help": "Share of all steps, from 0 to below 1, to warm up in; 0.1 unless --warmup_steps is given."},
    )
    teacher_temperature: float = field(
        default=1.0, metadata={"help": "Divides the teacher's scores before their softmax: above 1 softens the target."}
    )

    def __post_init__(self) -> None:
        if self.warmup_ratio is None:
            self.warmup_ratio = 0.0 if self.warmup_steps else 0.1
        self._check()
        self._take_batches_that_fit()
        if self.warmup_ratio:
            self.warmup_steps = self.warmup_ratio
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it, processes on a CPU train alone and never exchange gradients
        if self.fp16 and not torch.cuda.is_available():
            logger.warning("--fp16 needs a CUDA GPU and there is none: training in float32")
            self.fp16 = False
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
        if self.metric_for_best_model and self.greater_is_better is None:
            self.greater_is_better = self.metric_for_best_model.removeprefix("eval_") not in LOWER_IS_BETTER
        if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
            logger.warning(
                "training on one of %d GPUs; torchrun --nproc_per_node N trains on N", torch.cuda.device_count()
            )
        self.do_train = False  # FlagEmbedding's own check of the output folder does not know --overwrite_output_dir
        super().__post_init__()

    @property
    def n_gpu(self) -> int:
        """At most 1: with more, transformers' DataParallel would cut groups of unequal size apart."""
        return min(1, super().n_gpu)

    def _take_batches_that_fit(self) -> None:
        """Where a former run into this folder ran out of memory, smaller batches; an update sees as many groups."""
        remembered = Path(self.output_dir) / TRAINING_BATCH
        if not self.num_train_epochs or not remembered.is_file() or fixes_batches(self.deepspeed):
            return
        size, found = self.per_device_train_batch_size, parse_json(remembered.read_bytes(), str(remembered))
        fits = found.get("per_device_train_batch_size") if isinstance(found, dict) else None
        if not isinstance(fits, int) or fits < 1:
            raise UserError(f"{remembered}: per_device_train_batch_size is no number from 1; delete the file")
        if size <= fits:
            return
        smaller = largest_part(size, fits)
        self.per_device_train_batch_size = smaller
        self.gradient_accumulation_steps *= size // smaller
        logger.info("%d groups at once, not %d, for which memory ran out: %s remembers it; delete it to try more",
                    smaller, size, remembered)  # fmt: skip

    def _check(self) -> None:
        if not self.output_dir:
            raise UserError("--output_dir is missing; name the folder the trained selector goes to")
        for name in ("learning_rate", "num_train_epochs", "per_device_train_batch_size"):
            value, may_be_zero = getattr(self, name), name == "num_train_epochs"  # 0 epochs: only measured
            if not (0 < value < float("inf") or (may_be_zero and value == 0)):
                raise UserError(f"--{name} {value}: wanted a finite number above 0")
        if not 0 <= self.warmup_ratio < 1:
            raise UserError(f"--warmup_ratio {self.warmup_ratio}: wanted a share from 0 to below 1")
        if self.warmup_ratio and self.warmup_steps:
            raise UserError("--warmup_ratio and --warmup_steps say the same in two ways; give one")
        if not self.teacher_temperature > 0:
            raise UserError(f"--teacher_temperature {self.teacher_temperature}: wanted a number above 0")
        if self.deepspeed:
            _check_deepspeed(self.deepspeed)


def largest_part(size: int, limit: int) -> int:
    """The largest number up to `limit` that divides `size`."""
    return next(part for part in range(limit, 0, -1) if size % part == 0)


def read_deepspeed(config: str | dict | None) -> dict:
    """--deepspeed: a file's name, JSON itself, or nothing."""
    if isinstance(config, str):
        return parse_json(config.encode() if config.startswith("{") else Path(config).read_bytes(), "--deepspeed")
    return config or {}


def fixes_batches(config: str | dict | None) -> bool:
    """Whether a DeepSpeed configuration sets the sizes of batches, which then must not change."""
    return any(read_deepspeed(config).get(key, "auto") != "auto" for key in DEEPSPEED_BATCHES)


def _check_deepspeed(config: str | dict) -> None:
    if not versions(["deepspeed"]):  # importing it proves nothing: the repository has a folder of that name
        raise UserError("--deepspeed: not installed; pip install -e '.[train]', or leave the flag out")
    if isinstance(config, str) and not config.startswith("{") and not Path(config).is_file():
        raise UserError(f"--deepspeed {config}: no such file; the repository's deepspeed/ folder holds four")
    if "LOCAL_RANK" not in os.environ:
        raise UserError("--deepspeed needs a launcher: torchrun --nproc_per_node 1 -m selector_finetune ...")
    # An optimiser that the file names is compiled with ninja, which lies beside this Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if not torch.accelerator.is_available():
        import deepspeed.ops

        # Else DeepSpeed compiles for a minute or two, and wants g++ and ninja, what it takes for inference alone.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
