"""The training of an embedded model, in the output_dir of its configuration."""

from __future__ import annotations

import lightning
import torch

from learn2pd.cli.stages.run_folder import claim_output, open_output, write_metrics
from learn2pd.embedded.config import EmbeddedConfig
from learn2pd.embedded.pretraining import checked_source, pretrain


def run_pretraining(config: EmbeddedConfig) -> None:
    """Train the embedded model of a configuration.

    An interrupted training continues where it stopped. The figures go to metrics.json in the output_dir.

    Args:
        config: the configuration.

    Raises:
        UserError: the user made a mistake that they can mend.
    """
    source = checked_source(config)  # before output_dir is touched, so that a mistyped command leaves no trace in it
    torch.set_num_threads(config.threads)
    lightning.seed_everything(config.seed, verbose=False)
    with claim_output(config) as output:
        open_output(config, output)
        write_metrics(output, "pretrain", pretrain(config, source, output))
