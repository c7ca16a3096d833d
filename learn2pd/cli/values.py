"""Values of a configuration: from YAML texts and dataclasses to a checked object.

`interpret` turns a YAML text into plain values, guided by the dataclass. `assign` puts an override in its place.
`build` fills in defaults, follows interpolations, and checks types and limits.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from learn2pd.cli.reading import has_comment, is_quoted, key_of, parse, plain_value
from learn2pd.errors import UserError, first_line, suggest, user_errors
from learn2pd.kinds import alternatives, choices, matches, number_text, shown, type_name

MISSING = "???"  # the default of a key that must be set
INTERPOLATION = "${"
PLACE = re.compile(r"([^.\[\]]+)|\[([0-9]{1,9})\]")  # a part of a key: a name, or the number of an entry


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a configuration.

    Attributes:
        name: its full name, such as `train.learning_rate`.
        kind: its type, as the field is annotated.
        field: the field of its dataclass.
    """

    name: str
    kind: Any
    field: dataclasses.Field[Any]

    @property
    def is_section(self) -> bool:
        """True where the key holds further keys."""
        return dataclasses.is_dataclass(self.kind)


def keys_of(schema: type, prefix: str = "") -> Iterator[Key]:
    """Yield every key of a dataclass, sections before the keys in them.

    Args:
        schema: the dataclass.
        prefix: is written before every name.
    """
    for entry, kind in _fields(schema).values():
        key = Key(prefix + entry.name, kind, entry)
        yield key
        if key.is_section:
            yield from keys_of(kind, f"{key.name}.")


@functools.cache
def _fields(schema: type) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    kinds = typing.get_type_hints(schema)
    return {entry.name: (entry, kinds[entry.name]) for entry in dataclasses.fields(schema)}


def interpret(node: Node | None, schema: type) -> dict[str, Any]:
    """Return the values of a file by their keys.

    Args:
        node: the root of the file.
        schema: the dataclass of the configuration.

    Raises:
        UserError: a key is unknown, or a section holds no keys.
    """
    return _interpret(node, schema, "", schema) if node is not None else {}


def plain(node: Node) -> Any:
    """Return the value of a node that no dataclass describes."""
    return _interpret(node, Any, "", dict)


def _interpret(node: Node, kind: Any, name: str, schema: type) -> Any:
    """Interpret a node as a value of a kind; types of single values are checked when the object is built."""
    if isinstance(node, ScalarNode) and name and INTERPOLATION in node.value:
        return node.value
    if isinstance(node, ScalarNode) and name and node.value == MISSING:
        raise UserError(f"{name}={MISSING} must be set: give it a value")
    if dataclasses.is_dataclass(kind):
        if not isinstance(node, MappingNode):
            raise UserError(f"{name or 'the file'} must hold keys and values, got {shown(plain(node))}")
        section = {}
        for key, value in node.value:
            inner = f"{name}.{key_of(key)}" if name else key_of(key)
            wanted = kind_of(inner, schema)
            if key_of(key) not in _fields(typing.cast(type, kind)):
                raise UserError(f"{inner}: unknown key; in a file the keys of a section stand below its name")
            section[key_of(key)] = _interpret(value, wanted, inner, schema)
        return section
    if isinstance(node, SequenceNode):
        entry = _entry_kind(kind, list)
        return [_interpret(inner, entry, f"{name}[{number}]", schema) for number, inner in enumerate(node.value)]
    if isinstance(node, MappingNode):
        return {key_of(key): _interpret(value, Any, f"{name}.{key_of(key)}", schema) for key, value in node.value}
    return _scalar(node.value, is_quoted(typing.cast(ScalarNode, node)), kind)


def _entry_kind(kind: Any, container: type) -> Any:
    """Return the kind of the entries of a list, or of the values of a dict; Any where nothing is said about them."""
    for option in alternatives(kind):
        if typing.get_origin(option) is container:
            return typing.get_args(option)[-1]
    return Any


def _scalar(text: str, quoted: bool, kind: Any) -> Any:
    """Return the value of a scalar. A key for texts takes the characters as they are, so that 007 stays 007."""
    if quoted:
        return text
    value = plain_value(text)
    takes_text_alone = all(option in (str, type(None)) or choices(option) for option in alternatives(kind))
    if text == "~" and kind is str:
        return text  # the home folder, since this key cannot be null
    return text if takes_text_alone and value is not None else value


def kind_of(name: str, schema: type) -> Any:
    """Return the type of a key.

    Args:
        name: the full name of the key, such as `compare.methods[0].options.threshold`.
        schema: the dataclass of the configuration.

    Raises:
        UserError: there is no such key.
    """
    kind: Any = schema
    for part in _parts(name):
        if isinstance(part, int):
            entry = _entry_kind(kind, list)
            known = entry is not Any or kind is Any
            kind = entry
        elif dataclasses.is_dataclass(kind):
            fields = _fields(typing.cast(type, kind))
            known = part in fields
            if not known and kind not in (schema, *(key.kind for key in keys_of(schema))):  # an entry of a list
                raise UserError(f"{name}: unknown key{suggest(part, fields)}; expected {', '.join(fields)}")
            kind = fields[part][1] if known else kind
        else:
            known = kind is Any or any(typing.get_origin(option) is dict for option in alternatives(kind))
            kind = _entry_kind(kind, dict)
        if not known:
            raise UserError(f"{name}: unknown key{_neighbour(name, schema)}")
    return kind


