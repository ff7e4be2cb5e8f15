"""Images of the demo generator from the same noise in every arm of an experiment: made, scored and judged, resumable."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from jepa_core import jepa_score
from jepa_core.score import PROJECTION
from research.harness.host import demo, guided, load_host_encoder
from research.harness.program import Row, append_row, encoder_identity, read_rows, sha256
from research.judges.measures import judge, load_bank, load_classifier

# Each way to score, as jepa_score's argument; lower is rarer.
SCORES: dict[str, int | None] = {"projected": PROJECTION, "exact": None}
UNGUIDED = "unguided"
CFG, SAMPLER, SCHEDULER = 2.0, "euler", "simple"


class Sampler:
    """The demo generator, its guide and the host's sampler, with Euler steps and CFG 2.

    Attributes:
        steps: of a sampling. model, vae: the generator's. encoder: the guide, a HostEncoder.
        classes: names of the classes that seeds draw in turn.
    """

    def __init__(self, encoder: Path, steps: int = 10) -> None:
        self.steps = steps
        self.model, self.vae = demo.load_demo_generator()
        self.folder = encoder
        self.encoder = load_host_encoder(encoder, encoder.name, 224)
        self.classes = demo.demo_classes()[1:]

    def class_of(self, seed: int) -> str:
        """The class that a seed draws."""
        return self.classes[seed % len(self.classes)]

    def guided(self, inputs: Row, **others: Any) -> Any:
        """The generator's MODEL, guided; see research.harness.host.guided."""
        return guided(self.model, self.vae, self.encoder, inputs, **others)

    @torch.inference_mode()
    def sample(self, model: Any, seed: int, callback: Callable[..., object] | None = None) -> Tensor:
        """Sample a MODEL for the class of a seed; returns the decoded image (H, W, 3) in [0, 1]."""
        import comfy.sample

        # what Empty Latent Image makes of 64 x 64
        empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, 8, 8), 8)
        latent = comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(empty, seed),
            self.steps,
            CFG,
            SAMPLER,
            SCHEDULER,
            demo.demo_conditioning(self.class_of(seed)),
            demo.demo_conditioning("any"),
            empty,
            callback=callback,
            disable_pbar=True,
            seed=seed,
        )
        return self.vae.decode(latent)[0]

    @torch.inference_mode()
    def estimates(self, seed: int) -> Tensor:
        """The decoded clean estimate of each step of the stock sampler, (steps, H, W, 3) in [0, 1]."""
        found: list[Tensor] = []
        self.sample(self.model, seed, lambda _, clean, *__: found.append(clean.clone()))
        return torch.cat([self.vae.decode(self.model.model.process_latent_out(one)) for one in found])

    def settings(self) -> Row:
        """What a record says of the sampling."""
        sampling = {"steps": self.steps, "cfg": CFG, "sampler": SAMPLER, "scheduler": SCHEDULER}
        return sampling | {"generator": sha256(demo.WEIGHTS)}


