"""A model of this toolkit as lm-eval sees it: answers by any method, and likelihoods that no method changes.

`learn2pd eval` builds a `DiffusionLM`. lm-eval's own command line builds a `Learn2PD`, as soon as it looks for models
of other packages: version 0.4.13 does not, and later versions find the entry point in pyproject.toml.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from learn2pd import __version__
from learn2pd.decoding import decode, provided_by
from learn2pd.errors import UserError
from learn2pd.harness import processes
from learn2pd.harness.likelihood import Pair, are_greedy, log_likelihoods
from learn2pd.method import Method
from learn2pd.models.loading import Model, load_model
from learn2pd.models.neighbours import told_in_one_line
from learn2pd.progress import progress_bar
from learn2pd.registry import is_known
from learn2pd.stops.eot import EotStop
from learn2pd.stops.text import TextStop
from learn2pd.types import GREEDY, Sampling

log = logging.getLogger(__name__)
CANVAS = 256  # tokens of the canvas where neither the user nor the task says how long an answer may be
KNOWN_OPTIONS = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}
OWNER = "learn2pd"  # the key in a file of answers under which the identity of model and method stands


@dataclass(frozen=True)
class Ask:
    """What a task asks of an answer.

    Attributes:
        canvas: The tokens of the canvas.
        limit: The most tokens of the answer.
        sampling: The rule by which tokens are drawn.
        until: The texts before which the answer ends.
    """

    canvas: int
    limit: int
    sampling: Sampling
    until: tuple[str, ...]


class DiffusionLM(TemplateLM):
    """A loaded model with a method.

    Args:
        model: The model.
        method: Policy, scheduler, cache and stop rule. The stop rules `eot` and `text` also end an answer at the texts
            that a task names; with other rules the answer is cut there afterwards.
        gen_length: The tokens of the canvas. None takes what each task allows for an answer. An answer is cut to what
            its task allows.
        batch_size: The number of prompts that are decoded together, and of sequences in a forward of the likelihood.
        batch_invariant: As for `decode`.
        sampling: The rule by which tokens are drawn. The default leaves it to the tasks, most of which are greedy.
        seed: The seed of everything that is drawn.
        likelihood_samples: The samples for an answer whose likelihood is estimated.
        max_length: The most tokens of prompt and answer together; None takes the model's.

    Attributes:
        figures: For each task, the numbers of decoded `answers`, their `forwards` and `tokens`, and the prompts that
            were `cut`.
    """

    def __init__(
        self,
        model: Model,
        method: Method,
        *,
        gen_length: int | None = None,
        batch_size: int = 16,
        batch_invariant: bool = False,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        likelihood_samples: int = 128,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        method.check(model.spec)
        if model.tokenizer is None:
            raise UserError(f"model {model.spec.name} has no tokenizer, and the tasks of lm-eval are texts")
        limits = {"gen_length": gen_length, "batch_size": batch_size, "likelihood_samples": likelihood_samples}
        for name, value in (limits | {"max_length": max_length}).items():
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: expected at least 1")
        self.model = model
        self.method = method
        self.tokenizer = model.tokenizer
        self.gen_length = gen_length
        self.batch_size = batch_size
        self.batch_invariant = batch_invariant
        self.sampling = sampling
        self.seed = seed
        self.likelihood_samples = likelihood_samples
        self.max_length = min(max_length or model.spec.max_length, model.spec.max_length)
        self.figures: dict[str, Counter[str]] = {}
        self._rank, self._world_size = processes.place()

    # ---- what lm-eval asks about the model

    @property
    def identity(self) -> str:
        """16 hex digits that identify everything an answer depends on beside the question."""
        depends = [
            __version__,
            self.model.spec.fingerprint,
            str(self.model.adapter.network.dtype),
            self.method.fingerprint,
            self.gen_length,
            self.max_length,
            asdict(self.sampling),
            self.seed,
            self.likelihood_samples,
        ]
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes into its results about the model."""
        return {
            "model_name": self.model.spec.name,
            "model_fingerprint": self.model.spec.fingerprint,
            "method": {role: part.name for role, part in self.method.parts.items()},
            "method_fingerprint": self.method.fingerprint,
            "likelihood_samples": self.likelihood_samples,
        }

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take a file of answers, and refuse the answers of another model or method.

        lm-eval looks an answer up by its question alone.

        Args:
            cache_hook: lm-eval's hook into the file.

        Raises:
            UserError: The file holds answers of another model or method.
        """
        answers = cache_hook.dbdict
        if answers is not None and answers.setdefault(OWNER, self.identity) != self.identity:
            raise UserError(
                f"use_cache: the file {answers.filename} holds answers of another model or method "
                f"({answers[OWNER]}, this is {self.identity}): name another file, or delete it"
            )
        super().set_cache_hook(cache_hook)

    @property
    def eot_token_id(self) -> int:
        return self.model.spec.eot_ids[0]

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation as the text that the model reads.

        Args:
            chat_history: The messages.
            add_generation_prompt: True ends with the beginning of the assistant's turn; False goes on with the last
                message, which is then the assistant's.

        Returns:
            The text.

        Raises:
            UserError: The tokenizer has no chat template, or it fails.
        """
        if self.tokenizer.chat_template is None:
            raise UserError(f"{self.model.spec.name} has no chat template: set chat=false (apply_chat_template)")
        with told_in_one_line("the tokenizer's chat template failed on a prompt of the task"):
            return str(
                self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Return the token ids of a text, which may hold the control tokens of a chat template.

        Args:
            string: The text.
            add_special_tokens: Whether the tokenizer adds its own tokens. None adds them where there is no chat
                template, as `decode` does.
            options: They are not used.
        """
        adds = self.tokenizer.chat_template is None if add_special_tokens is None else add_special_tokens
        return list(self.tokenizer.encode(string, add_special_tokens=adds))

    # ---- answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer questions.

        A question that leaves no room for the canvas loses its beginning, as in lm-eval's own models.

        Args:
            requests: The questions, with the options of their tasks.
            disable_tqdm: True shows no progress bar.

        Returns:
            The answers.

        Raises:
            UserError: An option of a task cannot be used, or its canvas is longer than the model allows.
        """
        answers = [""] * len(requests)
        groups: dict[Ask, list[int]] = {}
        padding = padding_of(requests)
        for number, request in enumerate(requests):
            if number not in padding:
                groups.setdefault(self._ask(request), []).append(number)
        with progress_bar(
            len(requests) - len(padding), "answers", "answer", shown=not disable_tqdm and self.rank == 0
        ) as bar:
            for ask, numbers in groups.items():
                for batch, prompts in self._batches(requests, numbers, ask):
                    for number, text in zip(batch, self._answers(requests, batch, prompts, ask), strict=True):
                        answers[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(batch))
        for number, copied in padding.items():
            answers[number] = answers[copied]
        return answers

    def _ask(self, request: Instance) -> Ask:
        """Read the options of a task."""
        task = f"task {request.task_name!r}"
        options = normalize_gen_kwargs(dict(request.args[1]), self.gen_length or CANVAS)
        unknown = sorted(set(options) - KNOWN_OPTIONS)
        if unknown and request.task_name not in self.figures:
            log.warning("%s: generation_kwargs that have no meaning here: %s", task, ", ".join(unknown))
        self.figures.setdefault(str(request.task_name), Counter())
        limit = options["max_gen_toks"]
        canvas = self.gen_length or limit
        if limit < 1 or canvas >= self.max_length:
            raise UserError(
                f"{task}: a canvas of {canvas} tokens for answers of {limit}, and {self.model.spec.name} takes "
                f"{self.max_length} tokens with the prompt: set gen_length"
            )
        sampling = self.sampling
        if sampling == GREEDY and options.get("do_sample"):
            try:
                sampling = Sampling(
                    float(options.get("temperature", 1.0)),
                    float(options.get("top_p", 1.0)),
                    int(options.get("top_k", 0)),
                )
            except ValueError as error:
                raise UserError(f"{task}: generation_kwargs: {error}") from error
        return Ask(canvas, limit, sampling, tuple(text for text in options["until"] if text))

    def _batches(
        self, requests: Sequence[Instance], numbers: Sequence[int], ask: Ask
    ) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Yield the numbers and token ids of questions of similar lengths.

        Where tokens are drawn, all questions form one batch for `decode`, which gives each of them a seed of its own.
        """
        room = self.max_length - ask.canvas
        prompts: dict[int, list[int]] = {}
        for number in numbers:
            ids = self.tok_encode(requests[number].args[0])
            if len(ids) > room:
                self.figures[str(requests[number].task_name)]["cut"] += 1
            prompts[number] = ids[-room:]
        ordered = sorted(numbers, key=lambda number: len(prompts[number])) if ask.sampling == GREEDY else list(numbers)
        size = self.batch_size if ask.sampling == GREEDY else len(ordered)
        for first in range(0, len(ordered), size):
            batch = ordered[first : first + size]
            yield batch, [prompts[number] for number in batch]

    def _answers(
        self, requests: Sequence[Instance], batch: Sequence[int], prompts: list[list[int]], ask: Ask
    ) -> Iterator[str]:
        method = stopping_at(self.method, ask.until)
        result = decode(
            self.model,
            prompts,
            method,
            gen_length=ask.canvas,
            batch_size=self.batch_size,
            batch_invariant=self.batch_invariant,
            sampling=ask.sampling,
            seed=self.seed,
        )
        cut = TextStop(list(ask.until)).final_text if ask.until else str
        for place, number in enumerate(batch):
            length = min(int(result.lengths[place]), ask.limit)
            figures = self.figures[str(requests[number].task_name)]
            figures.update(answers=1, forwards=int(result.forwards[place]), tokens=length)
            yield cut(method.stop.final_text(self.model.text(result.tokens[place, :length])))

    # ---- likelihoods

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        """Score answers, and say which of them the model writes by itself.

        Args:
            requests: For each answer, the two texts of lm-eval's question (or None), and the token ids of both.
            disable_tqdm: True shows no progress bar.
            options: They are not used.

        Returns:
            Log-probabilities, and whether one token a step writes the answer.
        """
        pairs = [self._fitting(prompt, answer) for _, prompt, answer in requests]
        order = sorted(range(len(pairs)), key=lambda number: -sum(map(len, pairs[number])))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        with progress_bar(len(pairs), "likelihoods", "answer", shown=not disable_tqdm and self.rank == 0) as bar:
            for first in range(0, len(order), self.batch_size):
                numbers = order[first : first + self.batch_size]
                batch = [pairs[number] for number in numbers]
                greedy = are_greedy(self.model.adapter, batch, rows=self.batch_size)
                for number, result in zip(numbers, zip(self._scores(batch), greedy, strict=True), strict=True):
                    results[number] = result
                    if requests[number][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[number][0], result)
                bar.update(len(numbers))
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, in windows of the model's length that follow an end-of-text or each other.

        Args:
            requests: The texts.
            disable_tqdm: True shows no progress bar.

        Returns:
            Log-probabilities.
        """
        scores = []
        with progress_bar(len(requests), "texts", "text", shown=not disable_tqdm and self.rank == 0) as bar:
            for request in requests:
                windows = get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length - 1,
                    context_len=1,
                )
                score = sum(self._scores([make_disjoint_window(window) for window in windows]))
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, score)
                scores.append(score)
                bar.update()
        return scores

    def _scores(self, pairs: Sequence[Pair]) -> list[float]:
        return log_likelihoods(
            self.model.adapter, pairs, samples=self.likelihood_samples, rows=self.batch_size, seed=self.seed
        )

    def _fitting(self, prompt: list[int], answer: list[int]) -> Pair:
        """Cut the beginning of a prompt that is too long, and refuse an answer that cannot be scored."""
        if not 0 < len(answer) < self.max_length:
            raise UserError(
                f"a continuation of the task has {len(answer)} tokens: expected 1 to {self.max_length - 1} "
                f"for {self.model.spec.name}"
            )
        return prompt[-(self.max_length - len(answer)) :], answer

    # ---- several processes

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return processes.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        return processes.gather_object(obj, dst)

    def barrier(self) -> None:
        processes.barrier()


