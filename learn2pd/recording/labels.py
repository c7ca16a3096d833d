"""Labels of recorded states that do not call every wording but one wrong.

The label of a recording says whether a proposal equals the token of a reference. `labelled_tables` gives some of the
states other labels: `continuation`, `checked` and `checked_together` (continuing.py). The tables are those of a
recording of their own, whose shards are made and resumed like all others, so that an interruption costs each process
one shard.

In the shapes, N is the number of states and G of canvas positions.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learn2pd.continuing import OPEN, Continuer, Referee, by_check, by_continuation
from learn2pd.data.prompts import Prompt, encoded
from learn2pd.method import Method
from learn2pd.models.infilling import given_tokens
from learn2pd.models.loading import Model
from learn2pd.recording.reading import Recording
from learn2pd.recording.recorder import Judge
from learn2pd.recording.writing import Tables
from learn2pd.types import Window

TEXTS = ("prompt_id", "split", "prompt")  # columns of a reference that stay as they are, like the next ones
NUMBERS = ("tokens", "length", "forwards", "oracle_forwards")


@dataclass(frozen=True)
class Sample:
    """Which states and positions are labelled. They are drawn by the prompt and the seed.

    Attributes:
        states: The most states of a prompt; 0 takes all.
        positions: The most masked positions of the window of a state that `checked` labels; 0 takes all.
        seed: The seed.
    """

    states: int
    positions: int
    seed: int

    def of_states(self, prompts: Sequence[Prompt], owner: Tensor) -> Tensor:
        """Draw states.

        Args:
            prompts: The prompts.
            owner: [N] long, the place of each state's prompt.

        Returns:
            The numbers of the states, ascending.
        """
        drawn = []
        for place, prompt in enumerate(prompts):
            rows = (owner == place).nonzero()[:, 0]
            if self.states:
                rows = rows[torch.randperm(len(rows), generator=self._generator(prompt))[: self.states]]
            drawn.append(rows)
        return torch.cat(drawn).sort().values

    def of_positions(self, prompts: Sequence[Prompt], owner: Tensor, step: Tensor, candidates: Tensor) -> Tensor:
        """Draw positions of states.

        Args:
            prompts: The prompts.
            owner: [N] long, the place of each state's prompt.
            step: [N] long, the numbers of the states.
            candidates: [N, G] bool, the positions that may be drawn.

        Returns:
            [N, G] bool.
        """
        if not self.positions:
            return candidates
        draws = torch.stack(
            [
                torch.rand(candidates.shape[1], generator=self._generator(prompts[place], number + 1))
                for place, number in zip(owner.tolist(), step.tolist(), strict=True)
            ]
        )
        rank = draws.masked_fill(~candidates, 2).argsort(dim=1).argsort(dim=1)
        return candidates & (rank < self.positions)

    def _generator(self, prompt: Prompt, number: int = 0) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed} {number} {prompt.id}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)


def labelled_tables(
    model: Model,
    prompts: Sequence[Prompt],
    recording: Recording,
    methods: Sequence[Method],
    judge: Judge | None,
    sample: Sample,
    *,
    together: bool = False,
    batch_size: int,
    given: Sequence[Any] | None = None,
) -> Tables:
    """Give recorded states of some prompts other labels.

    Args:
        model: the model that continues.
        prompts: the prompts of one shard.
        recording: the recording that holds the states. Their committed tokens must be those of its references.
        methods: the methods that continue. The label `continuation` takes the first one; with `checked` the next one
            continues where the answer of the one before is wrong.
        judge: says which answers are right, and makes the labels those of `checked`; None labels by `continuation`. An
            answer that equals the reference counts as right too.
        sample: the states and positions that are labelled. The other states are left out.
        together: makes the labels those of `checked_together`: a proposal is committed together with all proposals of
            the window that the right continuation of the state writes itself.
        batch_size: rows that are decoded together.
        given: the parts of every answer that stand from the start, as for `decode`.

    Returns:
        The tables of the shard. States of which no label is known are left out.
    """
    names = [prompt.id for prompt in prompts]
    owner, states = recording.states_of(names)
    rows = sample.of_states(prompts, owner)
    owner, states = owner[rows], _rows(states, rows)
    known = recording.references_of(names).with_format("torch")
    references: dict[str, Any] = {name: torch.as_tensor(known[name][:]) for name in NUMBERS}
    references |= {name: list(known[name]) for name in TEXTS}
    tokens = references["tokens"].long()
    canvas = torch.where(states["masked"], OPEN, tokens[owner])
    proposals = states["proposal"].long()
    scored = states["confidence"] > 0
    fixed = None if given is None else given_tokens(model, [given] * len(prompts), recording.gen_length)
    continuers = [
        Continuer(model, encoded(model, prompts), method, recording.gen_length, batch_size, fixed) for method in methods
    ]
    if judge is None:
        labels = by_continuation(continuers[0], owner, canvas, proposals)
    else:
        texts = continuers[0].texts(torch.arange(len(prompts)), tokens)
        referee = Referee(continuers, functools.partial(_is_right, prompts, texts, judge))
        window = Window(states["start"], states["stop"]).mask(recording.gen_length)
        eligible = states["masked"] & scored & window
        asked = sample.of_positions(prompts, owner, states["step"], eligible)
        labels = by_check(referee, owner, canvas, proposals, asked, eligible if together else None)
        states["labelled"] = labels.known
        references["wordings"] = [referee.right_wordings(place) for place in range(len(prompts))]
    states["label"] = labels.right & scored
    forwards = torch.zeros(len(prompts), dtype=torch.long)
    references["label_forwards"] = forwards.index_add(0, owner, labels.forwards)
    return Tables(_rows(states, labels.known.any(1).nonzero()[:, 0]), references)


def _rows(columns: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Return some rows of columns, which are tensors or lists."""
    return {
        name: values[rows] if isinstance(values, Tensor) else [values[row] for row in rows.tolist()]
        for name, values in columns.items()
    }


def _is_right(prompts: Sequence[Prompt], references: Sequence[str], judge: Judge, number: int, text: str) -> bool:
    return text == references[number] or judge([prompts[number]], [text])[0]