@dataclass(frozen=True)
class Experiment:
    """Images of every arm of every seed below a folder, and a JSON line for each image and for each score.

    All arms of a seed are made before the next seed, so that every prefix of the work is a whole experiment.

    Attributes:
        arms: name -> the MODEL that samples, of a seed; the name is that of its files.
        deadline: nothing new is begun after it (time.monotonic()).
    """

    folder: Path
    sampler: Sampler
    arms: Mapping[str, Callable[[int], Any]]
    deadline: float = float("inf")

    def file(self, seed: int, arm: str) -> Path:
        """Where an image is."""
        return self.folder / "images" / f"{seed:03d}-{arm}.png"

    def picture(self, seed: int, arm: str) -> Tensor:
        """An image that was made, (H, W, 3) in [0, 1]."""
        with Image.open(self.file(seed, arm)) as picture:
            return pil_to_tensor(picture.convert("RGB")).movedim(0, -1).float() / 255

    def _missing(self, seeds: Sequence[int], arms: Sequence[str], done: set) -> Iterator[tuple[int, str]]:
        for seed, arm in ((seed, arm) for seed in seeds for arm in arms if (seed, arm) not in done):
            if time.monotonic() > self.deadline:
                return
            yield seed, arm

    def make(self, seeds: Sequence[int]) -> None:
        """Make the images that are missing."""
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        warm = False
        for seed, arm in self._missing(seeds, list(self.arms), set(self.seconds())):
            if not warm:  # the libraries' own first use, which no image's seconds should hold
                for first in (next(iter(self.arms)), list(self.arms)[-1]):
                    self.sampler.sample(self.arms[first](seed), seed)
                warm = True
            model = self.arms[arm](seed)
            begun = time.perf_counter()
            picture = self.sampler.sample(model, seed)
            seconds = round(time.perf_counter() - begun, 3)
            to_pil_image(picture.movedim(-1, 0)).save(self.file(seed, arm))
            append_row(self.folder / "samples.jsonl", {"seed": seed, "arm": arm, "seconds": seconds})
            print(f"seed {seed} {arm}: {seconds:.1f} s", flush=True)

    def score(self, seeds: Sequence[int], kind: str = "projected", arms: Sequence[str] | None = None) -> None:
        """Score the images that were made and have no score of this kind, under the encoder that guides."""
        encoder = self.sampler.encoder.encoder
        for seed, arm in self._missing(seeds, arms or list(self.arms), set(self.scores(kind))):
            if not self.file(seed, arm).exists():
                continue
            x = encoder.preprocess(self.picture(seed, arm)[None])
            score = jepa_score(encoder, x, projection=SCORES[kind]).item()
            append_row(self.folder / "scores.jsonl", {"seed": seed, "arm": arm, "kind": kind, "score": score})
            print(f"seed {seed} {arm} {kind}: {score:.2f}", flush=True)

    def seconds(self) -> dict[tuple[int, str], float]:
        """{(seed, arm): seconds of sampling} of the images made so far."""
        rows = read_rows(self.folder / "samples.jsonl")
        return {(row["seed"], row["arm"]): row["seconds"] for row in rows}

    def median_seconds(self) -> dict[str, float]:
        """{arm: median seconds of its images}."""
        seconds = self.seconds()
        found = {arm: [value for (_, name), value in seconds.items() if name == arm] for arm in self.arms}
        return {arm: round(statistics.median(values), 2) for arm, values in found.items() if values}

    def scores(self, kind: str = "projected") -> dict[tuple[int, str], float]:
        """{(seed, arm): score} of the scores of this kind so far."""
        rows = read_rows(self.folder / "scores.jsonl")
        return {(row["seed"], row["arm"]): row["score"] for row in rows if row["kind"] == kind}

    def judged(self, seeds: Sequence[int]) -> list[Row]:
        """A row {seed, arm, measures of research.judges.measures} for each image.

        Raises:
            ValueError: the bank of real images was made with another encoder than the sampler's.
        """
        bank, classifier, encoder = load_bank(), load_classifier(), self.sampler.encoder.encoder
        if bank.encoder_name != (ours := encoder_identity(self.sampler.folder)):
            raise ValueError(f"the bank of real images was made with {bank.encoder_name}, this is {ours}")

        def embed(images: Tensor) -> Tensor:
            return encoder(encoder.preprocess(images.movedim(1, -1)))

        rows = []
        for seed in seeds:
            images = torch.stack([self.picture(seed, arm) for arm in self.arms])
            labels = torch.full((len(images),), self.sampler.classes.index(self.sampler.class_of(seed)) + 1)
            found = judge(images.movedim(-1, 1), labels, bank, classifier, embed)
            for index, arm in enumerate(self.arms):
                values = {name: round(value[index].item(), 6) for name, value in found.items()}
                rows.append({"seed": seed, "arm": arm, **values})
        return rows
