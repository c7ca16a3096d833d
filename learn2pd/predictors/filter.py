"""The filter as it is trained, saved and loaded, and what it can do beside its rule, which accepting.py holds.

With `one_more` below 1, a step also commits the most probable eligible position below the threshold that was never
taken back, if

    sigmoid(logit) > one_more.

Positions that are committed together are proposed without knowing of each other, so that one doubtful commit costs less
than several. It often decides how the answer is worded, and so makes other positions certain.

With `confidence_threshold` below 1, a step also commits the eligible positions that were never taken back and whose
proposals the model itself gives a

    confidence > confidence_threshold.

The labels of the training call every wording wrong but one. Where an answer has already taken another wording, the
filter hesitates although the rest has become certain, and the model's own confidence says so.

The filter can also take back, which is this project's own addition. With `take_back` above 0, a step takes back the
committed tokens of the window, whose steps lie before this one, with

    leave-one-out probability < take_back,

the least probable first, fewer of them than it commits, and each position at most `per_position` times. The
leave-one-out probability of a token is its probability given all tokens but itself; as with the policy `wino`, it comes
from shadow columns of the same forward, which the result counts. A position that was taken back n times must be surer
to be committed again:

    1 - sigmoid(logit) < (1 - threshold) / 5 ** n.

A step commits more tokens than it takes back, so that a run never takes more forwards than one token a step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from learn2pd.arguments import checked
from learn2pd.errors import UserError, check_at_least, check_probability, user_errors
from learn2pd.predictors.accepting import Acceptance
from learn2pd.predictors.apply import NetworkMemory
from learn2pd.predictors.hub import OnHub
from learn2pd.predictors.loading import load_predictor
from learn2pd.predictors.lora import with_adapter
from learn2pd.predictors.questions import CHECKED, Columns, positions
from learn2pd.predictors.saving import Predictor, Setting, saved_folder
from learn2pd.roles import REVISIONS
from learn2pd.tensors import most_confident, revisable
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, Window

SURER = 5.0  # the odds against a proposal are smaller by this factor for every time that its position was taken back
LEAVE_ONE_OUT = "leave_one_out"
PER_POSITION = 3  # how often a position may be taken back, unless the user says otherwise


@dataclass(frozen=True)
class Final:
    """The question of the policy `filter`, over the window that was open: is this proposal final?

    Args:
        loss_on: The positions that the training loss counts. `masked` counts all masked positions. `answer` counts the
            masked positions up to the answer's end-of-text, and leaves out the padding behind it. Such a filter is
            better inside answers, but slow without a stop rule, since it does not accept padding. `all` is the paper's
            choice: it counts every position, so that the network is also rewarded for recognising committed ones.
        labelled: Whether the recording says at which positions it knows the label; the others count nowhere.
    """

    loss_on: str = "masked"
    labelled: bool = False
    kind: ClassVar[str] = "filter"
    of_committed: ClassVar[bool] = False

    @property
    def columns(self) -> tuple[str, ...]:
        return ("start", "stop", "label", "length", *(("labelled",) if self.labelled else ()))

    def window(self, columns: Columns) -> Window:
        return Window(columns["start"].long(), columns["stop"].long())

    def label(self, columns: Columns) -> Tensor:
        return columns["label"]

    def counted(self, columns: Columns) -> Tensor:
        if self.loss_on == "answer":
            return self._answer(columns)
        counted = columns["masked"] if self.loss_on == "masked" else torch.ones_like(columns["masked"])
        return counted & columns["labelled"] if self.labelled else counted

    def judged(self, columns: Columns) -> Tensor:
        return self._answer(columns)

    def _answer(self, columns: Columns) -> Tensor:
        answer = columns["masked"] & (positions(columns) <= columns["length"][:, None])
        return answer & columns["labelled"] if self.labelled else answer

    @classmethod
    def of(cls, description: Mapping[str, Any], loss_on: str) -> Final:
        return cls(loss_on, description.get("labels") in CHECKED)


@dataclass(frozen=True)
class FilterMemory(NetworkMemory):
    """The memory of the filter.

    Attributes:
        times_taken_back: [B, G] long, how often each position was taken back.
    """

    times_taken_back: Tensor


class FilterPolicy(Acceptance, OnHub):
    """The filter as a policy, which is kept in a folder or on the hub.

    Args:
        predictor: A predictor of the kind `filter`. It holds the network, the threshold on the network's probability,
            and the contract of its training.
        take_back: The leave-one-out probability below which a committed token is taken back, 0 to 1; 0 takes none back,
            and needs no shadow columns.
        per_position: How often a position may be taken back, at least 0.
        one_more: The probability above which every step also commits the most probable position of those that are not
            above the threshold, 0 to 1; 1 commits none.
        confidence_threshold: The model's own confidence above which a position is committed whatever the filter says,
            0 to 1; 1 leaves it to the filter.

    Raises:
        ValueError: A number is out of range.
    """

    built_by = "learn2pd.predictors.filter:load_policy"

    def __init__(
        self,
        predictor: Predictor,
        take_back: float = 0.0,
        per_position: int = PER_POSITION,
        one_more: float = 1.0,
        confidence_threshold: float = 1.0,
    ) -> None:
        super().__init__(predictor)
        self.take_back = check_probability("take_back", take_back)
        self.per_position = check_at_least(0, "per_position", per_position)
        self.one_more = check_probability("one_more", one_more)
        self.confidence_threshold = check_probability("confidence_threshold", confidence_threshold)
        if self.take_back:
            self.needs |= {LEAVE_ONE_OUT}
            self.revisions = REVISIONS

    @classmethod
    @checked(but=("pretrained_model_name_or_path", "adapter"))
    def from_pretrained(  # type: ignore[override]  # how to download is said by huggingface_hub's own variables
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        adapter: str | Path | None = None,
        threshold: float | None = None,
        aggressiveness: float | None = None,
        take_back: float = 0.0,
        per_position: int = PER_POSITION,
        one_more: float = 1.0,
        confidence_threshold: float = 1.0,
    ) -> FilterPolicy:
        """Load a trained filter from a folder or from the hub.

        Args:
            pretrained_model_name_or_path: A folder that `save_pretrained` or a run wrote, or the name of a repository
                of the hub, which is downloaded once.
            revision: The revision of the hub repository: a branch, tag or commit.
            adapter: As for `load_policy`.
            threshold: As for `load_policy`.
            aggressiveness: As for `load_policy`.
            take_back: As for `load_policy`.
            per_position: As for `load_policy`.
            one_more: As for `load_policy`.
            confidence_threshold: As for `load_policy`.

        Returns:
            The policy.

        Raises:
            UserError: As for `load_policy`.
        """
        predictor = load_predictor(pretrained_model_name_or_path, "filter", revision=revision)
        if adapter is not None:
            predictor = with_adapter(predictor, adapter)
        predictor = predictor.with_threshold(threshold, aggressiveness)
        with user_errors():
            return cls(predictor, take_back, per_position, one_more, confidence_threshold)

    @property
    def setting(self) -> Setting | None:
        """What the calibration measured at the threshold; None where the policy commits otherwise than it did there."""
        return None if self.has_options else self.predictor.setting

    @property
    def has_options(self) -> bool:
        """Whether the policy does more than commit above its threshold."""
        return bool(self.take_back) or min(self.one_more, self.confidence_threshold) < 1

    def check_no_options(self, what: str) -> None:
        """Refuse options where nothing but the threshold can be kept.

        Args:
            what: What keeps nothing else, such as `an exported policy`.

        Raises:
            UserError: The policy takes back, commits one more, or goes by the model's confidence.
        """
        if self.has_options:
            numbers = ("take_back", "one_more", "confidence_threshold")
            named = ", ".join(f"{name}={getattr(self, name)}" for name in numbers)
            raise UserError(
                f"policy has {named}: {what} commits by its threshold alone; load the filter without these options, "
                "and give them where the policy is loaded again"
            )

    def _save_pretrained(self, save_directory: Path) -> None:
        self.check_no_options("a saved filter")
        super()._save_pretrained(save_directory)

    def at(self, aggressiveness: float) -> Self:
        """Return this policy with the threshold at a place of its calibrated curve.

        Args:
            aggressiveness: The place, as for `Predictor.at`.

        Returns:
            A policy with the same networks and options.

        Raises:
            UserError: As for `Predictor.at`.
        """
        moved = copy.copy(self)
        moved.predictor = self.predictor.at(aggressiveness)
        return moved

    def describe(self) -> dict[str, Any]:
        described = saved_folder(self.predictor) | {"threshold": self.threshold}
        if self.take_back:
            described |= {"take_back": self.take_back, "per_position": self.per_position}
        if self.one_more < 1:
            described |= {"one_more": self.one_more}
        if self.confidence_threshold < 1:
            described |= {"confidence_threshold": self.confidence_threshold}
        return described

    def start(self, state: DecodeState, spec: ModelSpec) -> FilterMemory:
        return FilterMemory(super().start(state, spec).network, torch.zeros_like(state.committed_at))

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Any) -> Commit:
        if not self.has_options:
            return super().select(prediction, eligible, state, memory)
        final = self.probability(prediction, state, memory)
        new = memory.times_taken_back == 0
        surer = 1 - final < (1 - self.threshold) / SURER**memory.times_taken_back
        confident = (prediction.confidence > self.confidence_threshold) & new
        accepted = (self.accepts(final, state) & (surer | new) | confident) & eligible
        left = eligible & ~accepted & new
        accepted = accepted | most_confident(final, left & (final > self.one_more))
        surest = most_confident(prediction.confidence, eligible)
        if not memory.network.adds_surest:
            surest = surest & ~accepted.any(1, keepdim=True)
        commit = Commit(accepted | surest, forced=surest & ~accepted)
        return self._with_doubts(commit, prediction, state, memory) if self.take_back else commit

    def _with_doubts(self, commit: Commit, prediction: Prediction, state: DecodeState, memory: FilterMemory) -> Commit:
        """Take back what does not hold, in addition to the commits of a step."""
        holds = self._holds(prediction, state, memory)
        doubtful = revisable(state, self.revisions) & (holds < self.take_back)
        doubtful = doubtful & (memory.times_taken_back < self.per_position)
        revoked = most_confident(-holds, doubtful, commit.mask.sum(1) - 1)
        counted = replace(memory, times_taken_back=memory.times_taken_back + revoked)
        return replace(commit, revoke=revoked, memory=counted)

    def _holds(self, prediction: Prediction, state: DecodeState, memory: Any) -> Tensor:
        """Return how probable it is that each committed token of the window still holds, [B, G] float32."""
        return prediction.extra(LEAVE_ONE_OUT)


@checked()
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
    take_back: float = 0.0,
    per_position: int = PER_POSITION,
    one_more: float = 1.0,
    confidence_threshold: float = 1.0,
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
        take_back: The leave-one-out probability below which a committed token is taken back, 0 to 1; 0 takes none back.
        per_position: How often a position may be taken back, at least 0.
        one_more: The probability above which every step also commits the most probable position of those that are not
            above the threshold, 0 to 1; 1 commits none.
        confidence_threshold: The model's own confidence above which a position is committed whatever the filter says,
            0 to 1; 1 leaves it to the filter.

    Returns:
        The policy.

    Raises:
        UserError: The folder is missing, damaged or of another schema; the hub cannot be reached; the adapter belongs
            to another base; both a threshold and an aggressiveness are given; or one of the numbers is out of range.
    """
    return FilterPolicy.from_pretrained(
        folder,
        revision=revision,
        adapter=adapter,
        threshold=threshold,
        aggressiveness=aggressiveness,
        take_back=take_back,
        per_position=per_position,
        one_more=one_more,
        confidence_threshold=confidence_threshold,
    )
