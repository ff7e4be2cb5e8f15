"""The gradient of every criterion through decoder and preprocessing, compared with finite differences in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from jepa_guidance.host.gradient.chain import LatentGradient
from jepa_guidance.host.gradient.decoders import LatentDecoder, choose_decoder, decoded
from jepa_guidance.host.gradient.image_gradient import Guide, ImageGradient, Judge, ScoreGradient, joined
from jepa_guidance.host.gradient.scale import RAMP, UNSEEN, Scale, Target
from jepa_guidance.host.options import BOTH, ENCODER_RESOLUTION, NOVELTY, SCORE
from torch import Tensor

from jepa_core import Encoder, RarityGradient, jepa_score, load_encoder
from jepa_core.novelty import Nearest, distances_within, embed
from jepa_core.views import COUNT, views
from research.harness.forms import FORMS
from tests.combinations import covering
from tests.core.conftest import random_model
from tests.host.gradient.test_chain import RARITY, directional, plain_novelty, plain_parts, random_like

LATENT = torch.empty(1, 4, 8, 8, dtype=torch.float64)


@pytest.fixture
def vae(tiny):
    return tiny.make_vae(torch.float64)


@pytest.fixture(scope="module")
def other_encoder(tmp_path_factory) -> Encoder:
    """A second guide of another architecture, with 16 x 16 pixel input."""
    folder = tmp_path_factory.mktemp("ijepa")
    random_model("ijepa", hidden_size=24).save_pretrained(folder)
    return load_encoder(folder, dtype=torch.float64, image_size=16)


@pytest.fixture
def encoders(tiny, other_encoder) -> list[Encoder]:
    return [tiny.make_encoder(torch.float64).encoder, other_encoder]


def image_of(vae: Any, latent: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return decoded(vae, latent)


def usual_images(vae: Any, count: int = 9) -> list[Tensor]:
    return [image_of(vae, random_like(LATENT, 100 + seed)) for seed in range(count)]


def points_of(vae: Any, encoder: Encoder) -> Tensor:
    """The embeddings of random images of the decoder."""
    return torch.cat([embed(encoder, encoder.preprocess(image)) for image in usual_images(vae)])


def chain_of(vae: Any, guides: list[Guide], **settings: Any) -> LatentGradient:
    return LatentGradient(
        LatentDecoder(vae), ImageGradient(guides, RarityGradient(**RARITY, tracked=False), **settings)
    )


def sizes_of_parts(vae: Any, guides: list[Guide], image: Tensor, others: Any, settings: dict) -> list[float]:
    """The root mean square of the gradient of each part alone, with respect to the decoded image."""
    found = []
    criteria = [SCORE, NOVELTY] if settings["criterion"] == BOTH else [settings["criterion"]]
    for number, guide in enumerate(guides):
        near = None if others is None else [others[number]]
        for criterion in criteria:
            rarity = RarityGradient(**RARITY, tracked=False)
            alone = ImageGradient([guide], rarity, **settings | {"criterion": criterion})
            gradient = alone(image, 0, near).gradient
            found.append(gradient.square().mean().sqrt().item())
    return found


SETTINGS: list[dict[str, Any]] = [
    {"criterion": NOVELTY},
    {"criterion": NOVELTY, "smooth": True},
    {"criterion": NOVELTY, "apart": True},
    {"criterion": NOVELTY, "apart": True, "reference": False},
    {"criterion": SCORE, "smooth": True},
    {"criterion": BOTH},
    {"criterion": BOTH, "smooth": True, "apart": True},
]


def named(value: Any) -> str | None:
    """The id of settings; None of what else a test takes."""
    settings = value.items() if isinstance(value, dict) else ()
    return " ".join(f"{name}={one}" for name, one in settings) or None


@pytest.mark.parametrize(("settings", "count"), covering(SETTINGS, [1, 2]), ids=named)
def test_the_gradient_of_a_latent_is_the_finite_difference(vae, encoders, settings, count):
    """In a batch of three, each with the others held constant; parts are scaled to the same size before they are added."""
    settings = dict(settings)
    referred = settings.pop("reference", True)
    points = [points_of(vae, encoder) for encoder in encoders[:count]] if referred else None
    weights = [1.0] if count == 1 else [0.7, 0.3]
    guides = [
        Guide(encoder, weight, Nearest(points[number]) if points else None)
        for number, (encoder, weight) in enumerate(zip(encoders, weights, strict=False))
    ]
    latents = torch.cat([random_like(LATENT, seed) for seed in (1, 2, 3)])
    found = chain_of(vae, guides, **settings).of_latent(latents)
    images = [image_of(vae, one) for one in latents.split(1)]
    rows = [[embed(encoder, encoder.preprocess(image)) for image in images] for encoder in encoders[:count]]
    for index in range(3):
        others = [torch.cat([*own[:index], *own[index + 1 :]]) for own in rows]
        near = others if settings.get("apart") else None
        plain = {"points": points, "others": near, "smooth": settings.get("smooth", False)}

        def parts_at(latent: Tensor, plain: dict = plain) -> list[float]:
            return plain_parts(image_of(vae, latent), guides, settings["criterion"], **plain)

        at = parts_at(latents[index, None])
        # a part for each guide and criterion
        of_guides = [
            at[number * len(at) // count : (number + 1) * len(at) // count] for number in range(count)
        ]
        if settings["criterion"] != NOVELTY:
            score = sum(weight * own[0] for weight, own in zip(weights, of_guides, strict=True))
            assert found.score[index].item() == pytest.approx(score, rel=1e-8)
            assert found.each[:, index].tolist() == pytest.approx([own[0] for own in of_guides], rel=1e-8)
        if settings["criterion"] != SCORE:
            novelty = -sum(weight * own[-1] for weight, own in zip(weights, of_guides, strict=True))
            assert found.novelty[index].item() == pytest.approx(novelty, rel=1e-8)
        sizes = [1.0] * len(at)
        factors = [1.0]
        if len(at) > 1:
            sizes = sizes_of_parts(vae, guides, images[index], near, settings)
            factors = [weight for weight in weights for _ in range(len(at) // count)]
        direction = random_like(LATENT, 20 + index)
        slopes = [
            directional(lambda z, part=part: parts_at(z)[part], latents[index, None], direction, 1e-5)
            for part in range(len(at))
        ]
        expected = sum(
            factor / size * slope for factor, size, slope in zip(factors, sizes, slopes, strict=True)
        )
        product = (found.gradient[index] * direction[0]).sum().item()
        assert product == pytest.approx(expected, rel=2e-3, abs=1e-4 * abs(expected) + 1e-7)
    assert found.gradient.abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_of_every_form_is_the_finite_difference(vae, encoders, form):
    encoder = encoders[0]
    distance = FORMS[form](points_of(vae, encoder))
    latent = random_like(LATENT, 1)

    def value(z: Tensor) -> float:
        return -distance(embed(encoder, encoder.preprocess(image_of(vae, z)))).item()

    found = chain_of(vae, [Guide(encoder, 1.0, distance)], criterion=NOVELTY).of_latent(latent)
    assert found.novelty.item() == pytest.approx(-value(latent), rel=1e-9)
    for seed in (2, 3):
        direction = random_like(latent, seed)
        expected = directional(value, latent, direction, 1e-5)
        product = (found.gradient * direction).sum().item()
        assert product == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_the_gradient_of_a_shrunk_latent_is_the_finite_difference(vae, encoders, fit):
    encoder = encoders[0]
    decoder = choose_decoder(ENCODER_RESOLUTION, vae, None, encoder.image_size, fit)
    points = points_of(vae, encoder)
    image = ImageGradient([Guide(encoder, 1.0, Nearest(points))], criterion=NOVELTY, fit=fit)
    latent = random_like(torch.empty(1, 4, 20, 17, dtype=torch.float64), 1)

    def value(z: Tensor) -> float:
        return -plain_novelty(encoder, encoder.preprocess(image_of(vae, decoder.prepare(z)), fit=fit), points)

    found = LatentGradient(decoder, image).of_latent(latent)
    direction = random_like(latent, 2)
    expected = directional(value, latent, direction, 1e-5)
    assert (found.gradient * direction).sum().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("smooth", [False, True])
def test_a_clip_is_seen_whole(tmp_path, smooth):
    """A V-JEPA 2 guide compares the clip with clips; every frame has a say."""
    random_model("vjepa2", hidden_size=24, num_hidden_layers=1).save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, dtype=torch.float64, image_size=16)
    frames = 5
    clips = encoder.of_clips(frames)
    generator = torch.Generator().manual_seed(0)
    usual = torch.rand(9, frames, 20, 24, 3, generator=generator, dtype=torch.float64)
    points = embed(clips, clips.preprocess(usual))
    video = torch.rand(frames, 20, 24, 3, generator=generator, dtype=torch.float64)
    image = ImageGradient([Guide(encoder, 1.0, Nearest(points))], criterion=NOVELTY, smooth=smooth)

    def value(point: Tensor) -> float:
        seen = [clips.preprocess(view[None]) for view in (views(point) if smooth else [point])]
        return -sum(plain_novelty(clips, x, points) for x in seen) / len(seen)

    found = image(video, 0)
    assert found.gradient.shape == video.shape
    assert found.gradient.abs().amax((1, 2, 3)).min() > 0
    assert found.novelty.item() == pytest.approx(-value(video), rel=1e-9)
    direction = random_like(video, 2)
    expected = directional(value, video, direction, 1e-5)
    assert (found.gradient * direction).sum().item() == pytest.approx(expected, rel=1e-4)


# --- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [SCORE, NOVELTY, BOTH])
def test_a_batch_equals_its_images_one_by_one(vae, encoders, criterion):
    guides = [Guide(encoder, 0.5, Nearest(points_of(vae, encoder))) for encoder in encoders]
    latents = torch.cat([random_like(LATENT, seed) for seed in (1, 2, 3)])
    settings = {"criterion": criterion, "judges": [Judge(encoders[1], guides[1].usual)]}
    together = chain_of(vae, guides, **settings).of_latent(latents)
    for index, latent in enumerate(latents.split(1)):
        alone = chain_of(vae, guides, **settings).of_latent(latent)
        assert torch.equal(together.gradient[index], alone.gradient[0])
        for name in ("each", "judged"):
            assert torch.equal(getattr(together, name)[:, index], getattr(alone, name)[:, 0])
        if criterion != SCORE:
            assert torch.equal(together.novelty[index], alone.novelty[0])


def test_nothing_is_apart_from_itself(vae, encoders):
    """Alone in its batch an image has nothing to be apart from; with a reference that alone counts."""
    latent, usual = random_like(LATENT, 1), Nearest(points_of(vae, encoders[0]))
    lonely = chain_of(vae, [Guide(encoders[0])], criterion=NOVELTY, apart=True).of_latent(latent)
    assert lonely.novelty.item() == 0
    assert not lonely.gradient.any()
    with_apart, without = (
        chain_of(vae, [Guide(encoders[0], 1.0, usual)], criterion=NOVELTY, apart=apart).of_latent(latent)
        for apart in (True, False)
    )
    assert torch.equal(with_apart.gradient, without.gradient)


@pytest.mark.parametrize("agree", [False, True])
def test_alone_in_its_batch_the_other_criterion_is_all_that_counts(vae, encoders, agree):
    latent = random_like(LATENT, 1)
    settings = {"apart": True, "agree": agree}
    both = chain_of(vae, [Guide(encoders[0])], criterion=BOTH, **settings).of_latent(latent).gradient
    score = chain_of(vae, [Guide(encoders[0])], criterion=SCORE).of_latent(latent).gradient
    assert score.any()
    torch.testing.assert_close(both / both.norm(), score / score.norm())


def test_the_order_of_a_batch_does_not_matter_apart(vae, encoders):
    guides = [Guide(encoder, 0.5) for encoder in encoders]
    latents = torch.cat([random_like(LATENT, seed) for seed in range(8)])
    order = torch.tensor([3, 7, 0, 2, 6, 1, 5, 4])
    chain = chain_of(vae, guides, criterion=NOVELTY, apart=True)
    found, shuffled = chain.of_latent(latents), chain.of_latent(latents[order])
    torch.testing.assert_close(shuffled.gradient, found.gradient[order], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shuffled.novelty, found.novelty[order], rtol=1e-9, atol=0)


def test_images_alike_are_not_pushed_anywhere_and_give_no_nan(vae, encoders):
    latents = random_like(LATENT, 1).expand(3, -1, -1, -1)
    found = chain_of(vae, [Guide(encoders[0])], criterion=NOVELTY, apart=True).of_latent(latents)
    assert found.novelty.abs().max() < 1e-6
    assert found.gradient.isfinite().all()


@pytest.mark.parametrize("referred", [False, True])
def test_a_broken_image_spares_those_that_are_apart_from_it(vae, encoders, referred):
    usual = Nearest(points_of(vae, encoders[0])) if referred else None
    latents = torch.cat([random_like(LATENT, seed) for seed in (1, 2, 3)])
    chain = chain_of(vae, [Guide(encoders[0], 1.0, usual)], criterion=NOVELTY, apart=True)
    alone = chain.of_latent(latents[::2])
    latents[1, 0, 0, 0] = torch.nan
    found = chain.of_latent(latents)
    assert found.gradient[1].isnan().any()
    torch.testing.assert_close(found.gradient[::2], alone.gradient, rtol=1e-9, atol=1e-12)


def test_gradients_of_single_images_are_joined_with_all_their_numbers():
    ones = [
        ScoreGradient(
            torch.tensor([float(i)]),
            torch.full((1, 2, 2), float(i)),
            each=torch.full((3, 1), float(i)),
            judged=torch.full((2, 1), float(i)),
            novelty=torch.tensor([float(i)]),
            push=torch.tensor([float(i)]),
        )
        for i in range(4)
    ]
    found = joined(ones)
    assert found.score.tolist() == found.novelty.tolist() == found.push.tolist() == [0, 1, 2, 3]
    assert (found.gradient.shape, found.each.shape, found.judged.shape) == ((4, 2, 2), (3, 4), (2, 4))
    bare = joined([ScoreGradient(torch.zeros(1), torch.zeros(1, 2))] * 2)
    assert (bare.novelty, bare.push, bare.each, bare.judged, bare.clean) == (None,) * 5


# --- what is left out of the gradient -----------------------------------------------------------------------------


def test_of_the_gradient_nothing_changes_appearance(vae, encoders):
    image = image_of(vae, random_like(LATENT, 1))
    guide = Guide(encoders[0], 1.0, Nearest(points_of(vae, encoders[0])))
    plain, kept = (
        ImageGradient([guide], criterion=NOVELTY, keep_appearance=keep)(image, 0).gradient
        for keep in (False, True)
    )
    columns = [torch.eye(3).double()[colour].expand_as(image) for colour in range(3)]
    columns += [column * (image - image.mean((1, 2), keepdim=True)) for column in columns[:3]]
    columns.append(image - (image @ torch.tensor([0.299, 0.587, 0.114]).double())[..., None])
    matrix = torch.stack([column.flatten() for column in columns], 1)
    share = torch.linalg.lstsq(matrix, plain.flatten()[:, None]).solution
    torch.testing.assert_close(kept.flatten(), plain.flatten() - (matrix @ share)[:, 0], rtol=0, atol=1e-9)
    assert not torch.equal(plain, kept)


def test_only_what_all_agree_on_counts(vae, encoders):
    image = image_of(vae, random_like(LATENT, 1))
    guides = [Guide(encoder, 0.5, Nearest(points_of(vae, encoder))) for encoder in encoders]
    alone = [ImageGradient([guide._replace(weight=1.0)], criterion=NOVELTY)(image, 0) for guide in guides]
    first, second = (one.gradient / one.gradient.square().mean().sqrt() for one in alone)
    mean = ImageGradient(guides, criterion=NOVELTY)(image, 0).gradient
    agreed = ImageGradient(guides, criterion=NOVELTY, agree=True)(image, 0).gradient
    torch.testing.assert_close(mean, (first + second) / 2)
    torch.testing.assert_close(agreed, torch.where(first * second > 0, (first + second) / 2, 0.0))
    assert 0 < (agreed == 0).double().mean() < 1
    single = ImageGradient(guides[:1], criterion=NOVELTY, agree=True)(image, 0).gradient
    assert torch.equal(single, alone[0].gradient)


@pytest.mark.parametrize(
    "settings", [{}, {"agree": True}, {"keep_appearance": True}, {"smooth": True}], ids=named
)
def test_an_image_that_is_not_finite_gives_a_gradient_that_is_not(vae, encoders, settings):
    guides = [Guide(encoder, 0.5, Nearest(points_of(vae, encoder))) for encoder in encoders]
    image = image_of(vae, random_like(LATENT, 1))
    image[0, 3, 3, 0] = torch.nan
    found = ImageGradient(guides, criterion=NOVELTY, judges=[Judge(encoders[0])], **settings)(image, 0)
    assert not found.gradient.isfinite().all()
    assert found.novelty.isnan().all()
    assert found.judged.isnan().all()


# --- the target ---------------------------------------------------------------------------------------------------


def scale_of(vae: Any, encoder: Encoder, rarities: dict[str, list[float]] | None = None) -> Scale:
    """The scale of the usual images, with scores of the top 3."""
    images = usual_images(vae)
    smoothed = torch.cat(
        [
            torch.cat([embed(encoder, encoder.preprocess(view)) for view in views(image)]).mean(
                0, keepdim=True
            )
            for image in images
        ]
    )
    scores = [jepa_score(encoder, encoder.preprocess(image), top_k=3).item() for image in images]
    own = {
        NOVELTY: sorted(distances_within(smoothed).tolist()),
        SCORE: sorted(-score for score in scores),
    }
    return Scale(encoder, Nearest(smoothed), rarities or own, {"top_k": 3})


def seen(encoder: Encoder, frames: Tensor) -> Tensor:
    return encoder.preprocess(frames)


def nothing() -> None:
    pass


def test_rarity_is_measured_at_views(vae, encoders):
    encoder, image = encoders[0], image_of(vae, random_like(LATENT, 1))
    scale = scale_of(vae, encoder)
    embeddings = [embed(encoder, encoder.preprocess(view)) for view in views(image)]
    middle = torch.cat(embeddings).mean(0, keepdim=True)
    assert scale.rarity(NOVELTY, image, seen, nothing) == pytest.approx(scale.distance(middle).item())
    unseen = [encoder.preprocess(views(image)[index]) for index in UNSEEN]
    scores = [jepa_score(encoder, x, top_k=3).item() for x in unseen]
    assert scale.rarity(SCORE, image, seen, nothing) == pytest.approx(-sum(scores) / len(scores))
    assert math.isnan(scale.rarity(NOVELTY, image * torch.nan, seen, nothing))
    assert math.isnan(scale.rarity(SCORE, image * torch.nan, seen, nothing))


class Known(Scale):
    """A scale on which an image's rarity is its mean brightness."""

    def rarity(self, criterion: str, image: Tensor, seen: Any, on_pass: Any) -> float:
        return image.mean().item()


