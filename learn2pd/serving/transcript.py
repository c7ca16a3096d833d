"""The text of one answer while it settles from the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from learn2pd.stops.text import tokens_until

UNFINISHED = "\ufffd"  # stands at the end of a text whose last character lacks bytes


class Transcript:
    """Says what can be read of an answer, so that nothing that was said must be taken back.

    Args:
        text_of: The function that turns token ids into text.
        stop_strings: The texts before which the answer ends.
        final_text: The function of the stop rule that takes from an answer what only ended it.

    Attributes:
        length: The tokens of the answer so far, with those of the text that stopped it.
        stopped: Whether one of the texts has ended the answer.
    """

    def __init__(
        self,
        text_of: Callable[[Sequence[int]], str],
        stop_strings: Sequence[str],
        final_text: Callable[[str], str],
    ) -> None:
        self.length = 0
        self.stopped = False
        self._text_of = text_of
        self._strings = stop_strings
        self._final_text = final_text
        self._text = ""
        self._said = 0  # characters of the text that were said

    @property
    def text(self) -> str:
        """The text of the answer so far, without what ended it."""
        return self._final_text(self._text)

    def grow(self, tokens: list[int]) -> None:
        """Take the settled tokens of the answer.

        Args:
            tokens: All tokens from the left that no later step changes, without an end-of-text.
        """
        if self.stopped or len(tokens) == self.length:
            return
        self.length = len(tokens)
        self._text = self._text_of(tokens)
        places = [place for place in map(self._text.find, self._strings) if place >= 0]
        if places:
            self.stopped = True
            self.length = tokens_until(tokens, self._strings, self._text_of)
            self._text = self._text[: min(places)]

    def news(self, last: bool) -> str:
        """Return the text that was not said yet.

        Args:
            last: True where the answer has ended. Otherwise a text that may become the beginning of a stop string, or
                a character that lacks bytes, waits for its rest.
        """
        text = self.text
        if not (last or self.stopped):
            text = text.rstrip(UNFINISHED)
            text = text[: len(text) - max((_overlap(text, string) for string in self._strings), default=0)]
        news = text[self._said :]
        self._said += len(news)
        return news


def _overlap(text: str, string: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a string."""
    return next((size for size in range(len(string) - 1, 0, -1) if text.endswith(string[:size])), 0)
