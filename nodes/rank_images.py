"""JEPARankImages: keep the rarest, or the most typical, of many images."""

from typing import Any

from comfy_api.latest import io, ui

from ..host.comfy.required import ExecutionBlocker
from ..host.drawing.pictures import TEXT, labelled_sheet, to_image
from ..host.drawing.rarity_chart import draw_rarity
from ..host.options import NO_FLOOR, RAREST, SCORE, TYPICAL
from ..host.scoring.along import kept_latents, kept_pictures
from ..host.scoring.choice import Choice, places_of
from ..host.scoring.floor import floor_value
from ..host.scoring.ranked import as_csv, as_json, ranked_images
from ..host.scoring.rarity import rarity_of
from .choice_inputs import (
    by_input,
    choice_inputs,
    choice_outputs,
    kept_outputs,
    latents_of,
    masks_of,
    missing,
    mode_input,
    qualities_of,
    seeds_input,
)
from .input_checks import check_values, given, inputs_of, only, seed_words, seeds_of, with_images
from .search_words import search_words
from .sheet_inputs import check_sheet, list_outputs, names_of, sheet_inputs
from .types import JEPAEncoder, JEPAReference

LISTS = ("seeds", "quality", "latents", "masks", "names")  # one entry for each image
# Defaults of inputs added later: optional, so that prompts saved without them still run.
LATER_INPUTS = {
    "by": SCORE,
    "floor_kind": NO_FLOOR,
    "floor": 50.0,
    "threshold": 0.0,
    "places": "",
    "columns": 0,
    "caption_size": TEXT,
}


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
                "JEPARankImages",
                "best of, pick, sort, sort images, filter, filter images, contact sheet, curate, rare, rarity, novelty, "
                "unusual, outliers, select, choose, aesthetic",
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
                mode_input(),
                seeds_input("Those of the kept images are returned."),
                JEPAReference.Input(
                    "reference",
                    optional=True,
                    tooltip="What counts as usual: needed to rank by novelty, and says how many of its pictures each "
                    "image is rarer than. Images are seen as its pictures were. From JEPA Reference.",
                ),
                by_input(optional=True),
                *choice_inputs(),
                *sheet_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="The kept images, sorted: one batch if all have the same size, otherwise one by one.",
                ),
                *kept_outputs(),
                io.Image.Output(
                    display_name="sheet",
                    tooltip="The kept images, labelled with how much of the reference they are rarer than, rank, position, "
                    "name, score or novelty, quality and seed.",
                ),
                *choice_outputs(),
                *list_outputs(),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, encoder, keep, count, mode, **more) -> io.NodeOutput:
        lists = {name: more.pop(name, None) for name in LISTS}
        later = {name: [value] for name, value in LATER_INPUTS.items()} | more
        if not given(more.get("reference")):
            later.pop("reference", None)
        images = with_images(images)
        single = checked(images, {"encoder": encoder, "keep": keep, "count": count, "mode": mode, **later})
        total = sum(map(len, images))
        names, seeds = names_of(lists["names"], total), seeds_of(lists["seeds"], total)
        latents, masks = latents_of(lists["latents"], total), masks_of(lists["masks"], total)
        qualities = qualities_of(lists["quality"], total)
        choice = Choice(
            *(single[name] for name in ("keep", "by", "count", "threshold")),
            places_of(single["places"], total),
            qualities,
            floor_value(single["floor_kind"], single["floor"], qualities),
        )
        choice.check("reference" in single)
        lines = 2 + sum(map(bool, (names, seeds, qualities, "reference" in single)))
        most = len(choice.places) or min(choice.count, total)
        check_sheet(most, single["columns"], lines, single["caption_size"])
        rarity = rarity_of(images, single["encoder"], single["mode"], choice.by, single.get("reference"))
        indices = choice.kept(rarity)
        every = ranked_images(rarity, indices, names, qualities, seeds, seed_words(seeds, images))
        ranked, rejected = every[: len(indices)], [one.index for one in every[len(indices) :]]
        kept = kept_pictures(images, indices)
        sheet = labelled_sheet(
            [picture for batch in kept for picture in batch],
            [one.label(choice.by) for one in ranked],
            columns=single["columns"],
            text=single["caption_size"],
        )
        chart = draw_rarity(rarity.values, indices, by=choice.by, qualities=qualities, floor=choice.floor)
        about = {"keep": choice.keep, "mode": single["mode"], "encoder": single["encoder"].name}
        return io.NodeOutput(
            kept,
            [one.value for one in ranked],
            indices,
            [one.seed for one in ranked] if seeds else [],
            sheet,
            kept_latents(latents, indices) if latents else missing("JEPA Rank Images", "latents"),
            kept_pictures(masks, indices) if masks else missing("JEPA Rank Images", "masks"),
            [one.quality for one in ranked] if qualities else [],
            to_image(chart),
            rejected,
            # nothing to give stops those who need it without a fault
            kept_pictures(images, rejected) if rejected else ExecutionBlocker(None),
            [one.name for one in ranked] if names else [],
            [one.rarer_than for one in ranked] if rarity.rarer_than else [],
            as_csv(every, choice.by),
            as_json(every, choice.by, **about),
            ui=ui.PreviewImage(sheet, cls=cls),
        )


def checked(images: list, inputs: dict[str, Any]) -> dict[str, Any]:
    """The single value of each input, from the lists that the host passes. Raises ValueError for what does not fit."""
    single = {name: only(name, values) for name, values in inputs.items()}
    for batch in images:
        check_values(inputs_of(JEPARankImages), single | {"images": batch})
    return single
