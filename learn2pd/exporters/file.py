"""A file: the policy as one graph behind the model's logits, for torch.export and for ONNX.

The graph takes what is known of a window and returns the probability that each proposal is final, and the positions to
commit. It holds the features, the network and the rule, so that a runtime in any language can use it. What is left to
the runtime is the step from logits to proposals: the arg-max, its softmax probability, the margin over the second
token, and the entropy in nats, in float32, without the mask token.

The number of rows is free, and so is the length of the window, except for the paper's network, which has one length.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from learn2pd.errors import UserError
from learn2pd.kinds import check_kind
from learn2pd.predictors.features import cut, features
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.saving import Predictor
from learn2pd.runtime import check_model
from learn2pd.tensors import most_confident
from learn2pd.types import NOT_PROPOSED, Window

ENGINE = "a file"
OPTIONS = ("formats",)  # of `export`
FORMATS = {"pt2": "policy.pt2", "onnx": "policy.onnx"}
SHAPES = ((1, 32), (5, 32), (2, 16), (3, 77))  # rows and positions at which a file is compared with the network
OF_WINDOW = ("tokens", "masked", "proposals", "confidence", "margin", "entropy", "previous")
INPUTS = (*OF_WINDOW, "length", "threshold")
OUTPUTS = ("probability", "commit")
MOST_DIFFERENCE = 1e-5  # of probabilities in ONNX, whose runtimes add in another order


class Graph(nn.Module):
    """The policy behind the logits.

    Args:
        predictor: The trained predictor.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.network = predictor.network
        self.eot_ids = predictor.contract.eot_ids
        self.delimiter_ids = predictor.contract.delimiter_ids

    def forward(
        self,
        tokens: Tensor,
        masked: Tensor,
        proposals: Tensor,
        confidence: Tensor,
        margin: Tensor,
        entropy: Tensor,
        previous: Tensor,
        length: Tensor,
        threshold: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decide about a window.

        Args:
            tokens: [R, W] long, the tokens of the window.
            masked: [R, W] bool, the positions that are still to decode.
            proposals: [R, W] long, the proposed tokens.
            confidence: [R, W] float32, their probability. The paper's network also reads it where a token is committed.
            margin: [R, W] float32, the probability of the best token minus that of the second.
            entropy: [R, W] float32, in nats.
            previous: [R, W] long, the proposals of the step before, -1 in the first step of a window.
            length: [R] long, the positions of the window that count; the others lie behind it.
            threshold: [] float32, the probability above which a proposal is committed.

        Returns:
            [R, W] float32, the probability that a proposal is final, and [R, W] bool, the positions to commit, at least
            one in every row that has a mask.
        """
        columns = features(
            tokens=tokens,
            masked=masked,
            proposals=proposals,
            confidence=confidence,
            valid=masked | self.network.sees_committed,
            previous=previous,
            eot_ids=self.eot_ids,
            delimiter_ids=self.delimiter_ids,
            margin=margin,
            entropy=entropy,
        )
        window = Window(torch.zeros_like(length), length)
        view = cut(columns, window, tokens.shape[1], self.network.sees_committed)
        probability = self.network.probability(view)
        eligible = masked & view.valid
        accepted = (probability > threshold) & eligible
        surest = most_confident(confidence, eligible)
        if not self.network.adds_surest:
            surest = surest & ~accepted.any(1, keepdim=True)
        return probability, accepted | surest


def sample(rows: int, width: int, vocab_size: int) -> tuple[Tensor, ...]:
    """Draw inputs of a graph.

    Args:
        rows: R.
        width: W.
        vocab_size: The number of tokens.

    Returns:
        The inputs, in the order of `INPUTS`.
    """
    generator = torch.Generator().manual_seed(rows * 1000 + width)

    def ids() -> Tensor:
        return torch.randint(0, vocab_size, (rows, width), generator=generator)

    def shares() -> Tensor:
        return torch.rand(rows, width, generator=generator)

    proposals = ids()
    previous = torch.where(shares() > 0.5, proposals, NOT_PROPOSED)
    length = torch.full((rows,), width) - torch.arange(rows) % 2
    return ids(), shares() > 0.4, proposals, shares(), shares(), shares(), previous, length, torch.tensor(0.5)


def export(policy: FilterPolicy, folder: Path, formats: Any = ("pt2",)) -> str:
    """Write the policy and its graph, and compare the graph with the network at several shapes.

    Args:
        policy: The trained policy.
        folder: The folder, which exists and is empty.
        formats: Which files are written: `pt2` for torch.export, `onnx`.

    Returns:
        How the folder is used, in one line.

    Raises:
        UserError: A format is unknown, the policy reads more than a window or takes tokens back, or a file computes
            something else than the network.
        ModuleNotFoundError: A package of ONNX is not installed.
    """
    try:
        wanted = list(check_kind("formats", formats, list[str]))
    except ValueError as error:
        raise UserError(f"options.{error}") from error
    if not wanted or set(wanted) - set(FORMATS):
        raise UserError(f"options.formats={wanted}: expected some of {', '.join(FORMATS)}")
    check_model(policy, ENGINE, revokes=False)
    if "onnx" in wanted:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401  torch.onnx needs both
    graph = Graph(policy.predictor).eval()
    width = policy.window_width
    vocab_size = policy.predictor.contract.vocab_size
    program = _traced(graph, width, vocab_size)
    policy.save_pretrained(folder)
    described = {"inputs": INPUTS, "outputs": OUTPUTS, "width": width, "threshold": policy.threshold}
    (folder / "graph.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    if "pt2" in wanted:
        torch.export.save(program, folder / FORMATS["pt2"])
        compare(graph, torch.export.load(folder / FORMATS["pt2"]).module(), width, vocab_size)
    if "onnx" in wanted:
        _write_onnx(program, folder / FORMATS["onnx"])
    return ", ".join(str(folder / FORMATS[name]) for name in wanted)


def _traced(graph: Graph, width: int | None, vocab_size: int) -> torch.export.ExportedProgram:
    rows = torch.export.Dim("rows", min=1, max=4096)
    of_window: dict[int, Any] = {0: rows}
    if width is None:
        of_window[1] = torch.export.Dim("width", min=2, max=4096)
    shapes = dict.fromkeys(OF_WINDOW, of_window) | {"length": {0: rows}, "threshold": None}
    with torch.no_grad():
        return torch.export.export(graph, sample(3, width or 32, vocab_size), dynamic_shapes=shapes)


def _write_onnx(program: torch.export.ExportedProgram, file: Path) -> None:
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it says which parts of torchvision it does without
    try:
        # the exporter writes attention out as this kernel does, whose result has another layout than the fast one's
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                program,
                (),
                str(file),
                input_names=INPUTS,
                output_names=OUTPUTS,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        log.setLevel(level)


def compare(graph: Graph, other: Any, width: int | None, vocab_size: int) -> None:
    """Compare a graph with what was made of it, at several shapes.

    Args:
        graph: The graph.
        other: A function of the same inputs and outputs.
        width: The only window length; None where it is free.
        vocab_size: The number of tokens.

    Raises:
        UserError: They differ.
    """
    for rows, columns in SHAPES:
        inputs = sample(rows, width or columns, vocab_size)
        with torch.no_grad():
            probability, commit = graph(*inputs)
            others = other(*inputs)
        near = torch.allclose(probability, others[0], rtol=0, atol=MOST_DIFFERENCE)
        if not near or not commit.equal(others[1]):
            raise UserError(f"the file differs from the network at {rows} rows of {width or columns} positions")
