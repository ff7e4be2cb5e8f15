"""What searches show: how early estimates rank, and what each arm keeps, beside the first seeds and beside best of N."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor

from research.harness.images import UNGUIDED
from research.harness.pack_api import NOVELTY, SCORE, plan_looks
from research.harness.program import Row
from research.harness.program import kept as kept_file
from research.harness.searches import CANDIDATES, KEPT, SHARES, STOCK, Arm, Searches
from research.harness.summary import mean_and_error
from research.judges.effects import Judge, vendi

BY = (NOVELTY, SCORE)
MEASURES = (*BY, "distance", "minority", "recognised", "precise", "contrast", "saturation", "vendi")
Unit = tuple[str, int]  # a class and a batch


class Figures:
    """Figures of the batches that are complete.

    Attributes:
        units: these batches, by what they were searched by.
        arms: by what they search or guide by.
    """

    def __init__(
        self, made: Searches, judge: Judge, units: Sequence[Unit], arms: Mapping[str, Mapping[str, Arm]]
    ) -> None:
        self.made, self.judge, self.arms = made, judge, arms
        complete = {by: [one for one in units if self._complete(by, one)] for by in BY}
        self.units = {by: some for by, some in complete.items() if some}

    def _complete(self, by: str, unit: Unit) -> bool:
        return all(self.made.file(arm, *unit).exists() for arm in (f"{STOCK}, {by}", *self.arms[by]))

    def values(self, by: str, unit: Unit) -> Tensor:
        """(shares, CANDIDATES), higher is rarer."""
        values = self.made.values(by, *unit)["values"]
        return values if by == NOVELTY else -values

    # --- looks ---------------------------------------------------------------------------------------------------

    def looks(self, schedules: Sequence[Sequence[float]]) -> Row:
        """How well early estimates rank, and what of the best stays if candidates are dropped by them."""
        found: Row = {}
        for by, units in self.units.items():
            classes = {name: [unit for unit in units if unit[0] == name] for name, _ in units}
            values = [torch.cat([self.values(by, one) for one in some], 1) for some in classes.values()]
            ranks = {}
            for number, share in enumerate(SHARES):
                each = [float(spearmanr(one[number], one[-1])[0]) for one in values]
                numbers = {"mean": fmean(each), "least": min(each), "most": max(each)}
                ranks[f"{share:g}"] = {name: round(value, 3) for name, value in numbers.items()}
            found[by] = {
                "classes": len(classes),
                "seeds": [one.shape[1] for one in values],
                "spearman": ranks,
            }
            found[by]["schedules"] = {
                ", ".join(map(str, looks)) or "none": self.schedule(by, looks) for looks in schedules
            }
        return found

    def schedule(self, by: str, looks: Sequence[float]) -> Row:
        """What of the best KEPT stays, and of their lead over the mean; the denoiser's work, and how many appraisals."""
        steps = self.made.study.sampler.steps
        plan = plan_looks(looks, steps, CANDIDATES, KEPT)
        lefts, at = [CANDIDATES] * steps, {round(share * steps) - 1: n for n, share in enumerate(SHARES)}
        for look in plan:
            lefts[look.step + 1 :] = [look.left] * (steps - look.step - 1)
        same, gains = [], []
        for unit in self.units[by]:
            values = self.values(by, unit)
            left = torch.arange(CANDIDATES)
            for look in plan:
                left = left[values[at[look.step], left].topk(look.left).indices]
            final, best = values[-1], values[-1].topk(KEPT)
            stay = left[final[left].topk(KEPT).indices]
            same.append(torch.isin(stay, best.indices).float().mean().item())
            gains.append(((final[stay].mean() - final.mean()) / (best.values.mean() - final.mean())).item())
        return {
            "work": round(sum(lefts) / (CANDIDATES * steps), 4),
            "appraised": CANDIDATES + sum(look.left for look in plan),
            "best_kept": mean_and_error(same),
            "gain_kept": mean_and_error(gains),
        }

    # --- arms ----------------------------------------------------------------------------------------------------

    def judged(self, arm: str, unit: Unit) -> dict[str, Tensor]:
        """Measures (B,) of an arm's pictures, or the stock ones, and their "features" (B, d)."""

        def judge() -> Row:
            pictures = load_file(self.made.file(arm, *unit))["pictures"].movedim(-1, 1).float() / 255
            label = self.made.study.sampler.classes.index(unit[0]) + 1
            features = self.judge.features(pictures)
            found = self.judge.judge(pictures, torch.full((len(pictures),), label), features)
            return found | {"features": features}

        found = kept_file(self.made.file(f"{arm}, judged", *unit), judge)
        return found | {by: self.guided_by(by, arm, unit) for by in self.units if unit in self.units[by]}

    def guided_by(self, by: str, arm: str, unit: Unit) -> Tensor:
        """The scores or novelties (B,) of an arm's pictures, or the stock ones."""
        if arm == STOCK:
            return self.made.values(by, *unit)["values"][-1]

        def appraise() -> Row:
            latents = load_file(self.made.file(arm, *unit))["latents"]
            return {"values": self.made.appraise(by, unit[0], latents)}

        return kept_file(self.made.file(f"{arm}, {by}", *unit), appraise)["values"]

    def means(self, arm: str, unit: Unit, rows: Sequence[int] | None = None) -> Row:
        """The mean of each measure over an arm's pictures, or some rows of them."""
        judged = self.judged(arm, unit)
        chosen = list(rows if rows is not None else range(len(judged["features"])))
        found = {name: value[chosen].mean().item() for name, value in judged.items() if name != "features"}
        if len(chosen) == KEPT:
            found["vendi"] = vendi(judged["features"][chosen].float())
        return found

    def per_candidate(self, by: str, units: Sequence[Unit]) -> float:
        """The seconds to make a stock picture and to appraise it."""
        made = [self.made.pool(*one)["seconds"] + self.made.values(by, *one)["seconds"] for one in units]
        return fmean(one.item() for one in made) / CANDIDATES

    def costs(self) -> Row:
        """The seconds to make a stock picture, and those to appraise a picture by each guide."""
        found = {}
        for by, units in self.units.items():
            each = [self.made.pool(*one)["seconds"].item() for one in units]
            found[STOCK] = round(fmean(each) / CANDIDATES, 3)
            each = [self.made.values(by, *one)["seconds"].item() for one in units]
            found[by] = round(fmean(each) / CANDIDATES, 3)
        return found

    def best(self, by: str, unit: Unit, candidates: int = CANDIDATES, count: int = KEPT) -> Row:
        """The measures of the best of the first candidates."""
        values = self.values(by, unit)[-1, :candidates]
        return self.means(STOCK, unit, values.topk(count).indices.tolist())

    def seconds(self, arm: str, units: Sequence[Unit]) -> float:
        """For each kept picture."""
        each = (load_file(self.made.file(arm, *one))["seconds"].item() for one in units)
        return fmean(each) / KEPT

    def by_arm(self) -> Row:
        """Each measure's mean over batches, and its difference from the first seeds of the same batches."""
        found: Row = {}
        for by, units in self.units.items():
            plain = [self.means(UNGUIDED, one) for one in units]
            some = {f"{by}: best of {CANDIDATES}": [self.best(by, one) for one in units]}
            some |= {arm: [self.means(arm, one) for one in units] for arm in self.arms[by]}
            for arm, rows in some.items():
                best = arm not in self.arms[by]
                seconds = (
                    self.per_candidate(by, units) * CANDIDATES / KEPT if best else self.seconds(arm, units)
                )
                found[arm] = {
                    "batches": len(units),
                    "pictures": KEPT * len(units),
                    "seconds": round(seconds, 2),
                }
                found[arm] |= _measures(rows, plain, "change" if arm != UNGUIDED else "")
        return found

    def equal(self) -> Row:
        """Each arm beside the best of as many candidates as take the same seconds for each kept picture."""
        found: Row = {}
        for by, units in self.units.items():
            for arm in self.arms[by]:
                ratio = self.seconds(arm, units) / self.per_candidate(by, units)
                count = min(KEPT, int(CANDIDATES / ratio))
                if arm == UNGUIDED or count == 0:
                    continue
                candidates = round(count * ratio)
                best = [self.best(by, one, candidates, count) for one in units]
                found[arm] = {"candidates": candidates, "count": count, "batches": len(units)}
                found[arm] |= {"seconds": round(self.seconds(arm, units), 2)}
                found[arm] |= _measures([self.means(arm, one) for one in units], best, "lead")
        return found

    def off_stock(self) -> Row:
        """How far latents of searches without guidance are from the same rows of the stock batch: a smaller batch rounds
        otherwise.
        """
        found: Row = {}
        for by, units in self.units.items():
            arm = f"{by}: search {CANDIDATES}"
            apart = []
            for unit in units:
                made = load_file(self.made.file(arm, *unit))
                stock = self.made.pool(*unit)["estimates"][-1]
                apart.append((made["latents"] - stock[made["kept"]]).abs().max().item())
            found[arm] = {"pictures": KEPT * len(units), "largest_difference": max(apart)}
        return found


def _measures(rows: Sequence[Row], others: Sequence[Row], name: str) -> Row:
    """Means over batches; `name`: the paired difference from the others is added under it."""
    found: Row = {}
    for measure in MEASURES:
        pairs = [
            (a[measure], b[measure])
            for a, b in zip(rows, others, strict=True)
            if measure in a and measure in b
        ]
        if pairs:
            found[measure] = mean_and_error([own for own, _ in pairs])
            if name:
                found[measure][name] = mean_and_error([own - other for own, other in pairs])
    return found
