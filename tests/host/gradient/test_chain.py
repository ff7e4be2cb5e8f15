"""The chain image -> latent -> noisy latent compared with finite differences, on tiny models in float64."""

from __future__ import annotations

import pytest
import torch
from jepa_guidance.host.gradient.chain import LatentGradient
from jepa_guidance.host.gradient.decoders import LatentDecoder, choose_decoder, decoded
from jepa_guidance.host.gradient.differentiable import writing_in_place
from jepa_guidance.host.gradient.gradient_check import WrongGradientError
from jepa_guidance.host.gradient.image_gradient import Guide, ImageGradient, ScoreGradient
from jepa_guidance.host.gradient.ways import Way
from jepa_guidance.host.guidance.schedule import Schedule
from jepa_guidance.host.options import BOTH, ENCODER_RESOLUTION, NOVELTY, SCORE

from jepa_core import JacobianOperator, RarityGradient, differentiable
from jepa_core.novelty import NEIGHBOURS, Nearest
from jepa_core.views import views
from tests.host.guide import guide_model

K = 3
RARITY = {"k": K, "oversample": 4, "power_iterations": 6, "tolerance": 0.0}


def dense_score(encoder, x):
    """Sum of the logs of the K largest singular values of the dense Jacobian at x (1, 3, S, S)."""
    with differentiable(encoder):
        rows = JacobianOperator(encoder, x[0]).vjp(torch.eye(encoder.embed_dim))
    return torch.linalg.svdvals(rows)[:K].log().sum().item()


def score_of_latent(tiny_vae, encoder, latent, fit="squash"):
    with torch.no_grad():
        return dense_score(encoder, encoder.preprocess(decoded(tiny_vae, latent), fit=fit))


def plain_novelty(encoder, x, points):
    """The mean distance of the embedding of x (1, 3, S, S) to the nearest of the points, by sorting."""
    with torch.no_grad():
        return torch.cdist(encoder(x), points)[0].sort().values[:NEIGHBOURS].mean().item()


def plain_parts(image, guides, criterion, *, points=None, others=None, smooth=False):
    """What guidance descends at a decoded image (1, H, W, 3), in parts: for each guide and criterion a number.

    Args:
        points, others: for each guide the embeddings of the reference, and of the other images of the batch.
    """
    found = []
    for number, guide in enumerate(guides):
        seen = [guide.encoder.preprocess(view) for view in (views(image) if smooth else [image])]
        near = [group[number] for group in (points, others) if group is not None]
        if criterion in (SCORE, BOTH):
            found.append(sum(dense_score(guide.encoder, x) for x in seen) / len(seen))
        if criterion in (NOVELTY, BOTH):
            distances = [plain_novelty(guide.encoder, x, group) for x in seen for group in near]
            found.append(-sum(distances) / len(distances))
    return found


def directional(function, point, direction, step):
    return (function(point + step * direction) - function(point - step * direction)) / (2 * step)


def random_like(tensor, seed):
    drawn = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=tensor.dtype)
    return drawn.to(tensor.device)


