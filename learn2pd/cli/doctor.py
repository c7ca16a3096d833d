"""`learn2pd doctor [config=NAME] [key=value ...]`: whether this machine can start a run, and what it lacks.

Nothing is downloaded but the small files that describe a model, and no weights are read. The hub is asked while the
libraries load, and gets two seconds to answer.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from learn2pd import __version__
from learn2pd.cli.config import RunConfig, load_config
from learn2pd.errors import UserError
from learn2pd.files import here_or_shipped

HUB_SECONDS = 2.0
MEMORY_SHARE = 0.9  # of the free memory that a run may take; the rest is for libraries and for what torch sets aside
PROMPT_TOKENS = 512  # assumed for the size of a batch, since the prompts are not read here


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: The thing that was looked at.
        state: `ok`, `missing` (a run can start without it) or `wrong` (no run can start).
        text: What is so, and what to do where it is not ok.
    """

    subject: str
    state: str
    text: str


def doctor(name: str, overrides: Sequence[str]) -> None:
    """Print what a run needs and what this machine has.

    Args:
        name: The name of the configuration.
        overrides: `section.key=value` strings.

    Raises:
        UserError: No run of this configuration can start.
    """
    config = load_config(name, overrides)
    findings = list(examine(config))
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        sys.stdout.write(f"{finding.state:8} {finding.subject:{width}}  {finding.text}\n")
    wrong = [f"{finding.subject}: {finding.text}" for finding in findings if finding.state == "wrong"]
    if wrong:
        raise UserError(f"a run of config={name} cannot start: {'; '.join(wrong)}")
    sys.stdout.write(f"\na run of config={name} can start\n")


