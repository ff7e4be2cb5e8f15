"""What research takes from the pack's host layer, in one place: importing this loads the pack."""

from __future__ import annotations

from typing import Any

from research.harness.pack import load_pack
from research.harness.program import Row

load_pack()

from jepa_guidance.host.encoders.host_encoder import (  # noqa: E402
    HostEncoder,
    load_host_encoder,
    use_encoder,
)
from jepa_guidance.host.generators import demo  # noqa: E402
from jepa_guidance.host.gradient import chain  # noqa: E402
from jepa_guidance.host.gradient.autograd import host_differentiable  # noqa: E402
from jepa_guidance.host.gradient.checkpointing import checkpointed  # noqa: E402
from jepa_guidance.host.guidance.patch import apply_guidance  # noqa: E402
from jepa_guidance.host.guidance.schedule import Schedule  # noqa: E402
from jepa_guidance.nodes import guidance_inputs  # noqa: E402

__all__ = [
    "HostEncoder",
    "Schedule",
    "chain",
    "checkpointed",
    "demo",
    "guided",
    "host_differentiable",
    "load_host_encoder",
    "preset_inputs",
    "use_encoder",
]


def preset_inputs(preset: str = "custom", changes: Row | None = None) -> Row:
    """The inputs of the guiding nodes at their defaults, with a preset's in their place, and then `changes`."""
    declared = guidance_inputs.guidance_inputs()
    defaults = {entry.id: entry.default for entry in declared if hasattr(entry, "default")}
    return defaults | guidance_inputs.PRESETS.get(preset, {}) | (changes or {})


def guided(model: Any, vae: Any, encoder: Any, inputs: Row, **others: Any) -> Any:
    """The MODEL as a node with these inputs guides it; `others` replace arguments of apply_guidance."""
    settings = inputs | {"vae": vae, "encoder": encoder}
    arguments = guidance_inputs.chain_of(settings) | others
    return apply_guidance(model, schedule=guidance_inputs.schedule_of(settings), **arguments)
