"""Batches of pictures of one class of the demo world from the same noise in every arm: made, judged, resumable."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepa_core.novelty import Distance, Nearest
from jepa_core.reference import Reference, load_reference, mode_of, save_reference
from jepa_core.score import PROJECTION
from research.harness.images import Sampler
from research.harness.pack_api import (
    AnyEncoder,
    ImageGradient,
    SearchConfig,
    apply_search,
    combined,
    demo,
    make_reference,
    preset_inputs,
    seen_as,
)
from research.harness.program import Row, whole
from research.harness.sampling import draw
from research.harness.timing import processor_seconds
from research.judges.effects import Judge
from research.training.pictures import Pictures

BATCH = 16
PICTURES = 300  # of a reference
FEW = 96  # of one with scores, which take longer
REAL, PROMPT, SCORED = "real", "prompt", "prompt with scores"


@dataclass(frozen=True)
class Arm:
    """How a batch is made.

    Attributes:
        inputs: of the guiding node; None does not guide.
        form: how novelty measures distance. reference: REAL, PROMPT, SCORED, or "" for none.
        sizes: image sizes at which the encoder guides, each as an encoder of its own; () for the sampler's alone.
        rows: how many of a batch are sampled together.
        image: changes what is descended at the decoded image.
        gradient: seed -> what takes the place of the gradient, see pack_api.OwnGradient.
        patch: (MODEL, seed) -> MODEL, another method.
        search: keeps some of the batch.
    """

    inputs: Row | None = None
    form: Callable[[Tensor], Distance] = Nearest
    reference: str = REAL
    sizes: tuple[int, ...] = ()
    rows: int = BATCH
    image: Callable[[ImageGradient], ImageGradient] | None = None
    gradient: Callable[[int], Callable[..., Any]] | None = None
    patch: Callable[[Any, int], Any] | None = None
    search: SearchConfig | None = None


@dataclass
class Study:
    """Batches of pictures below a folder, and what they are made with; inputs: of the guiding node in every arm."""

    folder: Path
    sampler: Sampler
    world: Pictures
    inputs: Row
    references: dict[tuple[str, ...], Reference] = field(default_factory=dict)

    def file(self, arm: str, name: str, batch: int) -> Path:
        return self.folder / "pictures" / arm / f"{name}-{batch:03d}.safetensors"

    def guide(self, sizes: Sequence[int] = ()) -> AnyEncoder:
        """The encoder that guides, see Arm.sizes."""
        own = self.sampler.encoder
        return combined((replace(own, image_size=size), 1.0) for size in sizes) if sizes else own

    def reference(self, kind: str, name: str, sizes: Sequence[int] = ()) -> Reference | None:
        """The reference of a class; made once."""
        if not kind:
            return None
        words = (kind, name, *map(str, sizes))
        if words not in self.references:
            file = self.folder / "references" / f"{'-'.join(words)}.safetensors"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                scoring = {"projection": PROJECTION} if kind == SCORED else None
                looks = {"mode": mode_of(scoring)} | seen_as("squash", True)
                pictures = list(self._usual(kind, name))
                save_reference(make_reference(pictures, self.guide(sizes), looks), file)
            self.references[words] = load_reference(file)
        return self.references[words]

    def _usual(self, kind: str, name: str) -> Tensor:
        """Pictures (N, H, W, 3) in [0, 1] that count as usual."""
        if kind == REAL:
            trained = self.world.trained_on()
            rows = (trained.labels == self.sampler.classes.index(name) + 1).nonzero().flatten()
            return trained.pixels(rows[:PICTURES]).movedim(1, -1)
        count = FEW if kind == SCORED else PICTURES
        batches = range(-(-count // BATCH))
        parts = [self._drawn(self.sampler.model, name, 1_000_000 + batch, BATCH) for batch in batches]
        return torch.cat(parts)[:count]

    @torch.inference_mode()
    def _drawn(self, model: Any, name: str, seed: int, rows: int) -> Tensor:
        """The pictures (BATCH, H, W, 3) in [0, 1] of a batch's noise, sampled `rows` at a time."""
        positive, negative = map(demo.demo_conditioning, (name, "any"))
        found = []
        for first in range(0, BATCH, rows):
            part = slice(first, first + rows)
            latents = draw(
                model, positive, negative, seed=seed, count=BATCH, steps=self.sampler.steps, only=part
            )
            found.append(self.sampler.vae.decode(latents))
        return torch.cat(found).clone()

    def make(self, name: str, arm: str, how: Arm | None, batch: int) -> None:
        """Make a batch of an arm, unless it is there."""
        file = self.file(arm, name, batch)
        if file.exists():
            return
        pictures, seconds, traces = self.sampled(name, how or Arm(), batch)
        tensors = {"pictures": pictures.mul(255).round().clamp(0, 255).byte()}
        tensors["seconds"] = torch.tensor(seconds)
        if places := [next(iter(place.values())) for trace in traces for place in trace.places]:
            tensors["rarer"] = torch.tensor(places)
        with whole(file) as partial:
            save_file(tensors, partial)
        print(f"{name} {batch} {arm}: {seconds:.1f} s", flush=True)

    def sampled(self, name: str, how: Arm, batch: int) -> tuple[Tensor, float, list[Any]]:
        """The pictures (B, H, W, 3) in [0, 1] of a batch, fewer than BATCH of a search; the processor's seconds; traces."""
        seed = batch * 100 + self.sampler.classes.index(name)
        model, traces = self._guided(how, name, seed)
        if how.patch:
            model = how.patch(model, seed)
        record = None
        if how.search:
            vae, guide = self.sampler.vae, self.guide(how.sizes)
            reference = self.reference(how.reference, name, how.sizes)
            model, record = apply_search(model, vae, guide, how.search, reference=reference)
        pictures, seconds = processor_seconds(lambda: self._drawn(model, name, seed, how.rows))
        return pictures[[one.index for one in record.kept]] if record else pictures, seconds, traces

    def _guided(self, how: Arm, name: str, seed: int) -> tuple[Any, list[Any]]:
        """The MODEL of an arm, and the traces of its runs."""
        traces: list[Any] = []
        if how.inputs is None:
            return self.sampler.model, traces

        def note(trace: Any) -> None:
            if not traces or trace is not traces[-1]:
                traces.append(trace)

        inputs = preset_inputs(changes=self.inputs | how.inputs)
        others = {"form": how.form, "image": how.image, "report": note}
        others["gradient"] = how.gradient(seed) if how.gradient else None
        guide, reference = self.guide(how.sizes), self.reference(how.reference, name, how.sizes)
        return self.sampler.guided(inputs, guide, reference=reference, **others), traces

    def picture(self, arm: str, name: str, batch: int, index: int) -> Image.Image:
        """One that was made."""
        return Image.fromarray(load_file(self.file(arm, name, batch))["pictures"][index].numpy())

    def judged(self, arm: str, name: str, batch: int, judge: Callable[[], Judge]) -> dict[str, Tensor]:
        """The measures of a batch that was made, with "features" and what was noted while it was made; judged once."""
        file, label = self.file(arm, name, batch), self.sampler.classes.index(name) + 1
        out = file.with_name(f"{file.stem}.judged.safetensors")
        if not out.exists():
            made = load_file(file)
            pictures = made.pop("pictures").movedim(-1, 1).float() / 255
            features = judge().features(pictures)
            made |= judge().judge(pictures, torch.full((len(pictures),), label), features)
            with whole(out) as partial:
                save_file(made | {"features": features.half()}, partial)
        return load_file(out)
