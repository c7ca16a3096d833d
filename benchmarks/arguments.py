"""The command line of the benchmarks: key=value."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch


def options_of(arguments: Sequence[str], defaults: dict[str, str]) -> dict[str, str]:
    """The defaults with what was given; leaves with one line where a key is unknown. `threads` above 0 takes effect at once."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if given.keys() - defaults.keys():
        sys.exit(
            f"unknown: {', '.join(sorted(given.keys() - defaults.keys()))}; expected some of {', '.join(defaults)}, written key=value"
        )
    options = defaults | given
    if int(options.get("threads", "0")):
        torch.set_num_threads(int(options["threads"]))
    return options
