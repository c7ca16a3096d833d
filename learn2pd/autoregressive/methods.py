"""The methods of decoding with an autoregressive model: plain, speculative, and PEARL.

The rules:

- *Plain* decoding runs the target once a token.
- *Speculative* decoding (arXiv 2211.17192) lets a small draft model write a fixed number of tokens, the draft length.
  One forward of the target tests all of them. The tokens before the first one that does not stand are kept, and the
  target's own token follows them.
- *PEARL* (arXiv 2408.11850) runs draft and target at the same time. While the draft writes, the target tests what the
  draft wrote in the round before, and the first token that the draft writes now. After a refusal nothing is left to
  test, so that the target tests the first token of the new draft alone (*pre-verify*). While all tokens stand, the
  draft never waits (*post-verify*), and a run of the draft becomes as long as the target agrees.

In all of them the answers are the target's: token for token at temperature 0, in distribution otherwise (drawing.py).

Deviations from the authors' code of PEARL: rows of unequal lengths are decoded in one batch. A row ends at its
end-of-text, and never holds more than the canvas. Draft and target are two threads of one process, each with a stream
of its own on a GPU, so that one device or two may be used. Draws depend on the seed and the position, so that no
process has to repeat another one's.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from typing import Any

from learn2pd.arguments import checked
from learn2pd.autoregressive.model import CausalModel, load_causal_model
from learn2pd.errors import UserError, check_at_least
from learn2pd.models.causal import vocabulary_difference

log = logging.getLogger(__name__)


class AutoregressiveMethod:
    """Plain decoding, and the part that all methods share.

    Args:
        target: The model whose answers are wanted.

    Attributes:
        name: The name of the method in messages and tables.
        draft: The model that writes drafts; None where no model does.
        draft_length: The tokens that the draft writes in a round, 0 without a draft.
        overlaps: Whether draft and target run at the same time.
    """

    name = "autoregressive"
    draft: CausalModel | None = None
    draft_length = 0
    overlaps = False

    @checked()
    def __init__(self, target: CausalModel) -> None:
        self.target = target

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the method and its models."""
        models = [self.target.fingerprint, self.draft.fingerprint if self.draft else None]
        return hashlib.sha256(json.dumps([self.name, self.draft_length, *models]).encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r})"


class _DraftedMethod(AutoregressiveMethod):
    """The part that the methods with a draft share.

    Args:
        target: The model whose answers are wanted.
        draft: A smaller model with the same vocabulary.
        draft_length: The tokens that the draft writes in a round, at least 1.

    Raises:
        UserError: The two models have different vocabularies.
        ValueError: The draft length is below 1.
    """

    draft: CausalModel

    @checked()
    def __init__(self, target: CausalModel, draft: CausalModel, draft_length: int = 4) -> None:
        super().__init__(target)
        self.draft = draft
        self.draft_length = check_at_least(1, "draft_length", draft_length)
        _check_pair(target, draft)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r}, {self.draft!r}, draft_length={self.draft_length})"


class SpeculativeMethod(_DraftedMethod):
    """Speculative decoding with a fixed draft length.

    Args:
        target: The model whose answers are wanted.
        draft: A smaller model with the same vocabulary.
        draft_length: The tokens that the draft writes in a round, at least 1.

    Raises:
        UserError: The two models have different vocabularies.
        ValueError: The draft length is below 1.
    """

    name = "speculative"


class PearlMethod(_DraftedMethod):
    """PEARL: draft and target run at the same time, and the draft goes on while its tokens stand.

    Args:
        target: The model whose answers are wanted.
        draft: A smaller model with the same vocabulary.
        draft_length: The tokens that the draft writes in a round, at least 1. About as many as the draft can write
            while the target runs once keep both busy.

    Raises:
        UserError: The two models have different vocabularies.
        ValueError: The draft length is below 1.
    """

    name = "pearl"
    overlaps = True


def _check_pair(target: CausalModel, draft: CausalModel) -> None:
    """Refuse a draft with another vocabulary, and warn of one that is not smaller than its target."""
    if target.tokenizer is None or draft.tokenizer is None:
        if target.vocab_size != draft.vocab_size:
            raise UserError(
                f"draft {draft.name} has {draft.vocab_size} tokens, target {target.name} has {target.vocab_size}: "
                "a draft needs the vocabulary of its target"
            )
    else:
        theirs = draft.tokenizer.get_vocab()
        ours = target.tokenizer.get_vocab()
        difference = vocabulary_difference(ours, theirs)
        if difference:
            token, more = difference
            raise UserError(
                f"draft {draft.name} has another vocabulary than target {target.name}: {token!r} is "
                f"{theirs.get(token)} in the one and {ours.get(token)} in the other, and {more} more differ; "
                "a draft needs the tokenizer of its target"
            )
    if draft.parameters >= target.parameters:
        log.warning(
            "draft %s has %d parameters and target %s has %d: "
            "a draft that is not smaller than its target only costs time",
            draft.name,
            draft.parameters,
            target.name,
            target.parameters,
        )


# a sweep over draft lengths names the same models again and again
_model = functools.lru_cache(maxsize=4)(load_causal_model)


@checked()
def load_autoregressive(target: str, dtype: str = "float32", device: str = "auto") -> AutoregressiveMethod:
    """Build plain decoding with a model from a folder or from the hub.

    Args:
        target: A folder or a hub name.
        dtype: The type of the weights, such as `float32` or `bfloat16`.
        device: `auto`, `cpu`, `cuda` and so on.

    Returns:
        The method.

    Raises:
        UserError: The model cannot be loaded.
    """
    return AutoregressiveMethod(_model(target, dtype, device, "target"))


@checked()
def load_speculative(
    target: str,
    draft: str,
    draft_length: int = 4,
    dtype: str = "float32",
    device: str = "auto",
    draft_device: str | None = None,
) -> SpeculativeMethod:
    """Build speculative decoding with two models from folders or from the hub.

    Args:
        target: A folder or a hub name.
        draft: A folder or a hub name of a smaller model with the same tokenizer.
        draft_length: The tokens that the draft writes in a round, at least 1.
        dtype: The type of the weights of both.
        device: `auto`, `cpu`, `cuda` and so on.
        draft_device: The device of the draft; None takes that of the target.

    Returns:
        The method.

    Raises:
        UserError: A model cannot be loaded, or the two have different vocabularies.
        ValueError: The draft length is below 1.
    """
    return SpeculativeMethod(*_pair(target, draft, dtype, device, draft_device), draft_length)


@checked()
def load_pearl(
    target: str,
    draft: str,
    draft_length: int = 4,
    dtype: str = "float32",
    device: str = "auto",
    draft_device: str | None = None,
) -> PearlMethod:
    """Build PEARL with two models from folders or from the hub.

    Args:
        target: A folder or a hub name.
        draft: A folder or a hub name of a smaller model with the same tokenizer.
        draft_length: The tokens that the draft writes in a round, at least 1.
        dtype: The type of the weights of both.
        device: `auto`, `cpu`, `cuda` and so on.
        draft_device: The device of the draft, such as `cuda:1`; None takes that of the target.

    Returns:
        The method.

    Raises:
        UserError: A model cannot be loaded, or the two have different vocabularies.
        ValueError: The draft length is below 1.
    """
    return PearlMethod(*_pair(target, draft, dtype, device, draft_device), draft_length)


def _pair(target: str, draft: str, dtype: str, device: str, draft_device: str | None) -> tuple[Any, Any]:
    return _model(target, dtype, device, "target"), _model(draft, dtype, draft_device or device, "draft")
