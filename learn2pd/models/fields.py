"""Checks that both families run on the fields of a config.json before they build a network."""

from __future__ import annotations

from typing import Any


def check_whole(**fields: Any) -> None:
    """Refuse values that are not whole numbers of at least 1.

    Args:
        fields: The values by the names of their fields.

    Raises:
        ValueError: A value is refused; the message names its field.
    """
    for name, value in fields.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"config.json: {name}={value!r}, expected a whole number of at least 1")


def check_positive(**fields: Any) -> None:
    """Refuse values that are not finite numbers above 0.

    Args:
        fields: The values by the names of their fields.

    Raises:
        ValueError: A value is refused; the message names its field.
    """
    for name, value in fields.items():
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise ValueError(f"config.json: {name}={value!r}, expected a number above 0")


def plain_rotation(other: dict[str, Any], theta: float) -> float:
    """Take the fields that describe rotary positions out of a configuration, and return the base of the rotation.

    The old field is `rope_scaling`. transformers 5 writes `rope_parameters`, which also holds the base.

    Args:
        other: The remaining fields of the configuration; the function removes the two from it.
        theta: The base where neither field holds one.

    Returns:
        The base.

    Raises:
        ValueError: A field describes stretched positions, which are not implemented.
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
