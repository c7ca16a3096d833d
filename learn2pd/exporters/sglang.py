"""SGLang: a decoding algorithm of its dLLM loops that asks a policy of this package.

SGLang finds `register` by the entry point group `sglang.srt.plugins`. It is launched with

    sglang serve --model-path MODEL --trust-remote-code --dllm-algorithm Learn2PD --dllm-algorithm-config learn2pd.yaml

where `export` writes learn2pd.yaml beside the policy. The file names the policy's folder, and optionally `threshold` or
`aggressiveness`.

The class keeps to the contract of SGLang 0.5.23 and was tested against its base classes, its plugin loader and both its
loops, on a CPU, without a server. Nobody has launched it on a GPU.

SGLang's loops are greedy: they hand no temperature to an algorithm, and a request that draws is refused. A policy that
reads the whole canvas or takes tokens back is refused too, since SGLang gives an algorithm one block and stops the
block when it has no mask.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from learn2pd.errors import UserError, check_options
from learn2pd.runtime import (
    Acceptance,
    BlockMemory,
    Window,
    block_step,
    check_model,
    read_policy,
    start_block,
)

ENGINE = "SGLang"
NAME = "Learn2PD"
SETTINGS = "learn2pd.yaml"
OPTIONS: tuple[str, ...] = ()  # of `export`
KEYS = ("policy", "threshold", "aggressiveness", "block_size")  # of the file; SGLang itself reads the last one


def algorithm() -> type:
    """Make the class of the algorithm, which derives from a class of SGLang.

    Returns:
        The class.
    """
    from sglang.srt.dllm.algorithm.base import DllmAlgorithm

    class Learn2PD(DllmAlgorithm):
        """A step commits in every request's block what the policy accepts, and at least one position."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.policy = policy_of(config.algorithm_config)
            check_model(
                self.policy, ENGINE, mask_id=self.mask_id, block_length=self.block_size, alignment="grid", revokes=False
            )

        @classmethod
        def validate_request(cls, req: Any) -> str | None:
            # SGLang turns temperature 0 into top_k 1
            if req.sampling_params.top_k == 1:
                return None
            return f"{NAME} decodes greedily, the request draws tokens: set temperature=0"

        def init_step_state(self, forward_batch: Any) -> list[Any]:
            # Which part of a block is prompt is known only before its first step. Committed tokens look the same.
            tokens = self._blocks(forward_batch)
            masked = ~self._prompt_mask(forward_batch) & (tokens == self.mask_id)
            first = (~masked).cumprod(1).sum(1)  # the prompt is the start of a block
            memory = start_block(self.policy, tokens, masked, self.mask_id, self.policy.predictor.contract.vocab_size)
            return [(first[one], memory.rows(one)) for one in torch.arange(len(tokens), device=tokens.device).split(1)]

        def step(self, forward_batch: Any, full_logits: torch.Tensor, states: list[Any]) -> list[bool]:
            tokens = self._blocks(forward_batch)
            logits = full_logits.view(*tokens.shape, -1)
            check_model(self.policy, ENGINE, mask_id=self.mask_id, vocab_size=logits.shape[-1])
            start = torch.cat([first for first, _ in states])
            window = Window(start, torch.full_like(start, tokens.shape[1]))
            masked = (tokens == self.mask_id) & window.mask(tokens.shape[1])
            prompt = forward_batch.dllm_prompt_mask
            if prompt is not None:
                masked = masked & ~prompt
            # The block may be emitted once a forward has kept the keys and values of its final tokens.
            done = ~masked.any(1)
            memory = BlockMemory.stack([own for _, own in states])
            result = block_step(self.policy, logits, tokens, masked, window, memory, mask_id=self.mask_id)
            if bool(result.failed.any()):
                raise UserError(f"{ENGINE}: the model gave logits that are not finite")
            forward_batch.input_ids.copy_(result.tokens.view(-1))
            for row, one in enumerate(torch.arange(len(tokens), device=tokens.device).split(1)):
                states[row] = (start[one], result.memory.rows(one))
            return done.tolist()

        def _blocks(self, forward_batch: Any) -> torch.Tensor:
            """Return the tokens of every request's block, [B, W] long."""
            return forward_batch.input_ids.view(forward_batch.batch_size, self.block_size)

    return Learn2PD


def policy_of(settings: dict[str, Any]) -> Acceptance:
    """Read the policy that the settings of SGLang's algorithm name.

    Args:
        settings: The content of the file.

    Returns:
        The policy.

    Raises:
        UserError: A key is missing or unknown, or the policy cannot be read.
    """
    check_options(f"--dllm-algorithm-config of {NAME}", settings, KEYS)
    if "policy" not in settings:
        raise UserError(f"--dllm-algorithm-config of {NAME} names no policy: expected policy: FOLDER")
    options = {name: settings[name] for name in ("threshold", "aggressiveness") if settings.get(name) is not None}
    return read_policy(settings["policy"], **options)


def register() -> None:
    """Make SGLang know the algorithm. SGLang calls this function in its launcher and in every scheduler."""
    from sglang.srt.dllm import algorithm as known

    known.algo_name_to_cls[NAME] = algorithm()


def export(policy: Any, folder: Path) -> str:
    """Write the policy and the settings of SGLang's algorithm.

    Args:
        policy: The trained policy.
        folder: The folder, which exists and is empty.

    Returns:
        How the folder is used, in one line.

    Raises:
        UserError: SGLang cannot run the policy.
    """
    contract = policy.predictor.contract
    check_model(policy, ENGINE, mask_id=contract.mask_id, alignment="grid", revokes=False)
    policy.save_pretrained(folder)
    place = folder.resolve()
    (folder / SETTINGS).write_text(f"policy: {_quoted(str(place))}\nthreshold: null\n", encoding="utf-8")
    return f"sglang serve ... --dllm-algorithm {NAME} --dllm-algorithm-config {place / SETTINGS}"


def _quoted(text: str) -> str:
    """Return a text as YAML writes it between double quotes, in ASCII."""
    plain = (letter if " " <= letter <= "~" and letter not in '"\\' else f"\\U{ord(letter):08x}" for letter in text)
    return f'"{"".join(plain)}"'
