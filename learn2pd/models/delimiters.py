"""The tokens that end a line, for any tokenizer."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def newline_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """List the tokens that consist of white space and hold a new line.

    AdaBlock takes them as its delimiters where the user names none.

    Args:
        tokenizer: The tokenizer of the model.

    Returns:
        The token ids.
    """
    texts = ((token, tokenizer.decode([token])) for token in range(len(tokenizer)))
    return [token for token, text in texts if "\n" in text and not text.strip()]
