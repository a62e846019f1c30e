"""The output folder of a training: what it was made from, whether it is finished, and where it resumes."""

import contextlib
import json
import logging
import re
import shutil
import zipfile
from pathlib import Path

import torch.distributed
from safetensors import SafetensorError, safe_open

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import Record, open_locked, output_folder, write_json
from gainRAG.common.settings import (
    TRAINING_BATCH,
    TRAINING_FINISHED,
    TRAINING_SETTINGS,
    overwrite_hint,
    require_same,
    stage_settings,
)
from gainRAG.selector_finetune.arguments import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    fixes_batches,
    largest_part,
    read_deepspeed,
)

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"checkpoint-[0-9]+")
LOCK = "training.lock"
DATA_FLAGS = ("train_group_size", "query_max_len", "passage_max_len", "group_sampling")
TRAINING_FLAGS = ("learning_rate", "num_train_epochs", "max_steps", "warmup_steps", "weight_decay", "max_grad_norm")
TRAINING_FLAGS += ("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type", "fp16", "bf16", "seed")
TRAINING_FLAGS += ("dataloader_drop_last", "train_sampling_strategy", "teacher_temperature")
RARE_FLAGS = ("lr_scheduler_kwargs", "optim_args", "neftune_noise_alpha", "load_best_model_at_end")  # where given
DEEPSPEED_KEYS = ("optimizer", "scheduler", "gradient_clipping")  # decide an update; the rest only how it is computed


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
    flags |= {name: value for name in RARE_FLAGS if (value := getattr(training, name))}
    config = read_deepspeed(training.deepspeed)
    flags |= {f"deepspeed {key}": config[key] for key in DEEPSPEED_KEYS if config.get(key, "auto") != "auto"}
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * max(1, training.world_size)
    return stage_settings("selector_finetune", inputs, **flags, questions_an_update=batch)


def remember_batch_too_large(args: TrainingArguments) -> str:
    """Has the next run into this folder take half as many groups at once, and gives what to tell the user."""
    size = args.per_device_train_batch_size
    problem = f"{args.device}: its memory does not hold a batch of {size} groups; "
    if size == 1:
        return problem + "--gradient_checkpointing, --bf16, a smaller --train_group_size or --passage_max_len take less"
    fits = largest_part(size, size // 2)
    if fixes_batches(args.deepspeed):
        steps = size // fits * args.gradient_accumulation_steps
        return problem + f"give the file of --deepspeed {fits} a GPU and {steps} steps of accumulation"
    path = Path(args.output_dir) / TRAINING_BATCH
    own = path.with_name(f"{path.name}.{args.process_index}")  # several processes may run out at the same time
    own.write_text(json.dumps({"per_device_train_batch_size": fits}), "utf-8")
    own.replace(path)
    return problem + (
        f"the same command takes {fits} at once now, as many an update as before, and with "
        "--resume_from_checkpoint auto resumes; --gradient_checkpointing saves memory too"
    )


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
    finished, problem = _is_readable(folder), f"{folder} holds a training with other settings"
    if not (folder / TRAINING_SETTINGS).exists():
        return False
    try:
        require_same(folder / TRAINING_SETTINGS, settings, problem, overwrite_hint("--overwrite_output_dir"), finished)
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


def prepare_output(args: TrainingArguments, settings: Record, start: str) -> None:
    """Clears the folder of a training that starts afresh; one that resumes, or only measures, finds it as it was.

    Raises:
        UserError: it holds files that are not to be written over, or the start itself is a checkpoint in it.
    """
    folder = Path(args.output_dir)
    if not args.num_train_epochs:
        return
    if args.resume_from_checkpoint:
        args.resume_from_checkpoint = choose_checkpoint(args, settings)
    if args.resume_from_checkpoint:
        return
    stale = folder.is_dir() and {path.name for path in folder.iterdir()} - {LOCK, TRAINING_SETTINGS, TRAINING_BATCH}
    if stale and not args.overwrite_output_dir:
        raise UserError(
            f"{folder} holds files; --overwrite_output_dir trains into it, --resume_from_checkpoint True resumes"
        )
    place = Path(start).resolve()
    if any(checkpoint.resolve() in (place, *place.parents) for checkpoint in find_checkpoints(folder)):
        raise UserError(
            f"--model_name_or_path {start}: a new training deletes the checkpoints of --output_dir; give another "
            "--output_dir, or resume with --resume_from_checkpoint"
        )
    wait_for_all()  # no process clears the folder while another still looks into it
    if args.should_save:
        (folder / TRAINING_FINISHED).unlink(missing_ok=True)
        for checkpoint in find_checkpoints(folder):
            shutil.rmtree(checkpoint)
        write_json(folder / TRAINING_SETTINGS, settings)
    wait_for_all()


def choose_checkpoint(args: TrainingArguments, settings: Record) -> str | None:
    """The checkpoint to resume from; with --overwrite_output_dir, None (afresh) where there is none."""
    wanted = args.resume_from_checkpoint
    if wanted.lower() != "true":
        if not is_whole(Path(wanted)):
            raise UserError(f"--resume_from_checkpoint {wanted}: holds no trainer_state.json, is no whole checkpoint")
        warn_of_other_settings(Path(wanted).parent / TRAINING_SETTINGS, settings)
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
    finished = (folder / TRAINING_FINISHED).exists()
    require_same(folder / TRAINING_SETTINGS, settings, problem, "--overwrite_output_dir starts afresh", finished)
    return str(whole[-1])


def warn_of_other_settings(former: Path, settings: Record) -> None:
    """A checkpoint named by its path may be trained on with other settings, but not unawares."""
    try:
        require_same(former, settings, f"{former.parent} was trained with other settings", "what is new counts now")
    except UserError as difference:
        logger.warning("%s", difference)


def is_whole(checkpoint: Path) -> bool:
    """Whether it can be read whole, what torch.save wrote, a zip, included."""
    return _is_readable(checkpoint) and all(map(zipfile.is_zipfile, checkpoint.glob("**/*.pt")))


def _is_readable(folder: Path) -> bool:
    """Whether its state, which transformers writes last, is there, and no weights are cut short: a run may have died
    while it saved, and a machine before all had reached the disk."""
    try:
        state = json.loads((folder / TRAINING_FINISHED).read_text("utf-8"))
        for path in folder.glob("*.safetensors"):
            safe_open(path, "pt")
    except (OSError, ValueError, SafetensorError):
        return False
    return bool(state)


def wait_for_all() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def find_checkpoints(folder: Path) -> list[Path]:
    """The trainer's own checkpoints by their steps; a folder of another name (checkpoint-2-best) is the user's."""
    found = [path for path in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))
