"""JEPAPromptMap: what one prompt draws, in groups."""

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..host.drawing.group_sheet import Block, group_sheet
from ..host.options import NOVELTY, SCORE
from ..host.scoring.along import kept_pictures
from ..host.scoring.groups import Group, described, groups_of, joint_points
from ..host.scoring.modes import how_beside
from ..host.scoring.rarity import rarity_of
from ..host.scoring.reference import embed_pictures
from .choice_inputs import mode_input, seeds_input
from .input_checks import check_values, given, inputs_of, only, seed_words, seeds_of, with_images
from .search_words import search_words
from .types import JEPAEncoder, JEPAReference


class JEPAPromptMap(io.ComfyNode):
    """Images of one prompt -> groups of those that look alike, and of each the middle, the typical and the rarest."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAPromptMap",
            display_name="JEPA Prompt Map",
            category="JEPA",
            description="Shows what a prompt draws: groups of images that look alike, and of each its middle, its most "
            "typical and its rarest image. Takes many images of one prompt, as a batch or a list of batches.",
            **search_words(
                "JEPAPromptMap", "diversity, variation, cluster, groups, modes, same face, mode collapse"
            ),
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="A batch, or a list of batches, of one prompt: sixteen or more, so that groups can show.",
                ),
                JEPAEncoder.Input("encoder", tooltip="Decides which images look alike, and which are rare."),
                io.Int.Input(
                    "groups",
                    default=4,
                    min=0,
                    max=64,
                    tooltip="How many groups. 0 tries 2 to 8 and takes the number that parts the images most clearly. "
                    "Images that are the same are never parted.",
                ),
                mode_input(),
                seeds_input("To draw the finds again."),
                JEPAReference.Input(
                    "reference",
                    optional=True,
                    tooltip="What counts as usual: needed for novelty, and says how many of its pictures an image is "
                    "rarer than. Images are seen as its pictures were.",
                ),
                io.Combo.Input(
                    "by",
                    options=[SCORE, NOVELTY],
                    default=SCORE,
                    optional=True,
                    tooltip=f"What makes an image rare. {SCORE}: the JEPA score, lower is rarer. {NOVELTY}: how far it is "
                    "from its nearest in the reference, higher is rarer.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="sheet",
                    tooltip="Of each group, the largest first: its middle, its most typical and its rarest image.",
                ),
                io.Int.Output(
                    display_name="groups",
                    is_output_list=True,
                    tooltip="The group of each image, in the images' order; 0 is the largest.",
                ),
                io.Int.Output(
                    display_name="rarest",
                    is_output_list=True,
                    tooltip="Of each group, the position of its rarest image, from 0.",
                ),
                io.Int.Output(
                    display_name="typical",
                    is_output_list=True,
                    tooltip="Of each group, the position of its most typical image by score or novelty.",
                ),
                io.Int.Output(
                    display_name="medoids",
                    is_output_list=True,
                    tooltip="Of each group, the position of its middle: the image that is most like the others.",
                ),
                io.Int.Output(
                    display_name="seeds",
                    is_output_list=True,
                    tooltip="The seeds of the rarest images; empty if none were given.",
                ),
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="The rarest images: one batch if all have the same size, otherwise one by one.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, encoder, groups, mode, seeds=None, reference=None, by=(SCORE,)) -> io.NodeOutput:
        inputs = {"encoder": encoder, "groups": groups, "mode": mode, "by": by}
        if given(reference):
            inputs["reference"] = reference
        # a node that takes lists gets every input as a list
        single = {name: only(name, values) for name, values in inputs.items()}
        images = with_images(images)
        for batch in images:
            check_values(inputs_of(JEPAPromptMap), single | {"images": batch})
        own = seeds_of(seeds, sum(map(len, images)))
        rarity = rarity_of(images, single["encoder"], single["mode"], single["by"], single.get("reference"))
        pictures = [picture for batch in images for picture in batch]
        how = how_beside(single.get("reference"))
        points = embedded(pictures, single["encoder"], how)
        labels = groups_of(points, single["groups"])
        found = described(points, labels, rarity.values, highest=single["by"] == NOVELTY)
        words = seed_words(own, images)
        texts = [rarity.text(index, single["by"]) for index in range(len(pictures))]
        sheet = group_sheet(
            [block(number, group, pictures, texts, words) for number, group in enumerate(found)]
        )
        rarest = [group.rarest for group in found]
        return io.NodeOutput(
            sheet,
            labels,
            rarest,
            [group.typical for group in found],
            [group.medoid for group in found],
            [own[index] for index in rarest] if own else [],
            kept_pictures(images, rarest),
            ui=ui.PreviewImage(sheet, cls=cls),
        )


def embedded(pictures: list[Tensor], encoder: Any, how: dict[str, str]) -> Tensor:
    """Pictures as points, (N, d): where the encoder sees them, or all encoders of a set together; how: see Reference."""
    each = [embed_pictures(pictures, member.encoder, how) for member in encoder.members]
    return joint_points(each, [member.weight for member in encoder.members])


def block(number: int, group: Group, pictures: list[Tensor], texts: list[str], seeds: list[str]) -> Block:
    """What the sheet shows of a group. texts: how rare each picture is."""
    size = len(group.members)
    heading = f"group {number}: {size} of {len(pictures)} images"
    shown = {"middle": group.medoid, "most typical": group.typical, "rarest": group.rarest}
    if size == 1:
        shown = {"alone": group.medoid}
    labels = [label(role, index, texts, seeds) for role, index in shown.items()]
    return Block(heading, [pictures[index] for index in shown.values()], labels)


def label(role: str, index: int, texts: list[str], seeds: list[str]) -> str:
    """What stands below a picture."""
    lines = [f"{role}: image {index}", texts[index]]
    if seeds:
        lines.append(seeds[index])
    return "\n".join(lines)
