"""Linear layers whose weights a CPU's matrix product finds in its own order, instead of reordering them at every call.

With few rows at a time, as in decoding, reordering takes longer than the product itself.
"""

import torch
from torch import nn

PACKED_TYPES = (torch.float32, torch.bfloat16)
MOST_BYTES = 2 << 30  # of weights: packing holds them twice, which a larger model is not worth
TYPICAL_ROWS = 128  # what the order is chosen for; any number of rows may come


class PackedLinear(nn.Module):
    """What a linear layer computes, for inference alone. Its own weights stay: others may be tied to them.

    The two operators are those that torch.compile calls for frozen weights on a CPU; torch has no other name for them.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), TYPICAL_ROWS)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., features in) to (..., features out)."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")


def pack_linear_layers(model: nn.Module) -> nn.Module:
    """The model with packed linear layers; unchanged on a GPU, in other number formats, above MOST_BYTES of weights,
    and where this build of torch or this CPU cannot do it."""
    weights = list(model.parameters())
    fits = sum(weight.nbytes for weight in weights) <= MOST_BYTES
    if fits and {weight.device.type for weight in weights} == {"cpu"} and weights[0].dtype in PACKED_TYPES:
        layers = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
        if layers and _can_pack(weights[0].dtype):
            for name, layer in layers.items():
                model.set_submodule(name, PackedLinear(layer))
    return model


@torch.inference_mode()
def _can_pack(dtype: torch.dtype) -> bool:
    try:
        PackedLinear(nn.Linear(8, 8, dtype=dtype))(torch.zeros(1, 8, dtype=dtype))
    except (AttributeError, RuntimeError):  # this torch has no such operator, or none for this CPU
        return False
    return True
