"""The command line of the benchmarks: key=value."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch


def options_of(arguments: Sequence[str], defaults: dict[str, str]) -> dict[str, str]:
    """The options of a benchmark; the process ends with one line where a key is unknown.

    An option `threads` above 0 takes effect at once.

    Args:
        arguments: The arguments of the command line, written key=value.
        defaults: All keys with their defaults.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    unknown = sorted(given.keys() - defaults.keys())
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; expected some of {', '.join(defaults)}, written key=value")
    options = defaults | given
    if int(options.get("threads", "0")):
        torch.set_num_threads(int(options["threads"]))
    return options
