"""The web application: OpenAI's interface over the engine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest

from learn2pd import __version__
from learn2pd.errors import UserError, user_errors
from learn2pd.kinds import shown
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.serving.batch import Answer, Event, Request
from learn2pd.serving.engine import Closed, Engine, QueueFull
from learn2pd.serving.gate import Gate, Refusal, kind_of
from learn2pd.serving.metrics import Metrics
from learn2pd.serving.shapes import Body, ChatBody, CompletionBody, Reply
from learn2pd.types import GREEDY, Sampling

DIALS = 64  # methods with a dial of their own that are kept
CLIENT_LEFT = 499  # nobody reads this status but the metrics


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        rows: The most requests that are decoded at one time.
        queue: The most requests that wait.
        prompt: The most tokens of a prompt; None allows what the model takes.
        length: The most tokens of an answer; None allows what the model takes.
        prompts: The most prompts of one request.
        body: The most bytes of a body.
        patience_s: The seconds in which a request must have arrived.
    """

    rows: int = 16
    queue: int = 1024
    prompt: int | None = None
    length: int | None = None
    prompts: int = 128
    body: int = 2**20
    patience_s: float = 20.0


class Server:
    """Answers requests for one model and one method.

    Args:
        model: The model.
        method: The method, for which `Method.check` passed.
        gen_length: The length of an answer's canvas where a request names none. It is shorter where the prompt leaves
            less.
        sampling: How tokens are drawn where a request names nothing else.
        stop_strings: Texts before which every answer ends.
        limits: What a client may ask for.
        api_key: The key that a request must bring; None lets every request through.
    """

    def __init__(
        self,
        model: Model,
        method: Method,
        *,
        gen_length: int = 256,
        sampling: Sampling = GREEDY,
        stop_strings: Sequence[str] = (),
        limits: Limits = Limits(),
        api_key: str | None = None,
    ) -> None:
        method.check(model.spec)
        self.model = model
        self.method = method
        self.gen_length = gen_length
        self.sampling = sampling
        self.stop_strings = tuple(stop_strings)
        self.limits = limits
        self.engine = Engine(model, limits.rows, limits.queue)
        self.metrics = Metrics(self.engine)
        self._method_at = functools.lru_cache(DIALS)(self._with_dial)
        self._encoder = ThreadPoolExecutor(1)  # a long prompt must not hold up the other clients
        self._started = int(time.time())
        routes = {
            "/v1/chat/completions": (self.chat, "POST"),
            "/v1/completions": (self.complete, "POST"),
            "/v1/models": (self.models, "GET"),
            "/health": (self.health, "GET"),
            "/metrics": (self.show_metrics, "GET"),
            "/load_model": (self.load_model, "POST"),
        }
        app = FastAPI(title="learn2pd", version=__version__, lifespan=self._lifespan)
        for path, (answer, verb) in routes.items():
            app.add_api_route(path, answer, methods=[verb], response_model=None)
        app.add_exception_handler(Refusal, _tell_refusal)
        app.add_exception_handler(RequestValidationError, _tell_invalid)
        app.add_exception_handler(HTTPException, _tell_http)
        app.add_exception_handler(Exception, _tell_bug)
        app.add_middleware(
            Gate,
            metrics=self.metrics,
            paths=tuple(routes),
            api_key=api_key,
            max_body=limits.body,
            patience_s=limits.patience_s,
        )
        self.app = app

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()
        self._encoder.shutdown()

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.close)

    async def models(self) -> dict[str, Any]:
        """List the one model."""
        entry = {
            "id": self.model.spec.name,
            "object": "model",
            "created": self._started,
            "owned_by": "learn2pd",
            "max_model_len": self.model.spec.max_length,
        }
        return {"object": "list", "data": [entry]}

    async def health(self) -> JSONResponse:
        """Say whether requests are taken."""
        alive = self.engine.alive
        state = {"status": "ok" if alive else "stopping", "model": self.model.spec.name}
        counts = {"running": self.engine.running, "waiting": self.engine.waiting}
        return JSONResponse(state | counts, 200 if alive else 503)

    async def show_metrics(self) -> Response:
        """Show the figures."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def load_model(self) -> StreamingResponse:
        """Tell `transformers chat`, which asks for a model to be loaded, that it is."""
        return StreamingResponse(iter([_sent({"status": "ready", "cached": True})]), media_type="text/event-stream")

    async def chat(self, body: ChatBody, http: HTTPRequest) -> Response:
        """Answer a conversation."""
        messages = [message.plain for message in body.messages]
        return await self._answer(body, [messages], http, chat=True)

    async def complete(self, body: CompletionBody, http: HTTPRequest) -> Response:
        """Go on from texts or token ids, to which no chat template is applied."""
        return await self._answer(body, body.prompts, http, chat=False)

    async def _answer(self, body: Body, prompts: Sequence[Any], http: HTTPRequest, chat: bool) -> Response:
        try:
            asked = await asyncio.get_running_loop().run_in_executor(self._encoder, self._requests, body, prompts)
            events = Events(self, asked, http)
        except QueueFull as error:
            raise Refusal(429, str(error)) from error
        except Closed as error:
            raise Refusal(503, str(error)) from error
        except UserError as error:
            raise Refusal(400, str(error)) from error
        tokens = sum(len(request.ids) for request in asked)
        self.metrics.prompt_tokens.inc(tokens)
        reply = Reply(uuid.uuid4().hex, int(time.time()), self.model.spec.name, chat, tokens)
        if body.stream:
            counted = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(_stream(events, reply, counted), media_type="text/event-stream")
        answers: dict[int, Answer] = {}
        async with contextlib.aclosing(events.read()) as read:
            async for number, event in read:
                if isinstance(event, UserError):
                    raise _failure(event)
                if isinstance(event, Answer):
                    answers[number] = event
        if len(answers) < len(asked):
            return Response(status_code=CLIENT_LEFT)
        return JSONResponse(reply.whole([answers[number] for number in range(len(asked))]))

    def _requests(self, body: Body, prompts: Sequence[Any]) -> list[Request]:
        """Turn a body into a request for each prompt.

        Raises:
            UserError: The server cannot do what is asked for.
            Refusal: The model is not the one that is served.
        """
        name = self.model.spec.name
        if body.model not in (None, "", name):
            raise Refusal(404, f"model={body.model!r}: this server has {name!r}")
        body.check()
        if not prompts:
            raise UserError("prompt is an empty list: expected at least one prompt")
        if len(prompts) > self.limits.prompts:
            raise UserError(f"prompt holds {len(prompts)} prompts: the most are {self.limits.prompts}")
        wanted = {key: getattr(body, key) for key in ("temperature", "top_p", "top_k")}
        with user_errors():
            sampling = replace(self.sampling, **{key: value for key, value in wanted.items() if value is not None})
        method = self._method_at(body.aggressiveness)
        seed = random.getrandbits(62) if body.seed is None and sampling.temperature else body.seed or 0
        strings = (*self.stop_strings, *body.stop_strings)
        asked = []
        for number, prompt in enumerate(prompts):
            ids, length = self._sized(prompt, number, body.length)
            asked.append(Request(ids, length, method, sampling, seed + number, strings, bool(body.stream)))
        return asked

    def _sized(self, prompt: Any, number: int, length: int | None) -> tuple[list[int], int]:
        """Encode a prompt, and say how long its canvas is."""
        name, most = self.model.spec.name, self.model.spec.max_length
        ids = self._encoded(prompt, number)
        subject = f"prompt {number}: {len(ids)} tokens"
        if self.limits.prompt is not None and len(ids) > self.limits.prompt:
            raise UserError(f"{subject}: this server takes at most {self.limits.prompt}")
        if len(ids) >= most:
            raise UserError(f"{subject}: {name} takes at most {most} together with the answer: shorten the prompt")
        if length is None:
            return ids, min(self.gen_length, most - len(ids))
        if self.limits.length is not None and length > self.limits.length:
            raise UserError(f"max_tokens={length}: this server writes at most {self.limits.length}")
        if len(ids) + length > most:
            raise UserError(
                f"{subject} and max_tokens={length} make {len(ids) + length}, {name} takes at most {most}: "
                "shorten the prompt or lower max_tokens"
            )
        return ids, length

    def _encoded(self, prompt: Any, number: int) -> list[int]:
        if isinstance(prompt, str):
            return self.model.encode_text(prompt, f"prompt {number}")
        try:
            return self.model.encode(prompt)
        except UserError as error:
            raise UserError(f"prompt {number}: {error}") from error

    def _with_dial(self, aggressiveness: float | None) -> Method:
        """Return the method with its policy at a place of its calibrated curve."""
        policy = self.method.policy
        if aggressiveness is None:
            return self.method
        if not isinstance(policy, FilterPolicy):
            raise UserError(f"aggressiveness={aggressiveness}: policy {policy.name!r} has no dial; leave it out")
        return replace(self.method, policy=policy.at(aggressiveness))


class Events:
    """The events of the prompts of one HTTP request. A client that leaves ends them.

    Args:
        server: The server.
        asked: The requests.
        http: The HTTP request.

    Raises:
        QueueFull: As for `Engine.submit`; nothing is decoded then.
        Closed: As for `Engine.submit`.
    """

    def __init__(self, server: Server, asked: Sequence[Request], http: HTTPRequest) -> None:
        self.server = server
        self.open = len(asked)
        self._http = http
        self._queue: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._tickets = server.engine.submit([(request, self._put(n)) for n, request in enumerate(asked)])

    def _put(self, number: int) -> Any:
        return lambda event: self._loop.call_soon_threadsafe(self._queue.put_nowait, (number, event))

    async def read(self) -> AsyncGenerator[tuple[int, Event], None]:
        """Yield the number of the prompt and the event, until every prompt is answered or the client has left."""
        watcher = asyncio.create_task(self._watch())
        failed = False
        try:
            while self.open and (entry := await self._queue.get()) is not None:
                if isinstance(entry[1], Answer):
                    self.open -= 1
                    self.server.metrics.count(entry[1])
                failed = failed or isinstance(entry[1], UserError)
                yield entry
        finally:
            watcher.cancel()
            if self.open and not failed:
                self.server.metrics.hung_up.inc()
            for ticket in self._tickets:
                self.server.engine.cancel(ticket)

    async def _watch(self) -> None:
        while (await self._http.receive())["type"] != "http.disconnect":
            pass
        self._queue.put_nowait(None)


async def _stream(events: Events, reply: Reply, counted: bool) -> AsyncIterator[str]:
    """Word events as server-sent ones."""
    answers: dict[int, Answer] = {}
    numbers = range(events.open)
    if reply.chat:
        yield _sent(reply.piece(0, "", first=True))
    async with contextlib.aclosing(events.read()) as read:
        async for number, event in read:
            if isinstance(event, UserError):
                yield _sent(_failure(event).body)
                return
            if isinstance(event, Answer):
                answers[number] = event
                yield _sent(reply.piece(number, "", event))
            else:
                yield _sent(reply.piece(number, event))
    if counted and len(answers) == len(numbers):
        yield _sent(reply.ending([answers[number] for number in numbers]))
    yield "data: [DONE]\n\n"


def _failure(error: UserError) -> Refusal:
    return Refusal(503 if isinstance(error, Closed) else 500, str(error))


def _sent(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


async def _tell_refusal(_: HTTPRequest, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, Refusal)
    headers = {"retry-after": "1"} if refusal.status in (429, 503) else None
    return JSONResponse(refusal.body, refusal.status, headers)


async def _tell_invalid(http: HTTPRequest, error: Exception) -> JSONResponse:
    """Word what is wrong with a body. Of several errors, the one that lies deepest says most."""
    assert isinstance(error, RequestValidationError)
    kind = http.headers.get("content-type", "")
    if "json" not in kind:
        return await _tell_refusal(http, Refusal(400, f"Content-Type={kind!r}: expected application/json"))
    first = max(error.errors(), key=lambda told: len(told["loc"]))
    if first["type"] == "json_invalid":
        return await _tell_refusal(http, Refusal(400, f"the body is not JSON: {first['ctx']['error']}"))
    names = [str(part) for part in first["loc"][1:] if str(part).isalnum() or "_" in str(part)]
    place = ".".join(name for name in names if name not in ("str", "int"))
    value = "" if first["type"] == "missing" else f"={shown(first['input'])}"
    reason = first["msg"].replace("Input should", "it should").replace("Field required", "it must be given")
    return await _tell_refusal(http, Refusal(400, f"{place or 'the body'}{value}: {reason}"))


async def _tell_http(http: HTTPRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    wrong = {
        400: "the body is not JSON in UTF-8",
        404: f"{http.url.path}: there is no such path",
        405: f"{http.method} {http.url.path}: this path takes another method",
    }
    message = wrong.get(error.status_code, str(error.detail))
    return JSONResponse(
        {"error": {"message": message, "type": kind_of(error.status_code), "param": None, "code": None}},
        error.status_code,
    )


async def _tell_bug(_: HTTPRequest, error: Exception) -> JSONResponse:
    """Word a mistake of the server's own, which uvicorn also logs."""
    return JSONResponse(Refusal(500, f"the server failed: {type(error).__name__}").body, 500)
