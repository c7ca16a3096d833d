"""Reinforcement of a trained filter: it decodes with drawn commits, and commits that earned more become likelier.

The filter starts as the labels have trained it. In every iteration it decodes several answers to each of some prompts,
and commits every eligible position with the probability

    sigmoid((logit - log-odds of the threshold) / spread),

which is above 1/2 exactly where the filter with this threshold would commit. An answer is rewarded with

    correct * ((G - forwards + 1) / G) ** alpha

where G is the length of the canvas, so that a wrong answer earns nothing and a fast one more than a slow one. The
advantage of an answer is its reward less the mean of its prompt's answers; a prompt whose answers all earn the same
teaches nothing and is skipped. The loss is PPO's, with the ratio of the probabilities of all commits of a step clipped
to 1 +- clip, and without a penalty for leaving the starting point. Probabilities are computed in float32, from the
commits and the features that were recorded in the rollout.

The reward is that of Learning Unmasking Policies (Apple, arXiv 2512.09106), whose training starts from nothing. The
warm start, the threshold inside the probability and the spread are ours, so that the result is a filter like any other.

In the shapes, N is the number of recorded states, G of canvas positions, W of positions of a window, C of channels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from learn2pd.loop.observing import Observer
from learn2pd.loop.proposals import row_generators
from learn2pd.predictors.features import OBSERVED, cut, observe, stack
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.networks import PredictorNetwork
from learn2pd.predictors.saving import Predictor
from learn2pd.tensors import window_view
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO
from learn2pd.training.lightning_setup import BEST, FitProgress, fit_by_epochs
from learn2pd.training.loggers import close_loggers
from learn2pd.types import DecodeResult, DecodeState, Step, Window

log = logging.getLogger(__name__)
DRAWS = 1  # the stream of random numbers of the commits, apart from that of the tokens
LIMIT = 1e-7  # probabilities nearer to 0 or 1 have no log-odds in float32


@dataclass(frozen=True)
class ReinforceRecipe:
    """The settings of a reinforcement.

    Attributes:
        iterations: How often the filter decodes and learns.
        prompts: The prompts of an iteration.
        answers: The answers that are decoded for each prompt of an iteration, at least two.
        alpha: The weight of speed in the reward; 0 rewards right answers alone.
        spread: The divisor of the log-odds above the threshold. A small spread draws commits like the threshold's.
        clip: How far the probability of a step's commits may move in an iteration before it no longer counts.
        passes: How often an iteration's states are learnt from.
        batch_rows: The states of an optimizer step.
        learning_rate: The learning rate of AdamW.
        validate_every: The number of iterations between validations.
        seed: The seed of the prompts' order and of the draws.
    """

    iterations: int = 40
    prompts: int = 16
    answers: int = 8
    alpha: float = 1.0
    spread: float = 0.5
    clip: float = 0.2
    passes: int = 1
    batch_rows: int = 512
    learning_rate: float = 3e-4
    validate_every: int = 5
    seed: int = 0


class SampledFilter(FilterPolicy):
    """The filter with commits that are drawn.

    Args:
        predictor: The predictor, whose threshold has the probability 1/2.
        spread: As in `ReinforceRecipe`.
    """

    name = "sampled_filter"

    def __init__(self, predictor: Predictor, spread: float) -> None:
        super().__init__(predictor)
        self.spread = spread

    def accepts(self, final: Tensor, state: DecodeState) -> Tensor:
        """Draw, for every position [B, G], whether it is accepted. Each row has draws of its own."""
        chance = commit_log_odds(final.logit(LIMIT), self.threshold, self.spread).sigmoid()
        draws = [torch.rand(final.shape[1], generator=generator) for generator in row_generators(state, DRAWS)]
        return (torch.stack(draws).to(final.device) < chance) & (final > 0)


def commit_log_odds(logits: Tensor, threshold: float, spread: float) -> Tensor:
    """Return the log-odds with which positions are committed in a rollout.

    Args:
        logits: The logits of the filter's network, of any shape.
        threshold: The threshold on the network's probability.
        spread: As in `ReinforceRecipe`.
    """
    even = float(torch.tensor(threshold, dtype=torch.float64).logit(LIMIT))
    return (logits.float() - even) / spread


class Actions(NamedTuple):
    """Recorded steps as the network sees them, with what was drawn in them.

    Attributes:
        inputs: [N, W, C] float32, the channels.
        valid: [N, W] bool, the positions inside the window.
        proposal: [N, W] long, as in `View`.
        eligible: [N, W] bool, the positions for which a commit was drawn.
        accepted: [N, W] bool, the positions that were drawn to be committed.
        advantage: [N] float32, of the answer to which the step belongs.
        before: [N] float32, the log-probability of the step's draws when they were made.
    """

    inputs: Tensor
    valid: Tensor
    proposal: Tensor
    eligible: Tensor
    accepted: Tensor
    advantage: Tensor
    before: Tensor


class ActionRecorder(Observer):
    """Keeps the features and the drawn commits of every open row in every step.

    Args:
        policy: The policy that draws.
    """

    def __init__(self, policy: SampledFilter) -> None:
        self.needs = policy.needs
        self.scores_committed = policy.scores_committed
        self.network = policy.predictor.network
        self.contract = policy.predictor.contract
        self.steps: list[dict[str, Tensor]] = []

    def observe(self, step: Step) -> None:
        """Keep one step."""
        state = step.state
        prediction = step.prediction
        commit = step.commit
        columns = observe(state, prediction, self.contract.eot_ids, self.contract.delimiter_ids)
        eligible = state.window.mask(state.gen_length) & state.masked & prediction.valid
        forced = torch.zeros_like(commit.mask) if commit.forced is None else commit.forced
        kept = columns | {
            "eligible": eligible,
            "accepted": commit.mask & eligible & ~forced,
            "start": state.window.start,
            "stop": state.window.stop,
            "index": state.index.to(eligible.device),
        }
        self.steps.append({name: values[state.open].cpu() for name, values in kept.items()})

    def actions(self, advantage: Tensor) -> Actions:
        """Return the steps of the answers that have an advantage, and release all of them.

        Args:
            advantage: [J] float32, of every answer of the decode; NaN leaves the answer's steps out.

        Returns:
            The steps; `before` is zero.
        """
        columns = {name: torch.cat([step.pop(name) for step in self.steps]) for name in list(self.steps[0])}
        earned = advantage[columns["index"]]
        columns = {name: values[~earned.isnan()] for name, values in columns.items()}
        window = Window(columns["start"], columns["stop"])
        lengths = window.stop - window.start
        width = self.network.width or int(lengths.max())
        view = cut({name: columns[name] for name in OBSERVED if name in columns}, window, width, self.scores_committed)
        return Actions(
            stack(view, self.network.channels),
            view.valid,
            view.proposal,
            window_view(columns["eligible"], window, width) & view.valid,
            window_view(columns["accepted"], window, width) & view.valid,
            earned[~earned.isnan()],
            torch.zeros(len(lengths)),
        )


def rewards(correct: NDArray[np.float64], forwards: NDArray[np.int64], gen_length: int, alpha: float) -> Tensor:
    """Return the rewards of answers, [J] float32.

    Args:
        correct: [J], 1 for a right answer and 0 for a wrong one.
        forwards: [J], the forwards that each answer took.
        gen_length: G, the length of the canvas in tokens.
        alpha: As in `ReinforceRecipe`.
    """
    fast = np.clip((gen_length - forwards + 1) / gen_length, 0, 1)
    return torch.tensor(correct * fast**alpha, dtype=torch.float32)


def advantages(earned: Tensor, answers: int) -> Tensor:
    """Return each reward less the mean of its group, and NaN in groups whose rewards are all the same.

    Args:
        earned: [J] float32, the rewards; `answers` neighbours form a group.
        answers: The size of a group.
    """
    groups = earned.view(-1, answers)
    differs = groups.amax(1, keepdim=True) > groups.amin(1, keepdim=True)
    return torch.where(differs, groups - groups.mean(1, keepdim=True), torch.nan).flatten()


class Reinforcement(lightning.LightningModule):
    """The reinforcement of a filter, for Lightning.

    Args:
        network: The network, which is trained in place.
        threshold: The threshold of the filter.
        recipe: The settings.
    """

    def __init__(self, network: PredictorNetwork, threshold: float, recipe: ReinforceRecipe) -> None:
        super().__init__()
        self.network = network
        self.threshold = threshold
        self.recipe = recipe

    def log_probability(self, actions: Actions) -> Tensor:
        """Compute the log-probability of every step's draws under the present network, [N] float32."""
        logits = self.network(actions.inputs, actions.valid, actions.proposal)
        log_odds = commit_log_odds(logits, self.threshold, self.recipe.spread)
        drawn = -functional.binary_cross_entropy_with_logits(log_odds, actions.accepted.float(), reduction="none")
        return (drawn * actions.eligible).sum(1)

    def training_step(self, actions: Actions, _: int) -> Tensor:
        """Return PPO's clipped loss of a batch of steps."""
        ratio = (self.log_probability(actions) - actions.before).exp()
        clipped = ratio.clamp(1 - self.recipe.clip, 1 + self.recipe.clip)
        loss = -torch.minimum(ratio * actions.advantage, clipped * actions.advantage).mean()
        size = len(ratio)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=size)
        self.log("clipped", (ratio != clipped).float().mean(), on_step=False, on_epoch=True, batch_size=size)
        return loss

    def on_train_epoch_start(self) -> None:
        """Log what the iteration's rollouts earned."""
        self.log_dict({f"rollout_{name}": value for name, value in self._rollouts().figures.items()}, prog_bar=True)

    def validation_step(self, _: Any, __: int) -> None:
        """Decode the validation prompts without draws and log what they earn."""
        measured = self._rollouts().measure()
        self.log_dict({f"val_{name}": value for name, value in measured.items()}, prog_bar=True, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW, without a decay of the weights that the labels have trained."""
        return torch.optim.AdamW(self.network.parameters(), lr=self.recipe.learning_rate, weight_decay=0.0)

    def _rollouts(self) -> Rollouts:
        rollouts: Rollouts = self.trainer.datamodule
        return rollouts


Decoded = tuple[DecodeResult, "NDArray[np.float64]"]  # the answers, and for each 1 if it is right and 0 otherwise


class Rollouts(lightning.LightningDataModule):
    """The rollouts of every iteration, for Lightning.

    What an iteration draws depends on its number, the seed and the weights alone, so that a training that was stopped
    goes on as if it had not been.

    Args:
        module: The training, whose network decodes.
        predictor: The filter with that network.
        decode_train: Decodes training prompts, given by their numbers, with a policy, an observer and a seed.
        decode_validation: Decodes all validation prompts with a policy.
        train_prompts: The number of training prompts.
        gen_length: The length of the canvas in tokens.
    """

    def __init__(
        self,
        module: Reinforcement,
        predictor: Predictor,
        decode_train: Callable[[Sequence[int], FilterPolicy, Observer, int], Decoded],
        decode_validation: Callable[[FilterPolicy], Decoded],
        train_prompts: int,
        gen_length: int,
    ) -> None:
        super().__init__()
        self.module = module
        self.predictor = predictor
        self.decode_train = decode_train
        self.decode_validation = decode_validation
        self.train_prompts = train_prompts
        self.gen_length = gen_length
        self.figures: dict[str, float] = {}

    def train_dataloader(self) -> DataLoader[Any]:
        """Decode the prompts of the present iteration, and return the batches of its states in a random order."""
        recipe = self.module.recipe
        iteration = self.trainer.current_epoch if self.trainer else 0
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + iteration)
        numbers = torch.randperm(self.train_prompts, generator=generator)[: recipe.prompts].tolist()
        policy = SampledFilter(self.predictor, recipe.spread)
        recorder = ActionRecorder(policy)
        copies = [number for number in numbers for _ in range(recipe.answers)]
        result, correct = self.decode_train(copies, policy, recorder, recipe.seed * 1_000_003 + iteration)
        earned = rewards(correct, result.forwards.numpy(), self.gen_length, recipe.alpha)
        advantage = advantages(earned, recipe.answers)
        self.figures = _figures(result, correct, earned) | {"used": float((~advantage.isnan()).float().mean())}
        if advantage.isnan().all():  # Lightning ends a training whose epoch has no batch
            advantage = torch.zeros_like(advantage)
        actions = recorder.actions(advantage)
        with torch.no_grad():
            before = [self.module.log_probability(part) for part in _batches(actions, recipe.batch_rows)]
        actions = actions._replace(before=torch.cat(before))
        orders = [torch.randperm(len(actions.advantage), generator=generator) for _ in range(recipe.passes)]
        batches = [
            Actions(*(values[rows] for values in actions))
            for order in orders
            for rows in order.split(recipe.batch_rows)
        ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        """Return one item, for which the module decodes all validation prompts."""
        return DataLoader([0], batch_size=None)  # type: ignore[arg-type]

    def measure(self) -> dict[str, float]:
        """Decode the validation prompts without draws.

        Returns:
            The mean reward, the accuracy and the answer tokens per forward.
        """
        result, correct = self.decode_validation(FilterPolicy(self.predictor))
        earned = rewards(correct, result.forwards.numpy(), self.gen_length, self.module.recipe.alpha)
        return _figures(result, correct, earned)


def _batches(actions: Actions, rows: int) -> list[Actions]:
    starts = range(0, len(actions.advantage), rows)
    return [Actions(*(values[start : start + rows] for values in actions)) for start in starts]


def _figures(result: DecodeResult, correct: NDArray[np.float64], earned: Tensor) -> dict[str, float]:
    return {
        "reward": float(earned.mean()),
        "accuracy": float(correct.mean()),
        "tokens_per_forward": float(result.lengths.sum() / result.forwards.sum()),
    }


def reinforce(rollouts: Rollouts, folder: Path, loggers: Sequence[Logger] = ()) -> dict[str, Any]:
    """Reinforce a filter in place and give it the weights of the iteration with the best validation reward.

    Where no iteration earns more than the start, the network is left as it began. An interrupted reinforcement
    continues from its last checkpoint in `folder`.

    Args:
        rollouts: The rollouts, with the module that is trained.
        folder: The folder for checkpoints.
        loggers: Where the figures of every iteration go; they are closed at the end.

    Returns:
        The validation figures `before` and `after`, and `iteration`, the number of the best one; 0 is the start.
    """
    module = rollouts.module
    recipe = module.recipe
    started = {name: values.clone() for name, values in module.network.state_dict().items()}
    before = rollouts.measure()
    shows = ("val_reward", "val_accuracy", "val_tokens_per_forward")
    _, best = fit_by_epochs(
        module,
        rollouts,
        folder,
        epochs=recipe.iterations,
        monitor="val_reward",
        mode="max",
        callbacks=[FitProgress("reinforce", recipe.iterations, "epoch", shows)],
        loggers=loggers,
        validate_every=recipe.validate_every,
    )
    close_loggers(loggers)
    reward = float(best.best_model_score) if best.best_model_score is not None else -np.inf
    iteration = 0
    if reward > before["reward"]:
        checkpoint = SafetensorsCheckpointIO().load_checkpoint(folder / BEST)
        module.load_state_dict(checkpoint["state_dict"])
        iteration = int(checkpoint["epoch"]) + 1
    else:
        log.warning("no iteration earns more than the filter that it began with, which is exported as it was")
        module.network.load_state_dict(started)
    module.network.eval()
    return {"before": before, "after": rollouts.measure(), "iteration": iteration}
