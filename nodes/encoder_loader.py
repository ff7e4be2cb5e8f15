"""JEPAEncoderLoader: the encoder that defines rarity."""

from comfy_api.latest import io

from ..host.comfy.required import ProgressBar
from ..host.encoders.host_encoder import load_host_encoder
from ..host.encoders.menu import (
    FACTS,
    PAPER_ENCODER,
    absent_message,
    encoder_file,
    encoder_names,
    menu_facts,
)
from .input_checks import check_values, inputs_of
from .search_words import search_words
from .types import JEPAEncoder


class JEPAEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = encoder_names()
        return io.Schema(
            node_id="JEPAEncoderLoader",
            display_name="JEPA Encoder Loader",
            category="JEPA",
            description="Loads the image encoder that defines what is rare.",
            **search_words(
                "JEPAEncoderLoader",
                "dino, dinov2, dinov3, clip, siglip, metaclip, i-jepa, v-jepa, world model, vision encoder",
            ),
            inputs=[
                io.Combo.Input(
                    "encoder",
                    options=names,
                    default=PAPER_ENCODER,
                    # the page writes it behind the names: graphs save them, so they are the same on every machine
                    extra_dict={FACTS: menu_facts(names)},
                    tooltip="Defines what is rare: each encoder has its own idea of it. Installed ones come first; the "
                    "others are downloaded on first use. Larger ones cost more time and memory per step. The paper's is "
                    f"{PAPER_ENCODER}.",
                ),
                io.Int.Input(
                    "image_size",
                    default=224,
                    min=14,
                    max=1022,
                    step=2,
                    tooltip="How much detail the encoder sees: every image is resized to this side, in pixels. A multiple "
                    "of the patch size (14 for DINOv2, 16 for most others); 224 is the paper's and fits all. Cost grows "
                    "with the square. Scores at different sizes are not comparable.",
                ),
                io.Boolean.Input(
                    "non_commercial",
                    default=False,
                    optional=True,
                    tooltip="Allows the download of encoders licensed for non-commercial use only. Off: such an encoder is "
                    "refused, unless its files are already there.",
                ),
            ],
            outputs=[
                JEPAEncoder.Output(
                    display_name="encoder", tooltip="For the JEPA sampler, guidance and score nodes."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, encoder: str | None = None) -> bool | str:
        # a sentence of our own: the host would only list the menu. None: linked, and checked when it is known
        return (None if encoder is None else absent_message(encoder, encoder_names())) or True

    @classmethod
    def execute(cls, encoder: str, image_size: int, non_commercial: bool = False) -> io.NodeOutput:
        values = {"image_size": image_size, "non_commercial": non_commercial}
        check_values(inputs_of(JEPAEncoderLoader), values)
        bar = ProgressBar(1)
        file = encoder_file(
            encoder,
            non_commercial=non_commercial,
            on_progress=lambda done, total: bar.update_absolute(done, total),
        )
        return io.NodeOutput(load_host_encoder(file, encoder, image_size))
