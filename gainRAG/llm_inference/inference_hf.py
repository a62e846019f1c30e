"""The transformers engine: left-padded batches, sorted by length, on a CPU or a GPU."""

import gc
import logging
from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm

from gainRAG.common.cli import UserError
from gainRAG.common.models import explain_load_errors, generation_dtype, pick_device, pick_dtype, weights_path

logger = logging.getLogger(__name__)


def load_tokenizer(lm_type: str):
    """The LLM's tokenizer, with a padding token.

    Raises:
        UserError: unknown name, a tokenizer that cannot be had, or one that cannot pad.
    """
    from transformers import AutoTokenizer

    with explain_load_errors(lm_type):
        tokenizer = AutoTokenizer.from_pretrained(weights_path(lm_type), trust_remote_code=False)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise UserError(
            f"{lm_type}: its tokenizer has neither a padding nor an end token; name one in its tokenizer's files"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(lm_type: str, device: torch.device, dtype: str):
    """The LLM on its device, in evaluation mode.

    Raises:
        UserError: unknown name, or weights that cannot be had.
    """
    from transformers import AutoModelForCausalLM

    with explain_load_errors(lm_type):
        model = AutoModelForCausalLM.from_pretrained(
            weights_path(lm_type), dtype=pick_dtype(dtype, device), trust_remote_code=False
        )
    return model.to(device).eval()


def context_length(config) -> int | None:
    """The model's positions, or None where its configuration names none."""
    return getattr(config, "max_position_embeddings", None)


class HFEngine:
    """Generation by transformers' `generate`; see `engine.Engine`.

    A prompt that occurs several times is continued once. Out of GPU memory halves the batch and goes on.
    """

    def __init__(
        self,
        lm_type: str,
        device: str | None = None,
        dtype: str = "auto",
        max_batch_tokens: int = 16384,
        temperature: float = 0.0,
        seed: int = 42,
    ) -> None:
        self.device = pick_device(device)
        self.tokenizer = load_tokenizer(lm_type)
        self.tokenizer.padding_side = "left"
        self.model = load_causal_lm(lm_type, self.device, generation_dtype(dtype, self.device))
        self.context_length = context_length(self.model.config)
        self.max_batch_tokens = max_batch_tokens
        self.temperature = temperature
        self.seed = seed

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """One continuation a prompt, in order.

        Args:
            prompts: full texts, chat template applied; no special tokens are added.
            max_new_tokens: the longest continuation, in tokens.
        """
        distinct = list(dict.fromkeys(prompts))
        ids = self.tokenizer(distinct, add_special_tokens=False).input_ids if distinct else []
        order = sorted(range(len(distinct)), key=lambda index: -len(ids[index]))
        texts: dict[str, str] = {}
        with tqdm(total=len(distinct), desc="generating", unit="prompt", leave=False) as progress:
            for batch in self._batches(order, ids, max_new_tokens):
                for index, text in zip(batch, self._continue([ids[i] for i in batch], max_new_tokens), strict=True):
                    texts[distinct[index]] = text
                progress.update(len(batch))
        return [texts[prompt] for prompt in prompts]

    def _batches(self, order: list[int], ids: list[list[int]], max_new_tokens: int) -> Iterator[list[int]]:
        start = 0
        while start < len(order):
            rows = max(1, self.max_batch_tokens // (len(ids[order[start]]) + max_new_tokens))
            yield order[start : start + rows]
            start += rows

    def _continue(self, rows: list[list[int]], max_new_tokens: int) -> list[str]:
        try:
            return self._continue_at_once(rows, max_new_tokens)
        except torch.cuda.OutOfMemoryError:
            if len(rows) == 1:
                raise
        half = len(rows) // 2  # outside the handler, whose traceback holds the batch's tensors
        logger.warning("out of memory: %d prompts go on as two batches", len(rows))
        torch.cuda.empty_cache()
        return self._continue(rows[:half], max_new_tokens) + self._continue(rows[half:], max_new_tokens)

    @torch.inference_mode()
    def _continue_at_once(self, rows: list[list[int]], max_new_tokens: int) -> list[str]:
        batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.device)
        sampling = {"temperature": self.temperature} if self.temperature else {}
        torch.manual_seed(self.seed)  # per batch: what one batch draws does not depend on those before it
        output = self.model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            top_k=None,
            top_p=None,
            repetition_penalty=1.0,  # some checkpoints advise another, which would also count the padding
            num_beams=1,
            do_sample=bool(sampling),
            **sampling,
        )
        new = output[:, batch.input_ids.shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def close(self) -> None:
        """Frees the model's memory."""
        self.model = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
