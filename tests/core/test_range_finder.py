"""The range finder on matrices whose singular values are known."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from jepa_core import JacobianOperator
from jepa_core.range_finder import draw_sketch, gram, numerical_rank_floor, randomized_svd

SIDE = 8
SIZE = 3 * SIDE * SIDE


class Linear(nn.Module):
    """f(x) = A x for the singular values given: J = A everywhere."""

    activation_bytes = layer_bytes = 1 << 20
    image_size = SIDE
    fused_norms = nullcontext

    def __init__(self, singular_values, embed_dim, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embed_dim = embed_dim
        self.singular_values = torch.zeros(embed_dim, dtype=torch.float64)
        self.singular_values[: len(singular_values)] = torch.as_tensor(singular_values, dtype=torch.float64)
        shape = (embed_dim, embed_dim)
        left = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64)).Q
        right = torch.randn(SIZE, embed_dim, generator=generator, dtype=torch.float64)
        right = torch.linalg.qr(right).Q.T
        self.weight = nn.Parameter((left * self.singular_values @ right).to(dtype), False)
        self.left = left.T

    def forward(self, x, half=False):
        return x.flatten(1) @ self.weight.T


class Counted(JacobianOperator):
    """Counts the directions of all products."""

    directions = 0

    def vjp(self, cotangents):
        self.directions += len(cotangents)
        return super().vjp(cotangents)

    def jvp(self, tangents):
        self.directions += len(tangents)
        return super().jvp(tangents)


def find(encoder, rank, oversample=2, power_iterations=2, seed=0, chunk=None):
    jacobian = Counted(encoder, torch.zeros(3, SIDE, SIDE), chunk=chunk)
    return randomized_svd(
        jacobian, rank=rank, oversample=oversample, power_iterations=power_iterations, seed=seed
    ), jacobian


def energy(u, encoder, rank):
    """Share of the true top `rank` left subspace that the rows of u span."""
    return (u @ encoder.left[:rank].T).square().sum() / rank


def plain_power_iteration(matrix, rank, oversample, power_iterations, seed):
    """Left singular vectors by the paper's range finder, which keeps only the last block."""
    sketch = draw_sketch(rank + oversample, matrix.shape[1], seed)
    block = torch.linalg.qr(matrix @ sketch.T).Q
    for _ in range(power_iterations):
        block = torch.linalg.qr(matrix @ (matrix.T @ block)).Q
    u, _, _ = torch.linalg.svd(block.T @ matrix, full_matrices=False)
    return (block @ u)[:, :rank].T


def check_is_a_decomposition(found, encoder, rank, atol=1e-9):
    u, s, v = found
    assert u.shape == (rank, encoder.embed_dim)
    assert s.shape == (rank,)
    assert v.shape == (rank, SIZE)
    assert u.dtype == s.dtype == torch.float64
    assert v.dtype == encoder.weight.dtype
    assert bool((s[:-1] >= s[1:]).all())
    identity = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(u @ u.T, identity, rtol=0, atol=atol)
    torch.testing.assert_close((v @ v.T).double(), identity, rtol=0, atol=atol)
    # J^T u_i = s_i v_i holds however far from converged
    rows = u @ encoder.weight.double()
    torch.testing.assert_close(rows, s[:, None] * v.double(), rtol=0, atol=atol * s[0].item())


def test_a_matrix_of_low_rank_is_found_exactly():
    encoder = Linear([8.0, 4, 2, 1, 0.5], embed_dim=24)
    found, _ = find(encoder, rank=5, power_iterations=0)
    check_is_a_decomposition(found, encoder, 5)
    torch.testing.assert_close(found.singular_values, encoder.singular_values[:5], rtol=1e-10, atol=0)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_a_decaying_spectrum_is_found_to_the_bound_of_its_decay(decay):
    encoder = Linear(decay ** torch.arange(40), embed_dim=40)
    found, _ = find(encoder, rank=6, oversample=4, power_iterations=3)
    check_is_a_decomposition(found, encoder, 6)
    ratio = decay ** (10 - 6)  # value outside the sketch over s_k; each block squares it twice over
    relative = (encoder.singular_values[:6] - found.singular_values) / encoder.singular_values[:6]
    assert bool((relative > -1e-12).all())  # a projection never exceeds the matrix
    assert relative.max() < 40 * ratio ** (2 * 3)
    assert energy(found.u, encoder, 6) > 1 - 40 * ratio ** (2 * 3)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("power_iterations", [1, 2])
def test_all_blocks_hold_no_less_than_the_last_one(seed, power_iterations):
    encoder = Linear(1 / torch.arange(1, 49), embed_dim=48)  # slow decay, as an encoder's
    found, _ = find(encoder, 9, 2, power_iterations, seed)
    plain = plain_power_iteration(encoder.weight, 9, 2, power_iterations, seed)
    ours, theirs = energy(found.u, encoder, 9), energy(plain, encoder, 9)
    assert theirs > 0.5  # the reference works
    assert ours > theirs + 0.001


