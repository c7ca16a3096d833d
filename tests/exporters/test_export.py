"""The command `learn2pd export`, and what it refuses."""

from __future__ import annotations

import sys

import pytest

from learn2pd import UserError, export_policy
from learn2pd.cli.main import guarded, run_command
from learn2pd.exporters import export
from learn2pd.files import shipped_folder
from learn2pd.registry import EXPORTERS

FILTER = str(shipped_folder("checkpoints") / "tiny-llada-filter")


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    code = guarded(lambda: run_command("export", arguments))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_writes_a_folder_and_says_how_it_is_used(capsys, tmp_path):
    folder = tmp_path / "exported"
    code, out, err = command(capsys, "to=sglang", f"policy={FILTER}", f"output_dir={folder}")
    assert (code, err) == (0, "")
    assert "--dllm-algorithm Learn2PD" in out
    assert (folder / "policy.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["to=sgland"], "to='sgland': unknown engine; did you mean 'sglang'; expected transformers, diffusers, sglang"),
        (["to="], "to is not given"),
        (["policy="], "policy is not given"),
        (["output_dir="], "output_dir is not given"),
        (["policy=nowhere/at/all"], "policy='nowhere/at/all': the folder does not exist"),
        (["policy=configs"], "the folder holds no policy.json"),
        (["options={block: 3}"], "to=sglang: unknown option 'block'; it takes none"),
        (["train.max_epochs=3"], "train.max_epochs: unknown key; learn2pd export takes to, policy"),
        (["config=tiny_filter"], "config: unknown key; learn2pd export takes to, policy"),
        (["outptu_dir=x"], "outptu_dir: unknown key; did you mean 'output_dir'"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(arguments, message, capsys, tmp_path):
    keys = {"to": "to=sglang", "policy": f"policy={FILTER}", "output_dir": f"output_dir={tmp_path / 'exported'}"}
    given = keys | {argument.partition("=")[0]: argument for argument in arguments}
    code, _, err = command(capsys, *given.values())
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "exported").exists()


def test_a_folder_with_files_is_kept(capsys, tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="exists already: name a new folder"):
        export_policy("sglang", FILTER, tmp_path)
    with pytest.raises(UserError, match="exists already"):
        export_policy("sglang", FILTER, tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, EXPORTERS["diffusers"], raising=False)
    with pytest.raises(UserError, match=r'diffusers, which is not installed: pip install "learn2pd\[diffusers\]"'):
        export_policy("diffusers", FILTER, tmp_path / "exported")


def test_every_exporter_has_what_the_command_needs():
    for to in EXPORTERS:
        if to == "diffusers":
            pytest.importorskip("diffusers")
        exporter = export.import_exporter(to)
        assert exporter.export.__doc__
        assert isinstance(exporter.OPTIONS, tuple)
