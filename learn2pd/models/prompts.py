"""The step from a caller's prompts to token ids.

A prompt is a text, token ids, or chat messages. `prompt_list` checks the whole argument of `decode` and makes a list of
it; `prompt_ids` encodes one prompt. Whatever is no prompt is refused by a line that names its type: a mapping iterates
over its keys, bytes over numbers and a table over its column names, so that each of them would be decoded as something
that nobody asked for.

Control tokens that a text spells out, such as `<|endoftext|>`, stay text; those that the chat template writes become
control tokens.
"""

from __future__ import annotations

import json
import numbers
import re
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from learn2pd.errors import UserError
from learn2pd.models.neighbours import told_in_one_line

PROMPT = "a text, token ids ([1, 2, 3]) or chat messages ([{'role': 'user', 'content': 'Hi'}])"
PROMPTS = f"a list of prompts, each {PROMPT}"


def prompt_list(prompts: object) -> list[Any]:
    """Make a list of what a caller gave as prompts. The prompts themselves are checked where they are encoded.

    Args:
        prompts: A list, tuple, generator, column of a table, one-dimensional array of texts or two-dimensional array of
            token ids; or what a tokenizer returns, a mapping with `input_ids` and perhaps `attention_mask`, whose rows
            are taken without their padding.

    Returns:
        One entry for each prompt, in order.

    Raises:
        UserError: It is one prompt instead of several, or of a type that holds no prompts.
    """
    kind = type(prompts).__name__
    if isinstance(prompts, str):
        raise UserError("prompts is one text: expected a list of them, such as [text]")
    if isinstance(prompts, Mapping):
        return _rows_of_a_tokenizer(prompts)
    # tables of datasets, pandas, polars and pyarrow
    if hasattr(prompts, "column_names") or hasattr(prompts, "columns"):
        raise UserError(
            f"prompts is a table ({kind}): expected {PROMPTS}; give one of its columns, such as table['prompt']"
        )
    if isinstance(prompts, torch.Tensor | np.ndarray):
        return _rows_of_an_array(prompts, kind)
    if isinstance(prompts, bytes | bytearray | memoryview | set | frozenset) or not isinstance(prompts, Iterable):
        raise UserError(f"prompts is of type {kind}: expected {PROMPTS}")
    # the scalars of pyarrow are not texts, so that its columns are turned into lists by their own method
    items = cast(Any, prompts).to_pylist() if hasattr(prompts, "to_pylist") else list(prompts)
    if items and all(_is_id(item) for item in items):
        raise UserError("prompts is one list of token ids: expected a list of prompts, such as [ids]")
    if items and all(isinstance(item, Mapping) and "role" in item for item in items):
        raise UserError("prompts is one list of chat messages: expected a list of prompts, such as [messages]")
    return items


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase | None, prompt: object, control_ids: Collection[int] = ()
) -> list[int]:
    """Return the token ids of one prompt.

    Args:
        tokenizer: The model's. None for a model that takes token ids alone.
        prompt: A text, which becomes a user's turn where the tokenizer has a chat template; token ids, which are taken
            as they are (a list, tuple, range, integer array or integer tensor of one dimension); or a list of chat
            messages, the last one from the user.
        control_ids: Ids that are control tokens whatever the tokenizer says of them, such as the model's mask.

    Raises:
        UserError: It is none of these, it is empty, the chat template fails, or there is no tokenizer for a text.
    """
    if isinstance(prompt, str):
        tokenizer = _needed(tokenizer, "the prompt is a text")
        text = str(prompt)
        _check_text(text, "the prompt")
        if tokenizer.chat_template is None:
            return _tokenize(tokenizer, text, None, control_ids)
        return _tokenize(tokenizer, None, [{"role": "user", "content": text}], control_ids)
    if isinstance(prompt, Sequence) and len(prompt) and isinstance(prompt[0], Mapping):
        tokenizer = _needed(tokenizer, "the prompt is chat messages")
        return _tokenize(tokenizer, None, _messages(tokenizer, prompt), control_ids)
    return _ids(prompt)


