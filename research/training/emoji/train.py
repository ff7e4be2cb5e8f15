"""Train the demo generator: a small class-conditional UNet of ComfyUI's own class, 64 x 64 pixels.

    python dev.py run research/training/emoji/train.py --folder WORK

Resumable: run the same command again. Every step draws from its own seed, so an interrupted run and an
uninterrupted one see the same batches. The learning rate is constant after a warm-up and falls to zero
over the last fifth, so a running training may be restarted with another --steps before that point.
The pixels are folded 4 x 4 into channels (48 x 16 x 16), an orthonormal change of coordinates, which makes
a step an order of magnitude cheaper than the same network at 64 x 64.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from research.harness import program
from research.harness.pack import ROOT, load_pack
from research.harness.sheet import sample_sheet
from research.training.emoji.data import load_pictures
from research.training.loop import Training, learning_rate
from research.training.pictures import Pictures, augment

load_pack()
import comfy.ops  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402

SIZE = 64  # pixels
FOLD = 4
CONTEXT = 128
LAYERS: list[Any] = [torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm]
UNET: dict[str, Any] = {
    "image_size": SIZE // FOLD,
    "in_channels": 3 * FOLD * FOLD,
    "out_channels": 3 * FOLD * FOLD,
    "model_channels": 96,
    "channel_mult": [1, 2],
    "num_res_blocks": [2, 1],
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "transformer_depth": [0, 0, 1],
    "transformer_depth_output": [1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": CONTEXT,
    "use_linear_in_transformer": True,
    "legacy": False,
}
# The host's discrete variance-preserving schedule at its default betas.
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHA_BAR = torch.cumprod(1 - BETAS, 0).float()


class Generator(torch.nn.Module):
    """The UNet and the table of class embeddings (row 0: no class) that is its only context token."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.unet = UNetModel(**UNET, operations=comfy.ops.disable_weight_init)
        self.classes = torch.nn.Embedding(classes + 1, CONTEXT)
        for module in self.unet.modules():
            # The host's layers override this with nothing, because they expect a checkpoint.
            for layer in LAYERS:
                if isinstance(module, layer):
                    layer.reset_parameters(module)
        for name, module in self.unet.named_modules():
            # Residual branches start at zero, as in the network's original definition.
            if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
                torch.nn.init.zeros_(module.weight)
                torch.nn.init.zeros_(module.bias)

    def forward(self, z: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        """z (B, 48, 16, 16) at variance-preserving scale, timestep (B,) in 0..999 -> velocity, like z."""
        return self.unet(z, timestep.float(), context=self.classes(label)[:, None])


@torch.no_grad()
def sample(model: Generator, labels: Tensor, *, steps: int = 20, cfg: float = 2.0, seed: int = 0) -> Tensor:
    """DDIM from pure noise with classifier-free guidance; returns (B, 3, 64, 64) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(len(labels), UNET["in_channels"], SIZE // FOLD, SIZE // FOLD, generator=generator)
    times = torch.linspace(999, 0, steps).round().long()
    for i, t in enumerate(times):
        alpha, sigma = ALPHA_BAR[t].sqrt(), (1 - ALPHA_BAR[t]).sqrt()
        both = torch.cat([labels, torch.zeros_like(labels)])
        with torch.autocast("cpu", torch.bfloat16):
            v = model(z.repeat(2, 1, 1, 1), t.expand(len(both)), both).float()
        v = v[len(labels) :] + cfg * (v[: len(labels)] - v[len(labels) :])
        clean, noise = alpha * z - sigma * v, sigma * z + alpha * v
        if i + 1 < steps:
            following = ALPHA_BAR[times[i + 1]]
            z = following.sqrt() * clean + (1 - following).sqrt() * noise
    return F.pixel_shuffle(clean, FOLD).add(1).div(2).clamp(0, 1)


def velocity_error(model: Generator, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Mean square error of the predicted velocity at random timesteps; pixels (B, 3, 64, 64) in [0, 1]."""
    clean = F.pixel_unshuffle(pixels * 2 - 1, FOLD)
    t = torch.randint(0, 1000, (len(clean),), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    alpha, sigma = ALPHA_BAR[t].sqrt()[:, None, None, None], (1 - ALPHA_BAR[t]).sqrt()[:, None, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        noisy = (alpha * clean + sigma * noise).contiguous(memory_format=torch.channels_last)
        predicted = model(noisy, t, labels)
    return F.mse_loss(predicted.float(), alpha * noise - sigma * clean)


def save_sheet(model: Generator, file: Path) -> None:
    """Write a sheet of 64 samples, the classes in turn, eight a row, doubled in size."""
    labels = torch.arange(64) % (model.classes.num_embeddings - 1) + 1
    sample_sheet(sample(model, labels)).save(file)


def export(model: Generator, file: Path, data: Pictures, settings: dict[str, Any]) -> None:
    """Write half-precision weights with the configuration that rebuilds them in the header."""
    metadata = {"format": "jepa-demo-generator-1", "fold": str(FOLD), "data_licence": data.licence}
    lists = {"unet": UNET, "classes": ["any", *data.classes], "training": settings}
    metadata |= {name: json.dumps(value) for name, value in lists.items()}
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, file, metadata=metadata)


def draw_batch(data: Pictures, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Augmented pixels (B, 3, 64, 64) and labels, a tenth of them 0.

    Classes are drawn in proportion to the square root of their size, so that small ones are seen.
    """
    by_class = [(data.labels == label).nonzero().flatten() for label in range(1, len(data.classes) + 1)]
    weights = torch.tensor([math.sqrt(len(rows)) for rows in by_class])
    chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
    rows = torch.stack(
        [by_class[c][torch.randint(len(by_class[c]), (), generator=generator)] for c in chosen.tolist()]
    )
    labels = torch.where(torch.rand(count, generator=generator) < 0.1, 0, data.labels[rows])
    return augment(data.images[rows], generator), labels


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, folder=True, encoder=False)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=7e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path, default=ROOT / "assets", help="where the finished weights go")
    options = parser.parse_args(arguments)
    data = load_pictures(options.folder)
    seen, unseen = data.trained_on(), data.unseen()
    torch.manual_seed(options.seed)
    model = Generator(len(data.classes)).to(memory_format=torch.channels_last)
    average = Generator(len(data.classes))
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.peak, betas=(0.9, 0.99), weight_decay=0.01)
    training = Training(options.folder / "checkpoint.pt", model, optimizer, average)
    training.resume()
    recent: list[float] = []
    bar = tqdm(range(training.step, options.steps), initial=training.step, total=options.steps, mininterval=5)
    for step in bar:
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        loss = velocity_error(model, *draw_batch(seen, options.batch, generator), generator)
        training.advance(loss, options.peak * learning_rate(step, options.steps, 200, 0.2))
        training.follow(0.998)
        recent.append(loss.item())
        if training.step % 200 == 0 or training.step == options.steps:
            check = torch.Generator().manual_seed(1)
            with torch.no_grad():
                held_out = velocity_error(average, unseen.pixels(), unseen.labels, check).item()
            means = {"velocity": sum(recent) / len(recent), "held_out_velocity": held_out}
            training.rows.append({"step": training.step} | means)
            bar.set_postfix(means)
            recent = []
            training.save()
        if training.step % 500 == 0:
            save_sheet(average, options.folder / f"samples-{training.step:05d}.png")
    settings = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    export(average, options.export / "emoji64.safetensors", data, settings)
    training.report(options.folder, {"settings": settings}, {"velocity": "velocity error (mean square)"})
    save_sheet(average, options.folder / "samples.png")


if __name__ == "__main__":
    main()
