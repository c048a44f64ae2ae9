"""What several tests of the operations need."""

import pytest

from pixeldance.ops.tiers import active_tier


@pytest.fixture
def choose_anew(monkeypatch):
    """The tier is chosen in the test, by nothing but what the test says."""
    monkeypatch.delenv("PIXELDANCE_OPS", raising=False)
    active_tier.cache_clear()
    yield
    active_tier.cache_clear()
