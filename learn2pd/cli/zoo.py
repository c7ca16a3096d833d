"""`learn2pd zoo`: the models, policies, prompts and configurations that ship, and what an owner on the hub holds."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import constants, list_datasets, list_models

from learn2pd.cli.config import config_names
from learn2pd.files import read_json, shipped_folder
from learn2pd.models.files import why_unreachable
from learn2pd.models.neighbours import cause
from learn2pd.prompt_sets import TAG

MOST = 200  # repositories that are listed


def zoo(owner: str) -> str:
    """List what ships, and what an owner on the hub holds.

    Args:
        owner: an organisation or user of the hub.

    Returns:
        The lines. Where the hub does not answer, one line says so.
    """
    rows = [*_shipped(), *_on_hub(owner)]
    width = max(len(name) for _, name, _ in rows)
    return "\n".join(f"{kind:14} {name:{width}}  {fact}".rstrip() for kind, name, fact in rows)


def _shipped() -> Iterator[tuple[str, str, str]]:
    """Yield kind, name and a fact of everything that the package brings with it."""
    for folder in sorted(shipped_folder("checkpoints").iterdir()):
        name = f"checkpoints/{folder.name}"
        if policy := read_json(folder / "policy.json"):
            trained_for = policy["contract"]["model"]
            yield "policy", name, f"a {policy['kind']} for {trained_for}, threshold {policy['threshold']:.4g}"
        elif config := read_json(folder / "config.json"):
            megabytes = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
            yield "model", name, f"{config['model_type']}, {megabytes:.1f} MB of weights"
    for path in sorted(shipped_folder("data").glob("*.jsonl")):
        lines = sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        yield "prompts", f"data/{path.name}", f"{lines} prompts"
    for name in config_names():
        yield "configuration", name, f"learn2pd run config={name}"


def _on_hub(owner: str) -> Iterator[tuple[str, str, str]]:
    unreachable = why_unreachable()
    if unreachable is not None:
        yield "hub", owner, f"{constants.ENDPOINT} could not be reached ({unreachable})"
        return
    try:
        models = list(list_models(author=owner, filter=TAG, limit=MOST))
        prompts = list(list_datasets(author=owner, filter=TAG, limit=MOST))
    except Exception as error:  # noqa: BLE001  huggingface_hub and its HTTP client raise almost every kind
        yield "hub", owner, f"{constants.ENDPOINT} gave no list ({cause(error)})"
        return
    for repository in models:
        is_policy = "decoding-policy" in (repository.tags or [])
        yield "hub policy" if is_policy else "hub model", repository.id, ""
    for prompt_set in prompts:
        yield "hub prompts", prompt_set.id, ""
    if not models and not prompts:
        yield "hub", owner, f"{constants.ENDPOINT} holds nothing of this owner with the tag {TAG}"
