"""What the last guided steps add, for the choice of the default end_percent.

    python dev.py run research/effects/late_steps.py --seeds 0 2 --output research/figures/late_steps.json

The demo generator, 10 Euler steps, strength 0.5 spread over the guided steps, guidance from 20 % to several
ends. A shift at a low sigma is not denoised away any more, so the question is whether late steps add noise:
`detail` is the mean absolute difference of neighbouring pixels, `score` the JEPA score of 32 fixed random
outputs of the encoder (lower is rarer).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from torchvision.transforms.functional import pil_to_tensor

from research.effects.evaluate import Sampler, jacobian_score, scored_outputs
from research.harness.sheet import contact_sheet
from research.judges.measures import encoder_identity, mean_and_error

ENDS = (0.2, 0.5, 0.8, 1.0)  # 0.2 is the empty range, the stock sampler


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--power-iterations", type=int, default=0)
    parser.add_argument("--encoder", type=Path, default=os.environ.get("JEPA_ENCODER"))
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    sampler = Sampler(options.encoder, options.power_iterations)
    encoder = sampler.encoder.encoder
    outputs = scored_outputs("projected", encoder.embed_dim)
    rows, pictures = [], {}
    for seed in options.seeds:
        for end in ENDS:
            begun = time.monotonic()
            picture, _ = sampler(seed, "guided", end_percent=end)
            seconds = time.monotonic() - begun
            pixels = pil_to_tensor(picture).float() / 255
            score = jacobian_score(
                sampler.core, encoder, encoder.preprocess(pixels.movedim(0, -1)[None]), outputs
            )
            detail = (pixels[:, 1:] - pixels[:, :-1]).abs().mean() + (
                pixels[..., 1:] - pixels[..., :-1]
            ).abs().mean()
            row = {
                "seed": seed,
                "end_percent": end,
                "score": round(score, 3),
                "detail": round(detail.item() / 2, 5),
            }
            rows.append({**row, "seconds": round(seconds, 1)})
            pictures[seed, end] = picture
            print(rows[-1], flush=True)
    plain = {row["seed"]: row for row in rows if row["end_percent"] == ENDS[0]}
    changes = {
        str(end): {
            name: mean_and_error(
                [row[name] - plain[row["seed"]][name] for row in rows if row["end_percent"] == end]
            )
            for name in ("score", "detail", "seconds")
        }
        for end in ENDS[1:]
    }
    record = {"encoder": encoder_identity(options.encoder), "change_from_unguided": changes, "images": rows}
    record["power_iterations"] = options.power_iterations
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    sheet = contact_sheet(
        "Guidance that ends earlier or later",
        [f"until {end:.0%}" for end in ENDS],
        [[pictures[seed, end] for seed in options.seeds] for end in ENDS],
        [["" for _ in options.seeds] for _ in ENDS],
        [f"seed {seed}" for seed in options.seeds],
        side=128,
    )
    sheet.save(options.output.with_suffix(".png"), optimize=True)
    print(json.dumps(changes, indent=1))


if __name__ == "__main__":
    main()
