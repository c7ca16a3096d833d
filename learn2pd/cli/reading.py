"""Reading of YAML by the rules that users expect.

PyYAML follows YAML 1.1, in which 010 is 8, 12:30 is 750, `no` is false, 1e-3 is a text and the second of two equal keys
wins without a word. Here PyYAML only finds out where values begin and end. The core schema of YAML 1.2 says what a
value is, and a key that stands for a text takes the characters as they are written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from learn2pd.errors import UserError, first_line

NULLS = ("", "~", "null", "Null", "NULL")
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
WHOLE = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
UNUSUAL = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")
MOST_DIGITS = 400  # of a number; a longer one is a text, since no key could use it
MOST_DEPTH = 50
MOST_NODES = 20_000  # of a file, with aliases counted as often as they are used


def text_of(path: Path) -> str:
    """Read a file in UTF-8, with or without a byte order mark.

    Args:
        path: the file.

    Raises:
        UserError: the file cannot be read, or is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def parse(text: str) -> Node | None:
    """Find out the structure of a YAML text.

    Args:
        text: the text.

    Returns:
        The root of the text; None where the text is empty.

    Raises:
        UserError: the text is not YAML, a key stands in it twice, or it uses a tag.
    """
    try:
        root: Node | None = yaml.compose(text, Loader=_Loader)
        if root is not None:
            _Survey().check(root)
        return root
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{place}not YAML ({error.problem or first_line(error)})") from error
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise UserError(f"not YAML ({first_line(error)})") from error
    except RecursionError as error:  # an anchor within itself
        raise UserError("not YAML that can be read: a value contains itself") from error


class _Loader(yaml.SafeLoader):
    """A loader that refuses tags and absurd nesting where it meets them, before it goes deeper."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0

    def get_event(self) -> Any:
        """Return the next event of the text."""
        event: Any = super().get_event()  # the stubs do not know the attributes of its kinds
        line = event.start_mark.line + 1
        # a tag was written by hand, since the parser gives no tags of its own
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag:
            raise UserError(f"line {line}: the tag {event.tag!r} is not allowed: write the value alone")
        self.depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if self.depth > MOST_DEPTH:
            raise UserError(f"line {line}: nested more than {MOST_DEPTH} deep: this is no configuration")
        return event


class _Survey:
    """Checks of all nodes of a text."""

    def __init__(self) -> None:
        self.nodes = 0

    def check(self, node: Node) -> None:
        """Check a node and the nodes in it, and put the keys of `<<` in their places."""
        self.nodes += 1
        line = node.start_mark.line + 1
        if self.nodes > MOST_NODES:
            raise UserError(f"line {line}: more than {MOST_NODES} values: this is no configuration")
        if isinstance(node, SequenceNode):
            for entry in node.value:
                self.check(entry)
        elif isinstance(node, MappingNode):
            names = set()
            for key, value in node.value:
                name = key_of(key)
                if name in names:
                    line = key.start_mark.line + 1
                    raise UserError(f"line {line}: the key {name!r} stands there a second time: keep one of the two")
                names.add(name)
                self.check(value)
            yaml.SafeLoader("").flatten_mapping(node)  # puts inherited keys before the node's own, which win
            node.value = list({key.value: (key, value) for key, value in node.value}.values())


def key_of(node: Node) -> str:
    """Return the key of an entry of a mapping.

    Args:
        node: the node of the key.

    Raises:
        UserError: the key is a list or a mapping.
    """
    if not isinstance(node, ScalarNode):
        raise UserError(f"line {node.start_mark.line + 1}: a key is a list or a mapping; expected a name")
    return str(node.value)


def has_comment(text: str) -> bool:
    """Say whether a YAML text contains a comment."""
    place = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if "#" in text[place : token.start_mark.index]:
            return True
        place = token.end_mark.index
    return False


def is_quoted(node: ScalarNode) -> bool:
    """Say whether a value is marked as a text by quotes, or as a block of text."""
    return node.style is not None


def plain_value(text: str) -> Any:
    """Return the value of a plain scalar, by the core schema of YAML 1.2: null, a boolean, a number or a text.

    A number may have `_` between its digits, as in Python.
    """
    if text in NULLS:
        return None
    if text in BOOLEANS:
        return BOOLEANS[text]
    if len(text) > MOST_DIGITS:
        return text
    if WHOLE.fullmatch(text):
        return int(text)
    if OTHER_BASE.fullmatch(text):
        return int(text, 0)
    if NUMBER.fullmatch(text):
        return float(text)
    unusual = UNUSUAL.fullmatch(text)
    return float(unusual[1] + unusual[2]) if unusual else text
