"""Train a D-JEPA (arXiv 2410.03755) on a folder of images, one subfolder a class, or on precomputed latents.

    python dev.py run research/training/djepa/train.py --data IMAGES --out WORK --width 256 --depth 6 --heads 4
    accelerate launch --num_processes 8 research/training/djepa/train.py --data LATENTS.safetensors --out WORK --size B

It needs the package accelerate beside what ComfyUI brings, and matplotlib for the loss curves. Resumable: run
the same command again. Every step and process draws from its own seed, so an interrupted run and an
uninterrupted one see the same batches. WORK keeps the checkpoint, the loss curves, a sheet of samples for every
--sheet-every steps and at the end the weights for sampling, djepa.safetensors.

Latents are a safetensors file with `latents` (rows, C, S, S), already scaled, and `labels` (rows,) from 0; its
header may name the classes as JSON in `classes`, and the data's licence in `licence`. What
research/training/tokenizer.py writes is such a file.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
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
from jepa_core.folders.listing import find_pictures, is_technical
from jepa_core.folders.reading import PictureError, read_picture
from jepa_core.transparency import over_white
from research.harness.sheet import sample_sheet
from research.training.loop import InputError, Training, learning_rate, step_generator
from research.training.pictures import class_weights

SHEET = 64  # samples
HELD_OUT = 256  # rows whose loss is reported
CHECKPOINT = "checkpoint.pt"
CURVES = {"denoising": "denoising loss", "jepa": "JEPA loss"}


class Images(Dataset[tuple[Tensor, int]]):
    """Images of a folder with one subfolder a class, centre-cropped, in [-1, 1], mirrored at random.

    Attributes:
        classes: the names of the subfolders that hold images, sorted. labels: the class of each image.
    """

    licence = ""

    def __init__(self, folder: Path, size: int) -> None:
        found = class_pictures(folder)
        if not found:
            raise InputError(f"--data {folder} holds no images, one subfolder a class")
        self.classes = list(found)
        self.files = [file for files in found.values() for file in files]
        self.labels = torch.tensor([label for label, files in enumerate(found.values()) for _ in files])
        if broken := [
            problem for file in tqdm(self.files, "checking images") if (problem := problem_of(file))
        ]:
            raise InputError(
                f"--data {folder}: {len(broken)} of {len(self)} images cannot be read; remove or replace\n  "
                + "\n  ".join(broken[:10])
            )
        shape = [v2.Resize(size, v2.InterpolationMode.LANCZOS), v2.CenterCrop(size), v2.ToImage()]
        scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
        self._prepared = v2.Compose([*shape, *scale])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """(row, a random number whose parity mirrors) -> (3, size, size) in [-1, 1], label."""
        row, chance = key
        pixels = self._prepared(on_white(self.files[row]))
        return (pixels.flip(-1) if chance % 2 else pixels), int(self.labels[row])


def class_pictures(folder: Path) -> dict[str, list[str]]:
    """The picture files of each class: of each subfolder, by its name, and those below it.

    Hidden and technical subfolders, and those without pictures, are no classes.
    """
    names = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_technical(entry.name)
    )
    found = {name: find_pictures([folder / name]) for name in names}
    return {name: files for name, files in found.items() if files}


def on_white(file: str) -> Image.Image:
    """A picture in RGB, turned as its EXIF data says; what is transparent becomes white."""
    return Image.fromarray(over_white(read_picture(file)).mul(255).round().byte().numpy())


def problem_of(file: str) -> str | None:
    """Why an image cannot be read, or None."""
    try:
        read_picture(file)
    except (OSError, PictureError) as error:
        return f"{file}: {error}"
    return None


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
        self.licence = header.get("licence", "")
        names = json.loads(header.get("classes", "null"))
        self.classes = names or [str(label) for label in range(int(self.labels.max()) + 1)]
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise InputError(f"--data {file}: labels must be from 0 to {len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """(row, unused) -> (C, S, S), label."""
        return self.latents[key[0]].float(), int(self.labels[key[0]])


def step_batches(
    labels: Tensor, options: argparse.Namespace, first: int, process: int
) -> Iterator[list[tuple[int, int]]]:
    """The batch of each step from `first` on, drawn with the step's own seed: (row, random number) of each image."""
    weights = class_weights(labels, options.balance)
    for step in range(first, options.steps):
        generator = step_generator(options.seed, step, process, 0)
        rows = torch.multinomial(weights, options.batch, replacement=True, generator=generator)
        chances = torch.randint(2**31, rows.shape, generator=generator)
        yield list(zip(rows.tolist(), chances.tolist(), strict=True))


class Losses(torch.nn.Module):
    """training_losses as a module, so that it can be distributed."""

    def __init__(self, model: DJEPA) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return training_losses(self.model, *arguments)


def parameter_groups(model: DJEPA) -> list[dict[str, Any]]:
    """Matrices of the two transformers decay, which come first; biases, norms, embeddings and the head do not."""
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "weight_decay": 0.0}]
    for name, weight in model.named_parameters():
        decays = ".blocks." in name and weight.ndim == 2 and not name.startswith("head.")
        groups[not decays]["params"].append(weight)
    return groups


