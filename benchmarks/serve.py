"""The throughput of `learn2pd serve` under load against one request at a time; whether answers are right; memory.

    python benchmarks/serve.py [clients=64] [requests=512] [prompts=32] [gen_length=64] [rows=32] [rounds=2]
        [policy=null] [cache=none] [server_threads=2] [stream=false]

It starts the server as a process of its own, with the embedded model. First it asks every prompt alone, one after the
other; these answers are what all later ones must equal. Then `clients` clients ask `requests` times in random order.
The two take turns for `rounds` rounds. The ratio compares the requests per second of the two in each round; its
mean, least and largest value stand at the end. Memory is that of the server's process after every round, and when a
quarter, a half, three quarters and all of its requests under load were answered. The exit code is 1 where an answer was
wrong or lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import options_of
from learn2pd.data.prompts import task_prompts
from learn2pd.registry import build_task

TASKS = ("math", "json")


def main(arguments: list[str]) -> None:
    """Start the server, measure and print."""
    defaults = {
        "clients": "64",
        "requests": "512",
        "prompts": "32",
        "gen_length": "64",
        "rows": "32",
        "rounds": "2",
        "policy": "null",
        "cache": "none",
        "server_threads": "2",
        "stream": "false",
    }
    options = options_of(arguments, defaults)
    tasks = [build_task(name) for name in TASKS]
    texts = [prompt.text for prompt in task_prompts(tasks, {"test": int(options["prompts"])}, 0)]
    bodies = [
        {"messages": [{"role": "user", "content": text}], "stream": options["stream"] == "true"} for text in texts
    ]
    process, address = started(options)
    try:
        measure(process, address, bodies, options)
    finally:
        process.terminate()
        process.wait(60)


def started(options: dict[str, str]) -> tuple[subprocess.Popen[str], str]:
    """Start the server and wait until it answers."""
    command = [sys.executable, "-m", "learn2pd", "serve", "port=0", f"threads={options['server_threads']}"]
    command += [f"decode.gen_length={options['gen_length']}", f"decode.batch_size={options['rows']}"]
    command += [f"{key}={options[key]}" for key in ("policy", "cache")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if address := re.search(r"http://\S+:\d+", line):
            return process, address[0]
    sys.exit(f"the server did not start: {' '.join(command)}")


def measure(process: subprocess.Popen[str], address: str, bodies: Sequence[object], options: dict[str, str]) -> None:
    """Ask alone and under load in turns, and print what each round shows."""
    ask(address, bodies[:2], 1)  # the first requests of a process are slow
    expected: list[str] = []
    wrong = lost = asked = 0
    ratios: list[float] = []
    heads = f"{'round':>5} {'alone/s':>8} {'load/s':>8} {'ratio':>6} {'slowest s':>10} {'wrong':>6} {'lost':>5}"
    print(f"{heads}  MiB at 25, 50, 75, 100%")
    for number in range(int(options["rounds"])):
        alone, alone_s, _ = ask(address, bodies, 1)
        expected = expected or alone
        order = [index % len(bodies) for index in range(int(options["requests"]))]
        random.Random(number).shuffle(order)
        memory: list[int] = []
        marks = [len(order) * quarter // 4 for quarter in (1, 2, 3, 4)]

        def watch(answered: int, marks: Sequence[int] = marks, memory: list[int] = memory) -> None:
            memory.extend(memory_of(process.pid) for mark in marks if mark == answered)

        load = [bodies[index] for index in order]
        under_load, load_s, slowest = ask(address, load, int(options["clients"]), watch)
        pairs = [(got, expected[index]) for got, index in zip(under_load, order, strict=True)]
        pairs += zip(alone, expected, strict=True)
        lost += sum(not got for got, _ in pairs)
        wrong += sum(bool(got) and got != known for got, known in pairs)
        asked += len(pairs)
        rates = len(bodies) / alone_s, len(order) / load_s
        ratios.append(rates[1] / rates[0])
        print(
            f"{number:>5} {rates[0]:>8.2f} {rates[1]:>8.2f} {ratios[-1]:>6.2f} {slowest:>10.2f} {wrong:>6} {lost:>5}  "
            + " ".join(map(str, memory)),
            flush=True,
        )
    print(
        f"{asked} requests, {wrong} wrong, {lost} lost; under load {mean(ratios):.2f} times as many a second as alone, "
        f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds"
    )
    if wrong or lost:
        sys.exit(1)


def ask(
    address: str, bodies: Sequence[object], clients: int, watch: Callable[[int], None] = lambda answered: None
) -> tuple[list[str], float, float]:
    """Send all requests, as many at one time as there are clients. `watch` hears how many were answered.

    Returns:
        The texts in order (empty where an answer was lost), the seconds of all, and those of the slowest request.
    """
    place = urlsplit(address)
    free = iter(enumerate(bodies))
    texts = [""] * len(bodies)
    seconds = [0.0] * len(bodies)
    answered_so_far = itertools.count(1)

    async def client() -> None:
        for number, body in free:
            started = time.perf_counter()
            with contextlib.suppress(OSError):  # a connection that breaks is an answer that is lost
                texts[number] = await answered(str(place.hostname), place.port or 80, json.dumps(body).encode())
            seconds[number] = time.perf_counter() - started
            watch(next(answered_so_far))

    async def all_clients() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    started = time.perf_counter()
    asyncio.run(all_clients())
    return texts, time.perf_counter() - started, max(seconds)


async def answered(host: str, port: int, body: bytes) -> str:
    """Send one request by hand, so that the clients cost little, and return the text of its answer."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(head.encode() + body)
    answer = (await reader.read()).partition(b"\r\n\r\n")[2].decode()
    writer.close()
    pieces = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    if pieces:
        return "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    return str(json.loads(answer)["choices"][0]["message"]["content"]) if answer.startswith("{") else ""


def memory_of(pid: int) -> int:
    """Return the MiB that a process holds."""
    held = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(held[1]) // 1024 if held else 0


if __name__ == "__main__":
    main(sys.argv[1:])
