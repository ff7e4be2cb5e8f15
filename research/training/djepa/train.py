"""Train a D-JEPA (arXiv 2410.03755) on a folder of images, one subfolder a class, or on precomputed latents.

    python dev.py run research/training/djepa/train.py --data IMAGES --out WORK --width 256 --depth 6 --heads 4
    accelerate launch --num_processes 8 research/training/djepa/train.py --data LATENTS.safetensors --out WORK --size B

It needs the package accelerate beside what ComfyUI brings, and matplotlib for the loss curves. Resumable: run
the same command again. Every step and process draws from its own seed, so an interrupted run and an
uninterrupted one see the same batches. WORK keeps the checkpoint, the loss curves, a sheet of samples for every
--sheet-every steps and at the end the weights for sampling, djepa.safetensors.

Latents are a safetensors file with `latents` (rows, C, S, S), already scaled, and `labels` (rows,) from 0; its
header may name the classes as JSON in `classes`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

sys.path.append(str(Path(__file__).absolute().parents[3]))
from jepa_core import has_fast_bfloat16
from jepa_core.djepa import (
    DJEPA,
    DJEPAConfig,
    DJEPAFileError,
    DJEPASizeError,
    Tokenizer,
    denoiser_of,
    load_tokenizer,
    published_config,
    sample_tokens,
    save_djepa,
    to_latents,
    to_tokens,
    training_draws,
    training_losses,
)
from jepa_core.djepa.tokenizer import CHANNELS, STRIDE
from research.harness.sheet import sample_sheet

matplotlib.use("Agg")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SHEET = 64  # samples
CHECKPOINT = "checkpoint.pt"


class InputError(SystemExit):
    """What the command was given cannot be used; the message says why and what to do."""


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images of a folder with one subfolder a class, centre-cropped, in [-1, 1], mirrored at random."""

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size
        self.classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        self.files = [
            (file, label)
            for label, name in enumerate(self.classes)
            for file in sorted((folder / name).rglob("*"))
            if file.suffix.lower() in SUFFIXES
        ]
        if not self.files:
            raise InputError(
                f"--data {folder} holds no images; it must have one subfolder a class with {', '.join(SUFFIXES)} in it"
            )
        broken = [
            problem for file, _ in tqdm(self.files, "checking images") if (problem := image_problem(file))
        ]
        if broken:
            shown = "\n  ".join(broken[:10])
            raise InputError(
                f"--data {folder}: {len(broken)} of {len(self.files)} images cannot be read; remove or replace\n"
                f"  {shown}" + ("\n  ..." if len(broken) > 10 else "")
            )
        self.labels = torch.tensor([label for _, label in self.files])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """(row, a random number whose parity mirrors) -> (3, size, size) in [-1, 1], label."""
        row, chance = key
        file, label = self.files[row]
        with Image.open(file) as opened:
            picture = opened.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        edge = min(picture.size)
        left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
        picture = picture.resize(
            (self.size, self.size), Image.Resampling.LANCZOS, (left, top, left + edge, top + edge)
        )
        pixels = torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 127.5 - 1
        return (pixels.flip(-1) if chance % 2 else pixels), label