def known_target(values: list[float], *more: list[float], **settings: Any) -> Target:
    scales = [Known(None, None, {SCORE: own, NOVELTY: own}, {}) for own in (values, *more)]  # type: ignore[arg-type]
    return Target(scales, **settings)


def flat(value: float) -> Tensor:
    return torch.full((1, 2, 2, 3), value, dtype=torch.float64)


HUNDRED = [float(value) for value in range(101)]  # its median is 50, one in 20 is above 95


@pytest.mark.parametrize(
    ("typical", "value", "expected"),
    [
        *((False, value, 1.0) for value in (-5.0, 50.0, 95 - RAMP * 45)),
        *((False, 95 - RAMP * 45 * share, share) for share in (0.75, 0.25)),
        *((False, value, 0.0) for value in (95.0, 96.0, 1e9)),
        *((True, value, 1.0) for value in (105.0, 50.0, 5 + RAMP * 45)),
        *((True, 5 + RAMP * 45 * share, share) for share in (0.75, 0.25)),
        *((True, value, 0.0) for value in (5.0, 4.0, -1e9)),
        (False, math.nan, 1.0),
    ],
)
def test_the_push_is_full_until_near_the_target_and_nothing_from_it_on(typical, value, expected):
    target = known_target(HUNDRED, share=0.05, typical=typical)
    assert target.push(flat(value), seen, nothing) == {SCORE: pytest.approx(expected)}


