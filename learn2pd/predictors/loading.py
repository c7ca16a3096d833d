"""Predictors from a folder or from the hub."""

from __future__ import annotations

import os
from pathlib import Path

from learn2pd.errors import UserError
from learn2pd.models.files import check_folder, local_folder, path_text
from learn2pd.models.neighbours import told_in_one_line
from learn2pd.predictors.saving import DESCRIPTION, EXPECTED, WEIGHTS, Predictor, read_predictor

FILES = (DESCRIPTION, WEIGHTS, f"*/{DESCRIPTION}", f"*/{WEIGHTS}")  # the predictors beside a filter lie in folders


def load_predictor(folder: str | os.PathLike[str], kind: str, part: str = "", revision: str | None = None) -> Predictor:
    """Load a predictor that `save_predictor` wrote.

    Args:
        folder: The folder with `policy.json` and `model.safetensors`, or the name of a repository of the hub.
        kind: The kind that the predictor must have.
        part: The folder inside `folder` in which the files lie.
        revision: The revision of the hub repository.

    Returns:
        The predictor.

    Raises:
        UserError: The folder is missing or damaged, or holds a predictor of another kind or schema, or the hub cannot
            be reached.
    """
    source = path_text("policy", folder)
    file = str(Path(part, DESCRIPTION))
    place = policy_folder(source, file, revision) / part
    if not (place / DESCRIPTION).is_file():
        raise UserError(f"policy={source!r}: the repository holds no {file}; expected {EXPECTED}")
    subject = f"policy={source!r}: {file}"
    with told_in_one_line(f"{subject} or {WEIGHTS} is damaged", "export it again"):
        try:
            return read_predictor(place, kind, source, revision)
        except UserError as error:
            raise UserError(f"{subject}: {error}") from error


def policy_folder(source: str | os.PathLike[str], file: str = DESCRIPTION, revision: str | None = None) -> Path:
    """Return the folder of a policy, with the folders of the predictors that lie beside the filter.

    Args:
        source: The folder, or the name of a repository of the hub, whose files are downloaded once.
        file: The file that a folder must hold. A repository may lack it.
        revision: The revision of the hub repository.

    Raises:
        UserError: The folder is missing or lacks the file, or the hub cannot be reached.
    """
    check_folder("policy", source, EXPECTED, file)
    return local_folder("policy", source, revision, FILES, inner_folders=True)
