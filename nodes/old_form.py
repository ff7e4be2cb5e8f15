"""Graphs saved when the guiding nodes had their technical inputs on them: JEPAGuidanceSettings takes these over.

Node ids stayed, so a replacement of nodes cannot read them. Prompts are rewritten here, before the host looks at them, and
saved workflows by web/js/old_form.js, both from OLD_FORM.
"""

from collections.abc import Mapping
from typing import Any

from ..host.options import (
    AUTO,
    COLD,
    DENOISER_CONSTANT,
    FULL,
    ONE_CALL,
    SCORE,
    TARGETS,
    THROUGH_DENOISER,
    TINY_OR_SMALL,
    TRACKED,
    TRACKED_HALF,
    TWO_CALLS,
)
from .guidance_presets import BALANCED, CUSTOM, FAITHFUL, SUBTLE

GUIDING = ("JEPAGuidedKSampler", "JEPAGuidance", "JEPAStrengthStrip")
_FAITHFUL = {
    "rank": 9,
    "oversampling": 2,
    "power_iterations": 2,
    "gradient_path": THROUGH_DENOISER,
    "decoder": FULL,
    "denoiser_calls": TWO_CALLS,
    "checkpointing": True,
    "range_finder": COLD,
}
_FAST = {
    "rank": 9,
    "oversampling": 1,
    "power_iterations": 1,
    "gradient_path": DENOISER_CONSTANT,
    "decoder": TINY_OR_SMALL,
    "denoiser_calls": ONE_CALL,
    "checkpointing": False,
    "range_finder": TRACKED_HALF,
}
# order: the widgets of guidance in the order of their values in a saved workflow, strength or strengths first.
# defaults: of inputs that came later than the first graphs. presets: what each was called, and what became of it: a
# preset of today, and the settings that it stood for where there is none.
OLD_FORM: dict[str, Any] = {
    "order": [
        *("strength", "start_percent", "end_percent", "interval", "rank", "oversampling", "power_iterations"),
        *("schedule", "normalisation", "gradient_path", "strength_rule", "fit", "antialias", "decoder"),
        *("denoiser_calls", "checkpointing", "range_finder", "preset", "criterion", "target", "apart"),
        *("smooth", "keep_appearance", "agree"),
    ],
    # what presets set, which counts only with custom
    "set": list(_FAST),
    "defaults": {
        "decoder": FULL,
        "denoiser_calls": TWO_CALLS,
        "checkpointing": False,
        "range_finder": TRACKED,
        "preset": CUSTOM,
        "criterion": SCORE,
        "target": next(iter(TARGETS)),
        "apart": False,
        "smooth": False,
        "keep_appearance": False,
        "agree": False,
    },
    "presets": {
        CUSTOM: [CUSTOM, {}],
        AUTO: [BALANCED, {}],
        "balanced": [SUBTLE, {}],
        FAITHFUL: [CUSTOM, _FAITHFUL],
        "fast": [CUSTOM, _FAST],
    },
}
FACE = ("strength", "start_percent", "end_percent", "preset", "target", "apart")
_MOVED = [name for name in OLD_FORM["order"] if name not in FACE]


def read_old_prompt(queued: dict[str, Any]) -> dict[str, Any]:
    """A queue item with the guiding nodes of the old form in today's; returns it.

    Args:
        queued: what was sent to the host, see notes.add_kept. A shared workflow may hold anything there.
    """
    prompt = queued.get("prompt")
    if isinstance(prompt, dict):
        for node in [one for one in prompt.values() if _is_old(one)]:
            inputs = OLD_FORM["defaults"] | node["inputs"]
            preset, stood_for = OLD_FORM["presets"].get(str(inputs["preset"]), (inputs["preset"], {}))
            settings = {name: inputs.pop(name) for name in _MOVED if name in inputs} | stood_for
            name = _free(prompt)
            node["inputs"] = inputs | {"preset": preset, "settings": [name, 0]}
            prompt[name] = {"class_type": "JEPAGuidanceSettings", "inputs": settings}
    return queued


def _is_old(node: Any) -> bool:
    """Whether this is a guiding node with an input that it no longer has."""
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    if not isinstance(inputs, dict) or node.get("class_type") not in GUIDING:
        return False
    return "rank" in inputs


def _free(prompt: Mapping[str, Any]) -> str:
    """A node id that the prompt has not."""
    number = len(prompt) + 1
    while str(number) in prompt:
        number += 1
    return str(number)
