"""The command `serve`: the server of learn2pd/serving with the model and the method of a configuration."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from learn2pd.cli.methods import chosen_method
from learn2pd.cli.options import ServeOptions
from learn2pd.errors import UserError

log = logging.getLogger("learn2pd")
NEEDED = ("fastapi", "uvicorn", "prometheus_client")  # packages of the extra


def serve(config: Any, own: ServeOptions, has_run: bool) -> None:
    """Answer requests until the process is told to stop.

    Args:
        config: the configuration.
        own: the options of `serve`.
        has_run: the configuration was named, so its output_dir may hold a trained policy.

    Raises:
        UserError: the packages are missing, the address cannot be used, or the method cannot be built.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'serve needs {", ".join(missing)}: pip install "learn2pd[serve]"')
    from learn2pd.cli.stages.components import model_of, sampling_of
    from learn2pd.serving.app import Limits, Server
    from learn2pd.serving.running import LOOPBACK, address_of, listen, run

    if config.decode.given:
        raise UserError(f"decode.given={config.decode.given!r}: serve gives no part of an answer; leave it out")
    listener = listen(own.host, own.port)
    model = model_of(config)
    server = Server(
        model,
        chosen_method(config, own, model, has_run),
        gen_length=config.decode.gen_length,
        sampling=sampling_of(config),
        stop_strings=config.decode.stop_strings,
        limits=Limits(
            rows=config.decode.rows_together,
            queue=own.queue,
            prompt=own.max_prompt,
            length=own.max_length,
            body=own.max_body,
            patience_s=own.patience,
        ),
        api_key=own.api_key,
    )
    if own.host not in LOOPBACK and not own.api_key:
        log.warning("whoever reaches %s:%d can use this server: give api_key to keep others out", own.host, own.port)
    log.info("%s answers at %s/v1; Ctrl-C stops it", model.spec.name, address_of(listener))
    run(server, listener)
