"""Greedy decoding of many prompts at once, for models that take an attention mask and positions of ours.

What transformers' `generate` writes, written sooner: the prompts' common start goes through the model once, keys and
values are written in place instead of being copied at every token, a row that has ended leaves the batch, and heads
that share keys and values read them without copies.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gainRAG.common.models import input_device

# Architectures known to add a 4D mask and given positions as they are, to read logits off one linear layer without
# scale or cap, and to keep plain keys and values in their cache; each is held to the definition by a test.
MASKED_MODEL_TYPES = {"gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"}
GROUPED = "grouped_sdpa"  # this file's attention, by the name that transformers is given
MASKED_ATTENTION = {"eager", "sdpa", GROUPED}
SHORTEST_PREFIX = 16  # tokens; a shorter common start costs more in bookkeeping than it saves


def takes_masks(model, longest: int = 0) -> bool:
    """Whether the model takes a 4D attention mask and positions of ours.

    Args:
        longest: tokens of the longest row; a sliding window shorter than it needs a mask that we do not make.
    """
    attention = getattr(model.config, "_attn_implementation", None)
    window = getattr(model.config.get_text_config(decoder=True), "sliding_window", None)
    fits = window is None or longest <= window
    return model.config.model_type in MASKED_MODEL_TYPES and attention in MASKED_ATTENTION and fits


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Of bool (rows, queries, keys) what attention adds to its scores: (rows, 1, queries, keys), lowest where False."""
    visible = visible[:, None]
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def read_start(decoder, tokens: Sequence[int], device: torch.device) -> list:
    """Runs `tokens` once; the cache's layers, whose `keys` and `values` are (1, heads, tokens, size)."""
    cache = DynamicCache()
    decoder(input_ids=torch.tensor([tokens], device=device), past_key_values=cache, use_cache=True)
    return cache.layers


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """The number of tokens that all rows begin with; at least the last of each row is left out."""
    first, last = min(rows), max(rows)
    limit = min(map(len, rows)) - 1
    length = next((at for at in range(limit) if first[at] != last[at]), limit)
    return length if length >= SHORTEST_PREFIX else 0


def share_heads(model) -> None:
    """Has the model's attention read shared keys and values without copies where it decodes one token a row."""

    def attend(module, query, key, value, attention_mask, scaling=None, **options):
        rows, heads, tokens, size = query.shape
        shared = heads // key.shape[1]
        if tokens > 1 or shared == 1 or attention_mask is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        query = query.reshape(rows, -1, shared, size)  # the heads of a group, as if they were tokens
        output = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
        return output.reshape(rows, 1, heads, size), None

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(GROUPED, attend)
        AttentionMaskInterface.register(GROUPED, sdpa_mask)
        model.set_attn_implementation(GROUPED)


