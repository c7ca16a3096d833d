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
from numpy.typing import NDArray

from learn2pd.caches.causal_block import CausalBlockCache
from learn2pd.caches.none import NoCache
from learn2pd.cli.config import RunConfig
from learn2pd.cli.methods import chosen_method
from learn2pd.cli.options import CheckOptions
from learn2pd.cli.stages.components import checkers_of, model_of, prompts_of, sampling_of
from learn2pd.data.prompts import Prompt, encoded
from learn2pd.decoding import decode
from learn2pd.errors import UserError
from learn2pd.evaluation.compare import agreement
from learn2pd.loop.block import block_step, check_block_policy, start_block
from learn2pd.method import Method
from learn2pd.models.loading import Model, load_model
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.registry import GENERATED_TASKS
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.statistics.bounds import upper_bound
from learn2pd.stops.none import NoStop
from learn2pd.types import GREEDY, DecodeResult, Window

ALONE = 4  # prompts that are decoded once more, each alone
SEED_OF_FRESH = 1_000_003  # is added to the seed, so that built-in tasks give other prompts than those of a run
IN_FLOAT32 = "use float32 for equality"
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
        prompts: The token ids of the prompts.
        asked: The same prompts with what their checkers need.
        gen_length: The tokens of the canvas.
        batch_size: The prompts that are decoded together.
    """

    model: Model
    method: Method
    prompts: Sequence[Any]
    asked: Sequence[Prompt]
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
    case = Case(model, method, encoded(model, prompts), prompts, config.decode.gen_length, config.decode.rows_together)
    failed = False
    for certificate in certificates(case, config, own):
        show(f"{certificate.state:9} {certificate.subject:24} {certificate.text}")
        failed = failed or certificate.state == "wrong"
    return int(failed)


def fresh_prompts(config: RunConfig, own: CheckOptions, model: Model) -> list[Prompt]:
    """Return prompts on which nothing was trained; those that are too long are left out.

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
    try:
        prompts = [prompt for prompt in prompts_of(replace(config, data=data, seed=seed)) if prompt.split == "test"]
    except UserError as error:
        if data.source != "jsonl":
            raise
        raise UserError(str(error).replace("data.path", "prompts")) from error
    room = model.spec.max_length - config.decode.gen_length
    fitting = [
        prompt for prompt, ids in zip(prompts, encoded(model, prompts), strict=True) if len(model.encode(ids)) <= room
    ]
    if len(fitting) < 2:
        raise UserError(
            f"prompts: {len(fitting)} of {len(prompts)} fit into {model.spec.max_length} tokens with "
            f"decode.gen_length={config.decode.gen_length}; expected at least 2"
        )
    return fitting[: own.count]


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
    yield _block_step(case)
    yield _reference(case, config, own, together)
    yield _calibrated(case, config, together)


