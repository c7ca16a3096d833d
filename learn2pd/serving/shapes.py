"""The bodies of OpenAI's interface: what is read of a request, and what an answer looks like.

A field that would change the answer and that this server cannot honour is refused. Other unknown fields are ignored, as
servers of this interface do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from learn2pd.errors import UserError
from learn2pd.kinds import shown
from learn2pd.serving.batch import Answer

# The values of unsupported fields at which they ask for nothing.
NEUTRAL: Mapping[str, Sequence[Any]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "functions": ([],),
    "modalities": (["text"],),
}
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class StreamOptions(BaseModel):
    """What a stream holds."""

    include_usage: bool = False


class Body(BaseModel):
    """The fields that both kinds of requests share. None stands for the server's own setting."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1, description="most tokens of the answer: the length of the canvas")
    temperature: float | None = Field(None, ge=0, le=1000, description="0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, description="0 keeps all tokens")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="without it, draws differ from call to call")
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    aggressiveness: float | None = Field(
        None,
        ge=0,
        le=1,
        description="the dial of a calibrated policy, 0 for its strictest setting to 1 for its boldest",
    )

    @property
    def length(self) -> int | None:
        """The most tokens of the answer; None where the request names none."""
        return self.max_tokens

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The texts before which the answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def check(self) -> None:
        """Refuse what the server cannot do.

        Raises:
            UserError: A field asks for it; the message names the field.
        """
        for name, value in (self.model_extra or {}).items():
            if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
                raise UserError(f"{name}={shown(value)}: this server does not support it; leave it out")


class Part(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def plain(self) -> dict[str, str]:
        """The message as `Model.encode` takes it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatBody(Body):
    """The body of a request for a chat completion."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="the present name of max_tokens")

    @property
    def length(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @model_validator(mode="before")  # type: ignore[untyped-decorator]
    @classmethod
    def read_settings(cls, fields: Any) -> Any:
        """Take the settings that `transformers chat` sends as one text, under names of its own."""
        if not isinstance(fields, dict) or not isinstance(fields.get("generation_config"), str):
            return fields
        try:
            settings = json.loads(fields["generation_config"])
        except ValueError as error:
            raise ValueError(f"generation_config is not JSON: {error}") from error
        drawn = settings.get("do_sample", False)
        meant = {
            "max_tokens": settings.get("max_new_tokens"),
            "temperature": settings.get("temperature", 1.0) if drawn else 0.0,
            "top_p": settings.get("top_p") if drawn else None,
            "top_k": settings.get("top_k") if drawn else None,
        }
        return meant | fields


class CompletionBody(Body):
    """The body of a request for completions of texts, or of token ids, without a chat template."""

    prompt: str | list[str] | list[int] | list[list[int]]

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        given: Any = self.prompt
        one = isinstance(given, str) or (given and isinstance(given[0], int))
        return [given] if one else list(given)


class Reply:
    """Words the answer to one request.

    Args:
        key: The name of the answer.
        created: The time, in seconds since 1970.
        model: The name of the model.
        chat: Whether the request is for a chat completion.
        prompt_tokens: The tokens of all its prompts.
    """

    def __init__(self, key: str, created: int, model: str, chat: bool, prompt_tokens: int) -> None:
        self.base = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{key}", "created": created, "model": model}
        self.chat = chat
        self.prompt_tokens = prompt_tokens

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Word the answers to all prompts."""
        kind = "chat.completion" if self.chat else "text_completion"
        choices = [
            self._choice(number, _reason(answer))
            | ({"message": {"role": "assistant", "content": answer.text}} if self.chat else {"text": answer.text})
            for number, answer in enumerate(answers)
        ]
        return self.base | {"object": kind, "choices": choices, "usage": self.usage(answers)}

    def piece(self, number: int, text: str, answer: Answer | None = None, first: bool = False) -> dict[str, Any]:
        """Word a piece of the answer to a prompt.

        Args:
            number: The number of the prompt.
            text: The text.
            answer: The answer, where the piece is the last one.
            first: Whether the piece is the first one, which names the role.
        """
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        delta: dict[str, Any] = {"content": text} if text or first else {}
        if first:
            delta["role"] = "assistant"
        choice = self._choice(number, None if answer is None else _reason(answer))
        choice |= {"delta": delta} if self.chat else {"text": text}
        return self.base | {"object": kind, "choices": [choice]}

    def ending(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Word the piece that counts the whole answer."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self.base | {"object": kind, "choices": [], "usage": self.usage(answers)}

    def usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        """Count the tokens, and what they cost."""
        tokens = sum(answer.tokens for answer in answers)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
            "forwards": sum(answer.forwards for answer in answers),
            "columns": sum(answer.columns for answer in answers),
        }

    @staticmethod
    def _choice(number: int, reason: str | None) -> dict[str, Any]:
        return {"index": number, "finish_reason": reason, "logprobs": None}


def _reason(answer: Answer) -> str:
    return "stop" if answer.ended else "length"
