"""What an engine needs to run a policy: it reads one from a folder and lets it decide, step by step, over blocks.

The module needs torch and safetensors alone, so that it works in the environment of any engine, with any version of
transformers or with none. docs/engines.md shows it in use.
"""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError

from learn2pd.arguments import checked
from learn2pd.errors import UserError, first_line, user_errors
from learn2pd.loop.block import BlockMemory, BlockStep, block_step, check_block_policy, start_block
from learn2pd.predictors.accepting import Acceptance
from learn2pd.predictors.saving import DESCRIPTION, EXPECTED, WEIGHTS, Predictor, read_predictor
from learn2pd.registry import build
from learn2pd.roles import Policy
from learn2pd.types import CONFIDENCE, GREEDY, Commit, Sampling, Window

__all__ = [
    "GREEDY",
    "Acceptance",
    "BlockMemory",
    "BlockStep",
    "Commit",
    "Policy",
    "Predictor",
    "Sampling",
    "UserError",
    "Window",
    "block_step",
    "build",
    "check_block_policy",
    "check_model",
    "read_policy",
    "start_block",
]


@checked()
def read_policy(
    folder: str | os.PathLike[str], *, threshold: float | None = None, aggressiveness: float | None = None
) -> Acceptance:
    """Read a trained filter from a folder.

    Args:
        folder: The folder with `policy.json` and `model.safetensors`. A name of the hub is not looked up here;
            `learn2pd.load_policy` does it.
        threshold: A threshold that replaces the calibrated one.
        aggressiveness: A place on the calibrated curve, 0 (strictest) to 1 (boldest), whose threshold replaces the
            calibrated one.

    Returns:
        The policy.

    Raises:
        UserError: The folder is missing or damaged, or one of the numbers does not fit.
    """
    place = Path(os.path.expanduser(folder))
    subject = f"policy={str(folder)!r}"
    for name in (DESCRIPTION, WEIGHTS):
        if not (place / name).is_file():
            state = f"the folder holds no {name}" if place.is_dir() else "this is no folder"
            raise UserError(f"{subject}: {state}; expected {EXPECTED}")
    try:
        predictor = read_predictor(place, "filter", str(folder))
    except UserError as error:
        raise UserError(f"{subject}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, SafetensorError) as error:
        raise UserError(
            f"{subject}: {DESCRIPTION} or {WEIGHTS} is damaged ({first_line(error)}); export it again"
        ) from error
    with user_errors():
        return Acceptance(predictor.with_threshold(threshold, aggressiveness))


@checked()
def check_model(
    policy: Policy,
    engine: str,
    *,
    mask_id: int | None = None,
    vocab_size: int | None = None,
    block_length: int | None = None,
    alignment: str | None = None,
    revokes: bool = True,
) -> None:
    """Refuse a policy that cannot decide over an engine's blocks, or that was trained for another model.

    Args:
        policy: The policy.
        engine: The name of the engine, for messages.
        mask_id: The id of the mask token of the engine's model; None where it is not known yet.
        vocab_size: The logits of a position. There may be more than in the training, since some engines pad the
            vocabulary. None where it is not known yet.
        block_length: The tokens of a block; None where it is not known yet.
        alignment: `grid` where blocks are counted from the start of the sequence, `prompt` where they are counted from
            the end of the prompt; None where it is not known.
        revokes: False where the engine keeps every token that is committed.

    Raises:
        UserError: The two do not fit; the message names both values.
    """
    check_block_policy(policy, engine)
    if policy.revisions and not revokes:
        raise UserError(f"policy {policy.name!r} takes committed tokens back, {engine} keeps every one of them")
    width = policy.window_width
    if width is not None and block_length is not None and width != block_length:
        raise UserError(f"policy {policy.name!r} works on blocks of {width} tokens, {engine} has {block_length}")
    if not isinstance(policy, Acceptance):
        return
    contract = policy.predictor.contract
    pairs = (
        ("mask id", contract.mask_id, mask_id),
        ("block length", contract.block_length, block_length),
        ("alignment", contract.alignment, alignment),
        ("confidence", contract.confidence, CONFIDENCE),
    )
    for fact, trained, given in pairs:
        if trained is not None and given is not None and trained != given:
            raise UserError(f"the policy was trained for {fact} {trained!r}, {engine} has {given!r}")
    if vocab_size is not None and vocab_size < contract.vocab_size:
        raise UserError(
            f"the policy was trained for a vocabulary of {contract.vocab_size} tokens, "
            f"{engine} gives {vocab_size} logits"
        )