def test_gradient_of_a_clean_latent_is_the_finite_difference(tiny):
    vae, encoder = tiny.make_vae(torch.float64), tiny.make_encoder(torch.float64).encoder
    latent = random_like(torch.empty(1, 4, 8, 8, dtype=torch.float64), 1)
    chain = LatentGradient(LatentDecoder(vae), ImageGradient([Guide(encoder)], RarityGradient(**RARITY)))
    score, gradient, *_ = chain.of_latent(latent)
    assert score.item() == pytest.approx(score_of_latent(vae, encoder, latent), rel=1e-9)
    for seed in (2, 3, 4):
        direction = random_like(latent, seed)
        expected = directional(lambda z: score_of_latent(vae, encoder, z), latent, direction, 1e-5)
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_gradient_of_a_shrunk_latent_is_the_finite_difference(tiny, fit):
    vae, encoder = tiny.make_vae(torch.float64), tiny.make_encoder(torch.float64).encoder
    decoder = choose_decoder(ENCODER_RESOLUTION, vae, None, encoder.image_size, fit)
    chain = LatentGradient(decoder, ImageGradient([Guide(encoder)], RarityGradient(**RARITY), fit=fit))
    latent = random_like(torch.empty(1, 4, 20, 17, dtype=torch.float64), 1)

    def score_at(point):
        return score_of_latent(vae, encoder, decoder.prepare(point), fit)

    score, gradient, *_ = chain.of_latent(latent)
    assert score.item() == pytest.approx(score_at(latent), rel=1e-9)
    for seed in (2, 3, 4):
        direction = random_like(latent, seed)
        expected = directional(score_at, latent, direction, 1e-5)
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": SCORE},
        {"criterion": NOVELTY},
        {"criterion": NOVELTY, "apart": True},
        {"criterion": NOVELTY, "smooth": True},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_gradient_of_a_noisy_latent_is_the_finite_difference(tiny, stock, kind, cfg, through, settings):
    """Compared inside a real sampler call of the host, at a guided step, under inference mode."""
    dtype = torch.float64
    model, vae, encoder = tiny.make_model(kind, dtype), tiny.make_vae(dtype), tiny.make_encoder(dtype)
    points = random_like(torch.empty(9, 16, dtype=dtype), 7)
    guides = [Guide(encoder.encoder, usual=Nearest(points))]
    image_gradient = ImageGradient(guides, RarityGradient(**RARITY), **settings)
    chain = LatentGradient(LatentDecoder(vae), image_gradient, way=Way(through))
    checked = []

    def check(denoise, x, sigma, base_model):
        at_x = chain(denoise, x, sigma, base_model)
        with torch.inference_mode(False), torch.no_grad():
            x, clean = x.detach().clone(), denoise(x).detach().clone().double()

        def value(point):
            # as each path is defined: the network runs again, or its output is held constant
            if through:
                estimate = denoise(point.to(x.dtype)).detach().clone().double()
            else:
                per_x = {"EPS": 1.0, "FLOW": 1.0, "V_PREDICTION": 1 / (1 + sigma.item() ** 2)}[kind]
                estimate = clean + per_x * (point - x)
            with torch.inference_mode(False), torch.no_grad():
                images = [decoded(vae, one / 0.18215) for one in estimate.split(1)]
                other = encoder.encoder(encoder.encoder.preprocess(images[1]))
            others = [other] if settings.get("apart") else None
            (part,) = plain_parts(
                images[0],
                guides,
                settings["criterion"],
                points=[points],
                others=others,
                smooth=settings.get("smooth", False),
            )
            return part

        # The host's models return float32 whatever the dtype of their weights, so the steps are large.
        step, tolerance = (1e-3, 5e-3) if through else (1e-5, 1e-4)
        for seed in (5, 6):
            direction = random_like(x, seed).double()
            direction[1:] = 0
            expected = directional(value, x.double(), direction, step)
            found = (at_x.gradient.double() * direction).sum().item()
            checked.append((found, expected))
            assert found == pytest.approx(expected, abs=tolerance * at_x.gradient.norm().item())
        return at_x

    patched = guide_model(
        model,
        vae,
        encoder,
        Schedule(start_percent=0.4, end_percent=0.6),
        RarityGradient(**RARITY),
        through_denoiser=through,
        gradient=check,
    )
    stock(patched, tiny, cfg=cfg)
    assert len(checked) == 2
    assert any(abs(expected) > 1e-3 for _, expected in checked)


def test_a_denoiser_that_writes_in_place_and_has_no_derivative_is_said_to_have_none(tiny):
    guides, rarity = [Guide(tiny.encoder.encoder)], RarityGradient(**RARITY)
    chain = LatentGradient(LatentDecoder(tiny.vae), ImageGradient(guides, rarity), way=Way(True))
    calls = []

    def denoise(x):
        calls.append(1)
        if len(calls) > 1:
            return x.detach()
        estimate = x.exp()
        saved = estimate * estimate
        estimate.add_(1.0)  # what the product has saved
        return saved

    x = random_like(torch.empty(1, 4, 8, 8), 1)
    with pytest.raises(WrongGradientError, match="has no derivative"):
        chain(denoise, x, torch.tensor(1.0), tiny.model.model)
    assert len(calls) == 2
    assert not rarity.snapshot()


def test_gradient_ignores_pixels_outside_the_inpainting_mask(tiny, stock):
    mask = torch.zeros(1, 8, 8)
    mask[:, :4] = 1
    latent = {"samples": random_like(torch.empty(1, 4, 8, 8), 1), "noise_mask": mask}

    def gradient(denoise, x, sigma, base_model):
        return ScoreGradient(torch.zeros(1), torch.ones_like(x))

    patched = guide_model(
        tiny.model, tiny.vae, tiny.encoder, Schedule(), RarityGradient(k=K), gradient=gradient
    )

    guided = stock(patched, tiny, latent_image=latent)
    plain = stock(tiny.model, tiny, latent_image=latent)
    shifts = (guided - plain).abs().amax((0, 1))
    assert shifts[:3].min() > 0
    assert torch.equal(guided[..., 5:, :], plain[..., 5:, :])


def test_the_guard_does_not_mistake_a_new_tensor_for_a_freed_one():
    """torch's own guard does, silently, when a new tensor is allocated at the same address: the reason for ours."""
    x = torch.ones(1000, requires_grad=True)
    with writing_in_place():
        products = []
        for factor in range(50):
            saved = torch.full((1000,), float(factor))
            products.append(saved * x)
            saved.add_(1)
            del saved
        (gradient,) = torch.autograd.grad(sum(products).sum(), x)
    assert torch.equal(gradient, torch.full((1000,), float(sum(range(50)))))
