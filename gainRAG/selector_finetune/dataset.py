"""Groups of passages for distillation: reading, sampling, tokenising, padding."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from FlagEmbedding.abc.finetune.reranker import AbsRerankerCollator
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from gainRAG.common.jsonl import Record, read_records
from gainRAG.common.schemas import as_training_group


def read_groups(paths: list[str]) -> list[Record]:
    """All groups of the files.

    Raises:
        UserError: a file or record is unusable, a score is not finite: names file, line and field.
    """
    return [group for path in paths for group in read_records(path, as_training_group)]


class GroupDataset(Dataset):
    """One item a question: its tokenised pairs and the teacher's scores.

    A training group is one positive and `group_size - 1` negatives drawn without repetition; what is drawn depends on
    seed, epoch and question alone. Repeating a negative to fill a small group would count it twice in both softmaxes,
    so a small group stays small. Without `group_size` a group is every passage, in an order that does not tell the
    positive ones.

    Args:
        groups: from `read_groups`.
        tokenizer: the selector's.
        max_length: tokens a pair; the passage is cut, and the question only if it fills the pair alone.
        seed: of the sampling.
        group_size: passages a group, None for all.
        resample: draw anew each epoch.
    """

    def __init__(
        self,
        groups: list[Record],
        tokenizer,
        max_length: int,
        seed: int,
        group_size: int | None = None,
        resample: bool = True,
    ) -> None:
        self.groups = groups
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.seed = seed
        self.group_size = group_size
        self.resample = resample
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that outlive an epoch see the next

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def epoch(self) -> int:
        """The epoch that groups are drawn for."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def passages(self, index: int) -> list[tuple[str, float]]:
        """The texts of a question's group in this epoch, each with the teacher's score."""
        group = self.groups[index]
        positives = list(zip(group["pos"], group["pos_scores"], strict=True))
        negatives = list(zip(group["neg"], group["neg_scores"], strict=True))
        draw = random.Random(f"{self.seed} {self.epoch if self.resample else 0} {group['query']}")
        if self.group_size is None:
            return draw.sample(positives + negatives, len(positives + negatives))
        return [draw.choice(positives), *draw.sample(negatives, min(self.group_size - 1, len(negatives)))]

    def lengths(self) -> list[int]:
        """Of each question its longest pair, in characters: near enough to group questions of a length."""
        return [len(group["query"]) + max(map(len, group["pos"] + group["neg"])) for group in self.groups]

    def __getitem__(self, item: "int | Weighted") -> tuple[list[dict[str, list[int]]], list[float], float]:
        """The tokenised pairs of a group, the teacher's scores, and the group's weight in the loss."""
        index, weight = item if isinstance(item, Weighted) else (item, 1.0)
        texts, scores = zip(*self.passages(index), strict=True)
        return self._pairs(self.groups[index]["query"], list(texts)), list(scores), weight

    def _pairs(self, query: str, texts: list[str]) -> list[dict[str, list[int]]]:
        room = self.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        too_long = len(self.tokenizer(query, add_special_tokens=False, verbose=False)["input_ids"]) >= room
        encoded = self.tokenizer(
            [query] * len(texts),
            texts,
            truncation="longest_first" if too_long else "only_second",
            max_length=self.max_length,
        )
        return [{name: encoded[name][row] for name in encoded} for row in range(len(texts))]


class Weighted(NamedTuple):
    """A question of an update that is filled up: its index, and what its loss is multiplied by."""

    index: int
    weight: float


class EpochOrder(Sampler[int]):
    """The order of a dataset's questions: by seed and epoch alone, so a resumed run and any number of processes agree.

    Args:
        dataset: knows the epoch.
        lengths: of the questions, to put such of a length together; None for a plain shuffle.
        update_size: questions an update sees; those of a length are put together by it.
        fill_to: questions that all processes take at a time, once an update or several times. The last, short update is
            filled up to it with questions whose loss does not count; the others count so much the more that the update
            follows the mean over its own questions. 1 fills nothing.
        drop_last: whether the last, short update is dropped, and so not filled.
    """

    def __init__(
        self,
        dataset: GroupDataset,
        lengths: list[int] | None = None,
        update_size: int = 1,
        fill_to: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.lengths = lengths
        self.update_size = update_size
        self.fill_to = fill_to
        self.drop_last = drop_last

    def __len__(self) -> int:
        if self.drop_last:
            return len(self.dataset) // self.update_size * self.update_size
        return math.ceil(len(self.dataset) / self.fill_to) * self.fill_to

    def __iter__(self) -> Iterator[int | Weighted]:
        order = self._order()
        short = len(order) % self.update_size if self.drop_last or self.fill_to > 1 else 0
        whole = len(order) - short
        yield from order[:whole]
        filled = len(self) - whole
        last = itertools.islice(itertools.cycle(order[whole:]), filled)
        yield from (Weighted(index, filled / short if place < short else 0.0) for place, index in enumerate(last))

    def _order(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.dataset.seed + self.dataset.epoch)
        if self.lengths:
            return get_length_grouped_indices(self.lengths, self.update_size, generator=generator)
        return torch.randperm(len(self.dataset), generator=generator).tolist()


@dataclass
class GroupCollator(AbsRerankerCollator):
    """Pads the pairs to the longest of the batch, and the teacher's scores to the widest group with -inf."""

    def __call__(self, features: list[tuple]) -> dict:
        """A batch as `DistilledCrossEncoder.forward` takes it."""
        pairs, scores, weights = zip(*features, strict=True)
        rows = [torch.tensor(row, dtype=torch.float32) for row in scores]
        return {
            "teacher_scores": pad_sequence(rows, batch_first=True, padding_value=-torch.inf),
            "weights": torch.tensor(weights, dtype=torch.float32),
            "pair": dict(super().__call__(list(zip(pairs, scores, strict=True)))["pair"]),
        }
