"""Does novelty guidance make rarer pictures, by a judge that did not guide?

    python dev.py run research/effects/novelty.py --folder WORK --groups forms --each 32

Arms of the groups that are named, from the same noise as the unguided pictures, in batches of one class. The reference is
300 training pictures of the class, or what the prompt gives by itself. Resumable, and every prefix is a whole experiment:
batch by batch, all classes and arms of it. The judge is an EfficientNet-Lite0 that was trained on ImageNet; held-out
pictures of the world are what it compares with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from jepa_core.novelty import FORM, FORMS, embed
from jepa_core.reference import NO_SCORE, Reference, ReferencePart, load_reference, save_reference
from jepa_core.views import views
from research.harness import program
from research.harness.images import UNGUIDED, Sampler
from research.harness.pack_api import demo, preset_inputs
from research.harness.program import Row, whole
from research.harness.sampling import draw
from research.harness.timing import timed
from research.world.data import load_pictures

BATCH = 16
PICTURES = 300  # of a reference
REAL, PROMPT = "real", "prompt"
# As the demo guides: research/effects/strengths.py says what came of it.
INPUTS: Row = {"interval": 2, "oversampling": 1, "power_iterations": 1}
INPUTS |= {"range_finder": "tracked in half precision"}


@dataclass(frozen=True)
class Arm:
    """Inputs of the guiding node, and what it is given.

    Attributes:
        form: how novelty measures distance. reference: REAL, PROMPT, or "" for none.
        rows: how many of a batch are sampled together.
    """

    inputs: Row
    form: str = FORM
    reference: str = REAL
    rows: int = BATCH


def _novelty(strength: float, **more: Any) -> Row:
    return {"strength": strength, "criterion": "novelty"} | more


GROUPS: dict[str, dict[str, Arm]] = {
    "forms": {f"novelty 1, {form}": Arm(_novelty(1.0), form) for form in FORMS},
    "dose": {f"novelty {s:g}": Arm(_novelty(s)) for s in (1.0, 2.0, -1.0, 0.5, 0.25)},
    "score": {f"score {s:g}": Arm({"strength": s}, reference="") for s in (1.0, 2.0, -1.0, 0.5)},
    "options": {
        "novelty 2, smooth": Arm(_novelty(2.0, smooth=True)),
        "novelty 2, keep appearance": Arm(_novelty(2.0, keep_appearance=True)),
        "novelty 2, denoiser constant": Arm(_novelty(2.0, gradient_path="denoiser constant")),
        "novelty 2, prompt reference": Arm(_novelty(2.0), reference=PROMPT),
        "both 2": Arm({"strength": 2.0, "criterion": "both"}),
    },
    "score options": {
        "score 2, smooth": Arm({"strength": 2.0, "smooth": True}, reference=""),
        "score 2, keep appearance": Arm({"strength": 2.0, "keep_appearance": True}, reference=""),
    },
    "apart": {
        "apart 1": Arm(_novelty(1.0, apart=True), reference="", rows=4),
        "apart 2": Arm(_novelty(2.0, apart=True), reference="", rows=4),
        "apart -1": Arm(_novelty(-1.0, apart=True), reference="", rows=4),
    },
    "target": {
        "novelty 4, prompt reference": Arm(_novelty(4.0), reference=PROMPT),
        "novelty 4, prompt reference, 1 in 20": Arm(_novelty(4.0, target="1 in 20"), reference=PROMPT),
    },
}


@dataclass
class Study:
    """Batches of pictures below a folder, and what they are made with."""

    folder: Path
    sampler: Sampler
    world: Any
    references: dict[tuple[str, str], Reference] = field(default_factory=dict)

    def file(self, arm: str, name: str, batch: int) -> Path:
        return self.folder / "pictures" / arm / f"{name}-{batch:03d}.safetensors"

    def reference(self, kind: str, name: str) -> Reference | None:
        """The reference of a class; made once."""
        if not kind:
            return None
        if (kind, name) not in self.references:
            file = self.folder / "references" / f"{kind}-{name}.safetensors"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                save_reference(self._embedded(self._usual(kind, name)), file)
            self.references[kind, name] = load_reference(file)
        return self.references[kind, name]

    def _usual(self, kind: str, name: str) -> Tensor:
        """Pictures (N, H, W, 3) in [0, 1] that count as usual."""
        if kind == REAL:
            trained = self.world.trained_on()
            rows = (trained.labels == self.sampler.classes.index(name) + 1).nonzero().flatten()
            return trained.pixels(rows[:PICTURES]).movedim(1, -1)
        batches = range(-(-PICTURES // BATCH))
        parts = [self._drawn(self.sampler.model, name, 1_000_000 + batch, BATCH) for batch in batches]
        return torch.cat(parts)[:PICTURES]

    @torch.no_grad()
    def _embedded(self, pictures: Tensor) -> Reference:
        encoder = self.sampler.encoder.encoder
        plain, smoothed = [], []
        for part in pictures.split(20):
            seen = torch.stack([embed(encoder, encoder.preprocess(view)) for view in views(part)])
            plain.append(seen[0])
            smoothed.append(seen.mean(0))
        own = (self.sampler.encoder.name, encoder.fingerprint, encoder.image_size)
        part = ReferencePart(*own, torch.cat(plain), torch.cat(smoothed))
        return Reference((part,), {"mode": NO_SCORE, "fit": "squash", "antialias": "on"})

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
        model, traces = self.sampler.model, []

        def note(trace: Any) -> None:
            if not traces or trace is not traces[-1]:
                traces.append(trace)

        if how is not None:
            inputs, reference = preset_inputs(changes=INPUTS | how.inputs), self.reference(how.reference, name)
            model = self.sampler.guided(inputs, form=how.form, reference=reference, report=note)
        seed = batch * 100 + self.sampler.classes.index(name)
        rows = BATCH if how is None else how.rows
        pictures, seconds = timed(lambda: self._drawn(model, name, seed, rows))
        tensors = {"pictures": pictures.mul(255).round().clamp(0, 255).byte()}
        tensors["seconds"] = torch.tensor(seconds)
        if places := [place["novelty"] for trace in traces for place in trace.places]:
            tensors["rarer"] = torch.tensor(places)
        with whole(file) as partial:
            save_file(tensors, partial)
        print(f"{name} {batch} {arm}: {seconds:.1f} s", flush=True)


def arms_of(groups: Sequence[str]) -> dict[str, Arm | None]:
    """The arms of some groups, the unguided one first."""
    return {UNGUIDED: None} | {name: arm for group in groups for name, arm in GROUPS[group].items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "novelty.json", folder=True)
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=["dose"])
    parser.add_argument("--each", type=int, default=32, help=f"pictures of a class, a multiple of {BATCH}")
    parser.add_argument("--image-size", type=int, default=112, help="at which the encoder sees pictures")
    parser.add_argument("--world", type=Path, help="keeps the world's pictures; WORK by default")
    parser.add_argument("--finish", action="store_true", help="only judge and write the figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sampler = Sampler(options.encoder, image_size=options.image_size)
    world = load_pictures(options.world or options.folder, processes=1)
    study, arms = Study(options.folder, sampler, world), arms_of(options.groups)
    for batch in range(options.each // BATCH if not options.finish else 0):
        for name in sampler.classes:
            for arm, how in arms.items():
                study.make(name, arm, how, batch)


if __name__ == "__main__":
    main()
