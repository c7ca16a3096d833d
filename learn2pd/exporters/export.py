"""`learn2pd export`: a trained policy becomes files that an engine reads."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import Any

from learn2pd.arguments import checked
from learn2pd.errors import UserError, check_options, first_line, suggest
from learn2pd.models.files import path_text
from learn2pd.predictors.filter import FilterPolicy, load_policy
from learn2pd.registry import EXPORTERS

PACKAGES = {"diffusers": "diffusers", "onnx": "onnx", "onnxscript": "onnx"}  # modules -> the extra that has them


@checked(but=("policy", "output_dir"))
def export_policy(
    to: str, policy: FilterPolicy | str | os.PathLike[str], output_dir: str | os.PathLike[str], **options: Any
) -> str:
    """Export a trained policy for an engine.

    Args:
        to: The engine: `transformers`, `diffusers`, `sglang` or `file`.
        policy: The policy, its folder, or its name on the hub.
        output_dir: The folder to write into. It must not exist, or be empty.
        options: The options of the engine's exporter, see docs/engines.md.

    Returns:
        How the folder is used, in one line.

    Raises:
        UserError: The engine or an option is unknown, a package of the engine is missing, the engine cannot run the
            policy, or the folder has files.
    """
    if to not in EXPORTERS:
        raise UserError(f"to={to!r}: unknown engine{suggest(to, EXPORTERS)}; expected {', '.join(EXPORTERS)}")
    folder = Path(path_text("output_dir", output_dir))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output_dir={str(folder)!r} exists already: name a new folder, or remove this one")
    exporter = import_exporter(to)
    check_options(f"to={to}", options, exporter.OPTIONS)
    loaded = policy if isinstance(policy, FilterPolicy) else load_policy(Path(path_text("policy", policy)))
    loaded.check_no_options("an exported policy")
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        told: str = exporter.export(loaded, folder, **options)
        return told
    except BaseException as error:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)  # nobody should take half an export for a whole one
        if isinstance(error, OSError):
            raise UserError(f"output_dir={str(folder)!r} could not be written ({first_line(error)})") from error
        if isinstance(error, ModuleNotFoundError):
            raise _missing(to, error) from error
        raise


def import_exporter(to: str) -> Any:
    """Import the module of an engine.

    Args:
        to: A name in `EXPORTERS`.

    Raises:
        UserError: A package of the engine is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(EXPORTERS[to])
    except ModuleNotFoundError as error:
        raise _missing(to, error) from error


def _missing(to: str, error: ModuleNotFoundError) -> UserError:
    package = str(error.name).partition(".")[0]
    extra = PACKAGES.get(package)
    advice = f'pip install "learn2pd[{extra}]"' if extra else f"pip install {package}"
    return UserError(f"to={to} needs the package {package}, which is not installed: {advice}")
