"""Trains the selector: distils the gain of each passage into a cross-encoder (GainRAG, section 3.3).

    cd gainRAG && torchrun --nproc_per_node 1 -m selector_finetune --model_name_or_path bge-reranker-base \\
      --train_data D.jsonl --output_dir O --overwrite_output_dir --deepspeed ../deepspeed/ds_stage0.json \\
      --train_group_size 16 --knowledge_distillation True --query_max_len 512 --passage_max_len 512 \\
      --pad_to_multiple_of 8 --learning_rate 6e-5 --fp16 --num_train_epochs 2 --per_device_train_batch_size 8 \\
      --gradient_accumulation_steps 1 --dataloader_drop_last True --warmup_ratio 0.1 --gradient_checkpointing \\
      --weight_decay 0.01 --logging_steps 1 --save_steps 1000

Reads the groups that data/data2selector.py writes. The one loss is KL(softmax(teacher) || softmax(student)) over a
group. --output_dir becomes an ordinary cross-encoder folder, with train_results.json and trainer_state.json (the
losses) and, given --eval_data, eval_results.json beside the weights. --deepspeed is optional; a CPU trains in float32.
--resume_from_checkpoint auto does as other stages do: a finished training with the same settings is left as it is, an
interrupted one resumes, and one with other settings is refused unless --overwrite_output_dir. A finished one is still
measured where --eval_data is given.
"""

import contextlib
import errno
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch.distributed
from FlagEmbedding.finetune.reranker.encoder_only.base import EncoderOnlyRerankerRunner
from safetensors import SafetensorError
from transformers import HfArgumentParser
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import IntervalStrategy

from gainRAG.common.cli import OneLineErrors, UserError, say_next, stage_parser
from gainRAG.common.models import explain_load_errors, fit_tokenizer, longest_input
from gainRAG.common.settings import TRAINING_BATCH
from gainRAG.selector_finetune.arguments import DataArguments, ModelArguments, TrainingArguments
from gainRAG.selector_finetune.dataset import GroupCollator, GroupDataset, read_groups
from gainRAG.selector_finetune.modeling import DistilledCrossEncoder
from gainRAG.selector_finetune.trainer import SelectorTrainer
from gainRAG.selector_finetune.training_folder import (
    is_finished,
    lock_output_dir,
    prepare_output,
    remember_batch_too_large,
    training_settings,
)

logger = logging.getLogger(__name__)

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
UNWRITTEN = ("unexpected pos", "PytorchStreamWriter", *(f"(os error {number})" for number in NO_SPACE))


def main() -> None:
    """Parses, checks, trains, and parts from the other processes in order."""
    if int(os.environ.get("RANK", 0)):
        logging.getLogger().setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    model_args, data_args, training_args = parse_arguments()
    require_same_batches(training_args)
    with lock_output_dir(training_args):
        settings = training_settings(model_args, data_args, training_args)
        prepare = partial(prepare_output, training_args, settings, model_args.model_name_or_path)
        if not is_finished(training_args, settings):
            SelectorRunner(model_args, data_args, training_args, prepare).run()
        elif data_args.eval_data and training_args.deepspeed:  # which measures only what it trains
            logger.info("not measured again; without --deepspeed it is")
        elif data_args.eval_data:
            model_args.model_name_or_path, training_args.num_train_epochs = training_args.output_dir, 0
            SelectorRunner(model_args, data_args, training_args).run()
    if torch.distributed.is_initialized():
        leave_process_group()


def require_same_batches(args: TrainingArguments) -> None:
    """Refuses processes of which some see a file of smaller batches that others do not: their updates would not match.

    Raises:
        UserError: the processes take batches of different sizes.
    """
    if not torch.distributed.is_initialized():
        return
    sizes = [0] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(sizes, args.per_device_train_batch_size)
    if len({*sizes}) > 1:
        raise UserError(
            f"processes take batches of {sorted({*sizes})} groups: not all of them see {TRAINING_BATCH} in "
            f"{args.output_dir}; give the command again, or delete the file"
        )


