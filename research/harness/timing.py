"""Seconds and memory, on a processor or a CUDA device, of a call and of the stages of a guided step."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from jepa_core import RarityGradient
from research.harness.pack_api import chain, image_gradient

GIB = 1 << 30

DENOISER = "denoiser"
DENOISER_WITH_GRAPH = "denoiser, forward"
DENOISER_BACKWARD = "denoiser, backward"
DECODER_FORWARD = "decoder, forward"
DECODER_BACKWARD = "decoder, backward"
ENCODER = "encoder, gradient"
REST = "rest"


def clock() -> float:
    """Seconds, once the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def processor_seconds(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and the seconds that the processor spent on it, whatever else the machine does."""
    begun = time.process_time()
    result = run()
    return result, time.process_time() - begun


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and its seconds."""
    begun = clock()
    result = run()
    return result, clock() - begun


def seconds_of(run: Callable[[], object], repeats: int = 3) -> float:
    """The median of some runs, the first of which is not counted if there are others."""
    found = [timed(run)[1] for _ in range(repeats)]
    return round(statistics.median(found[1:] or found), 4)


def peak_memory(run: Callable[[], object]) -> dict[str, float]:
    """GiB that tensors hold on the device while `run` runs, at most, and how much more that is than before it."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    peak = torch.cuda.max_memory_allocated()
    return {"peak_GiB": round(peak / GIB, 3), "above_weights_GiB": round((peak - before) / GIB, 3)}


@dataclass(slots=True)  # guidance puts back what patches remember of its extra calls in their attributes
class Stages:
    """Adds up seconds and operations by stage, from the first stage of a step to its end; the innermost is charged.

    operations: the count so far. on_step: called with the number of steps so far after each. steps: for each,
    {stage: (seconds, operations)}. encoder_calls: of each gradient, in turn.
    """

    operations: Callable[[], int] = lambda: 0
    on_step: Callable[[int], object] = lambda _: None
    steps: list[dict[str, tuple[float, int]]] = field(default_factory=list)
    encoder_calls: list[int] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)
    _charged: dict[str, tuple[float, int]] = field(default_factory=dict)
    _last: tuple[float, int] | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge what runs in the block to `name`."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def finish_step(self) -> None:
        """End a step; the next one starts at once."""
        self._charge()
        step, self._charged = self._charged, {}
        if DENOISER_WITH_GRAPH not in step and DENOISER_BACKWARD in step:
            # held constant, the denoiser has no backward pass, and this was the small change around the chain
            (seconds, operations), (more, others) = step.get(REST, (0.0, 0)), step.pop(DENOISER_BACKWARD)
            step[REST] = (seconds + more, operations + others)
        self.steps.append(step)
        self.on_step(len(self.steps))

    def _charge(self) -> None:
        now = (clock(), self.operations())
        if self._last is not None:
            name = self._open[-1] if self._open else REST
            seconds, operations = self._charged.get(name, (0.0, 0))
            self._charged[name] = (seconds + now[0] - self._last[0], operations + now[1] - self._last[1])
        self._last = now

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block, the parts of the guidance chain report here; what they compute stays the same."""
        parts = [
            (chain, "decoded", DECODER_FORWARD),
            # what these do themselves, beside the parts above and below, is the backward pass
            (chain.LatentGradient, "of_latent", DECODER_BACKWARD),
            (chain.LatentGradient, "__call__", DENOISER_BACKWARD),
            (RarityGradient, "__call__", ENCODER),
            (image_gradient, "novelty_gradient", ENCODER),
        ]
        with ExitStack() as patches:
            for owner, name, stage in parts:
                patches.enter_context(patch.object(owner, name, self._wrapped(getattr(owner, name), stage)))
            yield

    def _wrapped(self, function: Callable, stage: str) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.stage(stage):
                result = function(*args, **kwargs)
            self.encoder_calls += [result.encoder_calls] if stage == ENCODER else []
            return result

        return run

    def watch_denoiser(self, apply_model: Callable, call: dict[str, Any]) -> Tensor:
        """For set_model_unet_function_wrapper."""
        with self.stage(DENOISER_WITH_GRAPH if call["input"].requires_grad else DENOISER):
            return apply_model(call["input"], call["timestep"], **call["c"])


def count_operations() -> FlopCounterMode:
    """Torch's counter, taught the processor's kernel of attention."""
    aten: Any = torch.ops.aten

    kernels: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: (
            sdpa_backward_flop_count(*shapes[:4])
        ),
    }
    counter = FlopCounterMode(display=False, custom_mapping=kernels)
    # its own record of modules has hooks that fail in torch.autograd.grad
    record: Any = nullcontext()
    record.parents = {"Global"}
    counter.mod_tracker = record
    return counter
