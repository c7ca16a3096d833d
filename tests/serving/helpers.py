"""A server in a thread, and what an engine tells about a request."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from queue import Queue

from learn2pd import decode
from learn2pd.serving.batch import Answer, Request

LONGEST_S = 60  # a test that waits longer has failed


def answers_of(engine, requests: list[Request]) -> tuple[list[Answer], list[str]]:
    """The answers in order, and for each request the pieces of its text put together."""
    told: Queue = Queue()
    engine.submit([(request, lambda event, n=n: told.put((n, event))) for n, request in enumerate(requests)])
    answers: dict[int, Answer] = {}
    pieces: dict[int, str] = defaultdict(str)
    while len(answers) < len(requests):
        number, event = told.get(timeout=LONGEST_S)
        assert number not in answers, "an event behind the last one"
        if isinstance(event, str):
            pieces[number] += event
        else:
            answers[number] = event
    return [answers[number] for number in range(len(requests))], [pieces[number] for number in range(len(requests))]


def alone(model, request: Request) -> Answer:
    """What `decode` answers."""
    result = decode(
        model,
        [list(request.ids)],
        request.method,
        gen_length=request.gen_length,
        sampling=request.sampling,
        seed=request.seed,
    )
    length = int(result.lengths[0])
    whole = length < request.gen_length
    return Answer(result.texts[0], length, int(result.forwards[0]), int(result.columns[0]), whole)


@contextlib.contextmanager
def served(server):
    """The address of a server that runs in a thread."""
    from learn2pd.serving.running import address_of, listen, uvicorn_of

    listener = listen("127.0.0.1", 0)
    web = uvicorn_of(server)
    web.config.timeout_graceful_shutdown = 1
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield address_of(listener)
    finally:
        web.should_exit = True
        thread.join(LONGEST_S)
        assert not server.engine.alive
