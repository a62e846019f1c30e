"""Text encoders: any Hugging Face encoder, one vector a text, by mean or first-token (CLS) pooling.

Contriever (Izacard et al., 2022) is a BERT whose token vectors are averaged, not normalised; BGE takes the first
token and normalises; E5 and MiniLM average and normalise.
"""

import argparse
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from gainRAG.common.batching import BatchBudget, attention_mask, compute_ahead, pad_rows, send
from gainRAG.common.cli import positive_int
from gainRAG.common.jsonl import Record
from gainRAG.common.models import (
    DTYPES,
    dtype_name,
    explain_load_errors,
    longest_input,
    pick_device,
    pick_dtype,
    straight_to,
    weights_path,
)
from gainRAG.retrieval_engine.normalize import normalize_text

logger = logging.getLogger(__name__)

POOLINGS = ("mean", "cls")
TOKENISED_AT_ONCE = 4096  # texts: many enough to find some of equal length, few enough to start soon
READ_BEHIND = 8  # batches on their way from a GPU, whose end is not waited for
CPU_BATCH_TOKENS = 1024  # what a core's cache holds: 3500 tokens at once take 1.3 x as long, 7000 1.7 x
GPU_BATCH = 256

# What passages and questions must share, or their vectors do not meet; the values are Contriever's.
SHARED = {"pooling": "mean", "normalize": False, "lowercase": False, "normalize_text": False}


@dataclass(frozen=True)
class EncoderOptions:
    """How texts become vectors; the flags of `add_encoder_arguments`.

    Attributes:
        model_name_or_path: a name of the model table, a folder or a hub id.
        pooling: "mean" over a text's tokens, or "cls", the first token.
        normalize: bring every vector to length 1, so that the inner product is the cosine.
        lowercase: lower-case the texts.
        normalize_text: `normalize.normalize_text` the texts.
        prefix: put before every text as it is ("passage: ", "query: " for E5).
        no_title: a passage is its text alone, without its title before it.
        max_length: tokens a text is cut to.
        batch_size: texts a forward pass; None takes GPU_BATCH, or as many as CPU_BATCH_TOKENS hold.
        device: None takes the first GPU, or the CPU.
        dtype: "auto", "float32", "bfloat16" or "float16"; see `pick_dtype`.
    """

    model_name_or_path: str
    pooling: str = "mean"
    normalize: bool = False
    lowercase: bool = False
    normalize_text: bool = False
    prefix: str = ""
    no_title: bool = False
    max_length: int = 512
    batch_size: int | None = None
    device: str | None = None
    dtype: str = "auto"

    @property
    def shared(self) -> dict[str, Any]:
        """The options of SHARED, as settings keep them."""
        return {name: getattr(self, name) for name in SHARED}

    @property
    def computed_in(self) -> str:
        """The number format that `dtype` means on the device."""
        return dtype_name(pick_dtype(self.dtype, pick_device(self.device)))

    def passage_text(self, passage: Record) -> str:
        """Title, a space, text, in the form the encoder reads."""
        title = "" if self.no_title else passage.get("title") or ""
        return self.prefix + self._clean(f"{title} {passage['text']}" if title else passage["text"])

    def question_text(self, question: str) -> str:
        """A question in the form the encoder reads."""
        return self.prefix + self._clean(question)

    def _clean(self, text: str) -> str:
        text = text.lower() if self.lowercase else text
        return normalize_text(text) if self.normalize_text else text


def add_encoder_arguments(parser: argparse.ArgumentParser, texts: str) -> None:
    """The flags of an encoder of `texts` ("passages" or "questions"). Those of SHARED are None where not given."""
    add = parser.add_argument_group("encoder").add_argument
    unless = ": as the passages" if texts == "questions" else ""
    add("--model_name_or_path", default="contriever-msmarco", help="encoder: a known name, a folder or a hub id")
    add("--pooling", choices=POOLINGS, help=f"mean of a text's tokens, or the first; default{unless or ': mean'}")
    add("--normalize", action="store_const", const=True,
        help=f"vectors of length 1 (MiniLM, E5, BGE; not Contriever); default{unless or ': no'}")  # fmt: skip
    add("--lowercase", action="store_const", const=True, help=f"lower-case {texts}; default{unless or ': no'}")
    add("--normalize_text", action="store_const", const=True,
        help=f"typographic characters to ASCII, as Contriever's option does; default{unless or ': no'}")  # fmt: skip
    add("--max_length", type=positive_int, default=512, help=f"tokens that {texts} are cut to")
    add("--batch_size", type=positive_int, help=f"{texts} a forward pass; default: 256 on a GPU, 1024 tokens on a CPU")
    add("--device", help="cpu, cuda or cuda:N for the encoder; default: the first GPU, or the CPU")
    add("--use_gpu", dest="device", action="store_const", const="cuda", help="as --device cuda")
    add("--dtype", choices=["auto", *DTYPES], default="float32" if texts == "questions" else "auto",
        help="auto: bfloat16 where the hardware has it; the paper encodes questions in float32")  # fmt: skip


