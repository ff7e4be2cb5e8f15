"""JEPAPickImages: show images sorted by rarity, wait, and go on with those that somebody keeps."""

from typing import Any

from comfy_api.latest import io, ui

from ..host.drawing.pictures import viewable
from ..host.options import (
    ASK_ALWAYS,
    ASK_ONCE,
    KEEP_FIRST,
    RAREST,
    STOP,
    TYPICAL,
)
from ..host.scoring.along import kept_latents, kept_pictures
from ..host.scoring.by_eye import MOST_SHOWN, Viewing, unanswered, workflow_of
from ..host.scoring.rarity import rarity_of
from .choice_inputs import (
    by_input,
    kept_outputs,
    latents_input,
    latents_of,
    latents_output,
    missing,
    mode_input,
    seeds_input,
)
from .fingerprints import unlike_any_other
from .input_checks import check_values, given, inputs_of, only, places_in_batches, seeds_of, with_images
from .search_words import search_words
from .types import JEPAEncoder, JEPAReference

_DAY = 24 * 60 * 60  # seconds


class JEPAPickImages(io.ComfyNode):
    """Images -> those that somebody clicks on the page, with their scores, indices, seeds and latents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAPickImages",
            display_name="JEPA Pick Images",
            category="JEPA",
            description="Shows images sorted by rarity and waits until you have clicked those to keep. Without a page, the "
            "first are kept.",
            is_input_list=True,
            inputs=_inputs(),
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
            **search_words("JEPAPickImages", "choose, select, picker, pause, filter, keep, image chooser"),
        )

    @classmethod
    def fingerprint_inputs(cls, ask: Any = (ASK_ONCE,), **_: Any) -> str | int:
        return unlike_any_other() if ASK_ALWAYS in ask else unanswered(cls.hidden.unique_id)

    @classmethod
    def execute(
        cls,
        images,
        encoder,
        keep,
        count,
        timeout,
        on_timeout,
        ask,
        mode,
        by,
        seeds=None,
        reference=None,
        latents=None,
    ) -> io.NodeOutput:
        inputs = {
            "encoder": encoder,
            "keep": keep,
            "count": count,
            "timeout": timeout,
            "on_timeout": on_timeout,
        }
        inputs |= {"ask": ask, "mode": mode, "by": by} | (
            {"reference": reference} if given(reference) else {}
        )
        images = with_images(images)
        single = {name: only(name, values) for name, values in inputs.items()}
        for batch in images:
            check_values(inputs_of(JEPAPickImages), single | {"images": batch})
        total = sum(map(len, images))
        own, latents = seeds_of(seeds, total), latents_of(latents, total)
        viewing = Viewing(
            *(single[name] for name in ("keep", "by")),
            cls.hidden.unique_id,
            workflow_of(cls.hidden.extra_pnginfo),
            *(single[name] for name in ("count", "timeout")),
            stops=single["on_timeout"] == STOP,
        )
        rarity = rarity_of(images, single["encoder"], single["mode"], viewing.by, single.get("reference"))
        order = viewing.order(rarity)
        every = [picture for batch in images for picture in batch]
        pictures = ui.PreviewImage([viewable(every[index]) for index in order]).values
        question = viewing.question(rarity, order, pictures, own, places_in_batches(own, images))
        ended = viewing.chosen(question)
        kept = ended.kept
        return io.NodeOutput(
            kept_pictures(images, kept),
            [rarity.values[index] for index in kept],
            kept,
            [own[index] for index in kept] if own else [],
            kept_latents(latents, kept) if latents else missing("JEPA Pick Images", "latents"),
            ui={"jepa_pick": [question | ended._asdict()]},
        )


def _inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "images",
            tooltip="A batch, or a list of batches, of any sizes. The first 256 in order of rarity are shown.",
        ),
        JEPAEncoder.Input("encoder", tooltip="Scores the images, which are shown in this order."),
        io.Combo.Input(
            "keep",
            options=[RAREST, TYPICAL],
            default=RAREST,
            tooltip=f"Which images come first. Keeping the {TYPICAL} can reinforce bias.",
        ),
        io.Int.Input(
            "count",
            default=4,
            min=1,
            max=MOST_SHOWN,
            tooltip="How many of the first images are kept if nobody picks; by eye, keep as many as you like.",
        ),
        io.Int.Input(
            "timeout",
            default=600,
            min=5,
            max=_DAY,
            tooltip="How many seconds the run waits for you, at most. Other runs in the queue wait too.",
        ),
        io.Combo.Input(
            "on_timeout",
            options=[KEEP_FIRST, STOP],
            default=KEEP_FIRST,
            tooltip=f"What happens when the time is over. {KEEP_FIRST}: the run goes on with the first images, as many as "
            f"count says. {STOP}: the run ends with an error.",
        ),
        io.Combo.Input(
            "ask",
            options=[ASK_ONCE, ASK_ALWAYS],
            default=ASK_ONCE,
            tooltip=f"When you are asked. {ASK_ONCE}: another run with the same images keeps what you picked. "
            f"{ASK_ALWAYS}: you pick again.",
        ),
        mode_input(),
        by_input(),
        seeds_input("Those of the kept images are returned."),
        JEPAReference.Input(
            "reference",
            optional=True,
            tooltip="What counts as usual: needed to sort by novelty, and says how many of its pictures each image is "
            "rarer than. Images are seen as its pictures were. From JEPA Reference.",
        ),
        latents_input(),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output(
            display_name="images",
            is_output_list=True,
            tooltip="The kept images, in the order of your clicks: one batch if all have the same size, otherwise one by "
            "one.",
        ),
        *kept_outputs(),
        latents_output(),
    ]
