"""Which way does a run take on cards of several sizes, how close is its plan, and how often does it run out of memory?

    python dev.py run research/costs/cards.py

The host's own networks and the pack's own plan and chain run on meta tensors. The card is simulated: every storage is
followed, and an operation that would hold more than the card has left beside the weights raises torch's out-of-memory
error. Only the encoder's gradient, which looks at numbers, is replaced by a block of the size that research/costs/memory.py
counts. Weights are in float16 and bfloat16, the VAE computes in bfloat16, prompts have negative ones except for Flux.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from jepa_core import Encoder, RarityGradient, jacobian, load_encoder
from research.costs.memory import Stage, encoder_gradients, meta_flux, meta_kl_decoder, meta_unet
from research.harness import program
from research.harness.pack_api import (
    THROUGH,
    Guide,
    ImageGradient,
    LatentDecoder,
    LatentGradient,
    LiveStorages,
    PlannedMemory,
    ScoreGradient,
    Trace,
    Way,
    estimate,
    fused_attention,
    saving_memory,
    shrink,
)
from research.harness.program import Row, markdown
from research.harness.timing import GIB

CARDS = (8, 12, 16, 24)
BATCHES = (1, 4)
# What a card does not give: the driver's own, and what the host keeps for others.
TAKEN = 0.5 * GIB
HOSTS_RESERVE = 0.4 * GIB
WORKSPACE = 0.8 * GIB  # the host wants this left for a pass without a gradient


@dataclass(frozen=True)
class Model:
    """A denoiser without data: latents in its scale (channels, height, width); chunks: positive and negative prompt."""

    make: Callable[[], Stage]
    latent: tuple[int, int, int]
    dtype: torch.dtype
    chunks: int = 2


MODELS = {
    "SDXL at 1024": Model(partial(meta_unet, "sdxl", torch.float16), (4, 128, 128), torch.float16),
    "SD1.5 at 512": Model(partial(meta_unet, "sd15", torch.float16), (4, 64, 64), torch.float16),
    "Flux at 1024": Model(partial(meta_flux, torch.bfloat16), (16, 128, 128), torch.bfloat16, chunks=1),
}


class Card(LiveStorages):
    """Runs out of memory when more than `left` bytes are held at once."""

    def __init__(self, left: float) -> None:
        super().__init__()
        self.left = left

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.live > self.left:
            raise torch.OutOfMemoryError(f"{self.live / GIB:.1f} GiB held, {self.left / GIB:.1f} GiB left")
        return result


@dataclass
class WithoutData(ImageGradient):
    """Holds what the encoder's gradient holds, and finds zeros."""

    size: int = 0

    def __call__(self, image: Tensor, index: int, others: Any = None) -> ScoreGradient:
        block = torch.empty(self.size, dtype=torch.uint8, device="meta").add_(1)
        gradient = torch.zeros_like(image)
        del block
        return ScoreGradient(torch.zeros(1), gradient)


@dataclass
class Denoiser:
    """A guided step's denoiser with the network's output scaled as an eps model's, see estimate.Denoise.

    Held constant it is not counted: the host makes room for a pass without a gradient, as in every unguided step.
    """

    model: Model
    network: Stage
    gradient: LatentGradient | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.gradient and not self.gradient.way.through_denoiser:
            return x.clone()
        noise = self.network.function(torch.cat([x] * self.model.chunks).to(self.model.dtype)).float()
        return x - noise.unflatten(0, (self.model.chunks, -1)).mean(0)

    def row(self, index: int) -> Callable[[Tensor], Tensor]:
        return self


class Room:
    """A card's memory beside the weights, as HostRoom reports it."""

    def __init__(self, left: float) -> None:
        self.left = left

    def free(self) -> int:
        return int(self.left - HOSTS_RESERVE)

    def reserve(self, size: float) -> int:
        return 0

    def unload_idle(self) -> int:
        return 0


def bytes_of(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())


def vae_of(stage: Stage) -> Any:
    """What decoding takes from the host's VAE, without data."""
    module: Any = stage.function
    return SimpleNamespace(
        first_stage_model=module.__self__,
        vae_dtype=torch.bfloat16,
        device=torch.device("meta"),
        process_output=lambda pixels: ((pixels + 1) / 2).clamp(0, 1),
        memory_used_decode=lambda shape, dtype: 2178 * shape[2] * shape[3] * 64 * dtype.itemsize,
    )


