"""Batches of like length under a token budget, halved where memory runs out.

The gain scorer, the hf engine, the encoder and the selector all run their models through `BatchBudget.run`.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Output = TypeVar("Output")
ITEMS_AHEAD = 2  # computed while the device is at work
LEAST_FILL = 8  # with `even`, a batch that is 1/8 full ends where the length changes: no padding, no attention mask
CHUNKS_A_WORKER = 4  # at least, so that all workers are at work until near the end
GPU_DECODING_TOKENS = 131072  # 16 GiB of an 8B LLM's keys and values in bfloat16, about 470 rows of its prompts
HIDE_PADDING_ONLY = {"bert", "roberta", "xlm-roberta"}  # types of model: every real token sees every other
LARGE_GPU = 40 << 30  # bytes; a smaller GPU decodes as many tokens at once as a CPU
LLM_TOKENS = 16384  # that go through an LLM at once where nothing else is asked for
CPU_LLM_TOKENS = 2048  # larger batches leave a CPU's caches: 16384 tokens at once take 1.6 x as long a token


def decoding_tokens(asked: int | None, device: torch.device) -> int:
    """Tokens of a batch (prompts and what is written) while an LLM writes: as asked, or by the device. A GPU's steps
    are bound by reading the weights, which more rows share."""
    if asked is not None:
        return asked
    large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= LARGE_GPU
    return GPU_DECODING_TOKENS if large else LLM_TOKENS


def chunk_size(most: int, least: int, total: int, num_workers: int) -> int:
    """Items a chunk: `most`, or what gives every one of several workers a few chunks, but not below `least`.

    One worker has `most`: a chunk's size changes the last digits of what a GPU computes for it.
    """
    if num_workers == 1:
        return most
    return min(most, max(least, -(-total // (CHUNKS_A_WORKER * num_workers))))


def compute_ahead(compute: Callable[[Item], Output], items: Iterable[Item]) -> Iterator[Output]:
    """`compute` of each item, in order. Those to come are computed in a thread: tokenizers and numpy release Python's
    lock, so that a device need not wait for them."""
    coming: deque[Future[Output]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        for item in items:
            coming.append(pool.submit(compute, item))
            if len(coming) > ITEMS_AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def pad_rows(rows: Sequence[Sequence[int] | np.ndarray], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of token ids as one array, int64 (rows, longest, at least 1), and the bool array of what is not padding."""
    lengths = np.array(list(map(len, rows)))
    filled = np.arange(max(1, lengths.max())) < lengths[:, None]
    padded = np.full(filled.shape, padding, dtype=np.int64)
    padded[filled] = np.concatenate(rows)
    return padded, filled


def send(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on a device; to a GPU through pinned memory, from which the copy does not wait for the device."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def attention_mask(mask: torch.Tensor, all_real: bool, config) -> torch.Tensor | None:
    """The mask of real tokens, bool (rows, tokens), as a cross-encoder or encoder takes it; None where all are real.

    Given two dimensions, transformers looks whether all tokens are real, and for that the host waits for the device in
    every batch. A mask of four dimensions it takes as it is, for models that only hide what is padding.
    """
    if all_real:
        return None
    if config.model_type in HIDE_PADDING_ONLY and config._attn_implementation == "sdpa":
        return mask[:, None, None, :]
    return mask.long()


class BatchBudget:
    """How much goes through a model at once.

    Args:
        tokens: padded tokens a batch; None: no bound.
        rows: most items a batch; None: no bound.

    Attributes:
        tokens: as given, or what is left of it: memory that ran out halves it for the rest of the run.
    """

    def __init__(self, tokens: int | None, rows: int | None = None) -> None:
        self.tokens = tokens
        self.rows = rows

    def run(
        self, lengths: Sequence[int], forward: Callable[[list[int]], Output], even: bool = False
    ) -> Iterator[tuple[list[int], Output]]:
        """(items, output) of each batch, longest items first; items of one length keep their order.

        Args:
            lengths: of each item, in tokens, what is added to it (new tokens) included.
            forward: from the positions of a batch's items to its output. It may raise torch.OutOfMemoryError.
            even: end batches where the length changes, once they are filled a little.

        Raises:
            torch.OutOfMemoryError: one item alone does not fit.
        """
        order = sorted(range(len(lengths)), key=lambda item: -lengths[item])
        start = 0
        while start < len(order):
            batch = order[start : self._end(order, start, lengths, even)]
            failed = False
            try:
                output = forward(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                failed = True
            if failed:  # outside the handler, whose traceback holds the batch's tensors
                self.halve(len(batch) * max(1, lengths[batch[0]]))
                continue
            yield batch, output
            del output  # before the next batch needs its memory
            start += len(batch)

    def halve(self, tokens: int) -> None:
        """Remembers that `tokens` at once were too many."""
        self.tokens = max(1, tokens // 2)
        logger.warning("out of memory: batches of %d tokens from now on", self.tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _end(self, order: list[int], start: int, lengths: Sequence[int], even: bool) -> int:
        longest = max(1, lengths[order[start]])
        rows = len(order) - start
        if self.tokens is not None:
            rows = min(rows, max(1, self.tokens // longest))
        if self.rows is not None:
            rows = min(rows, self.rows)
        if not even:
            return start + rows
        for position in range(start + 1, start + rows):
            full = self.tokens is None or (position - start) * longest * LEAST_FILL >= self.tokens
            if full and lengths[order[position]] != lengths[order[position - 1]]:
                return position
        return start + rows