def _parts(name: str) -> list[str | int]:
    """Split the name of a key into the names of sections and the numbers of entries."""
    parts: list[str | int] = [word or int(number) for word, number in PLACE.findall(name)]
    if _joined(parts) != name:
        raise UserError(f"{name}: not a key; expected a name such as decode.gen_length or compare.methods[0].name")
    return parts


def _joined(parts: Sequence[str | int]) -> str:
    """Return the name of a key from its parts."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def _neighbour(name: str, schema: type) -> str:
    """Word a hint at the known key that a user may have meant: one of that last word, else one that looks like it."""
    known = [key.name for key in keys_of(schema)]
    last = [other for other in known if other.split(".")[-1] == name.split(".")[-1]]
    if last:
        return f"; did you mean {last[0]!r}"
    near = difflib.get_close_matches(name.split(".")[-1], [other.split(".")[-1] for other in known], n=1, cutoff=0.8)
    ends = [other for other in known if near and other.split(".")[-1] == near[0]]
    return suggest(name, known) or (f"; did you mean {ends[0]!r}" if ends else "")


def read_override(name: str, text: str, schema: type) -> Any:
    """Return the value of an argument `key=value`.

    Args:
        name: the full name of the key.
        text: the value as it was written.
        schema: the dataclass of the configuration.

    Raises:
        UserError: there is no such key, or the value cannot be read.
    """
    kind = kind_of(name, schema)
    if any(key.name == name and key.field.metadata.get("verbatim") for key in keys_of(schema)):
        return text
    if kind is Any or dataclasses.is_dataclass(kind) or _is_container(kind):
        try:
            return _read_structure(name, text, kind, schema)
        except UserError as error:
            message = str(error)
            raise UserError(message if message.startswith(name) else f"{name}={shown(text)}: {message}") from error
    unquoted = _unquoted(text)
    if MISSING in (text, unquoted):
        raise UserError(f"{name}={MISSING} must be set: give it a value")
    if INTERPOLATION in text:
        return text if unquoted is None else unquoted
    return _scalar(text, False, kind) if unquoted is None else unquoted


def _read_structure(name: str, text: str, kind: Any, schema: type) -> Any:
    """Return the value of an argument that may be a list or a mapping."""
    node = parse(text)
    if has_comment(text):
        raise UserError("it contains a comment: put quotes around a text with #")
    return _interpret(node, kind, name, schema) if node is not None else None


def _unquoted(text: str) -> str | None:
    """Return the text within quotes; None where the whole text is not one text in quotes."""
    if text[:1] not in ("'", '"'):
        return None
    try:
        node = parse(text)
        return str(node.value) if isinstance(node, ScalarNode) and not has_comment(text) else None
    except UserError:
        return None


def _is_container(kind: Any) -> bool:
    return any(typing.get_origin(option) in (list, dict) for option in alternatives(kind))


def assign(tree: dict[str, Any], name: str, value: Any) -> None:
    """Put the value of an override in its place.

    A mapping is joined with the one that is there; an empty one empties it.

    Args:
        tree: the values of the file by their keys; it is changed.
        name: the full name of the key.
        value: the value.

    Raises:
        UserError: the key names an entry of a list that has fewer entries, or lies below a single value.
    """
    place: Any = tree
    parts = _parts(name)
    for number, part in enumerate(parts):
        above = _joined(parts[:number])
        if isinstance(part, int) and (not isinstance(place, list) or part >= len(place)):
            count = len(place) if isinstance(place, list) else 0
            raise UserError(f"{name}: {above} has {count} entries, and the first of them is [0]")
        if isinstance(part, str) and not isinstance(place, dict):
            raise UserError(f"{name}: {above} is {shown(place)}, which holds no keys")
        if number == len(parts) - 1:
            before = place.get(part) if isinstance(place, dict) else None
            joins = isinstance(before, dict) and isinstance(value, dict) and value
            place[part] = before | value if joins else value
        elif isinstance(place, dict) and place.get(str(part)) is None:
            place[part] = {}
        place = place[part]


def build(tree: dict[str, Any], schema: type, defaults: dict[str, Any]) -> Any:
    """Make the object of a configuration.

    Args:
        tree: the values that were given, by their keys.
        schema: the dataclass.
        defaults: the values of all keys that were not given.

    Returns:
        An instance of `schema`.

    Raises:
        UserError: a value has the wrong type, is out of its range or is missing, or an interpolation leads nowhere.
    """
    texts = {key.name for key in keys_of(schema) if key.field.metadata.get("verbatim")}
    verbatim = {name: tree[name] for name in texts if name in tree}
    tree = {name: value for name, value in tree.items() if name not in texts}
    written = _joined_values(defaults, tree)
    resolved = _resolved(written) if _interpolates(written) else written
    return _build(resolved | verbatim, written, schema, "", {})


def _interpolates(value: Any) -> bool:
    """Say whether a text in nested dicts and lists takes the value of another key."""
    if isinstance(value, dict | list):
        return any(map(_interpolates, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and INTERPOLATION in value


def _resolved(written: dict[str, Any]) -> Any:
    """Put the values of the keys in the places of the interpolations."""
    try:
        return OmegaConf.to_container(OmegaConf.create(written), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'an interpolation'}: {first_line(error)}") from error
    except RecursionError as error:
        raise UserError("an interpolation is nested too deeply") from error


def _joined_values(defaults: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults with the given values in their places; mappings are joined."""
    both = {
        key: _joined_values(defaults[key], value)
        for key, value in tree.items()
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
    }
    return defaults | tree | both


