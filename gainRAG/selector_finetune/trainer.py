"""The training loop's additions: a fixed order of questions, evaluation against the teacher, plain saved folders."""

import logging
import shutil
from pathlib import Path

import torch
from FlagEmbedding.finetune.reranker.encoder_only.base import EncoderOnlyRerankerTrainer
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import EvalPrediction, TrainerCallback

from gainRAG.selector_finetune.arguments import TrainingArguments
from gainRAG.selector_finetune.dataset import EpochOrder
from gainRAG.selector_finetune.modeling import distillation_loss
from gainRAG.selector_finetune.training_folder import find_checkpoints

logger = logging.getLogger(__name__)

METRICS = ("loss", "top1_agreement", "gain_regret", "ndcg@10")
COLLAPSED_SPREAD = 1e-5


def ranking_metrics(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """How well each group's scores follow the teacher; the columns of `METRICS`.

    top1_agreement: 1 if the student's first passage is the teacher's best (any of them, if it has several), else 0.
    gain_regret: the teacher's best score less its score of the student's first, in units of log(PPL_CD + 1).
    ndcg@10: linear gains, the teacher's score above its lowest in the group; 1 where the teacher prefers none.

    Args:
        student: (groups, passages), -inf where a group has no passage.
        teacher: likewise.
        temperature: for the loss.

    Returns:
        (groups, 4), float32.
    """
    present = teacher != -torch.inf
    picked = teacher.gather(1, student.argmax(dim=1, keepdim=True)).squeeze(1)
    regret = teacher.amax(dim=1) - picked
    lowest = teacher.masked_fill(~present, torch.inf).amin(dim=1, keepdim=True)
    gains = (teacher - lowest).masked_fill(~present, 0.0)
    found = _dcg(gains.gather(1, student.argsort(dim=1, descending=True, stable=True)))
    ideal = _dcg(gains.sort(dim=1, descending=True).values)
    ndcg = torch.where(ideal > 0, found / ideal, 1.0)
    return torch.stack([distillation_loss(student, teacher, temperature), (regret == 0).float(), regret, ndcg], dim=1)


def _dcg(gains: Tensor, depth: int = 10) -> Tensor:
    gains = gains[:, :depth]
    return (gains / torch.arange(2, gains.shape[1] + 2, device=gains.device).log2()).sum(dim=1)


def mean_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """The means over all questions, under the names of `METRICS`."""
    return dict(zip(METRICS, prediction.predictions.mean(axis=0).tolist(), strict=True))


class SetDatasetEpoch(TrainerCallback):
    """Sets the dataset's epoch when one begins. accelerate's own way does not reach it in several processes."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **_) -> None:
        train_dataloader.dataset.epoch = int(state.epoch or 0)


class DeleteOldCheckpoints(TrainerCallback):
    """Keeps the last and the best of the trainer's checkpoints, and of the others as many as the limit allows.

    In the place of transformers' own rotation, which counts and deletes the user's folders (checkpoint-2-best) as well.

    Args:
        limit: --save_total_limit; None keeps all.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def on_save(self, args, state, control, **_) -> None:
        if not self.limit or not args.should_save:
            return
        found = find_checkpoints(Path(args.output_dir))
        kept = {found[-1], *([Path(state.best_model_checkpoint)] if state.best_model_checkpoint else [])}
        others = [checkpoint for checkpoint in found if checkpoint not in kept]
        for checkpoint in others[: max(0, len(found) - max(self.limit, len(kept)))]:
            shutil.rmtree(checkpoint, ignore_errors=True)


class SelectorTrainer(EncoderOnlyRerankerTrainer):
    """FlagEmbedding's reranker trainer over `GroupDataset` and `DistilledCrossEncoder`."""

    _spread: Tensor | None = None
    _not_finite: Tensor | None = None

    def __init__(self, args: TrainingArguments, **kwargs) -> None:
        callbacks = [SetDatasetEpoch(), DeleteOldCheckpoints(args.save_total_limit)]
        args.save_total_limit = None
        super().__init__(args=args, compute_metrics=mean_metrics, callbacks=callbacks, **kwargs)

    def compute_loss(self, model, inputs: dict, return_outputs: bool = False, **kwargs):
        """FlagEmbedding's, keeping on the device the step's spread of scores, and whether a loss was not finite since
        the last log: reading them would wait for the GPU."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        scores = outputs.scores.detach()
        absent = scores == -torch.inf
        not_finite = ~loss.detach().isfinite()
        self._not_finite = not_finite if self._not_finite is None else self._not_finite | not_finite
        self._spread = scores.amax() - scores.masked_fill(absent, torch.inf).amin()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """transformers' log, with a warning when the model gives every passage of the last step one score."""
        if "loss" in logs and self._spread is not None and not self._spread > COLLAPSED_SPREAD:
            logger.warning(
                "step %d: all scores are one value (spread %.1e), so the model tells no passage from another; "
                "a lower --learning_rate or a longer warm-up usually prevents it",
                self.state.global_step,
                self._spread,
            )
        if "loss" in logs and self._not_finite is not None:
            if self._not_finite.any():  # transformers leaves such losses out of the mean that it logs
                logger.warning("step %d: since the last log a loss was not a finite number", self.state.global_step)
            self._not_finite = None
        super().log(logs, *args, **kwargs)

    def prediction_step(self, model, inputs: dict, prediction_loss_only: bool, ignore_keys=None) -> tuple:
        """Each group's metrics in place of its scores: groups differ in size, metrics do not, so they gather."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = model(**inputs).scores.float()
        metrics = ranking_metrics(scores, inputs["teacher_scores"], self.args.teacher_temperature)
        return None, metrics, metrics

    def _prepare_inputs(self, inputs: dict) -> dict:
        """DeepSpeed's fp16 would round the teacher's scores to three digits, and the weights."""
        exact = {name: inputs[name].to(self.args.device) for name in ("teacher_scores", "weights")}
        return {**super()._prepare_inputs(inputs), **exact}

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        dataset, args = train_dataset or self.train_dataset, self.args
        together = args.train_batch_size * args.world_size
        update_size = together * args.gradient_accumulation_steps
        fill_to = together if update_size > args.train_batch_size else 1
        lengths = dataset.lengths() if args.train_sampling_strategy == "group_by_length" else None
        return EpochOrder(dataset, lengths, update_size, fill_to, args.dataloader_drop_last)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> None:
        return None

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None):
        """Every question is measured: --dataloader_drop_last is about training."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)
