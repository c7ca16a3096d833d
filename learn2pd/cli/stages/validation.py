"""What a filter does when it decodes recorded prompts by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from learn2pd.cli.config import RunConfig
from learn2pd.data.prompts import Prompt
from learn2pd.data.tasks import build_checkers
from learn2pd.decoding import decode
from learn2pd.evaluation.compare import agreement
from learn2pd.models.loading import Model
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.saving import Predictor
from learn2pd.recording.reading import Recording
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.stops.eot import EotStop
from learn2pd.training.calibration import Measured


def measure_on(config: RunConfig, model: Model, prompts: Sequence[Prompt], recording: Recording) -> Callable[[Predictor], Measured]:
    """How a predictor's decodes of the prompts compare with their recorded reference answers."""
    known = recording.references_of([prompt.id for prompt in prompts]).with_format("numpy")
    reference, lengths = known["tokens"][:], known["length"][:]
    checkers = build_checkers(config.data.run_generated_code)

    def verdicts(texts: Sequence[str]) -> list[bool | None]:
        return [checkers[prompt.task].check(prompt.facts, text).correct if prompt.task else None for prompt, text in zip(prompts, texts, strict=True)]

    answers = [model.tokenizer.decode(row[:length], skip_special_tokens=True) for row, length in zip(reference, lengths.tolist(), strict=True)]
    before = verdicts(answers)

    def measure(predictor: Predictor) -> Measured:
        result = decode(
            model, [prompt.text for prompt in prompts], policy=FilterPolicy(predictor), scheduler=BlocksScheduler(config.decode.block_length),
            stop=EotStop(config.decode.stop_floor), gen_length=config.decode.gen_length, batch_size=config.decode.batch_size,
        )  # fmt: skip
        drop = None
        if None not in before:
            drop = np.array(before, float) - np.array(verdicts(result.texts), float)
        return Measured(agreement(result.tokens.numpy(), reference, lengths), drop, result.lengths.numpy(), result.forwards.numpy())

    return measure