class Simulation:
    """Runs of one model with one batch on one card; what failed is remembered from run to run.

    Args:
        encoder: of the gradient. gradient: bytes that its gradient holds.
    """

    def __init__(self, model: Model, batch: int, card: int, encoder: Encoder, gradient: int) -> None:
        self.network = model.make()
        self.denoiser = Denoiser(model, self.network)
        self.x = torch.empty((batch, *model.latent), device="meta")
        vae = vae_of(meta_kl_decoder(torch.bfloat16, model.latent[0]))
        decoders = [LatentDecoder(vae), LatentDecoder(vae, lambda z: shrink(z, 28, "squash"))]
        beside = bytes_of(vae.first_stage_model) + bytes_of(encoder)
        own = bytes_of(self.network.module)
        self.usable = card * GIB - TAKEN
        whole = own + beside + WORKSPACE + HOSTS_RESERVE <= self.usable
        # a denoiser that does not fit whole is streamed, and the host moves its pages away
        self.left = self.usable - beside - (own if whole else 0)
        self.asked = THROUGH if whole else Way()
        memory = min(max(card * GIB // 16, 1 << 29), 2 << 30)
        image = WithoutData([Guide(encoder)], RarityGradient(memory=memory), size=gradient)
        self.gradient = LatentGradient(decoders[0], image, self.asked, small=decoders[1])
        base_model = SimpleNamespace(
            diffusion_model=self.network.module,
            process_latent_out=lambda z: z,
            model_sampling=SimpleNamespace(calculate_denoised=lambda sigma, output, x: x - output * sigma),
            memory_required=lambda shape: shape[0] * shape[2] * shape[3] * 2 * 0.01 * (1 << 20),
            manual_cast_dtype=None,
        )
        self.guider = SimpleNamespace(inner_model=base_model, conds={})

    def run(self) -> Row:
        """A run with two guided steps: the way, what it was planned to hold and held, and how often memory ran out."""
        own = replace(self.gradient, image=self.gradient.image.fresh(lambda: None))
        call = partial(self.denoiser, self.x)
        memory = PlannedMemory(self.guider, own, Trace(), self.x, call, Room(self.left))
        memory.take_best()
        failures, peak, steps = 0, 0, 2
        while steps:
            try:
                left = Card(self.left)
                saving = saving_memory(self.network.module, checkpointing=own.way.checkpointing)
                with saving, fused_attention(), left as card:
                    own(
                        replace(self.denoiser, gradient=own),
                        self.x,
                        torch.tensor(1.0),
                        self.guider.inner_model,
                    )
                peak, steps = max(peak, card.peak), steps - 1
                continue
            except torch.OutOfMemoryError:
                failures += 1
                if not memory.take_next():
                    return {"way": "does not fit", "failures": failures}
        planned = memory.needs(own.way) if memory.needs else 0
        way = own.way.saved(self.asked) if own.way != self.asked else "as asked"
        return {
            "asked": "through denoiser"
            if self.asked.through_denoiser
            else "denoiser constant (does not fit whole)",
            "way": way,
            "planned GiB": round(planned / GIB, 2),
            "counted GiB": round(peak / GIB, 2),
            "total GiB": round((self.usable - self.left + peak) / GIB, 2),
            "failures": failures,
        }


def simulated(
    encoder: Encoder, models: Sequence[str], cards: Sequence[int], batches: Sequence[int]
) -> list[Row]:
    """The first and the second run of every model on every card."""
    noise = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    gradient = max(peak.peak for peak in encoder_gradients(encoder, noise).values())
    rows = []
    # comparing an image with its batch needs data
    with (
        patch.object(estimate, "check_alone", lambda *_: None),
        patch.multiple(jacobian, _MEMORY={}, _DIRECTIONS={}, _LAYER_MEMORY={}, _FORWARD_MODE=set()),
    ):
        for name in models:
            for batch in batches:
                for card in cards:
                    simulation = Simulation(MODELS[name], batch, card, encoder, gradient)
                    first, second = simulation.run(), simulation.run()
                    rows.append(
                        {"model": name, "batch": batch, "card GiB": card}
                        | first
                        | {"failures of a second run": second["failures"]}
                    )
                    print(rows[-1], flush=True)
    return rows


def table(figures: Row) -> str:
    """The way that each card takes."""
    columns = {
        "model": "{model}",
        "batch": "{batch}",
        "card": "{card GiB} GiB",
        "way": "{way}",
        "planned": "{planned GiB:.1f}",
        "counted": "{counted GiB:.1f}",
        "with weights": "{total GiB:.1f}",
        "failures, first run / second": "{failures} / {failures of a second run}",
    }
    return markdown(columns, figures["table"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "cards.json")
    options = parser.parse_args(arguments)
    record: Row = {"settings": program.settings(parser, options)}
    record["table"] = simulated(load_encoder(options.encoder), list(MODELS), CARDS, BATCHES)
    program.write(options.out, record, table)


if __name__ == "__main__":
    main()
