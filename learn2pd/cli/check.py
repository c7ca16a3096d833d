"""`learn2pd check`: what is promised about a model and a method, checked on this machine.

Every certificate is one line with its figure. It is `ok`, `wrong` (the exit code is then 1), or `left out` where there
is nothing to check, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from learn2pd.cli.config import RunConfig
from learn2pd.cli.methods import chosen_method
from learn2pd.cli.options import CheckOptions
from learn2pd.cli.stages.components import model_of, prompts_of, sampling_of
from learn2pd.data.prompts import encoded
from learn2pd.decoding import decode
from learn2pd.errors import UserError
from learn2pd.evaluation.compare import agreement
from learn2pd.method import Method
from learn2pd.models.loading import Model, load_model
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.registry import GENERATED_TASKS, build
from learn2pd.statistics.bounds import upper_bound
from learn2pd.types import GREEDY, DecodeResult

ALONE = 4  # prompts that are decoded once more, each alone
SEED_OF_FRESH = 1_000_003  # is added to the seed, so that built-in tasks give other prompts than those of a run
CONFIDENCE = 0.9  # of the bound, where the policy does not say with which confidence it was calibrated


@dataclass(frozen=True)
class Certificate:
    """One line of the report.

    Attributes:
        subject: What is promised.
        state: `ok`, `wrong` or `left out`.
        text: The figure, or why there is none.
    """

    subject: str
    state: str
    text: str


@dataclass(frozen=True)
class Case:
    """What is checked.

    Attributes:
        model: The model.
        method: The method.
        prompts: The prompts as `decode` takes them.
        gen_length: The tokens of the canvas.
        batch_size: The prompts that are decoded together.
    """

    model: Model
    method: Method
    prompts: Sequence[Any]
    gen_length: int
    batch_size: int

    def decode(self, method: Method | None = None, model: Model | None = None, prompts: Any = None) -> DecodeResult:
        """Decode the prompts, or some of them, with the method and model of the case or others."""
        return decode(
            model or self.model,
            self.prompts if prompts is None else prompts,
            method or self.method,
            gen_length=self.gen_length,
            batch_size=self.batch_size,
        )

    @property
    def exact(self) -> bool:
        """Whether the weights are of a type in which a batch rounds no answer away."""
        return self.model.adapter.network.dtype.itemsize >= torch.float32.itemsize


def check(config: RunConfig, own: CheckOptions, has_run: bool, show: Callable[[str], None]) -> int:
    """Check a model and a method, and show a line for each certificate.

    Args:
        config: the configuration.
        own: the options of `check`.
        has_run: the configuration was named, so its output_dir may hold a trained policy.
        show: receives the lines.

    Returns:
        1 where something does not hold, else 0.

    Raises:
        UserError: the model, the method or the prompts cannot be used.
    """
    if sampling_of(config) != GREEDY:
        raise UserError("decode.temperature: the certificates are about greedy decoding; leave it at 0")
    model = model_of(config)
    method = chosen_method(config, own, model, has_run)
    prompts = fresh_prompts(config, own, model)
    case = Case(model, method, prompts, config.decode.gen_length, config.decode.batch_size)
    failed = False
    for certificate in certificates(case, config, own):
        show(f"{certificate.state:9} {certificate.subject:24} {certificate.text}")
        failed = failed or certificate.state == "wrong"
    return int(failed)


def fresh_prompts(config: RunConfig, own: CheckOptions, model: Model) -> list[Any]:
    """Return prompts on which nothing was trained, as `decode` takes them; those that are too long are left out.

    Args:
        config: the configuration.
        own: the options of `check`.
        model: the model.

    Raises:
        UserError: the prompts cannot be read, or fewer than two of them fit.
    """
    names = [own.prompts] if isinstance(own.prompts, str) else own.prompts
    data = replace(config.data, test_prompts=own.count, domain=None, validation_path=None, test_path=None)
    if names is None and data.source != "tasks":
        raise UserError("prompts is not set: name built-in tasks, such as prompts=[math, json], or a file of prompts")
    if names is None or all(name in GENERATED_TASKS for name in names):
        data = replace(data, source="tasks", tasks=names or data.tasks)
    elif len(names) == 1:
        # a file is dealt out to three splits; here all of it is fresh
        data = replace(data, source="jsonl", path=names[0], train_prompts=1, validation_prompts=1)
    else:
        raise UserError(f"prompts={names!r}: expected built-in tasks ({', '.join(GENERATED_TASKS)}), or one file")
    seed = (config.seed + SEED_OF_FRESH) % 2**32
    prompts = [prompt for prompt in prompts_of(replace(config, data=data, seed=seed)) if prompt.split == "test"]
    room = model.spec.max_length - config.decode.gen_length
    ids = [prompt for prompt in encoded(model, prompts) if len(model.encode(prompt)) <= room]
    if len(ids) < 2:
        raise UserError(
            f"prompts: {len(ids)} of {len(prompts)} fit into {model.spec.max_length} tokens with "
            f"decode.gen_length={config.decode.gen_length}; expected at least 2"
        )
    return ids[: own.count]


def certificates(case: Case, config: RunConfig, own: CheckOptions) -> Iterator[Certificate]:
    """Check one promise after the other.

    Args:
        case: What is checked.
        config: the configuration.
        own: the options of `check`.

    Yields:
        The certificates.
    """
    together = case.decode()
    yield _alone(case, together)
    yield _cache(case, together)
    yield _reference(case, config, own, together)
    yield _calibrated(case, together)


def _alone(case: Case, together: DecodeResult) -> Certificate:
    """A row alone equals the same row in a batch, tokens and forwards."""
    subject = "row alone = row in batch"
    if case.batch_size == 1:
        return Certificate(subject, "left out", "decode.batch_size=1 decodes every row alone")
    lengths = [len(case.model.encode(prompt)) for prompt in case.prompts]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    # the shortest and the longest prompts stand beside the most and the least padding
    numbers = sorted({*order[: ALONE // 2], *order[-(ALONE - ALONE // 2) :]})
    equal = 0
    for number in numbers:
        one = case.decode(prompts=[case.prompts[number]])
        same = torch.equal(one.tokens[0], together.tokens[number]) and one.forwards[0] == together.forwards[number]
        equal += bool(same)
    text = f"{equal} of {len(numbers)} prompts have the same tokens and forwards"
    return _verdict(case, subject, equal == len(numbers), text, "decode.batch_invariant=true makes them equal")


def _cache(case: Case, together: DecodeResult) -> Certificate:
    """The cache of block-causal models changes nothing; for other models no cache is exact."""
    subject = "cache = no cache"
    if case.model.spec.causal_block is None:
        what = case.method.cache.name
        why = "without a cache there is nothing to compare" if what == "none" else f"cache {what!r} is an approximation"
        return Certificate(subject, "left out", f"every token of this model sees every other; {why}")
    method = dataclasses.replace(case.method, cache=build("cache", "causal_block", {}, {}))
    bare = dataclasses.replace(case.method, cache=build("cache", "none", {}, {}))
    try:
        method.check(case.model.spec)
    except UserError as error:
        return Certificate(subject, "left out", str(error))
    kept = together if case.method.cache.name == "causal_block" else case.decode(method)
    plain = together if case.method.cache.name == "none" else case.decode(bare)
    equal = [
        torch.equal(first, second) and one == other
        for first, second, one, other in zip(kept.tokens, plain.tokens, kept.forwards, plain.forwards, strict=True)
    ]
    text = f"{sum(equal)} of {len(equal)} prompts have the same tokens and forwards with causal_block and none"
    return _verdict(case, subject, all(equal), text, "use float32 for equality")


def _verdict(case: Case, subject: str, equal: bool, text: str, advice: str) -> Certificate:
    """Word the verdict of an equality, which is promised in float32 alone."""
    if equal:
        return Certificate(subject, "ok", text)
    if case.exact:
        return Certificate(subject, "wrong", text)
    dtype = str(case.model.adapter.network.dtype).removeprefix("torch.")
    return Certificate(subject, "left out", f"{text}: {dtype} rounds by the shape of a batch; {advice}")


def _reference(case: Case, config: RunConfig, own: CheckOptions, together: DecodeResult) -> Certificate:
    """Tokens agree with those of the same model in float32 on the CPU."""
    subject = "float32 on the CPU"
    network = case.model.adapter.network
    if not own.reference:
        return Certificate(subject, "left out", "reference=false")
    if network.dtype == torch.float32 and case.model.adapter.device.type == "cpu" and not config.model.compile:
        return Certificate(subject, "ok", "this model is the one in float32 on the CPU")
    options = dataclasses.asdict(config.model) | {"dtype": "float32", "device": "cpu", "compile": False}
    reference = case.decode(model=load_model(**options))
    share = agreement(together.tokens.numpy(), reference.tokens.numpy(), reference.lengths.numpy()).mean()
    same = sum(map(torch.equal, together.tokens, reference.tokens))
    text = f"{share:.2%} of the tokens agree, {same} of {len(case.prompts)} answers are equal"
    passed = share >= own.least_agreement
    return Certificate(subject, "ok" if passed else "wrong", f"{text} (at least {own.least_agreement:.0%} must agree)")


def _calibrated(case: Case, together: DecodeResult) -> Certificate:
    """The loss on fresh prompts does not contradict the bound of the policy's calibration."""
    subject = "calibrated loss"
    policy = case.method.policy
    if not isinstance(policy, FilterPolicy):
        return Certificate(subject, "left out", f"policy {policy.name!r} is not calibrated")
    predictor = policy.predictor
    setting = next((known for known in predictor.curve if known.threshold == policy.threshold), None)
    if setting is None or setting.loss_bound is None:
        return Certificate(subject, "left out", f"threshold {policy.threshold:.4g} is not on the calibrated curve")
    if predictor.metrics.get("target_agreement") is None:
        return Certificate(
            subject, "left out", "the policy was calibrated to the accuracy of answers, not to agreement"
        )
    confidence = float(predictor.metrics.get("confidence", CONFIDENCE))
    reference = case.decode(Method(FixedPolicy(), case.method.scheduler, stop=case.method.stop))
    losses = 1 - agreement(together.tokens.numpy(), reference.tokens.numpy(), reference.lengths.numpy())
    least = 1 - upper_bound(np.asarray(1 - losses), 1 - confidence)
    text = (
        f"{losses.mean():.2%} of the tokens differ from one token a step on {len(losses)} fresh prompts, "
        f"promised {setting.loss_bound:.2%}; with confidence {confidence:.0%} at least {least:.2%}"
    )
    return Certificate(subject, "wrong" if least > setting.loss_bound else "ok", text)
