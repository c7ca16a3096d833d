"""Measurement of a filter that decodes recorded prompts by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from learn2pd.caches.causal_block import exact_cache_for
from learn2pd.cli.config import RunConfig
from learn2pd.cli.stages.components import checkers_of, given_of
from learn2pd.data.prompts import Prompt, encoded
from learn2pd.decoding import decode
from learn2pd.evaluation.compare import agreement
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.progress import progress_bar
from learn2pd.recording.reading import Recording
from learn2pd.schedulers.blocks import blocks_for
from learn2pd.stops.eot import EotStop
from learn2pd.training.calibration import DecodedValidation


def measure_on(
    config: RunConfig, model: Model, prompts: Sequence[Prompt], recording: Recording
) -> Callable[[FilterPolicy], DecodedValidation]:
    """Return a function that decodes prompts with a policy and compares the answers with the recorded references.

    Args:
        config: the configuration.
        model: the model.
        prompts: the prompts, which must have been recorded.
        recording: the recording that holds their references.
    """
    known = recording.references_of([prompt.id for prompt in prompts]).with_format("numpy")
    reference = known["tokens"][:]
    lengths = known["length"][:]
    checkers = checkers_of(config, prompts)

    def verdicts(texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Return the verdicts [J] of the answers that a checker judges: 1 is right, 0 is wrong."""
        judged = [(prompt, text) for prompt, text in zip(prompts, texts, strict=True) if prompt.task]
        return np.array(
            [checkers[str(prompt.task)].check(prompt.facts, text).correct for prompt, text in judged], float
        )

    answers = [model.text(row[:length]) for row, length in zip(reference, lengths.tolist(), strict=True)]
    before = verdicts(answers)

    def measure(policy: FilterPolicy) -> DecodedValidation:
        with progress_bar(len(prompts), f"decode at {policy.threshold:g}", "prompt") as bar:
            result = decode(
                model,
                encoded(model, prompts),
                Method(
                    policy,
                    blocks_for(model.spec, config.decode.block_length),
                    exact_cache_for(model.spec),
                    EotStop(config.decode.stop_floor),
                ),
                gen_length=config.decode.gen_length,
                batch_size=config.decode.rows_together,
                given=given_of(config, len(prompts)),
                progress=bar.update,
            )
        drop = before - verdicts(result.texts) if len(before) else None
        return DecodedValidation(
            agreement(result.tokens.numpy(), reference, lengths), drop, result.lengths.numpy(), result.forwards.numpy()
        )

    return measure
