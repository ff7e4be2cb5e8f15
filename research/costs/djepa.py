"""How fast a D-JEPA draws tokens, beside a plain loop that gives the same ones.

    python dev.py run research/costs/djepa.py

The plain loop is the algorithm as the paper's public code writes it, on the same networks: at each step both halves of
classifier-free guidance through both transformers, every row of the last block, and at each denoising step the head
with everything that it makes of time and feature. jepa_core.djepa leaves out what cannot change the result: rows of the
last block that nobody wants, the first step of images that share a class, and what the head makes of the same
feature again and again. Attention runs in both directions, so keys and values of earlier steps cannot be kept.

Both ways run in turn, on the same seeds, and their tokens are compared.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jepa_core.djepa import (
    DJEPA,
    DJEPAConfig,
    denoiser_of,
    load_djepa,
    masked_counts,
    published_config,
    sample_tokens,
)
from jepa_core.djepa.model import DenoisingHead

ROOT = Path(__file__).absolute().parents[2]
WEIGHTS = ROOT / "assets" / "djepa64.safetensors"
REPEATS = 3


class PlainHead:
    """A head's layers, called as a plain loop calls them: whole, at each denoising step."""

    def __init__(self, head: DenoisingHead) -> None:
        self.head = head

    def embed_time(self, time: Tensor) -> Tensor:
        return time

    def condition(self, z: Tensor) -> Tensor:
        return z

    def modulations(self, times: Tensor, z: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(time.expand(len(z)), z) for time in times]

    def denoise(self, x: Tensor, when: tuple[Tensor, Tensor]) -> Tensor:
        return self.head(x, *when)


@torch.no_grad()
def plain_sample(
    model: DJEPA, labels: Tensor, seeds: Sequence[int], *, steps: int, denoising_steps: int, cfg: float
) -> Tensor:
    """Tokens (B, N, w) of sample_tokens by the plain loop."""
    config, denoiser = model.config, denoiser_of(model.config)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    order = torch.stack([torch.randperm(config.tokens, generator=one) for one in generators])
    tokens = torch.zeros(len(labels), config.tokens, config.token_width)
    everything = torch.arange(config.tokens).expand(2 * len(labels), -1)
    both = torch.cat([labels, torch.full_like(labels, config.classes)])
    revealed = 0
    for masked in masked_counts(config.tokens, steps):
        after = config.tokens - masked
        places, wanted = order[:, :revealed], order[:, revealed:after]
        index = wanted[..., None].expand(-1, -1, config.token_width)
        context = tokens.gather(1, places[..., None].expand(-1, -1, config.token_width)).repeat(2, 1, 1)
        z = model.features(context, places.repeat(2, 1), both, everything)
        rows = wanted.repeat(2, 1)[..., None].expand(-1, -1, config.width)
        noise = torch.stack(
            [
                torch.randn(denoiser.draws(denoising_steps), *index.shape[1:], generator=one)
                for one in generators
            ],
            1,
        )
        drawn = denoiser.sample(
            PlainHead(model.head),  # type: ignore[arg-type]
            z.gather(1, rows).flatten(0, 1),
            noise.flatten(1, 2),
            steps=denoising_steps,
            guidance_scale=1 + (cfg - 1) * after / config.tokens,
        )
        tokens = tokens.scatter(1, index, drawn.unflatten(0, wanted.shape))
        revealed = after
    return tokens


def measure(model: DJEPA, batch: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second of both ways, and how far their tokens are apart."""
    labels, seeds = torch.arange(batch) % model.config.classes, range(batch)
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    apart = 0.0
    for _ in range(REPEATS):
        results = []
        for name, way in (("plain", plain_sample), ("ours", sample_tokens)):
            begun = time.perf_counter()
            results.append(way(model, labels, seeds, **settings))
            seconds[name].append(time.perf_counter() - begun)
        apart = max(apart, ((results[0] - results[1]).abs().max() / results[0].abs().max()).item())
    tokens = batch * model.config.tokens
    ratios = [plain / ours for plain, ours in zip(seconds["plain"], seconds["ours"], strict=True)]
    found = {name: round(tokens / statistics.median(values), 1) for name, values in seconds.items()}
    row = {"plain_tokens_a_second": found["plain"], "tokens_a_second": found["ours"]}
    return row | {
        "times_faster": round(statistics.median(ratios), 2),
        "largest_difference": float(f"{apart:.1e}"),
    }


def random_model(config: DJEPAConfig) -> DJEPA:
    """A model of a published size; its speed does not depend on its weights. Zeros in the head become noise."""
    torch.manual_seed(0)
    model = DJEPA(config).eval().requires_grad_(False)
    for layer in (*model.head.modulation_layers(), model.head.out):
        torch.nn.init.normal_(layer.weight, std=0.02)
    return model


def counted(size: str, steps: int = 64, denoising_steps: int = 100) -> dict[str, Any]:
    """Floating-point operations of one image with guidance at a published size, counted on the meta device."""
    config = published_config(size)
    with torch.device("meta"):
        model = DJEPA(config)

        def pair(entries: int) -> Tensor:
            return torch.empty(2, entries, dtype=torch.long)

        transformers = head = 0
        revealed = 0
        for masked in masked_counts(config.tokens, steps):
            wanted = config.tokens - masked - revealed
            with FlopCounterMode(display=False) as counter:
                model.features(
                    torch.empty(2, revealed, config.token_width), pair(revealed), pair(1)[:, 0], pair(wanted)
                )
            transformers += counter.get_total_flops()
            with FlopCounterMode(display=False) as counter:
                tokens = 2 * wanted
                model.head(
                    torch.empty(tokens, config.token_width),
                    torch.empty(tokens),
                    torch.empty(tokens, config.width),
                )
            head += denoising_steps * counter.get_total_flops()
            revealed += wanted
    weights = sum(value.numel() for value in model.parameters()) - sum(
        w.numel() for w in model.projection.parameters()
    )
    return {
        "size": size,
        "weights_M": round(weights / 1e6, 1),
        "float32_GB": round(4 * weights / 1e9, 2),
        "transformers_TFLOP": round(transformers / 1e12, 2),
        "head_TFLOP": round(head / 1e12, 2),
    }


def main() -> None:
    small = load_djepa(WEIGHTS).model
    cases: list[tuple[str, DJEPA, int, dict[str, Any]]] = [
        ("emoji", small, batch, {"steps": steps, "denoising_steps": 50, "cfg": 2.0})
        for batch, steps in ((1, 32), (1, 64), (8, 32))
    ]
    short = {"steps": 4, "denoising_steps": 25, "cfg": 3.0}
    cases.append(("B", random_model(published_config("B")), 1, short))
    rows = []
    for name, model, batch, settings in cases:
        rows.append({"model": name, "batch": batch, **settings, **measure(model, batch, settings)})
        print(json.dumps(rows[-1]), flush=True)
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    record = {"torch": torch.__version__, **machine, "dtype": "float32", "device": "cpu", "rows": rows}
    record["counted"] = [counted(size) for size in ("B", "L", "H")]
    (ROOT / "research" / "figures" / "djepa.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
