"""What research takes from the pack's host layer, in one place: importing this loads the pack."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from jepa_core.novelty import Distance, Nearest
from research.harness.pack import load_pack
from research.harness.program import Row

load_pack()

from comfy_api.latest._io import HiddenHolder as HiddenHolder  # noqa: E402
from jepa_guidance.host.encoders.host_encoder import AnyEncoder as AnyEncoder  # noqa: E402
from jepa_guidance.host.encoders.host_encoder import HostEncoder as HostEncoder  # noqa: E402
from jepa_guidance.host.encoders.host_encoder import combined as combined  # noqa: E402
from jepa_guidance.host.encoders.host_encoder import load_host_encoder as load_host_encoder  # noqa: E402
from jepa_guidance.host.encoders.host_encoder import use_encoder as use_encoder  # noqa: E402
from jepa_guidance.host.generators import demo as demo  # noqa: E402
from jepa_guidance.host.gradient import chain as chain  # noqa: E402
from jepa_guidance.host.gradient import estimate as estimate  # noqa: E402
from jepa_guidance.host.gradient import image_gradient as image_gradient  # noqa: E402
from jepa_guidance.host.gradient.chain import LatentGradient as LatentGradient  # noqa: E402
from jepa_guidance.host.gradient.decoders import LatentDecoder as LatentDecoder  # noqa: E402
from jepa_guidance.host.gradient.decoders import choose_decoder as choose_decoder  # noqa: E402
from jepa_guidance.host.gradient.decoders import shrink as shrink  # noqa: E402
from jepa_guidance.host.gradient.differentiable import host_differentiable as host_differentiable  # noqa: E402
from jepa_guidance.host.gradient.estimate import GradientChain as GradientChain  # noqa: E402
from jepa_guidance.host.gradient.image_gradient import Guide as Guide  # noqa: E402
from jepa_guidance.host.gradient.image_gradient import ImageGradient as ImageGradient  # noqa: E402
from jepa_guidance.host.gradient.image_gradient import ScoreGradient as ScoreGradient  # noqa: E402
from jepa_guidance.host.gradient.lean import saving_memory as saving_memory  # noqa: E402
from jepa_guidance.host.gradient.ways import CONSTANT as CONSTANT  # noqa: E402
from jepa_guidance.host.gradient.ways import THROUGH as THROUGH  # noqa: E402
from jepa_guidance.host.gradient.ways import Way as Way  # noqa: E402
from jepa_guidance.host.guidance.attachment import guidance_of  # noqa: E402
from jepa_guidance.host.guidance.memory_plan import PlannedMemory as PlannedMemory  # noqa: E402
from jepa_guidance.host.guidance.patch import apply_guidance  # noqa: E402
from jepa_guidance.host.guidance.schedule import Schedule as Schedule  # noqa: E402
from jepa_guidance.host.guidance.self_guided import apply_self_guidance as apply_self_guidance  # noqa: E402
from jepa_guidance.host.guidance.self_guided import self_guided_schedule as self_guided_schedule  # noqa: E402
from jepa_guidance.host.guidance.trace import Trace as Trace  # noqa: E402
from jepa_guidance.host.memory.count import LiveStorages as LiveStorages  # noqa: E402
from jepa_guidance.host.memory.count import Peak as Peak  # noqa: E402
from jepa_guidance.host.memory.count import fused_attention as fused_attention  # noqa: E402
from jepa_guidance.host.memory.count import peak_of as peak_of  # noqa: E402
from jepa_guidance.host.memory.count import peak_of_backward as peak_of_backward  # noqa: E402
from jepa_guidance.host.options import ENCODER_RESOLUTION as ENCODER_RESOLUTION  # noqa: E402
from jepa_guidance.host.options import NOVELTY as NOVELTY  # noqa: E402
from jepa_guidance.host.options import SCORE as SCORE  # noqa: E402
from jepa_guidance.host.scoring import answers as answers  # noqa: E402
from jepa_guidance.host.scoring.reference import make_reference as make_reference  # noqa: E402
from jepa_guidance.host.scoring.reference import seen_as as seen_as  # noqa: E402
from jepa_guidance.host.search.appraisal import Appraiser as Appraiser  # noqa: E402
from jepa_guidance.host.search.config import SearchConfig as SearchConfig  # noqa: E402
from jepa_guidance.host.search.search import apply_search as apply_search  # noqa: E402
from jepa_guidance.host.search.selection import plan_looks as plan_looks  # noqa: E402
from jepa_guidance.host.variety.cads import Cads as Cads  # noqa: E402
from jepa_guidance.host.variety.patch import apply_boost as apply_boost  # noqa: E402
from jepa_guidance.host.variety.patch import apply_cads as apply_cads  # noqa: E402
from jepa_guidance.nodes import guidance_inputs, guidance_settings  # noqa: E402
from jepa_guidance.nodes.guidance_presets import PRESETS  # noqa: E402
from jepa_guidance.nodes.guidance_presets import RANGE_FINDERS as RANGE_FINDERS  # noqa: E402
from jepa_guidance.nodes.old_form import OLD_FORM  # noqa: E402
from jepa_guidance.nodes.rank_images import JEPARankImages as JEPARankImages  # noqa: E402
from jepa_guidance.nodes.rarity_map import JEPARarityMap as JEPARarityMap  # noqa: E402
from jepa_guidance.nodes.score_image import JEPAScoreImage as JEPAScoreImage  # noqa: E402

# How the gradient is computed, as in most figures: by a preset of today, and by two that once were.
WAYS: dict[str, Row] = {
    "subtle": PRESETS["subtle"],
    "faithful": OLD_FORM["presets"]["faithful"][1],
    "fast": OLD_FORM["presets"]["fast"][1],
}


def preset_inputs(preset: str = "custom", changes: Row | None = None) -> Row:
    """The inputs of the guiding nodes and their settings at the defaults, then what a preset sets, then `changes`.

    Args:
        preset: of WAYS, or "custom".
    """
    declared = [*guidance_inputs.guidance_inputs(), *guidance_settings.settings_inputs()]
    defaults = {entry.id: entry.default for entry in declared if getattr(entry, "default", None) is not None}
    return defaults | WAYS.get(preset, {}) | {"preset": "custom"} | (changes or {})


def inputs_of(pairs: Sequence[str]) -> Row:
    """NAME=VALUE of the guiding nodes' inputs, each as the kind of value that its default is. Raises SystemExit.

    A preset is none of them: it would override what an arm sets.
    """
    known, found = preset_inputs(), {}
    del known["preset"]
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in known:
            raise SystemExit(f"--inputs {name}: no such input; there are {', '.join(known)}")
        kind = type(known[name])
        try:
            found[name] = {"True": True, "False": False}[text] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise SystemExit(f"--inputs {pair}: {name} is {kind.__name__}, such as {known[name]}") from None
    return found


class OwnGradient(GradientChain):
    """A function in place of the chain: (denoise, x, sigma, base model) -> ScoreGradient."""

    def __init__(
        self,
        function: Callable[..., ScoreGradient],
        way: Way = CONSTANT,
    ) -> None:
        self.function = function
        self.way = way

    def __call__(
        self, denoise: Callable[[Tensor], Tensor], x: Tensor, sigma: Tensor, base_model: Any
    ) -> ScoreGradient:
        return self.function(denoise, x, sigma, base_model)


def guided(
    model: Any,
    vae: Any,
    encoder: Any,
    inputs: Row,
    gradient: Callable[..., ScoreGradient] | None = None,
    form: Callable[[Tensor], Distance] = Nearest,
    image: Callable[[ImageGradient], ImageGradient] | None = None,
    **others: Any,
) -> Any:
    """The MODEL as a node with these inputs guides it, or guided by another gradient, see OwnGradient.

    Args:
        form: how novelty measures distance, see GuidanceConfig.
        image: changes what is descended at the decoded image.
        others: of apply_guidance, such as reference.
    """
    config = replace(guidance_inputs.config_of(inputs), form=form)
    own = (
        OwnGradient(gradient, Way(config.through_denoiser, checkpointing=config.checkpointing))
        if gradient
        else None
    )
    made = apply_guidance(model, vae, encoder, config, chain=own, **others)
    if image is None:
        return made
    chain = guidance_of(made).chain
    other = replace(chain, image=image(chain.image))
    return apply_guidance(model, vae, encoder, config, chain=other, **others)
