"""One full folder for all tests of the dashboard."""

import pytest
from small_app import write_full_folder


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    return write_full_folder(tmp_path_factory.mktemp("full"))
