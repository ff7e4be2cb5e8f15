"""The host adapter: the one place that knows ComfyUI's internals.

internals.py        everything that is taken from the host, checked at import: the one module that imports it
folders.py          model folder, names in menus, files behind them
encoders.py         what a JEPA_ENCODER link carries: one encoder or a weighted set, loaded once
models.py           what is refused: models that do not fit each other, or that cannot be differentiated as loaded
residency.py        weights as a gradient needs them: whole, in place, in the dtype that is computed in
gradients.py        differentiating the host's modules inside its inference mode
gradient_check.py   a gradient beside a difference, once for each network
patch_state.py      what patches of other nodes remember, put back after calls that are not the sampler's
decoders.py         clean latent -> image: the VAE, the VAE at the encoder's resolution, a tiny decoder
checkpointing.py    less kept for the backward pass, computed again
latent_gradient.py  the chain image -> latent -> noisy latent
samplers.py         which model call of a sampler begins which step, and where it keeps its state
steps.py            which steps are guided; sizes of the shift
guidance.py         the MODEL patch that guides any sampler
economy.py          what a run gives up, and in which order, when memory runs out
trace.py            what a run did, for programs and for people
scoring.py          the scores of a batch of images
sampling.py         the stock sampler, and messages to the page
demo_model.py       the small generator of the demo
"""
