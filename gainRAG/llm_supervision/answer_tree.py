"""Answers as branches after a prompt, and the hidden states of a causal LM at the positions that predict them.

A prompt goes through the model once. What its answers have in common at their start is one branch, the rest forks off:
a tree whose nodes see the prompt and their own ancestors and take the positions that follow the prompt's end. Models
whose attention takes no mask of ours (`supports_tree_mask` is False) get one answer a row: plain causal attention.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from gainRAG.common.cli import UserError
from gainRAG.common.models import input_device, longest_input
from gainRAG.llm_inference.decoding import additive_mask, read_start, takes_masks

logger = logging.getLogger(__name__)


class AnswerTree:
    """Token sequences as a tree of their prefixes; the root stands for the prompt's last token.

    Attributes:
        tokens: ids of the nodes but the root: every proper prefix of an answer, named by its last token.
        depths: their distance from the root.
        reads: for each answer, for each of its tokens, the node (0 is the root) whose hidden state predicts it.
    """

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self.answers = [tuple(answer) for answer in answers]
        nodes: dict[tuple[int, ...], int] = {(): 0}
        for answer in self.answers:
            for end in range(1, len(answer)):
                nodes.setdefault(answer[:end], len(nodes))
        self.reads = [[nodes[answer[:end]] for end in range(len(answer))] for answer in self.answers]
        self._prefixes = list(nodes)[1:]
        self.tokens = [prefix[-1] for prefix in self._prefixes]
        self.depths = [len(prefix) for prefix in self._prefixes]

    @property
    def depth(self) -> int:
        """Tokens of the longest branch."""
        return max(self.depths, default=0)

    @property
    def is_chain(self) -> bool:
        """Whether no node has two children: then attention within the tree is causal."""
        return self.depth == len(self.tokens)

    @cached_property
    def visible(self) -> torch.Tensor:
        """Bool (nodes, nodes) without the root: which nodes (columns) a node (row) sees: its ancestors and itself."""
        return torch.tensor([[node[: len(other)] == other for other in self._prefixes] for node in self._prefixes])


@dataclass(frozen=True)
class Row:
    """One row of a batch: a prompt's token ids and the answers that follow it."""

    prompt: list[int]
    tree: AnswerTree

    def __len__(self) -> int:
        return len(self.prompt) + len(self.tree.tokens)

    @property
    def extent(self) -> int:
        """The number of positions from the prompt's start to the end of the longest branch."""
        return len(self.prompt) + self.tree.depth


class ReadOnlyLayer(DynamicLayer):
    """Puts the stored keys and values before new ones and keeps nothing of the new."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states, value_states, *args, **kwargs):
        rows = key_states.shape[0]
        past = (self.keys.expand(rows, -1, -1, -1), self.values.expand(rows, -1, -1, -1))
        return torch.cat((past[0], key_states), dim=-2), torch.cat((past[1], value_states), dim=-2)


def _are_alike(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm())


@dataclass(frozen=True)
class Prefix:
    """Tokens that start several prompts and what the model's cache holds of them (None: no tokens)."""

    length: int = 0
    cache: Cache | None = None


