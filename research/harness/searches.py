"""Searches among pictures of a class of the demo world, and the stock pictures that they choose from: made, resumable."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa_core.reference import Reference
from research.harness.batches import REAL, Study
from research.harness.pack_api import (
    ENCODER_RESOLUTION,
    NOVELTY,
    Appraiser,
    SearchConfig,
    apply_search,
    choose_decoder,
    demo,
    preset_inputs,
)
from research.harness.program import Row, kept
from research.harness.sampling import draw
from research.harness.timing import processor_seconds

SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the steps, after which clean estimates are appraised
CANDIDATES, KEPT = 16, 4
STOCK = "stock"  # the pictures that best of N chooses among


@dataclass(frozen=True)
class Arm:
    """How KEPT pictures of a class are made.

    Attributes:
        by: SCORE or NOVELTY, what a search chooses by; "" for no search.
        candidates, looks: of the search.
        inputs: of the guiding node; None does not guide.
    """

    by: str = ""
    candidates: int = KEPT
    looks: Sequence[float] = ()
    inputs: Row | None = None


@dataclass
class Searches:
    """Pictures below the study's folder."""

    study: Study
    appraisers: dict[tuple[str, str], Appraiser] = field(default_factory=dict)

    def file(self, arm: str, name: str, batch: int) -> Path:
        return self.study.folder / "searches" / arm / f"{name}-{batch:03d}.safetensors"

    def reference(self, name: str) -> Reference | None:
        return self.study.reference(REAL, name)

    def appraise(self, by: str, name: str, latents: Tensor) -> Tensor:
        """The values (B,) that a search would give clean estimates (B, C, h, w) in the scale of the model's latents."""
        sampler = self.study.sampler
        if (by, name) not in self.appraisers:
            latent_format = sampler.model.get_model_object("latent_format")
            decoder = choose_decoder(
                ENCODER_RESOLUTION, sampler.vae, latent_format, sampler.encoder.image_size, "squash"
            )
            self.appraisers[by, name] = Appraiser(
                decoder, sampler.encoder, by, self.reference(name), None, "squash", True
            )
        found = self.appraisers[by, name](latents, sampler.model.model)
        return torch.tensor([one.value for one in found])

    def draw(self, model: Any, name: str, batch: int, count: int, **more: Any) -> Tensor:
        """The latents of the first rows of a batch's noise, as KSampler gives them."""
        positive, negative = map(demo.demo_conditioning, (name, "any"))
        seed = batch * 100 + self.study.sampler.classes.index(name)
        return draw(model, positive, negative, seed=seed, count=count, steps=self.study.sampler.steps, **more)

    def pictures(self, latents: Tensor) -> Tensor:
        """The pictures (B, H, W, 3) of latents, as bytes."""
        with torch.inference_mode():
            decoded = self.study.sampler.vae.decode(latents)
        return decoded.mul(255).round().clamp(0, 255).byte()

    def pool(self, name: str, batch: int) -> dict[str, Tensor]:
        """The stock pictures of a batch.

        Returns:
            "pictures" (CANDIDATES, H, W, 3), "estimates" (shares, CANDIDATES, C, h, w), the last of which are the finished
            latents, and "seconds" of the sampler.
        """

        def make() -> Row:
            estimates: list[Tensor] = []
            sampled, seconds = processor_seconds(
                lambda: self.draw(
                    self.study.sampler.model,
                    name,
                    batch,
                    CANDIDATES,
                    callback=lambda _, clean, *__: estimates.append(clean.clone()),
                )
            )
            steps = [round(share * self.study.sampler.steps) - 1 for share in SHARES] + [-1]
            print(f"{name} {batch} stock: {seconds:.1f} s", flush=True)
            return {
                "pictures": self.pictures(sampled),
                "estimates": torch.stack([estimates[step] for step in steps]),
                "seconds": torch.tensor(seconds),
            }

        return kept(self.file(STOCK, name, batch), make)

    def values(self, by: str, name: str, batch: int) -> dict[str, Tensor]:
        """Returns "values" (shares, CANDIDATES) of a batch by score or novelty, and "seconds" for the last ones."""

        def make() -> Row:
            estimates = self.pool(name, batch)["estimates"]
            found = [processor_seconds(partial(self.appraise, by, name, one)) for one in estimates]
            print(f"{name} {batch} {by}: {sum(seconds for _, seconds in found):.1f} s", flush=True)
            return {
                "values": torch.stack([values for values, _ in found]),
                "seconds": torch.tensor(found[-1][1]),
            }

        return kept(self.file(f"{STOCK}, {by}", name, batch), make)

    def of_arm(self, arm: str, how: Arm, name: str, batch: int) -> dict[str, Tensor]:
        """What an arm keeps of a batch: "pictures" (KEPT, H, W, 3), "latents", their rows "kept", "seconds" for all."""

        def make() -> Row:
            sampler, record = self.study.sampler, None
            model, reference = sampler.model, self.reference(name)
            if how.inputs is not None:
                given = reference if how.inputs.get("criterion") == NOVELTY else None
                inputs = preset_inputs(changes=self.study.inputs | how.inputs)
                model = sampler.guided(inputs, reference=given)
            if how.by:
                config = SearchConfig(how.candidates, KEPT, looks=how.looks, by=how.by)
                model, record = apply_search(model, sampler.vae, sampler.encoder, config, reference=reference)
            latents, seconds = processor_seconds(lambda: self.draw(model, name, batch, how.candidates))
            rows = [one.index for one in record.kept] if record else list(range(KEPT))
            print(f"{name} {batch} {arm}: {seconds:.1f} s", flush=True)
            return {
                "pictures": self.pictures(latents[rows]),
                "latents": sampler.model.model.process_latent_in(latents[rows]),
                "kept": torch.tensor(rows),
                "seconds": torch.tensor(seconds),
            }

        return kept(self.file(arm, name, batch), make)
