"""The fields of a config.json: the configuration class of the families, and the checks before a network is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import PretrainedConfig


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


def take_fields(
    config: PretrainedConfig, other: dict[str, Any], fixed: Mapping[str, Any], carried: Mapping[str, Any], family: str
) -> None:
    """Move fields out of the remaining fields of a configuration and into its attributes.

    Args:
        config: The configuration.
        other: The remaining fields; the function removes those that it moves.
        fixed: The fields of which the family computes a single value, with that value.
        carried: The fields that do not change inference, with their defaults.
        family: The name of the family, for messages.

    Raises:
        ValueError: A fixed field has another value; the message names the field.
    """
    for name, value in fixed.items():
        stated = other.pop(name, value)
        if stated != value:
            raise ValueError(
                f"config.json: {name}={stated!r} differs from {value!r}, the only value implemented for {family}"
            )
        setattr(config, name, value)
    for name, value in carried.items():
        setattr(config, name, other.pop(name, value))


def check_heads(num_attention_heads: int, num_key_value_heads: int, head_dim: int) -> None:
    """Refuse heads that do not divide into groups, and heads whose features do not pair up for the rotation.

    Args:
        num_attention_heads: The heads of the queries.
        num_key_value_heads: The heads of keys and values.
        head_dim: The features of a head.

    Raises:
        ValueError: A value is refused; the message names the fields.
    """
    if num_attention_heads % num_key_value_heads:
        raise ValueError(
            f"config.json: num_attention_heads={num_attention_heads}, num_key_value_heads={num_key_value_heads}: "
            "the heads must divide into num_key_value_heads groups"
        )
    if head_dim % 2:
        raise ValueError(f"config.json: head_dim={head_dim}, expected an even number")


def check_full_attention(layer_types: Any, layers: int, family: str) -> None:
    """Refuse layers with a sliding window.

    Args:
        layer_types: The kinds of attention by layer; None stands for full attention in every layer.
        layers: The number of layers.
        family: The name of the family, for messages.

    Raises:
        ValueError: A layer has another kind.
    """
    if layer_types not in (None, ["full_attention"] * layers):
        raise ValueError(
            f"config.json: layer_types={layer_types!r}, only full_attention in every layer is implemented for {family}"
        )


def check_experts(num_experts_per_tok: int, num_experts: int) -> None:
    """Refuse a token that chooses more experts than there are.

    Args:
        num_experts_per_tok: The experts that a token chooses.
        num_experts: The experts.

    Raises:
        ValueError: There are too few; the message names the fields.
    """
    if num_experts_per_tok > num_experts:
        raise ValueError(
            f"config.json: num_experts_per_tok={num_experts_per_tok}, num_experts={num_experts}: "
            "a token cannot choose more experts than there are"
        )


def check_divides(hidden_size: int, num_attention_heads: int) -> None:
    """Refuse features that do not divide into heads.

    Args:
        hidden_size: The features of a token.
        num_attention_heads: The heads of the queries.

    Raises:
        ValueError: They do not; the message names the fields.
    """
    if hidden_size % num_attention_heads:
        raise ValueError(
            f"config.json: hidden_size={hidden_size}, num_attention_heads={num_attention_heads}: "
            "hidden_size must divide into num_attention_heads parts"
        )


# ids and flags that transformers' own class keeps
OF_TRANSFORMERS = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
UNCHECKED = ("initializer_range", "mask_token_id", *OF_TRANSFORMERS)


class DecoderConfig(PretrainedConfig):
    """The fields of the config.json of a family whose layers are those of decoder.py, or much like them.

    A field whose default is a number must be a number above 0, and a whole one where the default is whole. None stands
    for as many `num_key_value_heads` as heads, and for a `head_dim` that divides `hidden_size` evenly.

    Attributes:
        family: The name of the family, for messages.
        defaults: The fields that the network reads, with the values of the published model.
        fixed: The only values that the network implements. Without a check, another value would silently compute
            something else.
        carried: Fields that do not change inference, with their defaults. They are kept so that a saved config has
            every field.
        may_be_zero: The fields of `defaults` that may be 0 or null, which is 0.

    Args:
        fields: The fields by name; those without a meaning here are kept as they are.

    Raises:
        ValueError: A field has a value that the network does not implement; the message names the field.
    """

    family: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    fixed: ClassVar[Mapping[str, Any]] = {}
    carried: ClassVar[Mapping[str, Any]] = {}
    may_be_zero: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        if "__init__" not in cls.__dict__:  # transformers 5 would write one of its own, which knows no `defaults`
            cls.__init__ = DecoderConfig.__init__  # type: ignore[method-assign]
        super().__init_subclass__(**options)

    def __init__(self, **fields: Any) -> None:
        take_fields(self, fields, self.fixed, self.carried, self.family)
        values = {name: fields.pop(name, default) for name, default in self.defaults.items()}
        values["rope_theta"] = plain_rotation(fields, values["rope_theta"])
        if values["num_key_value_heads"] is None:
            values["num_key_value_heads"] = values["num_attention_heads"]
        values |= {name: 0 for name in self.may_be_zero if values[name] is None}
        self._check_numbers(values)
        layer_types = fields.get("layer_types")
        check_full_attention(layer_types, values["num_hidden_layers"], self.family)
        self.check(values, fields)
        of_transformers = {name: values.pop(name) for name in OF_TRANSFORMERS if name in values}
        for name, value in values.items():
            setattr(self, name, value)
        super().__init__(**of_transformers, **fields)

    def check(self, values: dict[str, Any], other: dict[str, Any]) -> None:
        """Check how the fields go together, and complete those that are null. A family adds its own checks.

        Args:
            values: The fields of `defaults`, which may be changed.
            other: The remaining fields, of which some may be removed.

        Raises:
            ValueError: The fields do not go together.
        """
        heads, width = values["num_attention_heads"], values["hidden_size"]
        if "head_dim" not in values:
            check_divides(width, heads)
        elif values["head_dim"] is None:
            values["head_dim"] = width // heads
        head_dim = values.get("head_dim", width // heads)
        check_whole(head_dim=head_dim)
        check_heads(heads, values["num_key_value_heads"], head_dim)
        if "num_experts" in values:
            check_experts(values["num_experts_per_tok"], values["num_experts"])

    def _check_numbers(self, values: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in values.items() if name not in UNCHECKED}
        numbers = {name: value for name, value in numbers.items() if not (name in self.may_be_zero and value == 0)}
        whole = {name: value for name, value in numbers.items() if type(self.defaults[name]) is int}
        check_whole(**{name: value for name, value in whole.items() if not (name == "head_dim" and value is None)})
        check_positive(**{name: value for name, value in numbers.items() if type(self.defaults[name]) is float})
