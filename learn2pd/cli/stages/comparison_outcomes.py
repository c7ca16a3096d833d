"""The outcomes of a comparison: every method decodes the test prompts of every task under every stop rule."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from learn2pd import __version__
from learn2pd.autoregressive.methods import AutoregressiveMethod
from learn2pd.cli.config import MethodConfig, RunConfig, as_dict
from learn2pd.cli.stages.comparison_methods import built_method, expand_sweeps, policy_folder
from learn2pd.cli.stages.components import given_of, method_of, sampling_of
from learn2pd.data.prompts import Prompt, prompts_digest
from learn2pd.data.tasks import Checker
from learn2pd.evaluation.autoregressive import KIND, run_autoregressive
from learn2pd.evaluation.informed import known_answers
from learn2pd.evaluation.likelihood import likelihood
from learn2pd.evaluation.outcomes import (
    Labels,
    Likelihood,
    Outcome,
    cached,
    cached_likelihood,
    group_by_task,
    merge,
    run_method,
)
from learn2pd.method import Method
from learn2pd.models.infilling import given_tokens
from learn2pd.models.loading import Model
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.progress import progress_bar

# the policies with which the others are compared, by their marks
MARKED = {"oracle": OraclePolicy, "reference": FixedPolicy, "baseline": ThresholdPolicy}


@dataclass(frozen=True)
class _Run:
    """A method under one stop rule, which decodes the prompts of every task."""

    stop: str
    family: str
    described: MethodConfig
    method: Method | AutoregressiveMethod  # a policy that knows the answers does not know them yet

    def labels(self, task: str) -> Labels:
        """Return the labels of the outcome on one task."""
        method = self.method
        if isinstance(method, AutoregressiveMethod):
            own = {
                "scheduler": "none",
                "policy": method.name,
                "cache": "causal",
                "mark": "" if method.draft else "target",
                "kind": KIND,
                "model": method.target.name,
            }
        else:
            own = {
                "scheduler": method.scheduler.name,
                "policy": method.policy.name,
                "cache": method.cache.name,
                "mark": next((mark for mark, policy in MARKED.items() if isinstance(method.policy, policy)), ""),
                "kind": "oracle" if method.policy.knows_answer else "learned" if method.learned else "training-free",
            }
        return Labels(
            method=self.described.name,
            family=self.family,
            setting=self.described.name.removeprefix(self.family).strip(),
            group=self.described.group,
            stop=self.stop,
            task=task,
            **own,
        )


def compare_outcomes(
    config: RunConfig, output: Path, model: Model, prompts: Sequence[Prompt], checkers: Mapping[str, Checker]
) -> list[Outcome]:
    """Decode the prompts with all methods under all stop rules, and judge the answers.

    Outcomes that an earlier run of the stage kept in the output_dir are not made again.

    Args:
        config: the configuration.
        output: the output_dir of the run.
        model: the model.
        prompts: the prompts.
        checkers: the checkers by the names of their tasks.

    Returns:
        For each stop rule and method, an outcome for each task and one of the task `all`.

    Raises:
        UserError: a method cannot be built.
    """
    folder = policy_folder(config, output)
    # All methods are built before the first one runs, so that a mistake in the last line does not cost an hour.
    runs = [
        _Run(stop, family, described, built_method(config, model, folder, described, stop))
        for stop in config.compare.stops
        for family, described in expand_sweeps(config.compare.methods)
    ]
    outcomes: list[Outcome] = []
    references: dict[tuple[str, str], torch.Tensor] = {}  # answers with one token a step, by stop rule and task
    with progress_bar(len(runs) * len(prompts), "compare", "prompt") as bar:
        decoder = _Decoder(config, output, model, checkers, bar.update)
        for run in runs:
            parts = []
            for task, group in group_by_task(prompts).items():
                before = bar.n
                outcome = decoder.outcome(run, task, group, references.get((run.stop, task)))
                bar.update(len(group) - (bar.n - before))
                parts.append(outcome)
                if outcome.labels.mark == "reference":
                    references.setdefault((run.stop, task), torch.from_numpy(outcome.tokens).long())
            outcomes += [*parts, merge(parts)]
    return outcomes


@dataclass(frozen=True)
class _Decoder:
    """Decodes the prompts of one task with one method, unless the output_dir holds the outcome."""

    config: RunConfig
    output: Path
    model: Model
    checkers: Mapping[str, Checker]
    progress: Callable[[int], object]

    def outcome(self, run: _Run, task: str, prompts: list[Prompt], reference: torch.Tensor | None) -> Outcome:
        """Return the outcome of a method on one task.

        Args:
            run: the method and its stop rule.
            task: the name of the task.
            prompts: the N prompts of the task.
            reference: [N, G] long, the answers with one token a step under the same stop rule; None where they are not
                decoded yet.
        """
        config = self.config
        method = run.method
        shared: dict[str, Any] = {
            "progress": self.progress,
            "gen_length": config.decode.gen_length,
            "batch_size": config.decode.rows_together,
            "sampling": sampling_of(config),
            "seed": config.seed,
        }
        labels = run.labels(task)
        if isinstance(method, AutoregressiveMethod):
            produce = functools.partial(run_autoregressive, prompts, self.checkers, labels, method, **shared)
        else:
            if reference is not None and method.policy.knows_answer:
                method = self._informed(run, method, prompts, reference)
            shared["given"] = given_of(config, len(prompts))
            produce = functools.partial(run_method, self.model, prompts, self.checkers, labels, method, **shared)
        key = outcome_key(self.model, prompts, config, method)
        outcome = cached(self._file(labels), key, labels, produce)
        if config.compare.likelihood and isinstance(method, Method):
            return dataclasses.replace(outcome, likelihood=self._likelihood(prompts, outcome, key))
        return outcome

    def _informed(self, run: _Run, method: Method, prompts: Sequence[Prompt], reference: torch.Tensor) -> Method:
        """Build a method whose policy knows the answers again, with what it must know about the prompts of one task."""
        config = self.config
        given = self._given(len(prompts))
        known = known_answers(self.model, prompts, self.checkers, method, reference, given, config.decode.rows_together)
        folder = policy_folder(config, self.output)
        return method_of(config, self.model, folder, run.described, run.stop, known)

    def _likelihood(self, prompts: Sequence[Prompt], outcome: Outcome, key: str) -> Likelihood:
        """Compute the likelihood of the answers of an outcome, unless the output_dir holds it."""

        def produce() -> Likelihood:
            with progress_bar(len(prompts), f"likelihood of {outcome.labels.method}", "prompt") as bar:
                return likelihood(
                    self.model,
                    [self.model.encode(prompt.content) for prompt in prompts],
                    outcome,
                    self._given(len(prompts)),
                    self.config.decode.rows_together,
                    bar.update,
                )

        return cached_likelihood(self._file(outcome.labels, "likelihood"), key, produce)

    def _given(self, prompts: int) -> torch.Tensor | None:
        """Return the tokens that stand from the start, [prompts, G] long; None where there are none."""
        given = given_of(self.config, prompts)
        return None if given is None else given_tokens(self.model, given, self.config.decode.gen_length)

    def _file(self, labels: Labels, *more: str) -> Path:
        """Return the file of an outcome. Its name is readable, and different for different labels."""
        names = (labels.method, labels.stop, labels.task, *more)
        readable = "-".join("".join(c if c.isalnum() else "_" for c in name) for name in names)
        digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]
        return self.output / "compare" / f"{readable[:120]}-{digest}.safetensors"


def outcome_key(model: Model, prompts: list[Prompt], config: RunConfig, method: Method | AutoregressiveMethod) -> str:
    """Return a digest of everything that an outcome depends on.

    The package's version is part of the digest; the names of a method are not.

    Args:
        model: the model that decodes.
        prompts: the prompts of the task.
        config: the configuration.
        method: the method, with its stop rule.
    """
    # the fingerprint of the method covers its stop rule, and with it these keys
    of_stop_rule = ("stop_floor", "stop_strings")
    decoding = {key: value for key, value in as_dict(config)["decode"].items() if key not in of_stop_rule}
    depends = [
        __version__,
        model.spec.fingerprint,
        config.model.dtype,
        prompts_digest(prompts),
        decoding,
        config.seed,
        method.fingerprint,
        config.data.run_generated_code,
        [[prompt.task, prompt.facts] for prompt in prompts],
    ]
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()