def text_ids(
    tokenizer: PreTrainedTokenizerBase | None, text: str, subject: str, control_ids: Collection[int] = ()
) -> list[int]:
    """Return the token ids of a part of an answer, to which nothing is added.

    Args:
        tokenizer: The model's. None for a model that takes token ids alone.
        text: The text.
        subject: The words for the text in messages.
        control_ids: As for `prompt_ids`.

    Raises:
        UserError: The text is empty, the tokenizer fails on it, or there is none.
    """
    tokenizer = _needed(tokenizer, f"{subject} is a text")
    if not text:
        raise UserError(f"{subject}: a text is empty")
    _check_unicode(text, subject)
    control = _control_tokens(tokenizer, control_ids)
    renamed = _RenamedControlTokens.of(tokenizer, control) if tokenizer.is_fast and control else None
    with told_in_one_line(f"{subject}: the tokenizer failed on {text!r}"):
        if renamed is not None:
            return _whole(renamed.encode(text, add_special_tokens=False))
        return _whole(list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)))


def _needed(tokenizer: PreTrainedTokenizerBase | None, subject: str) -> PreTrainedTokenizerBase:
    """Refuse what needs a tokenizer where there is none."""
    if tokenizer is None:
        raise UserError(f"{subject}, and the model has no tokenizer: expected token ids ([1, 2, 3])")
    return tokenizer


def _rows_of_a_tokenizer(given: Mapping[Any, Any]) -> list[Any]:
    names = list(given)
    if "input_ids" not in given:
        shown = ", ".join(map(repr, names[:5])) or "none"
        write = f"; perhaps prompts[{names[0]!r}]" if len(names) == 1 else ""
        raise UserError(
            f"prompts is a mapping ({type(given).__name__}) with the keys {shown}: "
            f"expected {PROMPTS}, or a tokenizer's input_ids{write}"
        )
    rows = _plain(given["input_ids"])
    if isinstance(rows, list) and rows and all(_is_id(item) for item in rows):  # of one prompt
        rows = [rows]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise UserError("prompts is a tokenizer's mapping whose input_ids are not rows of token ids")
    if given.get("attention_mask") is None:
        return rows
    masks = _plain(given["attention_mask"])
    if isinstance(masks, list) and masks and not isinstance(masks[0], list):
        masks = [masks]
    shapes_agree = isinstance(masks, list) and [len(row) for row in rows] == [len(mask) for mask in masks]
    if not shapes_agree or any(value not in (0, 1) for mask in masks for value in mask):
        raise UserError(
            "prompts is a tokenizer's mapping whose attention_mask does not fit: "
            "expected a 0 or 1 for every one of input_ids"
        )
    return [
        [token for token, seen in zip(row, mask, strict=True) if seen] for row, mask in zip(rows, masks, strict=True)
    ]


