"""The grammar of the command line, its help, and what is shown of it."""

from __future__ import annotations

import dataclasses
import errno
import io
import itertools
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from learn2pd import UserError, __version__
from learn2pd.cli import main as cli
from learn2pd.cli.config import RunConfig, load_config
from learn2pd.cli.help import COMMANDS, written
from learn2pd.cli.methods import policy_of
from learn2pd.cli.options import OWN, DecodeOptions, own_options
from learn2pd.cli.values import keys_of
from learn2pd.embedded.config import EmbeddedConfig
from learn2pd.registry import AUTOREGRESSIVE, COMPONENTS, INFORMED

ROOT = Path(__file__).parents[1]
QUESTION = "Mia has 7 pears. She buys 5 more. How many pears does Mia have now?"


def shell(*arguments, **environment):
    """Run the console script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "learn2pd", *arguments],
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=300,
    )


def refusal(command, *arguments):
    """Return the one line that refuses the arguments."""
    with pytest.raises(UserError) as caught:
        cli.run_command(command, list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arguments_are_sorted_out():
    given = cli.read_arguments(
        "decode", ["config=tiny_filter", "live=true", "is 1 + 1 = 2?", "options.threshold=0.5", "decode.gen_length=8"]
    )
    assert given.config == "tiny_filter"
    assert given.overrides == ["decode.gen_length=8"]
    options = own_options("decode", given.own)
    assert (options.prompt, options.live, options.options) == ("is 1 + 1 = 2?", True, {"threshold": 0.5})


@pytest.mark.parametrize(
    "prompt", ["null", "~", "a #b", "'quoted'", "[1", "{a: ", "${seed}", "???", "1e3", "yes", "a: b", "x\ny", "é=1"]
)
def test_a_prompt_is_taken_as_it_is(prompt):
    for argument in (f"prompt={prompt}", prompt):
        assert own_options("decode", cli.read_arguments("decode", [argument]).own).prompt == prompt


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        ("recrod", [], ["recrod", "did you mean 'record'"]),
        ("dcode", [], ["did you mean 'decode'"]),
        ("record", [], ["config=NAME", "tiny_filter"]),
        ("record", ["config=tiny_filtre"], ["tiny_filtre", "did you mean 'tiny_filter'"]),
        ("record", ["config=tiny_filter", "config=tiny_ar"], ["twice"]),
        ("record", ["--config=tiny_filter"], ["key=value", "config=tiny_filter"]),
        ("record", ["-c", "tiny_filter"], ["'-c'", "key=value"]),
        ("record", ["tiny_filter"], ["'tiny_filter'", "key=value"]),
        ("record", ["config=tiny_filter", "--dry-rnu"], ["did you mean '--dry-run'"]),
        ("train", ["config=tiny_filter", "--dry-run"], ["--dry-run", "record"]),
        ("decode", ["--hlep"], ["did you mean '--help'"]),
        ("decode", ["a b", "c d"], ["several prompts", "quotes"]),
        ("decode", ["hi", "prompt=hi"], ["several prompts"]),
        ("decode", ["hi", "live=2"], ["live=2", "true or false"]),
        ("decode", ["hi", "live=["], ["live=", "true or false"]),
        ("decode", ["hi", "options=3"], ["options=3", "mapping"]),
        ("decode", ["hi", "options={a: 1"], ["options=", "not YAML"]),
        ("decode", ["hi", "prompts=hi"], ["prompts", "did you mean 'prompt'"]),
        ("decode", ["hi", "gen_length=8"], ["gen_length", "did you mean 'decode.gen_length'"]),
        ("decode", ["hi", "policy=treshold"], ["treshold", "did you mean 'threshold'"]),
        *(("decode", ["hi", f"policy={name}"], [name, "beforehand"]) for name in INFORMED),
        ("check", ["policy=learn2pd.policies.label_oracle:LabelOracle"], ["LabelOracle", "beforehand"]),
        ("decode", ["hi", "policy=nowhere"], ["nowhere", "policy.json"]),
        ("decode", ["hi", "stop=eto"], ["eto", "did you mean 'eot'"]),
        ("config=tiny_filter", [], ["learn2pd run config=tiny_filter"]),
        ("run", ["tiny_filter"], ["did you mean config=tiny_filter"]),
        *(
            ("decode", [prompt], ["unknown key", f"write prompt={prompt!r}"])
            for prompt in ("x=3 what is y", "x=3", "seeed.x=1 and more")
        ),
        *(("decode", ["hi", f"policy={name}"], [name, "compare.methods"]) for name in AUTOREGRESSIVE),
        *(
            (command, [f"{key}=true"], [key, "unknown key", f"learn2pd {command}"])
            for command, key in itertools.product(("decode", "serve", "check"), ("resume", "overwrite"))
        ),
        ("eval", ["resume=true"], ["resume", "unknown key"]),
        ("decode", ["hi", "stop=eot", "decode.stop_strings=[a]"], ["decode.stop_strings", "stop rules are eot"]),
        ("decode", ["hi", "model=a/b", "model.path=c/d"], ["model=a/b", "model.path=c/d", "give one of them"]),
        ("decode", ["hi", "model.revision=main"], ["model.revision='main'", "checkpoints/tiny-llada", "no revisions"]),
        ("decode", ["hi", "decode.given=[a,b]"], ["decode.given", "or null behind"]),
        ("check", ["prompts=none.jsonl"], ["prompts='none.jsonl'"]),
        ("check", ["data.tasks=[]"], ["data.tasks is empty"]),
        ("record", ["config=tiny_filter", "output_dir=README.md", "--dry-run"], ["output_dir=README.md", "a file"]),
        ("decode", [" "], ["prompt is empty"]),
        ("decode", [], ["prompt is empty"]),
    ],
)
def test_a_mistyped_command_is_one_line_with_a_hint(command, arguments, named):
    line = refusal(command, *arguments)
    for part in named:
        assert part in line


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (command, arguments)
        for command, described in COMMANDS.items()
        for arguments in (["--help"], ["-h"], ["config=tiny_filter", "seed=3", "--help"])
        if described.configured or len(arguments) == 1
    ],
    ids=str,
)
def test_the_help_of_a_command_lists_every_option_with_type_default_and_meaning(command, arguments, capsys):
    cli.run_command(command, arguments)
    shown = capsys.readouterr().out
    for entry in dataclasses.fields(OWN[command]) if command in OWN else ():
        assert f"  {entry.name}=" in shown
        assert entry.metadata["meaning"].split()[0] in shown
    if not COMMANDS[command].configured:
        assert "keys of the configuration" not in shown
        return
    for key in keys_of(RunConfig):
        assert key.is_section or f"  {key.name}=" in shown
    assert "a whole number from 1 to 1e+06" in shown
    assert ("seed=3" in shown) == ("seed=3" in arguments)


def test_the_help_of_an_embedded_training_lists_its_own_keys(capsys):
    cli.run_command("run", ["config=tiny_dllm", "--help"])
    shown = capsys.readouterr().out
    for key in keys_of(EmbeddedConfig):
        assert key.is_section or f"  {key.name}=" in shown


def test_every_key_has_a_meaning_and_every_number_has_limits():
    for schema in (RunConfig, EmbeddedConfig, *OWN.values()):
        for key in keys_of(schema):
            if not key.is_section:
                assert key.field.metadata["meaning"], key.name
            if not key.is_section and schema is not EmbeddedConfig:  # its dataclasses check their numbers themselves
                numbers = {"int", "float", "int | None", "float | None", "list[float]", "int | str"}
                assert (key.field.metadata["least"] is not None) == (str(key.field.type) in numbers), key.name


@pytest.mark.parametrize("role", ["policy", "scheduler", "cache", "stop"])
def test_the_help_of_decode_names_every_component(role):
    entry = next(entry for entry in dataclasses.fields(DecodeOptions) if entry.name == role)
    for name in COMPONENTS[role].keys() - {*INFORMED, "filter"}:
        assert name in entry.metadata["meaning"]
    assert not any(name in entry.metadata["meaning"] for name in INFORMED)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ([1, "a"], "[1, a]"),
        ({"a": None}, "{a: null}"),
        (0.5, "0.5"),
        ("x", "x"),
        ("", '""'),
        ("null", '"null"'),
        ("1e3", '"1e3"'),
        ("a, b", '"a, b"'),
        ("a #b", '"a #b"'),
    ],
)
def test_a_default_is_shown_as_it_would_be_written(value, text):
    assert written(value) == text


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["decode", "--help"], []])
def test_help_and_version_come_at_once(arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = shell(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert done.stderr == b""
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.7
    if arguments == ["--version"]:
        assert done.stdout.decode() == f"learn2pd {__version__}\n"


@pytest.mark.thorough  # the next test decodes the same with a short canvas, in this process
def test_decode_needs_nothing_but_a_prompt():
    done = shell("decode", QUESTION)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert b"the shipped policy" in done.stderr


def test_decode_needs_no_configuration_and_no_finished_run(capsys, caplog):
    caplog.set_level(logging.INFO, "learn2pd")
    cli.run_command("decode", [QUESTION, "decode.gen_length=32"])
    assert "12" in capsys.readouterr().out
    assert "the shipped policy" in caplog.text


METHODS = {
    (): "keep",
    ("options.threshold=0.9",): "keep",
    ("policy=checkpoints/tiny-llada-filter",): "keep",
    ("policy=keep",): "keep",
    ("policy=filter",): "filter",
    ("policy=threshold",): "threshold",
    ("decode.batch_size=3",): "keep",
}


@pytest.mark.parametrize(("arguments", "name"), METHODS.items(), ids=str)
@pytest.mark.parametrize("command", ["decode", "serve"])
def test_the_shipped_policy_is_used_as_it_was_calibrated(command, arguments, name, monkeypatch, tmp_path):
    """Where a predictor `keep` lies beside the filter, both are used with the numbers that were set together."""
    monkeypatch.chdir(tmp_path)
    given = cli.read_arguments(command, list(arguments))
    config = load_config(given.config, [*given.overrides, "decode.block_length=32"])
    own = own_options(command, given.own)
    policy, folder = policy_of(config, own, has_run=False)
    assert policy == name
    assert folder.name == "tiny-llada-filter"


# ---- output that cannot be shown, and readers that go away


def refuse(text):
    raise UserError(text)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "shift_jis"])
@pytest.mark.parametrize("action", [cli.print_text, refuse])
def test_what_a_terminal_cannot_show_is_replaced_and_never_lost(encoding, action, monkeypatch):
    text = "naïve 日本語 🙂, half \ud83d, \u0000\x1b[1m, −5"
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    with monkeypatch.context() as patched:
        for name, stream in streams.items():
            patched.setattr(sys, name, stream)
        code = cli.guarded(lambda: action(text))
    assert code == (2 if action is refuse else 0)
    stream = streams["stderr" if action is refuse else "stdout"]
    stream.flush()
    if action is refuse:  # a message is one line, which does not command the terminal either
        text = text.replace("\u0000\x1b", r"\x00\x1b")
    wanted = text.encode(encoding, errors="backslashreplace")
    assert b"".join(wanted.split()) in b"".join(stream.buffer.getvalue().split())


@pytest.mark.parametrize("variables", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=str)
def test_a_file_is_read_as_utf_8_whatever_the_locale_says(variables, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("model: {revision: é–日本}", encoding="utf-8")
    done = shell("record", f"config={path}", "--help", **variables)
    assert done.returncode == 0, done.stderr
    assert "é–日本".encode("ascii", "backslashreplace") in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "{} --help | head -c 1",
        "{} decode --help | true",
        "{} decode --help >&-",
        "{} --version 2>&-",
        "{} nonsense 2>&-",
    ],
)
def test_a_closed_pipe_ends_quietly(command):
    line = command.replace("{}", f"'{sys.executable}' -m learn2pd")
    done = subprocess.run(["bash", "-c", f"{line}; echo codes ${{PIPESTATUS[@]}} >&2"], capture_output=True, cwd=ROOT)
    code = done.stderr.decode().split("codes ")[-1].split()[0] if done.stderr else "2"
    assert code in ("0", "2", "141")
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


def test_a_full_disk_behind_the_output_is_one_line():
    done = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -m learn2pd --help > /dev/full"], capture_output=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert b"no space left" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["hi", "stop=eot"], ["hi", "stop=text", "decode.stop_strings=[a]"], ["hi"]], ids=str
)
def test_a_stop_rule_that_goes_with_the_stop_strings_is_taken(arguments, capsys):
    cli.run_command("decode", [*arguments, "decode.gen_length=8", "decode.block_length=8", "policy=threshold"])


@pytest.mark.parametrize("name", ["a:b", "plain"])
@pytest.mark.parametrize("given", ["policy={}", "output_dir={}"])
def test_a_trained_policy_is_found_in_every_folder(tmp_path, name, given):
    folder = tmp_path / name / "policy"
    shutil.copytree(ROOT / "checkpoints" / "tiny-llada-filter", folder)
    value = folder if given.startswith("policy") else folder.parent
    arguments = cli.read_arguments("decode", ["hi", given.format(value)])
    config = load_config(None, arguments.overrides)
    assert policy_of(config, own_options("decode", arguments.own), arguments.has_run) == ("keep", folder)


@pytest.mark.parametrize("errno_", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.EIO, errno.EDQUOT])
def test_a_file_that_cannot_be_written_is_one_line(errno_, capsys):
    def fail():
        raise OSError(errno_, os.strerror(errno_), "outputs/x")

    assert cli.guarded(fail) == 2
    assert capsys.readouterr().err == f"error: outputs/x: cannot be read or written ({os.strerror(errno_)})\n"


@pytest.mark.parametrize("lacking", ["mask_id", "vocab_size"])
def test_a_policy_that_lacks_a_fact_of_its_training_is_one_line(lacking, tmp_path):
    shutil.copytree(ROOT / "checkpoints" / "tiny-llada-filter", tmp_path / "policy")
    file = tmp_path / "policy" / "policy.json"
    described = json.loads(file.read_text())
    del described["contract"][lacking]
    file.write_text(json.dumps(described))
    line = refusal("decode", "hi", f"policy={tmp_path / 'policy'}")
    assert f"contract lacks {lacking}" in line