def test_where_median_and_target_are_the_same_the_push_is_all_or_nothing():
    target = known_target([3.0] * 40, share=0.05)
    assert [target.push(flat(value), seen, nothing)[SCORE] for value in (2.0, 3.0, 4.0)] == [1, 0, 0]
    typical = known_target([3.0] * 40, share=0.05, typical=True)
    assert [typical.push(flat(value), seen, nothing)[SCORE] for value in (2.0, 3.0, 4.0)] == [0, 0, 1]


def test_several_encoders_measure_in_the_mean():
    target = known_target(HUNDRED, [2 * value for value in HUNDRED], share=0.05)
    # the first is beyond its target, the second far from its own
    assert target.push(flat(100.0), seen, nothing) == {SCORE: 0.5}
    assert target.place(flat(100.0), seen, nothing) == {SCORE: pytest.approx((50 / 101 + 50) / 2, rel=0.02)}


@pytest.mark.parametrize("value", [-1.0, 0.0, 30.0, 30.5, 100.0, 1e9])
def test_the_place_is_the_share_of_the_reference_that_is_rarer(value):
    rarer = sum(other > value for other in HUNDRED) + 0.5 * sum(other == value for other in HUNDRED)
    place = known_target(HUNDRED, criteria=[SCORE, NOVELTY]).place(flat(value), seen, nothing)
    assert place == {SCORE: pytest.approx(100 * rarer / 101), NOVELTY: pytest.approx(100 * rarer / 101)}


