"""The tokens that end a line, for any tokenizer."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from learn2pd.errors import UserError


def newline_ids(tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """List the tokens that consist of white space and hold a new line.

    AdaBlock takes them as its delimiters where the user names none.

    Args:
        tokenizer: The tokenizer of the model; None where it has none.

    Returns:
        The token ids.

    Raises:
        UserError: The model has no tokenizer.
    """
    if tokenizer is None:
        raise UserError("delimiter_ids is not given, and the model has no tokenizer to find them: give the token ids")
    texts = ((token, tokenizer.decode([token])) for token in range(len(tokenizer)))
    return [token for token, text in texts if "\n" in text and not text.strip()]
