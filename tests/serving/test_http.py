"""The server as its clients meet it: the real openai client, and clients that do what no client should."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from learn2pd import BlocksScheduler, FilterPolicy, LeftToRightPolicy, Method, ThresholdPolicy, decode
from learn2pd.predictors.saving import Setting
from tests.contract.helpers import BLOCK, random_predictor
from tests.serving.helpers import LONGEST_S, served

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from learn2pd.serving.app import Limits, Server  # noqa: E402

GEN = 12
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 3 plus 4?"}]
CHAT = "/v1/chat/completions"
BLOCKS = BlocksScheduler(BLOCK)


def filter_policy() -> FilterPolicy:
    """An untrained filter with a curve."""
    from dataclasses import replace

    curve = tuple(Setting(threshold) for threshold in (0.9, 0.5, 0.1))
    return FilterPolicy(replace(random_predictor("filter", "conv"), curve=curve, threshold=0.5))


@pytest.fixture(scope="module")
def server(tiny_model):
    """A server with tight limits."""
    limits = Limits(rows=4, prompt=60, length=64, prompts=8, body=10_000, patience_s=1.0)
    server = Server(tiny_model, Method(filter_policy(), BLOCKS), gen_length=GEN, limits=limits)
    with served(server) as address:
        server.address = address
        yield server


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def expected(model, prompt, policy, **options):
    return decode(model, [prompt], Method(policy, BLOCKS), gen_length=GEN, **options)


def test_a_chat_is_what_decode_answers(client, tiny_model):
    answer = client.chat.completions.create(model=tiny_model.spec.name, messages=MESSAGES)
    result = expected(tiny_model, MESSAGES, filter_policy())
    assert answer.choices[0].message.content == result.texts[0]
    assert answer.choices[0].finish_reason == ("length" if int(result.lengths[0]) == GEN else "stop")
    assert answer.usage.completion_tokens == int(result.lengths[0])
    assert answer.usage.prompt_tokens == len(tiny_model.encode(MESSAGES))
    assert answer.usage.forwards == int(result.forwards[0])
    assert [model.id for model in client.models.list().data] == [tiny_model.spec.name]


@pytest.mark.parametrize("dial", [0.0, 0.5, 1.0])
def test_a_stream_with_its_own_dial_is_what_decode_answers(dial, client, tiny_model):
    pieces = list(
        client.chat.completions.create(
            model="",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"aggressiveness": dial},
        )
    )
    result = expected(tiny_model, MESSAGES, FilterPolicy(filter_policy().predictor.at(dial)))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == result.texts[0]
    assert [piece.usage.forwards for piece in pieces if piece.usage] == [int(result.forwards[0])]
    assert sum(bool(piece.choices) and piece.choices[0].finish_reason is not None for piece in pieces) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_of_one_request_keep_their_numbers(stream, client, tiny_model, make_prompts):
    ids = make_prompts([9, 2, 30])
    texts = expected_texts(tiny_model, ids)
    answer = client.completions.create(model="", prompt=ids, stream=stream)
    pieces = list(answer) if stream else [answer]
    told = ["".join(c.text for piece in pieces for c in piece.choices if c.index == number) for number in range(3)]
    assert told == texts


def expected_texts(model, ids):
    return [expected(model, prompt, filter_policy()).texts[0] for prompt in ids]


def test_a_stop_string_ends_the_answer_before_it(client, tiny_model):
    text = expected(tiny_model, MESSAGES, filter_policy()).texts[0]
    string = text[3:5]
    answer = client.chat.completions.create(model="", messages=MESSAGES, stop=[string, "never"])
    assert answer.choices[0].message.content == text[: text.find(string)]
    assert answer.choices[0].finish_reason == "stop"


def test_draws_follow_the_seed(client, tiny_model):
    def ask(**options):
        answer = client.chat.completions.create(model="", messages=MESSAGES, temperature=1.0, **options)
        return answer.choices[0].message.content

    assert ask(seed=7) == ask(seed=7)
    assert len({ask() for _ in range(4)}) > 1


def chat(**fields):
    return {"messages": MESSAGES} | fields


def says(content):
    return {"messages": [{"role": "user", "content": content}]}


REFUSED = {
    "no messages": ({"messages": []}, 400, "messages=[]"),
    "messages missing": ({}, 400, "messages: it must be given"),
    "wrong role": ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role='wizard'"),
    "last is not the user's": ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "from 'assistant'"),
    "empty prompt": (says("  "), 400, "is empty"),
    "a picture": (says([{"type": "image_url", "image_url": {"url": "x"}}]), 400, "type='image_url'"),
    "prompt too long": (says("word " * 100), 400, "at most 60"),
    "negative length": (chat(max_tokens=-3), 400, "max_tokens=-3"),
    "length zero": (chat(max_completion_tokens=0), 400, "max_completion_tokens=0"),
    "length too long": (chat(max_tokens=65), 400, "at most 64"),
    "length as text": (chat(max_tokens="12"), 400, "max_tokens='12'"),
    "temperature too low": (chat(temperature=-1), 400, "temperature=-1"),
    "top_p of nothing": (chat(top_p=0), 400, "top_p=0"),
    "dial too far": (chat(aggressiveness=1.5), 400, "aggressiveness=1.5"),
    "empty stop string": (chat(stop=[""]), 400, "stop"),
    "several answers": (chat(n=3), 400, "n=3"),
    "tools": (chat(tools=[{"type": "function"}]), 400, "tools="),
    "log-probabilities": (chat(logprobs=True), 400, "logprobs=True"),
    "another model": (chat(model="gpt-9"), 404, "model='gpt-9'"),
    "a list": ([1], 400, "the body=[1]"),
    "null": (None, 400, "the body"),
    "half a character": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "half a character"),
    "not UTF-8": (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', 400, "not JSON in UTF-8"),
    "not JSON": (b"{", 400, "not JSON"),
    "nothing": (b"", 400, "the body"),
    "nested": (b"[" * 9_000, 400, "not JSON"),
    "no number": (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 400, "temperature=nan"),
    "huge number": (b'{"messages": [], "max_tokens": ' + b"9" * 6000 + b"}", 400, "not JSON"),
    "body of 10 MB": (b" " * 10_000_000, 413, "larger than 10000 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line(name, server):
    body, status, words = REFUSED[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(server.address + CHAT, content=content, headers=headers)
    message = answer.json()["error"]["message"]
    assert (answer.status_code, "\n" in message) == (status, False), message
    assert words in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("", "empty"), ([], "empty list"), ([[]], "empty"), ([5, 10**9], "1000000000"), ([[-1]], "-1"), (["a"] * 9, "8")],
)
def test_bad_prompts_of_completions_are_one_line(prompt, words, client):
    with pytest.raises(openai.BadRequestError, match=words):
        client.completions.create(model="", prompt=prompt)


def test_what_is_no_request_is_told_so(server):
    assert httpx.get(server.address + "/nowhere").status_code == 404
    assert httpx.get(server.address + CHAT).status_code == 405
    told = httpx.post(server.address + CHAT, content=json.dumps(chat()), headers={"Content-Type": "text/plain"})
    assert (told.status_code, "application/json" in told.text) == (400, True)


def test_health_and_figures(server, client):
    client.chat.completions.create(model="", messages=MESSAGES)
    health = httpx.get(server.address + "/health").json()
    assert health["status"] == "ok"
    figures = httpx.get(server.address + "/metrics").text
    for name in (
        "requests_total{",
        "request_seconds_bucket{",
        "answer_tokens_total",
        "forwards_total",
        "waiting",
        "steps",
    ):
        assert f"learn2pd_{name}" in figures


def connection(server) -> socket.socket:
    place = urlsplit(server.address)
    return socket.create_connection((place.hostname, place.port), timeout=LONGEST_S)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_client_that_is_too_slow_is_sent_away(part, server):
    """It sends a byte now and then, and would take minutes."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n".encode()
    with connection(server) as slow:
        slow.sendall(head[:9] if part == "head" else head)
        started = time.monotonic()
        slow.settimeout(0.2)
        answer = b""
        while time.monotonic() < started + LONGEST_S:
            try:
                slow.sendall(b" ")
                answer = slow.recv(1000)
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
    assert time.monotonic() < started + 20
    assert answer.startswith(b"HTTP/1.1 408") if part == "body" else answer == b""


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_is_decoded_no_more(stream, tiny_model):
    server = Server(tiny_model, Method(LeftToRightPolicy(), BLOCKS), gen_length=400, limits=Limits(rows=1))
    body = json.dumps(chat(stream=stream)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with served(server) as server.address:
        with connection(server) as left:
            left.sendall(head.encode() + body)
            wait_for(lambda: server.engine.running == 1)
            if stream:
                left.recv(10)
        wait_for(lambda: server.engine.running == 0)
        assert server.engine.row_steps < 400
        wait_for(lambda: "learn2pd_hung_up_total 1.0" in httpx.get(server.address + "/metrics").text)


def wait_for(holds) -> None:
    ends = time.monotonic() + LONGEST_S
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_key_keeps_others_out_and_a_full_queue_is_told(tiny_model):
    server = Server(tiny_model, Method(ThresholdPolicy(0.6), BLOCKS), limits=Limits(queue=2), api_key="sésame")
    with served(server) as address:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sésame".encode()}):
            assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 401
        right = {"Authorization": "Bearer sésame".encode()}
        assert httpx.get(f"{address}/v1/models", headers=right).status_code == 200
        assert httpx.get(f"{address}/health").status_code == 200
        full = httpx.post(f"{address}/v1/completions", json={"prompt": ["a", "b", "c"]}, headers=right)
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
        policy = httpx.post(f"{address}{CHAT}", json=chat(aggressiveness=0.5), headers=right)
        assert "policy 'threshold' has no dial" in policy.text


def test_a_thousand_clients_at_once_get_their_own_answers(tiny_model, make_prompts):
    server = Server(tiny_model, Method(ThresholdPolicy(0.6), BLOCKS), limits=Limits(rows=64))
    kinds = make_prompts(list(range(2, 12)))
    texts = [decode(tiny_model, [ids], Method(ThresholdPolicy(0.6), BLOCKS), gen_length=4).texts[0] for ids in kinds]

    async def ask(place, number):
        body = json.dumps({"prompt": kinds[number % 10], "max_tokens": 4}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200"), answer
        return json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"]

    async def ask_all(place):
        return await asyncio.gather(*(ask(place, number) for number in range(1000)))

    with served(server) as address:
        assert asyncio.run(ask_all(urlsplit(address))) == texts * 100
        assert server.engine.row_steps > 8 * server.engine.steps


def test_a_server_that_stops_tells_those_who_wait(tiny_model):
    server = Server(tiny_model, Method(LeftToRightPolicy(), BLOCKS), gen_length=400, limits=Limits(rows=1))
    told = []
    with served(server) as address:
        asking = threading.Thread(target=lambda: told.append(httpx.post(address + CHAT, json=chat(), timeout=60)))
        asking.start()
        wait_for(lambda: server.engine.running == 1)
        server.engine.close()
        asking.join(LONGEST_S)
        assert told[0].status_code == 503
        assert httpx.get(f"{address}/health").status_code == 503
        assert httpx.post(address + CHAT, json=chat()).status_code == 503


def test_what_transformers_chat_sends(server, tiny_model):
    """It asks for the model to be loaded first, and sends its settings as one text."""
    assert '"status": "ready"' in httpx.post(f"{server.address}/load_model", json={"model": "x"}).text
    settings = json.dumps({"max_new_tokens": 7, "do_sample": False})
    answer = httpx.post(server.address + CHAT, json=chat(generation_config=settings)).json()
    assert (
        answer["choices"][0]["message"]["content"]
        == decode(tiny_model, [MESSAGES], Method(filter_policy(), BLOCKS), gen_length=7).texts[0]
    )
    assert "generation_config" in httpx.post(server.address + CHAT, json=chat(generation_config="{")).text
