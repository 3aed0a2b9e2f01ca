"""Loads the pipeline and the scorer, and records the digests of the files they were loaded from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boundd.protocol.file_digests import content_of
from boundd.protocol.strict_json import Json
from boundd.worker.devices import TorchDevice
from boundd.worker.errors import ModelUnavailableError
from boundd.worker.pipelines import Pipeline, find_model, load_pipeline
from boundd.worker.scorers import Scorer, load_scorer, scorer_files
from boundd.worker.settings import RANDOM, RunSettings


@dataclass(frozen=True)
class Content:
    """A folder that something was loaded from, and the digest of each file that was read, by its path in there."""

    folder: Path
    digests: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, files: Sequence[Path]) -> Content:
        """The digests of the files now.

        Raises:
            ModelUnavailableError: when one can't be read.
        """
        try:
            return cls(folder.absolute(), content_of(folder, files))
        except OSError as error:
            raise ModelUnavailableError(
                f"{error.filename or folder} can't be read ({error.strerror}); fetch it again, and leave it while it is"
                " measured"
            ) from error

    def check_same(self, now: Content) -> None:
        """Check that the files did not change while they were loaded.

        Raises:
            ModelUnavailableError: when one did; names it.
        """
        names = {*self.digests, *now.digests}
        changed = sorted(name for name in names if self.digests.get(name) != now.digests.get(name))
        if changed:
            raise ModelUnavailableError(
                f"{self.folder / changed[0]} changed while it was loaded; try again when the copy or download is"
                " complete"
            )


@dataclass(frozen=True)
class Loaded:
    """A pipeline and a scorer.

    Attributes:
        pipe: on its device.
        scorer: None where nothing is scored.
        of_pipe: the files that the pipeline was loaded from; None for random weights.
        of_scorer: the files that the scorer was loaded from; None where there is none.
    """

    pipe: Pipeline
    scorer: Scorer | None
    of_pipe: Content | None
    of_scorer: Content | None

    def folders(self) -> dict[str, Json]:
        """Where the files lay, for the result."""
        return {name: None if content is None else str(content.folder) for name, content in self._contents()}

    def content(self) -> dict[str, Json]:
        """The digests of the files, for the fingerprint."""
        return {name: None if content is None else dict(content.digests) for name, content in self._contents()}

    def _contents(self) -> tuple[tuple[str, Content | None], ...]:
        return ("model", self.of_pipe), ("scorer", self.of_scorer)


def load(settings: RunSettings, device: TorchDevice) -> Loaded:
    """The pipeline on its device, and the scorer.

    Raises:
        ModelUnavailableError: when one can't be had, is damaged, or changed while it was loaded.
        BadDataError: when the model can't be measured as the settings say.
    """
    pipe, of_pipe = _load_pipeline(settings, device)
    before = _content_of_scorer(settings.scorer)
    scorer = load_scorer(settings.scorer)
    of_scorer = _content_of_scorer(settings.scorer)
    if before is not None and of_scorer is not None:
        before.check_same(of_scorer)
    return Loaded(pipe, scorer, of_pipe, of_scorer)


def _load_pipeline(settings: RunSettings, device: TorchDevice) -> tuple[Pipeline, Content | None]:
    if settings.weights == RANDOM:
        return load_pipeline(settings, device), None
    folder = find_model(settings)
    before = Content.of(folder.path, folder.files)
    pipe = load_pipeline(settings, device, folder)
    before.check_same(Content.of(folder.path, folder.files))
    return pipe, before


def _content_of_scorer(source: str) -> Content | None:
    """None without a scorer, and for one that is not on this machine yet."""
    folder = scorer_files(source)
    return None if folder is None else Content.of(*folder)
