"""The chain image -> latent -> noisy latent, and what differentiating the host's networks takes."""