class ReservedLayer(DynamicLayer):
    """Writes into (rows, heads, reserved positions, size), behind `filled` positions."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, filled: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.reserved, self.filled = (keys, values), filled

    def update(self, key_states, value_states, *args, **kwargs):
        start, self.filled = self.filled, self.filled + key_states.shape[-2]
        for kept, new in zip(self.reserved, (key_states, value_states), strict=True):
            kept[:, :, start : self.filled] = new
        return tuple(kept[:, :, : self.filled] for kept in self.reserved)

    def get_seq_length(self) -> int:
        return self.filled


def _reserved_cache(keys: list[torch.Tensor], values: list[torch.Tensor], filled: int) -> Cache:
    return Cache(layers=[ReservedLayer(*pair, filled) for pair in zip(keys, values, strict=True)])


class _Batch:
    """Rows in decoding: left-padded between the common start and their own tokens, those at work first.

    Attributes:
        numbers: which of the caller's rows each place holds.
        visible: bool (rows, reserved positions): False where a row is padded.
        positions: of each row's next token.
    """

    def __init__(self, model, rows: Sequence[list[int]], max_new_tokens: int) -> None:
        self.model, self.decoder, self.rows = model, model.get_decoder(), rows
        self.device = input_device(model)
        self.prefix = common_start(rows)
        self.filled = max(map(len, rows))
        room = self.filled + max_new_tokens
        self.numbers = torch.arange(len(rows))
        self.positions = torch.tensor([[len(row)] for row in rows], device=self.device)
        columns = torch.arange(room, device=self.device)
        padding = self.filled - self.positions
        self.visible = (columns < self.prefix) | (columns >= self.prefix + padding)
        # Without a common start, one token tells what a layer keeps.
        start = read_start(self.decoder, rows[0][: max(1, self.prefix)], self.device)
        self.keys = [self._reserve(layer.keys, room) for layer in start]
        self.values = [self._reserve(layer.values, room) for layer in start]

    def _reserve(self, common: torch.Tensor, room: int) -> torch.Tensor:
        kept = common.new_empty(len(self.rows), common.shape[1], room, common.shape[3])
        kept[:, :, : self.prefix] = common[:, :, : self.prefix]
        return kept

    def read_prompts(self, part: slice) -> torch.Tensor:
        """The first new token of these rows, whose keys and values are kept."""
        rows, new = self.rows[part], self.filled - self.prefix
        ids = [[0] * (self.filled - len(row)) + row[self.prefix :] for row in rows]
        causal = torch.ones(new, self.filled, dtype=torch.bool, device=self.device).tril(self.prefix)
        visible = causal & self.visible[part, None, : self.filled]
        # Padding sees itself: attention to nothing would give NaN.
        visible[:, :, self.prefix :].diagonal(dim1=1, dim2=2).fill_(True)
        ends = self.positions[part]
        positions = torch.arange(self.prefix, self.filled, device=self.device) - (self.filled - ends)
        cache = _reserved_cache([k[part] for k in self.keys], [v[part] for v in self.values], self.prefix)
        return self._next(torch.tensor(ids, device=self.device), visible, positions.clamp(min=0), cache)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """The token that follows each row's last one, `tokens` (rows,)."""
        cache = _reserved_cache(self.keys, self.values, self.filled)
        self.filled += 1
        following = self._next(tokens[:, None], self.visible[:, None, : self.filled], self.positions, cache)
        self.positions += 1
        return following

    def _next(self, ids: torch.Tensor, visible: torch.Tensor, positions: torch.Tensor, cache) -> torch.Tensor:
        states = self.decoder(
            input_ids=ids,
            attention_mask=additive_mask(visible, self.model.dtype),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self.model.get_output_embeddings()(states[:, -1]).float().argmax(-1)

    def drop(self, ended: list[int], tokens: torch.Tensor) -> torch.Tensor:
        """Moves rows from the back into the places of rows that ended; `tokens` alike."""
        left = len(self.numbers) - len(ended)
        moved = sorted(set(range(left, len(self.numbers))) - set(ended))
        places = [place for place in ended if place < left]

        def close_gaps(kept: torch.Tensor) -> torch.Tensor:
            to, source = (torch.tensor(rows, dtype=torch.long, device=kept.device) for rows in (places, moved))
            return kept.index_copy_(0, to, kept[source])[:left]

        self.numbers, self.positions, self.visible = map(close_gaps, (self.numbers, self.positions, self.visible))
        self.keys, self.values = list(map(close_gaps, self.keys)), list(map(close_gaps, self.values))
        return close_gaps(tokens)


@torch.inference_mode()
def decode_greedily(
    model, rows: Sequence[list[int]], max_new_tokens: int, ends: set[int], prefill_tokens: int
) -> list[list[int]]:
    """The tokens that greedy decoding adds to each row, the one that ends it included.

    Args:
        model: a causal LM of transformers that `takes_masks`, in evaluation mode.
        rows: token ids of the prompts, none empty.
        max_new_tokens: the most tokens a row.
        ends: tokens that end a row.
        prefill_tokens: tokens of prompts that are read at once, padding included.

    Raises:
        torch.OutOfMemoryError: the rows do not fit into memory together.
    """
    batch = _Batch(model, rows, max_new_tokens)
    size = max(1, prefill_tokens // (batch.filled - batch.prefix))
    parts = [slice(first, first + size) for first in range(0, len(rows), size)]
    tokens = torch.cat([batch.read_prompts(part) for part in parts])
    written: list[list[int]] = [[] for _ in rows]
    for left in reversed(range(max_new_tokens)):
        ended = []
        for place, (number, token) in enumerate(zip(batch.numbers.tolist(), tokens.tolist(), strict=True)):
            written[number].append(token)
            if token in ends:
                ended.append(place)
        if not left or len(ended) == len(tokens):
            break
        if ended:
            tokens = batch.drop(ended, tokens)
        tokens = batch.step(tokens)
    return written