class Latents(Dataset[tuple[Tensor, int]]):
    """The rows of a file of precomputed latents."""

    def __init__(self, file: Path) -> None:
        with safe_open(file, framework="pt") as content:
            header = content.metadata() or {}
        tensors = load_file(file)
        if missing := {"latents", "labels"} - tensors.keys():
            raise InputError(f"--data {file} holds no {' and no '.join(sorted(missing))}")
        self.latents, self.labels = tensors["latents"], tensors["labels"].long()
        shape = tuple(self.latents.shape)
        if len(shape) != 4 or shape[2] != shape[3] or len(self.labels) != shape[0]:
            raise InputError(
                f"--data {file}: latents {shape} must be (rows, C, S, S) with a label a row, got "
                f"{len(self.labels)} labels"
            )
        if not self.latents.isfinite().all():
            raise InputError(f"--data {file}: some latents are not finite")
        names = json.loads(header.get("classes", "null"))
        self.classes = names or [str(label) for label in range(int(self.labels.max()) + 1)]
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise InputError(f"--data {file}: labels must be from 0 to {len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """(row, unused) -> (C, S, S), label."""
        return self.latents[key[0]].float(), int(self.labels[key[0]])


class StepBatches(Sampler[list[tuple[int, int]]]):
    """The batch of each step, drawn with the step's own seed, from `first` on.

    A class of n images is drawn in proportion to n^(1 - balance): 0 is every image alike, 1 every class alike.
    """

    def __init__(self, labels: Tensor, options: argparse.Namespace, first: int, process: int) -> None:
        counts = labels.bincount().double()
        self.weights = counts[labels] ** -options.balance
        self.options, self.first, self.process = options, first, process

    def __len__(self) -> int:
        return max(0, self.options.steps - self.first)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first, self.options.steps):
            generator = step_generator(self.options.seed, step, self.process, 0)
            rows = torch.multinomial(self.weights, self.options.batch, replacement=True, generator=generator)
            chances = torch.randint(2**31, rows.shape, generator=generator)
            yield list(zip(rows.tolist(), chances.tolist(), strict=True))


def step_generator(seed: int, step: int, process: int, purpose: int) -> torch.Generator:
    """A generator of its own for each step, process and purpose."""
    words = np.random.SeedSequence([seed, step, process, purpose]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


def image_problem(file: Path) -> str | None:
    """Why an image cannot be read, or None."""
    try:
        with Image.open(file) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"{file}: {error}"
    return None


def learning_rate(step: int, options: argparse.Namespace, peak: float) -> float:
    """Linear warm-up, then constant (the paper), then over the last --decay of the steps linearly to zero."""
    rate = min(1.0, (step + 1) / options.warmup)
    if options.decay:
        rate = min(rate, (options.steps - step) / (options.decay * options.steps))
    return peak * rate


def parameter_groups(model: DJEPA) -> list[dict[str, Any]]:
    """Matrices of the two transformers decay; biases, norms, embeddings and the head do not."""
    decayed: list[Tensor] = []
    rest: list[Tensor] = []
    for name, weight in model.named_parameters():
        (
            decayed if ".blocks." in name and weight.ndim == 2 and not name.startswith("head.") else rest
        ).append(weight)
    return [{"params": decayed, "decays": True}, {"params": rest, "decays": False, "weight_decay": 0.0}]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, required=True, help="folder of images, or latents.safetensors")
    data.add_argument(
        "--held-out", type=Path, help="the same of images that are only looked at: their loss is reported"
    )
    data.add_argument(
        "--tokenizer", type=Path, help="small tokenizer of stride 8; without it a token is pixels"
    )
    data.add_argument(
        "--latent-scale",
        type=float,
        default=1.0,
        help="what the file's latents were multiplied by, 0.2325 for KL-16",
    )
    data.add_argument("--image-size", type=int, default=64, help="for a folder of images")
    data.add_argument("--balance", type=float, default=0.0, help="0: every image alike, 1: every class alike")
    data.add_argument("--workers", type=int, default=0, help="processes that read images")
    model = parser.add_argument_group("model")
    model.add_argument("--size", choices=["B", "L", "H"], help="a published size; else the numbers below")
    for name, default in (("width", 192), ("depth", 6), ("heads", 3), ("head-width", 256), ("head-depth", 3)):
        model.add_argument(f"--{name}", type=int, default=default)
    model.add_argument("--buffer", type=int, default=64)
    model.add_argument("--patch", type=int, default=1)
    model.add_argument("--denoiser", choices=["diffusion", "flow"], default="diffusion")
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--jepa-weight", type=float, default=1.0, help="weight of the JEPA loss; 0 leaves it out"
    )
    recipe.add_argument("--steps", type=int, required=True, help="optimizer steps")
    recipe.add_argument("--batch", type=int, default=64, help="images a step and process")
    recipe.add_argument("--peak", type=float, help="learning rate; default 1e-4 * all images a step / 256")
    recipe.add_argument("--warmup", type=int, default=100, help="steps")
    recipe.add_argument("--decay", type=float, default=0.0, help="share of the steps, at the end")
    recipe.add_argument("--weight-decay", type=float, default=0.02, help="reached linearly at the last step")
    recipe.add_argument("--beta2", type=float, default=0.95)
    recipe.add_argument("--clip", type=float, default=3.0, help="gradient norm")
    recipe.add_argument("--dropout", type=float, default=0.1)
    recipe.add_argument("--label-drop", type=float, default=0.1)
    recipe.add_argument("--ema", type=float, default=0.9999)
    recipe.add_argument("--seed", type=int, default=0)
    recipe.add_argument(
        "--precision", choices=["bf16", "no"], help="default: bf16 where there is hardware for it"
    )
    work = parser.add_argument_group("work")
    work.add_argument("--out", type=Path, required=True, help="checkpoint, curves, sheets, weights")
    work.add_argument("--report-every", type=int, default=100)
    work.add_argument("--sheet-every", type=int, default=1000)
    work.add_argument("--sheet-cfg", type=float, default=2.0)
    work.add_argument("--sheet-steps", type=int, default=16, help="sets of tokens")
    work.add_argument("--licence", default="", help="of the data, for the weights' header")
    options = parser.parse_args(arguments)
    for name in ("steps", "batch", "warmup", "report_every", "sheet_every"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def load_data(path: Path, options: argparse.Namespace) -> ImageFolder | Latents:
    """The dataset at a path. Raises InputError."""
    if path.is_dir():
        return ImageFolder(path, options.image_size)
    if path.is_file():
        return Latents(path)
    raise InputError(f"{path} does not exist; give a folder of images or a file of latents")


def config_of(
    data: ImageFolder | Latents, tokenizer: Tokenizer | None, options: argparse.Namespace
) -> DJEPAConfig:
    """The model's sizes for this data. Raises InputError."""
    if isinstance(data, Latents):
        channels, side = data.latents.shape[1], data.latents.shape[2]
    else:
        if tokenizer and options.image_size % STRIDE:
            raise InputError(
                f"--image-size {options.image_size} must be a multiple of {STRIDE} with a tokenizer"
            )
        channels, side = (CHANNELS, options.image_size // STRIDE) if tokenizer else (3, options.image_size)
    names = ("width", "depth", "heads", "head_width", "head_depth", "buffer")
    sizes: dict[str, Any] = {name: getattr(options, name) for name in names}
    if options.size:
        published = published_config(options.size).to_dict()
        sizes = {name: published[name] for name in names}
    try:
        return DJEPAConfig(
            side=side,
            channels=channels,
            classes=len(data.classes),
            patch=options.patch,
            denoiser=options.denoiser,
            **sizes,
        )
    except DJEPASizeError as error:
        raise InputError(f"these sizes make no D-JEPA: {error}") from error


@torch.no_grad()
def held_out_losses(model: DJEPA, tokens: Tensor, labels: Tensor, repeats: int = 4) -> tuple[float, float]:
    """(denoising, JEPA) loss of tokens that are not trained on, with fixed draws; `model` is its own target."""
    denoiser = denoiser_of(model.config)
    found = []
    for repeat in range(repeats):
        generator = torch.Generator().manual_seed(repeat)
        draws = training_draws(
            tokens, labels, denoiser, generator, classes=model.config.classes, label_drop=0.0
        ).to(tokens.device)
        found.append(training_losses(model, model.context_encoder, denoiser, tokens, labels, draws))
    denoising, jepa = zip(*found, strict=True)
    return torch.stack(denoising).mean().item(), torch.stack(jepa).mean().item()


@torch.no_grad()
def save_sheet(model: DJEPA, tokenizer: Tokenizer | None, options: argparse.Namespace, file: Path) -> None:
    """Write 64 samples, the classes in turn, eight a row; nothing where another autoencoder would have to decode them."""
    if tokenizer is None and model.config.channels != 3:
        return
    device = next(model.parameters()).device
    labels = torch.arange(SHEET, device=device) % model.config.classes
    tokens = sample_tokens(
        model,
        labels,
        range(SHEET),
        steps=min(options.sheet_steps, model.config.tokens),
        denoising_steps=50,
        cfg=options.sheet_cfg,
    )
    latents = to_latents(tokens, model.config.patch)
    pixels = (latents if tokenizer is None else tokenizer.decode(latents)).float().cpu()
    sample_sheet(pixels.add(1).div(2).clamp(0, 1)).save(file)


def plot_losses(rows: list[dict[str, float]], file: Path) -> None:
    """Write the curves of both losses."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for plot, kind in zip(axes, ("denoising", "jepa"), strict=True):
        for prefix, label, colour, style in (
            ("", "trained on", "#0072B2", "-"),
            ("held_out_", "held out", "#D55E00", "--"),
        ):
            points = [(row["step"], row[prefix + kind]) for row in rows if row.get(prefix + kind)]
            if points:
                plot.plot(*zip(*points, strict=True), label=label, color=colour, linestyle=style)
        plot.set(xlabel="step", ylabel=f"{'JEPA' if kind == 'jepa' else kind} loss")
        if plot.lines:
            plot.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


@dataclass
class Training:
    """What a training changes as it goes, and its checkpoint.

    Attributes:
        average: the exponential average of the model, whose context encoder is the target encoder.
        step: how many steps are done.
        rows: the losses that were reported.
    """

    model: DJEPA
    average: DJEPA
    optimizer: torch.optim.Optimizer
    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)

    def save(self, file: Path) -> None:
        """Write a checkpoint; what is there stays until the new one is whole."""
        state: dict[str, Any] = {"model": self.model.state_dict(), "average": self.average.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict()}
        state |= {"config": self.model.config.to_dict(), "step": self.step, "rows": self.rows}
        partial = file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(file)

    def restore(self, file: Path) -> None:
        """Go on from a checkpoint. Raises InputError for one of another model."""
        state = torch.load(file, weights_only=True, map_location="cpu")
        if state["config"] != self.model.config.to_dict():
            raise InputError(
                f"{file} is of another model ({state['config']}); give another --out, or the sizes it was begun with"
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.rows = state["step"], state["rows"]

    def follow(self, ema: float) -> None:
        """Move the average toward the model: by 1 - ema, more in the first steps."""
        decay = min(ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)


def begin(config: DJEPAConfig, options: argparse.Namespace, device: torch.device, peak: float) -> Training:
    """A new training, or the one that --out holds a checkpoint of."""
    torch.manual_seed(options.seed)
    model = DJEPA(config, options.dropout).to(device)
    average = DJEPA(config, options.dropout).to(device).eval().requires_grad_(False)
    average.load_state_dict(model.state_dict())
    if not options.jepa_weight:
        model.projection.requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=peak, betas=(0.9, options.beta2), eps=1e-6)
    training = Training(model, average, optimizer)
    if (options.out / CHECKPOINT).exists():
        training.restore(options.out / CHECKPOINT)
    return training


def set_rates(optimizer: torch.optim.Optimizer, step: int, options: argparse.Namespace, peak: float) -> None:
    """Learning rate and weight decay of a step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, options, peak)
        if group["decays"]:
            group["weight_decay"] = options.weight_decay * step / options.steps


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    accelerator = Accelerator()
    device, process = accelerator.device, accelerator.process_index
    fast = has_fast_bfloat16(device) if options.precision is None else options.precision == "bf16"
    try:
        tokenizer = load_tokenizer(options.tokenizer).to(device) if options.tokenizer else None
    except DJEPAFileError as error:
        raise InputError(f"--tokenizer {error}") from error
    data = load_data(options.data, options)
    config = config_of(data, tokenizer, options)
    held_out = None
    if options.held_out is not None:
        held_out = all_tokens(load_data(options.held_out, options), tokenizer, config, device)
    options.out.mkdir(parents=True, exist_ok=True)
    recorded = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    settings = recorded | {"processes": accelerator.num_processes}
    peak = options.peak or 1e-4 * options.batch * accelerator.num_processes / 256
    training = begin(config, options, device, peak)
    model, average, first = training.model, training.average, training.step
    denoiser = denoiser_of(config)
    losses = accelerator.prepare_model(Losses(model))
    batches = StepBatches(data.labels, options, first, process)
    loader = DataLoader(data, batch_sampler=batches, num_workers=options.workers)

    recent: list[Tensor] = []
    begun = time.monotonic()
    bar = tqdm(total=options.steps, initial=first, disable=not accelerator.is_main_process, mininterval=5)
    for step, (pictures, labels) in enumerate(loader, first):
        tokens = to_tokens(encoded(pictures.to(device), tokenizer), config.patch)
        labels = labels.to(device)
        generator = step_generator(options.seed, step, process, 1)
        draws = training_draws(
            tokens, labels, denoiser, generator, classes=config.classes, label_drop=options.label_drop
        ).to(device)
        # Dropout is the only thing that draws from the global generator.
        torch.manual_seed(step_generator(options.seed, step, process, 2).initial_seed() >> 1)
        set_rates(training.optimizer, step, options, peak)
        target = average.context_encoder if options.jepa_weight else None
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            denoising, jepa = losses(target, denoiser, tokens, labels, draws)
        training.optimizer.zero_grad(set_to_none=True)
        (denoising + options.jepa_weight * jepa).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        if not torch.isfinite(norm):
            raise InputError(
                f"step {step}: the gradient is not finite; lower --peak, or train with --precision no"
            )
        training.optimizer.step()
        training.follow(options.ema)
        training.step = step + 1
        recent.append(torch.stack([denoising.detach(), jepa.detach()]))
        bar.update()
        last = training.step == options.steps
        if training.step % options.report_every == 0 or last:
            mean = accelerator.reduce(torch.stack(recent).mean(0), "mean")
            recent = []
            row = {"step": training.step, "denoising": mean[0].item(), "jepa": mean[1].item()}
            if held_out is not None:
                with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                    row["held_out_denoising"], row["held_out_jepa"] = held_out_losses(average, *held_out)
            training.rows.append(row)
            bar.set_postfix({name: f"{value:.4f}" for name, value in row.items() if name != "step"})
            if accelerator.is_main_process:
                training.save(options.out / CHECKPOINT)
                pace = (time.monotonic() - begun) / (training.step - first)
                record = {"settings": settings, "config": config.to_dict(), "rows": training.rows}
                (options.out / "loss.json").write_text(json.dumps(record | {"seconds_a_step": pace}) + "\n")
                plot_losses(training.rows, options.out / "loss.png")
        if accelerator.is_main_process and (training.step % options.sheet_every == 0 or last):
            save_sheet(average, tokenizer, options, options.out / f"samples-{training.step:06d}.png")
    bar.close()
    if accelerator.is_main_process:
        save_djepa(
            options.out / "djepa.safetensors",
            average,
            data.classes,
            tokenizer=tokenizer,
            latent_scale=options.latent_scale,
            notes={"training": json.dumps(settings), "data_licence": options.licence},
        )
    accelerator.end_training()


class Losses(torch.nn.Module):
    """training_losses as a module, so that it can be distributed."""

    def __init__(self, model: DJEPA) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return training_losses(self.model, *arguments)


def encoded(pictures: Tensor, tokenizer: Tokenizer | None) -> Tensor:
    """Latents of pictures; what already is latents, or is to stay pixels, comes back unchanged."""
    if tokenizer is None or pictures.shape[1] != 3:
        return pictures
    with torch.no_grad():
        return tokenizer.encode(pictures)


def all_tokens(
    data: ImageFolder | Latents, tokenizer: Tokenizer | None, config: DJEPAConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The tokens and labels of a whole dataset, unmirrored."""
    pictures = torch.stack([data[row, 0][0] for row in range(len(data))]).to(device)
    return to_tokens(encoded(pictures, tokenizer), config.patch), data.labels.to(device)


if __name__ == "__main__":
    main()