def _build(value: Any, written: Any, kind: Any, name: str, limits: Mapping[str, Any]) -> Any:
    """Check a value against its kind and limits, and return it as the object that stands for it."""
    if dataclasses.is_dataclass(kind):
        return _build_section(value, written, typing.cast(type, kind), name)
    if isinstance(value, list) and any(typing.get_origin(option) is list for option in alternatives(kind)):
        entry = _entry_kind(kind, list)
        raw = written if isinstance(written, list) else [INTERPOLATION] * len(value)
        return [
            _build(inner, before, entry, f"{name}[{number}]", limits)
            for number, (inner, before) in enumerate(zip(value, raw, strict=True))
        ]
    if limits.get("verbatim"):
        return value
    if isinstance(value, str) and not matches(value, kind):
        value = plain_value(value)  # an interpolation gives a text, and a shell may leave quotes around a number
    elif str in alternatives(kind) and isinstance(value, int | float) and not matches(value, kind):
        value = str(value)
    if value == MISSING:
        raise UserError(f"{name} must be set")
    if limits.get("path") and ((value is None and kind is str) or (isinstance(value, str) and not value.strip())):
        raise UserError(f"{name} is empty: expected a path")
    if not matches(value, kind):
        got = type_name(type(value))
        near = suggest(str(value), choices(kind)) if choices(kind) else ""
        raise UserError(f"{name}={shown(value)}: expected {type_name(kind)}, got {got}{near}")
    if kind is Any or isinstance(value, dict):
        value = _settled(value, written)
    _check_limits(value, name, limits)
    return _at_home(value, name) if limits.get("path") and isinstance(value, str) else value


def _build_section(value: Any, written: Any, schema: type, name: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{name} must hold keys and values, got {shown(value)}")
    arguments = {}
    for field_name, (entry, kind) in _fields(schema).items():
        if field_name in value:
            inner = f"{name}.{field_name}" if name else field_name
            raw = written[field_name] if isinstance(written, dict) else INTERPOLATION
            arguments[field_name] = _build(value[field_name], raw, kind, inner, entry.metadata)
        elif entry.default == MISSING:
            raise UserError(f"{name}.{field_name} must be set")
    unknown = [key for key in value if key not in arguments]
    if unknown:  # only an interpolation can bring them here
        raise UserError(f"{name}.{unknown[0]}: unknown key; expected {', '.join(_fields(schema))}")
    with user_errors():
        return schema(**arguments)


def _settled(value: Any, written: Any) -> Any:
    """Return an option of a component, with interpolated numbers as numbers and `~/` as the home folder."""
    if isinstance(value, dict):
        return {
            key: _settled(inner, written[key] if isinstance(written, dict) else written) for key, inner in value.items()
        }
    if isinstance(value, list):
        raw = written if isinstance(written, list) else [written] * len(value)
        return [_settled(inner, before) for inner, before in zip(value, raw, strict=True)]
    if isinstance(value, str) and isinstance(written, str) and INTERPOLATION in written:
        value = plain_value(value)
    return _at_home(value, "an option") if isinstance(value, str) and value.startswith("~/") else value


def _check_limits(value: Any, name: str, limits: Mapping[str, Any]) -> None:
    least = limits.get("least")
    most = limits.get("most")
    if least is None or most is None or isinstance(value, str | bool | None):
        return
    if not least <= value <= most:
        raise UserError(f"{name}={shown(value)}: expected a value from {number_text(least)} to {number_text(most)}")


def _at_home(value: str, name: str) -> str:
    """Put the home folder in the place of `~` at the beginning of a path."""
    if "\0" in value:
        raise UserError(f"{name}={shown(value)}: a path cannot contain a character of number 0")
    if not value.startswith("~"):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError as error:
        raise UserError(f"{name}={shown(value)}: there is no such home folder ({error})") from error
