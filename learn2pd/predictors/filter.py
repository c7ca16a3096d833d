"""The filter (Learn2PD, arXiv 2509.25188): a tiny network says at each position whether the proposal is final.

The rule: the policy commits every eligible position with

    sigmoid(logit) > threshold,

where the logit is the network's output at the position. Where it commits none, the loop adds the most confident
position. The paper's network (`mlp`) sees the confidences of a block, those of committed positions included. With it,
every step also commits the most confident position, as in the paper. The networks `conv` and `transformer` see the
channels of predictors/features.py, and work with any block length, window or scheduler.

Deviations from the authors' code: none in the rule. As in their code, a block that is shorter than the MLP's is padded
with zeros on the right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.kinds import matches
from learn2pd.predictors.apply import NetworkMemory, check_contract, needs_of, on_device, probability
from learn2pd.predictors.hub import OnHub
from learn2pd.predictors.lora import with_adapter
from learn2pd.predictors.questions import Columns, positions
from learn2pd.predictors.saving import Predictor, load_predictor, saved_folder
from learn2pd.roles import Policy
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, Window

if TYPE_CHECKING:
    from learn2pd.method import Method


@dataclass(frozen=True)
class Final:
    """The question of the policy `filter`, over the window that was open: is this proposal final?

    Args:
        loss_on: The positions that the training loss counts. `masked` counts all masked positions. `answer` counts the
            masked positions up to the answer's end-of-text, and leaves out the padding behind it. Such a filter is
            better inside answers, but slow without a stop rule, since it does not accept padding. `all` is the paper's
            choice: it counts every position, so that the network is also rewarded for recognising committed ones.
    """

    loss_on: str = "masked"
    kind: ClassVar[str] = "filter"
    columns: ClassVar[tuple[str, ...]] = ("start", "stop", "label", "length")

    def window(self, columns: Columns) -> Window:
        return Window(columns["start"].long(), columns["stop"].long())

    def label(self, columns: Columns) -> Tensor:
        return columns["label"]

    def counted(self, columns: Columns) -> Tensor:
        if self.loss_on == "answer":
            return self._answer(columns)
        return columns["masked"] if self.loss_on == "masked" else torch.ones_like(columns["masked"])

    def judged(self, columns: Columns) -> Tensor:
        return self._answer(columns)

    def _answer(self, columns: Columns) -> Tensor:
        return columns["masked"] & (positions(columns) <= columns["length"][:, None])

    @classmethod
    def of(cls, manifest: Mapping[str, Any], loss_on: str) -> Final:
        return cls(loss_on)


class FilterPolicy(Policy, OnHub):
    """The filter as a policy.

    Args:
        predictor: A predictor of the kind `filter`. It holds the network, the threshold on the network's probability,
            and the contract of its training.

    Raises:
        ValueError: The threshold is not a number from 0 to 1.
    """

    name = "filter"
    learned = True
    built_by = "learn2pd.predictors.filter:load_policy"

    def __init__(self, predictor: Predictor) -> None:
        if not 0 <= predictor.threshold <= 1:
            raise ValueError(f"filter threshold={predictor.threshold}: expected a probability from 0 to 1")
        self.predictor = predictor
        self.needs = needs_of(predictor)
        self.scores_committed = predictor.network.sees_committed
        self.window_width = predictor.network.width

    @classmethod
    def from_pretrained(  # type: ignore[override]  # how to download is said by huggingface_hub's own variables
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        adapter: str | Path | None = None,
        threshold: float | None = None,
        aggressiveness: float | None = None,
    ) -> FilterPolicy:
        """Load a trained filter from a folder or from the hub.

        Args:
            pretrained_model_name_or_path: A folder that `save_pretrained` or a run wrote, or the name of a repository
                of the hub, which is downloaded once.
            revision: The revision of the hub repository: a branch, tag or commit.
            adapter: As for `load_policy`.
            threshold: As for `load_policy`.
            aggressiveness: As for `load_policy`.

        Returns:
            The policy.

        Raises:
            UserError: As for `load_policy`.
        """
        for name, value in (("threshold", threshold), ("aggressiveness", aggressiveness)):
            if not matches(value, float | None):
                raise UserError(f"{name}={value!r}: expected a number from 0 to 1, got {type(value).__name__}")
        if threshold is not None and aggressiveness is not None:
            raise UserError(
                f"threshold={threshold} and aggressiveness={aggressiveness} both choose the filter's threshold: "
                "give one of them"
            )
        predictor = load_predictor(pretrained_model_name_or_path, "filter", revision=revision)
        if adapter is not None:
            predictor = with_adapter(predictor, adapter)
        if aggressiveness is not None:
            predictor = predictor.at(aggressiveness)
        if threshold is not None:
            predictor = replace(predictor, threshold=threshold)
        try:
            return cls(predictor)
        except ValueError as error:
            raise UserError(str(error)) from error

    def describe(self) -> dict[str, Any]:
        return saved_folder(self.predictor) | {"threshold": self.threshold}

    @property
    def threshold(self) -> float:
        """The threshold on the network's probability."""
        return self.predictor.threshold

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        check_contract(self.predictor, spec, method)

    def start(self, state: DecodeState, spec: ModelSpec) -> NetworkMemory:
        return on_device(self.predictor, state)

    def accepts(self, final: Tensor, state: DecodeState) -> Tensor:
        """Say at which positions the network accepts the proposal.

        Args:
            final: [B, G] float32, the probability that the proposal is final.
            state: The state before the commit.

        Returns:
            [B, G] bool.
        """
        return final > self.threshold

    def probability(self, prediction: Prediction, state: DecodeState, memory: NetworkMemory) -> Tensor:
        """Return the probability that the proposal is final, [B, G] float32, 0 outside the window.

        Args:
            prediction: The proposals.
            state: The state before the commit.
            memory: What `start` returned.
        """
        network = memory.network
        width = network.width or int((state.window.stop - state.window.start).max())  # this waits for the device
        return probability(network, self.predictor.contract, state, prediction, state.window, width)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: NetworkMemory) -> Commit:
        accepted = self.accepts(self.probability(prediction, state, memory), state) & eligible
        if not memory.network.adds_surest:
            return Commit(accepted)
        surest = most_confident(prediction.confidence, eligible)
        return Commit(accepted | surest, forced=surest & ~accepted)


