"""Whatever is odd about a model's folder: it loads whole, or is refused with the file and the cure."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import hypothesis
import torch
from hypothesis import given

from boundd.worker.architectures import ARCHITECTURES
from boundd.worker.compatibility import check_compatibility
from boundd.worker.completeness import build
from boundd.worker.errors import BadDataError, ModelUnavailableError
from boundd.worker.model_folder import read_model_folder
from tests.faults.campaign import line, record, sizes
from tests.worker.model_folders import ODD_FOLDERS, Draft, Outcome, Variant, weights_of

CURES = (
    "fetch",
    "give",
    "run `git",
    "save",
    "name the model",
    "take --pipe",
    "write",
    "rename",
    "correct",
    "load the pipeline",
)
"""What a refusal tells to do."""
LONGEST_MESSAGE = 900


@sizes("examples", short=500, long=20_000)
def test_odd_model_folders(examples: int, tmp_path: Path) -> None:
    """A wrong one is refused with its file and a cure, and a right one loads with the weights that are in its files.

    Seen to fail with each of these made to do nothing: `check_complete`, `check_dtypes` and `_check_not_zero`; of
    `fit`, `_check_task`, `_check_widths`, `check_tokenizer` and `_check_merges`. Nothing here needs `_check_tokens`.
    """
    counts: Counter[str] = Counter()

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=False,
    )
    @given(odd=ODD_FOLDERS)
    def check(odd: tuple[str, Variant]) -> None:
        what, alter = odd
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            draft = Draft(what.split(":")[0], Path(folder) / "model")
            outcome = alter(draft)
            refusal = refusal_of(draft, outcome)
        counts["refused" if refusal else "loaded"] += 1
        if not outcome.is_refused:
            assert refusal is None, f"{what}: a healthy folder was refused: {refusal}"
            return
        assert refusal is not None, f"{what}: was loaded"
        assert any(name in refusal for name in outcome.names), f"{what}: does not name the file: {refusal}"
        assert any(cure in refusal for cure in CURES), f"{what}: says no cure: {refusal}"
        assert len(refusal) < LONGEST_MESSAGE, f"{what}: goes on and on: {refusal}"
        assert "\n" not in refusal, f"{what}: is more than a line: {refusal}"

    check()
    figures = {"folders": sum(counts.values()), **counts, "wrong ones loaded": 0, "healthy ones refused": 0}
    print(line("odd model folders", figures))
    record("odd model folders", figures)


def refusal_of(draft: Draft, outcome: Outcome) -> str | None:
    """The refusal of the folder; None where it loads, with the very weights that it was made from."""
    known = {name: architecture.unet for name, architecture in ARCHITECTURES.items()}
    try:
        folder = read_model_folder(draft.path, "mine", outcome.asked_class)
        check_compatibility(folder, "mine", known)
        modules = {name: build(folder.parts[name], torch.float32) for name in outcome.parts}
    except (BadDataError, ModelUnavailableError) as error:
        return str(error)
    for name, module in modules.items():
        loaded, written = module.state_dict(), weights_of(draft.model, name)
        for key, value in written.items():
            assert torch.allclose(loaded[key], value, rtol=1e-2, atol=1e-3), f"{name}.{key} is not what the file holds"
    return None
