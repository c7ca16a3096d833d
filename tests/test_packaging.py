"""A wheel works without the checkout: it holds every module, and the files that the configurations name.

pyproject.toml declares what the package imports, and nothing else.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from learn2pd.files import SHIPPED, here_or_shipped, shipped_folder

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "learn2pd", *SHIPPED)
QUESTION = "Mia has 7 pears. She buys 5 more. How many pears does Mia have now?"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The package as `pip install` puts it into a folder. It is built from copies, so that the checkout stays clean.

    An installation is a wheel that is unpacked; pip itself would take several seconds more.
    """
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        place = ROOT / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, source / name)
    target = tmp_path_factory.mktemp("site")
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = (source / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    present = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "learn2pd").rglob("*.py")}
    assert set(listed) - {f"learn2pd.shipped.{name}" for name in SHIPPED} == present


def test_torch_and_transformers_have_no_upper_end():
    """Engines pin both, and no engine could be installed beside a package that refuses its releases."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (torch,) = [line for line in project["dependencies"] if line.startswith("torch>")]
    (transformers,) = [line for line in project["dependencies"] if line.startswith("transformers")]
    assert (torch, transformers) == ("torch>=2.9", "transformers>=4.57")
    tested = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition("==")[0] for line in tested if not line.startswith("#")] == ["torch"]


def test_the_picture_of_the_packages_is_the_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = [line.replace("learn2pd.", "").replace(" : ", "   ") for line in contracts[0]["layers"]]
    page = (ROOT / "docs" / "reading_the_code.md").read_text(encoding="utf-8")
    assert "```\n" + "\n |\n".join(layers) + "\n```" in page
    described = set(re.findall(r"`([a-z_]+)/?`", page.partition("## The packages")[2].partition("Imports point")[0]))
    assert {name for line in layers for name in line.split()} <= described


DISTRIBUTIONS = {"yaml": "pyyaml"}  # names on the package index that differ from those of the modules


def test_what_is_imported_is_declared_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"]]
    for extra in ("humaneval", "eval", "diffusers", "onnx", "serve", "wandb", "quantization"):
        needed += extras[extra]
    declared = {re.split(r"[^A-Za-z0-9_.-]", line)[0].replace("-", "_") for line in needed}
    imported = set()
    for path in (ROOT / "learn2pd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"learn2pd", "sglang"}  # SGLang loads the plugin itself
    assert {DISTRIBUTIONS.get(name, name) for name in others} == declared


def test_the_wheel_holds_all_modules_and_all_files_that_configurations_name(site):
    modules = {path.relative_to(ROOT) for path in (ROOT / "learn2pd").rglob("*.py")}
    expected = modules | {Path("learn2pd/py.typed")}
    for name, endings in zip(SHIPPED, ((".yaml",), (".json", ".safetensors"), (".jsonl",)), strict=True):
        files = (path for path in (ROOT / name).rglob("*") if path.suffix in endings)
        expected |= {Path("learn2pd/shipped") / path.relative_to(ROOT) for path in files}
    assert not [path for path in expected if not (site / path).is_file()]


# One process runs both commands, since loading torch and transformers takes most of the time.
BOTH_COMMANDS = """
from learn2pd.cli.main import guarded, run_command
policy = ["policy=checkpoints/tiny-llada-filter", "decode.gen_length=64", "prompt=" + QUESTION]
codes = [guarded(lambda: run_command("run", ["config=tiny_filter", "--dry-run"]))]
print("=" * 8)
codes.append(guarded(lambda: run_command("decode", ["config=tiny_filter", *policy])))
raise SystemExit(max(codes))
"""


@pytest.mark.thorough  # it installs a wheel
def test_an_installed_package_plans_and_decodes_in_an_empty_folder(site, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"QUESTION = {QUESTION!r}{BOTH_COMMANDS}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    planned, answered = done.stdout.split("=" * 8)
    assert "prompts" in planned
    assert "12" in answered
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["checkpoints/tiny-llada", "data/example.jsonl", "configs", "checkpoints"])
def test_a_name_of_the_repository_is_the_packages_where_the_user_has_no_such_file(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert here_or_shipped(path) == str(shipped_folder(path.split("/")[0]).joinpath(*path.split("/")[1:]))
    (tmp_path / path).mkdir(parents=True)
    assert here_or_shipped(path) == path


@pytest.mark.parametrize(
    "path",
    ["", ".", "checkpoints/mine", "checkpoints/../pyproject.toml", "/checkpoints/tiny-llada", "org/name", "a//b", "\0"],
)
def test_other_paths_stay_as_they_are(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert here_or_shipped(path) == path


def test_home_is_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert here_or_shipped("~/model") == str(tmp_path / "model")
