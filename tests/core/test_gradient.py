"""The gradient of the guided score against dense references and finite differences."""

import pytest
import torch

from jepa_core import Encoder, RarityGradient, differentiable, load_encoder

CONVERGED = 12  # power iterations that leave no error to see on a 32 x 2352 matrix


def closed_form(encoder, image, matrix, k):
    """sum_i (1 / s_i) grad_x <u_i, J v_i> with the dense matrix's own triplets, by double backward."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    x = image.clone().requires_grad_()
    (rows,) = torch.autograd.grad(
        encoder(x[None])[0],
        x,
        u.T[:k].contiguous(),
        create_graph=True,
        is_grads_batched=True,
    )
    weighted = (rows.flatten(1) * v[:k] / s[:k, None]).sum()
    return torch.autograd.grad(weighted, x)[0]


def test_score_and_triplets_equal_the_dense_decomposition(encoder, images, dense):
    rarity = RarityGradient(4, power_iterations=CONVERGED, tolerance=0)(encoder, images)
    assert rarity.score.shape == (3,)
    assert rarity.score.dtype == torch.float64
    assert rarity.singular_values.shape == (3, 4)
    assert rarity.residual.shape == (3, 4)
    assert rarity.u.shape == (3, 4, 32)
    assert rarity.v.shape == (3, 4, 2352)
    assert rarity.grad.shape == images.shape
    for i, image in enumerate(images):
        matrix = dense(encoder, image)
        s = torch.linalg.svdvals(matrix)[:4]
        torch.testing.assert_close(rarity.singular_values[i], s, rtol=1e-8, atol=0)
        torch.testing.assert_close(rarity.score[i], s.log().sum(), rtol=1e-8, atol=0)
        torch.testing.assert_close(matrix @ rarity.v[i].T, (s[:, None] * rarity.u[i]).T, rtol=0, atol=1e-6)
    assert rarity.residual.max() < 1e-4


def test_gradient_equals_the_closed_form(encoder, images, dense):
    rarity = RarityGradient(4, power_iterations=CONVERGED, tolerance=0)(encoder, images)
    for grad, image in zip(rarity.grad, images, strict=True):
        expected = closed_form(encoder, image, dense(encoder, image), 4)
        assert (grad - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("k", [1, 4])
def test_gradient_equals_finite_differences_of_the_score(encoder, images, dense, k):
    image = images[0]
    grad = RarityGradient(k, power_iterations=CONVERGED, tolerance=0)(encoder, image[None]).grad[0]
    generator = torch.Generator().manual_seed(0)
    step = 1e-4
    for direction in (grad, torch.randn(image.shape, generator=generator, dtype=torch.float64)):
        direction = direction / direction.norm()
        ahead, behind = (
            torch.linalg.svdvals(dense(encoder, image + sign * step * direction))[:k].log().sum()
            for sign in (1, -1)
        )
        slope = (ahead - behind) / (2 * step)
        torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-3, atol=1e-4)


def test_descending_the_gradient_lowers_the_score(encoder, images, dense):
    rarity = RarityGradient(4)(encoder, images)
    step = 0.1 * rarity.grad / rarity.grad.flatten(1).norm(dim=1)[:, None, None, None]
    lower = RarityGradient(4)(encoder, images - step).score
    higher = RarityGradient(4)(encoder, images + step).score
    assert bool((lower < rarity.score).all())
    assert bool((rarity.score < higher).all())


def test_residual_is_the_distance_from_a_singular_triplet(encoder, images, dense):
    rarity = RarityGradient(5, oversample=0, power_iterations=0)(encoder, images[:1])
    matrix = dense(encoder, images[0])
    u, s, v = rarity.u[0], rarity.singular_values[0], rarity.v[0]
    expected = (v @ matrix.T - s[:, None] * u).norm(dim=1) / s
    assert expected.max() > 0.05  # far from converged, so that there is something to measure
    torch.testing.assert_close(rarity.residual[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("rounds", "calls"), [(0, 5), (2, 9)])
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_calls_are_counted_before_chunking(encoder, images, rounds, calls, chunk):
    found = RarityGradient(4, power_iterations=rounds, tolerance=0, chunk=chunk)(encoder, images)
    # a JVP of the sketch, the forward pass, a VJP and a differentiation a round, and its backward pass
    assert found.encoder_calls == calls


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_nothing(encoder, images, chunk):
    whole = RarityGradient(4)(encoder, images[:1])
    parts = RarityGradient(4, chunk=chunk)(encoder, images[:1])
    torch.testing.assert_close(parts.score, whole.score, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [2, None])
def test_on_pass_follows_every_pass(encoder, images, chunk):
    seen = []
    RarityGradient(4, 2, 2, tolerance=0, chunk=chunk, on_pass=lambda: seen.append(1))(encoder, images)
    chunks_of_six = 3 if chunk else 1
    # points of a difference, one more than directions; two at a time are computed again for the backward pass
    ahead, back = (4, 8) if chunk else (1, 1)
    assert len(seen) == 3 * (1 + 4 * chunks_of_six + 3 * ahead + back)


def make_inference(module):
    """Replace every weight by an inference tensor, as if loaded under inference mode."""
    with torch.inference_mode():
        for part in module.modules():
            for name, weight in list(part._parameters.items()):
                if weight is not None:
                    part._parameters[name] = torch.nn.Parameter(weight.clone(), requires_grad=False)
    assert all(weight.is_inference() for weight in module.parameters())


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 5, 8, 9, 12])
def test_on_pass_can_stop_at_every_pass_and_leaves_the_encoder_as_it_was(save_model, images, after):
    encoder = load_encoder(save_model(), dtype=torch.float64, image_size=28)
    make_inference(encoder)  # weights that have to be replaced for the length of the call
    before = dict(encoder.named_parameters(remove_duplicate=False))
    flag = torch.backends.cuda.matmul.fp32_precision
    seen = []

    def stop():
        seen.append(1)
        if len(seen) == after:
            raise Stop

    with pytest.raises(Stop):
        RarityGradient(4, on_pass=stop)(encoder, images)
    assert len(seen) == after
    now = dict(encoder.named_parameters(remove_duplicate=False))
    assert before.keys() == now.keys()
    assert all(before[name] is now[name] for name in before)
    assert torch.backends.cuda.matmul.fp32_precision == flag
    assert torch.is_grad_enabled()


def test_inference_mode_changes_nothing(save_model, images):
    encoder = load_encoder(save_model(), dtype=torch.float64, image_size=28)
    expected = RarityGradient(4)(encoder, images)
    make_inference(encoder)
    with torch.inference_mode():
        found = RarityGradient(4)(encoder, images.clone())
        assert torch.is_inference_mode_enabled()
    assert torch.equal(found.grad, expected.grad)
    assert torch.equal(found.score, expected.score)
    with torch.no_grad():
        found = RarityGradient(4)(encoder, images)
    assert torch.equal(found.grad, expected.grad)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_bit(monkeypatch, save_model, images, dtype, half):
    for module in ("jacobian", "precision"):
        monkeypatch.setattr(f"jepa_core.{module}.has_fast_bfloat16", lambda device: True)
    encoder = load_encoder(save_model(), image_size=28)
    x = images.float()
    expected = RarityGradient(4, half=half)(encoder, x)
    with torch.autocast("cpu", dtype):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        found = RarityGradient(4, half=half)(encoder, x)
    assert product.dtype == dtype  # autocast was on
    assert torch.equal(found.grad, expected.grad)
    assert torch.equal(found.score, expected.score)


def test_a_graph_of_the_caller_is_left_alone(encoder, images):
    latent = torch.randn(images.shape, dtype=torch.float64).requires_grad_()
    x = images + 2 * latent
    found = RarityGradient(4)(encoder, x)
    assert latent.grad is None
    assert not found.grad.requires_grad
    assert not found.v.requires_grad
    x.backward(found.grad)
    assert torch.equal(latent.grad, 2 * found.grad)


def test_trainable_weights_get_no_gradient(save_model, images):
    encoder = load_encoder(save_model(), dtype=torch.float64, image_size=28)
    expected = RarityGradient(4)(encoder, images[:1])
    encoder.requires_grad_(True)
    found = RarityGradient(4)(encoder, images[:1])
    assert torch.equal(found.grad, expected.grad)
    assert all(weight.grad is None and weight.requires_grad for weight in encoder.parameters())


def test_global_random_state_is_neither_read_nor_moved(encoder, images):
    torch.manual_seed(1)
    first = RarityGradient(4)(encoder, images[:1])
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = RarityGradient(4)(encoder, images[:1])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.grad, second.grad)


def test_the_default_device_of_the_host_does_not_matter(encoder, images):
    expected = RarityGradient(4)(encoder, images[:1])
    with torch.device("meta"):
        found = RarityGradient(4)(encoder, images[:1])
    assert torch.equal(found.grad, expected.grad)
    assert torch.equal(found.score, expected.score)


def test_a_batch_equals_its_images_one_by_one(encoder, images):
    together = RarityGradient(4)(encoder, images, ids=["a", "b", "c"])
    for i, image in enumerate(images):
        alone = RarityGradient(4)(encoder, image[None])
        for name in ("score", "singular_values", "grad", "u", "v", "residual"):
            assert torch.equal(getattr(together, name)[i], getattr(alone, name)[0]), name


def test_the_seed_decides_the_sketch(encoder, images):
    first, again = (RarityGradient(4, 0, 0, seed=3)(encoder, images[:1]) for _ in range(2))
    other = RarityGradient(4, 0, 0, seed=4)(encoder, images[:1])
    assert torch.equal(first.grad, again.grad)
    assert not torch.allclose(first.score, other.score, rtol=1e-3)


def test_an_image_that_is_not_finite_gives_nan_and_spares_the_others(encoder, images):
    x = images.clone()
    x[1, 0, 5, 5] = torch.nan
    found = RarityGradient(4)(encoder, x)
    alone = RarityGradient(4)(encoder, images[2:])
    assert bool(found.grad[1].isnan().all())
    assert bool(found.score[1].isnan())
    assert torch.equal(found.grad[2], alone.grad[0])
    assert bool(found.grad[0].isfinite().all())


def test_null_directions_neither_blow_up_the_gradient_nor_count(encoder, images, dense):
    full = RarityGradient(32, power_iterations=0)(encoder, images[:1])
    assert bool(full.grad.isfinite().all())
    # the last LayerNorm makes two of 32 values rounding noise; each counts as eps, and has no gradient
    s = torch.linalg.svdvals(dense(encoder, images[0]))
    torch.testing.assert_close(
        full.score[0], s[:30].log().sum() + 2 * torch.tensor(1e-6).double().log(), rtol=1e-6, atol=0
    )
    expected = closed_form(encoder, images[0], dense(encoder, images[0]), 30)
    assert (full.grad[0] - expected).norm() < 1e-3 * expected.norm()


def test_float32_agrees_with_float64(save_model, images):
    folder = save_model()
    exact = RarityGradient(4, tolerance=0)(load_encoder(folder, dtype=torch.float64, image_size=28), images)
    single = RarityGradient(4, tolerance=0)(load_encoder(folder, image_size=28), images.float())
    assert single.grad.dtype == torch.float32
    torch.testing.assert_close(single.score, exact.score, rtol=1e-5, atol=1e-5)
    cosine = torch.cosine_similarity(single.grad.double().flatten(1), exact.grad.flatten(1))
    assert cosine.min() > 0.999


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"k": 0}, "k must"), ({"oversample": -1}, "-1"), ({"power_iterations": -2}, "-2")],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        RarityGradient(**settings)


def test_arguments_that_do_not_fit_are_refused(encoder: Encoder, images):
    with pytest.raises(ValueError, match="28"):
        RarityGradient(4)(encoder, images[..., :14])
    with pytest.raises(ValueError, match="3, 28"):
        RarityGradient(4)(encoder, images[0])
    with pytest.raises(ValueError, match="33"):
        RarityGradient(33)(encoder, images)
    with pytest.raises(ValueError, match="2 images"):
        RarityGradient(4)(encoder, images, ids=["a", "b"])


def test_differentiable_composes_with_a_call(encoder, images):
    expected = RarityGradient(4)(encoder, images[:1])
    with differentiable(encoder):
        found = RarityGradient(4)(encoder, images[:1])
    assert torch.equal(found.grad, expected.grad)
