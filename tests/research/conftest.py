"""The small random encoder and the dense Jacobian of the core's tests, for the benchmarks' references."""

from tests.core.conftest import dense, encoder, images, save_model

__all__ = ["dense", "encoder", "images", "save_model"]
