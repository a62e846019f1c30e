"""Text encoders: any Hugging Face encoder, one vector a text, by mean or first-token (CLS) pooling.

Contriever (Izacard et al., 2022) is a BERT whose token vectors are averaged, not normalised; BGE takes the first
token and normalises; E5 and MiniLM average and normalise.
"""

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from gainRAG.common.models import explain_load_errors, pick_device, pick_dtype, weights_path

logger = logging.getLogger(__name__)

POOLINGS = ("mean", "cls")
TOKENISED_AT_ONCE = 4096  # texts; token ids are packed after each such group, as Python lists they take 10 x the room
CPU_BATCH_TOKENS = 1024  # what a core's cache holds: 3500 tokens at once take 1.3 x as long, 7000 1.7 x
GPU_BATCH = 256
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")  # positions are counted from the padding id on


class Encoder:
    """Texts to vectors.

    Args:
        model_name_or_path: a name of the model table, a folder or a hub id.
        pooling: "mean" over the text's tokens, or "cls", the first token.
        normalize: bring every vector to length 1, so that the inner product is the cosine.
        max_length: tokens a text is cut to; lowered to the model's limit, once said in the log.
        batch_size: texts a forward pass; None takes GPU_BATCH, or as many as CPU_BATCH_TOKENS hold.
            Halved where GPU memory runs out.
        device: None takes the first GPU, or the CPU.
        dtype: "auto", "float32", "bfloat16" or "float16"; see `pick_dtype`.

    Attributes:
        dim: components of a vector.

    Raises:
        UserError: unknown name, or weights that cannot be loaded.
    """

    def __init__(
        self,
        model_name_or_path: str,
        pooling: str = "mean",
        normalize: bool = False,
        max_length: int = 512,
        batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
    ) -> None:
        self.pooling, self.normalize = pooling, normalize
        self.device = pick_device(device)
        self.batch_size = batch_size or (None if self.device.type == "cpu" else GPU_BATCH)
        self.dtype = pick_dtype(dtype, self.device)
        self.tokenizer, self.model = _load(model_name_or_path, self.device, self.dtype)
        self.dim = self.model.config.hidden_size
        self.max_length = min(max_length, _longest(self.model.config, self.tokenizer))
        if self.max_length < max_length:
            logger.warning("%s reads %d tokens at most; longer texts are cut", model_name_or_path, self.max_length)

    def encode(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """The texts' vectors, float32, shape (len(texts), dim), in the order of the texts.

        Args:
            texts: as they are given to the tokenizer.
            progress: called with the number of texts just done.
        """
        tokens = list(self._tokenised(texts))
        vectors = np.empty((len(texts), self.dim), "float32")
        order = sorted(range(len(tokens)), key=lambda index: -len(tokens[index]))
        start = 0
        while start < len(order):
            rows = self.batch_size or max(1, CPU_BATCH_TOKENS // max(1, len(tokens[order[start]])))
            batch = order[start : start + rows]
            try:
                vectors[batch] = self._forward([tokens[index] for index in batch])
            except torch.OutOfMemoryError:
                if self.batch_size in (1, None):
                    raise
                self.batch_size //= 2
                logger.warning("out of GPU memory: going on with batches of %d", self.batch_size)
                torch.cuda.empty_cache()
                continue
            start += len(batch)
            if progress:
                progress(len(batch))
        return vectors

    def _tokenised(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        for start in range(0, len(texts), TOKENISED_AT_ONCE):
            ids = self.tokenizer(
                list(texts[start : start + TOKENISED_AT_ONCE]),
                truncation=True,
                max_length=self.max_length,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            yield from (np.asarray(text, "int32") for text in ids)

    @torch.inference_mode()
    def _forward(self, tokens: list[np.ndarray]) -> np.ndarray:
        lengths = torch.tensor([len(text) for text in tokens])
        ids = torch.full((len(tokens), int(lengths.max())), self.tokenizer.pad_token_id or 0)
        for row, text in enumerate(tokens):
            ids[row, : len(text)] = torch.from_numpy(text)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(self.device)
        hidden = self.model(input_ids=ids.to(self.device), attention_mask=mask.long()).last_hidden_state
        pooled = self._pool(hidden, mask)
        if self.normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        return pooled.cpu().numpy()

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(texts, tokens, dim) and the mask of real tokens -> (texts, dim), float32."""
        if self.pooling == "cls":
            return hidden[:, 0].float()
        weights = mask.unsqueeze(-1)
        return hidden.float().masked_fill(~weights, 0.0).sum(1) / weights.sum(1)


def encoder_of(args: argparse.Namespace) -> Encoder:
    """The encoder of the flags, the same for passages and questions."""
    return Encoder(
        args.model_name_or_path,
        args.pooling,
        args.normalize,
        args.max_length,
        args.batch_size,
        args.device,
        args.dtype,
    )


def encoder_dim(model_name_or_path: str) -> int:
    """Components of the encoder's vectors, from its configuration alone."""
    from transformers import AutoConfig

    with explain_load_errors(model_name_or_path):
        return AutoConfig.from_pretrained(weights_path(model_name_or_path), trust_remote_code=False).hidden_size


def _load(name: str, device: torch.device, dtype: torch.dtype):
    from transformers import AutoModel, AutoTokenizer

    path = weights_path(name)
    with explain_load_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model = AutoModel.from_pretrained(path, dtype=dtype, trust_remote_code=False)
    return tokenizer, model.to(device).eval()


def _longest(config, tokenizer) -> int:
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    if config.model_type in OFFSET_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    return min(positions, tokenizer.model_max_length)
