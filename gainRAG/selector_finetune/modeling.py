"""The selector in training: a cross-encoder whose only loss is its distance from the teacher's distribution."""

import torch
from FlagEmbedding.abc.finetune.reranker import RerankerOutput
from FlagEmbedding.finetune.reranker.encoder_only.base import CrossEncoderModel
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

ABSENT = torch.finfo(torch.float32).min


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(teacher / temperature) || softmax(student)) of each group, in nats (GainRAG, section 3.3).

    Args:
        student: logits, (groups, passages).
        teacher: scores -log(PPL_CD + 1), (groups, passages), float32; -inf where a group has no passage.
        temperature: softens the teacher's distribution, never the student's.

    Returns:
        (groups,), float32. A place without a passage takes no part and gets no gradient.
    """
    absent = teacher == -torch.inf
    target = log_softmax((teacher / temperature).masked_fill(absent, ABSENT), dim=-1)
    predicted = log_softmax(student.float().masked_fill(absent, ABSENT), dim=-1)
    return kl_div(predicted, target, reduction="none", log_target=True).sum(dim=-1)


class DistilledCrossEncoder(CrossEncoderModel):
    """FlagEmbedding's cross-encoder with `distillation_loss`, averaged over the batch's groups, in place of its loss.

    Args:
        base_model: a sequence classifier with one logit.
        tokenizer: its tokenizer.
        temperature: see `distillation_loss`.
    """

    def __init__(self, base_model, tokenizer, temperature: float = 1.0) -> None:
        super().__init__(base_model, tokenizer=tokenizer)
        self.temperature = temperature
        self.register_load_state_dict_pre_hook(_accept_plain_names)

    def forward(self, pair: dict[str, Tensor], teacher_scores: Tensor, weights: Tensor) -> RerankerOutput:
        """Loss and scores, in training and evaluation alike.

        Args:
            pair: tokenised (question, passage) pairs, the groups' passages one after the other.
            teacher_scores: (groups, widest group), float32, -inf behind a group that is smaller than the widest.
            weights: (groups,), float32, of the groups' losses; 1, except in an update that was filled up.

        Returns:
            `loss`, a float32 scalar, and `scores`, (groups, widest group), with -inf where there is no passage.
        """
        logits = self.encode(pair).flatten().float()
        present = teacher_scores != -torch.inf
        scores = torch.full_like(teacher_scores, -torch.inf).masked_scatter(present, logits)
        losses = distillation_loss(scores, teacher_scores, self.temperature)
        return RerankerOutput(loss=(weights * losses).mean(), scores=scores)

    def save_pretrained(self, folder: str, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes an ordinary cross-encoder folder.

        Args:
            folder: where to.
            state_dict: this module's own, as DeepSpeed gathers it; None takes the weights as they are.
        """
        if state_dict is not None:
            state_dict = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
        # loaded under ZeRO 3, transformers would write the LayerNorms under names of the TensorFlow days
        self.model.save_pretrained(folder, state_dict=state_dict, save_original_format=state_dict is None)
        self.tokenizer.save_pretrained(folder)


def _accept_plain_names(module: DistilledCrossEncoder, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Saved folders hold the base model's names. The trainer loads them leniently: unknown names would be dropped
    without a word, and a resumed run would start from the untrained weights."""
    own = module.state_dict().keys()
    for name in [name for name in state_dict if name not in own and f"model.{name}" in own]:
        state_dict[f"model.{name}"] = state_dict.pop(name)
