"""The nodes: they declare inputs, validate them, and call the host adapter."""

from comfy_api.latest import ComfyExtension, io

from ..host.folders import register_folder
from .combine_encoders import JEPACombineEncoders
from .demo import JEPADemoClass, JEPADemoLoader
from .encoder_loader import JEPAEncoderLoader
from .guidance import JEPAGuidance
from .guided_ksampler import JEPAGuidedKSampler
from .score_image import JEPAScoreImage


class JEPAExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_folder()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            JEPAEncoderLoader,
            JEPAGuidedKSampler,
            JEPAGuidance,
            JEPAScoreImage,
            JEPADemoLoader,
            JEPADemoClass,
            JEPACombineEncoders,
        ]
