"""Prompt sets on the hub, by name and revision: one file of prompts with a card, in a repository of kind `dataset`."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import CommitOperationAdd, DatasetCard, DatasetCardData, HfApi, constants, hf_hub_download

from learn2pd.arguments import checked
from learn2pd.data.reading import read_records
from learn2pd.errors import UserError
from learn2pd.models.files import path_text, why_unreachable
from learn2pd.models.neighbours import told_in_one_line

TAG = "learn2pd"
FILE = "prompts.jsonl"  # the name that every pushed file gets in its repository


@checked(but=("path",))
def push_prompts(
    path: str | os.PathLike[str], repo_id: str, *, private: bool = False, token: str | None = None, branch: str = "main"
) -> str:
    """Push a file of prompts to a repository of the hub.

    Args:
        path: A file with one JSON object a line.
        repo_id: The name of the repository, such as `owner/name`. It is made where it does not exist.
        private: Whether a new repository is private.
        token: A token that may write; None takes the one of `hf auth login`.
        branch: The branch that receives the commit.

    Returns:
        The address of the commit.

    Raises:
        UserError: The file holds no prompts, the hub cannot be reached, or it refuses.
    """
    file = Path(path_text("path", path))
    records = read_records(file, "path")
    if records.complaints or file.suffix != ".jsonl":
        raise UserError(
            f"{records.source}: expected a file .jsonl with one JSON object a line"
            + (f"; {records.complaints[0]}" if records.complaints else "")
        )
    _check_reachable(repo_id)
    fields = ", ".join(f"`{name}`" for name in records.columns())
    data = DatasetCardData(tags=[TAG, "prompts"], configs=[{"config_name": "default", "data_files": FILE}])
    body = f"# Prompts\n\n{len(records.rows)} prompts, one JSON object a line, with the fields {fields}.\n"
    card = DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}")
    advice = "log in with `hf auth login`, or give a token that may write to this repository"
    with told_in_one_line(f"repo_id={repo_id!r} could not be pushed to {constants.ENDPOINT}", advice):
        api = HfApi(endpoint=constants.ENDPOINT, token=token)
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(FILE, file.read_bytes()), CommitOperationAdd("README.md", str(card).encode())],
            commit_message="Prompts",
            repo_type="dataset",
            revision=branch,
        )
        return str(commit.commit_url)


@checked()
def pull_prompts(repo_id: str, *, revision: str | None = None, file: str = FILE) -> Path:
    """Return a file of prompts from a repository of the hub, which is downloaded once.

    Args:
        repo_id: The name of the repository.
        revision: A branch, tag or commit.
        file: The name of the file in the repository.

    Returns:
        The file in the local cache, for `data.path` with `data.source=jsonl`.

    Raises:
        UserError: The repository, the revision or the file does not exist, or neither hub nor cache has it.
    """
    unreachable = why_unreachable()
    told = "" if unreachable is None else f"{constants.ENDPOINT} could not be reached ({unreachable}); "
    at = f" at revision {revision!r}" if revision else ""
    with told_in_one_line(f"repo_id={repo_id!r}{at}: {told}{file} could not be read", "give a local file instead"):
        return Path(
            hf_hub_download(
                repo_id,
                file,
                repo_type="dataset",
                revision=revision,
                endpoint=constants.ENDPOINT,
                local_files_only=unreachable is not None,
            )
        )


def _check_reachable(repo_id: str) -> None:
    unreachable = why_unreachable()
    if unreachable is not None:
        raise UserError(f"repo_id={repo_id!r}: {constants.ENDPOINT} could not be reached ({unreachable})")
