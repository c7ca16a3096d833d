"""Trained policies on the hub: `from_pretrained`, `save_pretrained` and `push_to_hub`, with a generated model card.

The mixin of huggingface_hub uploads a folder. saving.py writes and reads its files, and nothing else does.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, constants

from learn2pd.errors import UserError
from learn2pd.models.files import path_text, why_unreachable
from learn2pd.models.neighbours import told_in_one_line
from learn2pd.predictors.saving import Predictor, Setting, save_predictor

MEASURES = {  # the columns of the card's table, by the fields of `Setting`
    "threshold": "threshold",
    "tokens_per_forward": "answer tokens per forward",
    "agreement": "agreement with one token a step",
    "accuracy_drop": "accuracy lost",
    "loss_bound": "upper bound of the loss",
}


class OnHub(ModelHubMixin):
    """A component with a trained predictor that is kept in a folder or in a repository of the hub.

    Attributes:
        predictor: The trained predictor.
    """

    predictor: Predictor

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        # the mixin's own __new__ would copy the network, to write the constructor's arguments into a config.json
        return object.__new__(cls)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Save `policy.json`, `model.safetensors` and a model card. An earlier card in the folder is replaced.

        Args:
            save_directory: The folder; it is made where it does not exist.
            options: `repo_id` and `push_to_hub=True` also push the folder to the hub.

        Returns:
            The address of the commit where the folder was pushed, else None.

        Raises:
            UserError: The folder cannot be written, or the hub cannot be reached.
        """
        folder = Path(path_text("save_directory", save_directory))
        with told_in_one_line(f"save_directory={str(folder)!r} could not be written"):
            (folder / "README.md").unlink(missing_ok=True)
            return super().save_pretrained(folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Push `policy.json`, `model.safetensors` and a model card to a repository of the hub.

        Args:
            repo_id: The name of the repository, such as `owner/name`. It is made where it does not exist.
            options: The options of the mixin, such as `private`, `token`, `branch` and `commit_message`.

        Returns:
            The address of the commit.

        Raises:
            UserError: The hub cannot be reached, or it refuses.
        """
        unreachable = why_unreachable()
        if unreachable is not None:
            raise UserError(
                f"repo_id={repo_id!r}: {constants.ENDPOINT} could not be reached ({unreachable}); "
                "save_pretrained writes the same files into a local folder"
            )
        advice = "log in with `hf auth login`, or give a token that may write to this repository"
        with told_in_one_line(f"repo_id={repo_id!r} could not be pushed to {constants.ENDPOINT}", advice):
            return str(super().push_to_hub(repo_id, **options))

    def _save_pretrained(self, save_directory: Path) -> None:
        save_predictor(self.predictor, save_directory)

    def generate_model_card(self, *arguments: Any, **options: Any) -> ModelCard:
        """Write the card of the predictor: what it was trained on, its calibrated curve, and its limits.

        Args:
            arguments: They are not used.
            options: They are not used.

        Returns:
            The card.
        """
        return policy_card(self.predictor)


def policy_card(predictor: Predictor, keeper: Predictor | None = None) -> ModelCard:
    """Write the model card of a trained policy.

    Args:
        predictor: The predictor of the policy.
        keeper: The predictor `keep` that lies beside it; None where there is none.

    Returns:
        The card.
    """
    data = ModelCardData(library_name="learn2pd", tags=["learn2pd", "diffusion-llm", "decoding-policy"])
    model = predictor.contract.model or "a diffusion language model"
    parts = [
        f"# A decoding policy for {model}",
        f"This policy decides which proposals of {model} are committed at each decoding step. It is a "
        f"{_size(predictor)}, which gives every position of a window the probability that its proposal is "
        f"final. The policy commits a position whose probability is above {predictor.threshold:.4g}.",
        "```python\nfrom learn2pd import decode, load_model, load_policy\n\n"
        'model = load_model("PATH OR NAME OF THE MODEL")\n'
        'policy = load_policy("THIS REPOSITORY")\n'
        'print(decode(model, ["a question"], policy=policy).texts[0])\n```',
        "## What it was trained on",
        _bullets(_training(predictor)),
        "## Calibrated curve",
        _curve(predictor),
        "## Limits",
        _bullets(_limits(predictor)),
        *([] if keeper is None else _taking_back(keeper)),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _size(predictor: Predictor) -> str:
    parameters = sum(parameter.numel() for parameter in predictor.network.parameters())
    return f"`{type(predictor.network).__name__}` of {parameters:,} parameters"


def _taking_back(keeper: Predictor) -> list[str]:
    """Describe the predictor `keep`, with which the filter takes commits back."""
    beside = "its own threshold" if keeper.filter_threshold is None else f"{keeper.filter_threshold:.4g}"
    sure = keeper.confidence_threshold
    confident = f"commits what the model itself is surer of than {sure:.4g}, " if sure < 1 else ""
    return [
        "## Taking back",
        f"The folder `keep` holds a `keep` predictor, a {_size(keeper)}, which gives every committed token of the "
        f"window the probability that it still holds. The policy `keep` commits as the filter does above {beside}, "
        f"commits one more position in every step whose probability is above {keeper.one_more:.4g}, "
        f"{confident}and takes back "
        f"tokens whose probability is below {keeper.threshold:.4g}. These numbers were calibrated together.",
        '```python\nfrom learn2pd import load_keep\n\npolicy = load_keep("THIS REPOSITORY")\n```',
        _curve(keeper),
        _bullets(_measured(keeper)),
    ]


def _training(predictor: Predictor) -> list[str]:
    contract = predictor.contract
    lines = [
        f"The model was {contract.model or 'not named'}, and its fingerprint "
        f"{'`' + contract.model_fingerprint + '`' if contract.model_fingerprint else 'is not known'}.",
    ]
    trained_on = predictor.metrics.get("trained_on")
    if isinstance(trained_on, dict):
        return lines + [f"{name}: {value}" for name, value in trained_on.items()]
    return [*lines, "The prompts of the training are not recorded in this policy."]


def _curve(predictor: Predictor) -> str:
    if not predictor.curve:
        return "This policy was not calibrated. Its threshold is a guess."
    names = [field.name for field in fields(Setting)]
    rows = [[_number(getattr(setting, name)) for name in names] for setting in predictor.curve]
    table = [[MEASURES[name] for name in names], ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _limits(predictor: Predictor) -> list[str]:
    contract = predictor.contract
    lines = [
        f"It fits models with the mask id {contract.mask_id}, {contract.vocab_size} tokens and the end-of-text ids "
        f"{', '.join(map(str, contract.eot_ids))}. Other models are refused.",
    ]
    if contract.block_length is not None:
        lines.append(f"It works with blocks of {contract.block_length} tokens only.")
    return lines + _measured(predictor)


def _measured(predictor: Predictor) -> list[str]:
    """Say how far the measurements of a calibration reach."""
    metrics = predictor.metrics
    lines = []
    if metrics.get("target_met") is False:
        lines.append("No threshold kept to the target of the calibration. The strictest one is set.")
    if predictor.curve:
        held_out = f" on {metrics['prompts']} validation prompts" if "prompts" in metrics else ""
        sure = f" with confidence {metrics['confidence']}" if "confidence" in metrics else ""
        lines.append(
            f"The curve was measured{held_out}, greedily. The upper bound of the loss holds{sure} for prompts "
            "of the same kind. For other prompts, other lengths and sampling nothing was measured."
        )
    return lines


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
