"""docs/determinism.md: what fixes the order of sums on CUDA, for every operation of a backward pass.

python dev.py run tools/determinism_page.py        write it

A test collects the operations of every family's backward pass, on a processor, and fails if one is not in this table.
"""

from __future__ import annotations

from pathlib import Path

from tools.markers import table

ROOT = Path(__file__).absolute().parents[1]
PAGE = ROOT / "docs" / "determinism.md"

LIST = "not in [torch's list](https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html)"
# What fixes the order, and where that is said. Each operation belongs to one of these.
REASONS: dict[str, tuple[str, str]] = {
    "copy": ("copies, fills or views; nothing is added", LIST),
    "elementwise": ("one thread computes one entry from the entries at its place", LIST),
    "matrix product": (
        "cuBLAS gives the same bits for the same sizes on one card; ComfyUI multiplies in one stream",
        "cuBLAS's documentation, *results reproducibility*; "
        "[torch on reproducibility](https://docs.pytorch.org/docs/stable/notes/randomness.html)",
    ),
    "reduction": ("torch's reductions join partial sums in the order of the blocks", LIST),
    "normalisation": ("each group is summed by one block; weights get no gradients", LIST),
    "convolution": (
        "`torch.backends.cudnn.deterministic`, within the block; weights get no gradients",
        "torch's documentation of that switch",
    ),
    "attention": (
        "flash attention under torch's deterministic switch, which is on for this operation alone; where flash does not "
        "take a call, matrix products instead",
        "`attention_backward.cu` of torch: with the switch, flash attention's `deterministic` is set",
    ),
    "nearest": ("one thread adds up all that one entry was copied to", f"`UpSampleNearest2d.cu` of torch; {LIST}"),
    "col2im": ("one thread adds up all windows that hold its entry", f"`im2col.cuh` of torch; {LIST}"),
    "index_put": (
        "where it adds, the places are sorted first; where it does not, it writes zeros, the gradient of what was "
        "overwritten",
        "`TensorAdvancedIndexing.cpp` of torch; the list names it only where it does not add",
    ),
    "scatter": (
        "the gradient of `topk`, whose places are all different: nothing is added",
        "the list names `scatter`, for places that repeat",
    ),
}  # fmt: skip

OPERATIONS: dict[str, str] = {
    "copy": (
        "_to_copy _unsafe_view alias as_strided cat clone constant_pad_nd copy_ detach expand flip im2col "
        "index new_empty new_empty_strided new_zeros ones_like permute pixel_shuffle pixel_unshuffle scalar_tensor "
        "select select_backward slice slice_backward squeeze stack t transpose unsqueeze view zeros "
        "zeros_like"
    ),
    "elementwise": (
        "add add_ addcmul_ div eq gelu_backward gt isneginf logical_and_ lt masked_fill masked_fill_ mul neg "
        "pow rsqrt sigmoid_backward silu silu_backward sub tanh_backward threshold_backward where"
    ),
    "matrix product": "bmm mm",
    "reduction": "_softmax _softmax_backward_data mean sum",
    "normalisation": "native_group_norm native_group_norm_backward native_layer_norm_backward",
    "convolution": "convolution_backward",
    "attention": "_scaled_dot_product_flash_attention_for_cpu_backward",
    "nearest": "_upsample_nearest_exact2d_backward upsample_nearest2d_backward",
    "col2im": "col2im",
    "index_put": "index_put",
    "scatter": "scatter",
}
ORDER = {name: reason for reason, names in OPERATIONS.items() for name in names.split()}

# Operations of torch's list whose forward pass adds up in any order; no family's forward pass may have one.
UNORDERED = (
    *("bincount", "cumsum", "histc", "index_add", "index_add_", "index_reduce", "median", "put", "put_"),
    *("scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_"),
)  # fmt: skip


def rows() -> list[list[str]]:
    """A row for each reason: the operations, what fixes the order, and where that is said."""
    return [
        [", ".join(f"`{name}`" for name in sorted(ORDER) if ORDER[name] == reason), what, source]
        for reason, (what, source) in REASONS.items()
    ]


def page() -> str:
    """The page in Markdown."""
    return f"""# The same seed, the same image

This page says why a guided run with one seed gives the same bits again, on which devices, and where it does not.

On a processor it does: every guided run in the tests is repeated bit by bit. On CUDA, many kernels of backward passes let
their threads add to one number in whatever order they finish. The means below replace them. **They were built without a
card at hand**: the operations, the switches and the gradients are tested on a processor, and what each kernel does on CUDA
was read in torch's source and documentation. The last measurement on a card, where guided runs
[differed](cost.md#on-cuda), is older. `python dev.py gpu` compares five runs of each preset bit by bit.

## Means

All of them end with the call that needs them. No switch of the process stays changed, also after an error.

| where | on CUDA | elsewhere |
| --- | --- | --- |
| patch embedding of an encoder | a reshape and one matrix product instead of a convolution | the same |
| attention of an encoder, in a plain backward pass | torch's fused kernel forward; backward by matrix products, some queries at a time | torch's fused kernel |
| attention of denoisers and decoders | flash attention, backward with torch's deterministic switch on for that one operation; where flash does not take the call (float32, masks, heads wider than 256, so the decoder of an autoencoder): backward by matrix products, some queries at a time. Never cuDNN's attention | ComfyUI's |
| convolutions | cuDNN's deterministic algorithms, and no trying out which is fastest | no effect |
| padding with copies of the edge or its mirror image (video decoders) | slices, joined | torch's |
| xformers' attention in a decoder | torch's instead | the same |
| resizing | matrix products | with antialias torch's interpolation on a processor, whose order does not depend on the number of threads; else the same |

`torch.use_deterministic_algorithms(True)` for a whole run is no alternative: cuBLAS then raises unless an environment
variable was set before the process began. The switches for reduced precision (`allow_tf32`,
`allow_fp16_reduced_precision_reduction`) change how exact a sum is, not its order, and are left as they are.

## Operations

Every operation in the backward passes of all model families of the [support matrix](compatibility.md), of their decoders, of
the tiny decoders, and of every kind of encoder. A test collects them, and fails if one is missing here.

{table(["operations", "what fixes the order on CUDA", "where it is said"], rows())}
Forward passes of these families have none of the operations that torch names as unordered. The range finder's QR, SVD and
eigenvalues are computed on the processor; `keep_appearance` inverts a matrix of 7 x 7 by cuSOLVER, which is not in the list.

## Not promised

- Another card, driver, or version of torch, cuDNN or ComfyUI: kernels differ.
- Another way taken. Under memory pressure a run changes how it computes, with a line under the node; ComfyUI may split
  the positive and the negative half of a batch; and cuDNN may choose another algorithm when its first one finds no memory.
- Networks with operations that are not in the table: `gather`, `index_add`, `scatter_add` and `index_select` with repeated
  places, `interpolate` with *bilinear*, *bicubic* or *trilinear*, `grid_sample`, `AvgPool3d` and adaptive pooling. No
  family of the support matrix differentiates one; patches, ControlNets and other packs' networks may.
- `torch.compile` in an encoder or decoder of another pack, ROCm, MPS and XPU.
- Samplers that draw noise on the GPU, beyond what ComfyUI itself promises.
"""  # noqa: E501


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
