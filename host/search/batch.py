"""Candidates as the rows of a latent."""

import torch


def batch_of(latent: dict, candidates: int) -> dict:
    """A LATENT with one row for each candidate.

    Of an empty latent only the size counts; an image is the same for all candidates; a batch of as many images as
    candidates stays as it is.

    Raises:
        ValueError: no image, or another number of them.
    """
    samples = latent["samples"]
    rest = {name: value for name, value in latent.items() if name != "batch_index"}
    if not len(samples):
        raise ValueError("latent_image holds no image")
    if len(samples) == candidates:
        return latent
    if not samples.any():
        return {
            **rest,
            "samples": torch.zeros_like(samples[:1]).repeat(candidates, *[1] * (samples.ndim - 1)),
        }
    if len(samples) == 1:
        return {**rest, "samples": samples.repeat(candidates, *[1] * (samples.ndim - 1))}
    raise ValueError(
        f"latent_image holds {len(samples)} images for {candidates} candidates; give one image, or one for each candidate"
    )
