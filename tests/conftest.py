"""How the tests are run; tests/fixtures.py has what every test may use."""

from __future__ import annotations

import gc

import pytest
from hypothesis import HealthCheck, Phase, settings

# The draws are derandomised: a rounding tie that one draw in a million meets must not fail somebody else's change.
settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# tests/mutants.py uses this profile.
settings.register_profile("plain", settings.get_profile("suite"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("suite")


@pytest.hookimpl(trylast=True)  # behind xdist, which says whether this process hands the tests out
def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, and with them torch and transformers, unless other processes run the tests."""
    if not config.pluginmanager.has_plugin("dsession"):
        config.pluginmanager.import_plugin("tests.fixtures")


def pytest_collection_finish() -> None:
    """Let garbage be collected again, but for what was loaded until here, and seldom."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()
