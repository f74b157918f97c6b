"""The fixture that the tests of pages share."""

import pytest
from browsing import chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that has no network."""
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver
