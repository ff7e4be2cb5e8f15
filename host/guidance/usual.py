"""What novelty and the target compare with: a reference, under the encoders that guide and judge."""

from collections.abc import Iterable, Sequence

from ...jepa_core import Reference
from ...jepa_core.novelty import Distance, distances_within
from ...jepa_core.reference import NO_SCORE, scoring_of
from ..encoders.host_encoder import AnyEncoder, HostEncoder
from ..gradient.image_gradient import Guide, Judge
from ..gradient.scale import Scale, Target
from ..options import BOTH, NOVELTY, SCORE
from ..scoring.reference import check_comparable, part_of, seen_as
from .config import Form, GuidanceConfig

FEWEST = 2  # pictures, for distances among them


def check_usual(config: GuidanceConfig, encoder: AnyEncoder, reference: Reference | None) -> None:
    """Refuse settings that lack what they compare with, before anything is loaded.

    Raises:
        ValueError: names the input and the fix.
    """
    if config.criterion == SCORE and config.apart:
        raise ValueError("apart is a kind of novelty; set criterion to novelty or both, or turn apart off")
    if config.criterion != SCORE and reference is None and not config.apart:
        raise ValueError(
            f"criterion {config.criterion} has nothing to compare with; connect a reference, or turn apart on"
        )
    if reference is None:
        if config.target is not None:
            raise ValueError("target is in units of a reference; connect one, or set target to none")
        return
    check_comparable(reference, encoder, seen_as(config.fit, config.antialias))
    if config.target is not None and len(reference) < (fewest := round(1 / config.target)):
        raise ValueError(
            f"target 1 in {fewest} needs a reference of at least {fewest} different pictures, this one has "
            f"{len(reference)}; add pictures, or choose a nearer target"
        )
    if config.target is not None and config.criterion != NOVELTY and reference.how["mode"] == NO_SCORE:
        raise ValueError(
            f"target needs the scores of the reference for criterion {config.criterion}; make the reference with a mode "
            "other than 'no scores'"
        )


def guides_of(encoder: AnyEncoder, config: GuidanceConfig, reference: Reference | None) -> list[Guide]:
    """The guides, which know their distance from the reference."""
    return [
        Guide(member.encoder.encoder, member.weight, _distance(reference, member.encoder, config.form))
        for member in encoder.members
    ]


def judges_of(
    judges: Iterable[HostEncoder], config: GuidanceConfig, reference: Reference | None
) -> list[Judge]:
    """The judges; they report novelty where guidance raises it and the reference knows them."""
    known = reference if config.criterion == NOVELTY else None
    return [Judge(one.encoder, _distance(known, one, config.form)) for one in judges]


def target_of(
    config: GuidanceConfig,
    encoder: AnyEncoder,
    judges: Sequence[HostEncoder],
    reference: Reference | None,
) -> Target | None:
    """Measures where an image lies in the reference; by the judges that the reference knows, else by the guides.

    None without a reference, or with one of too few pictures.
    """
    if reference is None or len(reference) < FEWEST:
        return None
    measuring = [one for one in judges if part_of(reference, one)]
    measuring = measuring or [member.encoder for member in encoder.members]
    criteria = [SCORE, NOVELTY] if config.criterion == BOTH else [config.criterion]
    if reference.how["mode"] == NO_SCORE:
        criteria = [one for one in criteria if one != SCORE]
    if not criteria:
        return None
    scales = [_scale(one, reference, criteria, config.form) for one in measuring]
    return Target(scales, criteria, config.target, typical=config.schedule.strength < 0)


def _distance(reference: Reference | None, encoder: HostEncoder, form: Form) -> Distance | None:
    part = part_of(reference, encoder) if reference else None
    return form(part.embeddings) if part else None


def _scale(encoder: HostEncoder, reference: Reference, criteria: Sequence[str], form: Form) -> Scale:
    part = part_of(reference, encoder)
    assert part is not None
    rarities = {}
    if NOVELTY in criteria:
        rarities[NOVELTY] = distances_within(part.smoothed, form=form).sort().values.tolist()
    if SCORE in criteria and part.scores is not None:
        rarities[SCORE] = (-part.scores).sort().values.tolist()
    mode = scoring_of(reference.how["mode"]) if SCORE in rarities else {}
    return Scale(encoder.encoder, form(part.smoothed), rarities, mode)
