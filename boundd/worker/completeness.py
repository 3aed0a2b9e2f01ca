"""Loads the parts of a model, or a scorer, and checks that every weight came from a file.

The libraries load a part even if its file lacks weights: they fill these in at random or leave them without memory,
with no more than a warning. Here their report of missing and unexpected weights is an error.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from boundd.worker.errors import ModelUnavailableError, shortage_of
from boundd.worker.model_folder import Part, count, one_line, some

Module: TypeAlias = Any
"""A torch module that a library built; neither library is typed."""

OTHER_TOWERS: Final = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale", "logit_bias")
"""Weights of a whole CLIP model beside its text encoder. They are ignored where only the text encoder is loaded."""
_OF_THE_HOST: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EINTR, errno.EAGAIN}
)
"""Errors of the machine, not of the model."""
_ZERO_SHARE: Final = 0.5
"""If more than this share of a part's weights are in all-zero tensors, the file was not written completely."""
_PEEK: Final = 1009
"""Number of values that are checked first, before a whole tensor is checked for zeros."""


def build(part: Part, dtype: Any) -> Module:
    """The part with its weights, in the dtype, on the CPU.

    Raises:
        ModelUnavailableError: when weights are missing, don't fit or have no place, or its library can't build it;
            names the file.
    """
    assert part.weights is not None, "only parts with weights are built"
    import diffusers
    import transformers

    of_diffusers = part.name in ("unet", "vae")
    loader = getattr(diffusers if of_diffusers else transformers, part.class_name)
    options: dict[str, Any] = {"torch_dtype" if of_diffusers else "dtype": dtype, "local_files_only": True}

    def load() -> tuple[Module, Mapping[str, Any]]:
        loaded: tuple[Module, Mapping[str, Any]] = loader.from_pretrained(
            str(part.folder),
            variant=part.weights and part.weights.variant,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        return loaded

    where = str(part.weights.files[0])
    check_dtypes(where, part.weights.dtypes)
    module, report = load_or_refuse(load, f"{where} could not be loaded as a {part.class_name}")
    check_complete(module, report, where, () if of_diffusers else OTHER_TOWERS)
    return module


def load_or_refuse(load: Callable[[], Any], what: str) -> Any:
    """The value of `load`. An exception of a library while it reads files becomes a `ModelUnavailableError`.

    Raises:
        ModelUnavailableError: `what` failed.
    """
    try:
        return load()
    except Exception as error:
        if not is_of_files(error):
            raise
        raise ModelUnavailableError(
            f"{what}; fetch or save it again, with the configuration that belongs to it"
            f" ({type(error).__name__}: {one_line(str(error))})"
        ) from error


def is_of_files(error: Exception) -> bool:
    """Whether an exception that a library raised while it read files is about these files, not about memory or the
    machine. Libraries raise many kinds of exception for a damaged file."""
    if isinstance(error, ModelUnavailableError) or shortage_of(error):
        return False
    return not (isinstance(error, OSError) and error.errno in _OF_THE_HOST)


def check_dtypes(where: str, dtypes: Mapping[str, str]) -> None:
    """Refuse quantised weights (stored as integers): converted to the model's dtype they would be meaningless.

    Args:
        where: the file, for messages.
        dtypes: safetensors' names, by tensor.
    """
    whole = [name for name, dtype in dtypes.items() if dtype.startswith(("I", "U")) and not name.endswith("_ids")]
    if whole:
        raise ModelUnavailableError(
            f"{where} holds {count(whole, 'tensor')} of whole numbers ({some(whole)}: {dtypes[min(whole)]}), as"
            " quantised weights are; give the model in float16, bfloat16 or float32"
        )


def check_complete(module: Module, report: Mapping[str, Any], where: str, ignored: tuple[str, ...] = ()) -> None:
    """Refuse a module with weights that are not in its file, or a file with weights that the module has no place for.

    Args:
        module: what a library built.
        report: what it says of that: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
        where: the file, for messages.
        ignored: how unexpected names may begin.

    Raises:
        ModelUnavailableError: names the weights.
    """
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    missing = sorted({*_names(report.get("missing_keys")), *(name for name, each in tensors.items() if each.is_meta)})
    wrong = _names(report.get("mismatched_keys"))
    unexpected = [
        name
        for name in _names(report.get("unexpected_keys"))
        if not name.startswith(ignored) and not name.endswith("position_ids")
    ]
    kind = type(module).__name__
    if missing:
        instead = f", and holds instead {some(unexpected)}" if unexpected else ""
        raise ModelUnavailableError(
            f"{where} lacks {count(missing, 'tensor')} of the {len(tensors):,} that a {kind} has"
            f" ({some(missing)}){instead}; give the whole model, with LoRAs fused before it was saved"
        )
    if wrong:
        raise ModelUnavailableError(
            f"{where} holds {count(wrong, 'tensor')} of another shape than its {kind} has ({some(wrong)}); give the"
            " configuration that belongs to these weights"
        )
    if unexpected:
        raise ModelUnavailableError(
            f"{where} holds {count(unexpected, 'tensor')} that its {kind} has no place for ({some(unexpected)}), so it"
            " is not that model; give the configuration that belongs to these weights, with LoRAs fused before they"
            " were saved"
        )
    _check_not_zero(module, where)


def _names(listed: Iterable[Any] | None) -> list[str]:
    """The names in a report, which may be tuples of a name and two shapes."""
    return [each if isinstance(each, str) else str(each[0]) for each in listed or ()]


def _check_not_zero(module: Module, where: str) -> None:
    weights = [each for each in module.parameters() if each.ndim > 1]
    zero = sum(each.numel() for each in weights if _is_zero(each))
    total = sum(each.numel() for each in weights)
    if zero > _ZERO_SHARE * total:
        raise ModelUnavailableError(
            f"{where}: {100 * zero // total}% of the weights are in tensors of nothing but zeros, as a download leaves"
            " them that did not come to its end; fetch it again"
        )


def _is_zero(tensor: Any) -> bool:
    flat = tensor.detach().flatten()
    peek = flat[:: max(1, len(flat) // _PEEK)]
    return not bool(peek.any()) and not bool(flat.any())
