"""JEPACombineReferences: several references as one, or a part of one."""

from comfy_api.latest import io

from ..host.comfy.sampling import MAX_SEED
from ..jepa_core.reference import merged
from .input_checks import check_values, inputs_of
from .reference import USES
from .search_words import search_words
from .types import JEPAReference

SLOTS = 4


class JEPACombineReferences(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        references = [
            JEPAReference.Input(
                f"reference_{slot}",
                optional=slot > 2,
                tooltip="A reference, made with the same encoder and settings as the others.",
            )
            for slot in range(1, SLOTS + 1)
        ]
        return io.Schema(
            node_id="JEPACombineReferences",
            display_name="JEPA Combine References",
            category="JEPA",
            description="Puts the images of several references together, and keeps all or some of them, drawn at random.",
            **search_words("JEPACombineReferences", "merge, join, novelty"),
            inputs=[
                *references[:2],
                io.Int.Input(
                    "keep",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="How many images are kept, at most; 0 keeps all. Fewer make novelty faster and coarser.",
                ),
                io.Int.Input(
                    "keep_seed", default=0, min=0, max=MAX_SEED, tooltip="Draws which images are kept."
                ),
                *references[2:],
            ],
            outputs=[JEPAReference.Output(display_name="reference", tooltip=USES)],
        )

    @classmethod
    def execute(cls, keep, keep_seed, **references) -> io.NodeOutput:
        inputs = inputs_of(JEPACombineReferences)
        optional = {entry.id for entry in inputs if entry.optional}
        linked = {name: one for name, one in references.items() if one is not None or name not in optional}
        check_values(inputs, {**linked, "keep": keep, "keep_seed": keep_seed})
        together = merged(list(linked.values()), list(linked))
        return io.NodeOutput(together.thinned(keep, keep_seed) if keep else together)
