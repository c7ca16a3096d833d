"""transformers: `model.generate(..., policy=...)`, for the classes of this package and for other masked dLLMs.

`export` writes a folder for the hub with the policy and a `custom_generate/generate.py`. With it, any model of
transformers that denoises masks decodes with the policy:

    model.generate(**inputs, custom_generate=FOLDER, policy=FOLDER, max_new_tokens=128, trust_remote_code=True)

The classes of this package have the same `generate` without `custom_generate`, and `register` makes transformers' Auto
classes know them. All of this runs the package's own loop, so that its tokens are those of `decode`.

A model of another package is used through its logits alone. Caches, policies that read attention, and shadow columns
need a class of this package and are refused otherwise.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from learn2pd.errors import UserError, user_errors
from learn2pd.loop.loop import decode_batch
from learn2pd.method import Method
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.kv import KVStore, KVView
from learn2pd.models.network import DiffusionNetwork
from learn2pd.predictors.accepting import Acceptance
from learn2pd.predictors.filter import FilterPolicy, load_policy
from learn2pd.registry import FAMILIES, build, import_family
from learn2pd.roles import Policy, StopRule
from learn2pd.schedulers.blocks import blocks_for
from learn2pd.tensors import places_of
from learn2pd.types import DecodeState, ModelSpec, Sampling, row_seeds

GENERATE = '''"""Decode with a learn2pd policy: `model.generate(..., custom_generate=..., policy=...)`.