def leave_process_group() -> None:
    """Parts from the other processes; on CPUs, which talk by gloo, the process ends here, with exit code 0.

    A thread of gloo may still hold a tensor, and where it lets go of it while Python is taken apart, the process aborts
    after all its work (PyTorch's pull request 179291 describes it).
    """
    torch.distributed.barrier()  # DeepSpeed aborts at exit when one process leaves before another
    backend = torch.distributed.get_backend()
    torch.distributed.destroy_process_group()
    if backend == "gloo":
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class _Parser(OneLineErrors, HfArgumentParser):
    pass


def parse_arguments() -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """The command line as FlagEmbedding's three sets of arguments.

    Raises:
        UserError: a flag is unknown, or its value wrong.
    """
    formatter = stage_parser(__doc__).formatter_class
    parser = _Parser(
        (ModelArguments, DataArguments, TrainingArguments),
        prog="selector_finetune",
        description=__doc__,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    try:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    except (ValueError, FileNotFoundError) as problem:
        raise UserError(" ".join(str(problem).split())) from None
    if data_args.eval_data and training_args.eval_strategy == IntervalStrategy.NO:
        training_args.eval_strategy = IntervalStrategy.EPOCH
    if not (training_args.num_train_epochs or data_args.eval_data):
        raise UserError("--num_train_epochs 0 only measures the model, on --eval_data, which is missing")
    if not data_args.eval_data and training_args.eval_strategy != IntervalStrategy.NO:
        raise UserError(f"--eval_strategy {training_args.eval_strategy.value} needs --eval_data")
    return model_args, data_args, training_args


class SelectorRunner(EncoderOnlyRerankerRunner):
    """FlagEmbedding's runner with this package's data, model and trainer.

    Args:
        model_args, data_args, training_args: the flags.
        prepare: called when the data are found usable, before the model loads.

    Raises:
        UserError: the data is unusable, before the model loads.
    """

    def __init__(
        self,
        model_args: ModelArguments,
        data_args: DataArguments,
        training_args: TrainingArguments,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        logging.getLogger("FlagEmbedding").setLevel(logging.ERROR)
        self.train_groups = read_groups(data_args.train_data)
        self.eval_groups = read_groups([data_args.eval_data]) if data_args.eval_data else None
        check_batches(len(self.train_groups), training_args)
        prepare()
        super().__init__(model_args, data_args, training_args)

    def load_tokenizer_and_model(self):
        """FlagEmbedding's loading, in float32 whatever the checkpoint's type: optimisers need master weights."""
        if self.training_args.deepspeed:
            import deepspeed

            deepspeed.init_distributed()  # ZeRO 3 shards weights as they load, so it must know of all processes by then
        start = self.model_args.model_name_or_path
        with explain_load_errors(start):
            tokenizer, loaded = super().load_tokenizer_and_model()
        if not any(name.endswith("ForSequenceClassification") for name in loaded.model.config.architectures or ()):
            logger.warning("%s is no reranker: its head starts at random; untrained it gives no scores", start)
        fit_tokenizer(tokenizer, loaded.model.config, start)
        base = loaded.model if is_deepspeed_zero3_enabled() else loaded.model.float()
        return tokenizer, DistilledCrossEncoder(base, tokenizer, self.training_args.teacher_temperature)

    def load_train_dataset(self) -> GroupDataset:
        """The sampled groups."""
        args = self.data_args
        wanted = args.query_max_len + args.passage_max_len
        self.max_length = min(wanted, longest_input(self.model.model.config, self.tokenizer) or wanted)
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        if self.max_length <= special:
            raise UserError(
                f"--query_max_len {args.query_max_len} --passage_max_len {args.passage_max_len}: {special} tokens mark "
                "where the two begin and end; wanted more than that in all"
            )
        if self.max_length < wanted:
            logger.info(
                "pairs are cut to the %d tokens that the model can read; query_max_len + passage_max_len is %d",
                self.max_length,
                wanted,
            )
        resample = args.group_sampling == "epoch"
        return self._dataset(self.train_groups, group_size=args.train_group_size, resample=resample)

    def _dataset(self, groups, **options) -> GroupDataset:
        return GroupDataset(groups, self.tokenizer, self.max_length, self.training_args.seed, **options)

    def load_data_collator(self) -> GroupCollator:
        """Padding to the longest pair of a batch."""
        return GroupCollator(self.tokenizer, padding="longest", pad_to_multiple_of=self.data_args.pad_to_multiple_of)

    def load_trainer(self) -> SelectorTrainer:
        """The trainer over both datasets."""
        return SelectorTrainer(
            model=self.model,
            args=self.training_args,
            train_dataset=self.train_dataset,
            eval_dataset=self._dataset(self.eval_groups) if self.eval_groups else None,
            data_collator=self.data_collator,
            processing_class=self.tokenizer,
        )

    def run(self) -> None:
        """Trains and saves the selector, unless no epoch is wanted; measures it if there is something to measure on."""
        if self.training_args.num_train_epochs:
            with explain_full_disk(self.training_args.output_dir), self._explain_full_memory():
                result = self._train()
                require_finite(self.model)
                self.trainer.save_model()
                self.trainer.save_metrics("train", result.metrics)
                self.trainer.save_state()
        if self.eval_groups:
            with self._explain_full_memory():
                self.trainer.save_metrics("eval", self.trainer.evaluate())
        if self.trainer.is_world_process_zero():
            folder = self.training_args.output_dir
            command = f"python -m gainRAG.selector_engine.selector_gainRag --model_name_or_path {folder}"
            say_next("selector", folder, command)

    @contextlib.contextmanager
    def _explain_full_memory(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as problem:
            args = self.training_args
            if self.model.training:
                raise UserError(remember_batch_too_large(args)) from problem
            raise UserError(
                f"{args.device}: its memory does not hold {args.per_device_eval_batch_size} groups of --eval_data, all "
                "of their passages; take a smaller --per_device_eval_batch_size"
            ) from problem

    def _train(self):
        checkpoint = self.training_args.resume_from_checkpoint
        try:
            return self.trainer.train(resume_from_checkpoint=checkpoint)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "--resume_from_checkpoint auto, without --overwrite_output_dir, resumes at the last checkpoint"
            ) from None
        except pickle.UnpicklingError as problem:  # transformers reads a checkpoint's tensors, and runs nothing of it
            if not checkpoint:
                raise
            raise UserError(f"{checkpoint}: the checkpoint is damaged, or holds more than tensors") from problem


def require_finite(model: torch.nn.Module) -> None:
    """Refuses to save what a diverged training leaves.

    Raises:
        UserError: a weight is not a finite number.
    """
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise UserError(
            "the training diverged: there are weights that are not finite numbers; take a lower --learning_rate, a "
            "longer --warmup_ratio, or --bf16 in the place of --fp16"
        )


def check_batches(questions: int, args: TrainingArguments) -> None:
    update = args.per_device_train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size)
    if args.dataloader_drop_last and questions < update:
        raise UserError(
            f"--train_data holds {questions} questions and --dataloader_drop_last drops an update of fewer than "
            f"{update}: leave the flag out, or take a smaller --per_device_train_batch_size (of the scripts: BATCH)"
        )


@contextlib.contextmanager
def explain_full_disk(folder: str) -> Iterator[None]:
    """Explains errors of a full disk, for which torch and safetensors have classes of their own."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as problem:
        full = isinstance(problem, OSError) and problem.errno in NO_SPACE
        if not full and not any(sign in str(problem) for sign in UNWRITTEN):
            raise
        raise UserError(
            f"{folder}: cannot be written, the disk is full or your quota used up; make space and run the same command "
            "with --resume_from_checkpoint True --overwrite_output_dir, whole checkpoints are kept"
        ) from problem
