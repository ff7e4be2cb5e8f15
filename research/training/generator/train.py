"""Train the demo generator: a small class-conditional UNet of ComfyUI's own class, 128 x 128 pixels, on the demo world.

    python dev.py run research/training/generator/train.py --folder WORK

WORK holds what research/training/tokenizer.py wrote there. Resumable: run the same command again. Every step draws from
its own seed, so an interrupted run and an uninterrupted one see the same batches. The learning rate is constant after a
warm-up and falls to zero over the last third, so a running training may be restarted with another --steps before that
point. Sheets are sampled by the host.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from jepa_core.djepa import Tokenizer, load_tokenizer
from research.harness import program
from research.harness.pack import load_pack
from research.harness.pack_api import demo
from research.harness.sampling import draw
from research.harness.sheet import sample_sheet
from research.training.loop import Training, add_device, learning_rate
from research.training.pictures import Pictures
from research.world.classes import attribution
from research.world.data import TRAINING, load_pictures, world_id
from research.world.labels import CLASSES

load_pack()
import comfy.ops  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402

CONTEXT = 128
FOLD = 8  # of the recipe without an autoencoder
LAYERS: list[Any] = [nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm]
UNET: dict[str, Any] = {
    "image_size": 16,
    "model_channels": 96,
    "channel_mult": [1, 2],
    "num_res_blocks": [2, 1],
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "transformer_depth": [0, 0, 0],
    "transformer_depth_output": [1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": CONTEXT,
    "use_linear_in_transformer": True,
    "legacy": False,
}
# The host's discrete variance-preserving schedule at its default betas.
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHA_BAR = torch.cumprod(1 - BETAS, 0).float()


class Data(NamedTuple):
    """What is learned: (N, C, 16, 16) of about unit variance, and labels (N,) from 1, 0 for none."""

    clean: Tensor
    labels: Tensor


class Noised(NamedTuple):
    """A noisy input, the time that the network is told, and what it should answer."""

    noisy: Tensor
    time: Tensor
    target: Tensor


class Generator(nn.Module):
    """The UNet and the table of class embeddings (row 0: no class) that is its only context token."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sizes = UNET | {"in_channels": channels, "out_channels": channels}
        self.unet = UNetModel(**self.sizes, operations=comfy.ops.disable_weight_init)
        self.classes = nn.Embedding(len(CLASSES) + 1, CONTEXT)
        for module in self.unet.modules():
            # The host's layers override this with nothing, because they expect a checkpoint.
            for layer in LAYERS:
                if isinstance(module, layer):
                    layer.reset_parameters(module)
        for name, module in self.unet.named_modules():
            # Residual branches start at zero, as in the network's original definition.
            if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, z: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """z (B, C, 16, 16), time (B,) in 0..1000 as the host tells it -> what the recipe predicts, like z."""
        return self.unet(z, time, context=self.classes(label)[:, None])


def add_noise(clean: Tensor, prediction: str, generator: torch.Generator) -> Noised:
    """Draw a time and noise for each row.

    Args:
        prediction: "v", velocity on the host's default schedule (arXiv 2202.00512), times drawn evenly; or "flow", the
            straight path from picture to noise (arXiv 2210.02747), times logit-normal (arXiv 2403.03206).
    """
    noise = torch.randn(clean.shape, generator=generator)
    if prediction == "flow":
        share = torch.randn(len(clean), generator=generator).sigmoid()
        part = share[:, None, None, None]
        return Noised((1 - part) * clean + part * noise, 1000 * share, noise - clean)
    time = torch.randint(0, 1000, (len(clean),), generator=generator)
    bar = ALPHA_BAR[time][:, None, None, None]
    alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
    return Noised(alpha * clean + sigma * noise, time.float(), alpha * noise - sigma * clean)