This file needs the package learn2pd, which holds the function.
"""

from learn2pd.exporters.transformers import generate
'''
REQUIREMENTS = "learn2pd\n"
OPTIONS: tuple[str, ...] = ()  # of `export`
INNER = frozenset({"attention", "leave_one_out"})  # the extras that need a class of this package
# arguments of transformers' own `generate` that ask for something the loop does not do
REFUSED = ("assistant_model", "inputs_embeds", "negative_prompt_ids", "prefix_allowed_tokens_fn", "streamer")
ALONE = ("num_beams", "num_return_sequences")  # settings of which only the value 1 is known here


class LogitsAdapter(ModelAdapter):
    """A masked dLLM of another package, which the loop uses through `model(input_ids, ...).logits` alone.

    Args:
        model: The model.
        spec: The facts about it that the loop needs.
    """

    def __init__(self, model: PreTrainedModel, spec: ModelSpec) -> None:
        self.network = model
        self.spec = spec
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._hidden = self._logits  # type: ignore[assignment]

    def new_store(self, rows: int, columns: int) -> KVStore:
        raise UserError("caches need a class of learn2pd: load the model with learn2pd.load_model, or use cache none")

    def _logits(
        self, tokens: Tensor, position: Tensor, seen: Tensor | None, kept: KVView | None, asked: Tensor | None
    ) -> Tensor:
        """Compute the logits [R, Q or M, V], which the loop takes for hidden states."""
        given: dict[str, Tensor] = {}
        if seen is not None:
            lacking = {"attention_mask", "position_ids"} - self._takes
            if lacking:
                raise UserError(
                    f"prompts of unequal length need {' and '.join(sorted(lacking))}, which the forward of "
                    f"{type(self.network).__name__} does not take: decode prompts of one length together"
                )
            given = {"attention_mask": seen.long(), "position_ids": position.clamp_min(0)}
        logits: Tensor = self.network(input_ids=tokens, **given).logits
        return logits if asked is None else places_of(logits, asked)

    def score(self, hidden: Tensor) -> Tensor:
        return hidden.clone()  # the loop writes into it


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    inputs: Tensor | None = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    *,
    input_ids: Tensor | None = None,
    policy: Policy | Method | str | Path | None = None,
    tokenizer: Any = None,
    max_new_tokens: int | None = None,
    block_length: int | None = None,
    stop: StopRule | str = "eot",
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int = 0,
    mask_token_id: int | None = None,
    eos_token_id: int | list[int] | None = None,
    shifted_logits: bool | None = None,
    **others: Any,
) -> Tensor:
    """Decode with a policy, as `decode` does, for a model of transformers.

    Args:
        model: A class of this package, or another model whose `forward` takes tokens with masks and returns logits.
        inputs: [B, P] long, the prompts, padded on the left.
        logits_processor: Not used: the policy sees the model's own logits.
        stopping_criteria: Not used: `stop` says where a row ends.
        generation_config: Settings that stand for arguments that are not given.
        input_ids: As `inputs`, which is how a tokenizer names them.
        policy: A policy, a whole method, the folder of a trained policy, or its name on the hub.
        tokenizer: It names the mask token where neither the model nor `mask_token_id` does.
        max_new_tokens: The tokens of the canvas; 256 where nothing is given.
        block_length: The tokens of a block; None takes those of the policy, else of the model, else 32.
        stop: A stop rule or its registered name.
        do_sample: False stands for temperature 0.
        temperature: Divides the logits; 0 takes the most probable token.
        top_p: Draws from the smallest set of tokens that has at least this probability.
        top_k: Draws from this many most probable tokens; 0 draws from all.
        seed: The number from which the seeds of the rows are made.
        mask_token_id: The id of the mask token, where the configuration of the model does not name it.
        eos_token_id: The ids that end an answer; None takes those of the trained policy, else of the model.
        shifted_logits: True where the output at a position predicts the next token, as in Dream. None takes what a
            class of this package says, and False for others.
        others: `attention_mask` [B, P], and what transformers itself adds to every call.

    Returns:
        [B, P + max_new_tokens] long, the prompts and the canvases. Positions behind an answer hold end-of-text.

    Raises:
        UserError: There is no policy or no mask token, the policy does not fit the model, or the call asks for
            something that this loop does not do, such as beams.
    """
    prompts = inputs if input_ids is None else input_ids
    if policy is None:
        raise UserError("policy is not given: expected a policy, a method, the folder of a policy, or its hub name")
    if prompts is None:
        raise UserError("input_ids is not given: expected the token ids of the prompts, [rows, columns]")
    settings = generation_config if generation_config is not None else _own_settings(model)
    _refuse(others, settings)
    loaded = load_policy(policy) if isinstance(policy, str | Path) else policy
    trained = loaded.policy if isinstance(loaded, Method) else loaded
    spec = _spec(model, trained, settings, tokenizer, mask_token_id, eos_token_id, shifted_logits)
    method = loaded if isinstance(loaded, Method) else _method(loaded, spec, block_length, stop)
    method.check(spec)
    own = isinstance(model, DiffusionNetwork)
    if not own and method.needs & INNER:
        raise UserError(
            f"policy {method.policy.name!r} needs {', '.join(sorted(method.needs & INNER))}, which "
            f"{type(model).__name__} does not give: load the model with learn2pd.load_model"
        )
    length = _given(max_new_tokens, settings, "max_new_tokens", 256)
    rows = _rows(prompts, others.get("attention_mask"))
    too_long = next((number for number, row in enumerate(rows) if len(row) + length > spec.max_length), None)
    if too_long is not None:
        raise UserError(
            f"prompt {too_long}: {len(rows[too_long])} tokens and max_new_tokens={length} make "
            f"{len(rows[too_long]) + length}, {spec.name} takes at most {spec.max_length}"
        )
    state = DecodeState.start(rows, length, spec, seed=row_seeds(seed, range(len(rows))), device=prompts.device)
    adapter = ModelAdapter(model, spec) if isinstance(model, DiffusionNetwork) else LogitsAdapter(model, spec)
    sampling = _sampling(settings, do_sample, temperature, top_p, top_k)
    final = decode_batch(adapter, state, method, sampling=sampling)
    return torch.cat((prompts, final.canvas), dim=1)


def _own_settings(model: PreTrainedModel) -> Any:
    """Return the generation settings that a model brings; None for the classes of this package."""
    return None if isinstance(model, DiffusionNetwork) else model.generation_config


def _given(value: Any, settings: Any, name: str, default: Any) -> Any:
    """Return an argument, else the setting of its name, else the default."""
    if value is not None:
        return value
    stated = None if settings is None else settings.to_dict().get(name)
    return default if stated is None else stated


def _refuse(others: dict[str, Any], settings: Any) -> None:
    """Refuse a call that asks for something which the loop does not do."""
    for name in REFUSED:
        if others.get(name) is not None:
            raise UserError(f"{name} is given: learn2pd's loop has no such thing, leave it out")
    for name in ALONE:
        value = _given(others.get(name), settings, name, 1)
        if value != 1:
            raise UserError(f"{name}={value}: learn2pd's loop gives one answer a prompt, expected 1")


def _rows(prompts: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """Return the token ids of each prompt without its padding.

    Raises:
        UserError: A prompt is empty, or padded elsewhere than on the left.
    """
    if attention_mask is None:
        rows: list[list[int]] = prompts.tolist()
        return rows
    real = attention_mask.bool()
    if bool((real[:, :-1] & ~real[:, 1:]).any()):
        raise UserError("attention_mask: padding lies behind a prompt; expected it on the left (padding_side='left')")
    rows = [row[keep].tolist() for row, keep in zip(prompts, real, strict=True)]
    if not all(rows):
        raise UserError(f"prompt {rows.index([])}: it has no tokens")
    return rows


def _spec(
    model: PreTrainedModel,
    policy: Policy,
    settings: Any,
    tokenizer: Any,
    mask_token_id: int | None,
    eos_token_id: int | list[int] | None,
    shifted_logits: bool | None,
) -> ModelSpec:
    """Gather the facts about a model from its configuration, the arguments and the policy."""
    own = model if isinstance(model, DiffusionNetwork) else None
    fields = model.config.to_dict()
    named = None if tokenizer is None else tokenizer.mask_token_id
    masks = (mask_token_id, fields.get("mask_token_id"), named)
    mask_id = next((mask for mask in masks if mask is not None), None)
    if mask_id is None:
        raise UserError(f"{type(model).__name__} names no mask token: give mask_token_id=ID")
    ends = _given(eos_token_id, settings, "eos_token_id", fields.get("eos_token_id"))
    if eos_token_id is None and isinstance(policy, Acceptance):
        ends = list(policy.predictor.contract.eot_ids)
    if ends is None:
        raise UserError(f"{type(model).__name__} names no end-of-text token: give eos_token_id=ID")
    eot_ids = tuple(ends) if isinstance(ends, list | tuple) else (ends,)
    most = model.config.max_position_embeddings if own is not None else _longest(fields)
    shifted = own.shifted_logits if own is not None and shifted_logits is None else bool(shifted_logits)
    return ModelSpec(
        name=type(model).__name__,
        mask_id=int(mask_id),
        eot_ids=eot_ids,
        pad_id=eot_ids[0],
        vocab_size=int(model.config.vocab_size),
        max_length=int(most),
        shifted_logits=shifted,
        fingerprint="",
        causal_block=None if own is None else own.causal_block,
    )


def _longest(fields: dict[str, Any]) -> int:
    """Return the most columns of a model of another package; without a statement there is no limit known."""
    names = ("max_position_embeddings", "max_sequence_length", "n_positions")
    return next((int(fields[name]) for name in names if fields.get(name)), 2**31)


def _method(policy: Policy, spec: ModelSpec, block_length: int | None, stop: StopRule | str) -> Method:
    rule = build("stop", stop, {}, {}) if isinstance(stop, str) else stop
    length = block_length or (spec.causal_block if policy.window_width is None else policy.window_width)
    scheduler = blocks_for(spec, length) if length else None
    return Method(policy, scheduler, stop=rule)  # type: ignore[arg-type]


def _sampling(
    settings: Any, do_sample: bool | None, temperature: float | None, top_p: float | None, top_k: int | None
) -> Sampling:
    """Read the rule by which tokens are drawn. As in transformers, `do_sample` decides whether any are."""
    drawn = temperature is not None if do_sample is None else do_sample
    drawn = drawn or (do_sample is None and bool(_given(None, settings, "do_sample", False)))
    if not drawn:
        return Sampling()
    with user_errors():
        return Sampling(
            float(_given(temperature, settings, "temperature", 1.0)),
            float(_given(top_p, settings, "top_p", 1.0)),
            int(_given(top_k, settings, "top_k", 0)),
        )


def register() -> list[str]:
    """Make transformers' Auto classes know the families of this package.

    `AutoModelForMaskedLM.from_pretrained`, and the same of AutoModelForCausalLM and AutoModel, then load a checkpoint
    of these families without remote code, and the model has `generate(..., policy=...)`. Importing learn2pd alone
    registers nothing. A model type that transformers itself has is left alone.

    Returns:
        The model types that are registered.
    """
    registered = []
    for model_type, target in FAMILIES.items():
        network = import_family(target)
        if "/" in model_type or network.config_class.model_type != model_type:
            continue  # the class reads the checkpoints of a type that another class has
        try:
            AutoConfig.register(model_type, network.config_class)
            for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM):
                auto.register(network.config_class, network)
        except ValueError:  # transformers has a class of its own
            continue
        registered.append(model_type)
    return registered


def export(policy: FilterPolicy, folder: Path) -> str:
    """Write a folder for the hub: the policy, its card, and `custom_generate/generate.py`.

    Args:
        policy: The trained policy.
        folder: The folder, which exists and is empty.

    Returns:
        How the folder is used, in one line.
    """
    if policy.predictor.network.hidden_states:
        raise UserError(
            f"policy {policy.name!r} needs the extra 'hidden', which belongs to one model; a model of transformers has "
            "no fingerprint by which it could be known"
        )
    policy.save_pretrained(folder)
    code = folder / "custom_generate"
    code.mkdir()
    (code / "generate.py").write_text(GENERATE, encoding="utf-8")
    (code / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    described = {"library_name": "learn2pd", "learn2pd": {"kind": policy.predictor.kind}}  # the hub counts by this file
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return (
        f"model.generate(**inputs, custom_generate={str(folder)!r}, policy={str(folder)!r}, max_new_tokens=128, "
        "trust_remote_code=True)"
    )
