"""The pack's own link types."""

from comfy_api.latest import io

JEPAEncoder = io.Custom("JEPA_ENCODER")
JEPATrace = io.Custom("JEPA_TRACE")
DJEPAModel = io.Custom("DJEPA")
JEPAReference = io.Custom("JEPA_REFERENCE")
JEPAPromptScorer = io.Custom("JEPA_PROMPT_FIT")
JEPASettings = io.Custom("JEPA_GUIDANCE_SETTINGS")
