"""What a head over pairs of positions would add to a step of the filter.

    python benchmarks/pairs.py records=outputs/own_0/rounds/1 policy=checkpoints/tiny-llada-filter
        [threshold=0.98] [one_more=0.8] [epochs=6] [seed=0] [threads=1]

Besides what it accepts, the filter commits the most probable position below its threshold in a step (`one_more`), such
as the first word of one of several wordings. Once this choice is known, other proposals may be certain that were not
certain before. A head over pairs learns that: from the filter's features of both positions, its logits, their distance
and whether they propose the same token, it says whether the second proposal is right, given that the first one is. A
step could then commit greedily what is certain given the choice, a forward earlier than without the head.

`records` are the states of a round, and `policy` is a filter. The head is trained on the training prompts, in the
states whose choice is right, and judged on the validation prompts. The table says how many positions it adds to a state
that has a choice, and how many of them are right; the filter itself accepts positions with a probability above
`threshold`. A gain would be many added positions of which as many are right as of those that the filter accepts.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import options_of
from learn2pd.predictors.filter import Final
from learn2pd.predictors.loading import load_predictor
from learn2pd.predictors.networks import LengthFree
from learn2pd.predictors.questions import Batch, make_batch
from learn2pd.recording.reading import Recording

HIDDEN = 64  # features of the head
BATCH = 2048  # pairs of an optimizer step
THRESHOLDS = (0.95, 0.98, 0.99)  # of the head
NEAR = 16.0  # tokens; scales the distance


@dataclass(frozen=True)
class Pairs:
    """The pairs of a split, of N in all: a choice, and another position that the filter does not accept.

    Attributes:
        inputs: [N, F] float32, what the head sees.
        right: [N] bool, whether the other position's proposal is right.
        choice_right: [N] bool, whether the choice is right.
        states: The number of states.
        accepted: The number of positions that the filter accepts in them, and of those that are right.
        choices: The number of states with a choice, and of those in which it is right.
    """

    inputs: Tensor
    right: Tensor
    choice_right: Tensor
    states: int
    accepted: tuple[int, int]
    choices: tuple[int, int]


def pairs_of(recording: Recording, network: LengthFree, split: str, threshold: float, one_more: float) -> Pairs:
    """Make the pairs of a split.

    Args:
        recording: The states.
        network: The filter's network.
        split: The split of the prompts.
        threshold: The filter's threshold.
        one_more: The probability above which the most probable position below the threshold is a choice.
    """
    question = Final("masked")
    kept: list[Tensor] = []
    handle = network.leave.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
    columns = [name for name in recording.states.column_names if name not in ("prompt_id", "split")]
    parts: list[tuple[Tensor, ...]] = []
    for shard in range(len(recording)):
        taken = recording.columns(shard, [*columns, "length"], split)
        if len(taken["start"]):
            batch = make_batch(taken, question, network)
            with torch.inference_mode():
                logit = network(*batch.seen)
            parts.append(_pairs(batch, logit, kept.pop(), threshold, one_more))
    handle.remove()
    inputs, right, choice_right, *counts = zip(*parts, strict=True)
    states, accepted, choices = (torch.stack(numbers).sum(0).tolist() for numbers in counts)
    return Pairs(torch.cat(inputs), torch.cat(right), torch.cat(choice_right), states, tuple(accepted), tuple(choices))


def _pairs(batch: Batch, logit: Tensor, features: Tensor, threshold: float, one_more: float) -> tuple[Tensor, ...]:
    """Return the tensors of `Pairs` for one batch of states, the counts as tensors."""
    eligible, right = batch.counted, batch.label.bool()
    takes = eligible & (logit.sigmoid() > threshold)
    left = eligible & ~takes
    best = torch.where(left, logit.sigmoid(), 0.0).max(1)
    state = torch.arange(len(logit))
    chosen = best.values > one_more
    choice_right = right[state, best.indices]
    others = left & chosen[:, None]
    others[state, best.indices] = False
    row, second = others.nonzero(as_tuple=True)
    first = best.indices[row]
    distance = (second - first) / NEAR
    same = (batch.proposal[row, first] == batch.proposal[row, second]).float()
    shared = [] if batch.overlap is None else [batch.overlap[row, first, second]]
    both = torch.stack((logit[row, first], logit[row, second], same, distance, distance.abs(), *shared), dim=1)
    return (
        torch.cat((features[row, first], features[row, second], both), dim=1),
        right[row, second],
        choice_right[row],
        torch.tensor(len(logit)),
        torch.stack((takes.sum(), (takes & right).sum())),
        torch.stack((chosen.sum(), (chosen & choice_right).sum())),
    )


def trained_head(pairs: Pairs, epochs: int) -> nn.Module:
    """Train the head on the pairs whose choice is right."""
    inputs, right = pairs.inputs[pairs.choice_right], pairs.right[pairs.choice_right].float()
    head = nn.Sequential(
        nn.BatchNorm1d(inputs.shape[1], affine=False, momentum=None),  # normalises by the mean over all batches
        nn.Linear(inputs.shape[1], HIDDEN),
        nn.GELU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.GELU(),
        nn.Linear(HIDDEN, 1),
    )
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3, weight_decay=1e-2)
    for _ in range(epochs):
        for some in torch.randperm(len(inputs)).split(BATCH):
            loss = functional.binary_cross_entropy_with_logits(head(inputs[some])[:, 0], right[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head.eval()


def main(arguments: list[str]) -> None:
    """Train the head and print what it adds."""
    defaults = {"records": "", "policy": "", "threshold": "0.98", "one_more": "0.8", "epochs": "6", "seed": "0"}
    options = options_of(arguments, defaults | {"threads": "1"})
    torch.manual_seed(int(options["seed"]))
    network = load_predictor(options["policy"], "filter").network
    if not isinstance(network, LengthFree):
        sys.exit(f"error: policy={options['policy']!r}: the head reads the features of a conv or transformer filter")
    recording = Recording.load(options["records"])
    bounds = float(options["threshold"]), float(options["one_more"])
    training, judged = (pairs_of(recording, network, split, *bounds) for split in ("train", "validation"))
    head = trained_head(training, int(options["epochs"]))
    with torch.inference_mode():
        certain = head(judged.inputs)[:, 0].sigmoid()
    first = judged.choice_right
    ranked = float(binary_auroc(certain[first], judged.right[first].int()))
    print(
        f"{judged.states} validation states, {len(judged.right)} pairs; trained on {int(training.choice_right.sum())}"
    )
    print(
        f"the filter accepts {judged.accepted[0] / judged.states:.2f} positions a state, "
        f"{judged.accepted[1] / judged.accepted[0]:.1%} of them right; {judged.choices[0] / judged.states:.0%} of the "
        f"states have a choice, {judged.choices[1] / judged.choices[0]:.1%} of them right"
    )
    print(f"AUROC of the head where the choice is right: {ranked:.3f}")
    print(f"{'head above':>10} {'added a state with a choice':>28} {'right':>7} {'right where the choice is':>26}")
    for threshold in THRESHOLDS:
        added = certain > threshold
        print(
            f"{threshold:10} {int(added.sum()) / judged.choices[0]:28.2f} {judged.right[added].float().mean():7.1%} "
            f"{judged.right[added & first].float().mean():26.1%}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
