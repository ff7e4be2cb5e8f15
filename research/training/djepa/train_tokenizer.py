"""Train the small D-JEPA's tokenizer on the demo generator's images.

    python dev.py run research/training/djepa/train_tokenizer.py --folder WORK

Resumable: run the same command again; every step draws from its own seed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "emoji"))
from data import augment, load_images, to_pixels  # noqa: E402

from jepa_core.djepa.tokenizer import CHANNELS, STRIDE, Tokenizer, peak_signal_to_noise  # noqa: E402


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, linear decay to zero over the last half."""
    return peak * min(1.0, (step + 1) / 100, (steps - step) / (steps // 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="downloads, checkpoint and the tokenizer")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    images, _, _, held_out = load_images(options.folder)
    train, held = (~held_out).nonzero().flatten(), to_pixels(images[held_out]) * 2 - 1
    torch.manual_seed(options.seed)
    model = Tokenizer().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.peak, betas=(0.9, 0.99), weight_decay=1e-4)
    first = 0
    checkpoint = options.folder / "tokenizer.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print(f"resumed at step {first}", flush=True)
    begun = time.monotonic()
    for step in range(first, options.steps):
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        rows = train[torch.randint(len(train), (options.batch,), generator=generator)]
        pixels = (augment(images[rows], generator) * 2 - 1).contiguous(memory_format=torch.channels_last)
        side = pixels.shape[-1] // STRIDE
        noise = torch.randn(options.batch, CHANNELS, side, side, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.peak)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.reconstruction_error(pixels, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done = step + 1
        if done % 100 == 0 or done == options.steps:
            model.eval()
            with torch.no_grad():
                quality = peak_signal_to_noise(model.decode(model.encode(held)), held)
            model.train()
            pace = (time.monotonic() - begun) / (done - first)
            left = pace * (options.steps - done) / 60
            print(
                f"step {done} loss {loss.item():.4f} held out {quality:.2f} dB, {left:.0f} min left",
                flush=True,
            )
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            partial = checkpoint.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(checkpoint)
    settings = {name: value for name, value in vars(options).items() if name != "folder"}
    tensors = {
        name: value.contiguous() for name, value in model.state_dict().items() if value.is_floating_point()
    }
    save_file(
        tensors,
        options.folder / "tokenizer.safetensors",
        metadata={"training": json.dumps(settings | {"held_out_db": round(quality, 2)})},
    )


if __name__ == "__main__":
    main()
