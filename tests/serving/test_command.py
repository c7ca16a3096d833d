"""The command `serve`: its keys reach the server, and what is wrong is one line."""

from __future__ import annotations

import socket

import pytest

from learn2pd import UserError
from learn2pd.cli import main as cli
from learn2pd.cli import serve as command

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")


@pytest.fixture
def started(monkeypatch):
    """Servers that would answer now."""
    from learn2pd.serving import running

    servers = []
    monkeypatch.setattr(running, "run", lambda server, listener: (servers.append(server), listener.close()))
    yield servers
    for server in servers:
        server.close()


def test_the_keys_reach_the_server(started, tiny_model_folder):
    arguments = ["port=0", "policy=threshold", "options.threshold=0.7", "queue=5", "max_length=9", "patience=2"]
    arguments += [f"model.path={tiny_model_folder}", "decode.gen_length=8", "decode.stop_strings=[x]"]
    cli.run_command("serve", [*arguments, "decode.batch_size=3"])
    [server] = started
    assert (server.limits.rows, server.limits.queue, server.limits.length, server.limits.patience_s) == (3, 5, 9, 2)
    assert (server.method.policy.threshold, server.gen_length, server.stop_strings) == (0.7, 8, ("x",))


def test_a_taken_port_and_a_foreign_address_are_told_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}: cannot listen there"):
            cli.run_command("serve", [f"port={port}", "model.path=nowhere"])
    with pytest.raises(UserError, match=r"host='192\.0\.2\.1'"):
        cli.run_command("serve", ["host=192.0.2.1", "port=0", "model.path=nowhere"])


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    monkeypatch.setattr(command, "NEEDED", ("fastapi", "no_such_package"))
    with pytest.raises(UserError, match=r'serve needs no_such_package: pip install "learn2pd\[serve\]"'):
        cli.run_command("serve", [])


@pytest.mark.parametrize("argument", ["port=-1", "port=99999", "queue=0", "max_body=0", "patience=0", "porte=1"])
def test_values_out_of_range_are_refused(argument):
    with pytest.raises(UserError, match=argument.partition("=")[0]):
        cli.run_command("serve", [argument])
