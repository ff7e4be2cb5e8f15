"""The range tracked from image to image, and the gradient in half precision."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jepa_core import JacobianOperator, RarityGradient, differentiable, full_precision, load_encoder
from jepa_core.encoder import _LayerNorm
from jepa_core.range_finder import basis_to_track, ritz_triplets, sketch_range

CPU = torch.device("cpu")


def path(images, steps=5, size=0.02):
    """Images (steps, B, 3, S, S) that change a little at each step, as clean estimates do."""
    generator = torch.Generator().manual_seed(11)
    moves = torch.randn(steps, *images.shape, generator=generator, dtype=torch.float64) * size
    return images + moves.cumsum(0)


def exact_gradient(encoder, image, k):
    """Closed form on the dense Jacobian: sum_i (1 / s_i) grad_x <u_i, J v_i>, by double backward."""
    x = image.clone().requires_grad_()
    (rows,) = torch.autograd.grad(
        encoder(x[None])[0], x, torch.eye(encoder.embed_dim).to(x), create_graph=True, is_grads_batched=True
    )
    u, s, v = torch.linalg.svd(rows.detach().flatten(1), full_matrices=False)
    weighted = torch.einsum("di,dn,in,i->", u[:, :k], rows.flatten(1), v[:k], 1 / s[:k])
    return torch.autograd.grad(weighted, x)[0]


def cosine(one, other):
    return torch.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0).item()


def test_a_tracked_gradient_follows_the_exact_one_for_fewer_calls(encoder, images):
    tracked, cold = (RarityGradient(4, power_iterations=0, tracked=on) for on in (True, False))
    tracked_cosines, cold_cosines = [], []
    for step, x in enumerate(path(images)):
        exact = [exact_gradient(encoder, image, 4) for image in x]
        found, afresh = tracked(encoder, x), cold(encoder, x)
        assert found.encoder_calls == (4 if step else 5)
        assert afresh.encoder_calls == 5
        tracked_cosines += [cosine(*pair) for pair in zip(found.grad, exact, strict=True)]
        cold_cosines += [cosine(*pair) for pair in zip(afresh.grad, exact, strict=True)]
    # after the first step, which is cold for both
    errors, cold_errors = (
        sum(1 - value for value in values[len(images) :]) for values in (tracked_cosines, cold_cosines)
    )
    assert min(tracked_cosines[len(images) :]) > 0.998
    assert errors < cold_errors / 10


def test_each_image_of_a_batch_is_tracked_as_if_it_were_alone(encoder, images):
    together = RarityGradient(4, power_iterations=1)
    alone = [RarityGradient(4, power_iterations=1) for _ in images]
    for x in path(images, steps=3):
        found = together(encoder, x, ids=["a", "b", "c"])
        for index, one in enumerate(alone):
            expected = one(encoder, x[index : index + 1])
            for name in ("score", "singular_values", "grad", "u", "v", "residual"):
                assert torch.equal(getattr(found, name)[index], getattr(expected, name)[0]), name


def test_ids_follow_the_images_not_their_places(encoder, images):
    gradient, other = RarityGradient(4, power_iterations=0), RarityGradient(4, power_iterations=0)
    first, second = path(images[:2], steps=2)
    gradient(encoder, first, ids=["a", "b"])
    other(encoder, first, ids=["a", "b"])
    straight = gradient(encoder, second, ids=["a", "b"])
    swapped = other(encoder, second.flip(0), ids=["b", "a"])
    assert torch.equal(straight.grad, swapped.grad.flip(0))


def test_reset_starts_cold_again(encoder, images):
    gradient = RarityGradient(4, power_iterations=0)
    expected = gradient(encoder, images)
    tracked = gradient(encoder, images)
    assert not torch.equal(tracked.grad, expected.grad)
    gradient.reset()
    again = gradient(encoder, images)
    assert torch.equal(again.grad, expected.grad)
    assert again.encoder_calls == 5
    gradient.reset([1, "never seen"])
    part = gradient(encoder, images)
    assert torch.equal(part.grad[1], expected.grad[1])
    assert not torch.equal(part.grad[0], expected.grad[0])


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_fresh_copy_has_the_settings_and_tracks_on_its_own(encoder, images, chunk):
    settings = {"seed": 5, "tolerance": 0.1, "half": True, "memory": 10**6, "chunk": chunk}
    first = RarityGradient(4, 3, 1, **settings)
    before = first(encoder, images)
    passes = []
    copy = first.fresh(lambda: passes.append(1))
    assert not copy.snapshot()
    found = copy(encoder, images)
    assert passes
    for name in ("score", "grad", "u", "v", "residual"):
        assert torch.equal(getattr(found, name), getattr(before, name)), name
    left, right = (
        {name: value for name, value in vars(one).items() if name not in ("on_pass", "_bases")}
        for one in (first, copy)
    )
    assert left == right
    copy.reset()
    assert len(first.snapshot()) == len(images)


def test_a_fresh_copy_of_a_subclass_is_one_too():
    class Named(RarityGradient):
        def __init__(self, name):
            super().__init__(3)
            self.name = name

    assert Named("a").fresh().name == "a"


def test_without_tracking_nothing_is_kept(encoder, images):
    gradient = RarityGradient(4, power_iterations=0, tracked=False)
    first, again = gradient(encoder, images), gradient(encoder, images)
    assert torch.equal(first.grad, again.grad)
    assert not gradient._bases


@pytest.mark.parametrize("after", [1, 2, 3, 4])  # a tracked call here has four passes
def test_what_fails_leaves_no_range_behind(encoder, images, after):
    class Stop(Exception):
        pass

    seen = []

    def stop():
        seen.append(1)
        if stopping and len(seen) == after:
            raise Stop

    stopping = False
    gradient = RarityGradient(2, power_iterations=0, on_pass=stop)
    expected = gradient(encoder, images[:1])
    stopping = True
    seen.clear()
    with pytest.raises(Stop):
        gradient(encoder, images[:1])
    stopping = False
    assert torch.equal(gradient(encoder, images[:1]).grad, expected.grad)  # cold


def test_an_image_that_is_not_finite_starts_cold_the_next_time(encoder, images):
    gradient = RarityGradient(4, power_iterations=0)
    expected = gradient(encoder, images[:1])
    assert bool(gradient(encoder, images[:1] * torch.nan).grad.isnan().all())
    assert torch.equal(gradient(encoder, images[:1]).grad, expected.grad)


def test_another_encoder_starts_cold(encoder, save_model, images):
    wider = load_encoder(save_model(hidden_size=48), dtype=torch.float64, image_size=28)
    gradient = RarityGradient(4)
    expected = gradient(wider, images)
    gradient.reset()
    gradient(encoder, images)
    assert torch.equal(gradient(wider, images).grad, expected.grad)


def test_a_large_move_takes_another_round_and_a_small_one_does_not(encoder, images):
    gradient = RarityGradient(4, power_iterations=2)
    gradient(encoder, images[:1])
    near = gradient(encoder, images[:1] + 1e-3)
    assert near.encoder_calls == 4
    assert near.residual.max() <= gradient.tolerance
    far = gradient(encoder, images[1:2])
    assert far.encoder_calls in (6, 8)
    untouched = RarityGradient(4, power_iterations=0)
    untouched(encoder, images[:1])
    assert untouched(encoder, images[1:2]).residual.max() > gradient.tolerance
    expected = exact_gradient(encoder, images[1], 4)
    assert cosine(far.grad[0], expected) > 0.97


def test_the_basis_to_track_holds_the_products_and_the_strongest_of_the_rest(encoder, images):
    with differentiable(encoder), full_precision(CPU):
        jacobian = JacobianOperator(encoder, images[0])
        found = sketch_range(jacobian, 5, seed=0)
        u, s, v = ritz_triplets(found, 5)
        products = jacobian.jvp(v).double()
    basis = basis_to_track(found, products)
    assert basis.shape == (10, 32)
    torch.testing.assert_close(basis @ basis.T, torch.eye(10).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(products @ basis.T @ basis, products, rtol=1e-10, atol=1e-10)
    # five and five directions: the range of five is inside as well
    torch.testing.assert_close(u @ basis.T @ basis, u, rtol=0, atol=1e-10)
    # converged products add nothing, and rounding noise is not followed
    same = basis_to_track(found, s[:, None] * u)
    assert len(same) == 5


def test_more_directions_than_the_embedding_has(encoder, images):
    gradient = RarityGradient(30, 10, power_iterations=1)
    for x in path(images[:1], steps=2):
        found = gradient(encoder, x)
        exact = exact_gradient(encoder, x[0], 30)
        assert cosine(found.grad[0], exact) > 0.999


@pytest.mark.parametrize("memory", [None, 1])
def test_in_float64_half_is_exact_to_the_last_digits(monkeypatch, encoder, images, memory):
    monkeypatch.setattr("jepa_core.jacobian.has_fast_bfloat16", lambda device: True)
    found = RarityGradient(4, power_iterations=12, tolerance=0, half=True, memory=memory)(encoder, images)
    for grad, image in zip(found.grad, images, strict=True):
        exact = exact_gradient(encoder, image, 4)
        # no differences: nine digits, where the one-sided ones keep five
        assert (grad - exact).norm() < 1e-8 * exact.norm()


def test_half_precision_keeps_the_direction(monkeypatch, save_model, images):
    monkeypatch.setattr("jepa_core.jacobian.has_fast_bfloat16", lambda device: True)
    monkeypatch.setattr("jepa_core.precision.has_fast_bfloat16", lambda device: True)
    folder = save_model()
    exact = load_encoder(folder, dtype=torch.float64, image_size=28)
    encoder = load_encoder(folder, image_size=28)
    full, half = RarityGradient(4, tolerance=0), RarityGradient(4, tolerance=0, half=True)
    for x in path(images, steps=2):
        expected = [exact_gradient(exact, image, 4) for image in x]
        in_full, in_half = full(encoder, x.float()), half(encoder, x.float())
        assert in_half.grad.dtype == torch.float32
        assert not torch.equal(in_half.grad, in_full.grad)  # it was in half precision
        assert min(map(cosine, in_full.grad, expected)) > 0.999
        assert min(map(cosine, in_half.grad, expected)) > 0.95


def test_where_bfloat16_is_slow_half_changes_nothing(monkeypatch, save_model, images):
    monkeypatch.setattr("jepa_core.jacobian.has_fast_bfloat16", lambda device: False)
    encoder = load_encoder(save_model(), image_size=28)
    full, half = (RarityGradient(4, half=on)(encoder, images.float()) for on in (False, True))
    assert torch.equal(half.grad, full.grad)


def test_points_computed_again_give_the_same_gradient(encoder, images):
    whole = RarityGradient(4)(encoder, images[:1])
    parts = RarityGradient(4, memory=5 * encoder.activation_bytes)(encoder, images[:1])
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-5, atol=1e-7)


def test_layer_norm_equals_torchs_and_can_be_differentiated_after_forward_mode():
    generator = torch.Generator().manual_seed(2)
    x, tangent, weight, bias = torch.randn(4, 3, 16, generator=generator, dtype=torch.float64)
    norm = _LayerNorm(16, dtype=torch.float64)
    norm.weight, norm.bias = nn.Parameter(weight[0], False), nn.Parameter(bias[0], False)
    plain = F.layer_norm(x, (16,), weight[0], bias[0], norm.eps)
    torch.testing.assert_close(norm(x), plain, rtol=1e-12, atol=1e-12)
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(torch.func.jvp(norm, (leaf,), (tangent,))[1].sin().sum(), leaf)

    # the same by central differences of the JVP
    step = 1e-5
    expected = torch.zeros_like(x)
    for place in range(x.numel()):
        move = torch.zeros(x.numel(), dtype=torch.float64)
        move[place] = step
        move = move.reshape(x.shape)
        ahead, behind = (
            torch.func.jvp(norm, (x + sign * move,), (tangent,))[1].sin().sum() for sign in (1, -1)
        )
        expected.view(-1)[place] = (ahead - behind) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
