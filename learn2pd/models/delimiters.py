"""Tokens that end a line, of any tokenizer."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def newline_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that are white space with a new line in it: the delimiters of AdaBlock where none are named."""
    texts = ((token, tokenizer.decode([token])) for token in range(len(tokenizer)))
    return [token for token, text in texts if "\n" in text and not text.strip()]
