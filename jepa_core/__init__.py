"""The mathematics of JEPA-guided minority sampling (arXiv 2605.24631), in torch and transformers.

It depends on no host application and can be used from a script or a notebook.
"""

from .checkpoint import EncoderFileError
from .encoder import Encoder
from .gradient import Rarity, RarityGradient
from .jacobian import JacobianOperator
from .loading import load_encoder
from .precision import differentiable, full_precision, has_fast_bfloat16
from .score import jepa_score, patch_scores

__all__ = [
    "Encoder",
    "EncoderFileError",
    "JacobianOperator",
    "Rarity",
    "RarityGradient",
    "differentiable",
    "full_precision",
    "has_fast_bfloat16",
    "jepa_score",
    "load_encoder",
    "patch_scores",
]
