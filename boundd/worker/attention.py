"""Sets how a pipeline computes attention. Baseline and variants of a cell use the same.

 * `sdpa`: torch's scaled_dot_product_attention, as diffusers sets it up itself;
 * `eager`: the scores written out, multiplied and normalised in memory, as Stable Diffusion's first code did; it is
   what older published speed-ups were measured against;
 * `sliced`: eager, half the heads at a time: less memory, more time;
 * `xformers`: memory-efficient attention of the package of that name, on a GPU.

It is set on the UNet and, but for `sliced`, which diffusers' autoencoder does not know, on the autoencoder. Methods
leave it in place: `methods.base.Restored` puts back whatever processors it found.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from boundd.worker.errors import BadDataError

EAGER, SLICED, XFORMERS = "eager", "sliced", "xformers"


def check_attention(name: str, *, is_cuda: bool) -> None:
    """Check, before anything is loaded, that this machine can compute attention this way.

    Raises:
        BadDataError: when it can't, with the reason.
    """
    if name != XFORMERS:
        return
    if not is_cuda:
        raise BadDataError(f"--attention {name}: its kernels run on a GPU only; on the CPU take sdpa, eager or sliced")
    if find_spec(XFORMERS) is None:
        raise BadDataError(
            f"--attention {name}: the package xformers is not installed beside torch; install it, or take sdpa"
        )


def set_attention(pipe: Any, name: str) -> None:
    """Make the pipeline compute attention as `name` says.

    Args:
        pipe: a new pipeline, which uses `sdpa` by default.
        name: one of `boundd.catalogue.options.ATTENTIONS`.
    """
    if name == EAGER:
        from diffusers.models.attention_processor import AttnProcessor

        for module in (pipe.unet, pipe.vae):
            module.set_attn_processor(AttnProcessor())
    elif name == SLICED:
        pipe.unet.set_attention_slice("auto")
    elif name == XFORMERS:
        for module in (pipe.unet, pipe.vae):
            module.enable_xformers_memory_efficient_attention()
