"""The chain image -> latent -> noisy latent, and how the host's networks are differentiated.

estimate.py, linearise.py    from a gradient at the clean estimate to one at x; one vector-Jacobian product
chain.py, self_guidance.py   the gradient at the estimate: of a score, stage by stage; of what noising again changes
prompt_token.py              the gradient at a token of the prompt, through the text encoder
decoders.py                  clean latent -> image: full, at the encoder's resolution, tiny
denoiser.py, differentiable.py   the denoiser inside a backward pass; inference mode, in-place writes
ways.py, lean.py, checkpointing.py, rows.py   less memory for the same gradient; one image of a batch
ordered.py                   backward passes on CUDA that add up in the same order each time
compiled.py                  running compiled networks as they were written
residency.py                 plain copies of streamed weights, which a backward pass needs
gradient_check.py, block_count.py   finding wrong gradients: central differences, skipped blocks
random_state.py              leaving the global random states alone
"""
