"""What the tests of both families do with a checkpoint in the hub's layout.

Each module writes such a checkpoint as its `hub_folder`.
"""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def folder(hub_folder, tmp_path):
    return shutil.copytree(hub_folder, tmp_path / "model")


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Questions put to the terminal, each answered with yes."""
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": questions.append(question) or "y")
    return questions