class Learn2PD(DiffusionLM):
    """A model and a method by name, as lm-eval's own command line builds them.

    Args:
        pretrained: A folder or a hub name.
        policy: A registered name, `package.module:Class`, or the folder or hub name of a trained policy.
        options: The options of the policy.
        scheduler: The name of the scheduler.
        scheduler_options: Its options.
        cache: The name of the cache.
        cache_options: Its options.
        stop: The name of the stop rule.
        stop_options: Its options.
        block_length: The tokens of a block; None takes the model's own blocks, or 32.
        dtype: As for `load_model`.
        device: As for `load_model`. lm-eval names `cuda:0` where nobody named a device; without a GPU it is the CPU.
        revision: As for `load_model`.
        adapter: As for `load_model`.
        batch_size: As for `DiffusionLM`. `auto` is 16.
        max_batch_size: It is not used.
        settings: The other arguments of `DiffusionLM`.
    """

    def __init__(
        self,
        pretrained: str,
        policy: str = "threshold",
        options: Mapping[str, Any] | None = None,
        scheduler: str = "blocks",
        scheduler_options: Mapping[str, Any] | None = None,
        cache: str = "none",
        cache_options: Mapping[str, Any] | None = None,
        stop: str = "eot",
        stop_options: Mapping[str, Any] | None = None,
        block_length: int | None = None,
        dtype: str = "float32",
        device: str | None = None,
        revision: str | None = None,
        adapter: str | None = None,
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        processes.join()
        guessed = device == "cuda:0" and not torch.cuda.is_available()
        place = processes.device() if device is None or guessed else device
        model = load_model(pretrained, dtype=dtype, device=place, revision=revision, adapter=adapter)
        length = block_length or model.spec.causal_block or 32
        by_name = is_known("policy", policy)
        method = Method.from_names(
            policy if by_name else "filter",
            scheduler,
            cache,
            stop,
            options=options,
            scheduler_options=scheduler_options,
            cache_options=cache_options,
            stop_options=stop_options,
            provided={
                **provided_by(model),
                **({} if by_name else {"folder": lambda: policy}),
                "block_length": lambda: length,
                "refresh_tokens": lambda: length,
            },
        )
        rows = int(batch_size) if str(batch_size).isdecimal() else 16
        super().__init__(model, method, batch_size=rows, **settings)


def stopping_at(method: Method, texts: Sequence[str]) -> Method:
    """Return a method that also ends answers at some texts, where its stop rule is `eot` or `text`.

    Args:
        method: The method.
        texts: The texts; there may be none.

    Returns:
        The method with the stop rule `text`, or the method as it is.
    """
    stop = method.stop
    if not texts or not isinstance(stop, EotStop) or type(stop) not in (EotStop, TextStop):
        return method
    own = stop.strings if isinstance(stop, TextStop) else []
    return Method(method.policy, method.scheduler, method.cache, TextStop([*own, *texts], stop.floor))


def padding_of(requests: Sequence[Instance]) -> dict[int, int]:
    """Return the questions that lm-eval adds in a process with fewer of them, so that all processes have as many.

    It repeats a question more often than its task does, and drops the answers.

    Args:
        requests: The questions of this process.

    Returns:
        The numbers of the added questions, each with the number of the question that it repeats.
    """
    asked: dict[int, list[int]] = {}
    for number, request in enumerate(requests):
        asked.setdefault(id(request), []).append(number)
    return {number: numbers[0] for numbers in asked.values() for number in numbers[requests[numbers[0]].repeats or 1 :]}
