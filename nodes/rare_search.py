"""JEPARareSearch: the rarest of many seeds, found without a gradient."""

import math
from itertools import islice
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io
from PIL import Image

from ..host.comfy.sampling import MAX_SEED, stock_sample
from ..host.drawing.pictures import to_image
from ..host.drawing.rarity_chart import draw_rarity
from ..host.drawing.search_sheet import search_sheet
from ..host.guidance.notes import note_in_images
from ..host.guidance.refusals import check_finite, check_frames
from ..host.options import (
    BOOSTED_START,
    FLOOR_PERCENTILE,
    NO_FLOOR,
    NOVELTY,
)
from ..host.scoring.along import kept_rows
from ..host.scoring.modes import how_beside
from ..host.scoring.novelty import more_novel_than
from ..host.scoring.reference import view_of
from ..host.search.batch import batch_of
from ..host.search.config import SearchConfig
from ..host.search.record import SearchRecord
from ..host.search.report import SearchReporter
from ..host.search.search import apply_search
from ..host.search.selection import looks_of
from .choice_inputs import qualities_of
from .input_checks import check_values, inputs_of
from .sampling_inputs import sampler_message, sampling_inputs
from .search_inputs import search_inputs
from .search_words import search_words

_OPTIONAL = ("reference", "prompt_fit")


class JEPARareSearch(io.ComfyNode):
    """KSampler for many candidates, of which the rarest are finished. A list of inputs gives a search for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPARareSearch",
            display_name="JEPA Rare Search",
            category="JEPA",
            description="KSampler for many candidates at once: on the way the least rare are dropped, and the rarest are "
            "finished. It needs no gradient of the model: it only chooses among what the model draws.",
            **search_words(
                "JEPARareSearch",
                "best of n, variation, seed variance, diversity, rare, unusual, pick, seed search",
            ),
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The diffusion model. One from JEPA Guidance guides the candidates that are left after the last "
                    "look.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="The random seed of the noise. Candidate 5 is image 5 of what KSampler draws with this seed and "
                    "a batch of as many images.",
                ),
                *sampling_inputs(
                    steps=20,
                    steps_tip="The number of denoising steps.",
                    cfg_tip="Classifier-free guidance: how closely to follow the prompt.",
                    sampler_tip="The sampling algorithm. dpm_adaptive cannot be searched.",
                ),
                io.Conditioning.Input("positive", tooltip="What the images should show."),
                io.Conditioning.Input("negative", tooltip="What the images should not show."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The latent to denoise. An empty one gives the size; an image is the start of all candidates.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="How much is denoised. Below 1 keeps structure of the latent, for image to image.",
                ),
                *search_inputs(),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    is_output_list=True,
                    tooltip="The kept images, best first. It knows their places in the batch, so KSampler draws the same "
                    "noise for them again.",
                ),
                io.Float.Output(
                    display_name="scores",
                    is_output_list=True,
                    tooltip="Their scores (projected); lower is rarer. By novelty: their novelties; higher is rarer.",
                ),
                io.Int.Output(
                    display_name="indices",
                    is_output_list=True,
                    tooltip="Which image of the batch each is, from 0. Latent From Batch opens it again.",
                ),
                io.Float.Output(
                    display_name="qualities",
                    is_output_list=True,
                    tooltip="Their quality; empty if none is measured.",
                ),
                io.Image.Output(
                    display_name="candidates",
                    is_output_list=True,
                    tooltip="Every candidate as last seen, small and, if dropped early, blurred; for JEPA Prompt Map.",
                ),
                io.Float.Output(
                    display_name="candidate_scores",
                    is_output_list=True,
                    tooltip="The score or novelty of every candidate when last seen.",
                ),
                io.Image.Output(
                    display_name="sheet",
                    is_output_list=True,
                    tooltip="All candidates; dropped ones are greyed.",
                ),
                io.Image.Output(
                    display_name="chart",
                    is_output_list=True,
                    tooltip="Rarity of all candidates against their quality, with those that nothing beats in both.",
                ),
                io.Float.Output(
                    display_name="rarer_than",
                    is_output_list=True,
                    tooltip="By novelty: the percentage of the reference than which each kept image is rarer; higher is "
                    "rarer. Empty by score.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, sampler_name: list | None = None) -> bool | str:
        # one input alone: the host blames each that is asked for here, and no longer checks it
        (name,) = sampler_name or [None]
        return (None if name is None else sampler_message(name)) or True

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        runs = runs_of(inputs)
        reporters = [SearchReporter(cls.hidden.unique_id) for _ in runs]
        # all of them are checked before the first one begins
        searches = [_prepared(run, reporter) for run, reporter in zip(runs, reporters, strict=True)]
        latents = [search.run() for search in searches]
        records = [search.record for search in searches]
        for number, (run, record) in enumerate(zip(runs, records, strict=True), 1):
            note_in_images(cls.hidden, run, record.as_json(), "" if len(runs) == 1 else f"search {number}")
        kept = [one for record in records for one in record.kept]
        return io.NodeOutput(
            latents,
            [one.value for one in kept],
            [one.index for one in kept],
            [one.quality for record in records if record.has_qualities for one in record.kept],
            [pictures_of(record) for record in records],
            [one.value for record in records for one in record.candidates],
            [search_sheet(record) for record in records],
            [to_image(chart_of(record)) for record in records],
            [share for run, record in zip(runs, records, strict=True) for share in _shares(run, record)],
            # the panel on the node shows the candidates; a preview of the sheet would show them twice
            ui={
                "jepa_search": [
                    reporter.final(record) for reporter, record in zip(reporters, records, strict=True)
                ]
            },
        )


def runs_of(inputs: dict[str, list]) -> list[dict[str, Any]]:
    """The inputs of each run: as many as the longest list has entries, with the last entry of shorter ones again.

    `quality` is one list for all runs, which is cut to pieces of as many entries as there are candidates. All other inputs
    are checked against the node's.
    """
    others = {name: values for name, values in inputs.items() if name != "quality"}
    for name, values in others.items():
        if not values:
            raise ValueError(
                f"{name} is linked to a list that is empty; link one with a value for each search"
            )
    runs = [
        {name: values[min(number, len(values) - 1)] for name, values in others.items()}
        for number in range(max(map(len, others.values())))
    ]
    for run in runs:
        linked = {name: value for name, value in run.items() if value is not None or name not in _OPTIONAL}
        check_values(inputs_of(JEPARareSearch), linked)
    totals = [run["candidates"] for run in runs]
    quality = qualities_of(inputs.get("quality"), sum(totals))
    if not quality:
        return runs
    remaining = iter(quality)
    return [
        {**run, "quality": list(islice(remaining, total))} for run, total in zip(runs, totals, strict=True)
    ]


class _Search(NamedTuple):
    """A search that can begin: a MODEL that searches, the record it fills, a latent, and the host's sampler's arguments."""

    model: Any
    record: SearchRecord
    latent: dict
    sampling: dict[str, Any]

    def run(self) -> dict:
        """Sample; returns the kept latents."""
        latent = stock_sample(self.model, self.latent, **self.sampling)
        if not self.record.kept:
            raise ValueError(
                f"start_at_step {self.sampling['start_step']} leaves no step: scheduler {self.sampling['scheduler']} makes "
                f"fewer than {self.sampling['steps']} for this model; lower it, or choose another scheduler"
            )
        return kept_rows(latent, [one.index for one in self.record.kept])


def _prepared(inputs: dict[str, Any], reporter: SearchReporter) -> _Search:
    """A search with these inputs. Raises ValueError if they do not fit together."""
    given = {name: value for name, value in inputs.items() if value is not None}
    config = config_of(given)
    samples = given["latent_image"]["samples"]
    check_frames(samples, given["encoder"])
    check_finite(samples)
    names = ("seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "denoise")
    sampling = {name: given[name] for name in names} | part_of_schedule(given)
    latent = batch_of(given["latent_image"], config.candidates)
    model, record = apply_search(
        given["model"],
        given["vae"],
        given["encoder"],
        config,
        reference=given.get("reference"),
        prompt_fit=given.get("prompt_fit"),
        report=reporter,
    )
    return _Search(model, record, latent, sampling)


def config_of(given: dict[str, Any]) -> SearchConfig:
    """The settings of a search from the node's inputs. Raises ValueError for inputs that contradict each other."""
    measured = "quality" in given or "prompt_fit" in given
    if given["floor_kind"] != NO_FLOOR and not measured:
        raise ValueError(
            f"floor_kind {given['floor_kind']} has nothing to measure; connect prompt_fit or quality, or set floor_kind to "
            f"{NO_FLOOR}"
        )
    if "quality" in given and "prompt_fit" in given:
        raise ValueError("quality and prompt_fit are two measures of one thing; disconnect one of them")
    if given["floor_kind"] == FLOOR_PERCENTILE and not 0 <= given["floor"] <= 100:
        raise ValueError(
            f"floor {given['floor']:g} is not a percentile, from 0 to 100; lower it or change floor_kind"
        )
    if given["variety"] == BOOSTED_START and not given["add_noise"]:
        raise ValueError(
            f"variety {BOOSTED_START} makes the noise of the start stronger, and add_noise is off; turn it on, or choose "
            "another variety"
        )
    names = ("keep", "by", "floor_kind", "floor", "variety", "amount", "seed", "rows_at_once")
    return SearchConfig(
        given["candidates"],
        min(given["count"], given["candidates"]),
        looks=looks_of(given["looks"]),
        qualities=given.get("quality", ()),
        **view_of(how_beside(given.get("reference"))),
        **{name: given[name] for name in names},
    )


