"""The memory plan of a run: made before its first step, and followed down when memory runs out all the same."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from torch import Tensor

from ..comfy.memory import HostRoom, has_spilled
from ..comfy.models import casts_weights_by_hand
from ..comfy.sampling import needs_no_negative, shapes_of_conditioning
from ..comfy.vae import frames_of
from ..gradient.chain import LatentGradient
from ..gradient.compiled import as_written
from ..gradient.estimate import GradientChain
from ..gradient.ways import Way
from ..memory.needs import (
    Needs,
    decoder_needs,
    denoiser_needs,
    encoder_needs,
    estimate_needs,
    image_needs,
)
from ..memory.networks import calls_of
from ..memory.plan import MemoryPlan
from .trace import Trace

GIB = 1 << 30
SPILLED = (
    "torch holds more memory than the device has: the driver moved some into the system's, which is very slow. Use a "
    "smaller image or the preset subtle, or forbid it in the NVIDIA Control Panel (CUDA - Sysmem Fallback Policy)"
)


class PlannedMemory:
    """Has a run's chain take the way that fits, keeps room for it, and says so if it is not the one asked for.

    Args:
        guider: the host's guider of this run. chain: the run's own.
        x: noisy latents of the run, for their shape.
        call: evaluates the denoiser at x, as a guided step does, without a graph.
        room: the memory of the device.

    Attributes:
        needs: bytes by way; None for another gradient than the pack's own.
    """

    needs: Needs | None = None

    def __init__(
        self,
        guider: Any,
        chain: GradientChain,
        trace: Trace,
        x: Tensor,
        call: Callable[[], Any],
        room: HostRoom,
    ) -> None:
        self._room = room
        self._guider, self._chain, self._trace = guider, chain, trace
        self._x, self._call = x, call
        self._asked = chain.way
        self._spilled = self._unloaded = False
        self._plan = self._planned()

    def _planned(self) -> MemoryPlan | None:
        base_model, x = self._guider.inner_model, self._x
        ways = self._chain.ways(len(x))
        if len(ways) == 1:
            return None  # another gradient than the pack's own
        network = as_written(base_model.diffusion_model)
        guider = self._guider
        sizes = (
            tuple(x.shape),
            base_model.manual_cast_dtype,
            shapes_of_conditioning(guider.conds),
            needs_no_negative(guider),
        )
        calls = cache(partial(calls_of, network, x.shape[1], self._call))
        # a denoiser that is only evaluated is the host's concern
        estimate = (
            estimate_needs(network, calls, sizes, self._hosts_estimate())
            if self._asked.through_denoiser
            else int
        )
        self.needs = Needs(
            denoiser_needs(network, calls, sizes, self._hosts_estimate(), casts_weights_by_hand(base_model)),
            estimate,
            self._at_estimate(estimate),
            len(x),
        )
        return MemoryPlan(ways, self.needs, self._room.free, network, (*sizes, ways[0]))

    def _at_estimate(self, estimate: Callable[[], int]) -> Callable[[Way], int]:
        """What the gradient at the estimate takes; estimate: what the denoiser takes without a graph."""
        chain = self._chain
        if not isinstance(chain, LatentGradient):
            return lambda way: estimate()  # self-guidance: the denoiser once more
        latent = self._x[:1]
        return image_needs(
            decoder_needs(lambda small: chain.decoder_of(replace(chain.way, small_decoder=small)), latent),
            encoder_needs(chain.image, frames_of(chain.decoder_of(chain.way).vae, latent)),
        )

    def _hosts_estimate(self) -> int:
        """What the host reckons for a pass of the denoiser with positive and negative prompt."""
        shape = [2 * len(self._x), *self._x.shape[1:]]
        return int(self._guider.inner_model.memory_required(shape))

    def take_best(self) -> None:
        """Choose before the first step, or when the denoiser is held constant for another reason."""
        if self._chain.way.through_denoiser != self._asked.through_denoiser:
            self._asked = self._chain.way
            self._plan = self._planned()
        if self._plan is None:
            return
        self._take(self._plan, self._plan.best(), "to fit")

    def take_next(self) -> bool:
        """Continue with less memory after a failure. Returns whether anything was left to try."""
        if not self._unloaded and (idle := self._room.unload_idle()):
            self._unloaded = True
            self._trace.notice(f"out of memory: unloaded {idle} model(s) that this run does not need")
            return True
        way = self._plan.after_failure(self._chain.way) if self._plan else None
        if self._plan is None or way is None:
            logging.error(
                "JEPA guidance: out of memory, and nothing cheaper is left. Use a smaller image or encoder, or fewer models "
                "in the graph."
            )
            return False
        self._take(self._plan, way, "out of memory")
        return True

    def after_step(self) -> None:
        """Say once if the driver has moved memory of the device into the system's."""
        if not self._spilled and has_spilled(self._x.device):
            self._spilled = True
            self._trace.notice(SPILLED)

    def _take(self, plan: MemoryPlan, way: Way, why: str) -> None:
        self._chain.way = way
        size = plan.reserve(way)
        self._room.reserve(size)
        if way != self._asked:
            self._trace.notice(
                f"{why} (about {size / GIB:.1f} GiB beside the models): {way.saved(self._asked)}"
            )
