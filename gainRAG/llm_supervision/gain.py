"""The gain of a passage: contrastive and plain perplexity of the gold answers (arXiv:2505.18710, section 3.1).

    scorer = GainScorer(model, tokenizer, alpha=0.5)
    for gains in scorer.score(GainRequest(question_prompt, passage_prompts, answers) for ...):
        gains[0].ppl_cd, gains[0].ppl

With logits z_c after (passage, question) and z_0 after the question alone, z = (1 + alpha) z_c - alpha z_0, and
PPL_CD = exp(-mean log softmax(z)[answer token]). A low value says that the passage helps the model to the answer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from gainRAG.common.batching import CPU_LLM_TOKENS, LLM_TOKENS, BatchBudget
from gainRAG.evaluation.gains import perplexity_of
from gainRAG.llm_inference.build_prompts import encode_answers, encode_prompts
from gainRAG.llm_inference.decoding import common_start
from gainRAG.llm_supervision.answer_tree import AnswerTree, BranchedModel, Prefix, Row

WINDOW_BATCHES = 8  # batches' worth of tokens that are sorted by length together
SLICE_LOGITS = 4096  # float32 logits held at once for each token of the budget: 256 MiB at 16384 tokens


@dataclass(frozen=True)
class GainRequest:
    """One question: full prompt texts of `PromptBuilder` without and with each passage, and its gold answers."""

    question_prompt: str
    passage_prompts: list[str]
    answers: list[str]


@dataclass(frozen=True)
class PassageGain:
    """Perplexity of the best answer under the contrast of the two contexts, and under the passage's alone."""

    ppl_cd: float
    ppl: float


@dataclass(frozen=True)
class _Encoded:
    """A request as rows: for each tree of answers one for the question alone, and one for each passage."""

    questions: list[Row]
    passages: list[Row]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.questions)) + sum(map(len, self.passages))


