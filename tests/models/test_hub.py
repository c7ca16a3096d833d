"""Hub names: with a hub that answers (a server of this test), with one that does not, and from the local cache."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from learn2pd.errors import UserError
from learn2pd.models.loading import load_model
from learn2pd.policies.verifier import load_verifier
from learn2pd.registry import FAMILIES

NAME, COMMIT = "org/tiny", "a" * 40


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub"


def closed_port() -> str:
    """The address of a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def fill(hub_cache: Path, folder: Path, name: str = NAME) -> Path:
    """The folder as a snapshot in the cache, in which every file is a link."""
    root = hub_cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for path in folder.iterdir():
        blob = root / "blobs" / hashlib.sha256(path.name.encode()).hexdigest()
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


@pytest.fixture
def silent_server() -> Iterator[str]:
    """It takes every connection and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def hub(tiny_model_folder, monkeypatch) -> Iterator[list[str]]:
    """A hub with one repository; gives the paths that were asked for."""
    asked: list[str] = []
    files = {path.name: path.read_bytes() for path in tiny_model_folder.iterdir()} | {
        "huge/other.json": b"{}",
        "picture.png": b"x",
        "code.py": b"x",
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            info = {"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            resolved = re.fullmatch(rf"/{NAME}/resolve/{COMMIT}/(.+)", path)
            if path == "/":
                self.answer(200, b"")
            elif path == f"/api/models/{NAME}" or re.fullmatch(rf"/api/models/{NAME}/revision/(main|{COMMIT})", path):
                self.answer(200, json.dumps(info).encode())
            elif path == f"/api/models/{NAME}/tree/{COMMIT}":
                self.answer(200, json.dumps(tree).encode())
            elif resolved and resolved[1] in files:
                self.answer(200, files[resolved[1]])
            elif path.startswith("/api/models/org/broken"):
                self.answer(403, b"{}")
            else:
                code = "RevisionNotFound" if "/revision/" in path and NAME in path else "RepoNotFound"
                self.answer(404, b"{}", {"X-Error-Code": code, "X-Error-Message": "not here"})

        def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            etag = hashlib.sha1(content).hexdigest()
            for name, value in {
                "Content-Length": str(len(content)),
                "ETag": f'"{etag}"',
                "X-Repo-Commit": COMMIT,
                **(headers or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for module in ("constants", "file_download"):  # by the version of huggingface_hub
        template = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", constants.ENDPOINT)
    yield asked
    server.shutdown()
    server.server_close()


def refusal(load, *arguments, **options) -> str:
    """The one line that a refused load shows within ten seconds."""
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        load(*arguments, **options)
    assert time.monotonic() - started < 10
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", ["GSAI-ML/LLaDA-8B-Instruct", "Dream-org/Dream-v0-Instruct-7B"])
@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_missing_network_is_told_at_once(monkeypatch, capfd, name, revision):
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    line = refusal(load_model, name, device="cpu", revision=revision)
    assert line.startswith(f"path={name!r}")
    assert constants.ENDPOINT in line
    assert "could not be reached" in line
    assert "local folder" in line
    assert capfd.readouterr().err == ""


def test_a_name_that_no_server_knows_is_told_at_once(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://nowhere.invalid")
    assert "nowhere.invalid" in refusal(load_model, NAME, device="cpu")


def test_a_hub_that_does_not_answer_is_told_within_seconds(monkeypatch, silent_server):
    monkeypatch.setattr("learn2pd.models.files.PROBE_SECONDS", 0.5)
    monkeypatch.setattr(constants, "ENDPOINT", silent_server)
    assert "could not be reached" in refusal(load_model, NAME, device="cpu")


def test_the_wish_to_stay_offline_is_told(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(load_model, NAME, device="cpu")


def test_adapters_and_verifiers_fail_as_fast(monkeypatch, tiny_model_folder):
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    assert refusal(load_model, tiny_model_folder, device="cpu", adapter="org/lora").startswith("adapter='org/lora'")
    assert refusal(load_verifier, "org/verifier", device="cpu").startswith("verifier='org/verifier'")


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_local_cache_is_used(hub_cache, tiny_model_folder, monkeypatch, offline):
    fill(hub_cache, tiny_model_folder)
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    expected = load_model(tiny_model_folder, device="cpu").spec
    for revision in (None, COMMIT):
        spec = load_model(NAME, device="cpu", revision=revision).spec
        assert spec.name == NAME
        assert spec.fingerprint == expected.fingerprint
    assert "revision 'v9'" in refusal(load_model, NAME, device="cpu", revision="v9")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_the_cache_lacks_is_named(hub_cache, tiny_model_folder, monkeypatch, name):
    (fill(hub_cache, tiny_model_folder) / name).unlink()
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    assert name in refusal(load_model, NAME, device="cpu")


@pytest.mark.parametrize("name", ["a/b c", "a//b", "-a/b", "a/" + "b" * 200, "ä/ö", "a/b.git"])
def test_what_cannot_be_a_name_is_refused(hub, name):
    assert refusal(load_model, name, device="cpu").startswith(f"path={name!r}")


def test_a_repository_is_downloaded_once_and_only_what_is_needed(hub, tiny_model_folder):
    expected = load_model(tiny_model_folder, device="cpu").spec
    spec = load_model(NAME, device="cpu").spec
    assert (spec.name, spec.fingerprint) == (NAME, expected.fingerprint)
    fetched = {path.rpartition("/")[2] for path in hub if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= fetched
    assert not fetched & {"other.json", "picture.png", "code.py"}
    hub.clear()
    assert load_model(NAME, device="cpu").spec == spec
    assert not [path for path in hub if "/resolve/" in path]


def test_what_is_no_dllm_is_refused_before_its_weights_are_downloaded(hub, monkeypatch):
    monkeypatch.delitem(FAMILIES, "llada")
    assert "model_type 'llada'" in refusal(load_model, NAME, device="cpu")
    assert not [path for path in hub if path.endswith("model.safetensors")]


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [("org/nothing", None, "no such repository"), (NAME, "v9", "no such revision"), ("org/broken", None, "403")],
)
def test_what_the_hub_answers_is_told(hub, name, revision, words):
    line = refusal(load_model, name, device="cpu", revision=revision)
    assert words in line
    assert repr(name) in line
