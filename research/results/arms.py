"""What is compared: what the pack offers, the methods that its paper compares with, and controls."""

from typing import Any

from research.effects.evaluation import random_gradient
from research.effects.novelty import GROUPS
from research.harness.batches import Arm
from research.harness.images import UNGUIDED
from research.harness.pack_api import (
    NOVELTY,
    Cads,
    SearchConfig,
    apply_boost,
    apply_cads,
    apply_self_guidance,
    self_guided_schedule,
)
from research.results.ideas import normalised_contrast, slow_changes

KEPT, CANDIDATES = 4, 16  # of a search
SHIPPED = "novelty 1"
# Controls that no sampler draws: the unguided pictures with the contrast and saturation of an arm's.
MATCHED = {f"unguided, contrast of {arm}": arm for arm in (SHIPPED, "score 1")}
DOSE = (-2.0, -1.0, 0.25, 0.5, 1.0, 2.0, 4.0)


def _novelty(strength: float = 1.0, **inputs: Any) -> Arm:
    return Arm({"strength": strength, "criterion": "novelty"} | inputs)


def _score(strength: float = 1.0, **more: Any) -> Arm:
    inputs = {name: more.pop(name) for name in list(more) if name != "image"}
    return Arm({"strength": strength} | inputs, reference="", **more)


def _boosted(model: Any, seed: int) -> Any:
    return apply_boost(model, 1.5)


def _noised(model: Any, seed: int) -> Any:
    return apply_cads(model, Cads(scale=0.1), seed)


def _self_guided(model: Any, seed: int) -> Any:
    return apply_self_guidance(model, self_guided_schedule(0.3, 2), 0.8)


def _search(looks: tuple[float, ...], **inputs: Any) -> Arm:
    return Arm(inputs or None, search=SearchConfig(CANDIDATES, KEPT, looks=looks, by=NOVELTY))


METHODS: dict[str, Arm] = {
    "Boost-and-Skip 1.5": Arm(patch=_boosted),
    "self-guided 0.3": Arm(patch=_self_guided),
    "CADS 0.1": Arm(patch=_noised),
}
SEARCHES: dict[str, Arm] = {
    "search 16": _search((0.4, 0.7)),
    "search 16, then novelty 1": _search((0.3,), strength=1.0, criterion="novelty"),
}
GUIDED: dict[str, Arm] = {
    "novelty 1": GROUPS["dose"]["novelty 1"],
    "novelty 1, keep appearance": _novelty(keep_appearance=True),
    "novelty 1, denoiser constant": _novelty(gradient_path="denoiser constant"),
    "novelty 1, smooth": _novelty(smooth=True),
    "novelty 1, low frequencies": Arm({"strength": 1.0, "criterion": "novelty"}, image=slow_changes),
    "both 1": _novelty(criterion="both"),
    "score 1": GROUPS["score"]["score 1"],
    "score 1, keep appearance": _score(keep_appearance=True),
    "score 1, normalised contrast": _score(image=normalised_contrast),
    "score 1, low frequencies": _score(image=slow_changes),
}
CONTROLS: dict[str, Arm] = {
    "random direction": Arm({"strength": 1.0}, reference="", gradient=random_gradient),
}
DOSES: dict[str, Arm] = {f"novelty {strength:g}": _novelty(strength) for strength in DOSE}
ABLATIONS: dict[str, Arm] = {
    f"novelty 1 from {start:.0%}".replace("%", " %"): _novelty(start_percent=start)
    for start in (0.0, 0.1, 0.5)
} | {f"score 1, rank {rank}": _score(rank=rank) for rank in (3, 15)}

ARMS: dict[str, Arm] = {UNGUIDED: Arm()} | GUIDED | METHODS | SEARCHES | CONTROLS | DOSES | ABLATIONS

FULL = 6  # batches of each class: 576 pictures
SEARCHED = 7  # of a search, which keeps a quarter: 168
FEW = 3  # 288
LEAST = 1  # 96
BATCHES: dict[str, int] = dict.fromkeys(ARMS, FULL) | dict.fromkeys(SEARCHES, SEARCHED)
BATCHES |= {arm: LEAST for arm in ARMS if arm.startswith(("score", "both")) or arm in ABLATIONS}
BATCHES |= dict.fromkeys(("novelty 1, smooth", "novelty 1, low frequencies"), LEAST)
BATCHES |= dict.fromkeys(("score 1", "novelty -2", "novelty 4", "novelty 1, denoiser constant"), FEW)
AUGMENTED = (UNGUIDED, "self-guided 0.3", "Boost-and-Skip 1.5", "CADS 0.1", "score 1", SHIPPED, *SEARCHES)
