"""The scoped changes of torch's state come and go without a trace."""

import contextlib

import pytest
import torch
from torch import nn

from jepa_core import differentiable, full_precision
from jepa_core.precision import half_precision, has_fast_bfloat16

CPU = torch.device("cpu")


class Block(nn.Module):
    """A module with shared and nested weights, a buffer, and holes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.inner = nn.Sequential(nn.Conv1d(4, 4, 1), nn.LayerNorm(4))
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.register_buffer("hole", None)

    def forward(self, x):
        return self.inner[1](self.inner[0]((self.second(self.first(x) ** 2) * self.scale)[..., None])[..., 0])


@pytest.fixture
def inference_block():
    with torch.inference_mode():
        block = Block()
    assert all(weight.is_inference() for weight in block.parameters())
    assert block.scale.is_inference()
    return block


def tables(module):
    return [
        (part, kind, name, tensor)
        for part in module.modules()
        for kind in ("_parameters", "_buffers")
        for name, tensor in getattr(part, kind).items()
    ]


def check_same_objects(before, module):
    after = tables(module)
    assert [entry[:3] for entry in before] == [entry[:3] for entry in after]
    assert all(a[3] is b[3] for a, b in zip(before, after, strict=True))


def test_inference_weights_can_be_differentiated_through(inference_block):
    x = torch.randn(2, 4).requires_grad_()
    with pytest.raises(RuntimeError, match="Inference"):
        inference_block(x).sum().backward()
    before, weight = tables(inference_block), inference_block.first.weight
    with torch.inference_mode(), differentiable(inference_block):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not any(
            weight.is_inference() or weight.requires_grad for weight in inference_block.parameters()
        )
        assert inference_block.first.weight is inference_block.second.weight
        assert inference_block.first.weight.data_ptr() == weight.data_ptr()  # no copy
        y = torch.randn(2, 4).requires_grad_()
        (grad,) = torch.autograd.grad(inference_block(y).square().sum(), y)
    check_same_objects(before, inference_block)

    normal = Block()
    with torch.inference_mode(False):
        normal.load_state_dict({key: value.clone() for key, value in inference_block.state_dict().items()})
        z = y.detach().clone().requires_grad_()
        (expected,) = torch.autograd.grad(normal(z).square().sum(), z)
    assert torch.equal(grad, expected)
    assert expected.abs().max() > 0


def test_wrapped_weights_such_as_quantised_ones():
    two_tensor = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor
    with torch.inference_mode():
        layer = nn.Linear(4, 4, bias=False)
        layer.weight = nn.Parameter(
            two_tensor(torch.ones(4, 4), torch.full((4, 4), 2.0)), requires_grad=False
        )
    before = tables(layer)
    x = torch.ones(2, 4).requires_grad_()
    with differentiable(layer):
        assert isinstance(layer.weight, two_tensor)
        assert not layer.weight.b.is_inference()
        (grad,) = torch.autograd.grad(layer(x).sum(), x)
    assert torch.equal(grad.a, torch.full((2, 4), 4.0))
    assert torch.equal(grad.b, torch.full((2, 4), 8.0))
    check_same_objects(before, layer)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_the_very_same_tensors_come_back_after_an_error(inference_block, error):
    before, scale = tables(inference_block), inference_block.scale

    def fail():
        with torch.inference_mode(), differentiable(inference_block):
            assert inference_block.scale is not scale
            raise error

    with pytest.raises(error):
        fail()
    check_same_objects(before, inference_block)


def test_trainable_weights_come_back_trainable_and_without_a_gradient():
    block = Block()
    before = tables(block)
    x = torch.randn(2, 4).requires_grad_()
    with differentiable(block):
        block(x).square().sum().backward()
    check_same_objects(before, block)
    assert x.grad is not None
    assert all(weight.requires_grad and weight.grad is None for weight in block.parameters())


def test_frozen_normal_weights_are_not_touched():
    block = Block().requires_grad_(False)
    before = tables(block)
    with differentiable(block, block.inner):
        check_same_objects(before, block)
    check_same_objects(before, block)


def test_several_modules_and_nesting(inference_block):
    with torch.inference_mode():
        other = nn.Linear(4, 4)
    before = tables(inference_block), tables(other)
    with differentiable(inference_block, other), differentiable(other):
        x = torch.randn(2, 4).requires_grad_()
        torch.autograd.grad(other(inference_block(x)).sum(), x)
    check_same_objects(before[0], inference_block)
    check_same_objects(before[1], other)


BACKENDS = {
    "cuda.matmul": torch.backends.cuda.matmul,
    "cudnn.conv": torch.backends.cudnn.conv,
    "mkldnn.matmul": torch.backends.mkldnn.matmul,
    "mkldnn.conv": torch.backends.mkldnn.conv,
}


def flags():
    """Every value that a caller can read, by torch's new interface and by its old one.

    The getters resolve inheritance: a switch never set reads "none", or what its parent was set to.
    """
    values = {name: backend.fp32_precision for name, backend in BACKENDS.items()}
    values["cudnn.rnn"] = torch.backends.cudnn.rnn.fp32_precision
    values["all"] = torch.backends.fp32_precision
    values["matmul precision"] = torch.get_float32_matmul_precision()
    values["allow_tf32"] = torch.backends.cuda.matmul.allow_tf32
    with contextlib.suppress(RuntimeError):  # torch refuses the old getter where conv and rnn differ
        values["cudnn.allow_tf32"] = torch.backends.cudnn.allow_tf32
    values["autocast"] = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return values


@pytest.fixture
def restore_flags():
    before = {name: backend.fp32_precision for name, backend in BACKENDS.items()}
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)
    for name, backend in BACKENDS.items():
        backend.fp32_precision = before[name]


def unusual_by_the_new_interface():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.mkldnn.conv.fp32_precision = "bf16"


def unusual_by_the_old_interface():
    torch.set_float32_matmul_precision("medium")


def as_torch_starts():
    pass


@pytest.mark.parametrize(
    "setting", [as_torch_starts, unusual_by_the_new_interface, unusual_by_the_old_interface]
)
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_every_switch_is_off_inside_and_back_after(restore_flags, setting, error):
    setting()
    try:
        before = flags()
    except RuntimeError:  # the old getters refuse a state that only the new interface can express
        before = None
    values = {name: backend.fp32_precision for name, backend in BACKENDS.items()}
    with contextlib.suppress(ValueError, KeyboardInterrupt), torch.autocast("cpu", torch.bfloat16):
        with full_precision(CPU):
            assert {backend.fp32_precision for backend in BACKENDS.values()} == {"ieee"}
            assert not torch.is_autocast_enabled("cpu")
            if error:
                raise error
        assert torch.is_autocast_enabled("cpu")
    assert {name: backend.fp32_precision for name, backend in BACKENDS.items()} == values
    if before is not None:
        assert flags() == before


def test_float32_products_are_float32_products(restore_flags):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    unusual_by_the_old_interface()
    with torch.autocast("cpu", torch.bfloat16), full_precision(CPU):
        product = a @ b
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), exact, rtol=0, atol=1e-4)


def test_autocast_of_another_device_type_is_left_alone():
    with torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cuda")):
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("capability", "fast"), [((6, 1), False), ((7, 5), False), ((8, 0), True), ((12, 0), True)]
)
def test_bfloat16_is_fast_on_cards_that_multiply_it(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_fast_bfloat16(torch.device("cuda", 0)) is fast


@pytest.mark.parametrize(
    ("abilities", "fast"),
    [({}, False), ({"avx512_bf16": False}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)],
)
def test_bfloat16_is_fast_on_processors_that_multiply_it(monkeypatch, abilities, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert has_fast_bfloat16(torch.device("cpu")) is fast


def test_bfloat16_is_slow_where_nothing_is_known(monkeypatch):
    assert not has_fast_bfloat16(torch.device("mps"))
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch
    assert not has_fast_bfloat16(torch.device("cpu"))


def slope(function, x):
    """The derivative of the sum of function(x)."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


@pytest.mark.parametrize("fast", [True, False])
def test_half_precision_differentiates_in_bfloat16_where_it_is_fast(monkeypatch, fast):
    a = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))

    def square(x):
        return x @ x

    monkeypatch.setattr("jepa_core.precision.has_fast_bfloat16", lambda device: fast)
    with half_precision(CPU):
        product, found, exact = a @ a, slope(square, a), slope(square, a.double())
    assert torch.equal(product, a @ a)
    assert torch.equal(found, slope(square, a)) is not fast
    assert torch.equal(exact, slope(square, a.double()))
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.05)


def test_half_precision_ends_with_its_block(monkeypatch):
    a = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("jepa_core.precision.has_fast_bfloat16", lambda device: True)
    with torch.autocast("cpu", torch.float16), half_precision(CPU):
        assert (a @ a).dtype == torch.float32
    assert torch.equal(slope(lambda x: x @ a, a), slope(lambda x: torch.mm(x, a), a))
    assert not torch.is_autocast_enabled("cpu")
