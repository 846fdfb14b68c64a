import pytest
from small_run import new_run

from llmfast.training.loop import fit


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run of two steps, which the tests only read."""
    folder = tmp_path_factory.mktemp("look")
    fit(new_run(folder, steps=2, sample_every=0))
    return folder / "run"
