"""diffusers: a scheduler for `LLaDA2Pipeline` that asks a policy of this package which positions to commit.

The scheduler takes the place of diffusers' `BlockRefinementScheduler`. The policy travels with it: `save_pretrained`,
`from_pretrained` and `push_to_hub` write and read the policy's files beside the scheduler's configuration.

    pipeline = LLaDA2Pipeline(model=model, scheduler=Learn2PDScheduler.from_pretrained(FOLDER), tokenizer=tokenizer)

A step commits at least as many positions as the pipeline's own schedule, because the pipeline leaves a block after its
number of steps, whatever is left. With at least as many steps as positions this is one position a step, as in this
package's loop. The pipeline lays its blocks on a grid from the first column, ends the sequence behind the open block,
and does not say where an answer of fewer tokens than the last block ends. Its positions also count the padding, so that
a left-padded prompt is decoded otherwise than alone. All of this is so with the scheduler of diffusers too.

The pipeline's options `threshold`, `editing_threshold` and `minimal_topk` are those of the other scheduler's rule. This
one does not read them: the policy decides, and nothing is edited. Temperature is refused, since the policy's draws need
a seed for each row and the pipeline has one generator. A policy that reads the whole canvas or takes tokens back is
refused, since the pipeline gives it one block and leaves the block when it has no mask.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    BlockRefinementScheduler,
    SchedulerMixin,
)
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_block_refinement import (
    BlockRefinementSchedulerOutput,
)
from torch import Tensor

from learn2pd.arguments import checked
from learn2pd.errors import UserError
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.loading import load_predictor
from learn2pd.roles import Policy
from learn2pd.runtime import BlockMemory, Window, block_step, check_model

__all__ = ["Learn2PDScheduler", "SchedulerMixin"]  # LLaDA2Pipeline.from_pretrained looks for the latter in this module
ENGINE = "diffusers"
OPTIONS = ("block_length",)  # of `export`
BLOCK_LENGTH = 32


class Learn2PDScheduler(BlockRefinementScheduler):
    """The scheduler. `from_policy` and `from_pretrained` make one.

    Args:
        block_length: The tokens of a block.
        num_inference_steps: The steps of a block that the pipeline's schedule has until the pipeline sets another
            number.
        policy_threshold: A threshold that replaces the calibrated one of the policy.
    """

    policy: Policy | None = None
    _memory: BlockMemory | None = None

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        block_length: int = BLOCK_LENGTH,
        num_inference_steps: int = BLOCK_LENGTH,
        policy_threshold: float | None = None,
    ) -> None:
        # The constructor of the base would register its own options in the place of these.
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1, dtype=torch.long)
        self._transfer_schedule = None
        self._committed = None

    @classmethod
    @checked()
    def from_policy(cls, policy: Policy, block_length: int | None = None) -> Learn2PDScheduler:
        """Make a scheduler that asks a policy.

        Args:
            policy: The policy.
            block_length: The tokens of a block; None takes those of the policy, else 32.

        Returns:
            The scheduler.

        Raises:
            UserError: The pipeline cannot run the policy, or the block length is below 1.
        """
        if block_length is not None and block_length < 1:
            raise UserError(f"block_length={block_length}: expected at least 1")
        length = block_length or _block_length(policy)
        check_model(policy, ENGINE, block_length=length, alignment="grid", revokes=False)
        scheduler = cls(block_length=length, num_inference_steps=length)
        scheduler.policy = policy
        return scheduler

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int | None = None,
        temperature: float = 0.0,
        prompt_mask: Tensor | None = None,
        return_dict: bool = True,
        **_: Any,
    ) -> Any:
        """Commit what the policy accepts in a block, and at least what the pipeline's schedule needs.

        Args:
            model_output: [B, W, V] float, the logits of the block.
            timestep: The number of the step in the block, 0 for the first.
            sample: [B, W] long, the tokens of the block.
            mask_token_id: The id of the mask token.
            temperature: Only 0 is accepted.
            prompt_mask: [W] bool, the positions of the block that are prompt.
            return_dict: False returns a tuple.

        Returns:
            The output of diffusers' scheduler.

        Raises:
            UserError: There is no policy, it does not fit the model, or the pipeline asks for a temperature.
        """
        policy = self.policy
        if policy is None:
            raise UserError("this scheduler has no policy: make it by Learn2PDScheduler.from_policy or from_pretrained")
        if temperature:
            raise UserError(
                f"temperature={temperature}: the policy needs a seed for each row, {ENGINE} has one generator for all "
                "rows: use temperature=0"
            )
        if mask_token_id is None:
            raise UserError(
                f"mask_token_id=None: the policy decides about masks, {ENGINE} renoises without a mask token"
            )
        rows, width = sample.shape
        check_model(
            policy,
            ENGINE,
            mask_id=mask_token_id,
            vocab_size=model_output.shape[-1],
            block_length=width,
            alignment="grid",
            revokes=False,
        )
        prompt = torch.zeros_like(sample[0], dtype=torch.bool) if prompt_mask is None else prompt_mask
        number = int(timestep)
        window = Window(prompt.sum().expand(rows), torch.full((rows,), width, device=sample.device))
        owed = 1
        if self._transfer_schedule is not None:
            owed = max(1, int(self._transfer_schedule[min(number, len(self._transfer_schedule) - 1)]))
        result = block_step(
            policy,
            model_output,
            sample,
            (sample == mask_token_id) & ~prompt,
            window,
            None if number == 0 else self._memory,
            mask_id=mask_token_id,
            least=owed,
        )
        if bool(result.failed.any()):
            raise UserError(f"{ENGINE}: the model gave logits that are not finite")
        self._memory = result.memory
        edited = torch.zeros_like(result.commit.mask)
        fields = (result.tokens, result.commit.mask, edited, result.proposals, result.confidence, model_output)
        return BlockRefinementSchedulerOutput(*fields) if return_dict else fields

    def save_config(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **options: Any) -> None:
        """Save the configuration and the policy, also for `save_pretrained`, `push_to_hub` and a pipeline.

        Args:
            save_directory: The folder.
            push_to_hub: True also pushes the folder to the hub.
            options: The options of diffusers.

        Raises:
            UserError: The policy is a rule, which has no files.
        """
        if not isinstance(self.policy, FilterPolicy):
            named = "no policy" if self.policy is None else f"the rule {self.policy.name!r}"
            raise UserError(f"this scheduler has {named}: only a trained policy is saved")
        self.policy.save_pretrained(Path(save_directory))
        super().save_config(save_directory, push_to_hub=push_to_hub, **options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **options: Any,
    ) -> Any:
        """Load a scheduler with its policy.

        Args:
            pretrained_model_name_or_path: A folder or a hub name.
            subfolder: The folder inside it in which the files lie, such as `scheduler`.
            return_unused_kwargs: True also returns the options that were not used.
            options: The options of diffusers, such as `revision`.

        Returns:
            The scheduler, and the unused options if they are asked for.

        Raises:
            UserError: The policy is missing or damaged.
        """
        scheduler, unused = super().from_pretrained(
            pretrained_model_name_or_path, subfolder=subfolder, return_unused_kwargs=True, **options
        )
        predictor = load_predictor(
            str(pretrained_model_name_or_path), "filter", subfolder or "", options.get("revision")
        )
        if scheduler.config.policy_threshold is not None:
            predictor = replace(predictor, threshold=scheduler.config.policy_threshold)
        scheduler.policy = FilterPolicy(predictor)
        return (scheduler, unused) if return_unused_kwargs else scheduler


def _block_length(policy: Policy) -> int:
    trained = policy.predictor.contract.block_length if isinstance(policy, FilterPolicy) else None
    return policy.window_width or trained or BLOCK_LENGTH


def export(policy: FilterPolicy, folder: Path, block_length: int | None = None) -> str:
    """Write the scheduler's configuration and the policy.

    Args:
        policy: The trained policy.
        folder: The folder, which exists and is empty.
        block_length: As for `Learn2PDScheduler.from_policy`.

    Returns:
        How the folder is used, in one line.

    Raises:
        UserError: The pipeline cannot run the policy.
    """
    Learn2PDScheduler.from_policy(policy, block_length).save_pretrained(folder)
    return f"Learn2PDScheduler.from_pretrained({str(folder)!r}) from learn2pd.exporters.diffusers"
