"""Train the small classifier that judges the demo generator's images; a few minutes on a CPU.

    python dev.py run research/judges/train_classifier.py --folder WORK

It sees the generator's training images, augmented more strongly (slight blur and noise as well, so that a
generated image is not out of its depth for being soft), and is tested on the images held out from both.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from research.judges.measures import Classifier
from research.training.emoji.data import CLASSES, LICENCE, augment, load_images, to_pixels

HERE = Path(__file__).resolve().parent


def soften(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur half of the images (B, 3, 64, 64) in [0, 1] a little; add noise of up to 5 % to all."""
    count = len(pixels)
    blur = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    pixels = torch.where(blur, F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1), pixels)
    strength = 0.05 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.randn(pixels.shape, generator=generator)
    return (pixels + strength * noise).clamp(0, 1)


@torch.no_grad()
def accuracy(model: Classifier, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images (N, 3, 64, 64) whose class, labels (N,) in 1..7, the model names."""
    return (model(pixels).argmax(1) + 1 == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="downloads")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path, default=HERE, help="where the weights go")
    options = parser.parse_args()

    images, labels, _, held_out = load_images(options.folder)
    train, held = (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
    # Small classes are seen as often as large ones.
    weights = 1 / torch.bincount(labels[train])[labels[train]].float()
    torch.manual_seed(options.seed)
    model = Classifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.peak, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.peak, options.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(options.seed)
    begun = time.monotonic()
    for step in range(1, options.steps + 1):
        rows = train[torch.multinomial(weights, options.batch, replacement=True, generator=generator)]
        pixels = soften(augment(images[rows], generator), generator)
        loss = F.cross_entropy(model(pixels), labels[rows] - 1, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            found = accuracy(model, to_pixels(images[held]), labels[held])
            left = (time.monotonic() - begun) / step * (options.steps - step)
            print(f"step {step} loss {loss.item():.3f} held out {found:.3f}, {left:.0f} s left", flush=True)

    model.eval()
    found = {
        "held_out": accuracy(model, to_pixels(images[held]), labels[held]),
        "trained_on": accuracy(model, to_pixels(images[train]), labels[train]),
    }
    settings = {name: value for name, value in vars(options).items() if name not in ("folder", "export")}
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    metadata = {
        "classes": json.dumps(list(CLASSES)),
        "training": json.dumps(settings),
        "data_licence": LICENCE,
    }
    save_file(tensors, options.export / "classifier64.safetensors", metadata=metadata)
    record = {
        "settings": settings,
        "accuracy": found,
        "images": {"trained_on": len(train), "held_out": len(held)},
    }
    (options.export / "classifier.json").write_text(json.dumps(record) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
