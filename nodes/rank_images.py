"""JEPARankImages: keep the rarest, or the most typical, of many images."""

import torch
from comfy_api.latest import io, ui

from ..host.comfy.required import ProgressBar
from ..host.drawing.pictures import labelled_sheet
from ..host.scoring.scores import rank_images
from ..jepa_core.score import PROJECTION
from .input_checks import check_values, count_images, inputs_of, only
from .scoring_inputs import EXACT, PROJECTED, mode_arguments
from .types import JEPAEncoder

RAREST = "rarest"
TYPICAL = "most typical"


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
                    max=0xFFFFFFFFFFFFFFFF,
                    optional=True,
                    force_input=True,
                    tooltip="The seed of the images, or a list with one for each; those of the kept images are returned.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="The kept images, sorted: one batch if all have the same size, otherwise one by one.",
                ),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="Their scores. Lower is rarer."
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
                    tooltip="The kept images, labelled with rank, index, score and seed.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, encoder, keep, count, mode, seeds=None) -> io.NodeOutput:
        # a node that takes lists gets every input as a list
        judge, keep, count, mode = (
            only(name, values)
            for name, values in {"encoder": encoder, "keep": keep, "count": count, "mode": mode}.items()
        )
        single = {"encoder": judge, "keep": keep, "count": count, "mode": mode}
        for batch in images:
            check_values(inputs_of(JEPARankImages), single | {"images": batch})
        total = count_images(images)
        given = seeds_of(seeds, total)
        bar = ProgressBar(total * len(judge.members))
        ranked = rank_images(
            images,
            judge,
            count=count,
            typical=keep == TYPICAL,
            **mode_arguments(mode),
            on_image=lambda: bar.update(1),
        )
        indices, scores, kept = (list(part) for part in zip(*ranked, strict=True))
        own = [given[index] for index in indices] if given else []
        labels = [f"{rank}. image {index}\n{score:.2f}" for rank, (index, score, _) in enumerate(ranked, 1)]
        if own:
            labels = [f"{label}\nseed {seed}" for label, seed in zip(labels, own, strict=True)]
        sheet = labelled_sheet(kept, labels)
        alike = len({picture.shape for picture in kept}) == 1
        pictures = [torch.stack(kept)] if alike else [picture[None] for picture in kept]
        return io.NodeOutput(pictures, scores, indices, own, sheet, ui=ui.PreviewImage(sheet, cls=cls))


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
