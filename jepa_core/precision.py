"""Scoped changes of torch's state: autograd under inference mode, full and half precision."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .half_derivatives import HalfDerivatives


def same_storage(tensor: Tensor) -> Tensor:
    """Return a new tensor over the storage of `tensor`, without a copy; outside inference mode, a normal tensor.

    A subclass keeps its class and attributes (quantised weights, other packs' weight formats).
    """
    if hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        inner = {name: same_storage(getattr(tensor, name)) for name in names}
        subclass: Any = type(tensor)
        return subclass.__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
    # bypass methods that a subclass overrides: it may report the shape of the dequantised weight
    with torch._C.DisableTorchFunctionSubclass():
        size, stride = Tensor.size(tensor), Tensor.stride(tensor)
        alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        alias.set_(Tensor.untyped_storage(tensor), Tensor.storage_offset(tensor), size, stride)
        if type(tensor) in (Tensor, nn.Parameter):
            return alias
        alias = alias.as_subclass(type(tensor))
        vars(alias).update(vars(tensor))
        return alias


def as_weight(tensor: Tensor) -> Tensor:
    """The tensor as a frozen parameter; a tensor that already is a parameter is returned as it is."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False)


@contextmanager
def differentiable(*modules: nn.Module) -> Iterator[None]:
    """Let autograd differentiate through `modules` with respect to their input, even under inference mode.

    Weights made under torch.inference_mode() cannot be saved for a backward pass. Inside the block each one is
    replaced by a normal tensor over the same storage, without a copy; the originals are restored on any exit.
    Weights receive no gradients.
    """
    originals: list[tuple[dict, str, Tensor]] = []
    aliases: dict[int, Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad():
        try:
            for module in {id(part): part for root in modules for part in root.modules()}.values():
                tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
                for table in tables:
                    for name, tensor in table.items():
                        if tensor is None or tensor.is_meta:
                            continue
                        if not tensor.is_inference() and not tensor.requires_grad:
                            continue
                        if id(tensor) not in aliases:
                            alias = same_storage(tensor) if tensor.is_inference() else tensor.detach()
                            is_parameter = isinstance(tensor, nn.Parameter)
                            aliases[id(tensor)] = as_weight(alias) if is_parameter else alias
                        originals.append((table, name, tensor))
                        table[name] = aliases[id(tensor)]
            yield
        finally:
            for table, name, tensor in originals:
                table[name] = tensor


def _switches() -> list[tuple[Any, str, Any]]:
    """The switches that allow reduced-precision float32 products: owner, name, the exact setting."""
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        owners = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
        return [(owner, "fp32_precision", "ieee") for owner in owners]
    # torch before 2.9
    return [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 as float32: no autocast on `device`'s type, no TF32, no bfloat16 products.

    Finite differences of encoder outputs lose most of their digits at lower precision: half precision keeps only a
    quarter of the singular subspace.
    """
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in _switches()]
    try:
        for owner, name, exact in _switches():
            setattr(owner, name, exact)
        # tensors without data ("meta") are only counted
        with nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False):
            yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware; emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        abilities = torch.cpu.get_capabilities()
        return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    return False


@contextmanager
def half_precision(device: torch.device) -> Iterator[None]:
    """Multiply matrices in bfloat16 where `device` is fast at it; elsewhere the same as full_precision.

    On a CPU only in derivatives (HalfDerivatives). Accurate enough for automatic derivatives (VJPs along the top left
    singular vectors keep a cosine of 0.997), never for finite differences. Float64 is not affected.
    """
    fast = has_fast_bfloat16(device)
    on_cpu = device.type == "cpu"
    with (
        full_precision(device),
        torch.autocast(device.type, torch.bfloat16, fast and not on_cpu),
        HalfDerivatives() if fast and on_cpu else nullcontext(),
    ):
        yield
