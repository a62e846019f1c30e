"""The selector at work: a cross-encoder's scores for (question, passage) pairs, many questions at a time.

from gainRAG.selector_engine.selector import Selector
best = Selector("BAAI/bge-reranker-base").select(question, passages, k=1)
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gainRAG.common.batching import BatchBudget, attention_mask, compute_ahead, pad_rows, send
from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import Record
from gainRAG.common.models import (
    dtype_name,
    explain_load_errors,
    fit_tokenizer,
    longest_input,
    pick_device,
    pick_dtype,
    straight_to,
    weights_path,
)
from gainRAG.common.schemas import passage_text
from gainRAG.common.settings import TRAINING_FINISHED, TRAINING_SETTINGS

logger = logging.getLogger(__name__)

Pair = tuple[str, str]
PAIRS_PER_CHUNK = 2048  # tokenised at once: many enough to find pairs of equal length, few enough to start soon
COLLAPSED_SPREAD = 1e-5
BATCH_TOKENS = {"cuda": 65536, "cpu": 4096}


class Selector:
    """Scores and picks passages with a cross-encoder that has one logit (bge-reranker, a trained selector).

    Pairs of many questions share batches of like length within a budget of tokens; a thread tokenises ahead of the
    device; equal pairs are computed once. In float32 the scores are those of FlagEmbedding's compute_score and of
    sentence-transformers' CrossEncoder without activation.

    Args:
        model_name_or_path: a folder, a hub id, or a name of `common.models.MODELS`.
        device: `cpu`, `cuda`, `cuda:N`; None takes the first GPU, or the CPU.
        dtype: `float32`, `float16`, `bfloat16`, `auto`, or a torch dtype; None is float16 on a GPU, else float32.
        max_length: tokens of a pair, at most the positions the model has; the passage is cut, not the question.
        batch_tokens: tokens of a batch, padding included; halved when GPU memory runs out. None goes by the device.

    Raises:
        UserError: no such model, no single logit, or no such device.
    """

    def __init__(
        self,
        model_name_or_path: str,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        max_length: int = 512,
        batch_tokens: int | None = None,
    ) -> None:
        self.name = str(model_name_or_path)
        self.device = device if isinstance(device, torch.device) else pick_device(device)
        self.dtype = dtype if isinstance(dtype, torch.dtype) else selector_dtype(dtype, self.device)
        self.budget = BatchBudget(batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"]))
        self.model, self.tokenizer = load_selector(self.name, self.device, self.dtype)
        self.config = self.model.config
        self.max_length = min(max_length, longest_input(self.config) or max_length)
        if self.max_length <= self.tokenizer.num_special_tokens_to_add(pair=True):
            raise UserError(f"max_length {max_length}: leaves no room for a token of question or passage")
        if self.max_length < max_length:
            logger.info("%s: has %d positions, pairs are cut there, not at %d", self.name, self.max_length, max_length)
        self._encoder = self.tokenizer.backend_tokenizer
        self._warned = False

    def select(self, question: str, passages: list[Record], k: int = 1) -> list[Record]:
        """The k passages (`{title, text, ...}`) that help most, best first, each with its `selector_score`.

        Equal scores keep the order given; fewer than k passages all come back.
        """
        return keep_best(passages, self.score([(question, passage_text(passage)) for passage in passages]), k)

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Raw logits (float32, one a pair, in input order) of (question, passage) pairs.

        Raises:
            UserError: a score is not a finite number, or one pair alone does not fit into GPU memory.
        """
        distinct = list(dict.fromkeys(map(tuple, pairs)))
        if len(distinct) > PAIRS_PER_CHUNK:
            distinct.sort(key=_characters, reverse=True)  # so that pairs of like length share a chunk
        chunks = (distinct[start : start + PAIRS_PER_CHUNK] for start in range(0, len(distinct), PAIRS_PER_CHUNK))
        scores = np.concatenate([np.empty(0, np.float32), *map(self._score_chunk, compute_ahead(self._encode, chunks))])
        if not np.isfinite(scores).all():
            raise UserError(
                f"{self.name}: {np.count_nonzero(~np.isfinite(scores))} of {len(scores)} scores are not finite "
                f"in {dtype_name(self.dtype)}; if float32 does not mend it, the weights are broken"
            )
        self._warn_of_collapse(scores)
        row_of = {pair: row for row, pair in enumerate(distinct)}
        return scores[[row_of[tuple(pair)] for pair in pairs]]

    def _warn_of_collapse(self, scores: np.ndarray) -> None:
        if len(scores) > 1 and np.ptp(scores) <= COLLAPSED_SPREAD and not self._warned:
            self._warned = True
            logger.warning(
                "%s: all %d scores are one value (spread %.1e), so it tells no passage from another and keeps the "
                "retriever's order",
                self.name,
                len(scores),
                np.ptp(scores),
            )

    def _encode(self, pairs: list[Pair]) -> list:
        """Token ids of each pair, the passage cut; of a pair whose question alone is too long, both are."""
        self._encoder.no_padding()
        self._encoder.enable_truncation(self.max_length, strategy="only_second")
        try:
            return self._encoder.encode_batch_fast(pairs)
        except Exception as problem:  # the tokenizers library has no narrower class
            if "too short" not in str(problem):
                raise
        if len(pairs) > 1:
            return [encoding for pair in pairs for encoding in self._encode([pair])]
        self._encoder.enable_truncation(self.max_length, strategy="longest_first")
        return self._encoder.encode_batch_fast(pairs)

    def _score_chunk(self, encodings: list) -> np.ndarray:
        scores = np.empty(len(encodings), np.float32)
        for rows, logits in self._compute_chunk(encodings):  # read last, since reading waits for the device
            scores[rows] = logits.float().cpu().numpy()
        return scores

    def _compute_chunk(self, encodings: list) -> list[tuple[list[int], torch.Tensor]]:
        """Of each batch its rows and their logits, still on the device."""
        lengths = [len(encoding) for encoding in encodings]
        try:
            return list(self.budget.run(lengths, partial(self._forward, encodings), even=True))
        except torch.OutOfMemoryError:
            raise UserError(f"{self.device}: its memory does not hold one pair beside the model") from None

    @torch.inference_mode()
    def _forward(self, encodings: list, rows: list[int]) -> torch.Tensor:
        """Logits (rows,) of some pairs, still on the device."""
        inputs = self._pad([encodings[row] for row in rows])
        inputs = {name: send(array, self.device) for name, array in inputs.items()}
        if "attention_mask" in inputs:
            inputs["attention_mask"] = attention_mask(inputs["attention_mask"], False, self.config)
        return self.model(**inputs).logits.view(-1)

    def _pad(self, encodings: list) -> dict[str, np.ndarray]:
        """What the model takes, each (pairs, longest pair); without attention_mask where nothing is padded."""
        ids, filled = pad_rows([encoding.ids for encoding in encodings], self.tokenizer.pad_token_id)
        inputs = {"input_ids": ids}
        if "token_type_ids" in self.tokenizer.model_input_names:
            types = [encoding.type_ids for encoding in encodings]
            inputs["token_type_ids"], _ = pad_rows(types, self.tokenizer.pad_token_type_id)
        if not filled.all():
            inputs["attention_mask"] = filled
        return inputs


