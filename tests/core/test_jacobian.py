"""Products with the Jacobian against the dense matrix."""

import pytest
import torch

from jepa_core import JacobianOperator, differentiable, full_precision, load_encoder

CPU = torch.device("cpu")


def unit_rows(rows, columns, seed=0):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrix.T).Q.T


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_products_equal_those_with_the_dense_matrix(encoder, images, dense, chunk):
    matrix = dense(encoder, images[0])
    left, right = unit_rows(5, 32), unit_rows(5, 2352)
    with differentiable(encoder), full_precision(CPU):
        jacobian = JacobianOperator(encoder, images[0], chunk=chunk)
        assert jacobian.shape == matrix.shape
        torch.testing.assert_close(jacobian.embedding, encoder(images[:1])[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(jacobian.vjp(left), left @ matrix, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(jacobian.jvp(right), right @ matrix.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers"])
@pytest.mark.parametrize("swiglu", [False, True])
def test_products_of_every_architecture(save_model, images, dense, family, swiglu):
    encoder = load_encoder(save_model(family, use_swiglu_ffn=swiglu), dtype=torch.float64, image_size=28)
    matrix = dense(encoder, images[1])
    with differentiable(encoder), full_precision(CPU):
        jacobian = JacobianOperator(encoder, images[1])
        torch.testing.assert_close(jacobian.vjp(torch.eye(32)), matrix, rtol=1e-10, atol=1e-12)
        right = unit_rows(3, 2352)
        torch.testing.assert_close(jacobian.jvp(right), right @ matrix.T, rtol=1e-10, atol=1e-12)


def hessian_vector_product(encoder, image, u, v):
    """grad_x <u, J(x) v> by two backward passes."""
    x = image.clone().requires_grad_()
    (row,) = torch.autograd.grad(encoder(x[None])[0] @ u, x, create_graph=True)
    (product,) = torch.autograd.grad(row.flatten() @ v, x)
    return product.flatten()


@pytest.mark.parametrize("chunk", [1, 2, None])
def test_curvature_equals_double_backward(encoder, images, dense, chunk):
    image, u, v = images[0], unit_rows(5, 32), unit_rows(5, 2352)
    matrix = dense(encoder, image)
    expected = torch.stack([hessian_vector_product(encoder, image, *pair) for pair in zip(u, v, strict=True)])
    with differentiable(encoder), full_precision(CPU):
        jacobian = JacobianOperator(encoder, image, chunk=chunk)
        hessian_v, jacobian_v = jacobian.curvature(u, v, u @ matrix)
    # one-sided differences: the error is the step, 1e-5, times the third derivative
    assert (hessian_v - expected).norm() < 1e-4 * expected.norm()
    assert (jacobian_v - v @ matrix.T).norm() < 1e-4 * (v @ matrix.T).norm()


def test_curvature_in_float32_keeps_three_digits(save_model, images):
    folder = save_model()
    exact = load_encoder(folder, dtype=torch.float64, image_size=28)
    encoder = load_encoder(folder, image_size=28)
    image = images[0].float()
    u, v = unit_rows(5, 32), unit_rows(5, 2352)
    expected = torch.stack(
        [hessian_vector_product(exact, image.double(), *pair) for pair in zip(u, v, strict=True)]
    )
    with differentiable(encoder), full_precision(CPU):
        jacobian = JacobianOperator(encoder, image)
        hessian_v, _ = jacobian.curvature(u.float(), v.float(), jacobian.vjp(u))
    cosine = torch.cosine_similarity(hessian_v.double(), expected)
    assert cosine.min() > 0.999


@pytest.mark.parametrize(
    ("chunk", "passes"), [(1, 1 + 7 + 7 + 14), (3, 1 + 3 + 3 + 6), (None, 1 + 1 + 1 + 2)]
)
def test_on_pass_follows_every_pass_and_chunks_do_not_count_as_calls(encoder, images, chunk, passes):
    seen = []
    u, v = unit_rows(7, 32), unit_rows(7, 2352)
    with differentiable(encoder), full_precision(CPU):
        jacobian = JacobianOperator(encoder, images[0], chunk=chunk, on_pass=lambda: seen.append(1))
        rows = jacobian.vjp(u)
        jacobian.jvp(v)
        jacobian.curvature(u, v, rows)
    assert len(seen) == passes
    assert jacobian.encoder_calls == 1 + 1 + 1 + 2


def test_the_default_chunk_keeps_a_pass_within_two_gibibytes(encoder, images):
    class Heavy(type(encoder)):
        activation_bytes = 500 << 20

    heavy = Heavy(encoder.model, encoder.image_size)
    seen = []
    with differentiable(heavy), full_precision(CPU):
        jacobian = JacobianOperator(heavy, images[0], on_pass=lambda: seen.append(1))
        jacobian.vjp(unit_rows(9, 32))
    assert len(seen) == 1 + 3  # four directions to a pass


def test_the_image_may_be_part_of_a_graph_or_an_inference_tensor(encoder, images, dense):
    expected = unit_rows(2, 32) @ dense(encoder, images[0])
    leaf = images[0].clone().requires_grad_()
    with torch.inference_mode():
        inference = images[0].clone()
    for image in (leaf * 1, inference):
        with differentiable(encoder), full_precision(CPU):
            jacobian = JacobianOperator(encoder, image)
            torch.testing.assert_close(jacobian.vjp(unit_rows(2, 32)), expected, rtol=1e-10, atol=1e-12)
    assert leaf.grad is None
