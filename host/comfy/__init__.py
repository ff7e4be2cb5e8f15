"""Everything taken from ComfyUI, checked at import. No other folder imports ComfyUI.

required.py    the names that the pack needs; a ComfyUI that lacks one is refused
sampling.py    running the stock sampler, and wrapping the samplers and runs of a MODEL
prompt.py      text encoders, and the positive prompt of a run
models.py      patches, dtypes and devices of a MODEL
memory.py      loading and unloading models, out-of-memory errors
streaming.py   dynamic VRAM
backward_ops.py  operations and attention that have a backward pass
vae.py, model_folders.py, page.py   decoding, model folders, messages to the web page
example_picture.py   a picture for the templates
picks.py       waiting for a choice of pictures on the page
"""

from . import required  # noqa: F401 (first: refuses a host that lacks a module)
