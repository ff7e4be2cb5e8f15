"""The mathematics of JEPA-guided minority sampling (arXiv 2605.24631), in torch and transformers.

It depends on no host application and can be used from a script or a notebook.
"""

from .checkpoint import EncoderFileError
from .encoder import Encoder
from .gradient import Rarity, RarityGradient
from .jacobian import JacobianOperator
from .loading import load_encoder
from .novelty import Novelty, novelty_gradient
from .precision import differentiable, full_precision, has_fast_bfloat16
from .reference import Reference, ReferenceFileError, load_reference, save_reference
from .score import jepa_score, patch_scores

__all__ = [
    "Encoder",
    "EncoderFileError",
    "JacobianOperator",
    "Novelty",
    "Rarity",
    "RarityGradient",
    "Reference",
    "ReferenceFileError",
    "differentiable",
    "full_precision",
    "has_fast_bfloat16",
    "jepa_score",
    "load_encoder",
    "load_reference",
    "novelty_gradient",
    "patch_scores",
    "save_reference",
]
