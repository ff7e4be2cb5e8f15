"""The figures of all arms: paired changes, measures of sets, and what more seeds would give in the same seconds."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from research.harness.images import UNGUIDED
from research.harness.program import Row, kept
from research.results.arms import BATCHES, CANDIDATES, MATCHED, SEARCHES
from research.results.intervals import effect_size, jackknife, mean_and_interval
from research.results.measures import GROUP, PER_PICTURE, Measured, Measures, measured
from research.results.sets import Neighbourhoods, frechet, spatial_features
from research.world import data

SCORED_REALS, LOWEST = 600, 200  # real pictures that are scored, and how many of them are the reference
RAREST = 600  # pictures of the rarest twentieth of their class
EQUAL = ("distance", "minority", "tail", "recognised", "precise", "novelty")
SET_MEASURES = ("frechet", "spatial", "precision", "recall", "density", "coverage")


class Figures:
    """Figures of the arms that have pictures."""

    def __init__(self, measures: Measures) -> None:
        self.measures = measures
        found = {
            arm: measured(measures, arm, BATCHES.get(arm, BATCHES[UNGUIDED])) for arm in [*BATCHES, *MATCHED]
        }
        self.arms = {arm: own for arm, own in found.items() if own.units}
        self.stock = measured(measures, UNGUIDED, max(BATCHES.values()))

    # --- arms ----------------------------------------------------------------------------------------------------

    def by_arm(self) -> Row:
        """Means, paired changes from the unguided pictures of the same noise, and effect sizes."""
        return {arm: self._arm(arm, own) for arm, own in self.arms.items()}

    def _arm(self, arm: str, own: Measured) -> Row:
        found: Row = {"pictures": len(own.units)}
        for name in (*PER_PICTURE, "vendi"):
            a, b = self._pairs(arm, name)
            found[name] = mean_and_interval(a)
            # of single pictures, also where a and b are means of batches
            stock = self.arms[UNGUIDED].values[name].numpy()
            if arm != UNGUIDED and len(b):
                found[name] |= {
                    "change": mean_and_interval(a - b),
                    "effect": effect_size(a - b, stock[~np.isnan(stock)]),
                }
        return found

    def _pairs(self, arm: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """An arm's values and the unguided ones of the same noise; of a search, means of batches, as it keeps some."""
        own, stock = (_by_batch(some, name) for some in (self.arms[arm], self.stock))
        units = [unit for unit in own if unit in stock]
        if arm in SEARCHES:
            return tuple(np.array([part[unit].mean() for unit in units]) for part in (own, stock))  # type: ignore[return-value]
        return np.concatenate([own[unit] for unit in units]), np.concatenate([stock[unit] for unit in units])

    # --- sets ----------------------------------------------------------------------------------------------------

    def by_set(self) -> Row:
        """The paper's protocol, against the real pictures of lowest score and against the rarest of the world."""
        found: Row = {}
        for name, (features, spatial) in self._references().items():
            judges = {arm: SetJudge(features, spatial, own) for arm, own in self.arms.items()}
            found[name] = {"pictures": len(features)} | {
                arm: one.compared(judges[UNGUIDED] if arm not in (UNGUIDED, *SEARCHES) else None)
                for arm, one in judges.items()
            }
        return found

    def _references(self) -> dict[str, tuple[Tensor, Tensor]]:
        judge, folder = self.measures.judge, self.measures.study.folder
        pictures = judge.real_pictures[0][:SCORED_REALS]
        scores = kept(folder / "real scores.safetensors", lambda: {"scores": self.measures.scores(pictures)})[
            "scores"
        ]
        lowest = pictures[scores.argsort()[:LOWEST]]
        data.make(self.measures.place, "rarest", RAREST, 128, processes=1)
        rarest = data.read(self.measures.place, "rarest", RAREST, 128).float() / 255

        def features(some: Tensor) -> Row:
            maps = [judge.network.maps(part) for part in some.split(32)]
            return {
                "features": torch.cat([one.mean((2, 3)) for one in maps]),
                "spatial": torch.cat([spatial_features(one) for one in maps]),
            }

        found = {}
        for name, some in (("lowest score", lowest), ("known rarest", rarest)):
            tensors = kept(folder / f"{name}.safetensors", partial(features, some))
            found[name] = tensors["features"], tensors["spatial"]
        return found

    # --- seconds -------------------------------------------------------------------------------------------------

    def seconds(self) -> Row:
        """Of the processor for each picture, on one thread."""
        found = {}
        for arm in self.arms:
            if arm not in MATCHED:
                file = self.measures.study.folder / "costs" / f"{arm}.safetensors"
                found[arm] = round(load_file(file)["seconds"].item(), 3) if file.exists() else None
        return found

    def equal(self, seconds: Row, appraisal: float) -> Row:
        """Each arm beside the most novel of as many unguided pictures as take the same seconds.

        Args:
            appraisal: the seconds to find how novel a picture is.
        """
        each, found = seconds[UNGUIDED] + appraisal, {}
        novelty = _by_batch(self.stock, "novelty")
        for arm, own in self.arms.items():
            if (
                arm in (UNGUIDED, *MATCHED)
                or not seconds.get(arm)
                or not 1 < seconds[arm] / each <= CANDIDATES
            ):
                continue
            ratio = seconds[arm] / each
            count = int(CANDIDATES // ratio)
            row: Row = {"seconds": seconds[arm], "candidates": round(count * ratio), "count": count}
            units = [unit for unit in dict.fromkeys(own.units) if unit in novelty]
            for name in EQUAL:
                mine, stock = _by_batch(own, name), _by_batch(self.stock, name)
                best = {unit: novelty[unit][: row["candidates"]].argsort()[-count:] for unit in units}
                lead = np.array([mine[unit].mean() - stock[unit][best[unit]].mean() for unit in units])
                row[name] = mean_and_interval([mine[unit].mean() for unit in units]) | {
                    "change": mean_and_interval(lead)
                }
            found[arm] = row
        return found


class SetJudge:
    """Measures of an arm's pictures as a set."""

    def __init__(self, features: Tensor, spatial: Tensor, own: Measured) -> None:
        self.own, self.units = own.values, [f"{name} {batch}" for name, batch in own.units]
        self.real, self.spatial = features, spatial
        self.near = Neighbourhoods(features, self.own["features"])
        self._seen: dict[bytes, Row] = {}

    def of(self, rows: np.ndarray) -> Row:
        """All SET_MEASURES of the rows that a mask keeps."""
        key = rows.tobytes()
        if key not in self._seen:
            chosen = torch.from_numpy(rows)
            self._seen[key] = {
                "frechet": frechet(self.own["features"][chosen], self.real),
                "spatial": frechet(self.own["spatial"][chosen], self.spatial),
            } | self.near.measures(chosen)
        return self._seen[key]

    def value(self, name: str, rows: np.ndarray) -> float:
        found: float = self.of(rows)[name]
        return found

    def compared(self, control: "SetJudge | None") -> Row:
        """Each measure with its interval, and its change from the control's on the same noise."""
        found: Row = {}
        for name in SET_MEASURES:
            found[name] = jackknife(partial(self.value, name), self.units)
            if control:
                found[name]["change"] = jackknife(partial(self._change, control, name), self.units)
        return found

    def _change(self, control: "SetJudge", name: str, rows: np.ndarray) -> float:
        same_noise = np.zeros(len(control.units), dtype=bool)  # the control may have more batches
        same_noise[: len(rows)] = rows
        return self.value(name, rows) - control.value(name, same_noise)


def _by_batch(own: Measured, name: str) -> dict[tuple[str, int], np.ndarray]:
    """The known values of each batch that has some."""
    units = own.units[::GROUP] if name == "vendi" else own.units
    values: dict[tuple[str, int], list[float]] = {}
    for unit, value in zip(units, own.values[name].tolist(), strict=True):
        if not math.isnan(value):
            values.setdefault(unit, []).append(value)
    return {unit: np.array(some) for unit, some in values.items()}


def real_rows(measures: Measures, count: int) -> Row:
    """The same measures of held-out pictures that nothing is compared with."""
    pictures, labels = measures.judge.real_pictures
    parts = [
        measures.of(*part) for part in zip(pictures[:count].split(32), labels[:count].split(32), strict=True)
    ]
    names: Sequence[str] = [name for name in PER_PICTURE if name in parts[0]]
    found = {name: torch.cat([part[name].float() for part in parts]).tolist() for name in names}
    return {"pictures": count} | {name: mean_and_interval(values) for name, values in found.items()}