def save_policy(policy: FilterPolicy, folder: str | Path) -> Path:
    """Save a trained filter, as `FilterPolicy.save_pretrained` does.

    Args:
        policy: The filter.
        folder: The folder to write into; it is made where it does not exist.

    Returns:
        The folder.
    """
    policy.save_pretrained(folder)
    return Path(folder)


def load_policy(
    folder: str | Path,
    adapter: str | Path | None = None,
    threshold: float | None = None,
    aggressiveness: float | None = None,
    revision: str | None = None,
) -> FilterPolicy:
    """Load a trained filter.

    Args:
        folder: The folder that `save_policy` or a run wrote, or the name of a repository of the hub.
        adapter: The folder of a LoRA adapter that was trained on this policy. It is merged, and brings its own
            threshold and curve.
        threshold: A threshold that replaces the calibrated one.
        aggressiveness: A place on the calibrated curve, 0 (strictest) to 1 (boldest), whose threshold replaces the
            calibrated one.
        revision: The revision of the hub repository.

    Returns:
        The policy.

    Raises:
        UserError: The folder is missing, damaged or of another schema; the hub cannot be reached; the adapter belongs
            to another base; both a threshold and an aggressiveness are given; or one of the numbers is out of range.
    """
    return FilterPolicy.from_pretrained(
        folder, revision=revision, adapter=adapter, threshold=threshold, aggressiveness=aggressiveness
    )