class GainScorer:
    """Scores passages for questions, many at a time.

    Args:
        model: a decoder-only causal LM of transformers.
        tokenizer: its tokenizer.
        alpha: weight of the contrast; 0 makes `ppl_cd` equal `ppl`.
        max_batch_tokens: padded tokens in a batch (None: LLM_TOKENS), on a CPU at most CPU_LLM_TOKENS; memory that runs
            out halves it.
        chat: whether the prompts have a chat template; see `build_prompts.encode_answers`.
    """

    def __init__(
        self, model, tokenizer, alpha: float = 0.5, max_batch_tokens: int | None = None, chat: bool = True
    ) -> None:
        max_batch_tokens = max_batch_tokens or LLM_TOKENS
        self.model = BranchedModel(model)
        self.tokenizer = tokenizer
        self.alpha = alpha
        self.chat = chat
        on_cpu = self.model.device.type == "cpu"
        self.budget = BatchBudget(min(max_batch_tokens, CPU_LLM_TOKENS) if on_cpu else max_batch_tokens)
        self._window_tokens = WINDOW_BATCHES * max_batch_tokens

    def score(self, requests: Iterable[GainRequest]) -> Iterator[list[PassageGain]]:
        """Gains in the order of the requests, one entry a passage; reads as far ahead as a few batches need.

        Raises:
            ValueError: a request has no answers, or an answer or a prompt of no tokens, or more tokens than the model
                has positions. The message names the request's index.
        """
        for window in self._windows(requests):
            for lowest in self._lowest_nll(window):
                contrasts, plains = lowest.tolist()
                yield [
                    PassageGain(perplexity_of(contrast), perplexity_of(plain))
                    for contrast, plain in zip(contrasts, plains, strict=True)
                ]

    def _windows(self, requests: Iterable[GainRequest]) -> Iterator[list[_Encoded]]:
        window, tokens = [], 0
        for index, request in enumerate(requests):
            window.append(self._encode(index, request))
            tokens += window[-1].tokens
            if tokens >= self._window_tokens:
                yield window
                window, tokens = [], 0
        if window:
            yield window

    def _encode(self, index: int, request: GainRequest) -> _Encoded:
        texts, golds = [request.question_prompt, *request.passage_prompts], list(dict.fromkeys(request.answers))
        prompts = encode_prompts(self.tokenizer, texts, self.chat)
        answers = encode_answers(self.tokenizer, golds, self.chat)
        for text, tokens in zip([*texts, *golds], [*prompts, *answers], strict=True):
            if not tokens:
                raise ValueError(f"request {index}: {text!r} has no tokens")
        if not answers:
            raise ValueError(f"request {index}: no answers")
        if not request.passage_prompts:
            return _Encoded([], [])
        trees = [AnswerTree(answers)]
        rows = [Row(prompt, trees[0]) for prompt in prompts]
        longest = max(row.extent for row in rows)
        if self.model.max_positions and longest > self.model.max_positions:
            limit = self.model.max_positions
            raise ValueError(f"request {index}: {longest} tokens of prompt and answer, the model has {limit} positions")
        if not trees[0].is_chain and not self.model.takes_branches(rows):
            trees = [AnswerTree([answer]) for answer in answers]
        questions = [Row(prompts[0], tree) for tree in trees]
        return _Encoded(questions, [Row(prompt, tree) for tree in trees for prompt in prompts[1:]])

    def _lowest_nll(self, window: Sequence[_Encoded]) -> Iterator[torch.Tensor]:
        """Of each request the best answer's mean negative log-likelihood, float64 (contrastive and plain, passages), on
        the device."""
        without = iter(self._hidden_states([row for encoded in window for row in encoded.questions]))
        given = iter(self._hidden_states([row for encoded in window for row in encoded.passages]))
        for encoded in window:
            if not encoded.questions:
                yield torch.empty(2, 0)
                continue
            count = len(encoded.passages) // len(encoded.questions)
            nll = [
                self._fitting_nll(row.tree, next(without), torch.stack([*islice(given, count)]))
                for row in encoded.questions
            ]
            yield torch.cat(nll, dim=2).amin(dim=2)

    def _hidden_states(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """States of each row, from batches of like length, longest first, rows without forks apart from the others."""
        prefix = self._common_prefix(rows)
        states: list[torch.Tensor | None] = [None] * len(rows)
        for is_chain in (False, True):
            kind = [index for index, row in enumerate(rows) if row.tree.is_chain == is_chain]
            lengths = [len(rows[index]) - prefix.length for index in kind]
            forward = partial(self._forward, [rows[index] for index in kind], prefix)
            for batch, found in self.budget.run(lengths, forward):
                for position, state in zip(batch, found, strict=True):
                    states[kind[position]] = state
        return states

    def _forward(self, rows: Sequence[Row], prefix: Prefix, batch: list[int]) -> list[torch.Tensor]:
        return self.model.hidden_states([rows[position] for position in batch], prefix)

    def _common_prefix(self, rows: Sequence[Row]) -> Prefix:
        """What all prompts start with, computed once; at least each prompt's last token stays in its row."""
        if len(rows) < 2 or not self.model.takes_branches(rows):
            return Prefix()
        length = common_start([row.prompt for row in rows])
        return self.model.prefix(rows[0].prompt[:length]) if length else Prefix()

    def _fitting_nll(self, tree: AnswerTree, without: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        while True:
            try:
                return self._answer_nll(tree, without, given)
            except torch.OutOfMemoryError:
                if self.budget.tokens == 1:
                    raise
            self.budget.halve(self.budget.tokens)  # outside the handler, whose traceback holds the slice's tensors

    @torch.inference_mode()
    def _answer_nll(self, tree: AnswerTree, without: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood of the tree's answers, float64 (contrastive and plain, passages, answers).

        Args:
            tree: the answers.
            without: states after the question alone (1 + nodes, hidden size).
            given: states after each passage and the question (passages, 1 + nodes, hidden size).
        """
        read = [node for reads in tree.reads for node in reads]
        nodes = torch.tensor(read, device=given.device)
        targets = torch.tensor([token for answer in tree.answers for token in answer], device=given.device)
        found = torch.empty(2, len(given), len(nodes), device=given.device)
        step = max(1, self.budget.tokens * SLICE_LOGITS // self.model.config.vocab_size)
        for low in range(0, len(without), step):
            high = min(low + step, len(without))
            here = torch.tensor([place for place, node in enumerate(read) if low <= node < high], device=given.device)
            z_0 = self.model.logits(without[low:high])
            passages = max(1, step // (high - low))
            for first in range(0, len(given), passages):
                part = slice(first, first + passages)
                z = self.model.logits(given[part, low:high])
                found[1, part, here] = _log_likelihood(z, nodes[here] - low, targets[here])
                z.mul_(1 + self.alpha).sub_(z_0, alpha=self.alpha)
                found[0, part, here] = _log_likelihood(z, nodes[here] - low, targets[here])
        lengths = [len(answer) for answer in tree.answers]
        return torch.stack([-part.double().mean(dim=2) for part in found.split(lengths, dim=2)], dim=2)


def _log_likelihood(logits: torch.Tensor, nodes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(passages, targets) log-probabilities from float32 logits (passages, nodes, vocabulary)."""
    return logits[:, nodes, targets] - logits.logsumexp(dim=-1)[:, nodes]
