"""Every use of the host's internals, which it does not promise to keep: in one place, checked at import.

The other modules take what they need from here. A host that lacks something is refused when the pack is
imported, with a message that names the host's version and what is missing, and not in the middle of an
artist's run. Tested with ComfyUI 0.9.2 and 0.30.0.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

OLDEST_HOST = "0.9.2"


class HostVersionError(ImportError):
    """This ComfyUI lacks something that the pack needs. The message says what, and what to do."""


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
    import folder_paths

    # the type checker takes the host's module for this pack's folder of the same name
    import nodes as host_nodes
except ModuleNotFoundError as error:
    raise _refuse(f"the module {error.name}") from error


try:
    from comfy_kitchen.backends.eager import rope as plain_rotary
except ImportError:  # the host runs without its library of kernels
    plain_rotary = None


def _need(owner: Any, name: str) -> Any:
    """The attribute `name` of a module or class of the host. Raises HostVersionError without it."""
    if not hasattr(owner, name):
        raise _refuse(f"{getattr(owner, '__qualname__', owner.__name__)}.{name}")
    return getattr(owner, name)


def _need_mention(function: Callable, *names: str) -> None:
    """Check that a function of the host still reads or sets attributes of these names on its objects."""
    for name in names:
        if name not in function.__code__.co_names + function.__code__.co_varnames:
            raise _refuse(f"the attribute {name} in {function.__qualname__}")


# --- classes and functions --------------------------------------------------------------------------------------

# Blocks of the host's UNets and VAEs.
UNetModel = _need(comfy.ldm.modules.diffusionmodules.openaimodel, "UNetModel")
ResBlock = _need(comfy.ldm.modules.diffusionmodules.openaimodel, "ResBlock")
BasicTransformerBlock = _need(comfy.ldm.modules.attention, "BasicTransformerBlock")
AttnBlock = _need(comfy.ldm.modules.diffusionmodules.model, "AttnBlock")
ResnetBlock = _need(comfy.ldm.modules.diffusionmodules.model, "ResnetBlock")
Upsample = _need(comfy.ldm.modules.diffusionmodules.model, "Upsample")
attention_pytorch = _need(comfy.ldm.modules.attention, "attention_pytorch")

# Models and what the host keeps them in.
BaseModel = _need(comfy.model_base, "BaseModel")
ModelType = _need(comfy.model_base, "ModelType")
ModelConfig = _need(comfy.supported_models_base, "BASE")
LatentFormat = _need(comfy.latent_formats, "LatentFormat")
PixelspaceConversionVAE = _need(comfy.pixel_space_convert, "PixelspaceConversionVAE")
ModelPatcher = _need(comfy.model_patcher, "ModelPatcher")
VAE = _need(comfy.sd, "VAE")
TAESD = _need(comfy.taesd.taesd, "TAESD")
get_torch_device = _need(comfy.model_management, "get_torch_device")
unet_offload_device = _need(comfy.model_management, "unet_offload_device")
vae_offload_device = _need(comfy.model_management, "vae_offload_device")
intermediate_device = _need(comfy.model_management, "intermediate_device")
load_models_gpu = _need(comfy.model_management, "load_models_gpu")
soft_empty_cache = _need(comfy.model_management, "soft_empty_cache")
_free_memory = _need(comfy.model_management, "free_memory")
_LoadedModel = _need(comfy.model_management, "LoadedModel")
# Raises the host's interruption when the user asked for one; only the host's own layers ask by themselves.
interrupt_check = _need(comfy.model_management, "throw_exception_if_processing_interrupted")

# Sampling.
KSAMPLER = _need(comfy.samplers, "KSAMPLER")
sampler_object = _need(comfy.samplers, "sampler_object")
SAMPLER_NAMES = _need(_need(comfy.samplers, "KSampler"), "SAMPLERS")
SCHEDULER_NAMES = _need(_need(comfy.samplers, "KSampler"), "SCHEDULERS")
common_ksampler = _need(host_nodes, "common_ksampler")
ProgressBar = _need(comfy.utils, "ProgressBar")
_PreviewMethod = _need(comfy.cli_args, "LatentPreviewMethod")
_WRAPPER = _need(_need(comfy.patcher_extension, "WrappersMP"), "SAMPLER_SAMPLE")
_RUN_WRAPPER = _need(comfy.patcher_extension.WrappersMP, "OUTER_SAMPLE")
_WrapperExecutor = _need(comfy.patcher_extension, "WrapperExecutor")

for _name in ("clone", "get_model_object", "set_additional_models", "get_additional_models_with_key"):
    _need(ModelPatcher, _name)
for _name in ("add_wrapper_with_key", "remove_wrappers_with_key", "load", "model_patches_models"):
    _need(ModelPatcher, _name)
for _name in ("throw_exception_if_invalid", "spacial_compression_decode"):
    _need(VAE, _name)
for _name in ("process_in", "latent_channels", "latent_dimensions", "taesd_decoder_name"):
    _need(LatentFormat, _name)
_need(BaseModel, "process_latent_out")
for _class in ("EPS", "V_PREDICTION", "EDM", "CONST"):
    for _name in ("calculate_input", "calculate_denoised", "noise_scaling"):
        _need(_need(comfy.model_sampling, _class), _name)
for _name in ("folder_names_and_paths", "models_dir", "get_filename_list", "get_folder_paths"):
    _need(folder_paths, _name)
_need_mention(ModelPatcher.__init__, "model_lowvram", "load_device", "offload_device", "hook_patches")
_need_mention(VAE.__init__, "first_stage_model", "patcher", "vae_dtype", "device")
_need_mention(VAE.__init__, "latent_dim", "output_channels", "process_output")
_need_mention(comfy.samplers.CFGGuider.outer_sample, "inner_model", "conds", "loaded_models", "model_patcher")
_need_mention(KSAMPLER.sample, "sampler_function", "extra_options", "inpaint_options")
_need_mention(_need(comfy.samplers, "KSamplerX0Inpaint").__call__, "denoise_mask", "inner_model", "sigmas")
_need_mention(_WrapperExecutor.__init__, "class_obj", "wrappers", "idx")
if "server" in sys.modules:  # the host's engine runs without one too
    for _name in ("send_progress_text", "send_sync"):
        _need(_need(sys.modules["server"], "PromptServer"), _name)


# --- sampling ---------------------------------------------------------------------------------------------------


def wants_previews() -> bool:
    """Whether the user asked for previews while samplers run; the page may change it for each prompt."""
    return bool(comfy.cli_args.args.preview_method != _PreviewMethod.NoPreviews)


def send_progress_text(text: str, node_id: str) -> None:
    """Show text under a node of the page."""
    from server import PromptServer

    PromptServer.instance.send_progress_text(text, node_id)


def send_event(name: str, data: dict) -> None:
    """Send a message of this pack's own to the page whose prompt runs."""
    from server import PromptServer

    server = PromptServer.instance
    server.send_sync(name, data, server.client_id)