def selector_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """As `pick_dtype`; None is float16 on a GPU, else float32."""
    return pick_dtype(name or ("float16" if device.type == "cuda" else "float32"), device)


def keep_best(passages: Sequence[Record], scores: np.ndarray, k: int) -> list[Record]:
    """The k passages with the highest scores, each with its `selector_score`; equal scores keep the order given."""
    best = np.argsort(-scores, kind="stable")[:k]
    return [{**passages[rank], "selector_score": float(scores[rank])} for rank in best]


def check_selector(name: str) -> str:
    """What `from_pretrained` takes for a selector, found without loading its weights.

    Raises:
        UserError: no such model, not one with a single logit, a tokenizer that does not fit it, or an unfinished
            training.
    """
    return _find_selector(name)[0]


def _find_selector(name: str):
    """A selector's path, configuration and tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    path = weights_path(name)
    if (Path(path) / TRAINING_SETTINGS).exists() and not (Path(path) / TRAINING_FINISHED).exists():
        raise UserError(
            f"{name}: its training is unfinished ({TRAINING_SETTINGS} without {TRAINING_FINISHED}), so the weights are "
            "of an earlier one; run selector_finetune to its end"
        )
    with explain_load_errors(name):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if config.num_labels != 1:
        raise UserError(
            f"{name}: a selector is a cross-encoder with 1 output label, this model has {config.num_labels}; "
            "take a reranker (bge-reranker-base) or one that selector_finetune has trained"
        )
    with explain_load_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise UserError(f"{name}: its tokenizer has no fast form (tokenizer.json); save one with AutoTokenizer")
    fit_tokenizer(tokenizer, config, name)
    return path, config, tokenizer


def _characters(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1])


def load_selector(name: str, device: torch.device, dtype: torch.dtype):
    """A selector's model, in eval mode on the device, and its tokenizer.

    Raises:
        UserError: as `check_selector`; or its weights are not whole.
    """
    from transformers import AutoModelForSequenceClassification

    path, config, tokenizer = _find_selector(name)
    with explain_load_errors(name):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, dtype=dtype, output_loading_info=True, trust_remote_code=False, **straight_to(device)
        )
    missing = ", ".join(sorted(report["missing_keys"]))
    if missing:
        raise UserError(f"{name}: its weights lack {missing}, so it is no trained cross-encoder")
    return model.eval().to(device), tokenizer
