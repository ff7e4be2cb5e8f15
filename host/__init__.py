"""The host adapter: the one layer that knows ComfyUI. Imports between its rooms go down this list.

comfy/        everything that is taken from the host, checked at import: the one room that imports it
gradient/     the chain image -> latent -> noisy latent, and what differentiating the host's networks takes
encoders/     what a JEPA_ENCODER link carries, and the files behind the names in menus
scoring/      scores of images, and where in an image its rarity lies
generators/   models that draw: the demo generator and D-JEPA, as models of the host
guidance/     the MODEL patch that guides any sampler
drawing/      pictures and charts
"""
