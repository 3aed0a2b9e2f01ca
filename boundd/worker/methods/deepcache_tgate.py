"""DeepCache and T-GATE together, by T-GATE's own loader for the pair.

The two can't simply be stacked: T-GATE halves the batch at its gate, and DeepCache would hand it features of
the old size. The loader empties DeepCache's cache there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from boundd.worker.methods.base import Call, Parameters, Restored
from boundd.worker.methods.tgate import gated_call, is_xl

PAIR = frozenset({"deepcache", "tgate"})


@contextmanager
def applied(pipe: Any, deepcache: Parameters, tgate: Parameters) -> Iterator[Call]:
    """Apply both to `pipe` while the context lasts; its value is the accelerated callable."""
    import tgate as library

    load = library.TgateSDXLDeepCacheLoader if is_xl(pipe) else library.TgateSDDeepCacheLoader
    with Restored(pipe.unet):
        load(pipe, **deepcache)
        try:
            yield gated_call(pipe, tgate)
        finally:
            pipe.deepcache.disable()
            for name in ("tgate", "deepcache"):
                vars(pipe).pop(name, None)
