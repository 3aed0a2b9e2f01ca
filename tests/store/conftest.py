"""What the store's tests share."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Aiosqlite runs on asyncio only."""
    return "asyncio"