def _alone(case: Case, together: DecodeResult) -> Certificate:
    """Check that a row alone equals the same row in a batch, tokens and forwards."""
    subject = "row alone = row in batch"
    if case.batch_size == 1:
        return Certificate(
            subject, "left out", "decode.batch_size=1 or decode.batch_invariant=true decodes every row alone"
        )
    lengths = [len(case.model.encode(prompt)) for prompt in case.prompts]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    # the shortest and the longest prompts stand beside the most and the least padding
    numbers = sorted({*order[: ALONE // 2], *order[-(ALONE - ALONE // 2) :]})
    equal = 0
    for number in numbers:
        one = case.decode(prompts=[case.prompts[number]])
        same = torch.equal(one.tokens[0], together.tokens[number]) and one.forwards[0] == together.forwards[number]
        equal += bool(same)
    return _verdict(case, subject, equal, len(numbers), "decode.batch_invariant=true makes them equal")


def _cache(case: Case, together: DecodeResult) -> Certificate:
    """Check that the cache of a block-causal model changes nothing; for other models no cache is exact."""
    subject = "cache = no cache"
    if case.model.spec.causal_block is None:
        what = case.method.cache.name
        why = "without a cache there is nothing to compare" if what == "none" else f"cache {what!r} is an approximation"
        return Certificate(subject, "left out", f"every token of this model sees every other; {why}")
    method = dataclasses.replace(case.method, cache=CausalBlockCache())
    bare = dataclasses.replace(case.method, cache=NoCache())
    try:
        method.check(case.model.spec)
    except UserError as error:
        return Certificate(subject, "left out", str(error))
    kept = together if isinstance(case.method.cache, CausalBlockCache) else case.decode(method)
    plain = together if isinstance(case.method.cache, NoCache) else case.decode(bare)
    equal = [
        torch.equal(first, second) and one == other
        for first, second, one, other in zip(kept.tokens, plain.tokens, kept.forwards, plain.forwards, strict=True)
    ]
    return _verdict(case, subject, sum(equal), len(equal), IN_FLOAT32, " with causal_block and none")


def _block_step(case: Case) -> Certificate:
    """Check that one step over a block, as engines call it, equals the loop, tokens and forwards."""
    subject = "block step = loop"
    scheduler = case.method.scheduler
    if type(scheduler) is not BlocksScheduler:
        return Certificate(subject, "left out", f"scheduler {scheduler.name!r} opens other windows than engines do")
    try:
        check_block_policy(case.method.policy)
    except UserError as error:
        return Certificate(subject, "left out", str(error))
    prompts = case.prompts[:ALONE]
    whole = case.decode(dataclasses.replace(case.method, cache=NoCache(), stop=NoStop()), prompts=prompts)
    equal = 0
    for number, prompt in enumerate(prompts):
        tokens, forwards = _outside_the_loop(case, case.model.encode(prompt))
        equal += bool(torch.equal(tokens, whole.tokens[number]) and forwards == int(whole.forwards[number]))
    return _verdict(case, subject, equal, len(prompts), IN_FLOAT32)


@torch.no_grad()
def _outside_the_loop(case: Case, prompt: Sequence[int]) -> tuple[torch.Tensor, int]:
    """Decode a prompt block by block with `block_step`, and return its tokens [G] and the number of forwards."""
    spec = case.model.spec
    network = case.model.adapter.network
    length = case.method.scheduler.block_length
    offset = len(prompt) if case.method.scheduler.alignment == "grid" else 0
    before = torch.tensor([list(prompt)], device=network.device)
    canvas = torch.full((1, case.gen_length), spec.mask_id, device=network.device)
    masked = torch.ones_like(canvas, dtype=torch.bool)
    first_logits = len(prompt) - spec.shift
    forwards = 0
    while masked.any():
        first = int(masked.int().argmax())
        start = first - (first + offset) % length
        at = slice(max(start, 0), min(start + length, case.gen_length))
        step = torch.tensor([forwards], device=network.device)
        memory = start_block(case.method.policy, canvas[:, at], masked[:, at], spec.mask_id, spec.vocab_size, step=step)
        window = Window(torch.zeros_like(step), torch.full_like(step, at.stop - at.start))
        still_open = True
        while still_open:
            logits = network(torch.cat((before, canvas), dim=1)).logits[:, first_logits:][:, at]
            taken = block_step(
                case.method.policy, logits, canvas[:, at], masked[:, at], window, memory, mask_id=spec.mask_id
            )
            canvas[:, at], masked[:, at], memory = taken.tokens, taken.masked, taken.memory
            still_open = bool(taken.open)
            forwards += 1
    return canvas[0].cpu(), forwards


def _verdict(case: Case, subject: str, equal: int, prompts: int, advice: str, how: str = "") -> Certificate:
    """Word how many prompts are equal. Equality is promised in float32 alone."""
    text = f"{equal} of {prompts} prompts have the same tokens and forwards{how}"
    if equal == prompts:
        return Certificate(subject, "ok", text)
    if case.exact:
        return Certificate(subject, "wrong", text)
    dtype = str(case.model.adapter.network.dtype).removeprefix("torch.")
    return Certificate(subject, "left out", f"{text}: {dtype} rounds by the shape of a batch; {advice}")


def _reference(case: Case, config: RunConfig, own: CheckOptions, together: DecodeResult) -> Certificate:
    """Check that tokens agree with those of the same model in float32 on the CPU."""
    subject = "float32 on the CPU"
    network = case.model.adapter.network
    if not own.reference:
        return Certificate(subject, "left out", "reference=false")
    plain = not config.model.compile and config.model.quantization is None
    if network.dtype == torch.float32 and case.model.adapter.device.type == "cpu" and plain:
        return Certificate(subject, "ok", "this model is the one in float32 on the CPU")
    options = dataclasses.asdict(config.model) | {
        "dtype": "float32",
        "device": "cpu",
        "compile": False,
        "quantization": None,
    }
    reference = case.decode(model=load_model(**options))
    share = agreement(together.tokens.numpy(), reference.tokens.numpy(), reference.lengths.numpy()).mean()
    same = sum(map(torch.equal, together.tokens, reference.tokens))
    text = f"{share:.2%} of the tokens agree, {same} of {len(case.prompts)} answers are equal"
    passed = share >= own.least_agreement
    return Certificate(subject, "ok" if passed else "wrong", f"{text} (at least {own.least_agreement:.0%} must agree)")


def _calibrated(case: Case, config: RunConfig, together: DecodeResult) -> Certificate:
    """Check that the loss on fresh prompts does not contradict the bound of the policy's calibration."""
    subject = "calibrated loss"
    policy = case.method.policy
    if not isinstance(policy, FilterPolicy):
        return Certificate(subject, "left out", f"policy {policy.name!r} is not calibrated")
    predictor = policy.predictor
    if predictor.setting is None:
        return Certificate(subject, "left out", f"threshold {policy.threshold:.4g} is not on the calibrated curve")
    setting = policy.setting
    if setting is None or setting.loss_bound is None:
        return Certificate(subject, "left out", "the calibrated curve was not measured with these options")
    confidence = float(predictor.metrics.get("confidence", CONFIDENCE))
    reference = case.decode(Method(FixedPolicy(), case.method.scheduler, stop=case.method.stop))
    count = len(case.prompts)
    by_tokens = predictor.metrics.get("target_agreement") is not None
    if by_tokens:
        agreed = agreement(together.tokens.numpy(), reference.tokens.numpy(), reference.lengths.numpy())
        lost = 1 - agreed
        what = f"of the tokens differ from one token a step on {count} fresh prompts"
    else:
        try:
            verdicts = [_verdicts(case, config, result) for result in (reference, together)]
        except UserError as error:
            return Certificate(subject, "left out", f"the policy was calibrated to the accuracy of answers: {error}")
        lost = verdicts[0] - verdicts[1]
        what = f"of accuracy is lost against one token a step on {count} fresh prompts"
    span = 1 if by_tokens else 2  # what is lost lies between 0 and 1, or between -1 and 1
    least = 1 - span * upper_bound((1 - lost) / span, 1 - confidence)
    figures = f"promised {setting.loss_bound:.2%}; with confidence {confidence:.0%} at least {least:.2%}"
    text = f"{lost.mean():.2%} {what}, {figures}"
    return Certificate(subject, "wrong" if least > setting.loss_bound else "ok", text)


def _verdicts(case: Case, config: RunConfig, result: DecodeResult) -> NDArray[np.float64]:
    """Return 1 for every right answer and 0 for every wrong one.

    Raises:
        UserError: A prompt has no checker, or its checker runs generated code and the configuration does not allow it.
    """
    checkers = checkers_of(config, case.asked)
    if not all(prompt.task for prompt in case.asked):
        raise UserError("these prompts have no checker; give data.answer_field and data.task")
    judged = zip(case.asked, result.texts, strict=True)
    return np.array([checkers[str(prompt.task)].check(prompt.facts, text).correct for prompt, text in judged], float)