def _plain(value: Any) -> Any:
    """Return arrays and tensors as lists, also those inside a list or a tuple."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _rows_of_an_array(given: Any, kind: str) -> list[Any]:
    if given.ndim == 2 and _holds_whole_numbers(given):
        return list(given)
    if given.ndim == 1 and isinstance(given, np.ndarray) and given.dtype.kind in "OUT":  # objects, texts
        return prompt_list(given.tolist())
    if given.ndim == 1 and _holds_whole_numbers(given):
        raise UserError(
            f"prompts is one row of token ids ({kind} of one dimension): expected a list of prompts, such as [ids]"
        )
    shape = tuple(given.shape)
    raise UserError(
        f"prompts is an array ({kind} of shape {shape} and type {given.dtype}): "
        f"expected two dimensions of token ids, or {PROMPTS}"
    )


def _holds_whole_numbers(array: Any) -> bool:
    if isinstance(array, torch.Tensor):
        return not (array.is_floating_point() or array.is_complex() or array.dtype is torch.bool)
    return array.dtype.kind in "iu"


def _is_id(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return value.ndim == 0 and _holds_whole_numbers(value)
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _ids(prompt: object) -> list[int]:
    kind = type(prompt).__name__
    if isinstance(prompt, torch.Tensor | np.ndarray):
        if prompt.ndim != 1 or not (_holds_whole_numbers(prompt) or prompt.size == 0):
            shape = tuple(prompt.shape)
            raise UserError(
                f"the prompt is a {kind} of shape {shape} and type {prompt.dtype}: "
                "expected one dimension of whole numbers"
            )
        ids = prompt.tolist()
    elif isinstance(prompt, list | tuple | range):
        ids = list(prompt)
    else:
        keys = ", ".join(map(repr, list(prompt)[:5])) if isinstance(prompt, Mapping) else ""
        advice = f"; it has the keys {keys}: give the value of one of them" if keys else ""
        raise UserError(f"the prompt is of type {kind}: expected {PROMPT}{advice}")
    if not ids:
        raise UserError(f"the prompt is empty, it has no tokens: expected {PROMPT}")
    for item in ids:
        if not _is_id(item):
            inside = "texts: each of them is a prompt of its own" if isinstance(item, str) else f"{type(item).__name__}"
            raise UserError(f"the prompt is a {kind} that holds {inside}: expected {PROMPT}")
    return [int(item) for item in ids]


def _check_text(text: str, subject: str) -> None:
    if not text.strip():
        raise UserError(f"{subject} is empty: expected at least one character that is not white space")
    _check_unicode(text, subject)


def _check_unicode(text: str, subject: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X} at {error.start}"
        raise UserError(
            f"{subject} holds half a character ({half}), which no tokenizer can read: "
            "remove it, or decode the text anew"
        ) from error


def _messages(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Any]) -> list[dict[str, str]]:
    """Check chat messages, and return them with role and content alone.

    Raises:
        UserError: A message has other keys, or a role or content of a wrong type, or the last one is not the user's.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "the prompt is chat messages, and the tokenizer has no chat template: expected a text or token ids"
        )
    messages = []
    for number, message in enumerate(prompt):
        subject = f"message {number} of the prompt"
        if not isinstance(message, Mapping):
            raise UserError(f"{subject} is of type {type(message).__name__}: expected {{'role': ..., 'content': ...}}")
        other = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
        if other or not {"role", "content"} <= message.keys():
            keys = ", ".join(map(repr, message)) or "none"
            raise UserError(f"{subject} has the keys {keys}: expected role and content alone")
        role = message["role"]
        content = message["content"]
        if not isinstance(role, str) or not re.fullmatch(r"\w[\w.-]*", role):
            raise UserError(f"{subject} has the role {role!r}: expected a name such as system, user or assistant")
        if not isinstance(content, str):
            raise UserError(f"{subject} has a content of type {type(content).__name__}: expected a text")
        _check_unicode(content, subject)
        messages.append({"role": str(role), "content": str(content)})
    if messages[-1]["role"] != "user":
        raise UserError(
            f"the last message of the prompt is from {messages[-1]['role']!r}: "
            "expected the user's, which the model answers"
        )
    _check_text(messages[-1]["content"], "the last message of the prompt")
    return messages


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """Return the text that the chat template makes of a conversation.

    Raises:
        UserError: The template fails; the message gives the real cause.
    """
    if isinstance(tokenizer.chat_template, Mapping) and "default" not in tokenizer.chat_template:
        names = ", ".join(tokenizer.chat_template)
        raise UserError(
            f"the tokenizer has several chat templates ({names}) and none of them is named default: "
            "set tokenizer.chat_template to one"
        )
    with told_in_one_line(
        "the tokenizer's chat template failed on the prompt", "correct tokenizer.chat_template, or give token ids"
    ):
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            "the tokenizer's chat template makes nothing of the prompt: "
            "correct tokenizer.chat_template, or give token ids"
        )
    return text


def _tokenize(
    tokenizer: PreTrainedTokenizerBase,
    text: str | None,
    messages: list[dict[str, str]] | None,
    control_ids: Collection[int],
) -> list[int]:
    """Return the ids of a plain text or of a conversation, in which control tokens that the user spelt out are text."""
    control = _control_tokens(tokenizer, control_ids)
    spelt = _any_of(control)
    contents = [text or ""] if messages is None else [message["content"] for message in messages]
    if control and (
        any(spelt.search(content) for content in contents) or any(token.normalized for token in control.values())
    ):
        with told_in_one_line("the tokenizer failed on the prompt"):
            return _tokenize_apart(tokenizer, text, messages, control)
    rendered = text if messages is None else _render(tokenizer, messages)
    with told_in_one_line("the tokenizer failed on the prompt"):
        ids = tokenizer.encode(rendered, add_special_tokens=messages is None)
    return _whole(list(ids))


def _whole(ids: list[int]) -> list[int]:
    if not ids:
        raise UserError("the prompt has no tokens: the tokenizer makes nothing of it")
    return ids


