"""SGLang's own base classes on a machine that cannot run SGLang.

SGLang pins a CUDA build of torch, so that it is not installed beside this package's tests. Its dLLM loops and its
plugin loader are plain Python files. With the variable LEARN2PD_SGLANG set to the folder of an unzipped wheel, the
tests import these files themselves; what the files import and never use here is an empty module.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "LEARN2PD_SGLANG"
PACKAGES = ("", ".srt", ".srt.dllm", ".srt.layers", ".srt.model_executor", ".srt.arg_groups", ".srt.configs")
ABSENT = {
    "sglang.srt.arg_groups.overrides": ("resolving_view",),
    "sglang.srt.configs.model_config": ("ModelConfig",),
    "sglang.srt.server_args": ("ServerArgs",),
    "sglang.srt.layers.logits_processor": ("LogitsProcessorOutput",),
    "sglang.srt.model_executor.forward_batch_info": ("ForwardBatch",),
    "sglang.srt.model_executor.model_runner": ("ModelRunner",),
}


def wheel() -> Path | None:
    """The folder of an unzipped wheel of SGLang, where the machine has one."""
    folder = Path(os.environ.get(VARIABLE, "nowhere"))
    return folder if (folder / "sglang" / "srt" / "dllm").is_dir() else None


@contextmanager
def imported(folder: Path) -> Iterator[None]:
    """Make `sglang` importable from the folder, and forget it afterwards."""
    before = set(sys.modules)
    try:
        for name in PACKAGES:
            package = types.ModuleType(f"sglang{name}")
            package.__path__ = [str(folder / f"sglang{name}".replace(".", "/"))]
            sys.modules[package.__name__] = package
        for name, attributes in ABSENT.items():
            module = types.ModuleType(name)
            for attribute in attributes:
                setattr(module, attribute, type(attribute, (), {}))
            sys.modules[name] = module
        utils = types.ModuleType("sglang.srt.utils")
        utils.is_npu = lambda: False
        sys.modules[utils.__name__] = utils
        yield
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "sglang":
                del sys.modules[name]
