"""Counts what a call computes and the most memory that it holds, on the meta device as on any other."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class LiveMemory(TorchDispatchMode):
    """Bytes of the storages that are made inside it on one kind of device, and the most that were alive at once."""

    def __init__(self, kind: str = "meta") -> None:
        super().__init__()
        self.kind, self.live, self.peak = kind, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        for tensor in tree_leaves(output):
            if torch.is_tensor(tensor) and tensor.device.type == self.kind:
                self._add(tensor.untyped_storage(), given)
        return output

    def _add(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in given:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@dataclass(frozen=True)
class Count:
    """FLOPs of a call, and the most bytes that it held."""

    flops: float
    peak: float


def count(run: Callable[[], object], kind: str = "meta") -> Count:
    """Runs it twice: while it counts FLOPs, torch's counter keeps tensors that the run itself lets go."""
    with FlopCounterMode(display=False) as flops:
        run()
    with LiveMemory(kind) as memory:
        run()
    return Count(flops.get_total_flops(), memory.peak)


def weight_bytes(model: torch.nn.Module) -> int:
    """The bytes of a model's parameters."""
    return sum(weight.nbytes for weight in model.parameters())
