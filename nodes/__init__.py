"""The nodes: each declares its inputs, validates them and calls into host/."""

from comfy_api.latest import ComfyExtension, io

from ..host.comfy.example_picture import offer_picture
from ..host.comfy.model_folders import register_folders
from ..host.comfy.page import on_queued, server_runs
from ..host.comfy.picks import register_routes
from ..host.guidance.notes import add_kept
from .boost_and_skip import JEPABoostAndSkip
from .cads import JEPACads
from .combine_encoders import JEPACombineEncoders
from .combine_references import JEPACombineReferences
from .demo import JEPADemoClass, JEPADemoLoader
from .djepa import DJEPALoader, DJEPASampler
from .encoder_loader import JEPAEncoderLoader
from .guidance import JEPAGuidance
from .guidance_settings import JEPAGuidanceSettings
from .guided_ksampler import JEPAGuidedKSampler
from .minority_prompt import JEPAMinorityPrompt
from .old_form import read_old_prompt
from .pick_images import JEPAPickImages
from .plot_trace import JEPAPlotTrace
from .prompt_fit import JEPAPromptFit
from .prompt_map import JEPAPromptMap
from .prompt_reference import JEPAPromptReference
from .rank_images import JEPARankImages
from .rare_search import JEPARareSearch
from .rarity_map import JEPARarityMap
from .reference import JEPAReferenceNode
from .reference_files import JEPALoadReference, JEPASaveReference
from .reference_folder import JEPAReferenceFolder
from .score_folder import JEPAScoreFolder
from .score_image import JEPAScoreImage
from .self_guided_minority import JEPASelfGuidedMinority
from .strength_strip import JEPAStrengthStrip


class JEPAExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_folders()
        if server_runs():
            offer_picture()
            on_queued(read_old_prompt)
            on_queued(add_kept)
            register_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            JEPAEncoderLoader,
            JEPAGuidedKSampler,
            JEPAGuidance,
            JEPAScoreImage,
            JEPADemoLoader,
            JEPADemoClass,
            JEPACombineEncoders,
            DJEPALoader,
            DJEPASampler,
            JEPAPlotTrace,
            JEPARankImages,
            JEPARarityMap,
            JEPAReferenceNode,
            JEPAReferenceFolder,
            JEPAPromptReference,
            JEPASaveReference,
            JEPALoadReference,
            JEPACombineReferences,
            JEPARareSearch,
            JEPAPromptFit,
            JEPAPromptMap,
            JEPABoostAndSkip,
            JEPACads,
            JEPASelfGuidedMinority,
            JEPAMinorityPrompt,
            JEPAScoreFolder,
            JEPAPickImages,
            JEPAStrengthStrip,
            JEPAGuidanceSettings,
        ]
