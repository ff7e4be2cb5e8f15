"""The host adapter: the only layer that knows ComfyUI. A folder may import only from those above it in this list.

comfy/        everything taken from ComfyUI, checked at import; the only folder that imports it
gradient/     the chain image -> latent -> noisy latent, and how the host's networks are differentiated
memory/       what a guided step takes, counted before it runs, and the way that fits
encoders/     what a JEPA_ENCODER link carries, and the files behind the names in menus
scoring/      scores of images, and maps of where in an image the rarity is
generators/   the demo generator and D-JEPA, as models of the host
variety/      more variety from one prompt: noise on the conditioning, a boosted start
guidance/     the MODEL patch that guides any sampler
search/       the rarest of many candidates, without a gradient
drawing/      pictures and charts

options.py, next to them, has the option strings that users see.
"""
