"""The replay of a decode: every step of one prompt under several methods, as plain data that a page can show.

A replay holds what a reader of one run wants to see: the window, the proposals with their confidence, what was
committed, what the loop had to add, and what was taken back or overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from learn2pd.data.prompts import Prompt, encoded
from learn2pd.decoding import decode
from learn2pd.loop.observing import Observer
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.types import Sampling, Step

PROMPT_LETTERS = 600  # letters of a prompt that a replay keeps
MILLE = 1000  # confidences are kept in thousandths


class ReplayRecorder(Observer):
    """Keeps every step of the only row of a decode.

    Args:
        model: the model, whose tokenizer gives the texts of the tokens.

    Attributes:
        steps: the steps. A position is a number of the canvas, and a token is a number in `texts`.
        texts: the texts of the tokens.
        given: the positions that stood from the start, each with its token.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.steps: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.given: list[list[int]] = []
        self._numbers: dict[int, int] = {}

    def observe(self, step: Step) -> None:
        """Keep a step."""
        state, commit = step.state, step.commit
        if not self.steps:
            self.given = [[place, self.number(int(state.canvas[0, place]))] for place in _places(state.given[0])]
        inside = state.window.mask(state.gen_length)[0]
        proposed = (step.prediction.valid & state.masked)[0] & (inside | commit.mask[0])
        kept: dict[str, Any] = {
            "window": [int(state.window.start[0]), int(state.window.stop[0])],
            "end": int(step.after.end[0]),
            "at": _places(proposed),
            "token": [self.number(token) for token in step.prediction.tokens[0][proposed].tolist()],
            "sure": [round(MILLE * value) for value in step.prediction.confidence[0][proposed].tolist()],
            "commit": [
                [place, self.number(token)]
                for place, token in zip(_places(commit.mask[0]), step.tokens[0][commit.mask[0]].tolist(), strict=True)
            ],
        }
        if commit.forced is not None and bool(commit.forced.any()):
            kept["forced"] = _places(commit.forced[0])
        if commit.revoke is not None and bool(commit.revoke.any()):
            kept["revoked"] = _places(commit.revoke[0])
        self.steps.append(kept)

    def number(self, token: int) -> int:
        """Return the number of a token's text, which is added to `texts` where it is new."""
        if token not in self._numbers:
            self._numbers[token] = len(self.texts)
            self.texts.append(self.model.token_text(token))
        return self._numbers[token]


def _places(mask: Tensor) -> list[int]:
    """Return the positions of a mask [G] bool."""
    places: list[int] = mask.nonzero()[:, 0].tolist()
    return places


def replay(
    model: Model,
    prompt: Prompt,
    methods: Mapping[str, Method],
    *,
    gen_length: int,
    sampling: Sampling,
    seed: int,
    given: Sequence[Any] | None,
) -> dict[str, Any]:
    """Decode one prompt with several methods and keep every step.

    Args:
        model: the model.
        prompt: the prompt.
        methods: the methods by the names that a page shows. An oracle knows the answer of the
            first one.
        gen_length: length of the canvas, in tokens.
        sampling: temperature and filters of the proposals.
        seed: seed of the sampling.
        given: the part of the answer that stands from the start, as for `decode`.

    Returns:
        Plain data: the task, the prompt's text and, for each method, its steps, texts, answer and counts.
    """
    text = prompt.text if len(prompt.text) <= PROMPT_LETTERS else f"{prompt.text[:PROMPT_LETTERS]} ..."
    runs = []
    first: Tensor | None = None  # the answer of the first method, which an oracle without an answer knows
    for name, described in methods.items():
        recorder = ReplayRecorder(model)
        method = described
        if isinstance(described.policy, OraclePolicy) and first is not None:
            method = replace(described, policy=OraclePolicy(first))
        result = decode(
            model,
            encoded(model, [prompt]),
            method,
            gen_length=gen_length,
            sampling=sampling,
            seed=seed,
            given=given,
            observer=recorder,
        )
        first = result.tokens if first is None else first
        runs.append(
            {
                "method": name,
                "given": recorder.given,
                "steps": recorder.steps,
                "texts": recorder.texts,
                "answer": result.texts[0],
                "tokens": int(result.lengths[0]),
                "forwards": int(result.forwards[0]),
                "revoked": int(result.revoked[0]),
                "edited": int(result.edited[0]),
            }
        )
    return {"task": prompt.task or "prompts", "prompt": text, "gen_length": gen_length, "runs": runs}