def part_of_schedule(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the host's sampler for a part of its schedule. Raises ValueError if the part is empty."""
    start, end = given["start_at_step"], given["end_at_step"]
    if start >= min(end, given["steps"]):
        raise ValueError(
            f"start_at_step {start} leaves no step before {min(end, given['steps'])}; lower it, or raise the end"
        )
    return {
        "disable_noise": not given["add_noise"],
        "start_step": start or None,
        "last_step": end if end < given["steps"] else None,
    }


def _shares(inputs: dict[str, Any], record: SearchRecord) -> list[float]:
    """The percentage of the reference than which each kept image is more novel; [] by score."""
    if record.by != NOVELTY:
        return []
    return more_novel_than([one.value for one in record.kept], inputs["reference"], inputs["encoder"])


def pictures_of(record: SearchRecord) -> torch.Tensor:
    """Every candidate as it was last seen, (N, H, W, 3); those that were never seen are white, broken pixels black."""
    seen = [one.picture for one in record.candidates]
    blank = torch.ones_like(next(picture for picture in seen if picture is not None))
    # other nodes refuse pixels that are not finite
    return torch.stack([blank if picture is None else picture.nan_to_num(0, 0, 0) for picture in seen])


def chart_of(record: SearchRecord) -> Image.Image:
    """Rarity against quality, or alone."""
    return draw_rarity(
        [one.value for one in record.candidates],
        [one.index for one in record.kept],
        by=record.by,
        qualities=[one.quality for one in record.candidates] if record.has_qualities else (),
        floor=-math.inf if record.floor is None else record.floor,
    )
