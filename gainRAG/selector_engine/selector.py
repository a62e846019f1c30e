"""The selector at work: a cross-encoder's scores for (question, passage) pairs, many questions at a time.

from gainRAG.selector_engine.selector import Selector
best = Selector("BAAI/bge-reranker-base").select(question, passages, k=1)
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import Record
from gainRAG.common.models import explain_load_errors, pick_device, pick_dtype, usable_positions, weights_path
from gainRAG.common.schemas import passage_text

logger = logging.getLogger(__name__)

Pair = tuple[str, str]
PAIRS_PER_CHUNK = 2048  # tokenised at once: many enough to find pairs of equal length, few enough to start soon
CHUNKS_AHEAD = 2
BATCH_TOKENS = {"cuda": 65536, "cpu": 4096}
LEAST_FILL = 8  # a batch that is 1/8 full already ends where the length changes: no padding, no attention mask


@dataclass
class Batch:
    """Some pairs of a chunk, padded to the longest.

    Attributes:
        rows: (batch,) positions in the chunk's distinct pairs.
        inputs: what the model takes, each (batch, tokens); without attention_mask where nothing is padded.
    """

    rows: np.ndarray
    inputs: dict[str, torch.Tensor]

    def halves(self) -> tuple["Batch", "Batch"]:
        middle = len(self.rows) // 2
        first = {name: tensor[:middle] for name, tensor in self.inputs.items()}
        second = {name: tensor[middle:] for name, tensor in self.inputs.items()}
        return Batch(self.rows[:middle], first), Batch(self.rows[middle:], second)


class Selector:
    """Scores and picks passages with a cross-encoder that has one logit (bge-reranker, a trained selector).

    Pairs of many questions share batches of similar length, cut by a budget of tokens; a thread tokenises ahead of
    the device; equal pairs are computed once. In float32 the scores are those of FlagEmbedding's compute_score and of
    sentence-transformers' CrossEncoder without activation.

    Args:
        model_name_or_path: a folder, a hub id, or a name of `llm_inference.models.MODELS`.
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
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"])
        self.model, self.tokenizer = _load(self.name, self.device, self.dtype)
        self.max_length = min(max_length, usable_positions(self.model) or max_length)
        if self.max_length <= self.tokenizer.num_special_tokens_to_add(pair=True):
            raise UserError(f"max_length {max_length}: leaves no room for a token of question or passage")
        if self.max_length < max_length:
            logger.info("%s: has %d positions, pairs are cut there, not at %d", self.name, self.max_length, max_length)
        self._encoder = self.tokenizer.backend_tokenizer

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
        distinct = sorted(dict.fromkeys(map(tuple, pairs)), key=_characters, reverse=True)
        chunks = [distinct[start : start + PAIRS_PER_CHUNK] for start in range(0, len(distinct), PAIRS_PER_CHUNK)]
        score_of = {}
        for chunk, scores in zip(chunks, self.score_chunks(chunks), strict=True):
            score_of.update(zip(chunk, scores, strict=True))
        return np.array([score_of[tuple(pair)] for pair in pairs], dtype=np.float32)

    def score_chunks(self, chunks: Iterable[Sequence[Pair]]) -> Iterator[np.ndarray]:
        """As `score`, for a stream of lists of pairs: the next lists are tokenised while one is on the device.

        A list's batches depend on that list alone, so its scores are the same whatever comes before it.
        """
        for chunk, distinct, batches in self._tokenised_ahead(chunks):
            scores = np.empty(len(distinct), dtype=np.float32)
            waiting = [done for batch in batches for done in self._forward(batch)]
            for rows, logits in waiting:
                scores[rows] = logits.float().cpu().numpy()
            if not np.isfinite(scores).all():
                raise UserError(
                    f"{self.name}: {np.count_nonzero(~np.isfinite(scores))} of {len(scores)} scores are not finite "
                    f"in {str(self.dtype).removeprefix('torch.')}; if float32 does not mend it, the weights are broken"
                )
            yield scores[[distinct[pair] for pair in chunk]]

    def _tokenised_ahead(self, chunks: Iterable[Sequence[Pair]]):
        """(chunk, distinct pair -> row, batches) of each chunk; tokenising releases Python's lock."""
        pending = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as pool:
            for chunk in chunks:
                pending.append(pool.submit(self._prepare, chunk))
                if len(pending) > CHUNKS_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _prepare(self, chunk: Sequence[Pair]):
        distinct = {pair: row for row, pair in enumerate(dict.fromkeys(chunk))}
        encodings = self._encode(list(distinct))
        lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
        return chunk, distinct, [self._pad(rows, encodings, lengths) for rows in self._cut(order, lengths)]

    def _encode(self, pairs: list[Pair]) -> list:
        """Token ids of each pair, the passage cut; where the question alone is too long, both are."""
        self._encoder.no_padding()
        self._encoder.enable_truncation(self.max_length, strategy="only_second")
        try:
            return self._encoder.encode_batch_fast(pairs)
        except Exception as problem:  # the tokenizers library has no narrower class
            if "too short" not in str(problem):
                raise
        return [self._encode_long_question(pair) for pair in pairs]

    def _encode_long_question(self, pair: Pair):
        self._encoder.enable_truncation(self.max_length, strategy="only_second")
        try:
            return self._encoder.encode(*pair)
        except Exception as problem:
            if "too short" not in str(problem):
                raise
        self._encoder.enable_truncation(self.max_length, strategy="longest_first")
        return self._encoder.encode(*pair)

    def _cut(self, order: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
        """Rows in falling length, cut into batches within the budget."""
        start = 0
        for position in range(1, len(order) + 1):
            ends = position == len(order)
            if not ends:
                tokens = (position - start) * lengths[order[start]]
                over = tokens + lengths[order[start]] > self.batch_tokens
                changes = lengths[order[position]] != lengths[order[position - 1]]
                ends = over or (changes and tokens * LEAST_FILL >= self.batch_tokens)
            if ends:
                yield order[start:position]
                start = position

    def _pad(self, rows: np.ndarray, encodings: list, lengths: np.ndarray) -> Batch:
        width = lengths[rows[0]]
        filled = np.arange(width) < lengths[rows, None]
        inputs = {"input_ids": np.full((len(rows), width), self.tokenizer.pad_token_id, dtype=np.int64)}
        inputs["input_ids"][filled] = np.concatenate([encodings[row].ids for row in rows])
        if "token_type_ids" in self.tokenizer.model_input_names:
            inputs["token_type_ids"] = np.full((len(rows), width), self.tokenizer.pad_token_type_id, dtype=np.int64)
            inputs["token_type_ids"][filled] = np.concatenate([encodings[row].type_ids for row in rows])
        if not filled.all():
            inputs["attention_mask"] = filled.astype(np.int64)
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        if self.device.type == "cuda":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return Batch(rows, tensors)

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> list[tuple[np.ndarray, torch.Tensor]]:
        """Rows and logits, still on the device; a batch beyond its memory goes through in halves."""
        try:
            inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.inputs.items()}
            return [(batch.rows, self.model(**inputs).logits.view(-1))]
        except torch.OutOfMemoryError:
            if len(batch.rows) == 1:
                raise UserError(f"{self.device}: its memory does not hold one pair beside the model") from None
        tokens = batch.inputs["input_ids"].numel()
        self.batch_tokens = min(self.batch_tokens, max(1, tokens // 2))
        logger.warning("%s is out of memory: batches of %d tokens from now on", self.device, self.batch_tokens)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return [done for half in batch.halves() for done in self._forward(half)]


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
        UserError: no such model, or not one with a single logit.
    """
    from transformers import AutoConfig

    path = weights_path(name)
    with explain_load_errors(name):
        labels = AutoConfig.from_pretrained(path, trust_remote_code=False).num_labels
    if labels != 1:
        raise UserError(
            f"{name}: a selector is a cross-encoder with 1 output label, this model has {labels}; "
            "take a reranker (bge-reranker-base) or one that selector_finetune has trained"
        )
    return path


def _characters(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1])


def _load(name: str, device: torch.device, dtype: torch.dtype):
    """The model (eval, on the device) and its tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = check_selector(name)
    with explain_load_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    if not tokenizer.is_fast:
        raise UserError(f"{name}: its tokenizer has no fast form (tokenizer.json); save one with AutoTokenizer")
    missing = ", ".join(sorted(report["missing_keys"]))
    if missing:
        raise UserError(f"{name}: its weights lack {missing}, so it is no trained cross-encoder")
    return model.eval().to(device), tokenizer