def _control_tokens(tokenizer: PreTrainedTokenizerBase, control_ids: Collection[int]) -> dict[str, Any]:
    """Return the tokenizer's added tokens that steer a model, by their text.

    Tokens of the ordinary vocabulary are not among them: they are text like any other.
    """
    named = set(tokenizer.all_special_tokens)
    added = tokenizer.added_tokens_decoder.items()
    return {
        token.content: token
        for number, token in added
        if token.special or number in control_ids or token.content in named
    }


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _tokenize_apart(
    tokenizer: PreTrainedTokenizerBase,
    text: str | None,
    messages: list[dict[str, str]] | None,
    control: Mapping[str, Any],
) -> list[int]:
    """Return the ids where text and control tokens of the same spelling meet.

    The template sees a stand-in for every control token that the user spelt out. What it writes itself is then a
    control token for certain, and the stand-ins become the user's spelling again.
    """
    renamed = _RenamedControlTokens.of(tokenizer, control) if tokenizer.is_fast else None
    if messages is None:
        assert text is not None
        if renamed is not None:
            return _whole(renamed.encode(text, add_special_tokens=True))
        return _whole(list(tokenizer.encode(text, split_special_tokens=True)))
    nonce = secrets.token_hex(8)
    spelt, tokens = _any_of(control), list(control)
    stand_ins = {token: f"x{nonce}x{number}x" for number, token in enumerate(tokens)}
    hidden = [
        {**message, "content": spelt.sub(lambda hit: stand_ins[hit[0]], message["content"])} for message in messages
    ]
    rendered = _render(tokenizer, hidden)

    def restore(piece: str) -> str:
        return re.sub(f"x{nonce}x([0-9]+)x", lambda hit: tokens[int(hit[1])], piece)

    if renamed is not None:
        return _whole(
            renamed.encode(restore(spelt.sub(lambda hit: renamed.names[hit[0]], rendered)), add_special_tokens=False)
        )
    ids: list[int] = []
    end = 0
    for hit in [*spelt.finditer(rendered), None]:
        piece = restore(rendered[end : None if hit is None else hit.start()])
        if piece:
            ids += tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=True)
        if hit is not None:
            ids.append(int(cast(int, tokenizer.convert_tokens_to_ids(hit[0]))))
            end = hit.end()
    return _whole(ids)


class _RenamedControlTokens:
    """A copy of a fast tokenizer in which every control token has a name that nobody can guess, and the same id.

    In the copy a text that spells out a control token is text, in its context: neither are merges broken up nor is a
    space put in front of a piece, as happens where pieces are encoded apart.
    """

    def __init__(self, state: dict[str, Any], control: Collection[str]) -> None:
        nonce = secrets.token_hex(8)
        self.names = {token: f"x{nonce}x{number}x" for number, token in enumerate(control)}
        for entry in state["added_tokens"]:
            if entry["content"] in self.names:
                entry |= {
                    "content": self.names[entry["content"]],
                    "normalized": False,
                    "single_word": False,
                    "special": True,
                }
        model = state["model"]
        if isinstance(model.get("vocab"), dict):
            model["vocab"] = {self.names.get(token, token): number for token, number in model["vocab"].items()}
        elif isinstance(model.get("vocab"), list):
            model["vocab"] = [[self.names.get(token, token), score] for token, score in model["vocab"]]
        if isinstance(model.get("merges"), list):
            model["merges"] = [merge for merge in model["merges"] if not self._makes_control(merge)]
        if model.get("unk_token") in self.names:
            model["unk_token"] = self.names[model["unk_token"]]
        self.tokenizer = Tokenizer.from_str(json.dumps(state))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def _makes_control(self, merge: Any) -> bool:
        """Say whether a merge, written as a pair or with a space, makes a control token or goes on from one."""
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        return not self.names.keys().isdisjoint({first, second, first + second})

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, control: Mapping[str, Any]) -> _RenamedControlTokens | None:
        """Return the copy for a tokenizer as it is now; None where its control tokens cannot be renamed."""
        version = (len(tokenizer), tuple(control))
        if tokenizer not in _RENAMED or _RENAMED[tokenizer][0] != version:
            _RENAMED[tokenizer] = (version, cls._made(tokenizer, control))
        return _RENAMED[tokenizer][1]

    @classmethod
    def _made(cls, tokenizer: PreTrainedTokenizerBase, control: Mapping[str, Any]) -> _RenamedControlTokens | None:
        try:
            renamed = cls(json.loads(tokenizer.backend_tokenizer.to_str()), control)
        except Exception:  # noqa: BLE001  the tokenizers library raises nothing narrower
            return None
        kept = all(
            renamed.tokenizer.token_to_id(name) == tokenizer.convert_tokens_to_ids(token)
            for token, name in renamed.names.items()
        )
        return renamed if kept else None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text in which control tokens are written by their names."""
        return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)


_RENAMED: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, _RenamedControlTokens | None]] = WeakKeyDictionary()
