"""What the filter learns from.

The table says what each channel buys, which positions the loss should count, and how much a leaking split flatters.

    python benchmarks/ablation.py records=outputs/study_0/rounds/2 oracle=outputs/study_0/records
        [seeds=3] [epochs=20] [rows=all]

`records` and `oracle` are recordings. This command makes them:

    python train.py config=tiny_study seed=0 stages=[record,train] output_dir=outputs/study_0

Every variant is the default transformer, except for what its name says. It is trained with several seeds and judged on
the masked answer positions of the validation prompts in `records`. With `oracle` one variant is trained on the states
of that recording instead. Recall at 99% is the share of the right proposals that are accepted where 99% of the accepted
proposals are right. `rows=quick` leaves the channels out.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import options_of
from learn2pd.predictors.filter import Final
from learn2pd.predictors.networks import DEFAULT_CHANNELS, MLP, Conv, PredictorNetwork, Transformer
from learn2pd.predictors.questions import Columns
from learn2pd.recording.reading import Recording
from learn2pd.training.fit import PredictorData, Recipe, StateStream, train_predictor

FIGURES = ("val_auroc", "val_recall_at_99", "val_calibration_error")
ROW_SHARE = 5  # one row in five validates where the split is by row


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: What is different from the default.
        network: A function that makes the untrained network.
        loss_on: The positions that the loss counts.
        leaks: True splits by row and not by prompt.
        elsewhere: True trains on other states than those on which the network is judged.
    """

    name: str
    network: Any
    loss_on: str = "masked"
    leaks: bool = False
    elsewhere: bool = False


class LeakingData(PredictorData):
    """Splits by row, as the paper does: rows of one prompt, and even of one block, both train and validate."""

    def stream(self, split: str, batch_rows: int, seed: int | None = None) -> StateStream:
        """The states of one side of the leaking split."""
        return LeakingStream(self.recordings, split, self.question, self.network, batch_rows, seed)


class ElsewhereData(PredictorData):
    """Trains on the first recording and validates on the others."""

    def stream(self, split: str, batch_rows: int, seed: int | None = None) -> StateStream:
        """The states of the recordings that belong to a split."""
        recordings = self.recordings[:1] if split == "train" else self.recordings[1:]
        return StateStream(recordings, split, self.question, self.network, batch_rows, seed)


class LeakingStream(StateStream):
    """The states of both splits, of which every row is drawn into one side at random."""

    def states(self, more: Sequence[str] = ()) -> Iterator[Columns]:
        """Yield the rows of this stream's side; `more` names further columns."""
        for owner in ("train", "validation"):
            whole = StateStream(self.recordings, owner, self.question, self.network, self.batch_rows, None)
            for number, columns in enumerate(whole.states(more)):
                draw = torch.rand(len(columns["masked"]), generator=torch.Generator().manual_seed(number))
                mine = (draw < 1 / ROW_SHARE) == (self.split == "validation")
                yield {name: values[mine] for name, values in columns.items()}


def variants(block_length: int, quick: bool) -> list[Variant]:
    """The rows of the table.

    Args:
        block_length: The number of tokens of a block, which the paper's network needs.
        quick: True leaves the channels out.
    """

    def transformer(channels: Sequence[str]) -> Any:
        return lambda: Transformer(channels)

    rows = [
        Variant("transformer", Transformer),
        Variant("conv", Conv),
        Variant("mlp (the paper's)", lambda: MLP(block_length)),
        Variant("mlp, loss on all positions", lambda: MLP(block_length), "all"),
        Variant("mlp, loss on all positions, split by row", lambda: MLP(block_length), "all", leaks=True),
        Variant("loss on all positions", Transformer, "all"),
        Variant("loss on the answer", Transformer, "answer"),
        Variant("split by row", Transformer, leaks=True),
        Variant("blind to equal proposals", lambda: Transformer(same_proposal=False)),
        Variant("twice as wide, four layers", lambda: Transformer(hidden=64, layers=4)),
        Variant("trained on the oracle's states", Transformer, elsewhere=True),
    ]
    if quick:
        return rows
    rows += [
        Variant(f"without {name}", transformer([other for other in DEFAULT_CHANNELS if other != name]))
        for name in DEFAULT_CHANNELS
    ]
    rows.append(Variant("log-odds alone", transformer(["log_odds"])))
    rows.append(Variant("log-odds and masked", transformer(["log_odds", "masked"])))
    rows.append(Variant("confidence for log-odds", transformer(["confidence", *DEFAULT_CHANNELS[1:]])))
    return rows


def trained(variant: Variant, recordings: Sequence[Recording], seed: int, epochs: int) -> dict[str, float]:
    """Train a variant and return the validation figures of its best epoch.

    Args:
        variant: The variant.
        recordings: The recordings that it is trained and judged on.
        seed: The seed of the training.
        epochs: The number of epochs; the paper's network gets five times as many.
    """
    lightning.seed_everything(seed, verbose=False)
    network: PredictorNetwork = variant.network()
    kind = LeakingData if variant.leaks else ElsewhereData if variant.elsewhere else PredictorData
    data = kind(recordings, Final(variant.loss_on), network, 256, seed)
    data.prepare()
    is_mlp = variant.name.startswith("mlp")
    recipe = Recipe(max_epochs=epochs * (5 if is_mlp else 1), patience_epochs=epochs if is_mlp else 6)
    with tempfile.TemporaryDirectory() as folder:
        return train_predictor(network, data, Path(folder), recipe)


def main(arguments: list[str]) -> None:
    """Train all variants and print the table."""
    options = {"records": "", "oracle": "", "seeds": "3", "epochs": "20", "rows": "all"}
    options = options_of(arguments, options)
    if not options["records"]:
        sys.exit("records is not given: expected records=FOLDER[,FOLDER]")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    recordings = [Recording.load(Path(folder)) for folder in options["records"].split(",")]
    oracle = [Recording.load(Path(options["oracle"]))] if options["oracle"] else []
    titles = " | ".join(name.removeprefix("val_") for name in FIGURES)
    print(f"| variant | {titles} |", flush=True)
    print("|---" * (len(FIGURES) + 1) + "|", flush=True)
    for variant in variants(recordings[0].description["block_length"], options["rows"] == "quick"):
        if variant.elsewhere and not oracle:
            continue
        used = [*oracle, *recordings] if variant.elsewhere else recordings
        runs = [trained(variant, used, seed, int(options["epochs"])) for seed in range(int(options["seeds"]))]
        cells = []
        for name in FIGURES:
            values = [run[name] for run in runs]
            cells.append(f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"| {variant.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
