"""How fast does a D-JEPA draw tokens, beside a plain loop that gives the same ones?

    python dev.py run research/costs/djepa.py

The plain loop is the algorithm as the paper's public code writes it, on the same networks and seeds. jepa_core.djepa
leaves out what cannot change the result: unwanted rows of the last block, the first step of images that share a class,
and what the head makes of the same feature again and again.
"""

import json
import statistics
from collections.abc import Sequence
from functools import partial
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
from research.harness import program
from research.harness.pack import ROOT
from research.harness.program import Row, markdown
from research.harness.timing import timed

WEIGHTS = ROOT / "assets" / "djepa128.safetensors"
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
        shape = (denoiser.draws(denoising_steps), *index.shape[1:])
        noise = torch.stack([torch.randn(shape, generator=one) for one in generators], 1)
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


def measure(model: DJEPA, batch: int, settings: Row) -> Row:
    """Tokens a second of both ways, and how far their tokens are apart."""
    labels, seeds = torch.arange(batch) % model.config.classes, range(batch)
    times = []
    apart = 0.0
    for _ in range(REPEATS):
        plain, plain_seconds = timed(partial(plain_sample, model, labels, seeds, **settings))
        ours, seconds = timed(partial(sample_tokens, model, labels, seeds, **settings))
        times.append((plain_seconds, seconds))
        apart = max(apart, ((plain - ours).abs().max() / plain.abs().max()).item())
    tokens = batch * model.config.tokens
    rates = [round(tokens / statistics.median(some), 1) for some in zip(*times, strict=True)]
    return {
        "plain_tokens_a_second": rates[0],
        "tokens_a_second": rates[1],
        "times_faster": round(statistics.median(one / other for one, other in times), 2),
        "largest_difference": float(f"{apart:.1e}"),
    }


def random_model(config: DJEPAConfig) -> DJEPA:
    """A model of a published size; its speed does not depend on its weights. Zeros in the head become noise."""
    torch.manual_seed(0)
    model = DJEPA(config).eval().requires_grad_(False)
    for layer in (*model.head.modulation_layers(), model.head.out):
        torch.nn.init.normal_(layer.weight, std=0.02)
    return model


def counted(size: str, steps: int = 64, denoising_steps: int = 100) -> Row:
    """Floating-point operations of one image with guidance at a published size, counted on the meta device."""
    config = published_config(size)
    with torch.device("meta"):
        model = DJEPA(config)

        def pair(entries: int) -> Tensor:
            return torch.empty(2, entries, dtype=torch.long)

        def flop(module: Any, *shapes: Any) -> int:
            with FlopCounterMode(display=False) as counter:
                module(*shapes)
            return counter.get_total_flops()

        transformers = head = revealed = 0
        for masked in masked_counts(config.tokens, steps):
            wanted = config.tokens - masked - revealed
            context = torch.empty(2, revealed, config.token_width)
            transformers += flop(model.features, context, pair(revealed), pair(1)[:, 0], pair(wanted))
            tokens = torch.empty(2 * wanted, config.token_width)
            z = torch.empty(2 * wanted, config.width)
            head += denoising_steps * flop(model.head, tokens, tokens[:, 0], z)
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


def table(figures: Row) -> str:
    """How fast D-JEPAs draw tokens, beside a plain loop; then what the published sizes take, counted."""
    columns = {
        "model": "{model}",
        "images": "{batch}",
        "sets x denoising steps": "{steps} x {denoising_steps}",
        "plain loop, tokens a s": "{plain_tokens_a_second:.1f}",
        "tokens a s": "{tokens_a_second:.1f}",
        "times faster": "{times_faster:.2f}",
        "apart": "{largest_difference:.0e}",
    }
    counted = {
        "size": "{size}",
        "weights, M": "{weights_M}",
        "float32, GB": "{float32_GB}",
        "transformers, TFLOP an image": "{transformers_TFLOP}",
        "head, TFLOP an image": "{head_TFLOP}",
    }
    return markdown(columns, figures["rows"]) + "\n\n" + markdown(counted, figures["counted"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "djepa.json", encoder=False)
    options = parser.parse_args(arguments)
    small = load_djepa(WEIGHTS).model
    cases: list[tuple[str, DJEPA, int, Row]] = [
        ("avatars", small, batch, {"steps": steps, "denoising_steps": 50, "cfg": 2.0})
        for batch, steps in ((1, 32), (1, 64), (8, 32))
    ]
    short = {"steps": 4, "denoising_steps": 25, "cfg": 3.0}
    cases.append(("B", random_model(published_config("B")), 1, short))
    rows = []
    for name, model, batch, sizes in cases:
        rows.append({"model": name, "batch": batch, **sizes, **measure(model, batch, sizes)})
        print(json.dumps(rows[-1]), flush=True)
    record = {"settings": program.settings(parser, options), "rows": rows}
    record["counted"] = [counted(size) for size in ("B", "L", "H")]
    program.write(options.out, record, table)


if __name__ == "__main__":
    main()
