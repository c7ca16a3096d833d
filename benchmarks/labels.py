"""What labels buy: one filter for each kind of labels, with everything else equal, and their curves in one table.

    python benchmarks/labels.py [config=tiny_study] [output_dir=outputs/labels] [oracles=false]
        [labels=reference,own_answer,continuation,checked,checked_together] [thresholds=0.9,0.95,0.98,0.99]
        [SECTION.KEY=VALUE ...]

Every filter is trained with the configuration, and differs in `record.labels` alone. All of them share the recording of
the oracle's states, and are compared on the same test prompts. The tables are those of the stage `compare`. A command
that was interrupted goes on when it is started again. `oracles=true` adds the oracles of the labels, which take many
forwards.

The table before them has what the labels took: states that the last filter was trained on, and forwards of a prompt for
the labels of all recordings.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import options_of
from learn2pd.cli.config import RunConfig, load_config
from learn2pd.cli.stages import run_stages
from learn2pd.cli.stages.recording import labels_folder, labels_oracle
from learn2pd.cli.stages.training import contract_of, load_trained
from learn2pd.policies.label_oracle import LABELS
from learn2pd.predictors.saving import Predictor, save_predictor
from learn2pd.recording.reading import Recording

DEFAULTS = {
    "config": "tiny_study",
    "output_dir": "outputs/labels",
    "labels": "reference,own_answer,continuation,checked,checked_together",
    "thresholds": "0.9,0.95,0.98,0.99",
    "oracles": "false",
}


def train(config: RunConfig) -> tuple[int, float]:
    """Record, label and train, and save the filter in the folder `policy` of the run.

    Args:
        config: The configuration.

    Returns:
        The states that the last filter was trained on, and the mean forwards of a prompt for their labels.
    """
    run_stages(config)
    output = Path(config.output_dir)
    description = Recording.load(output / "records").description
    network = load_trained(config, output, "filter", description).network
    predictor = Predictor("filter", network, config.train.rollout_threshold, contract_of(description, network))
    save_predictor(predictor, output / "policy")
    rounds = range(1, config.train.rounds + 1) if config.train.rounds else range(1)
    recordings = [Recording.load(labels_folder(config, output, number)) for number in rounds]
    labelled = [*([Recording.load(labels_folder(config, output, 0))] if labels_oracle(config) else []), *recordings]
    forwards = sum(
        sum(recording.references["label_forwards"]) / len(recording.references)
        for recording in labelled
        if "labels" in recording.description
    )
    return sum(len(recording.states) for recording in recordings), forwards


def methods(names: list[str], output: Path, thresholds: list[float], oracles: bool) -> list[dict[str, Any]]:
    """Return the methods that are compared, as a configuration lists them.

    Args:
        names: The labels.
        output: The folder of the runs.
        thresholds: The thresholds of the filters.
        oracles: True adds the oracles.
    """
    listed: list[dict[str, Any]] = [{"name": "vanilla", "policy": "fixed"}]
    for name in names:
        filter_of = {"name": name, "policy": "filter", "options": {"folder": str(output / name / "policy")}}
        listed.append(filter_of | {"sweep": {"threshold": thresholds}})
    if oracles:
        listed.append({"name": "oracle of reference", "policy": "oracle"})
        for name in LABELS:
            listed.append({"name": f"oracle of {name}", "policy": "label_oracle", "options": {"labels": name}})
    return listed


def main(arguments: list[str]) -> None:
    """Train all filters, compare them and print the tables."""
    own = [argument for argument in arguments if argument.partition("=")[0] in DEFAULTS]
    overrides = [argument for argument in arguments if argument not in own]
    options = options_of(own, DEFAULTS)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    output = Path(options["output_dir"])
    names = options["labels"].split(",")
    print("| labels | states | forwards of a prompt |\n|---|---|---|", flush=True)
    for name in names:
        given = [f"record.labels={name}", f"output_dir={output / name}", "stages=[record,train]"]
        first = output / names[0] / "records"
        if name != names[0] and not (output / name / "records").exists():
            shutil.copytree(first, output / name / "records")
        states, forwards = train(load_config(options["config"], [*overrides, *given]))
        print(f"| {name} | {states:,} | {forwards:.1f} |", flush=True)
    thresholds = [float(value) for value in options["thresholds"].split(",")]
    listed = methods(names, output, thresholds, options["oracles"] == "true")
    given = [f"compare.methods={json.dumps(listed)}", f"output_dir={output / 'compared'}"]
    run_stages(load_config(options["config"], [*overrides, *given]), "compare")
    print((output / "compared" / "compare.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
