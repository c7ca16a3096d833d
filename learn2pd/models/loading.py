"""Load a dLLM from a hub name or a local folder: one path for the embedded model and for LLaDA-8B."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from learn2pd.errors import UserError, first_line
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.dream import DreamConfig, DreamModel, DreamTokenizer
from learn2pd.models.files import UNREADABLE, check_folder, read_object, refuse_adapter, refuse_tensors, shown_name
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.models.network import DiffusionNetwork
from learn2pd.types import ModelSpec


@dataclass(frozen=True)
class Family:
    """How checkpoints of one `model_type` are read."""

    config: type[LLaDAConfig] | type[DreamConfig]
    network: type[DiffusionNetwork]
    shifted_logits: bool


FAMILIES = {"llada": Family(LLaDAConfig, LLaDAModelLM, False), "Dream": Family(DreamConfig, DreamModel, True)}
END_OF_TURN_TOKENS = ("<|eot_id|>", "<|im_end|>")  # LLaDA and Dream end an answer with this and pad with end-of-text; either ends it
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NOT_READ = ("auto_map", "dtype", "torch_dtype")  # fields of config.json: no remote code is run, and the type of the weights is the caller's choice


@dataclass(frozen=True)
class Model:
    """A loaded dLLM: what the loop uses, and the tokenizer that the loop does not know."""

    adapter: ModelAdapter
    tokenizer: PreTrainedTokenizerBase

    @property
    def spec(self) -> ModelSpec:
        return self.adapter.spec

    def encode(self, prompt: str) -> list[int]:
        """Ids of a user's turn, by the chat template where the tokenizer has one.

        Raises:
            UserError: for an empty prompt.
        """
        if not prompt.strip():
            raise UserError("the prompt is empty: expected at least one character that is not white space")
        if self.tokenizer.chat_template is None:
            return list(self.tokenizer.encode(prompt))
        text = self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def resolve_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        UserError: for a device this machine lacks.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device).tolist()  # not on `meta`, which holds no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"model.device={device!r} is not usable here ({str(error).splitlines()[0]}): use auto, cpu or cuda") from error
    return torch.device(device)


def load_model(
    path: str, dtype: str = "float32", device: str = "auto", revision: str | None = None, compile: bool = False, adapter: str | None = None
) -> Model:
    """Load weights, configuration and tokenizer. No remote code is run.

    Args:
        path: a hub name such as `GSAI-ML/LLaDA-8B-Instruct`, or a folder in the hub's layout.
        dtype: `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        revision: of the hub repository.
        compile: let torch.compile fuse the layers; the first forwards of every new shape take much longer.
        adapter: a hub name or folder of a peft adapter of this dLLM, which is added into the weights.

    Raises:
        UserError: the folder is missing or is not a dLLM, weights are damaged or do not fit, there is no mask token, the adapter is of another
            dLLM.
    """
    if dtype not in DTYPES:
        raise UserError(f"model.dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    target = resolve_device(device)
    fields = read_config(path, revision)
    family = FAMILIES[fields["model_type"]]
    try:
        config = family.config.from_dict({key: value for key, value in fields.items() if key not in NOT_READ})
    except Exception as error:  # also what transformers' own checks of the fields raise, of many kinds
        raise UserError(f"model {path}: {' '.join(str(error).split())}") from error
    network = _load_weights(path, family.network, config, DTYPES[dtype], revision).eval().to(target)
    tokenizer = load_tokenizer(path, network.config, revision)
    spec = _spec(path, network, tokenizer, family.shifted_logits)
    if adapter is not None:
        from learn2pd.models.merging import merge_adapter

        network, digest = merge_adapter(network, adapter, path)
        # of base and adapter, and not of their sum: that is rounded differently on every device
        both = hashlib.sha256(f"{spec.fingerprint}{digest}".encode()).hexdigest()[:16]
        spec = replace(spec, name=f"{spec.name}+{shown_name(adapter)}", fingerprint=both)
    return Model(ModelAdapter(network, spec, compile), tokenizer)


def read_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """The fields of config.json, once it is clear that they describe a dLLM this toolkit runs.

    Raises:
        UserError: naming what was looked for.
    """
    known = ", ".join(FAMILIES)
    check_folder("model.path", path, f"config.json (model_type {known}), *.safetensors and tokenizer.json")
    refuse_adapter("model.path", path, revision)
    fields = read_object("model.path", path, "config.json", f"one with model_type {known}", revision)
    if str(fields.get("model_type")) not in FAMILIES:
        raise UserError(
            f"model.path={path!r}: config.json says model_type {fields.get('model_type')!r}, which is no dLLM known here; expected {known}"
        )
    if fields.pop("quantization_config", None) is not None:
        raise UserError(f"model.path={path!r}: config.json has a quantization_config; quantised weights are not read, expected the plain checkpoint")
    return fields


def _load_weights(path: str, model_class: Any, config: LLaDAConfig | DreamConfig, dtype: torch.dtype, revision: str | None) -> DiffusionNetwork:
    try:
        network, report = model_class.from_pretrained(
            path, config=config, dtype=dtype, revision=revision, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )  # mismatched sizes are refused below, by name
    except (SafetensorError, RuntimeError, ValueError, *UNREADABLE) as error:
        raise UserError(f"model {path}: the weights could not be loaded ({first_line(error)}); expected whole *.safetensors files") from error
    misshapen = [name[0] if isinstance(name, tuple) else name for name in report["mismatched_keys"]]
    refuse_tensors(
        f"model {path}", "the checkpoint does not fit its config.json",
        missing=report["missing_keys"], unknown=report["unexpected_keys"], misshapen=misshapen,
    )  # fmt: skip
    return cast(DiffusionNetwork, network)


def load_tokenizer(path: str, config: PretrainedConfig, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights. No remote code is run, and nobody is asked whether to.

    Args:
        path: as for `load_model`.
        config: of the model, as loaded: transformers would read it again, and ask on the terminal about the code that its auto_map names.
        revision: of the hub repository.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        described = json.loads(Path(cached_file(path, "tokenizer_config.json", revision=revision)).read_text(encoding="utf-8"))
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        named = described.get("extra_special_tokens")
        if isinstance(named, list):  # as transformers 5 writes them; version 4 fails on a list of that name
            options["extra_special_tokens"] = {}
        if described.get("tokenizer_class") == DreamTokenizer.__name__:
            tokenizer = DreamTokenizer.from_pretrained(path, **options)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path, config=config, **options)
        if isinstance(named, list):
            tokenizer.add_special_tokens({"additional_special_tokens": named})
        return cast(PreTrainedTokenizerBase, tokenizer)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise UserError(
            f"model {path}: the tokenizer could not be loaded ({first_line(error)}); "
            "expected tokenizer_config.json and tokenizer.json, or vocab.json and merges.txt"
        ) from error


def _spec(path: str, network: DiffusionNetwork, tokenizer: PreTrainedTokenizerBase, shifted_logits: bool) -> ModelSpec:
    config = network.config
    mask_id = config.mask_token_id if config.mask_token_id is not None else tokenizer.mask_token_id
    if not _is_id(mask_id, config.vocab_size):
        raise UserError(f"model {path}: no mask token (config.json mask_token_id={mask_id!r}, tokenizer mask_token={tokenizer.mask_token!r})")
    if tokenizer.convert_ids_to_tokens(mask_id) is None:
        raise UserError(f"model {path}: the tokenizer has no mask token: config.json says id {mask_id}, the tokenizer ends at {len(tokenizer) - 1}")
    stated = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    ends = [*stated] if isinstance(stated, list) else [stated]
    if not ends or not all(_is_id(end, config.vocab_size) for end in ends):
        raise UserError(f"model {path}: no end-of-text token (config.json eos_token_id={stated!r}, tokenizer eos_token={tokenizer.eos_token!r})")
    ends += [tokenizer.convert_tokens_to_ids(token) for token in END_OF_TURN_TOKENS if token in tokenizer.get_vocab()]
    return ModelSpec(
        name=shown_name(path),
        mask_id=int(mask_id),
        eot_ids=tuple(dict.fromkeys(ends)),
        pad_id=config.pad_token_id if _is_id(config.pad_token_id, config.vocab_size) else ends[0],  # any token does: padding is never seen
        vocab_size=int(config.vocab_size),
        max_length=int(config.max_position_embeddings),
        shifted_logits=shifted_logits,
        fingerprint=fingerprint(network),
        vocabulary=tokenizer.get_vocab(),
    )


def _is_id(value: Any, vocab_size: int) -> bool:
    return type(value) is int and 0 <= value < vocab_size


def fingerprint(network: DiffusionNetwork) -> str:
    """16 hex digits of the configuration and of the first values of every tensor: quick at 8B, and any training changes it."""
    digest = hashlib.sha256(json.dumps({key: str(value) for key, value in sorted(vars(network.config).items()) if key in _FINGERPRINTED}).encode())
    for name, tensor in network.state_dict().items():
        head = tensor.detach().flatten()[:64].float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + head.numpy().tobytes())
    return digest.hexdigest()[:16]


_FINGERPRINTED = {
    *("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "vocab_size", "rope_theta", "rms_norm_eps", "mask_token_id"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "eos_token_id"),
}