def wrap_sampler(model: Any, key: str, wrapper: Callable) -> None:
    """Have `wrapper`(executor, guider, sigmas, extra_args, ...) called in place of the sampler of whatever samples MODEL.

    It replaces an earlier one of the same key.
    """
    model.remove_wrappers_with_key(_WRAPPER, key)
    model.add_wrapper_with_key(_WRAPPER, key, wrapper)


def wrap_run(model: Any, key: str, wrapper: Callable) -> None:
    """Have `wrapper`(executor, ...) called around each run of MODEL, before the host loads what the run needs.

    It replaces an earlier one of the same key.
    """
    model.remove_wrappers_with_key(_RUN_WRAPPER, key)
    model.add_wrapper_with_key(_RUN_WRAPPER, key, wrapper)


def wrapped_sampler(executor: Any) -> Any:
    """The sampler that a wrapper was called in place of."""
    return executor.class_obj


def go_on_with(executor: Any, sampler: Any) -> Callable:
    """What a wrapper calls to go on with another sampler: the wrappers after it run around that one."""
    rest = executor.wrappers[executor.idx + 1 :]
    return _WrapperExecutor.new_class_executor(sampler.sample, sampler, rest).execute


def denoising_modules(guider: Any, key: str) -> list[nn.Module]:
    """The networks that a model call runs: the denoiser, and what runs beside it, such as ControlNets.

    Args:
        key: of the models that are loaded together with the denoiser but do not take part in its calls.
    """
    apart = [patcher.model for patcher in guider.model_patcher.get_additional_models_with_key(key)]
    found = [patcher.model for patcher in (guider.model_patcher, *guider.loaded_models)]
    # T2I-Adapters and the VAEs of ControlNets are in no patcher that is loaded
    for cond in (cond for conds in guider.conds.values() for cond in conds):
        control = cond.get("control")
        while control is not None:
            found += [getattr(control, "t2i_model", None), getattr(control.vae, "first_stage_model", None)]
            control = control.previous_controlnet
    modules = [module for module in found if isinstance(module, nn.Module)]
    return [module for module in modules if not any(module is other for other in apart)]


