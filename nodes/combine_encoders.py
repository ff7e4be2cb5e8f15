"""JEPACombineEncoders: several encoders as one, each with a weight."""

from comfy_api.latest import io

from ..host.encoders.host_encoder import combined
from .input_checks import check_values, inputs_of
from .search_words import search_words
from .types import JEPAEncoder

SLOTS = 4


class JEPACombineEncoders(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs: list[io.Input] = []
        for slot in range(1, SLOTS + 1):
            optional = slot > 2
            inputs += [
                JEPAEncoder.Input(
                    f"encoder_{slot}",
                    optional=optional,
                    tooltip="From JEPA Encoder Loader, or another JEPA Combine Encoders.",
                ),
                io.Float.Input(
                    f"weight_{slot}",
                    default=1.0,
                    min=0.05,
                    max=100.0,
                    step=0.05,
                    optional=optional,
                    tooltip=f"How much encoder_{slot} counts, relative to the other weights.",
                ),
            ]
        return io.Schema(
            node_id="JEPACombineEncoders",
            display_name="JEPA Combine Encoders",
            category="JEPA",
            description="Combines several encoders: guides toward images that all of them find rare, or scores images under "
            "each. For guidance, the gradients are scaled to the same size and then weighted. A guided step costs as much "
            "as one step of each encoder together.",
            **search_words("JEPACombineEncoders", "dino, clip, ensemble, several encoders, weights"),
            inputs=inputs,
            outputs=[
                JEPAEncoder.Output(
                    display_name="encoder", tooltip="For the JEPA sampler, guidance and score nodes."
                )
            ],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        inputs = inputs_of(JEPACombineEncoders)
        optional = {entry.id for entry in inputs if entry.optional}
        linked = {
            name: value for name, value in settings.items() if value is not None or name not in optional
        }
        check_values(inputs, linked)
        slots = range(1, SLOTS + 1)
        chosen = [
            (linked[f"encoder_{slot}"], linked.get(f"weight_{slot}", 1.0))
            for slot in slots
            if f"encoder_{slot}" in linked
        ]
        return io.NodeOutput(combined(chosen))
