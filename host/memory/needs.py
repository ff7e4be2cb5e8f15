"""How much memory a guided step takes beyond the weights, in each way to compute it."""

import logging
import math
from collections.abc import Callable, Hashable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from ...jepa_core import Encoder
from ...jepa_core.jacobian import JacobianOperator
from ...jepa_core.score import PROJECTION
from ...jepa_core.views import COUNT as VIEWS
from ..comfy.backward_ops import torch_attention
from ..comfy.required import InterruptProcessingException, UNetModel
from ..gradient.decoders import LatentDecoder, decoded
from ..gradient.differentiable import writing_in_place
from ..gradient.image_gradient import ImageGradient
from ..gradient.lean import saving_memory
from ..gradient.scale import of_frames
from ..gradient.ways import Way
from .count import Peak, peak_of, peak_of_backward
from .networks import META, Call, evaluated, vae_without_data, without_data
from .structure import structure_of

# For networks that do not run without data (they look at numbers, or hold weights in formats of their own): what the host
# reckons for a pass without a gradient, times what SD1.5, SDXL and their decoder were counted to take, rounded up.
_TIMES_THE_HOSTS = {False: 20, True: 4}
_DECODER_TIMES_THE_HOSTS = {False: 3, True: 2}


@dataclass(frozen=True)
class Needs:
    """Bytes that a guided step takes at most beyond weights, by the way it is computed.

    Attributes:
        denoiser: (checkpointing) -> what all its calls in one step take, with a graph.
        estimate: what they take without one.
        at_estimate: what the gradient at the estimate takes, see image_needs.
        batch: images in the batch.
    """

    denoiser: Callable[[bool], Peak]
    estimate: Callable[[], int]
    at_estimate: Callable[[Way], int]
    batch: int

    def __call__(self, way: Way) -> int:
        at_estimate = self.at_estimate(way)
        if not way.through_denoiser:
            return max(at_estimate, self.estimate())
        denoiser = self.denoiser(way.checkpointing)
        if way.one_by_one:
            denoiser = Peak(*(part // self.batch for part in denoiser))
        if way.estimate_first:
            return max(at_estimate, self.estimate(), denoiser.peak)
        return max(denoiser.kept + at_estimate, denoiser.peak)


def denoiser_needs(
    network: nn.Module, calls: Callable[[], list[Call]], key: Hashable, hosts: int, by_hand: bool
) -> Callable[[bool], Peak]:
    """What the denoiser's calls in one step take.

    Args:
        calls: finds them, see networks.calls_of. key: what their shapes depend on.
        hosts: bytes that the host reckons for them without a gradient.
        by_hand: whether weights are cast when they are used; such a denoiser is always checkpointed.
    """

    @cache
    def needs(checkpointing: bool) -> Peak:
        checkpointing = checkpointing or by_hand

        def count() -> Peak:
            bare, made = without_data(network), calls()
            guard = nullcontext() if isinstance(network, UNetModel) else writing_in_place()
            with guard, saving_memory(bare, checkpointing=checkpointing):
                return peak_of_backward(evaluated(bare, made), *(call.args[0] for call in made))

        reckoned = _TIMES_THE_HOSTS[checkpointing] * hosts
        return _counted(count, network, (key, checkpointing), reckoned, "denoiser")

    return needs


def estimate_needs(
    network: nn.Module, calls: Callable[[], list[Call]], key: Hashable, hosts: int
) -> Callable[[], int]:
    """What the same calls take without a graph."""

    def count() -> Peak:
        run = evaluated(without_data(network), made := calls())
        with torch.no_grad():
            return Peak(peak_of(lambda: run(*(call.args[0] for call in made))), 0)

    return cache(lambda: _counted(count, network, (key, "estimate"), hosts, "denoiser").peak)


def image_needs(
    decoder: Callable[[bool, bool], Peak], encoders: Callable[[bool], int]
) -> Callable[[Way], int]:
    """What decoding one image and the gradient at it take. decoder, encoders: see decoder_needs and encoder_needs."""

    def needs(way: Way) -> int:
        decoding = decoder(way.small_decoder, way.checkpointing)
        return max(decoding.peak, decoding.kept + encoders(way.one_direction))

    return needs


def decoder_needs(
    decoder_of: Callable[[bool], LatentDecoder], latent: Tensor
) -> Callable[[bool, bool], Peak]:
    """What decoding takes. decoder_of: (small) -> decoder. latent: of one image, for its shape."""
    bare_latent = torch.empty_like(latent, device=META)

    @cache
    def needs(small: bool, checkpointing: bool) -> Peak:
        decoder = decoder_of(small)

        def count() -> Peak:
            vae = vae_without_data(decoder.vae)
            bare = vae.first_stage_model
            with saving_memory(bare, checkpointing=checkpointing):
                return peak_of_backward(lambda z: decoded(vae, decoder.prepare(z)), bare_latent)

        shape = tuple(decoder.prepare(bare_latent).shape)
        reckoned = int(
            _DECODER_TIMES_THE_HOSTS[checkpointing]
            * decoder.vae.memory_used_decode(shape, decoder.vae.vae_dtype)
        )
        key = (shape, decoder.vae.vae_dtype, checkpointing)
        return _counted(count, decoder.vae.first_stage_model, key, reckoned, "decoder")

    return needs


def encoder_needs(image: ImageGradient, frames: int) -> Callable[[bool], int]:
    """What the encoders take for one image or video, one after the other. image: the run's. frames: as decoded."""

    def needs(one_direction: bool) -> int:
        found = [_rows(of_frames(judge.encoder, frames)) for judge in image.judges]
        for guide in image.guides:
            encoder = of_frames(guide.encoder, frames)
            if image.uses_score:
                found.append(_score_gradient(encoder, image, one_direction))
            if image.uses_novelty:
                found.append(_pass_with_graph(encoder, VIEWS if image.smooth else 1).peak)
        return max(found)

    return needs


def _score_gradient(encoder: Encoder, image: ImageGradient, one_direction: bool) -> int:
    """Bytes of a RarityGradient's call, see JacobianOperator; a tenth more for what its linear algebra holds."""
    rarity = image.rarity
    jacobian = JacobianOperator(
        encoder,
        encoder.weight.new_zeros(encoder.input_shape),
        memory=rarity.memory,
        chunk=1 if one_direction else None,
    )
    directions = rarity.k + rarity.oversample
    own = _pass_with_graph(encoder, 1, fused=False).kept
    together = _pass_with_graph(encoder, min(jacobian.kept, directions + 1)).peak
    products = min(jacobian.chunk, directions) * encoder.layer_bytes
    ranges = 4 * directions * jacobian.shape[1] * encoder.weight.element_size()
    return (own + max(together, products) + ranges) * 11 // 10


def _rows(encoder: Encoder) -> int:
    """Bytes of a projected score: a pass, and the rows of the Jacobian."""
    size = math.prod(encoder.input_shape) * encoder.weight.element_size()
    return _pass_with_graph(encoder, 1, fused=False).peak + PROJECTION * (size + encoder.layer_bytes)


def _pass_with_graph(encoder: Encoder, images: int, fused: bool = True) -> Peak:
    def count() -> Peak:
        x = torch.empty((images, *encoder.input_shape), dtype=encoder.weight.dtype, device=META)
        embed = encoder.architecture.embed if encoder.frames is None else encoder.architecture.embed_clip
        with ExitStack() as kernels:
            if fused:
                kernels.enter_context(encoder.fused_attention())
                kernels.enter_context(encoder.fused_norms())
            return peak_of_backward(partial(embed, without_data(encoder.model)), x)

    reckoned = images * encoder.activation_bytes
    return _counted(count, encoder.model, (encoder.input_shape, images, fused), reckoned, "encoder")


# What was counted, by the network's structure and what else it depends on.
_known: dict[tuple[Hashable, Hashable], Peak] = {}


def _counted(count: Callable[[], Peak], network: nn.Module, key: Hashable, reckoned: int, what: str) -> Peak:
    about = structure_of(network), key
    if about not in _known:
        try:
            with torch.inference_mode(False), torch.enable_grad(), torch_attention():
                _known[about] = count()
        except InterruptProcessingException:
            raise
        except Exception as error:  # networks of other packs can do anything
            # not remembered: what failed may be a patch that the next run lacks
            logging.info("JEPA guidance: the memory of the %s was not counted but reckoned (%s)", what, error)
            return Peak(reckoned, reckoned)
    return _known[about]