NUMBERS: tuple[dict[str, float], ...] = (
    {"image-size": 64, "latent-scale": 1.0, "balance": 0.0, "workers": 0},
    {"width": 192, "depth": 6, "heads": 3, "head-width": 256, "head-depth": 3, "buffer": 64, "patch": 1},
    {"batch": 64, "warmup": 100, "decay": 0.0, "weight-decay": 0.02, "beta2": 0.95, "clip": 3.0},
    {"jepa-weight": 1.0, "dropout": 0.1, "label-drop": 0.1, "ema": 0.9999, "seed": 0},
    {"report-every": 100, "sheet-every": 1000, "sheet-cfg": 2.0, "sheet-steps": 16},
)
HELP = {
    "balance": "0: every image alike, 1: every class alike",
    "batch": "images a step and process",
    "clip": "gradient norm",
    "decay": "share of the steps, at the end",
    "image-size": "for a folder of images",
    "jepa-weight": "weight of the JEPA loss; 0 leaves it out",
    "latent-scale": "what the file's latents were multiplied by, 0.2325 for KL-16",
    "sheet-steps": "sets of tokens",
    "warmup": "steps",
    "weight-decay": "reached linearly at the last step",
    "workers": "processes that read images",
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of images, or latents.safetensors")
    add(
        "--held-out",
        type=Path,
        help=f"the same of images that are only looked at: the loss of {HELD_OUT} is reported",
    )
    add("--out", type=Path, required=True, help="checkpoint, curves, sheets, weights")
    add("--tokenizer", type=Path, help="small tokenizer of stride 8; without it a token is pixels")
    add("--size", choices=["B", "L", "H"], help="a published size, in place of the numbers")
    add("--denoiser", choices=["diffusion", "flow"], default="diffusion")
    add("--steps", type=int, required=True, help="optimizer steps")
    add("--peak", type=float, help="learning rate; default 1e-4 * all images a step / 256")
    add("--precision", choices=["bf16", "no"], help="default: bf16 where there is hardware for it")
    add("--bare", action="store_true", help="leave the tokenizer out of the weights")
    add("--licence", default="", help="of the data, for the weights' header, in place of the file's own")
    for numbers in NUMBERS:
        for name, default in numbers.items():
            add(f"--{name}", type=type(default), default=default, help=HELP.get(name, " "))
    options = parser.parse_args(arguments)
    for name in ("steps", "batch", "warmup", "report_every", "sheet_every"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def load_data(path: Path, options: argparse.Namespace) -> Images | Latents:
    """The dataset at a path. Raises InputError."""
    if path.is_dir():
        return Images(path, options.image_size)
    if path.is_file():
        return Latents(path)
    raise InputError(f"{path} does not exist; give a folder of images or a file of latents")


def load_held_out(path: Path, data: Images | Latents, options: argparse.Namespace) -> Images | Latents:
    """The dataset at a path, with the labels that its classes have in `data`. Raises InputError for a class not in there."""
    found = load_data(path, options)
    if isinstance(found, Images):
        if strange := [name for name in found.classes if name not in data.classes]:
            raise InputError(f"--held-out {path} holds the class {strange[0]}, which --data does not")
        places = torch.tensor([data.classes.index(name) for name in found.classes])
        found.labels = places[found.labels]
    return found


def config_of(
    data: Images | Latents, tokenizer: Tokenizer | None, options: argparse.Namespace
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
    source = published_config(options.size) if options.size else options
    sizes: dict[str, Any] = {name: getattr(source, name) for name in names}
    sizes |= {"classes": len(data.classes), "patch": options.patch, "denoiser": options.denoiser}
    try:
        return DJEPAConfig(side=side, channels=channels, **sizes)
    except DJEPASizeError as error:
        raise InputError(f"these sizes make no D-JEPA: {error}") from error


@torch.no_grad()
def held_out_losses(model: DJEPA, tokens: Tensor, labels: Tensor) -> dict[str, float]:
    """Losses of tokens that are not trained on, means over four fixed draws; `model` is its own target."""
    denoiser = denoiser_of(model.config)
    found = []
    for repeat in range(4):
        generator = torch.Generator().manual_seed(repeat)
        classes = model.config.classes
        draws = training_draws(tokens, labels, denoiser, generator, classes=classes, label_drop=0.0)
        arguments = (model.context_encoder, denoiser, tokens, labels, draws.to(tokens.device))
        losses = training_losses(model, *arguments)
        found.append(torch.stack(losses))
    names = ("held_out_denoising", "held_out_jepa")
    return dict(zip(names, torch.stack(found).mean(0).tolist(), strict=True))


@torch.no_grad()
def save_sheet(model: DJEPA, tokenizer: Tokenizer | None, options: argparse.Namespace, file: Path) -> None:
    """Write 64 samples, the classes in turn, eight a row; nothing where another autoencoder would have to decode them."""
    if tokenizer is None and model.config.channels != 3:
        return
    device = next(model.parameters()).device
    labels = torch.arange(SHEET, device=device) % model.config.classes
    steps = min(options.sheet_steps, model.config.tokens)
    sampling = {"steps": steps, "denoising_steps": 50, "cfg": options.sheet_cfg}
    tokens = sample_tokens(model, labels, range(SHEET), **sampling)
    latents = to_latents(tokens, model.config.patch)
    pixels = (latents if tokenizer is None else tokenizer.decode(latents)).float().cpu()
    sample_sheet(pixels.add(1).div(2).clamp(0, 1)).save(file)


def begin(
    config: DJEPAConfig, options: argparse.Namespace, device: torch.device
) -> tuple[Training, DJEPA, DJEPA]:
    """A new training or the one that --out holds a checkpoint of, its model and the average of that."""
    torch.manual_seed(options.seed)
    model = DJEPA(config, options.dropout).to(device)
    average = DJEPA(config, options.dropout).to(device).eval().requires_grad_(False)
    average.load_state_dict(model.state_dict())
    if not options.jepa_weight:
        model.projection.requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter_groups(model), betas=(0.9, options.beta2), eps=1e-6)
    training = Training(options.out / CHECKPOINT, model, optimizer, average, config.to_dict())
    training.resume()
    return training, model, average


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
        held_out = some_tokens(load_held_out(options.held_out, data, options), tokenizer, config, device)
    options.out.mkdir(parents=True, exist_ok=True)
    recorded = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    settings = recorded | {"processes": accelerator.num_processes}
    peak = options.peak or 1e-4 * options.batch * accelerator.num_processes / 256
    training, model, average = begin(config, options, device)
    first, losses = training.step, accelerator.prepare_model(Losses(model))
    batches: Any = step_batches(data.labels, options, first, process)
    recent: list[Tensor] = []
    bar = tqdm(total=options.steps, initial=first, disable=not accelerator.is_main_process, mininterval=5)
    for step, (pictures, labels) in enumerate(
        DataLoader(data, batch_sampler=batches, num_workers=options.workers), first
    ):
        tokens = to_tokens(encoded(pictures.to(device), tokenizer), config.patch)
        generator = step_generator(options.seed, step, process, 1)
        chances = {"classes": config.classes, "label_drop": options.label_drop}
        denoiser, labels = denoiser_of(config), labels.to(device)
        draws = training_draws(tokens, labels, denoiser, generator, **chances).to(device)
        # Dropout is the only thing that draws from the global generator.
        torch.manual_seed(step_generator(options.seed, step, process, 2).initial_seed() >> 1)
        target = average.context_encoder if options.jepa_weight else None
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            denoising, jepa = losses(target, denoiser, tokens, labels, draws)
        training.optimizer.param_groups[0]["weight_decay"] = options.weight_decay * step / options.steps
        rate = peak * learning_rate(step, options.steps, options.warmup, options.decay)
        training.advance(denoising + options.jepa_weight * jepa, rate, options.clip)
        training.follow(options.ema)
        recent.append(torch.stack([denoising.detach(), jepa.detach()]))
        bar.update()
        last = training.step == options.steps
        if training.step % options.report_every == 0 or last:
            mean = accelerator.reduce(torch.stack(recent).mean(0), "mean")
            recent = []
            row = {"step": training.step, "denoising": mean[0].item(), "jepa": mean[1].item()}
            if held_out is not None:
                with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                    row |= held_out_losses(average, *held_out)
            training.rows.append(row)
            bar.set_postfix({name: f"{value:.4f}" for name, value in row.items() if name != "step"})
            if accelerator.is_main_process:
                training.save()
                record = {"settings": settings, "config": config.to_dict()}
                training.report(options.out, record, CURVES)
        if accelerator.is_main_process and (training.step % options.sheet_every == 0 or last):
            save_sheet(average, tokenizer, options, options.out / f"samples-{training.step:06d}.png")
    bar.close()
    if accelerator.is_main_process:
        notes = {"training": json.dumps(settings), "data_licence": options.licence or data.licence}
        scale, file = options.latent_scale, options.out / "djepa.safetensors"
        save_djepa(
            file,
            average,
            data.classes,
            tokenizer=None if options.bare else tokenizer,
            latent_scale=scale,
            notes=notes,
        )
    accelerator.end_training()


def encoded(pictures: Tensor, tokenizer: Tokenizer | None) -> Tensor:
    """Latents of pictures; what already is latents, or is to stay pixels, comes back unchanged."""
    if tokenizer is None or pictures.shape[1] != 3:
        return pictures
    with torch.no_grad():
        return tokenizer.encode(pictures)


def some_tokens(
    data: Images | Latents, tokenizer: Tokenizer | None, config: DJEPAConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The tokens and labels of HELD_OUT random rows, always the same, or of all if there are fewer; unmirrored."""
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:HELD_OUT]
    pictures = torch.stack([data[row, 0][0] for row in rows.tolist()]).to(device)
    return to_tokens(encoded(pictures, tokenizer), config.patch), data.labels[rows].to(device)


if __name__ == "__main__":
    main()
