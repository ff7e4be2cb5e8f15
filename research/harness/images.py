"""Images of the demo generator from the same noise in every arm of an experiment: made, scored and judged, resumable."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from jepa_core import jepa_score
from jepa_core.score import PROJECTION
from research.harness.pack_api import demo, guided, load_host_encoder
from research.harness.program import Row, append_row, encoder_identity, read_rows, sha256
from research.harness.sampling import CFG, SAMPLER, SCHEDULER, STEPS, draw
from research.harness.summary import Values
from research.harness.timing import timed
from research.judges.classifier import load_classifier
from research.judges.measures import judge, load_bank

UNGUIDED = "unguided"


class Sampler:
    """The demo generator, its guide (a HostEncoder) and the host's sampler; seeds draw the classes in turn."""

    def __init__(self, encoder: Path, steps: int = STEPS, image_size: int = 224) -> None:
        """image_size: at which the encoder sees pictures, in pixels."""
        self.steps = steps
        self.model, self.vae = demo.load_demo_generator()
        self.folder = encoder
        self.encoder = load_host_encoder(encoder, encoder.name, image_size)
        self.classes = demo.demo_classes()[1:]  # without "any"

    def class_of(self, seed: int) -> str:
        return self.classes[seed % len(self.classes)]

    def guided(self, inputs: Row, encoder: Any = None, **others: Any) -> Any:
        """The generator's MODEL, guided, by the sampler's encoder if no other is given; see pack_api.guided."""
        return guided(self.model, self.vae, encoder or self.encoder, inputs, **others)

    @torch.inference_mode()
    def sample(self, model: Any, seed: int, callback: Callable[..., object] | None = None) -> Tensor:
        """Sample a MODEL for the class of a seed; returns the decoded image (H, W, 3) in [0, 1]."""
        positive, negative = map(demo.demo_conditioning, (self.class_of(seed), "any"))
        latents = draw(model, positive, negative, seed=seed, steps=self.steps, callback=callback)
        return self.vae.decode(latents)[0]

    @torch.inference_mode()
    def estimates(self, seed: int) -> dict[str, Tensor]:
        """The decoded clean estimate of each step of the stock sampler: {"images": (steps, H, W, 3) in [0, 1]}."""
        found: list[Tensor] = []
        self.sample(self.model, seed, lambda _, clean, *__: found.append(clean.clone()))
        latents = map(self.model.model.process_latent_out, found)
        return {"images": torch.cat([self.vae.decode(one) for one in latents])}

    def settings(self) -> Row:
        """The sampling, for the settings of a record."""
        sampling = {"steps": self.steps, "cfg": CFG, "sampler": SAMPLER, "scheduler": SCHEDULER}
        sampling["image_size"] = self.encoder.image_size
        return sampling | {"projection": PROJECTION, "generator": sha256(demo.WEIGHTS)}


@dataclass(frozen=True)
class Experiment:
    """Images of every arm of every seed below a folder, with a JSON line for each image and each score.

    All arms of a seed are made before the next seed, so that every prefix of the work is a whole experiment.
    arms: name -> the MODEL that samples, of a seed; the name is that of its files.
    """

    folder: Path
    sampler: Sampler
    arms: Mapping[str, Callable[[int], Any]]

    def file(self, seed: int, arm: str) -> Path:
        return self.folder / "images" / f"{seed:03d}-{arm}.png"

    def picture(self, seed: int, arm: str) -> Tensor:
        """An image that was made, (H, W, 3) in [0, 1]."""
        with Image.open(self.file(seed, arm)) as picture:
            return pil_to_tensor(picture.convert("RGB")).movedim(0, -1).float() / 255

    def _missing(self, seeds: Sequence[int], done: Values) -> list[tuple[int, str]]:
        return [(seed, arm) for seed in seeds for arm in self.arms if (seed, arm) not in done]

    def check(self, settings: Row) -> None:
        """Keep what the images of the folder are made with. Raises SystemExit where others were made otherwise."""
        file, text = self.folder / "settings.json", json.dumps(settings, indent=1)
        if file.exists() and file.read_text() != text:
            raise SystemExit(
                f"{self.folder} holds images that were made otherwise ({file}); give another folder"
            )
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def make(self, seeds: Sequence[int]) -> None:
        """Make the images that are missing, after a run of two arms that is not counted."""
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        names, missing = list(self.arms), self._missing(seeds, self.seconds())
        for arm in (names[0], names[-1]) if missing else ():
            self.sampler.sample(self.arms[arm](0), 0)
        for seed, arm in missing:
            model = self.arms[arm](seed)
            picture, seconds = timed(partial(self.sampler.sample, model, seed))
            to_pil_image(picture.movedim(-1, 0)).save(self.file(seed, arm))
            append_row(
                self.folder / "samples.jsonl", {"seed": seed, "arm": arm, "seconds": round(seconds, 3)}
            )
            print(f"seed {seed} {arm}: {seconds:.1f} s", flush=True)

    def score(self, seeds: Sequence[int]) -> None:
        """Give the images that have none a projected score (lower is rarer) under the encoder that guides."""
        encoder = self.sampler.encoder.encoder
        for seed, arm in self._missing(seeds, self.scores()):
            x = encoder.preprocess(self.picture(seed, arm)[None])
            score = jepa_score(encoder, x, projection=PROJECTION).item()
            append_row(self.folder / "scores.jsonl", {"seed": seed, "arm": arm, "score": score})
            print(f"seed {seed} {arm}: {score:.2f}", flush=True)

    def _values(self, file: str, name: str) -> dict[tuple[int, str], float]:
        return {(row["seed"], row["arm"]): row[name] for row in read_rows(self.folder / file)}

    def scores(self) -> Values:
        """{(seed, arm): score} of the images scored so far."""
        return self._values("scores.jsonl", "score")

    def seconds(self) -> Values:
        """{(seed, arm): seconds of sampling} of the images made so far."""
        return self._values("samples.jsonl", "seconds")

    def median_seconds(self) -> dict[str, float]:
        """{arm: median seconds of its images}."""
        seconds = self.seconds().items()
        found = {arm: [value for (_, name), value in seconds if name == arm] for arm in self.arms}
        return {arm: round(statistics.median(values), 2) for arm, values in found.items() if values}

    def judged(self, seeds: Sequence[int]) -> list[Row]:
        """A row {seed, arm, measures of research.judges.measures} for each image.

        Raises:
            ValueError: the bank of real images was made with another encoder than the sampler's.
        """
        bank, classifier = load_bank(), load_classifier()
        encoder = self.sampler.encoder.encoder.at_size(bank.image_size)
        if bank.encoder_name != (ours := encoder_identity(self.sampler.folder)):
            raise ValueError(f"the bank of real images was made with {bank.encoder_name}, this is {ours}")

        def embed(images: Tensor) -> Tensor:
            return encoder(encoder.preprocess(images.movedim(1, -1)))

        rows = []
        for seed in seeds:
            images = torch.stack([self.picture(seed, arm) for arm in self.arms]).movedim(-1, 1)
            labels = torch.full((len(images),), self.sampler.classes.index(self.sampler.class_of(seed)) + 1)
            found = judge(images, labels, bank, classifier, embed)
            for index, arm in enumerate(self.arms):
                values = {name: round(value[index].item(), 6) for name, value in found.items()}
                rows.append({"seed": seed, "arm": arm, **values})
        return rows
