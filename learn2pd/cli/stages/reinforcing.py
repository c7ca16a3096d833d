"""The stage `reinforce`: a trained filter learns from the answers that it decodes.

Outputs: output_dir/reinforce and output_dir/reinforced.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from learn2pd.cli.config import RunConfig
from learn2pd.cli.stages.components import checkers_of, given_of, model_of, usable_prompts
from learn2pd.cli.stages.run_folder import read_metrics
from learn2pd.data.prompts import Prompt, encoded
from learn2pd.decoding import decode
from learn2pd.errors import UserError
from learn2pd.loop.observing import Observer
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.predictors.apply import check_contract
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.loading import load_predictor
from learn2pd.predictors.saving import Predictor
from learn2pd.schedulers.blocks import blocks_for
from learn2pd.stops.eot import EotStop
from learn2pd.training.loggers import build_loggers, check_loggers
from learn2pd.training.reinforce import Decoded, Reinforcement, ReinforceRecipe, Rollouts, reinforce

log = logging.getLogger(__name__)
SPLITS = ("train", "validation")  # the prompts that are learnt from, and those that decide which iteration is kept


def stage_reinforce(config: RunConfig, output: Path) -> dict[str, Any] | None:
    """Reinforce a trained filter on the training prompts, and export it to output_dir/reinforced.

    The exported filter keeps its threshold. It has no calibrated curve, since its probabilities have moved.

    Args:
        config: the configuration.
        output: the output_dir of the run.

    Returns:
        The figures before and after; None where the filter is already reinforced.

    Raises:
        UserError: no filter was trained, or it does not fit the model.
    """
    if "reinforce" in read_metrics(output):
        log.info("already reinforced: %s", output / "reinforced")
        return None
    model = model_of(config)
    start = _start(config, output)
    prompts = usable_prompts(config, model)
    decoders = {split: _Decoder(config, model, [p for p in prompts if p.split == split]) for split in SPLITS}
    method = decoders["train"].method(FilterPolicy(start))
    check_contract(start, model.spec, method)
    options = config.reinforce
    recipe = ReinforceRecipe(
        seed=config.seed,
        **{name: getattr(options, name) for name in ReinforceRecipe.__dataclass_fields__ if name != "seed"},
    )
    network = copy.deepcopy(start.network)
    predictor = replace(start, network=network, threshold=options.threshold or start.threshold, curve=(), source="")
    rollouts = Rollouts(
        Reinforcement(network, predictor.threshold, recipe),
        predictor,
        decoders["train"].some,
        decoders["validation"].all,
        len(decoders["train"].prompts),
        config.decode.gen_length,
    )
    started = time.perf_counter()
    folder = output / "reinforce"
    loggers = build_loggers(config.train.loggers, folder, f"{config.name} reinforce")
    figures = reinforce(rollouts, folder, loggers)
    figures |= {"threshold": predictor.threshold, "reinforce_seconds": round(time.perf_counter() - started, 2)}
    trained_on = {
        "start": start.fingerprint,
        "training prompts": len(decoders["train"].prompts),
        "answers decoded": recipe.iterations * recipe.prompts * recipe.answers,
        "alpha": recipe.alpha,
        "seed": recipe.seed,
    }
    exported = replace(predictor, metrics={"reinforced": figures, "trained_on": trained_on})
    FilterPolicy(exported).save_pretrained(output / "reinforced")
    return figures


def check_reinforcing(config: RunConfig, stages: Sequence[str], prompts: Sequence[Prompt]) -> None:
    """Check, before anything runs, that there is a filter to begin with and that every answer can be judged.

    Args:
        config: the configuration.
        stages: the stages that are going to run.
        prompts: the usable prompts of all splits.

    Raises:
        UserError: a logger cannot be built, a prompt has no checker, a split has none, or there is no filter and none
            is going to be trained.
    """
    check_loggers(config.train.loggers)
    output = Path(config.output_dir)
    if config.policy is not None or "calibrate" not in stages:
        _start(config, output)
    for split in SPLITS:
        of_split = [prompt for prompt in prompts if prompt.split == split]
        if not of_split:
            raise UserError(
                f"data.{split}_prompts: the stage reinforce needs prompts of this split, and there are none"
            )
        unjudged = [prompt for prompt in of_split if not prompt.task]
        if unjudged:
            raise UserError(
                f"{len(unjudged)} of {len(of_split)} {split} prompts have no checker, such as {unjudged[0].place}: the "
                "stage reinforce learns from right and wrong answers; give data.task and data.answer_field"
            )
    if config.reinforce.prompts > sum(prompt.split == "train" for prompt in prompts):
        raise UserError(
            f"reinforce.prompts={config.reinforce.prompts}: there are only "
            f"{sum(prompt.split == 'train' for prompt in prompts)} training prompts"
        )


def _start(config: RunConfig, output: Path) -> Predictor:
    folder = config.policy or output / "policy"
    if config.policy is None and not (output / "policy").exists():
        raise UserError(
            "the stage reinforce needs a trained filter: give policy=FOLDER, or run the stages record, train and "
            "calibrate before it"
        )
    start = load_predictor(folder, "filter")
    if start.network.hidden_states or start.network.overlap:
        read = "hidden states of the model" if start.network.hidden_states else "the most probable tokens"
        raise UserError(
            f"policy={str(folder)!r} reads {read}, which the stage reinforce does not keep: "
            "begin with a filter that reads none"
        )
    return start


class _Decoder:
    """Decodes and judges the prompts of one split.

    Args:
        config: the configuration.
        model: the model.
        prompts: the prompts.
    """

    def __init__(self, config: RunConfig, model: Model, prompts: Sequence[Prompt]) -> None:
        self.config = config
        self.model = model
        self.prompts = prompts
        self.ids = encoded(model, prompts)
        self.checkers = checkers_of(config, prompts)

    def method(self, policy: FilterPolicy) -> Method:
        blocks = blocks_for(self.model.spec, self.config.decode.block_length)
        return Method(policy, blocks, stop=EotStop(self.config.decode.stop_floor))

    def all(self, policy: FilterPolicy) -> Decoded:
        return self.some(range(len(self.prompts)), policy, Observer(), self.config.seed)

    def some(self, numbers: Sequence[int], policy: FilterPolicy, observer: Observer, seed: int) -> Decoded:
        result = decode(
            self.model,
            [self.ids[number] for number in numbers],
            self.method(policy),
            gen_length=self.config.decode.gen_length,
            batch_size=self.config.decode.rows_together,
            given=given_of(self.config, len(numbers)),
            observer=observer,
            seed=seed,
        )
        asked = [self.prompts[number] for number in numbers]
        verdicts = [
            self.checkers[str(prompt.task)].check(prompt.facts, text).correct
            for prompt, text in zip(asked, result.texts, strict=True)
        ]
        return result, np.array(verdicts, float)
