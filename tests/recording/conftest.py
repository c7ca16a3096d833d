"""One small recording, made by one process, that the tests compare with and read."""

import pytest
import torch

from learn2pd.recording.reading import Recording
from tests.recording.helpers import make, some_prompts


@pytest.fixture(scope="module")
def prompts():
    return some_prompts()


@pytest.fixture(scope="module")
def recorded(tiny_model, prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    make(tiny_model, prompts, folder)
    return folder


@pytest.fixture(scope="module")
def recording(recorded):
    return Recording.load(recorded)


@pytest.fixture(scope="module")
def tokens(recording):
    """Prompt id -> its reference, [G]."""
    return dict(zip(recording.references["prompt_id"], torch.tensor(recording.references["tokens"]), strict=True))
