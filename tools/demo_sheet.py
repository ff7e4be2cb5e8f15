"""The demo's sheet: its pictures, and what a classifier says about them that takes no part in guidance, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from research.harness.sheet import contact_sheet
from research.judges.classifier import load_classifier
from research.judges.measures import read
from research.judges.words import changes, one_in
from research.world.classes import DESIGNS
from research.world.labels import CLASSES

Row = dict[str, Any]
SHOWN_CHANGES = 3


class Judge:
    """Judges a picture by the classifier of research/judges."""

    def __init__(self) -> None:
        self.classifier = load_classifier()

    def __call__(self, picture: Image.Image, class_name: str) -> Row:
        """Whether it is recognised, its attributes, and the share of all pictures of the class that are as rare."""
        label = CLASSES.index(class_name) + 1
        found = read(pil_to_tensor(picture)[None].float() / 255, torch.tensor([label]), self.classifier)
        return {
            "recognised": found.named.item() == label,
            "attributes": found.attributes[0].tolist(),
            "tail": found.tail.item(),
        }


def differences(row: Row, unguided: Row) -> list[str]:
    """What a picture shows that the unguided one of its seed does not."""
    return changes(torch.tensor(unguided["attributes"]), torch.tensor(row["attributes"]))


def caption(row: Row, unguided: Row | None) -> str:
    """The text below a picture; `unguided` is the unguided one of its seed."""
    lines = [] if row["recognised"] else [f"not recognised as {row['class']}"]
    lines.append(f"{one_in(row['tail'])} are this rare" if row["tail"] < 0.5 else "typical")
    lines.append(f"JEPA score {row['score']:.1f}")
    if unguided is not None:
        found = differences(row, unguided) or ["no named attribute changed"]
        more = [f"and {len(found) - SHOWN_CHANGES} more"] if len(found) > SHOWN_CHANGES else []
        lines += [*found[:SHOWN_CHANGES], *more]
    return "\n".join(lines)


def draw_sheet(rows: Sequence[Row], arms: Sequence[float], seeds: Sequence[int], encoder: str) -> Image.Image:
    """The pictures made so far: a row for each strength, a column for each seed.

    Args:
        arms: strengths, 0 first, which is unguided.
    """
    made = {(row["seed"], row["strength"]): row for row in rows}
    side = rows[0]["picture"].width
    empty = Image.new("RGB", (side, side), "#f4f4f4")
    grid = [[made.get((seed, arm)) for seed in seeds] for arm in arms]
    kinds = {row["seed"]: row["class"] for row in rows}
    labels = ["unguided"] + [f"guided,\nstrength {arm:g}" for arm in arms[1:]]
    notes = [
        "This rare: of all pictures of its kind, those that are as rare or rarer, by the frequencies in the demo world.",
        f"JEPA score: under the guiding encoder ({encoder}); lower is rarer.",
        "What changed is read by a classifier that takes no part in guidance.",
        f"Avatars after designs by {designers()}; licences: assets/README.md.",
    ]
    if len(rows) == len(seeds) * len(arms):
        notes += said(rows, arms)
    return contact_sheet(
        "The same prompt, the same seed: unguided above, with JEPA guidance below",
        labels,
        [[row["picture"] if row else empty for row in line] for line in grid],
        [
            [caption(row, made[row["seed"], 0.0] if row["strength"] else None) if row else "" for row in line]
            for line in grid
        ],
        [f"{kinds[seed]}, seed {seed}" if seed in kinds else "" for seed in seeds],
        notes=notes,
    )


def designers() -> str:
    """The names of those whose designs the avatars are made of."""
    names = [design.designer.partition(" - ")[0] for design in DESIGNS.values()]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def said(rows: Sequence[Row], arms: Sequence[float]) -> list[str]:
    """What the figures say, a sentence for each strength."""
    unguided = {row["seed"]: row for row in rows if not row["strength"]}
    found = []
    for arm in arms[1:]:
        guided = [row for row in rows if row["strength"] == arm]
        pairs = [(row, unguided[row["seed"]]) for row in guided]
        lower = sum(row["score"] < before["score"] for row, before in pairs)
        rarer = sum(row["tail"] < before["tail"] for row, before in pairs)
        commoner = sum(row["tail"] > before["tail"] for row, before in pairs)
        named = sum(row["recognised"] for row in guided)
        found.append(
            f"Strength {arm:g}: the score is lower in {lower} of {len(pairs)} pictures; by the world's frequencies "
            f"rarer {rarer}, more typical {commoner}; recognised as what was asked for {named}."
        )
    return found