def test_the_place_of_an_image_that_is_not_finite_is_not_known():
    assert math.isnan(known_target(HUNDRED).place(flat(math.nan), seen, nothing)[SCORE])


def pushed(vae: Any, encoders: list[Encoder], push: dict[str, float], **settings: Any) -> ScoreGradient:
    """The gradient with a target that leaves this much of each criterion."""

    class Fixed(Target):
        def push(self, image: Tensor, seen: Any, on_pass: Any) -> dict[str, float]:
            return push

    image = image_of(vae, random_like(LATENT, 1))
    guides = [Guide(encoder, 0.5, Nearest(points_of(vae, encoder))) for encoder in encoders]
    rarity = RarityGradient(**RARITY, tracked=False)
    return ImageGradient(guides, rarity, target=Fixed([], (), 0.05), **settings)(image, 0)


@pytest.mark.parametrize("agree", [False, True])
def test_the_push_of_one_criterion_does_not_change_its_gradient(vae, encoders, agree):
    """The caller multiplies by the push; the gradient must not be smaller as well, or raw gradients shrink twice."""
    full, some, none = (
        pushed(vae, encoders, {NOVELTY: push}, criterion=NOVELTY, agree=agree) for push in (1.0, 0.25, 0.0)
    )
    assert torch.equal(full.gradient, some.gradient)
    assert [one.push.item() for one in (full, some, none)] == [1.0, 0.25, 0.0]
    assert none.gradient.isfinite().all()


