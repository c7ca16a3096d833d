"""What both families check of a config.json before a network is built from it.

Raises:
    ValueError: in every function, with the field's name.
"""

from __future__ import annotations

from typing import Any


def check_whole(**fields: Any) -> None:
    """Refuse anything but whole numbers of at least 1."""
    for name, value in fields.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"config.json: {name}={value!r}, expected a whole number of at least 1")


def check_positive(**fields: Any) -> None:
    """Refuse anything but numbers above 0."""
    for name, value in fields.items():
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise ValueError(f"config.json: {name}={value!r}, expected a number above 0")


def plain_rotation(other: dict[str, Any], theta: float) -> float:
    """Take the descriptions of rotary positions out of `other` and return the base they give, `theta` where they give none.

    `rope_scaling` is the old field; transformers 5 writes `rope_parameters`, which also holds the base. Stretched positions are refused.
    """
    for name in ("rope_scaling", "rope_parameters"):
        given = other.pop(name, None)
        if given is None:
            continue
        rest = {key: value for key, value in given.items() if key != "rope_theta"} if isinstance(given, dict) else given
        if rest not in ({}, {"rope_type": "default"}, {"type": "default"}, {"rope_type": "default", "type": "default"}):
            raise ValueError(f"config.json: {name}={given!r}, only plain rotary positions are implemented (null)")
        theta = given.get("rope_theta", theta)
    return theta
