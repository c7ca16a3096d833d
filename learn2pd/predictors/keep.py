"""The policy `keep`: the filter, with a trained network that says which committed tokens still hold.

The rule: the policy commits as the filter does (filter.py). A step also takes back the committed tokens of the window,
whose steps lie before this one, with

    probability of the network < take_back,

in the order and within the bounds in which the filter takes back by the leave-one-out probability. The network answers
at every committed position of the window whether its token still holds. Beside the channels of the filter it sees how
the token stands given all tokens but itself (its probability, its rank, and the entropy), the confidence with which it
was committed, how many steps ago, and how much of the window was committed since. It comes from shadow columns, as the
leave-one-out probability does.

The thresholds of the two networks are calibrated together, and lie with the network of this file. The rule is this
project's own; it comes from no paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub import ModelCard
from torch import Tensor

from learn2pd.arguments import checked
from learn2pd.errors import UserError, user_errors
from learn2pd.predictors.apply import check_contract, needs_of, on_device, probability
from learn2pd.predictors.features import COMMITTED, STANDING
from learn2pd.predictors.filter import PER_POSITION, FilterMemory, FilterPolicy
from learn2pd.predictors.hub import policy_card
from learn2pd.predictors.loading import load_predictor, policy_folder
from learn2pd.predictors.networks import DEFAULT_CHANNELS, PredictorNetwork, Transformer
from learn2pd.predictors.questions import Columns, positions
from learn2pd.predictors.saving import DESCRIPTION, Predictor, Setting, save_predictor
from learn2pd.types import DecodeState, ModelSpec, Prediction, Window

if TYPE_CHECKING:
    from learn2pd.method import Method

CHANNELS = (*DEFAULT_CHANNELS, *COMMITTED, "newer")
PART = "keep"  # the folder inside that of the filter


@dataclass(frozen=True)
class Holds:
    """The question of the policy `keep`, over the window that was open: does this committed token still hold?"""

    kind: ClassVar[str] = "keep"
    of_committed: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("start", "stop", "holds", "length", "token", *COMMITTED)

    def window(self, columns: Columns) -> Window:
        return Window(columns["start"].long(), columns["stop"].long())

    def label(self, columns: Columns) -> Tensor:
        return columns["holds"]

    def counted(self, columns: Columns) -> Tensor:
        return columns["age"] > 0

    def judged(self, columns: Columns) -> Tensor:
        return self.counted(columns) & (positions(columns) <= columns["length"][:, None])

    @classmethod
    def of(cls, description: Mapping[str, Any], loss_on: str) -> Holds:
        return cls()

    @staticmethod
    def network() -> PredictorNetwork:
        """Make an untrained network for this question."""
        return Transformer(CHANNELS)


@dataclass(frozen=True)
class KeepMemory(FilterMemory):
    """The memory of the policy.

    Attributes:
        keeper: The network of this file on the device of the run. It is the same for all rows.
    """

    keeper: PredictorNetwork


class KeepPolicy(FilterPolicy):
    """The filter with a trained network that takes back.

    Args:
        predictor: A predictor of the kind `filter`, with the threshold above which a position is committed.
        keeper: A predictor of the kind `keep`, with the threshold below which a committed token is taken back.
        per_position: How often a position may be taken back, at least 0.
        one_more: As for the filter.
        confidence_threshold: As for the filter.
        alone: The filter with the threshold and the curve of its own calibration, which is saved beside the network of
            this file; None takes `predictor`.

    Raises:
        ValueError: A number is out of range.
    """

    name = "keep"
    built_by = "learn2pd.predictors.keep:load_keep"

    def __init__(
        self,
        predictor: Predictor,
        keeper: Predictor,
        per_position: int = PER_POSITION,
        one_more: float = 1.0,
        confidence_threshold: float = 1.0,
        alone: Predictor | None = None,
    ) -> None:
        super().__init__(predictor, keeper.threshold, per_position, one_more, confidence_threshold)
        self.keeper = keeper
        self.alone = alone
        self.needs = needs_of(predictor) | needs_of(keeper) | frozenset(STANDING)

    @classmethod
    @checked(but=("pretrained_model_name_or_path",))
    def from_pretrained(  # type: ignore[override]  # a filter alone may have an adapter
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        threshold: float | None = None,
        take_back: float | None = None,
        aggressiveness: float | None = None,
        per_position: int = PER_POSITION,
        one_more: float | None = None,
        confidence_threshold: float | None = None,
    ) -> KeepPolicy:
        """Load a trained filter together with the predictor `keep` that lies beside it.

        Args:
            pretrained_model_name_or_path: A folder that `save_pretrained` or a run wrote, or the name of a repository
                of the hub, which is downloaded once.
            revision: The revision of the hub repository: a branch, tag or commit.
            threshold: As for `load_keep`.
            take_back: As for `load_keep`.
            aggressiveness: As for `load_keep`.
            per_position: As for `load_keep`.
            one_more: As for `load_keep`.
            confidence_threshold: As for `load_keep`.

        Returns:
            The policy.

        Raises:
            UserError: As for `load_keep`.
        """
        alone = load_predictor(pretrained_model_name_or_path, "filter", revision=revision)
        keeper = load_predictor(pretrained_model_name_or_path, "keep", PART, revision)
        predictor = alone
        if keeper.filter_threshold is not None:
            measured = (
                take_back in (None, keeper.threshold)
                and one_more in (None, keeper.one_more)
                and confidence_threshold in (None, keeper.confidence_threshold)
            )
            curve = keeper.curve if measured else tuple(Setting(setting.threshold) for setting in keeper.curve)
            predictor = replace(alone, threshold=keeper.filter_threshold, curve=curve, metrics=keeper.metrics)
        predictor = predictor.with_threshold(threshold, aggressiveness)
        one_more = keeper.one_more if one_more is None else one_more
        confidence_threshold = keeper.confidence_threshold if confidence_threshold is None else confidence_threshold
        with user_errors():
            keeper = keeper.with_threshold(take_back, None)
            return cls(predictor, keeper, per_position, one_more, confidence_threshold, alone)

    @property
    def setting(self) -> Setting | None:
        return self.predictor.setting

    def describe(self) -> dict[str, Any]:
        names = ("take_back", "per_position", "one_more", "confidence_threshold")
        return super().describe() | {name: getattr(self, name) for name in names}

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        check_contract(self.keeper, spec, method)

    def start(self, state: DecodeState, spec: ModelSpec) -> KeepMemory:
        return KeepMemory(**vars(super().start(state, spec)), keeper=on_device(self.keeper, state).network)

    def generate_model_card(self, *arguments: Any, **options: Any) -> ModelCard:
        return policy_card(self.alone or self.predictor, self._saved_keeper())

    def _holds(self, prediction: Prediction, state: DecodeState, memory: KeepMemory) -> Tensor:
        width = state.window.width
        contract = self.keeper.contract
        return probability(memory.keeper, contract, state, prediction, state.window, width, committed=True)

    def _saved_keeper(self) -> Predictor:
        """Return the predictor of this file with everything that was set together."""
        return replace(
            self.keeper,
            filter_threshold=self.threshold,
            one_more=self.one_more,
            confidence_threshold=self.confidence_threshold,
            curve=self.predictor.curve,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.per_position != PER_POSITION:
            raise UserError(
                f"policy has per_position={self.per_position}: a saved policy takes back at most {PER_POSITION} times "
                "a position; give the number where the policy is loaded again"
            )
        save_predictor(self.alone or self.predictor, save_directory)
        save_predictor(self._saved_keeper(), save_directory / PART)


def trained_policy(folder: str | Path, revision: str | None = None) -> str:
    """Return the name of the policy that a folder holds: `keep` where this predictor lies beside the filter.

    Args:
        folder: The folder of a trained filter, or the name of its repository of the hub.
        revision: The revision of the hub repository.

    Returns:
        `keep` or `filter`.

    Raises:
        UserError: The folder holds no policy, or the hub cannot be reached.
    """
    place = policy_folder(folder, revision=revision)
    return KeepPolicy.name if (place / PART / DESCRIPTION).is_file() else FilterPolicy.name


def load_keep(
    folder: str | Path,
    threshold: float | None = None,
    take_back: float | None = None,
    aggressiveness: float | None = None,
    per_position: int = PER_POSITION,
    one_more: float | None = None,
    confidence_threshold: float | None = None,
    revision: str | None = None,
) -> KeepPolicy:
    """Load a trained filter together with the predictor `keep` that lies beside it.

    Args:
        folder: The folder of the filter, with a folder `keep` in it, or the name of its repository of the hub.
        threshold: A threshold above which a position is committed; it replaces the calibrated one.
        take_back: A threshold below which a committed token is taken back; it replaces the calibrated one.
        aggressiveness: A place on the calibrated curve, 0 (strictest) to 1 (boldest), whose threshold replaces the
            calibrated one.
        per_position: How often a position may be taken back, at least 0.
        one_more: The probability above which every step also commits the most probable position of those that are not
            above the threshold, 0 to 1; 1 commits none. It replaces the calibrated one.
        confidence_threshold: The model's own confidence above which a position is committed whatever the filter says,
            0 to 1; 1 leaves it to the filter. It replaces the calibrated one.
        revision: The revision of the hub repository.

    Returns:
        The policy.

    Raises:
        UserError: The predictors are missing or damaged, both a threshold and an aggressiveness are given, or one of
            the numbers is out of range.
    """
    return KeepPolicy.from_pretrained(
        folder,
        revision=revision,
        threshold=threshold,
        take_back=take_back,
        aggressiveness=aggressiveness,
        per_position=per_position,
        one_more=one_more,
        confidence_threshold=confidence_threshold,
    )