@contextmanager
def replaced_conditioning(guider: Any, change: Callable[[Any], Any]) -> Iterator[None]:
    """Within the block, model calls see `change`(the conditioning of this run)."""
    before = guider.conds
    guider.conds = change(before)
    try:
        yield
    finally:
        guider.conds = before


def has_weight_hooks(guider: Any) -> bool:
    """Whether the host changes the denoiser's weights during this run, for a prompt or a part of it."""
    return any(guider.model_patcher.hook_patches.values())


def unguidable_sampling(model_sampling: Any) -> str | None:
    """The name of a way to add noise whose scale has no meaning for guidance, or None for one that is known.

    What adds no noise is found by asking it. Two have to be known by name: IMG_TO_IMG inherits a noise that its network
    never sees, and CogVideoX's takes a latent that the host does not scale.
    """
    kinds = type(model_sampling).__mro__
    sigma = torch.as_tensor(model_sampling.sigma_max).detach().float().cpu().reshape(1)
    with torch.no_grad():
        noise = model_sampling.noise_scaling(sigma, torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    if not noise.any():
        return next(kind.__name__ for kind in kinds if "noise_scaling" in vars(kind))
    known = {"IMG_TO_IMG", "V_PREDICTION_DDPM"}
    return next((kind.__name__ for kind in kinds if kind.__name__ in known), None)


# --- memory and devices -----------------------------------------------------------------------------------------


def is_dynamic(patcher: Any) -> bool:
    """Whether the host streams these weights through buffers that it uses again, as it pleases."""
    # a manager of that kind came after the oldest host
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def is_streamed(patcher: Any) -> bool:
    """Whether some of these weights are not on the device now: a backward pass would read other weights, or none.

    Of layers that are not its own, which the host cannot stream, it may leave some behind without noting it.
    """
    if is_dynamic(patcher) or patcher.model.model_lowvram:
        return True
    return any(weight.device.type != patcher.load_device.type for weight in patcher.model.parameters())


# What dynamic VRAM leaves on modules: handles of native memory, and what stands for weights that lie in it.
_STREAMING_STATE = {
    *(
        "dynamic_pins",
        "dynamic_vbars",
        "dynamic_patchers",
        "_v",
        "_v_weight",
        "_v_bias",
        "_v_signature",
        "_pins",
    ),
    *("_pin_state", "_prefetch", "weight_lowvram_function", "bias_lowvram_function"),
    # and how much of a module is loaded, for which patches, by whom
    *("model_loaded_weight_memory", "lowvram_patch_counter", "model_lowvram", "current_weight_patches_uuid"),
    *("model_offload_buffer_memory", "current_patcher", "comfy_patched_weights"),
}


def unload(patcher: Any) -> None:
    """Have the host take back what it did to this patcher's module: moved and patched weights, patches, injections."""
    loaded = comfy.model_management.current_loaded_models
    for entry in [entry for entry in loaded if entry.model is not None and entry.model.is_clone(patcher)]:
        entry.model_unload()
        loaded.remove(entry)


@contextmanager
def without_streaming_state(module: nn.Module) -> Iterator[None]:
    """Within the block, a module of a dynamic patcher has nothing of the streaming."""
    taken = []
    try:
        for part in module.modules():
            held = _STREAMING_STATE & vars(part).keys()
            taken.extend([(part, name, vars(part).pop(name)) for name in held])
        yield
    finally:
        for part, name, value in taken:
            vars(part)[name] = value


class HostWeight(NamedTuple):
    """A parameter or buffer of a module of the host's.

    Attributes:
        module, name: whose it is, and under which name.
        dtype: what its module computes in, or None where the host has not written it down.
    """

    module: nn.Module
    name: str
    tensor: Tensor
    dtype: torch.dtype | None


def weights_of(module: nn.Module) -> Iterator[HostWeight]:
    """Every weight that is there; lazily made ones that no file filled are not."""
    for part in module.modules():
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                yield HostWeight(part, name, tensor, getattr(part, f"{name}_comfy_model_dtype", None))


def not_loaded_yet(module: Any, device: torch.device) -> None:
    """Make a module that was copied from a dynamic patcher one that a plain patcher can begin with."""
    for part in module.modules():
        if hasattr(part, "comfy_cast_weights"):
            part.comfy_cast_weights = True  # what the host has not written down is cast when it is used
            vars(part).pop("weight_function", None)
            vars(part).pop("bias_function", None)
    if "device" in vars(module):
        module.device = device
    if isinstance(module, BaseModel):
        module.current_patcher = None


def patcher_like(patcher: Any, base: Any, rebound: Callable[[Any], Any]) -> Any:
    """A plain patcher with the patches of a dynamic one, for the weights of another plain one.

    Args:
        rebound: what replaces a patch of an attribute, or a wrapper; None drops a wrapper.
    """
    twin = patcher.clone(disable_dynamic=True, model_override=base.get_clone_model_override())
    # when the twin goes, the host takes the base for what it has loaded, and not the dynamic patcher
    twin.parent = base
    twin.size = base.model_size()
    twin.is_injected = False
    twin.object_patches = {name: rebound(patch) for name, patch in twin.object_patches.items()}
    for keys in twin.wrappers.values():
        for key, wrappers in keys.items():
            keys[key] = [new for new in map(rebound, wrappers) if new is not None]
    return twin


def has_room(device: torch.device, size: float) -> bool:
    """Whether weights of so many bytes fit a device that holds nothing else."""
    management = comfy.model_management
    return bool(size + management.minimum_inference_memory() <= management.get_total_memory(device))


def load_whole(patchers: list[Any]) -> None:
    """Have the host load these models now, every plain one to its last weight. A full device raises."""
    load_models_gpu(patchers, force_full_load=True)


def injects(patcher: Any) -> bool:
    """Whether nodes put layers of their own into this model when it is loaded, as a LoRA in bypass mode does."""
    return bool(patcher.injections)


def patches_of(patcher: Any) -> tuple[Any, list[Any]]:
    """What tells apart the weights that patches make of one model; and all other patches of it."""
    others = [patcher.object_patches, patcher.weight_wrapper_patches, patcher.injections]
    return patcher.patches_uuid, others


def models_in_patches(patcher: Any) -> list[Any]:
    """The patchers of models that patches bring along."""
    return list(patcher.model_patches_models())


@contextmanager
def replaced_model_options(patcher: Any, options: dict) -> Iterator[None]:
    """Within the block, the host finds other patches on a MODEL: it loads and moves those."""
    before = patcher.model_options
    patcher.model_options = options
    try:
        yield
    finally:
        patcher.model_options = before


def compute_dtype(base_model: Any) -> torch.dtype:
    """The dtype that a denoiser computes in, whatever its weights are stored in."""
    return base_model.manual_cast_dtype or base_model.get_dtype()


def casts_weights_by_hand(base_model: Any) -> bool:
    """Whether the host casts a denoiser's weights at every use, since they are stored in another dtype."""
    return base_model.manual_cast_dtype is not None


def device_count(model: Any) -> int:
    """Over how many devices the host spreads a MODEL."""
    return 1 + len(model.get_additional_models_with_key("multigpu"))


def unload_idle(guider: Any) -> int:
    """Unload from the device every model that this run does not need; returns how many there were."""
    used = [guider.model_patcher, *guider.loaded_models]
    used += [part for patcher in used for part in patcher.model_patches_models()]
    keep = [_LoadedModel(patcher) for patcher in used]
    return len(_free_memory(1e32, guider.model_patcher.load_device, keep))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the system, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    ask = getattr(comfy.model_management, "is_oom", None)  # newer than the oldest host
    if ask is not None and ask(error):
        return True
    # what processors and Apple's GPUs raise instead
    text = str(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in text or "out of memory" in text)


# --- differentiation --------------------------------------------------------------------------------------------

# Rotary embeddings of the host's library of kernels. Its fused operations have no backward pass. Newer hosts go round
# some of them while they train (not round those of Cosmos Predict 2, Anima, Ernie and JoyImage), 0.9.2 round none.
_ROTARY = ("apply_rope", "apply_rope_split_half", "rms_rope", "rms_rope_split_half")


def _give_a_backward(name: str, plain: Callable) -> None:
    """Register the derivative of an operation of that library: the one of the same thing in plain torch.

    It adds what was missing, for the whole process; what an operation computes stays as it is.
    """

    def keep(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(inputs[i] for i in ctx.places))

    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        inputs: list[Any] = list(ctx.others)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            inputs[place] = tensor.detach().requires_grad_(ctx.needs_input_grad[place])
        wanted = [i for i in ctx.places if ctx.needs_input_grad[i]]
        with torch.enable_grad():
            results = plain(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        found = torch.autograd.grad(results, [inputs[i] for i in wanted], cotangents, allow_unused=True)
        gradients: list[Tensor | None] = [None] * len(inputs)
        for place, gradient in zip(wanted, found, strict=True):
            gradients[place] = gradient
        return tuple(gradients)

    torch.library.register_autograd(f"comfy_kitchen::{name}", backward, setup_context=keep)


for _base in _ROTARY:
    for _name in (_base, _base + "1"):
        if hasattr(plain_rotary, _name) and hasattr(torch.ops.comfy_kitchen, _name):
            # newer libraries have operations in place, for which none can be registered
            with suppress(RuntimeError):
                _give_a_backward(_name, getattr(plain_rotary, _name))


@contextmanager
def training_operations() -> Iterator[None]:
    """Within the block, the host's operations take versions with a backward pass. Its switches are global.

    One asks for such versions. The other, of hosts that compile models by themselves, keeps that from reusing memory that
    a backward pass still reads. Older hosts lack one or both.
    """
    switches = ((comfy.model_management, "in_training"), (comfy.cli_args.args, "disable_comfy_compiler"))
    before = [(owner, name, getattr(owner, name)) for owner, name in switches if hasattr(owner, name)]
    try:
        for owner, name, _ in before:
            setattr(owner, name, True)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


# What modules of the host, and of other packs, call the attention that was chosen at start.
_CHOSEN_ATTENTION = ("optimized_attention", "optimized_attention_masked")


@contextmanager
def torch_attention() -> Iterator[None]:
    """Within the block, every module that calls the chosen attention calls torch's, which has a backward.

    An override in the model options reaches only calls that pass these, and PixArt, HunyuanDiT, Ernie and others have calls
    that do not. The kernels of sage, flash and comfy-kitchen have no backward there: a whole branch would be missing.
    """
    places = [
        (vars(module), name, vars(module)[name])
        for module in list(sys.modules.values())
        for name in _CHOSEN_ATTENTION
        if isinstance(module, ModuleType) and callable(vars(module).get(name))
    ]
    try:
        for table, name, _ in places:
            table[name] = attention_pytorch
        yield
    finally:
        for table, name, chosen in places:
            table[name] = chosen


def decode(vae: Any, latent: Tensor) -> Tensor:
    """Decode latent (1, C, ...), in the VAE's own scale, to (1, 3, ...) in [0, 1], differentiably.

    The VAE's own decode falls back to tiles under inference mode when memory is short; its parts do not.
    """
    pixels = vae.first_stage_model.decode(latent.to(vae.vae_dtype).to(vae.device))
    pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    # clone: the host's last step works in place, and a pixel-space VAE returns its input
    return vae.process_output(pixels.clone())
