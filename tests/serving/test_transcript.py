"""What is said of an answer while it settles is a beginning of the answer, whatever the tokens and the stop strings."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from learn2pd.serving.transcript import Transcript
from learn2pd.stops.text import TextStop


def text_of(tokens) -> str:
    """Every token is a byte, so that a character may lie in several tokens."""
    return bytes(tokens).decode(errors="replace")


letters = st.text("abé€\n", max_size=12)


@given(letters, st.lists(st.text("abé€\n", min_size=1, max_size=4), max_size=3), st.sets(st.integers(0, 40)))
@example("xaab", ["aab", "ab"], {2, 3})
@example("€", [], {1, 2})
def test_the_pieces_are_the_text_before_the_first_stop_string(text, strings, places):
    tokens = list(text.encode())
    transcript = Transcript(text_of, strings, lambda text: text)
    said = ""
    for place in sorted(place for place in places if place < len(tokens)):
        transcript.grow(tokens[:place])
        said += transcript.news(last=False)
        assert text.startswith(said)
    transcript.grow(tokens)
    said += transcript.news(last=True)
    expected = TextStop(strings).final_text(text) if strings else text
    assert said == transcript.text == expected
    assert transcript.stopped == (expected != text or any(string in text for string in strings))


@given(letters, st.text("abé€\n", min_size=1, max_size=3))
def test_the_tokens_are_counted_up_to_the_one_that_completes_the_string(text, string):
    tokens = list(text.encode())
    transcript = Transcript(text_of, [string], lambda text: text)
    transcript.grow(tokens)
    counts = [count for count in range(len(tokens) + 1) if string in text_of(tokens[:count])]
    assert transcript.length == (counts[0] if counts else len(tokens))
