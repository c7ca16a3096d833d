"""Everything that ships under checkpoints/ has a card, and the card of a policy is what its files say."""

from __future__ import annotations

import pytest

from learn2pd import load_keep, load_policy
from learn2pd.files import shipped_folder
from learn2pd.predictors.keep import trained_policy
from learn2pd.predictors.saving import DESCRIPTION

FOLDERS = sorted(path for path in shipped_folder("checkpoints").iterdir() if path.is_dir())
POLICIES = [path for path in FOLDERS if (path / DESCRIPTION).is_file()]
LOADERS = {"filter": load_policy, "keep": load_keep}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_checkpoint_has_a_card(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    assert "python train.py config=" in text


@pytest.mark.parametrize("folder", POLICIES, ids=lambda path: path.name)
def test_the_card_of_a_policy_is_what_save_pretrained_writes(folder):
    policy = LOADERS[trained_policy(folder)](folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == policy.generate_model_card().content
