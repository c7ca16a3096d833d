"""Pretrain: the training of an embedded model in the output_dir of its configuration."""

from __future__ import annotations

import lightning
import torch

from learn2pd.cli.stages.run_folder import claimed, open_output, write_metrics
from learn2pd.embedded.config import EmbeddedConfig
from learn2pd.embedded.pretraining import checked_source, pretrain


def run_pretraining(config: EmbeddedConfig) -> None:
    """Train in the output_dir of a configuration, from where an interrupted run stopped; the figures go to metrics.json there.

    Raises:
        UserError: anything the user can mend.
    """
    source = checked_source(config)  # before output_dir is touched: a mistyped command leaves no trace there
    torch.set_num_threads(config.threads)
    lightning.seed_everything(config.seed, verbose=False)
    with claimed(config) as output:
        open_output(config, output)
        write_metrics(output, "pretrain", pretrain(config, source, output))
