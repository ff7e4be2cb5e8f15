"""The host adapter: the one place that knows ComfyUI's internals.

internals.py        everything that is taken from the host, checked at import: the one module that imports it
folders.py          model folder, names in menus, files behind them
encoders.py         what a JEPA_ENCODER link carries: one encoder or a weighted set, loaded once
models.py           models as a gradient needs them: weights in place, nothing streamed; what is refused
gradients.py        differentiating the host's modules inside its inference mode
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
