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
interrupted one resumes, and one with other settings is refused unless --overwrite_output_dir.
"""

import contextlib
import errno
import json
import logging
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch.distributed
from FlagEmbedding.finetune.reranker.encoder_only.base import EncoderOnlyRerankerRunner
from safetensors import SafetensorError, safe_open
from transformers import HfArgumentParser
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import IntervalStrategy

from gainRAG.common.cli import OneLineErrors, UserError, say_next, stage_parser
from gainRAG.common.jsonl import Record, open_locked, output_folder, write_json
from gainRAG.common.models import explain_load_errors, fit_tokenizer, longest_input
from gainRAG.common.resume import require_same, stage_settings
from gainRAG.selector_finetune.arguments import DataArguments, ModelArguments, TrainingArguments
from gainRAG.selector_finetune.dataset import GroupCollator, GroupDataset, read_groups
from gainRAG.selector_finetune.modeling import DistilledCrossEncoder
from gainRAG.selector_finetune.trainer import SelectorTrainer, find_checkpoints

logger = logging.getLogger(__name__)

SETTINGS = "training.settings.json"
LOCK = "training.lock"
FINISHED = "trainer_state.json"  # written last: where it is, the weights are whole
DATA_FLAGS = ("train_group_size", "query_max_len", "passage_max_len", "group_sampling")
TRAINING_FLAGS = ("learning_rate", "num_train_epochs", "max_steps", "warmup_steps", "weight_decay", "max_grad_norm")
TRAINING_FLAGS += ("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type", "fp16", "bf16", "seed")
TRAINING_FLAGS += ("dataloader_drop_last", "train_sampling_strategy", "teacher_temperature")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
UNWRITTEN = ("unexpected pos", "PytorchStreamWriter", *(f"(os error {number})" for number in NO_SPACE))


def main() -> None:
    """Parses, checks, trains, and leaves the process group in order."""
    if int(os.environ.get("RANK", 0)):
        logging.getLogger().setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    model_args, data_args, training_args = parse_arguments()
    with lock_output_dir(training_args):
        settings = training_settings(model_args, data_args, training_args)
        if not is_finished(training_args, settings):
            SelectorRunner(model_args, data_args, training_args, partial(prepare_output, training_args, settings)).run()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # DeepSpeed aborts at exit when one process leaves before another
            torch.distributed.destroy_process_group()


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


def lock_output_dir(args: TrainingArguments):
    """Holds the output folder against a second training; the first process of several does."""
    folder = output_folder(args.output_dir)
    return open_locked(folder / LOCK, folder, "w") if args.should_save else contextlib.nullcontext()


def training_settings(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> Record:
    """What decides the selector. Of batches it is how many questions an update sees, however they are spread."""
    inputs = {"model_name_or_path": model.model_name_or_path}
    inputs |= {f"train_data {number}": path for number, path in enumerate(data.train_data, 1)}
    flags = {name: getattr(data, name) for name in DATA_FLAGS}
    flags |= {name: getattr(training, name) for name in TRAINING_FLAGS}
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * max(1, training.world_size)
    return stage_settings("selector_finetune", inputs, **flags, questions_an_update=batch)


def is_finished(args: TrainingArguments, settings: Record) -> bool:
    """With --resume_from_checkpoint auto, whether the training wanted is there already; if not, what to do is settled:
    resume, or start afresh.

    Raises:
        UserError: the folder holds a training with other settings, and --overwrite_output_dir is not given.
    """
    folder = Path(args.output_dir)
    if args.resume_from_checkpoint != "auto":
        return False
    args.resume_from_checkpoint = None
    finished, problem = (folder / FINISHED).exists(), f"{folder} holds a training with other settings"
    if not (folder / SETTINGS).exists() or (finished and args.overwrite_output_dir):
        return False
    try:
        require_same(folder / SETTINGS, settings, problem, "--overwrite_output_dir starts afresh", finished)
    except UserError as difference:
        if not args.overwrite_output_dir:
            raise
        logger.info("training starts afresh: %s", difference)
        return False
    if finished:
        logger.info("%s is complete already, with the same settings", folder)
    elif any(map(is_whole, find_checkpoints(folder))):
        args.resume_from_checkpoint = "True"
    args.overwrite_output_dir = True
    return finished


def prepare_output(args: TrainingArguments, settings: Record) -> None:
    folder = Path(args.output_dir)
    if args.resume_from_checkpoint:
        args.resume_from_checkpoint = choose_checkpoint(args, settings)
    if args.resume_from_checkpoint:
        return
    stale = folder.is_dir() and {path.name for path in folder.iterdir()} - {LOCK, SETTINGS}
    if stale and not args.overwrite_output_dir:
        raise UserError(
            f"{folder} holds files; --overwrite_output_dir trains into it, --resume_from_checkpoint True resumes"
        )
    wait_for_all()  # no process clears the folder while another still looks into it
    if args.should_save:
        (folder / FINISHED).unlink(missing_ok=True)
        for checkpoint in find_checkpoints(folder):
            shutil.rmtree(checkpoint)
        write_json(folder / SETTINGS, settings)
    wait_for_all()


def choose_checkpoint(args: TrainingArguments, settings: Record) -> str | None:
    """The checkpoint to resume from; with --overwrite_output_dir, None (afresh) where there is none."""
    wanted = args.resume_from_checkpoint
    if wanted.lower() != "true":
        if not is_whole(Path(wanted)):
            raise UserError(f"--resume_from_checkpoint {wanted}: holds no trainer_state.json, is no whole checkpoint")
        warn_of_other_settings(Path(wanted).parent / SETTINGS, settings)
        return wanted
    try:
        return last_checkpoint(Path(args.output_dir), settings)
    except UserError as problem:
        if not args.overwrite_output_dir:
            raise
        logger.info("training starts afresh: %s", problem)
        return None


def last_checkpoint(folder: Path, settings: Record) -> str:
    """The whole checkpoint with the most steps.

    Raises:
        UserError: there is none, or the training had other settings.
    """
    whole = list(filter(is_whole, find_checkpoints(folder)))
    if not whole:
        raise UserError(f"--resume_from_checkpoint True: {folder} holds no whole checkpoint-* folder")
    problem = f"--resume_from_checkpoint True: {folder} holds a training with other settings"
    finished = (folder / FINISHED).exists()
    require_same(folder / SETTINGS, settings, problem, "--overwrite_output_dir starts afresh", finished)
    return str(whole[-1])


def warn_of_other_settings(former: Path, settings: Record) -> None:
    """A checkpoint named by its path may be trained on with other settings, but not unawares."""
    try:
        require_same(former, settings, f"{former.parent} was trained with other settings", "what is new counts now")
    except UserError as difference:
        logger.warning("%s", difference)


def is_whole(checkpoint: Path) -> bool:
    """Whether its state, which transformers writes last, is there, and no weights are cut short: a run may have died
    while it saved, and a machine before all had reached the disk."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
        for path in checkpoint.glob("*.safetensors"):
            safe_open(path, "pt")
    except (OSError, ValueError, SafetensorError):
        return False
    return bool(state) and all(map(zipfile.is_zipfile, checkpoint.glob("**/*.pt")))  # what torch.save writes is a zip


