"""Products with the Jacobian against the dense matrix."""

import sys

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


SHAPES = "_refs/__init__.py"  # torch's module that finds the shape of a result


@pytest.mark.parametrize(
    ("family", "size"),
    [("dinov2", 28), ("dinov2_with_registers", 28), ("ijepa", 16), ("siglip_vision_model", 16)],
)
def test_no_layer_finds_shapes_in_python(save_model, images, family, size):
    """Torch does so where a tangent meets none, at biases and scales; that took most of a forward-mode pass."""

    def calls(layers):
        found = []

        def note(frame, event, _):
            if event == "call" and frame.f_code.co_filename.endswith(SHAPES):
                found.append(frame.f_code.co_name)

        encoder = load_encoder(save_model(family, num_hidden_layers=layers), image_size=size)
        with differentiable(encoder), full_precision(CPU):
            jacobian = JacobianOperator(encoder, images[0][:, :size, :size].float())
            sys.setprofile(note)
            try:
                jacobian.jvp(torch.ones(3, 3 * size**2))
            finally:
                sys.setprofile(None)
        return found

    assert "add" in calls(1)  # of the positions; else nothing was seen
    assert calls(1) == calls(3)


def hessian_vector_product(encoder, image, u, v):
    """grad_x <u, J(x) v> by two backward passes."""
    x = image.clone().requires_grad_()
    (row,) = torch.autograd.grad(encoder(x[None])[0] @ u, x, create_graph=True)
    (product,) = torch.autograd.grad(row.flatten() @ v, x)
    return product.flatten()


@pytest.mark.parametrize("chunk", [1, 2, None])
def test_curvature_equals_double_backward(encoder, images, dense, chunk):
    image, u, v = images[0], unit_rows(5, 32), unit_rows(5, 2352)
    expected = sum(hessian_vector_product(encoder, image, *pair) for pair in zip(u, v, strict=True))
    with differentiable(encoder), full_precision(CPU):
        jacobian = JacobianOperator(encoder, image, chunk=chunk)
        products, pull = jacobian.curvature(v)
        found = pull(u)
    # one-sided differences: the error is the step, 1e-5, times the third derivative
    assert (found - expected).norm() < 1e-4 * expected.norm()
    expected = v @ dense(encoder, image).T
    assert (products - expected).norm() < 1e-4 * expected.norm()


def test_curvature_in_float32_keeps_three_digits(save_model, images):
    folder = save_model()
    exact = load_encoder(folder, dtype=torch.float64, image_size=28)
    encoder = load_encoder(folder, image_size=28)
    image = images[0].float()
    for u, v in zip(unit_rows(5, 32), unit_rows(5, 2352), strict=True):
        expected = hessian_vector_product(exact, image.double(), u, v)
        with differentiable(encoder), full_precision(CPU):
            _, pull = JacobianOperator(encoder, image).curvature(v[None].float())
            found = pull(u[None])
        assert torch.cosine_similarity(found.double(), expected, dim=0) > 0.999


@pytest.mark.parametrize(
    ("chunk", "passes"), [(1, 1 + 7 + 7 + 8 + 2 * 8), (3, 1 + 3 + 3 + 3 + 2 * 3), (None, 1 + 1 + 1 + 1 + 1)]
)
def test_on_pass_follows_every_pass_and_chunks_do_not_count_as_calls(encoder, images, chunk, passes):
    seen = []
    u, v = unit_rows(7, 32), unit_rows(7, 2352)
    with differentiable(encoder), full_precision(CPU):
        jacobian = JacobianOperator(encoder, images[0], chunk=chunk, on_pass=lambda: seen.append(1))
        jacobian.vjp(u)
        jacobian.jvp(v)
        _, pull = jacobian.curvature(v)
        pull(u)
    assert len(seen) == passes
    assert jacobian.encoder_calls == 1 + 1 + 1 + 2


def passes_of_products(encoder, image, **limits):
    """Passes that a VJP, a JVP and a differentiation along nine directions take, forward pass left out."""
    counts = []
    with differentiable(encoder), full_precision(CPU):
        seen = []
        jacobian = JacobianOperator(encoder, image, on_pass=lambda: seen.append(1), **limits)
        jacobian.vjp(unit_rows(1, 32))
        for product in (
            lambda: jacobian.vjp(unit_rows(9, 32)),
            lambda: jacobian.jvp(unit_rows(9, 2352)),
            lambda: jacobian.curvature(unit_rows(9, 2352))[1](unit_rows(9, 32)),
        ):
            seen.clear()
            product()
            counts.append(len(seen))
    return counts


def test_memory_decides_the_chunks(encoder, images):
    class Heavy(type(encoder)):
        layer_bytes = 60 << 20
        activation_bytes = 500 << 20

    heavy = Heavy(encoder.model, encoder.image_size)
    # three directions' layers take no more than a processor's caches bear; of points two fit, beside the base
    assert passes_of_products(heavy, images[0]) == [3, 3, 5 + 2 * 5]
    # two directions, and no more than a point
    assert passes_of_products(heavy, images[0], memory=130 << 20) == [5, 5, 10 + 2 * 10]
    # nothing fits, and it works nevertheless
    assert passes_of_products(heavy, images[0], memory=1) == [9, 9, 10 + 2 * 10]
    assert passes_of_products(encoder, images[0]) == [1, 1, 1 + 1]


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
