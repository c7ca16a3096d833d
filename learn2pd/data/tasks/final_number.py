"""Task `final_number`: questions of the user's own whose answer is a number, such as GSM8K. It has a checker and no generator.

The last number of the text must equal the last number of the reference answer.
"""

from __future__ import annotations

import re
from typing import Any

from learn2pd.data.tasks.base import Verdict

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> float | None:
    """The last number of a text, thousands separators removed; None where there is none."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


class FinalNumberTask:
    name = "final_number"

    def check(self, facts: dict[str, Any], text: str) -> Verdict:
        expected, got = facts["number"], last_number(text)
        return Verdict(True) if got == expected else Verdict(False, f"the last number is {got}, expected {expected}")