def test_more_power_iterations_hold_more():
    encoder = Linear(1 / torch.arange(1, 49), embed_dim=48)
    shares = [energy(find(encoder, 9, 2, q)[0].u, encoder, 9) for q in range(4)]
    assert shares == sorted(shares)
    assert shares[3] > 0.999 > shares[0]


def test_the_cost_is_one_jvp_and_one_vjp_a_round():
    encoder = Linear(1 / torch.arange(1, 49), embed_dim=48)
    for rounds in range(4):
        _, jacobian = find(encoder, 3, 2, rounds)
        assert jacobian.encoder_calls == 1 + 2 * (rounds + 1)


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_nothing(chunk):
    encoder = Linear(1 / torch.arange(1, 49), embed_dim=48)
    (u, s, v), _ = find(encoder, 5)
    (u_part, s_part, v_part), _ = find(encoder, 5, chunk=chunk)
    torch.testing.assert_close(s_part, s, rtol=1e-12, atol=0)
    torch.testing.assert_close(u_part.T @ u_part, u.T @ u, rtol=0, atol=1e-10)
    torch.testing.assert_close(v_part.T @ v_part, v.T @ v, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("rank", "oversample"), [(12, 0), (12, 5), (10, 100), (1, 11)])
def test_a_sketch_as_wide_as_the_embedding_is_exact(rank, oversample):
    encoder = Linear(0.8 ** torch.arange(12), embed_dim=12)
    found, jacobian = find(encoder, rank, oversample, power_iterations=2)
    check_is_a_decomposition(found, encoder, rank)
    assert jacobian.directions <= 12 * 3  # a JVP and a VJP of at most 12, and a JVP that adds nothing
    torch.testing.assert_close(found.singular_values, encoder.singular_values[:rank], rtol=1e-10, atol=0)


@pytest.mark.parametrize(("rank", "oversample", "rounds"), [(5, 2, 1), (5, 2, 3), (7, 0, 1), (4, 1, 2)])
def test_blocks_that_fill_the_embedding_space_are_exact(rank, oversample, rounds):
    encoder = Linear(0.8 ** torch.arange(12), embed_dim=12)
    found, _ = find(encoder, rank, oversample, rounds)
    check_is_a_decomposition(found, encoder, rank)
    torch.testing.assert_close(found.singular_values, encoder.singular_values[:rank], rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_values_that_are_zero_stay_near_zero(dtype):
    encoder = Linear([3.0, 1.0], embed_dim=16, dtype=dtype)
    (_, s, v), jacobian = find(encoder, rank=6)
    torch.testing.assert_close(s[:2], encoder.singular_values[:2], rtol=1e-5, atol=0)
    assert bool((s[2:] < numerical_rank_floor(s, 16)).all())
    assert jacobian.directions <= 2 * (8 + 2 + 2)  # the rows of rounding noise are not followed
    assert bool(v.isfinite().all())


def test_float32_products_give_single_precision():
    encoder = Linear(0.7 ** torch.arange(40), embed_dim=40, dtype=torch.float32)
    found, _ = find(encoder, rank=6, oversample=4, power_iterations=3)
    check_is_a_decomposition(found, encoder, 6, atol=1e-4)
    torch.testing.assert_close(found.singular_values, encoder.singular_values[:6], rtol=1e-5, atol=0)


def test_gram_keeps_digits_that_float32_would_lose():
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(70_000, 6, generator=generator)).Q.T
    rows = left * (0.1 ** torch.arange(6)) @ right  # more than two slices wide
    expected = torch.linalg.svdvals(rows.double())
    found = torch.linalg.eigvalsh(gram(rows)).flip(0).sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_numerical_rank_floor():
    s = torch.tensor([0.5, 4.0, 1e-9], dtype=torch.float64)
    assert numerical_rank_floor(s, 384).item() == 4.0 * 384 * 2.0**-23


@pytest.mark.parametrize("power_iterations", [0, 1, 2])
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_matrix_that_is_zero_or_not_finite_is_refused(value, power_iterations):
    encoder = Linear([1.0], embed_dim=12)
    encoder.weight.fill_(value)
    with pytest.raises(FloatingPointError, match="Jacobian is"):
        find(encoder, rank=3, power_iterations=power_iterations)


def test_the_sketch_is_a_function_of_its_arguments_and_lives_on_the_cpu():
    before = torch.get_rng_state()
    first = draw_sketch(3, 10, seed=5)
    torch.randn(3)
    assert torch.equal(draw_sketch(3, 10, seed=5), first)
    assert not torch.equal(draw_sketch(3, 10, seed=6), first)
    assert first.dtype == torch.float64
    torch.set_rng_state(before)
    with torch.device("meta"):  # a default device set by the host
        again = draw_sketch(3, 10, seed=5)
    assert torch.equal(again, first)
    wide = draw_sketch(40, 1000, seed=0)
    assert abs(wide.mean().item()) < 0.02
    assert abs(wide.std().item() - 1) < 0.02
