"""A small config on disk: its settings, or its errors."""

from collections.abc import Callable
from pathlib import Path

import pytest

from boundd.config import Settings, load
from boundd.ports import ConfigError


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[..., Settings]:
    """The settings of a config with the given text, and environment variables as keywords."""

    def read(text: str, **environ: str) -> Settings:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return load(path, {"HOME": str(tmp_path / "home"), **environ})

    return read


@pytest.fixture
def errors_of(settings_of: Callable[..., Settings]) -> Callable[..., tuple[str, ...]]:
    """The errors of a config with the given text."""

    def read(text: str, **environ: str) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as caught:
            settings_of(text, **environ)
        return caught.value.errors

    return read
