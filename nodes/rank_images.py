"""JEPARankImages: keep the rarest, or the most typical, of many images."""

from typing import Any

from comfy_api.latest import io, ui

from ..host.comfy.sampling import MAX_SEED
from ..host.drawing.pictures import labelled_sheet, to_image
from ..host.drawing.rarity_chart import draw_rarity
from ..host.options import NO_FLOOR, NOVELTY, PROJECTED, RAREST, SCORE, TYPICAL
from ..host.scoring.along import kept_latents, kept_pictures
from ..host.scoring.choice import Choice, places_of
from ..host.scoring.floor import floor_value
from ..host.scoring.rarity import Rarity, rarity_of
from ..jepa_core.reference import EXACT
from ..jepa_core.score import PROJECTION
from .choice_inputs import (
    choice_inputs,
    choice_outputs,
    latents_of,
    masks_of,
    missing,
    qualities_of,
)
from .input_checks import check_values, given, inputs_of, only, seed_words, seeds_of, with_images
from .search_words import search_words
from .types import JEPAEncoder, JEPAReference


class JEPARankImages(io.ComfyNode):
    """Ranks images -> the N rarest of them, their scores, indices and seeds, and a sheet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPARankImages",
            display_name="JEPA Rank Images",
            category="JEPA",
            description="Sorts images by rarity and keeps the rarest, or the most typical. Takes a batch or a list of "
            "batches, of any sizes.",
            **search_words(
                "best of, pick, sort, filter, rare, rarity, novelty, unusual, select, choose, aesthetic"
            ),
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="A batch, or a list of batches; all images are ranked together.",
                ),
                JEPAEncoder.Input(
                    "encoder",
                    tooltip="Scores the images. To find out whether guidance made them rarer, use another encoder than the "
                    "one that guided.",
                ),
                io.Combo.Input(
                    "keep",
                    options=[RAREST, TYPICAL],
                    default=RAREST,
                    tooltip=f"Which images are kept, best match first. Keeping the {TYPICAL} can reinforce bias.",
                ),
                io.Int.Input(
                    "count", default=4, min=1, max=4096, tooltip="How many images are kept, at most."
                ),
                io.Combo.Input(
                    "mode",
                    options=[PROJECTED, EXACT],
                    default=PROJECTED,
                    tooltip=f"{PROJECTED}: many times faster and ranks images nearly as {EXACT} does, from {PROJECTION} "
                    f"fixed random outputs of the encoder. {EXACT}: all singular values. Scores of different modes are not "
                    "comparable.",
                ),
                io.Int.Input(
                    "seeds",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    optional=True,
                    force_input=True,
                    tooltip="A list with the seed of each image, as D-JEPA Sampler gives it; or the one seed of a batch of "
                    "KSampler, whose images differ by their place. Those of the kept images are returned.",
                ),
                JEPAReference.Input(
                    "reference",
                    optional=True,
                    tooltip="What counts as usual: needed to rank by novelty, and adds percentiles to the sheet. From JEPA "
                    "Reference, made with fit squash and antialias on.",
                ),
                io.Combo.Input(
                    "by",
                    options=[SCORE, NOVELTY],
                    default=SCORE,
                    optional=True,
                    tooltip=f"What makes an image rare. {SCORE}: the JEPA score, lower is rarer. {NOVELTY}: how far it is "
                    "from its nearest in the reference, higher is rarer; many times faster.",
                ),
                *choice_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="The kept images, sorted: one batch if all have the same size, otherwise one by one.",
                ),
                io.Float.Output(
                    display_name="scores",
                    is_output_list=True,
                    tooltip="Their scores; lower is rarer. By novelty: their novelties; higher is rarer.",
                ),
                io.Int.Output(
                    display_name="indices",
                    is_output_list=True,
                    tooltip="The position of each among all images, from 0.",
                ),
                io.Int.Output(
                    display_name="seeds",
                    is_output_list=True,
                    tooltip="Their seeds; empty if none were given.",
                ),
                io.Image.Output(
                    display_name="sheet",
                    tooltip="The kept images, labelled with rank, index, score or novelty, percentile, quality and "
                    "seed.",
                ),
                *choice_outputs(),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images,
        encoder,
        keep,
        count,
        mode,
        seeds=None,
        reference=None,
        by=(SCORE,),
        quality=None,
        floor_kind=(NO_FLOOR,),
        floor=(50.0,),
        threshold=(0.0,),
        places=("",),
        latents=None,
        masks=None,
    ) -> io.NodeOutput:
        inputs = {"encoder": encoder, "keep": keep, "count": count, "mode": mode, "by": by}
        inputs |= {"floor_kind": floor_kind, "floor": floor, "threshold": threshold, "places": places}
        images = with_images(images)
        single = checked(images, inputs | ({"reference": reference} if given(reference) else {}))
        total = sum(map(len, images))
        own = seeds_of(seeds, total)
        latents, masks = latents_of(latents, total), masks_of(masks, total)
        qualities = qualities_of(quality, total)
        choice = Choice(
            *(single[name] for name in ("keep", "by", "count", "threshold")),
            places_of(single["places"], total),
            qualities,
            floor_value(single["floor_kind"], single["floor"], qualities),
        )
        choice.check("reference" in single)
        rarity = rarity_of(images, single["encoder"], single["mode"], choice.by, single.get("reference"))
        indices = choice.kept(rarity)
        kept = kept_pictures(images, indices)
        words = seed_words(own, images)
        sheet = labelled_sheet(
            [picture for batch in kept for picture in batch],
            [label(rank, index, rarity, words, qualities) for rank, index in enumerate(indices, 1)],
        )
        chart = draw_rarity(rarity.values, indices, by=choice.by, qualities=qualities, floor=choice.floor)
        return io.NodeOutput(
            kept,
            [rarity.values[index] for index in indices],
            indices,
            [own[index] for index in indices] if own else [],
            sheet,
            kept_latents(latents, indices) if latents else missing("JEPA Rank Images", "latents"),
            kept_pictures(masks, indices) if masks else missing("JEPA Rank Images", "masks"),
            [float(qualities[index]) for index in indices] if qualities else [],
            to_image(chart),
            sorted(set(range(total)) - set(indices)),
            ui=ui.PreviewImage(sheet, cls=cls),
        )


def checked(images: list, inputs: dict[str, Any]) -> dict[str, Any]:
    """The single value of each input, from the lists that the host passes. Raises ValueError for what does not fit."""
    single = {name: only(name, values) for name, values in inputs.items()}
    for batch in images:
        check_values(inputs_of(JEPARankImages), single | {"images": batch})
    return single


def label(rank: int, index: int, rarity: Rarity, seeds: list[str], qualities: list[float]) -> str:
    """What the sheet says below an image."""
    lines = [f"{rank}. image {index}", f"{rarity.values[index]:.2f}"]
    if rarity.percentiles:
        lines.append(f"rarer than {100 - rarity.percentiles[index]:.0f} %")
    if qualities:
        lines.append(f"quality {qualities[index]:.4g}")
    if seeds:
        lines.append(seeds[index])
    return "\n".join(lines)
