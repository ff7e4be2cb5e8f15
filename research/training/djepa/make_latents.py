"""Train the small D-JEPA's tokenizer on the demo generator's images, and encode them for train.py.

    python dev.py run research/training/djepa/make_latents.py --folder WORK

Writes WORK/tokenizer.safetensors, and beside it latents.safetensors (many augmentations of each image, about 60 MB) and
held_out.safetensors. Resumable: run the same command again; every step draws from its own seed.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from jepa_core.djepa import load_tokenizer
from jepa_core.djepa.tokenizer import CHANNELS, STRIDE, Tokenizer, peak_signal_to_noise
from research.harness import program
from research.training.emoji.data import load_pictures
from research.training.loop import Training, learning_rate
from research.training.pictures import Pictures, augment


def train(data: Pictures, options: argparse.Namespace, file: Path) -> None:
    """Train the tokenizer, and write its weights."""
    seen, unseen = data.trained_on().images, data.unseen().pixels() * 2 - 1
    torch.manual_seed(options.seed)
    model = Tokenizer().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.peak, betas=(0.9, 0.99), weight_decay=1e-4)
    training = Training(options.folder / "tokenizer.pt", model, optimizer)
    training.resume()
    bar = tqdm(range(training.step, options.steps), initial=training.step, total=options.steps, mininterval=5)
    for step in bar:
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        rows = torch.randint(len(seen), (options.batch,), generator=generator)
        pixels = (augment(seen[rows], generator) * 2 - 1).contiguous(memory_format=torch.channels_last)
        side = pixels.shape[-1] // STRIDE
        noise = torch.randn(options.batch, CHANNELS, side, side, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.reconstruction_error(pixels, noise)
        training.advance(loss, options.peak * learning_rate(step, options.steps, 100, 0.5))
        if training.step % 100 == 0 or training.step == options.steps:
            model.eval()
            with torch.no_grad():
                quality = peak_signal_to_noise(model.decode(model.encode(unseen)), unseen)
            model.train()
            training.rows.append({"step": training.step, "loss": loss.item(), "held_out_db": quality})
            bar.set_postfix(training.rows[-1])
            training.save()
    settings = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    settings["held_out_db"] = round(training.rows[-1]["held_out_db"], 2)
    weights = model.state_dict().items()
    tensors = {name: value.contiguous() for name, value in weights if value.is_floating_point()}
    save_file(tensors, file, metadata={"training": json.dumps(settings)})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, folder=True, encoder=False)
    parser.add_argument("--steps", type=int, default=1500, help="of the tokenizer")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--augmentations", type=int, default=64, help="of each image")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    data, file = load_pictures(options.folder), options.folder / "tokenizer.safetensors"
    train(data, options, file)
    seen, unseen, tokenizer = data.trained_on(), data.unseen(), load_tokenizer(file)
    generator = torch.Generator().manual_seed(options.seed)
    rounds = [tokenizer.encode(augment(seen.images, generator) * 2 - 1) for _ in range(options.augmentations)]
    header = {"classes": json.dumps(list(data.classes)), "licence": data.licence}
    for name, latents, labels in (
        ("latents", torch.cat(rounds), seen.labels.repeat(options.augmentations)),
        ("held_out", tokenizer.encode(unseen.pixels() * 2 - 1), unseen.labels),
    ):
        file = options.folder / f"{name}.safetensors"
        save_file({"latents": latents.half().contiguous(), "labels": labels - 1}, file, metadata=header)
        print(f"{file}: {tuple(latents.shape)}, mean {latents.mean():.3f}, deviation {latents.std():.3f}")


if __name__ == "__main__":
    main()
