"""Train the demo generator: a small class-conditional UNet of ComfyUI's own class, 64 x 64 pixels.

    python dev.py run research/training/emoji/train.py --folder WORK

Resumable: run the same command again. Every step draws from its own seed, so an interrupted run and an
uninterrupted one see the same batches. The learning rate is constant after a warm-up and falls to zero
over the last fifth, so a running training may be restarted with another --steps before that point.
The pixels are folded 4 x 4 into channels (48 x 16 x 16), an orthonormal change of coordinates, which makes
a step an order of magnitude cheaper than the same network at 64 x 64.
"""

import argparse
import json
import math
import time
from pathlib import Path

import comfy.options
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

comfy.options.enable_args_parsing(False)
from comfy.cli_args import args as comfy_args  # noqa: E402

comfy_args.cpu = not torch.cuda.is_available()
import comfy.ops  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from data import CLASSES, LICENCE, SIZE, augment, load_images  # noqa: E402

from research.harness.sheet import sample_sheet  # noqa: E402

HERE = Path(__file__).resolve().parent
FOLD = 4
CONTEXT = 128
UNET = {
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

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNetModel(**UNET, operations=comfy.ops.disable_weight_init)
        self.classes = torch.nn.Embedding(len(CLASSES) + 1, CONTEXT)
        for module in self.unet.modules():
            # The host's layers override this with nothing, because they expect a checkpoint.
            for layer in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm):
                if isinstance(module, layer):
                    layer.reset_parameters(module)
        for name, module in self.unet.named_modules():
            # Residual branches start at zero, as in the network's original definition.
            if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
                torch.nn.init.zeros_(module.weight)
                torch.nn.init.zeros_(module.bias)

    def forward(self, z: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """z (B, 48, 16, 16) at variance-preserving scale, timestep (B,) in 0..999 -> velocity, like z."""
        return self.unet(z, timestep.float(), context=self.classes(label)[:, None])


def learning_rate(step: int, steps: int, peak: float) -> float:
    decay = steps // 5
    return peak * min(1.0, (step + 1) / 200, (steps - step) / decay)


@torch.no_grad()
def sample(
    model: Generator, labels: torch.Tensor, *, steps: int = 20, cfg: float = 2.0, seed: int = 0
) -> torch.Tensor:
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


def save_sheet(model: Generator, path: Path) -> None:
    """Write a sheet of 64 samples, the classes in turn, eight a row, doubled in size."""
    labels = torch.arange(64) % len(CLASSES) + 1
    sample_sheet(sample(model, labels)).save(path)


def plot_losses(losses: list[list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps, train, held_out = zip(*losses, strict=True)
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(steps, train, label="trained on", color="#0072B2")
    axes.plot(steps, held_out, label="held out", color="#D55E00", linestyle="--")
    axes.set(xlabel="step", ylabel="velocity error (mean square)", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def velocity_error(
    model: Generator, pixels: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Mean square error of the predicted velocity at random timesteps; pixels (B, 3, 64, 64) in [0, 1]."""
    clean = F.pixel_unshuffle(pixels * 2 - 1, FOLD)
    t = torch.randint(0, 1000, (len(clean),), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    alpha, sigma = ALPHA_BAR[t].sqrt()[:, None, None, None], (1 - ALPHA_BAR[t]).sqrt()[:, None, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(
            (alpha * clean + sigma * noise).contiguous(memory_format=torch.channels_last), t, labels
        )
    return F.mse_loss(predicted.float(), alpha * noise - sigma * clean)


def export(model: Generator, folder: Path, settings: dict, losses: list[list[float]]) -> None:
    """Write half-precision weights with the configuration that rebuilds them in the header."""
    metadata = {
        "format": "jepa-demo-generator-1",
        "unet": json.dumps(UNET),
        "fold": str(FOLD),
        "classes": json.dumps(["any", *CLASSES]),
        "training": json.dumps(settings),
        "data_licence": LICENCE,
    }
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "emoji64.safetensors", metadata=metadata)
    rows = [[step, round(train, 5), round(held, 5)] for step, train, held in losses]
    record = {"settings": settings, "columns": ["step", "train", "held_out"], "losses": rows}
    (folder / "loss.json").write_text(json.dumps(record) + "\n")
    plot_losses(losses, folder / "loss.png")
    save_sheet(model, folder / "samples.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--folder", type=Path, required=True, help="downloads, checkpoint and progress sheets"
    )
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=7e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--export", type=Path, default=HERE.parents[2] / "assets", help="where the finished weights go"
    )
    options = parser.parse_args()
    settings = {name: value for name, value in vars(options).items() if name not in ("folder", "export")}

    images, labels, _, held_out = load_images(options.folder)
    train, held = (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
    print(f"{len(train)} images to train on, {len(held)} held out, {len(CLASSES)} classes", flush=True)
    by_class = [train[labels[train] == c] for c in range(1, len(CLASSES) + 1)]
    # Classes are drawn in proportion to the square root of their size, so that small ones are seen.
    weights = torch.tensor([math.sqrt(len(rows)) for rows in by_class])

    torch.manual_seed(options.seed)
    model = Generator().to(memory_format=torch.channels_last)
    average = Generator()
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.peak, betas=(0.9, 0.99), weight_decay=0.01)
    first, losses = 0, []
    checkpoint = options.folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first, losses = state["step"], state["losses"]
        print(f"resumed at step {first}", flush=True)

    recent: list[float] = []
    begun = time.monotonic()
    for step in range(first, options.steps):
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        chosen = torch.multinomial(weights, options.batch, replacement=True, generator=generator)
        rows = torch.stack(
            [by_class[c][torch.randint(len(by_class[c]), (), generator=generator)] for c in chosen.tolist()]
        )
        label = torch.where(torch.rand(options.batch, generator=generator) < 0.1, 0, labels[rows])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.peak)
        loss = velocity_error(model, augment(images[rows], generator), label, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        recent.append(loss.item())
        done = step + 1
        if done % 200 == 0 or done == options.steps:
            check = torch.Generator().manual_seed(1)
            with torch.no_grad():
                held_pixels = F.avg_pool2d(images[held].float() / 255, 2)
                held_loss = velocity_error(average, held_pixels, labels[held], check).item()
            losses.append([done, sum(recent) / len(recent), held_loss])
            recent = []
            pace = (time.monotonic() - begun) / (done - first)
            left = pace * (options.steps - done) / 60
            print(
                f"step {done}/{options.steps} loss {losses[-1][1]:.4f} held out {held_loss:.4f} "
                f"{pace:.2f} s/step, {left:.0f} min left",
                flush=True,
            )
            state = {"model": model.state_dict(), "average": average.state_dict(), "step": done}
            state |= {"optimizer": optimizer.state_dict(), "losses": losses}
            partial = checkpoint.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(checkpoint)
        if done % 500 == 0:
            save_sheet(average, options.folder / f"samples-{done:05d}.png")
    export(average, options.export, settings, losses)
    print(f"wrote {options.export / 'emoji64.safetensors'}", flush=True)


if __name__ == "__main__":
    main()
