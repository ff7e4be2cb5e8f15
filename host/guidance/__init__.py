"""The MODEL patch that guides any sampler.

patch.py, config.py, usual.py       apply_guidance by an encoder, its settings, what novelty compares with
self_guided.py                      self-guided minority sampling, which needs no encoder
minority_prompt.py, prompt_run.py   MinorityPrompt, which learns a token of the prompt
attachment.py, brought.py, guidance.py, refusals.py   what a MODEL is patched with, and what is refused
guided_run.py, shift.py, schedule.py   one guided sampler call; which steps move, and how far
preparation.py, memory_plan.py      loading what a run differentiates; the way that fits in memory
sampler_probe.py, dry_run.py, refused_samplers.py, guided_model.py   how a sampler calls the model, and shifting its state
model_calls.py, patch_state.py      extra model calls that other nodes' patches must not notice
trace.py, report.py, notes.py, progress.py   what a run did, shown on the page and saved with the image
"""
