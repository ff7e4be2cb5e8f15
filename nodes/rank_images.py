"""JEPARankImages: keep the rarest, or the most typical, of many images."""

import torch
from comfy_api.latest import io, ui

from ..host.comfy.sampling import MAX_SEED
from ..host.drawing.pictures import labelled_sheet
from ..host.options import NOVELTY, PROJECTED, RAREST, SCORE, TYPICAL
from ..host.scoring.rarity import rarity_of
from ..host.scoring.scores import check_images, rank_images
from ..jepa_core.reference import EXACT
from ..jepa_core.score import PROJECTION
from .input_checks import check_values, count_images, inputs_of, only
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
                    tooltip="The seed of the images, or a list with one for each; those of the kept images are returned.",
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
                    tooltip="The kept images, labelled with rank, index, score or novelty, percentile and seed.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images, encoder, keep, count, mode, seeds=None, reference=None, by=None
    ) -> io.NodeOutput:
        # a node that takes lists gets every input as a list
        inputs = {"encoder": encoder, "keep": keep, "count": count, "mode": mode, "by": by or [SCORE]}
        if reference not in (None, [None]):
            inputs["reference"] = reference
        single = {name: only(name, values) for name, values in inputs.items()}
        for batch in images:
            check_values(inputs_of(JEPARankImages), single | {"images": batch})
            check_images(batch)
        total = count_images(images)
        given = seeds_of(seeds, total)
        rarity = rarity_of(images, single["encoder"], single["mode"], single["by"], single.get("reference"))
        ranked = rank_images(
            images,
            rarity.values,
            count=single["count"],
            highest=(single["by"] == NOVELTY) != (single["keep"] == TYPICAL),
        )
        indices, values, kept = (list(part) for part in zip(*ranked, strict=True))
        own = [given[index] for index in indices] if given else []
        sheet = labelled_sheet(kept, labels(ranked, rarity.percentiles, own))
        alike = len({picture.shape for picture in kept}) == 1
        pictures = [torch.stack(kept)] if alike else [picture[None] for picture in kept]
        return io.NodeOutput(pictures, values, indices, own, sheet, ui=ui.PreviewImage(sheet, cls=cls))


def labels(ranked: list, percentiles: list[float], seeds: list[int]) -> list[str]:
    """What the sheet says below each image."""
    lines = []
    for rank, (index, value, _) in enumerate(ranked):
        label = f"{rank + 1}. image {index}\n{value:.2f}"
        if percentiles:
            label += f"\nrarer than {100 - percentiles[index]:.0f} %"
        lines.append(f"{label}\nseed {seeds[rank]}" if seeds else label)
    return lines


def seeds_of(seeds: list | None, total: int) -> list[int]:
    """One seed for each image; a single seed applies to all. Raises ValueError for any other number of seeds."""
    if seeds is None or seeds == [None]:
        return []
    if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise ValueError(f"seeds must be whole numbers, got {seeds!r:.100}")
    if len(seeds) == 1:
        return seeds * total
    if len(seeds) != total:
        raise ValueError(
            f"seeds holds {len(seeds)} seeds for {total} images; give one for all, or one for each"
        )
    return seeds
