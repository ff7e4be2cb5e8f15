"""D-JEPA (arXiv 2410.03755): a JEPA that generates images, token by token."""

from .config import DJEPAConfig, DJEPASizeError, published_config
from .denoising import Denoiser, DiffusionDenoiser, FlowDenoiser, denoiser_of
from .files import DJEPAFileError, LoadedDJEPA, load_djepa, load_tokenizer, save_djepa
from .losses import Draws, jepa_loss, target_features, training_draws, training_losses
from .masking import masked_counts, random_masked_count, random_orders
from .model import DJEPA, to_latents, to_tokens
from .sampling import sample_tokens
from .tokenizer import Tokenizer

__all__ = [
    "DJEPA",
    "DJEPAConfig",
    "DJEPAFileError",
    "DJEPASizeError",
    "Denoiser",
    "DiffusionDenoiser",
    "Draws",
    "FlowDenoiser",
    "LoadedDJEPA",
    "Tokenizer",
    "denoiser_of",
    "jepa_loss",
    "load_djepa",
    "load_tokenizer",
    "masked_counts",
    "published_config",
    "random_masked_count",
    "random_orders",
    "sample_tokens",
    "save_djepa",
    "target_features",
    "to_latents",
    "to_tokens",
    "training_draws",
    "training_losses",
]