def loss_of(model: Generator, data: Data, prediction: str, generator: torch.Generator) -> Tensor:
    """Mean square error of the prediction at random times and with random noise."""
    device = model.classes.weight.device
    noised = add_noise(data.clean.float(), prediction, generator)
    noisy = noised.noisy.to(device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        predicted = model(noisy, noised.time.to(device), data.labels.to(device))
    return F.mse_loss(predicted.float(), noised.target.to(device))


def draw_batch(data: Data, count: int, generator: torch.Generator) -> Data:
    """Random rows, a tenth of them without their label."""
    rows = torch.randint(len(data.labels), (count,), generator=generator)
    unlabelled = torch.rand(count, generator=generator) < 0.1
    return Data(data.clean[rows], data.labels[rows].masked_fill(unlabelled, 0))


def read_data(options: argparse.Namespace) -> list[Data]:
    """What is trained on, and what is held out."""
    if options.space == "latents":
        files = [load_file(options.folder / f"{name}.safetensors") for name in ("latents", "held_out")]
        return [Data(file["latents"], file["labels"].long() + 1) for file in files]
    found = load_pictures(options.folder, options.pictures)
    return [Data(folded(part), part.labels) for part in (found.trained_on(), found.unseen())]


def folded(pictures: Pictures) -> Tensor:
    """Pixels in [-1, 1], folded 8 x 8 into channels: (N, 192, 16, 16), half precision."""
    rows = torch.arange(len(pictures.labels)).split(1000)
    return torch.cat([F.pixel_unshuffle((pictures.pixels(part) * 2 - 1).half(), FOLD) for part in rows])


@torch.inference_mode()
def samples(
    model: Generator, decoder: Tokenizer | None, prediction: str, labels: Sequence[int], **how: Any
) -> Tensor:
    """Pictures (B, 3, 128, 128) in [0, 1] of these classes, drawn by the host.

    Args:
        decoder: None for a generator of folded pixels.
    """
    no_preview = [[0.0, 0.0, 0.0]] * (model.sizes["in_channels"] + 1)
    patcher = demo.demo_patcher(model.sizes, model.unet.state_dict(), prediction, no_preview)
    table = model.classes.weight.float().cpu()
    found = torch.empty(len(labels), 3, demo.SIDE, demo.SIDE)
    for label in sorted(set(labels)):
        rows = [row for row, wanted in enumerate(labels) if wanted == label]
        positive, negative = ([[table[one][None, None], {}]] for one in (label, 0))
        latents = draw(patcher, positive, negative, seed=label, count=len(rows), **how)
        pictures = F.pixel_shuffle(latents, FOLD) if decoder is None else decoder.decode(latents)
        found[rows] = pictures.add(1).div(2).clamp(0, 1)
    return found


def save_sheet(model: Generator, decoder: Tokenizer | None, prediction: str, file: Path) -> None:
    """Write a sheet of 64 samples, the classes in turn, eight a row."""
    labels = [row % len(CLASSES) + 1 for row in range(64)]
    sample_sheet(samples(model, decoder, prediction, labels)).save(file)


def preview_factors(clean: Tensor, tokenizer: Tokenizer) -> list[list[float]]:
    """(17, 3), see the host's DemoFile: what turns latents into colours as well as that can (least squares)."""
    with torch.no_grad():
        colours = F.avg_pool2d(tokenizer.decode(clean.float()), demo.STRIDE)
    given = torch.cat([clean.float(), torch.ones_like(clean[:, :1]).float()], 1)
    ends = [part.movedim(1, -1).flatten(0, -2) for part in (given, colours)]
    return [[round(number, 4) for number in row] for row in torch.linalg.lstsq(*ends).solution.tolist()]


def export(
    model: Generator, tokenizer: Tokenizer, data: Data, prediction: str, settings: dict[str, Any], file: Path
) -> None:
    """Write half-precision weights with what rebuilds the network in the header."""
    metadata = {"format": demo.FORMAT, "prediction": prediction, "data_licence": attribution()}
    lists = {
        "unet": model.sizes,
        "classes": ["any", *CLASSES],
        "preview": preview_factors(data.clean[:512], tokenizer),
        "training": settings,
    }
    metadata |= {name: json.dumps(value) for name, value in lists.items()}
    half = {name: value.half().contiguous().cpu() for name, value in model.state_dict().items()}
    save_file(half, file, metadata=metadata)


def begin(options: argparse.Namespace, channels: int) -> tuple[Training, Generator, Generator]:
    """A new training, or the one that the folder holds a checkpoint of; its model and the average of that."""
    torch.manual_seed(options.seed)
    model = Generator(channels).to(options.device).to(memory_format=torch.channels_last)
    average = Generator(channels).to(options.device)
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.peak, betas=(0.9, 0.99), weight_decay=0.01)
    file = options.folder / options.name / "checkpoint.pt"
    identity = {"space": options.space, "prediction": options.prediction, "sizes": model.sizes}
    identity |= {"world": world_id(demo.SIDE)}
    if options.space == "latents":
        identity["tokenizer"] = program.sha256(options.folder / "tokenizer.safetensors")
    training = Training(file, model, optimizer, average.eval(), identity)
    training.resume()
    return training, model, average


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = program.parser(__file__, __doc__, folder=True, encoder=False)
    parser.add_argument("--name", default="generator", help="folder in WORK of checkpoint, curves and sheets")
    parser.add_argument("--space", choices=["latents", "pixels"], default="latents")
    parser.add_argument("--prediction", choices=list(demo.PREDICTIONS), default="v")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=7e-4, help="peak learning rate")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--pictures", type=int, default=TRAINING, help="to train on, for --space pixels")
    parser.add_argument("--report-every", type=int, default=200)
    parser.add_argument("--sheet-every", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--export", type=Path, help="folder of the finished weights (default: beside the checkpoint)"
    )
    add_device(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    seen, unseen = read_data(options)
    unseen = Data(unseen.clean[:512], unseen.labels[:512])
    decoder = None if options.space == "pixels" else load_tokenizer(options.folder / "tokenizer.safetensors")
    training, model, average = begin(options, seen.clean.shape[1])
    folder, prediction = options.folder / options.name, options.prediction
    kept = {name: value for name, value in vars(options).items() if not isinstance(value, Path | None)}
    settings = {name: value for name, value in kept.items() if name != "name"}
    recent: list[float] = []
    bar = tqdm(range(training.step, options.steps), initial=training.step, total=options.steps, mininterval=5)
    for step in bar:
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        loss = loss_of(model, draw_batch(seen, options.batch, generator), prediction, generator)
        training.advance(loss, options.peak * learning_rate(step, options.steps, 200, 1 / 3))
        training.follow(options.ema)
        recent.append(loss.item())
        last = training.step == options.steps
        if training.step % options.report_every == 0 or last:
            with torch.no_grad():
                held_out = loss_of(average, unseen, prediction, torch.Generator().manual_seed(1)).item()
            means = {"error": sum(recent) / len(recent), "held_out_error": held_out}
            training.rows.append({"step": training.step} | means)
            bar.set_postfix(means)
            recent = []
            training.save()
            training.report(folder, {"settings": settings}, {"error": f"error of {prediction} (mean square)"})
        if training.step % options.sheet_every == 0 or last:
            save_sheet(average, decoder, prediction, folder / f"samples-{training.step:06d}.png")
    if decoder is not None:
        file = (options.export or folder) / demo.WEIGHTS.name
        export(average, decoder, seen, prediction, settings, file)


if __name__ == "__main__":
    main()
