"""The parts of ComfyUI's internals that the pack uses, checked at import because ComfyUI does not promise to keep them.

If one is missing, importing the pack fails with a message that names it and the host's version, instead of a run failing
halfway. Tested with ComfyUI 0.9.2 and 0.30.0.
"""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

OLDEST_HOST = "0.9.2"


class HostVersionError(ImportError):
    """This ComfyUI lacks something that the pack needs. The message says what is missing and what to do."""


def _version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:
        return "of an unknown version"
    return str(__version__)


HOST_VERSION = _version()


def _refuse(missing: str) -> HostVersionError:
    return HostVersionError(
        f"JEPA Guidance needs {missing}, which this ComfyUI ({HOST_VERSION}) does not have. The pack works with "
        f"ComfyUI {OLDEST_HOST} and newer: update ComfyUI; if it is the newest, update JEPA Guidance."
    )


try:
    import comfy.cli_args
    import comfy.conds
    import comfy.controlnet
    import comfy.latent_formats
    import comfy.ldm.modules.attention
    import comfy.ldm.modules.diffusionmodules.model
    import comfy.ldm.modules.diffusionmodules.openaimodel
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.model_sampling
    import comfy.patcher_extension
    import comfy.pixel_space_convert
    import comfy.samplers
    import comfy.sd
    import comfy.supported_models_base
    import comfy.taesd.taesd
    import comfy.utils
    import comfy_execution.graph
    import comfy_execution.graph_utils
    import comfy_execution.progress
    import folder_paths

    # mypy confuses the host's module with this pack's folder of the same name
    import nodes as host_nodes
except ModuleNotFoundError as error:
    raise _refuse(f"the module {error.name}") from error


def _need(owner: Any, name: str) -> Any:
    """The attribute `name` of a module or class of the host. Raises HostVersionError if it is missing."""
    if not hasattr(owner, name):
        raise _refuse(f"{getattr(owner, '__qualname__', owner.__name__)}.{name}")
    return getattr(owner, name)


def _live(owner: Any, name: str) -> Callable[..., Any]:
    """A function of the host, looked up at each call: other packs replace some of them after this one is loaded."""

    @wraps(_need(owner, name))
    def call(*args: Any, **more: Any) -> Any:
        return getattr(owner, name)(*args, **more)

    return call


def _need_mention(function: Callable, *names: str) -> None:
    """Check that a function of the host still mentions attributes of these names."""
    for name in names:
        if name not in function.__code__.co_names + function.__code__.co_varnames:
            raise _refuse(f"the attribute {name} in {function.__qualname__}")


# Blocks of UNets and VAEs.
UNetModel = _need(comfy.ldm.modules.diffusionmodules.openaimodel, "UNetModel")
ResBlock = _need(comfy.ldm.modules.diffusionmodules.openaimodel, "ResBlock")
BasicTransformerBlock = _need(comfy.ldm.modules.attention, "BasicTransformerBlock")
AttnBlock = _need(comfy.ldm.modules.diffusionmodules.model, "AttnBlock")
ResnetBlock = _need(comfy.ldm.modules.diffusionmodules.model, "ResnetBlock")
Upsample = _need(comfy.ldm.modules.diffusionmodules.model, "Upsample")
attention_pytorch = _need(comfy.ldm.modules.attention, "attention_pytorch")
vae_attention_pytorch = _need(comfy.ldm.modules.diffusionmodules.model, "pytorch_attention")
vae_attention_xformers = _need(comfy.ldm.modules.diffusionmodules.model, "xformers_attention")

# Models, their patchers, and devices.
BaseModel = _need(comfy.model_base, "BaseModel")
ModelType = _need(comfy.model_base, "ModelType")
ModelConfig = _need(comfy.supported_models_base, "BASE")
LatentFormat = _need(comfy.latent_formats, "LatentFormat")
PixelspaceConversionVAE = _need(comfy.pixel_space_convert, "PixelspaceConversionVAE")
ModelPatcher = _need(comfy.model_patcher, "ModelPatcher")
VAE = _need(comfy.sd, "VAE")
CLIP = _need(comfy.sd, "CLIP")
TAESD = _need(comfy.taesd.taesd, "TAESD")
get_torch_device = _live(comfy.model_management, "get_torch_device")
unet_offload_device = _live(comfy.model_management, "unet_offload_device")
vae_offload_device = _live(comfy.model_management, "vae_offload_device")
intermediate_device = _live(comfy.model_management, "intermediate_device")
load_models_gpu = _live(comfy.model_management, "load_models_gpu")
soft_empty_cache = _live(comfy.model_management, "soft_empty_cache")
free_memory = _live(comfy.model_management, "free_memory")
LoadedModel = _need(comfy.model_management, "LoadedModel")
_need(LoadedModel, "model_loaded_memory")
get_free_memory = _live(comfy.model_management, "get_free_memory")
extra_reserved_memory = _live(comfy.model_management, "extra_reserved_memory")
InterruptProcessingException = _need(comfy.model_management, "InterruptProcessingException")
# Raises if the user interrupted the run. The host's own layers call it; a JEPA encoder does not.
interrupt_check = _live(comfy.model_management, "throw_exception_if_processing_interrupted")