class BranchedModel:
    """A causal LM that gives hidden states and logits at the positions that predict answers.

    Args:
        model: a decoder-only causal LM of transformers, on its device, in its dtype. It is put in evaluation mode.

    Raises:
        UserError: the model is an encoder-decoder or not causal, or its head cannot be reached apart from its body.
    """

    def __init__(self, model) -> None:
        self.model = model.eval()
        self.config = model.config.get_text_config(decoder=True)
        self.decoder = model.get_decoder()
        self.device = self.states_device = input_device(model)  # of tokens; of hidden states: see _check
        self.max_positions = longest_input(model.config)
        self.supports_tree_mask = takes_masks(model)
        if not self.supports_tree_mask:
            attention = getattr(model.config, "_attn_implementation", None)
            logger.info("%s with %s attention: one answer a row", model.config.model_type, attention)
        self._check()

    def takes_branches(self, rows: Sequence[Row]) -> bool:
        """Whether these rows may carry our own mask; a sliding window shorter than a row forbids it."""
        return takes_masks(self.model, max(row.extent for row in rows))

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits (..., vocabulary) of hidden states (..., hidden size), as the model itself makes them."""
        if self.supports_tree_mask:
            return self.model.get_output_embeddings()(hidden).float()
        return self._own_head(hidden.reshape(1, -1, hidden.shape[-1])).reshape(*hidden.shape[:-1], -1).float()

    def _own_head(self, hidden: torch.Tensor) -> torch.Tensor:
        # Scales, caps and projections differ between models: let the model's own forward make the logits of hidden
        # states put in the place of those of a one-token input.
        def replace(module, arguments, output):
            output["last_hidden_state"] = hidden
            return output

        handle = self.decoder.register_forward_hook(replace)
        try:
            return self.model(torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False).logits
        finally:
            handle.remove()

    @torch.inference_mode()
    def _check(self) -> None:
        """A row with more tokens after it must give the logits that the model gives for the row alone."""
        kind = self.model.config.model_type
        if self.model.config.is_encoder_decoder:
            raise UserError(f"{kind}: an encoder-decoder; the gain is defined for a decoder-only causal LM")
        # Tokens from all over the vocabulary: on a row of control tokens alone a bfloat16 model amplifies its rounding.
        ids = torch.linspace(1, self.config.vocab_size - 2, 12, device=self.device).long()[None]
        expected = self.model(input_ids=ids[:, :8], use_cache=False).logits[0].float()
        hidden = getattr(self.decoder(input_ids=ids, use_cache=False), "last_hidden_state", None)
        if hidden is not None:
            tolerance = 1e-3 if self.model.dtype == torch.float32 else 1e-1
            found = self.logits(hidden[0, :8])
            self.states_device = found.device  # GPUs that share the model have the head elsewhere than the embedding
            if _are_alike(found.to(expected.device), expected, tolerance):
                return
        raise UserError(f"{kind}: not a causal LM whose body and head can be run apart; use a model such as llama")

    @torch.inference_mode()
    def prefix(self, tokens: list[int]) -> Prefix:
        """Runs `tokens` once, for rows that start with them."""
        start = read_start(self.decoder, tokens, self.device)
        return Prefix(len(tokens), Cache(layers=[ReadOnlyLayer(layer.keys, layer.values) for layer in start]))

    @torch.inference_mode()
    def hidden_states(self, rows: Sequence[Row], prefix: Prefix) -> list[torch.Tensor]:
        """For each row (1 + nodes, hidden size): the states at its prompt's end and at the nodes of its tree."""
        start = prefix.length
        plain = all(row.tree.is_chain for row in rows)
        length = max(map(len, rows)) - start
        if masked := start or not plain:
            length += -(start + length) % 8  # the fused kernels copy a mask whose rows are not aligned
        inputs = {"input_ids": self._padded([row.prompt[start:] + row.tree.tokens for row in rows], length)}
        if masked:
            inputs["attention_mask"] = self._mask(rows[:1] if plain else rows, start, length)
            inputs["position_ids"] = self._padded([self._positions(row)[start:] for row in rows], length)
        output = self.decoder(**inputs, past_key_values=prefix.cache, use_cache=False)
        sizes = [1 + len(row.tree.tokens) for row in rows]
        firsts = [index * length + len(row.prompt) - 1 - start for index, row in enumerate(rows)]
        reads = torch.tensor([first + step for first, size in zip(firsts, sizes, strict=True) for step in range(size)])
        states = output.last_hidden_state.flatten(0, 1)
        return list(states[reads.to(states.device)].to(self.states_device).split(sizes))

    def _padded(self, rows: list[list[int]], length: int) -> torch.Tensor:
        return torch.tensor([row + [0] * (length - len(row)) for row in rows]).to(self.device)

    @staticmethod
    def _positions(row: Row) -> list[int]:
        end = len(row.prompt) - 1
        return [*range(len(row.prompt)), *(end + depth for depth in row.tree.depths)]

    def _mask(self, rows: Sequence[Row], start: int, length: int) -> torch.Tensor:
        """Additive (rows, 1, length, start + length): causal, but for the trees. Padding comes last: no one sees it."""
        causal = torch.ones(length, start + length, dtype=torch.bool).tril(diagonal=start)
        visible = causal.repeat(len(rows), 1, 1)
        for mask, row in zip(visible, rows, strict=True):
            if not row.tree.is_chain:
                first, size = len(row.prompt), len(row.tree.tokens)
                mask[first - start : first - start + size, first : first + size] = row.tree.visible
        return additive_mask(visible.to(self.device), self.model.dtype)