def examine(config: Any) -> Iterator[Finding]:
    """Look at everything that a run of a configuration needs.

    Args:
        config: The configuration.

    Yields:
        The findings, in the order of the report.
    """
    with ThreadPoolExecutor(1) as executor:
        # the hub is asked in the background, since torch and transformers take seconds to load
        asked = executor.submit(_ask_hub)
        yield Finding("learn2pd", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
        yield from _libraries()
        yield from _devices()
        unreachable = asked.result()
    if isinstance(config, RunConfig):
        local = Path(here_or_shipped(config.model.path)).exists()
        yield _hub(unreachable, config.data.source == "hub" and not Path(str(config.data.path)).exists(), local)
        yield _model(config, unreachable)
        yield from _checks(config, unreachable)
    else:
        yield _hub(unreachable, False, True)
    yield _output(config.output_dir)


def _ask_hub() -> str | None:
    from learn2pd.models.files import why_unreachable

    return why_unreachable(HUB_SECONDS)


def _libraries() -> Iterator[Finding]:
    """Compare the declared libraries with the installed ones."""
    try:
        lines = importlib.metadata.requires("learn2pd") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("libraries", "missing", "learn2pd is not installed here, so its requirements are not known")
        return
    needed = [Requirement(line) for line in lines]
    named = (extra for line in lines for extra in re.findall(r"extra == [\"'](\w+)[\"']", line))
    extras: dict[str, list[str]] = {extra: [] for extra in named}
    right = []
    for requirement in needed:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            problem = _problem(requirement)
            if problem:
                yield Finding(requirement.name, "wrong", f"{problem}: pip install '{_plain(requirement)}'")
            else:
                right.append(f"{requirement.name} {importlib.metadata.version(requirement.name)}")
        else:
            for extra in extras:
                if requirement.marker.evaluate({"extra": extra}) and _problem(requirement):
                    extras[extra].append(requirement.name)
    yield Finding("libraries", "ok", ", ".join(right))
    for extra, names in extras.items():
        text = f"{', '.join(names)} not installed: pip install 'learn2pd[{extra}]'" if names else "installed"
        yield Finding(f"extra {extra}", "missing" if names else "ok", text)


def _problem(requirement: Requirement) -> str:
    """Say what is wrong with the installed version of a library; empty where nothing is."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    fits = requirement.specifier.contains(version, prereleases=True)
    return "" if fits else f"{version} is installed, {requirement.specifier} is needed"


def _plain(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _devices() -> Iterator[Finding]:
    import torch

    from learn2pd.models.sizes import bytes_text

    free = _cpu_memory()
    memory = "memory unknown" if free is None else f"{bytes_text(free)} of memory free"
    yield Finding("cpu", "ok", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory}")
    for number in range(torch.cuda.device_count()):
        left, whole = torch.cuda.mem_get_info(number)
        kinds = "float32, bfloat16, float16" if torch.cuda.is_bf16_supported() else "float32, float16, no bfloat16"
        name = torch.cuda.get_device_name(number)
        yield Finding(f"cuda:{number}", "ok", f"{name}, {bytes_text(left)} of {bytes_text(whole)} free, {kinds}")
    if not torch.cuda.is_available():
        yield Finding("gpu", "missing", "torch sees none; device=auto takes the CPU")


def _cpu_memory() -> int | None:
    """Return the bytes of memory that are free; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    available = re.search(r"MemAvailable:\s+(\d+) kB", lines)
    return int(available[1]) * 1024 if available else None


def _hub(unreachable: str | None, data: bool, local: bool) -> Finding:
    from huggingface_hub import constants

    if unreachable is None:
        return Finding("hub", "ok", f"{constants.ENDPOINT} answers")
    text = f"{constants.ENDPOINT} could not be reached ({unreachable})"
    if data:
        return Finding("hub", "wrong", f"{text}, and data.source=hub needs it; data.source=jsonl reads a local file")
    need = "this run does not need it" if local else "only what its local cache holds can be used"
    return Finding("hub", "missing", f"{text}; {need}")


def _model(config: RunConfig, unreachable: str | None) -> Finding:
    """Say whether the weights and a batch fit into the memory of the device, from config.json alone."""
    import torch
    from huggingface_hub import constants

    from learn2pd.models.loading import read_skeleton, resolve_devices, resolve_dtype
    from learn2pd.models.sizes import bytes_text, sizes_of

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or unreachable is not None  # nobody asks the hub twice
    try:
        dtype = resolve_dtype(config.model.dtype)
        devices = resolve_devices(config.model.device)
        network = read_skeleton(config.model.path, dtype, config.model.revision, config.model.family)
        sizes = sizes_of(
            network, config.decode.rows_together, PROMPT_TOKENS + config.decode.gen_length, config.model.quantization
        )
    except UserError as error:
        # the flag was set here, so that its name in the message would mislead
        return Finding("model", "wrong", f"model.{error}".replace("HF_HUB_OFFLINE is set", unreachable or ""))
    finally:
        constants.HF_HUB_OFFLINE = before
    frees = [torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _cpu_memory() for device in devices]
    free = None if None in frees else sum(size for size in frees if size is not None)
    decode = config.decode
    batch = f"for {decode.rows_together} rows of {PROMPT_TOKENS} tokens of prompt and {decode.gen_length} of canvas"
    names = " and ".join(map(str, devices))
    kind = " and ".join(part for part in (config.model.dtype, config.model.quantization) if part)
    told = f"{config.model.path} takes at most {bytes_text(sizes.whole)} in {kind} on {names} ({sizes}; {batch})"
    if free is not None and sizes.whole > MEMORY_SHARE * free:
        advice = "" if config.model.dtype != "float32" else ", or model.dtype=bfloat16"
        fewer = "use another model.device, fewer rows by decode.batch_size"
        return Finding("model", "wrong", f"{told}, {bytes_text(free)} are free: {fewer}{advice}")
    return Finding("model", "ok", told if free is None else f"{told}, {bytes_text(free)} are free")


def _checks(config: RunConfig, unreachable: str | None) -> Iterator[Finding]:
    """Make the checks with which a run begins, as far as they need no model."""
    from huggingface_hub import constants

    from learn2pd.cli.stages import check_folder, early_checks
    from learn2pd.cli.stages.components import with_blocks

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or unreachable is not None  # nobody asks the hub twice
    told: set[str] = set()
    try:
        with contextlib.suppress(UserError):  # the model's own line tells
            config = with_blocks(config)
        # no data set is downloaded to look at its prompts
        checks = early_checks(config, config.stages, reads_prompts=config.data.source != "hub")
        for check in (*checks, lambda: check_folder(config, config.stages)):
            try:
                check()
            except UserError as error:
                text = str(error).replace("HF_HUB_OFFLINE is set", unreachable or "")
                if text not in told:
                    yield Finding("run", "wrong", text)
                told.add(text)
    finally:
        constants.HF_HUB_OFFLINE = before


def _output(folder: str) -> Finding:
    """Say whether the folder of the run can be written, without making it."""
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK):
        return Finding("output_dir", "ok", f"{folder} can be written")
    return Finding("output_dir", "wrong", f"{folder} cannot be written: {place} is no folder that you may write to")
