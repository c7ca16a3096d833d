"""Progress bars, all of one style.

A bar appears when its work has taken two seconds. It stays away where standard error is no terminal, and where the log
of this package is set to warnings, as the command line does with `--quiet` and as Python does by itself.
"""

from __future__ import annotations

import logging
from typing import Any

from tqdm.auto import tqdm

PATIENCE_S = 2.0  # work that takes less shows no bar
log = logging.getLogger("learn2pd")


def progress_bar(total: int, what: str, unit: str, *, shown: bool = True, done: int = 0) -> tqdm[Any]:
    """Return a bar, to be used in a `with` block.

    Args:
        total: the number of units.
        what: the work, in one or two words.
        unit: what is counted, in the singular.
        shown: False hides the bar, such as in a process that only helps.
        done: the units that an earlier run has done.
    """
    # With None, tqdm looks whether standard error is a terminal.
    hidden = None if shown and log.isEnabledFor(logging.INFO) else True
    return tqdm(total=total, desc=what, unit=unit, initial=done, delay=PATIENCE_S, dynamic_ncols=True, disable=hidden)
