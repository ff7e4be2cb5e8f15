"""Networks of a run without data: their structure with weights that have shapes only, and the calls made of them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..comfy.required import attention_pytorch, vae_attention_pytorch
from ..gradient.compiled import uncompiled
from ..gradient.residency import twin_of

META = torch.device("meta")
# Patches of other nodes hold data, which cannot meet tensors without.
_WITH_DATA = ("patches", "patches_replace", "wrappers", "callbacks")


class Call(NamedTuple):
    """The arguments of one call of a network, with tensors that have no data."""

    args: tuple
    kwargs: dict


def without_data(module: nn.Module) -> nn.Module:
    """A copy of a network whose weights, and tensors among its attributes, have shapes only. Shares everything else."""
    with uncompiled(module):
        copied = _without_data(module)
    for part in copied.modules():
        if "optimized_attention" in vars(part):
            # of VAEs; on a processor the host takes slices, which ask how much memory is free
            part.optimized_attention = vae_attention_pytorch
    return copied


def _without_data(module: nn.Module) -> nn.Module:
    twins: dict[int, Any] = {}
    for part in module.modules():
        own = (*part._parameters.values(), *part._buffers.values(), *vars(part).values())
        for tensor in own:
            if isinstance(tensor, Tensor):
                meta = _meta(tensor)
                twins[id(tensor)] = nn.Parameter(meta, False) if isinstance(tensor, nn.Parameter) else meta
    return twin_of(module, twins)  # type: ignore[no-any-return]


def _meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)


@contextmanager
def _recording(network: nn.Module, channels: int) -> Iterator[list[Call]]:
    """Within the block, the network returns zeros in the size of its input, and its calls are recorded."""
    calls: list[Call] = []

    def record(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        options = kwargs.get("transformer_options", {})
        plain = {name: part for name, part in options.items() if name not in _WITH_DATA}
        plain["optimized_attention_override"] = lambda _, *qkv, **more: attention_pytorch(*qkv, **more)
        calls.append(
            Call(tree_map(_meta, (x, *args)), tree_map(_meta, {**kwargs, "transformer_options": plain}))
        )
        return x.new_zeros((len(x), channels, *x.shape[2:]))

    before = vars(network).get("forward")
    network.forward = record
    try:
        yield calls
    finally:
        vars(network).pop("forward")
        if before is not None:
            network.forward = before


def calls_of(network: nn.Module, channels: int, run: Callable[[], Any]) -> list[Call]:
    """The calls of a network with this many output channels that `run` makes; the network itself does not run."""
    with torch.no_grad(), _recording(network, channels) as calls:
        run()
    return calls


def evaluated(network: nn.Module, calls: list[Call]) -> Callable[..., list[Tensor]]:
    """A function that makes these calls with other first arguments."""
    return lambda *inputs: [
        network(x, *call.args[1:], **call.kwargs) for x, call in zip(inputs, calls, strict=True)
    ]


def vae_without_data(vae: Any) -> Any:
    """A VAE of the host that decodes tensors without data."""
    found = copy.copy(vae)
    found.first_stage_model = without_data(vae.first_stage_model)
    found.device = META
    return found
