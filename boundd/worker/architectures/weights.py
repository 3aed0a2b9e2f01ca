"""Modules at their true size with weights drawn from a seed, made where and as they will be used.

A module is made without memory (torch's meta device) and each parameter is then allocated once, on the device and in
the dtype asked for, and filled there: no copy in float32, nothing in host memory for a GPU.

Values: a weight is uniform with the deviation 1 / sqrt(3 x fan-in), which is what torch's own layers start from (He et
al., 2015, arXiv:1502.01852, by way of `kaiming_uniform_(a=sqrt(5))`), an embedding normal with 0.02, as CLIP's; biases
are 0 and the scales of normalisations 1. Activations stay within tens, far inside float16's 65,504, through a whole
pipeline; how fast a model is and what it takes does not depend on them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import torch

EMBEDDING_DEVIATION = 0.02
_NORMALISATIONS = (torch.nn.GroupNorm, torch.nn.LayerNorm)


def materialise(build: Callable[[], Any], device: str, dtype: torch.dtype, seed: int) -> Any:
    """What `build` makes, on `device`, in `dtype`, its weights drawn from `seed`, ready for inference.

    The same seed gives the same weights on the same kind of device (a GPU's generator is not the CPU's), whatever else
    was drawn before: each parameter has a generator of its own, seeded by its name and `seed`.

    Raises:
        ValueError: for a buffer whose values nobody told this function.
    """
    with torch.device("meta"):
        module = build()
    for name, owner in list(module.named_modules()):
        for own, parameter in list(owner.named_parameters(recurse=False)):
            values = torch.empty(parameter.shape, device=device, dtype=dtype)
            generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed}/{name}.{own}".encode()))
            _fill(values, owner, own, generator)
            setattr(owner, own, torch.nn.Parameter(values, requires_grad=False))
        for own, buffer in list(owner.named_buffers(recurse=False)):
            if own != "position_ids":
                raise ValueError(f"the buffer {name}.{own} of {type(module).__name__} would be left without values")
            # 0, 1, 2…: which position of the prompt each token has.
            setattr(owner, own, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape))
    return module.eval()


def _fill(values: torch.Tensor, owner: Any, name: str, generator: torch.Generator) -> None:
    if isinstance(owner, _NORMALISATIONS):
        values.fill_(1.0 if name == "weight" else 0.0)
    elif isinstance(owner, torch.nn.Embedding):
        values.normal_(std=EMBEDDING_DEVIATION, generator=generator)
    elif values.ndim < 2:
        values.zero_()
    else:
        bound = 1 / math.sqrt(values[0].numel())  # fan-in: all that one output is a sum over
        values.uniform_(-bound, bound, generator=generator)