def encoder_options(
    flags: dict[str, Any], shared: dict[str, Any] = SHARED, prefix: str = "", no_title: bool = False
) -> EncoderOptions:
    """From the parsed flags (`vars(args)`) those of `add_encoder_arguments`.

    Args:
        shared: what options of SHARED are where the flags do not say.
        prefix, no_title: see `EncoderOptions`.

    Raises:
        UserError: no such weights or device.
    """
    weights_path(flags["model_name_or_path"])
    pick_device(flags["device"])
    given = {name: shared[name] if flags[name] is None else flags[name] for name in SHARED}
    plain = {name: flags[name] for name in ("model_name_or_path", "max_length", "batch_size", "device", "dtype")}
    return EncoderOptions(**plain, **given, prefix=prefix, no_title=no_title)


class Encoder:
    """Texts to vectors.

    Args:
        options: `max_length` is lowered to the model's limit, which the log reports.

    Attributes:
        dim: components of a vector.

    Raises:
        UserError: unknown name, or weights that cannot be loaded.
    """

    def __init__(self, options: EncoderOptions) -> None:
        self.options = options
        self.device = pick_device(options.device)
        self.dtype = pick_dtype(options.dtype, self.device)
        self.tokenizer, self.model = _load(options.model_name_or_path, self.device, self.dtype)
        self.dim = self.model.config.hidden_size
        on_cpu = self.device.type == "cpu"
        rows = options.batch_size or (None if on_cpu else GPU_BATCH)
        self.budget = BatchBudget(None if rows else CPU_BATCH_TOKENS, rows)
        limit = longest_input(self.model.config, self.tokenizer) or options.max_length
        self.max_length = min(options.max_length, limit)
        if limit < options.max_length:
            logger.warning("%s reads %d tokens at most; longer texts are cut", options.model_name_or_path, limit)

    def encode(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """The texts' vectors, float32, shape (len(texts), dim), in the order of the texts; NaN for one without tokens.

        Args:
            texts: as they are given to the tokenizer: see `EncoderOptions.passage_text` and `question_text`.
            progress: called with the number of texts just done.
        """
        vectors = np.empty((len(texts), self.dim), "float32")
        waiting: deque[tuple[list[int], torch.Tensor, torch.cuda.Event | None]] = deque()

        def read(left: int) -> None:
            while len(waiting) > left:
                rows, output, copied = waiting.popleft()
                if copied:
                    copied.synchronize()
                vectors[rows] = output.numpy()
                if progress:
                    progress(len(rows))

        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))  # neighbours are of like length
        groups = [order[start : start + TOKENISED_AT_ONCE] for start in range(0, len(order), TOKENISED_AT_ONCE)]
        for rows, tokens in compute_ahead(lambda rows: (rows, self.tokenize([texts[row] for row in rows])), groups):
            lengths = list(map(len, tokens))
            for batch, (output, copied) in self.budget.run(lengths, partial(self._forward, tokens)):
                waiting.append(([rows[item] for item in batch], output, copied))
                read(READ_BEHIND if self.device.type == "cuda" else 0)
        read(0)
        return vectors

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The texts' token ids, int32 (tokens,), cut to `max_length`."""
        ids = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return [np.asarray(text, "int32") for text in ids]

    @torch.inference_mode()
    def _forward(self, tokens: list[np.ndarray], batch: list[int]) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """Vectors (texts, dim) on their way to the host, and what says that they are there."""
        pooled = self._vectors(*self._padded([tokens[item] for item in batch]))
        if self.device.type != "cuda":
            return pooled.cpu(), None
        on_host = pooled.to("cpu", non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self.device))
        return on_host, copied

    def _vectors(self, ids: torch.Tensor, mask: torch.Tensor, attention: torch.Tensor | None) -> torch.Tensor:
        """What `_padded` gives -> (texts, dim), float32, on the device."""
        hidden = self.model(input_ids=ids, attention_mask=attention).last_hidden_state
        if self.options.pooling == "cls":
            pooled = hidden[:, 0].float()
        else:
            weights = mask.unsqueeze(-1)
            pooled = hidden.float().masked_fill(~weights, 0.0).sum(1) / weights.sum(1)
        if self.options.normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        return pooled.masked_fill(~mask.any(dim=1, keepdim=True), torch.nan)

    def _padded(self, tokens: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Token ids and the mask of real tokens, both (texts, longest), and the model's mask, all on the device."""
        ids, filled = pad_rows(tokens, self.tokenizer.pad_token_id or 0)
        mask = send(filled, self.device)
        return send(ids, self.device), mask, attention_mask(mask, bool(filled.all()), self.model.config)


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
        model = AutoModel.from_pretrained(path, dtype=dtype, trust_remote_code=False, **straight_to(device))
    return tokenizer, model.to(device).eval()
