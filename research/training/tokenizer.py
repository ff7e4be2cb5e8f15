"""Train the autoencoder that both small generators draw with, on pictures of the demo world, and encode the world with it.

    python dev.py run research/training/tokenizer.py --folder WORK

WORK/tokenizer gets a checkpoint, curves and a sheet. WORK/tokenizer.safetensors has the weights, and beside it are the
latents that the generators train on, latents.safetensors and held_out.safetensors, half precision. Resumable: run the
same command again; every step draws from its own seed.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid
from tqdm import tqdm

from jepa_core.djepa import load_tokenizer
from jepa_core.djepa.tokenizer import CHANNELS, STRIDE, Tokenizer, peak_signal_to_noise
from research.harness import program
from research.training.loop import Training, add_device, learning_rate
from research.training.pictures import Pictures
from research.world.data import TRAINING, load_pictures, world_id

CURVES = {"loss": "loss", "db": "peak signal-to-noise ratio (dB)"}


def train(data: Pictures, options: argparse.Namespace, file: Path) -> None:
    """Train the tokenizer, and write its weights."""
    device, folder = options.device, options.folder / "tokenizer"
    settings = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    seen, unseen = data.trained_on(), data.unseen().pixels(slice(256)).to(device) * 2 - 1
    torch.manual_seed(options.seed)
    model = Tokenizer().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.peak, betas=(0.9, 0.99), weight_decay=1e-4)
    training = Training(folder / "checkpoint.pt", model, optimizer, identity={"world": world_id(128)})
    training.resume()
    bar = tqdm(range(training.step, options.steps), initial=training.step, total=options.steps, mininterval=5)
    for step in bar:
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        rows = torch.randint(len(seen.labels), (options.batch,), generator=generator)
        pixels = (seen.pixels(rows) * 2 - 1).contiguous(memory_format=torch.channels_last)
        side = pixels.shape[-1] // STRIDE
        noise = torch.randn(options.batch, CHANNELS, side, side, generator=generator)
        with torch.autocast(device, torch.bfloat16):
            loss = model.reconstruction_error(pixels.to(device), noise.to(device))
        training.advance(loss, options.peak * learning_rate(step, options.steps, 100, 0.5))
        if training.step % 100 == 0 or training.step == options.steps:
            decoded = reconstructed(model, unseen)
            row = {"loss": loss.item(), "held_out_db": peak_signal_to_noise(decoded, unseen)}
            training.rows.append({"step": training.step} | row)
            bar.set_postfix(row)
            training.save()
            training.report(folder, {"settings": settings}, CURVES)
            save_sheet(unseen, decoded, folder / "held_out.png")
    settings["held_out_db"] = round(training.rows[-1]["held_out_db"], 2)
    weights = model.state_dict().items()
    tensors = {name: value.half().cpu().contiguous() for name, value in weights if value.is_floating_point()}
    save_file(tensors, file, metadata={"training": json.dumps(settings), "data_licence": data.licence})


@torch.no_grad()
def reconstructed(model: Tokenizer, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] through the tokenizer, in evaluation mode and full precision."""
    training = model.training
    model.eval()
    decoded = torch.cat([model.decode(model.encode(part)) for part in pixels.split(64)])
    model.train(training)
    return decoded


def save_sheet(pixels: Tensor, decoded: Tensor, file: Path) -> None:
    """Write 16 pictures above what came back of each."""
    rows = torch.cat([pixels[:8], decoded[:8], pixels[8:16], decoded[8:16]])
    grid = make_grid(rows.cpu().add(1).div(2).clamp(0, 1), nrow=8, padding=0)
    to_pil_image(grid.mul(255).round().byte()).save(file)


def encode_all(tokenizer: Tokenizer, data: Pictures, device: str) -> Tensor:
    """The latents of all pictures (N, 16, S, S), half precision."""
    parts = torch.arange(len(data.labels)).split(256)
    with torch.no_grad():
        return torch.cat(
            [tokenizer.encode(data.pixels(part).to(device) * 2 - 1).half().cpu() for part in tqdm(parts)]
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, folder=True, encoder=False)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peak", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--pictures", type=int, default=TRAINING, help="to train on")
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)
    options = parser.parse_args(arguments)
    data, file = load_pictures(options.folder, options.pictures), options.folder / "tokenizer.safetensors"
    train(data, options, file)
    tokenizer = load_tokenizer(file).to(options.device)
    header = {"classes": json.dumps(list(data.classes)), "licence": data.licence}
    header["tokenizer"] = program.sha256(file)
    for name, part in (("latents", data.trained_on()), ("held_out", data.unseen())):
        file = options.folder / f"{name}.safetensors"
        latents = encode_all(tokenizer, part, options.device)
        save_file({"latents": latents, "labels": part.labels - 1}, file, metadata=header)
        print(
            f"{file}: {tuple(latents.shape)}, mean {latents.mean():.3f}, deviation {latents.float().std():.3f}"
        )


if __name__ == "__main__":
    main()
