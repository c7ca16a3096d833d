r"""Task `final_number`: the user's own questions whose answer is a number, such as GSM8K.

The task has a checker and no generator.

The number of the answer must equal the number of the reference. The number of a text is, in this order:

1. the one in the last `\boxed{...}` or directly behind the last `####`, whichever of the two comes later;
2. else the last number of the text.

| written | is read as | because |
|---|---|---|
| `10-15 days`, `10 - 15`, `10–15` | 15 | a minus behind a number or a word is no sign |
| `-5`, `−5`, `-$5`, `$-5`, `= - 5`, `#### - 5` | -5 | every other minus at a number, or behind `=` or a mark, is one |
| `1,2,3`, `1.5,2.5` | 3, 2.5 | commas that do not group thousands separate numbers |
| `1,234.50`, `1 234`, `1_234`, `1'234`, `1{,}234`, `1~234` | 1234.5, 1234 | groups of three digits are one number |
| `1/2`, `3 1/2`, `3½`, `\frac{1}{2}`, `1 / 2` | 0.5, 3.5, 3.5, 0.5, 0.5 | fractions are divided |
| `50%`, `$5`, `5 kg`, `25 cm^2`, `90^\circ` | 50, 5, 5, 25, 90 | signs of currency, percent and units are left out |
| `５`, `1，234` | 5, 1234 | full-width characters are read as the ordinary ones |
| `1.5e3`, `1.5 × 10^3` | 1500 | scientific notation |
| `H2O`, `x2` | - | digits inside a word are no number |

Nothing is guessed. A text has no number where its last one may be read in two ways: `1.234,5` and `1 234,5` (decimal
comma), `1.2.3`, `1,23,456`, `12/25/2023`, `10:30`, `2^3`, `5²`, `5 100/200`, a fraction with the denominator zero, a
number of more than 300 digits. An answer without a number is wrong; a prompt whose reference has none is not judged.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Any

from learn2pd.data.tasks.base import Verdict

MOST_DIGITS = 300
BLANK = " \u00a0\u2009\u202f"  # blanks that may group digits
CURRENCY = "$€£¥₹"
SUPERSCRIPTS = "²³¹⁰⁴⁵⁶⁷⁸⁹⁺⁻^"
GROUPS = rf"[1-9][0-9]{{0,2}}(?:(?:,[0-9]{{3}})+|(?:[{BLANK}][0-9]{{3}})+)"
PLAIN = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
GROUPED = re.compile(rf"{GROUPS}(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
TWO_READINGS = re.compile(rf"[0-9]{{1,3}}(?:[.{BLANK}][0-9]{{3}})+,[0-9]+|[0-9]{{1,2}}(?:,[0-9]{{2}})+,[0-9]{{3}}")
WORD = r"(?<![A-Za-z_])[A-Za-z_]+[0-9][A-Za-z0-9_]*(?:\.[0-9]+)*"
RUN = rf"(?:(?<![A-Za-z0-9])\.)?[0-9]+(?:[.,:/^][0-9]+|[{BLANK}][0-9]{{3}}(?![0-9])|[eE][-+]?[0-9]+(?![A-Za-z]))*"
TOKEN = re.compile(rf"{WORD}|(?P<run>{RUN})")
MARKED = re.compile(rf"####[ \t]*(?=[-+{CURRENCY}\\]*\.?[0-9])(?![0-9]+[.)][ \t]+\S)([^\n]*)")
SIGN = re.compile(rf"-(?:\\?[{CURRENCY}])?$")
POWER = re.compile(r"\^\{?[-+]?$")
SCIENTIFIC = re.compile(r"(?<=[0-9])[ \t]*(?:×|x|\*|·|\\times|\\cdot)[ \t]*10[ \t]*\^[ \t]*\{?([-+]?[0-9]+)\}?")
PART = r"[ \t]*(?:\{[ \t]*(-?)[ \t]*([0-9.,]+)[ \t]*\}|([0-9]))"
FRACTION = re.compile(rf"\\[cdt]?frac{PART}{PART}")
WHOLE = re.compile(rf"(?<![0-9.,/])({GROUPS}|[0-9]{{1,9}})[ \t]$")
MIXED = re.compile(rf"(?:{GROUPS}|[0-9]{{1,9}})[ \t][0-9]+/[0-9]")
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}
UNIT = r"\\(?:text|textrm|mathrm|mbox)\{[^{}]*\}|(?<![A-Za-z])(?:[mcdk]m|ft|in|yd|mi|units?)|(?<=[ \t/])[ms]"
UNIT_POWER = re.compile(rf"({UNIT})\^(?:\{{-?[0-9]+\}}|-?[0-9]+)")
VULGAR = re.compile("[¼½¾⅐-⅞]")


def last_number(text: str) -> float | None:
    """Read the number of a text by the rules at the top of this file.

    Args:
        text: An answer.

    Returns:
        The number, or None where the text has none. A whole number is an int, so that large ones stay exact.
    """
    text = _normalised(text)
    boxed = text.rfind("\\boxed{")
    marks = list(MARKED.finditer(text))
    if marks and marks[-1].start() > boxed:
        return _first(marks[-1][1])
    if boxed >= 0:
        return _last(_braced(text[boxed + len("\\boxed{") :]))
    return _last(text)


def _normalised(text: str) -> str:
    text = re.sub("[\u2010-\u2013\u2212\ufe63\uff0d]", "-", text)
    text = text.translate(FULL_WIDTH).replace("{,}", ",").replace("\\!", "")
    text = re.sub(r"\\[ ,;:>]", " ", text)
    text = re.sub(r"(?<=[0-9])['\u2019~](?=[0-9]{3}(?![0-9]))", " ", text)
    text = re.sub(r"\^(?:\\circ|\{[ \t]*\\circ[ \t]*\})", "°", text)
    text = UNIT_POWER.sub(r"\1", text)
    text = FRACTION.sub(_divided, text)
    text = re.sub(r"(?<=[0-9])[ \t]*/[ \t]*(?=[0-9])", "/", text)
    text = VULGAR.sub(
        lambda match: _spaced(match, unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/")), text
    )
    text = SCIENTIFIC.sub(r"e\1", text)
    text = re.sub(r"(?<=[0-9])_(?=[0-9]{3})", "", text)
    text = re.sub(r"\b(?:USD|EUR|GBP|INR|Rs)(?=[0-9])", "", text)
    return re.sub(rf"(?:(?<==)|(?<=####)|(?<=\\boxed\{{))[ \t]*-[ \t]+(?=(?:\\?[{CURRENCY}])?\.?[0-9])", " -", text)


def _divided(match: re.Match[str]) -> str:
    """A fraction of LaTeX with a slash; a minus above or below goes before it."""
    sign = "-" if (match[1] or "") != (match[4] or "") else ""
    return _spaced(match, f"{sign}{match[2] or match[3]}/{match[5] or match[6]}")


def _spaced(match: re.Match[str], fraction: str) -> str:
    """A fraction behind a whole number keeps a blank before it."""
    return f" {fraction}" if match.string[max(match.start() - 1, 0) : match.start()].isdigit() else fraction


def _braced(text: str) -> str:
    """The text up to the brace that closes the one before it."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:place]
    return text