def wait_for_all() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


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
        with explain_load_errors(self.model_args.model_name_or_path):
            tokenizer, loaded = super().load_tokenizer_and_model()
        fit_tokenizer(tokenizer, loaded.model.config, self.model_args.model_name_or_path)
        base = loaded.model if is_deepspeed_zero3_enabled() else loaded.model.float()
        return tokenizer, DistilledCrossEncoder(base, tokenizer, self.training_args.teacher_temperature)

    def load_train_dataset(self) -> GroupDataset:
        """The sampled groups."""
        args = self.data_args
        wanted = args.query_max_len + args.passage_max_len
        self.max_length = min(wanted, longest_input(self.model.model.config, self.tokenizer) or wanted)
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
            with explain_full_disk(self.training_args.output_dir):
                result = self._train()
                self.trainer.save_model()
                self.trainer.save_metrics("train", result.metrics)
                self.trainer.save_state()
        if self.eval_groups:
            self.trainer.save_metrics("eval", self.trainer.evaluate())
        if self.trainer.is_world_process_zero():
            folder = self.training_args.output_dir
            command = f"python -m gainRAG.selector_engine.selector_gainRag --model_name_or_path {folder}"
            say_next("selector", folder, command)

    def _train(self):
        checkpoint = self.training_args.resume_from_checkpoint
        try:
            return self.trainer.train(resume_from_checkpoint=checkpoint)
        except torch.OutOfMemoryError as problem:
            args = self.training_args
            size, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
            raise UserError(
                f"{args.device}: its memory does not hold a batch of {size} groups; an update sees as many with "
                f"--per_device_train_batch_size {max(1, size // 2)} --gradient_accumulation_steps {2 * steps}, and "
                "--gradient_checkpointing saves memory too"
            ) from problem
        except pickle.UnpicklingError as problem:  # transformers reads a checkpoint's tensors, and runs nothing of it
            if not checkpoint:
                raise
            raise UserError(f"{checkpoint}: the checkpoint is damaged, or holds more than tensors") from problem


def check_batches(questions: int, args: TrainingArguments) -> None:
    batch = args.per_device_train_batch_size * max(1, args.world_size)
    if args.dataloader_drop_last and questions < batch:
        raise UserError(
            f"--train_data holds {questions} questions and --dataloader_drop_last drops a batch of fewer than {batch}: "
            "leave the flag out, or take a smaller --per_device_train_batch_size"
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