# Prompts and conditioning.
for _name in ("tokenize", "encode_from_tokens_scheduled"):
    _need(CLIP, _name)
_need_mention(_need(CLIP, "encode_from_tokens"), "load_model", "patcher", "cond_stage_model")
calc_cond_batch = _live(comfy.samplers, "calc_cond_batch")
encode_model_conds = _live(comfy.samplers, "encode_model_conds")
CONDConstant = _need(comfy.conds, "CONDConstant")
for _class in ("CONDRegular", "CONDList"):
    _need(_need(comfy.conds, _class), "_copy_with")
_need_mention(
    _need(comfy.controlnet, "ControlBase").__init__,
    *("cond_hint_original", "cond_hint", "extra_concat_orig", "previous_controlnet"),
)
_need_mention(_need(comfy.controlnet, "T2IAdapter").__init__, "control_input")

# Sampling.
KSAMPLER = _need(comfy.samplers, "KSAMPLER")
Sampler = _need(comfy.samplers, "Sampler")
_need(Sampler, "max_denoise")
sampler_object = _live(comfy.samplers, "sampler_object")
# Its lists are read when they are used: other packs add to them, or replace them, after this one is loaded.
KSampler = _need(comfy.samplers, "KSampler")
for _name in ("SAMPLERS", "SCHEDULERS"):
    _need(KSampler, _name)
common_ksampler = _live(host_nodes, "common_ksampler")
VAEDecode = _need(host_nodes, "VAEDecode")
# In place of an output: the nodes that use it are not run, and this message is shown.
ExecutionBlocker = _need(comfy_execution.graph_utils, "ExecutionBlocker")
ProgressBar = _need(comfy.utils, "ProgressBar")
# Of the run: which node of the page a copy that a loop runs stands for.
get_progress_state = _live(comfy_execution.progress, "get_progress_state")
_need_mention(_need(comfy_execution.progress, "ProgressRegistry").__init__, "dynprompt")
_need(_need(comfy_execution.graph, "DynamicPrompt"), "get_display_node_id")
PreviewMethod = _need(comfy.cli_args, "LatentPreviewMethod")
SAMPLER_WRAPPER = _need(_need(comfy.patcher_extension, "WrappersMP"), "SAMPLER_SAMPLE")
RUN_WRAPPER = _need(comfy.patcher_extension.WrappersMP, "OUTER_SAMPLE")
CALL_WRAPPER = _need(comfy.patcher_extension.WrappersMP, "PREDICT_NOISE")
PREPARE_WRAPPER = _need(comfy.patcher_extension.WrappersMP, "PREPARE_SAMPLING")
WrapperExecutor = _need(comfy.patcher_extension, "WrapperExecutor")

for _name in ("clone", "get_model_object", "set_additional_models", "get_additional_models_with_key"):
    _need(ModelPatcher, _name)
for _name in ("add_wrapper_with_key", "remove_wrappers_with_key", "load", "model_patches_models"):
    _need(ModelPatcher, _name)
for _name in ("remove_additional_models", "get_wrappers", "memory_required", "model_size"):
    _need(ModelPatcher, _name)
for _name in ("throw_exception_if_invalid", "spacial_compression_decode", "temporal_compression_decode"):
    _need(VAE, _name)
for _name in ("process_in", "latent_channels", "latent_dimensions", "taesd_decoder_name"):
    _need(LatentFormat, _name)
_need(BaseModel, "process_latent_out")
for _class in ("EPS", "V_PREDICTION", "EDM", "CONST"):
    for _name in ("calculate_input", "calculate_denoised", "noise_scaling"):
        _need(_need(comfy.model_sampling, _class), _name)
for _class in ("ModelSamplingDiscrete", "ModelSamplingContinuousEDM", "ModelSamplingDiscreteFlow"):
    for _name in ("timestep", "sigma_min", "sigma_max"):
        _need(_need(comfy.model_sampling, _class), _name)
for _name in ("folder_names_and_paths", "models_dir", "get_filename_list", "get_folder_paths"):
    _need(folder_paths, _name)
for _name in ("get_input_directory", "get_output_directory", "get_system_user_directory"):
    _need(folder_paths, _name)
_need_mention(ModelPatcher.__init__, "model_lowvram", "load_device", "offload_device", "hook_patches")
_need_mention(VAE.__init__, "first_stage_model", "patcher", "vae_dtype", "device")
_need_mention(VAE.__init__, "latent_dim", "output_channels", "process_output", "memory_used_decode")
_need_mention(comfy.samplers.CFGGuider.outer_sample, "inner_model", "conds", "loaded_models", "model_patcher")
_need_mention(KSAMPLER.sample, "sampler_function", "extra_options", "inpaint_options")
_need_mention(_need(comfy.samplers, "KSamplerX0Inpaint").__call__, "denoise_mask", "inner_model", "sigmas")
_need_mention(WrapperExecutor.__init__, "class_obj", "wrappers", "idx")
if "server" in sys.modules:  # the engine also runs without a server
    _server = sys.modules["server"]
    for _name in ("json_response", "RouteTableDef"):
        _need(_need(_server, "web"), _name)
    for _name in ("send_progress_text", "send_sync"):
        _need(_need(_server, "PromptServer"), _name)
    _need_mention(_server.PromptServer.__init__, "routes", "client_id", "sockets_metadata")