def test_of_two_criteria_the_one_nearer_its_target_counts_less(vae, encoders):
    settings = {"criterion": BOTH}
    ahead = pushed(vae, encoders[:1], {SCORE: 0.2, NOVELTY: 0.4}, **settings)
    novelty = pushed(vae, encoders[:1], {SCORE: 0.0, NOVELTY: 0.4}, **settings)
    score = pushed(vae, encoders[:1], {SCORE: 0.4, NOVELTY: 0.0}, **settings)
    assert ahead.push.item() == 0.4
    torch.testing.assert_close(ahead.gradient, novelty.gradient + 0.5 * score.gradient)


def test_a_criterion_at_its_target_does_not_stop_the_other_where_they_agree(vae, encoders):
    settings = {"criterion": BOTH}
    rest = pushed(vae, encoders[:1], {SCORE: 0.0, NOVELTY: 1.0}, **settings)
    score = pushed(vae, encoders[:1], {SCORE: 1.0, NOVELTY: 0.0}, **settings)
    agreed = pushed(vae, encoders[:1], {SCORE: 0.0, NOVELTY: 1.0}, agree=True, **settings)
    together = rest.gradient * score.gradient > 0
    torch.testing.assert_close(agreed.gradient, torch.where(together, rest.gradient, 0.0))
    assert agreed.gradient.any()


def test_without_a_target_nothing_is_measured(vae, encoders):
    """A reference alone only says where finished images lie."""
    image = image_of(vae, random_like(LATENT, 1))
    passes: list[int] = []
    rarity = RarityGradient(on_pass=lambda: passes.append(1))
    guide = Guide(encoders[0], 1.0, Nearest(points_of(vae, encoders[0])))
    for target in (None, Target([scale_of(vae, encoders[0])], [NOVELTY])):
        passes.clear()
        found = ImageGradient([guide], rarity, criterion=NOVELTY, target=target)(image, 0)
        assert found.push is None
        assert len(passes) == 2


def test_views_are_seen_together(vae, encoders):
    """Four views cost one forward and one backward pass, of four images."""
    image = image_of(vae, random_like(LATENT, 1))
    sizes: list[int] = []
    guide = Guide(encoders[0], 1.0, Nearest(points_of(vae, encoders[0])))
    forward = encoders[0].forward

    def counted(x: Tensor, **more: Any) -> Tensor:
        sizes.append(len(x))
        return forward(x, **more)

    encoders[0].forward = counted  # type: ignore[method-assign]
    ImageGradient([guide], criterion=NOVELTY, smooth=True)(image, 0)
    assert sizes == [COUNT]
