"""JEPAEncoderLoader: the eyes that say what is rare."""

from comfy_api.latest import io

from ..host.folders import encoder_file, encoder_names
from ..host.internals import ProgressBar
from ..host.models import load_host_encoder
from .checks import check_values
from .types import JEPAEncoder


class JEPAEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAEncoderLoader",
            display_name="JEPA Encoder Loader",
            category="JEPA",
            description="Loads the image encoder that decides what is rare (DINOv2, Apache-2.0).",
            inputs=[
                io.Combo.Input(
                    "encoder",
                    options=encoder_names(),
                    default="dinov2-with-registers-small",
                    tooltip="Rarity is what this encoder finds rare. Files come from models/jepa; the plain names "
                    "are fetched from the Hugging Face hub on first use. The paper uses "
                    "dinov2-with-registers-small (88 MB); larger ones cost more time and memory per step.",
                ),
                io.Int.Input(
                    "image_size",
                    default=224,
                    min=14,
                    max=1022,
                    step=14,
                    tooltip="Side in pixels at which the encoder sees every image, a multiple of 14. 224 is the "
                    "paper's; cost grows with the square. Scores at different sizes are not comparable.",
                ),
            ],
            outputs=[
                JEPAEncoder.Output(
                    display_name="encoder", tooltip="For the JEPA sampler, guidance and score nodes."
                )
            ],
        )

    @classmethod
    def execute(cls, encoder: str, image_size: int) -> io.NodeOutput:
        check_values(cls.define_schema().inputs, {"image_size": image_size})
        bar = ProgressBar(1)
        file = encoder_file(encoder, on_progress=lambda done, total: bar.update_absolute(done, total))
        return io.NodeOutput(load_host_encoder(file, encoder, image_size))