def _first(text: str) -> float | None:
    runs = _runs(text)
    if len(runs) > 1 and MIXED.match(text, runs[0].start()):
        return _value(runs[1], text)
    return _value(runs[0], text) if runs else None


def _last(text: str) -> float | None:
    runs = _runs(text)
    return _value(runs[-1], text) if runs else None


def _runs(text: str) -> list[re.Match[str]]:
    """The runs of digits and separators that are no part of a word."""
    return [match for match in TOKEN.finditer(text) if match["run"]]


def _value(match: re.Match[str], text: str) -> float | None:
    """The number of a run of digits and separators, with what stands before it."""
    run = match[0]
    before = text[: match.start()]
    if text[match.end() : match.end() + 1] in tuple(SUPERSCRIPTS) or POWER.search(before):
        return None
    size, rest = _size(run)
    if size is None:
        return None
    whole = WHOLE.search(before) if rest == "" and "/" in run and size < 1 else None
    if whole:
        more = _decimal(whole[1])
        if more is None:
            return None
        size += more
        before = before[: whole.start()]
    if rest == "" and _is_negative(before):
        size = -size
    return int(size) if size.denominator == 1 else float(size)


def _size(run: str) -> tuple[Fraction | None, str]:
    """Read the number of a run without its sign.

    Returns:
        The number, or None where it has two readings, and the part of the run that stands before the number.
    """
    if TWO_READINGS.fullmatch(run) and not GROUPED.fullmatch(run):
        return None, ""
    if PLAIN.fullmatch(run) or GROUPED.fullmatch(run):
        return _decimal(run), ""
    over, slash, under = run.partition("/")
    if slash and "/" not in under and (PLAIN.fullmatch(under) or GROUPED.fullmatch(under)):
        if re.search(f"[{BLANK}]", over):  # 5 100/200 is 5100/200, or 5 and a half
            return None, ""
        above, rest = _size(over)
        below = _decimal(under)
        return (above / below if above is not None and below else None), rest
    cut = max(run.rfind(separator) for separator in f",{BLANK}")
    if cut < 0:
        return None, ""
    return _size(run[cut + 1 :])[0], run[: cut + 1]


def _decimal(text: str) -> Fraction | None:
    """A plain or grouped decimal, None where it is beyond every sensible size."""
    digits = re.sub(f"[,{BLANK}]", "", text)
    exponent = re.search("[eE](.*)$", digits)
    if len(digits) > MOST_DIGITS or (exponent and abs(int(exponent[1])) > MOST_DIGITS):
        return None
    return Fraction(digits)


def _is_negative(before: str) -> bool:
    sign = SIGN.search(before)
    if sign is None:
        return False
    rest = before[: sign.start()]
    touching = rest[-1:]
    if touching.isalnum() or touching in tuple(")]}%-_"):
        return False
    nearest = rest.rstrip(" \t")[-1:]
    return not (nearest.isdigit() or nearest in tuple(")]}%"))


class FinalNumberTask:
    """The checker of questions whose answer is a number."""

    name = "final_number"

    def facts(self, prompt: str, answer: str) -> dict[str, Any]:
        """Extract the number of the reference answer.

        Args:
            prompt: The text of the prompt; the method does not read it.
            answer: The reference answer.

        Returns:
            The number, or nothing where the answer has none. Such a prompt is not judged.
        """
        number = last_number(answer)
        return {} if number is None else {"number": number}

    def check(self, facts: dict[str, Any], text: str) -> Verdict:
        """Judge any text. The method never raises because of a model's output."""
        expected = facts["number"]
        got = last_number(text)
        if got == expected:
            return Verdict(True)
        return Verdict(False, f"the number of the answer is {'missing' if got is None else got}, expected {expected}")
