"""JEPARareSearch: the rarest of many seeds, found without a gradient."""

from collections.abc import Iterator
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..host.comfy.required import SAMPLER_NAMES, sampler_object
from ..host.comfy.sampling import MAX_SEED, stock_sample
from ..host.drawing.pictures import to_image
from ..host.drawing.rarity_chart import draw_rarity
from ..host.drawing.search_sheet import search_sheet
from ..host.guidance.refusals import check_finite, check_frames
from ..host.guidance.refused_samplers import sampler_refusal
from ..host.guidance.report import note_in_images
from ..host.options import FLOORS, NO_FLOOR, NO_VARIETY, NOVELTY, RAREST, SCORE, TYPICAL, VARIETIES
from ..host.scoring.floor import check_qualities
from ..host.search.batch import batch_of, kept_rows
from ..host.search.config import SearchConfig
from ..host.search.record import SearchRecord
from ..host.search.report import SearchReporter
from ..host.search.search import apply_search
from ..host.search.selection import looks_of
from .input_checks import check_values, inputs_of, number_message
from .sampling_inputs import MAX_CFG, sampling_inputs
from .types import JEPAEncoder, JEPAPromptFitLink, JEPAReference

MOST = 1024  # candidates


class JEPARareSearch(io.ComfyNode):
    """KSampler for many candidates, of which the rarest are finished. A list of inputs gives a search for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPARareSearch",
            display_name="JEPA Rare Search",
            category="JEPA",
            description="KSampler for many candidates at once: on the way the least rare are dropped, and the rarest are "
            "finished. It changes no image, only chooses, and works with every model: quantised, compiled, distilled.",
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
                *_search_inputs(),
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
                    display_name="qualities", is_output_list=True, tooltip="Their quality; empty if none is measured."
                ),
                io.Image.Output(
                    display_name="candidates",
                    tooltip="Every candidate as it was last seen, small and, if dropped early, blurred; for JEPA Prompt Map.",
                ),
                io.Float.Output(
                    display_name="candidate_scores",
                    is_output_list=True,
                    tooltip="The score or novelty of every candidate when last seen.",
                ),
                io.Image.Output(
                    display_name="sheet", tooltip="All candidates with their scores; dropped ones are greyed."
                ),
                io.Image.Output(
                    display_name="chart",
                    tooltip="Rarity of all candidates against their quality, with those that nothing beats in both.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(
        cls,
        sampler_name: list | None = None,
        cfg: list | None = None,
        denoise: list | None = None,
        amount: list | None = None,
        floor: list | None = None,
        looks: list | None = None,
    ) -> bool | str:
        (name,), (looks,) = sampler_name or [None], looks or [None]
        message = None
        if name is not None:
            if name not in SAMPLER_NAMES:
                message = f"sampler_name {name!r} is not one of the host's samplers"
            else:
                message = sampler_refusal(sampler_object(name).sampler_function)
        if isinstance(looks, str):
            try:
                looks_of(looks)
            except ValueError as error:
                message = message or str(error)
        # the host's own range check lets NaN through
        numbers = {"cfg": (cfg, 0, MAX_CFG), "denoise": (denoise, 0.01, 1), "amount": (amount, 0, 2)}
        for what, (values, low, high) in (numbers | {"floor": (floor, -1e6, 1e6)}).items():
            message = message or number_message(what, (values or [None])[0], low, high)
        return message or True

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        reporter = SearchReporter(cls.hidden.unique_id)
        found = [_search(run, reporter) for run in runs_of(inputs)]
        for run, record, _ in found:
            note_in_images(cls.hidden.extra_pnginfo, cls.hidden.unique_id, run, record.as_json())
        candidates = [one for _, record, _ in found for one in record.candidates]
        kept = [one for _, record, _ in found for one in record.kept]
        by, keep = (found[-1][0][name] for name in ("by", "keep"))
        measured = any(one.quality == one.quality for one in candidates)
        sheet = search_sheet(candidates, kept)
        chart = draw_rarity(...)
        return io.NodeOutput(
            [latent for _, _, latent in found],
            [one.value for one in kept],
            [one.index for one in kept],
            [one.quality for one in kept] if measured else [],
            torch.stack([one.picture for one in candidates if one.picture is not None]),
            [one.value for one in candidates],
            sheet,
            to_image(chart),
            ui={"jepa_search": [reporter.final(record) for _, record, _ in found]},
        )
