"""Loading of dLLMs from a hub name or a folder. The embedded model and LLaDA-8B are loaded by the same code."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from learn2pd.arguments import checked
from learn2pd.errors import UserError
from learn2pd.models import identity, weights
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.dream import DreamTokenizer
from learn2pd.models.files import (
    check_file,
    check_folder,
    local_folder,
    path_text,
    read_object,
    refuse_adapter,
    shown_name,
)
from learn2pd.models.neighbours import cause, told_in_one_line
from learn2pd.models.network import DiffusionNetwork
from learn2pd.models.prompts import prompt_ids, text_ids
from learn2pd.models.quantisation import check_quantization, quantise
from learn2pd.models.spreading import connect, devices_of_tensors
from learn2pd.registry import FAMILIES, family_target, import_family
from learn2pd.types import ModelSpec

# LLaDA and Dream end an answer with one of these and pad with end-of-text; either token ends the answer
END_OF_TURN_TOKENS = ("<|eot_id|>", "<|im_end|>")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# fields of config.json that are ignored: no remote code is run, and the caller decides on the type of the weights
NOT_READ = ("auto_map", "dtype", "torch_dtype")
# The families' defaults of these fields are ids of the published models, which mean something else in another
# vocabulary.
IDS = ("mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
# Fields of config.json by which transformers, MLX and older tools say that weights are quantised.
QUANTISATION = ("quantization_config", "quantization", "quant_config", "compression_config", "quantize_config")
EXPERTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "n_experts",
    "num_experts_per_tok",
    "moe_num_experts",
)
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
)


@dataclass(frozen=True, repr=False)
class Model:
    """A loaded dLLM.

    Attributes:
        adapter: The network and its specification, as the loop uses them.
        tokenizer: The tokenizer, which the loop does not know. None for a network that is given token ids alone.
    """

    adapter: ModelAdapter
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def spec(self) -> ModelSpec:
        """The facts about the model that the loop needs."""
        return self.adapter.spec

    def __repr__(self) -> str:
        kind = str(self.adapter.network.dtype).removeprefix("torch.")
        return f"Model({self.spec.name!r}, {kind} on {self.adapter.device})"

    def encode(self, prompt: object) -> list[int]:
        """Return the token ids of one prompt.

        Args:
            prompt: A text, which becomes a user's turn where the tokenizer has a chat template; chat messages, a list
                of `{"role": ..., "content": ...}` of which the last one is the user's; or token ids, which are taken as
                they are. Control tokens that a text or a message spells out, such as `<|endoftext|>`, stay text.

        Raises:
            UserError: It is of another type, it is empty, an id is outside the vocabulary, or the chat template fails.
        """
        ids = prompt_ids(self.tokenizer, prompt, (self.spec.mask_id, *self.spec.eot_ids))
        wrong = next((token for token in ids if not 0 <= token < self.spec.vocab_size), None)
        if wrong is not None:
            raise UserError(f"token id {wrong}, {self.spec.name} has ids 0 to {self.spec.vocab_size - 1}")
        return ids

    def encode_text(self, text: str, subject: str) -> list[int]:
        """Return the token ids of a part of an answer: no chat template and no token at the beginning is added.

        Args:
            text: The text. Control tokens that it spells out stay text.
            subject: The words for the text in messages.

        Raises:
            UserError: The text is empty or cannot be encoded.
        """
        return text_ids(self.tokenizer, text, subject, (self.spec.mask_id, *self.spec.eot_ids))

    def text(self, ids: Any) -> str:
        """Return the text of an answer, empty for a model without a tokenizer.

        Args:
            ids: The token ids before the end-of-text, as a list or an array of one dimension.
        """
        return "" if self.tokenizer is None else str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def token_text(self, token: int) -> str:
        """Return the text of a token, control tokens included; empty for a model without a tokenizer."""
        return "" if self.tokenizer is None else str(self.tokenizer.decode([token]))


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn the name of a device into a device.

    Args:
        device: `auto` takes the GPU of a machine that has one, and the CPU otherwise. Other names are torch's.

    Returns:
        The device.

    Raises:
        UserError: The machine lacks the device.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(device, str | torch.device):
        raise UserError(
            f"device={device!r} is of type {type(device).__name__}: expected auto, cpu, cuda or a torch.device"
        )
    try:
        torch.empty(1, device=device).tolist()  # not on `meta`, which holds no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={str(device)!r} is not usable here ({cause(error)}): use auto, cpu or cuda") from error
    return torch.device(device)


def resolve_devices(device: str | torch.device) -> list[torch.device]:
    """Turn the name of one device, or the names of several, into devices.

    Args:
        device: As for `resolve_device`, or several names with commas between them.

    Returns:
        The devices, of which several differ.

    Raises:
        UserError: The machine lacks a device, or one is named twice.
    """
    if not isinstance(device, str) or "," not in device:
        return [resolve_device(device)]
    names = [name.strip() for name in device.split(",")]
    for name in names:
        if name == "auto" or names.count(name) > 1:
            raise UserError(
                f"device={device!r}: expected one device, or different devices with commas between them, "
                "such as cuda:0,cuda:1"
            )
    return [resolve_device(name) for name in names]


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Turn the name of a type of weights into the type.

    Args:
        dtype: A name in `DTYPES`, or one of these types.

    Returns:
        The type.

    Raises:
        UserError: The type is not one of `DTYPES`.
    """
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    raise UserError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}, as a name or as torch.float32 and so on")


@checked(but=("path", "dtype", "device", "revision", "adapter", "quantization"))
def load_model(
    path: str | os.PathLike[str],
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "auto",
    revision: str | None = None,
    compile: bool = False,
    adapter: str | os.PathLike[str] | None = None,
    family: str | None = None,
    quantization: str | None = None,
) -> Model:
    """Load weights, configuration and tokenizer. No remote code is run.

    The first load of a checkpoint reads every byte of its weights into the fingerprint; see identity.py for what this
    costs.

    Args:
        path: A hub name such as `GSAI-ML/LLaDA-8B-Instruct`, or a folder in the hub's layout. A hub name is downloaded
            once; where the hub does not answer within seconds, its local cache is used.
        dtype: `float32`, `bfloat16` or `float16`, or the same as a torch.dtype.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...; or several, as in `cuda:0,cuda:1`, which share the layers of a
            model that is too large for one.
        revision: The revision of the hub repository.
        compile: Let torch.compile fuse the layers; the first forwards of every new shape take much longer. It needs
            all layers on one device.
        adapter: A hub name or folder of a peft adapter of this dLLM, which is added into the weights.
        family: A class of your own that reads the checkpoint, as `package.module:Class`; see docs/adding_a_family.md.
            The default takes the family that config.json names.
        quantization: `int8` or `nf4` hold the matrices of the layers in 8 or 4 bits. A quantised model has a
            fingerprint of its own.

    Raises:
        UserError: The folder is missing or is not a dLLM, weights are damaged or do not fit, there is no mask token,
            the adapter is of another dLLM. The line starts with the name of the argument that is wrong.
    """
    path = path_text("path", path)
    if adapter is not None:
        adapter = path_text("adapter", adapter)
    if revision is not None and (not isinstance(revision, str) or not revision.strip()):
        raise UserError(f"revision={revision!r}: expected a branch, tag or commit of the hub repository, or None")
    kind = resolve_dtype(dtype)
    devices = resolve_devices(device)
    if compile and len(devices) > 1:
        raise UserError(f"compile=true: the layers are on several devices, device={device!r}; name one device")
    check_quantization(quantization)
    network_class, config = _network_and_config(path, revision, family)
    places = devices if quantization is None else [torch.device("cpu")]
    network, digest = _load_weights(path, network_class, config, kind, places, revision)
    tokenizer = load_tokenizer(path, network.config, revision)
    spec = _spec(path, network, tokenizer, digest)
    if adapter is not None:
        from learn2pd.models.merging import merge_adapter

        network, of_adapter = merge_adapter(network, adapter, path)
        # the fingerprint is made of base and adapter, and not of their sum, which every device rounds differently
        both = hashlib.sha256(f"{spec.fingerprint}{of_adapter}".encode()).hexdigest()[: identity.DIGITS]
        spec = replace(spec, name=f"{spec.name}+{shown_name(adapter)}", fingerprint=both)
    if quantization is None:
        network.join_experts()
    else:
        quantise(network, quantization, devices)
        own = hashlib.sha256(f"{spec.fingerprint}{quantization}".encode()).hexdigest()[: identity.DIGITS]
        spec = replace(spec, name=f"{spec.name}+{quantization}", fingerprint=own)
    if len(devices) > 1:
        connect(network)
    return Model(ModelAdapter(network, spec, compile), tokenizer)


def network_of(fields: Mapping[str, Any], family: str | None = None) -> type[DiffusionNetwork]:
    """Return the class of the network that reads a checkpoint.

    Args:
        fields: The fields of its config.json.
        family: A class of the user's own, as `package.module:Class`; None takes the family that config.json names.

    Raises:
        UserError: The class cannot be imported or is no network, or config.json names no family known here.
    """
    target = family or family_target(fields)
    if target is None:
        raise UserError(
            f"config.json says model_type {fields.get('model_type')!r}, which is no dLLM known here; "
            f"expected {', '.join(FAMILIES)}, or a class of your own as family=package.module:Class"
        )
    network = import_family(target)
    if not (inspect.isclass(network) and issubclass(network, DiffusionNetwork) and network.config_class):
        raise UserError(
            f"family={target!r}: it is no network; derive it from learn2pd.models.network.DiffusionNetwork "
            "and give it a config_class, see docs/adding_a_family.md"
        )
    return network


def _network_and_config(
    path: str, revision: str | None, family: str | None
) -> tuple[type[DiffusionNetwork], PretrainedConfig]:
    fields = read_config(path, revision, family)
    network_class = network_of(fields, family)
    with told_in_one_line(f"path={path!r}"):  # what transformers' own checks of the fields raise is of many kinds
        described = dict.fromkeys(IDS) | {name: value for name, value in fields.items() if name not in NOT_READ}
        return network_class, network_class.config_class.from_dict(described)


def read_skeleton(
    path: str | os.PathLike[str], dtype: torch.dtype, revision: str | None = None, family: str | None = None
) -> DiffusionNetwork:
    """Build the network of a checkpoint without values, on the device `meta`, from its config.json alone.

    Args:
        path: A folder or a hub name.
        dtype: The type in which the weights would be loaded.
        revision: The revision of the hub repository.
        family: A class of the user's own, as for `load_model`.

    Raises:
        UserError: As for `read_config`.
    """
    path = path_text("path", path)
    network_class, config = _network_and_config(path, revision, family)
    with told_in_one_line(f"path={path!r}"), torch.device("meta"):
        return network_class(config).to(dtype).eval()


def read_config(path: str | os.PathLike[str], revision: str | None = None, family: str | None = None) -> dict[str, Any]:
    """Read the fields of config.json, and refuse a checkpoint that this toolkit cannot run.

    Args:
        path: A folder or a hub name.
        revision: The revision of the hub repository.
        family: As for `load_model`.

    Returns:
        The fields by name.

    Raises:
        UserError: The checkpoint is missing, is not a dLLM known here, is a mixture of experts of a family that has
            none, or is quantised.
    """
    path = path_text("path", path)
    known = ", ".join(FAMILIES)
    check_folder("path", path, f"config.json (model_type {known}), *.safetensors and tokenizer.json")
    refuse_adapter("path", path, revision)
    fields = read_object("path", path, "config.json", f"one with model_type {known}", revision)
    experts = _experts(fields)
    if experts and not ((family or family_target(fields)) and network_of(fields, family).mixes_experts):
        raise UserError(
            f"path={path!r}: config.json describes a mixture of experts ({experts}), which is not implemented for "
            f"model_type {fields.get('model_type')!r}; expected {known}"
        )
    try:
        network_of(fields, family)
    except UserError as error:
        raise UserError(f"path={path!r}: {error}") from error
    for name in QUANTISATION:
        settings = fields.pop(name, None)
        if settings is not None:
            raise UserError(
                f"path={path!r}: config.json has a {name}{_tool(settings)}; "
                "quantised weights are not read, expected the plain checkpoint, "
                "which quantization=int8 or nf4 quantises while it is loaded"
            )
    return fields


def _tool(settings: Any) -> str:
    """Return the tool that quantised the weights, as far as the settings name it."""
    if not isinstance(settings, dict):
        return ""
    if isinstance(settings.get("quant_method"), str):
        return f" of {settings['quant_method']}"
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return " of bitsandbytes"
    return " of MLX" if {"bits", "group_size"} <= settings.keys() else ""


def _experts(fields: dict[str, Any]) -> str:
    """Return the fields by which a configuration says that it is a mixture of experts; empty where it is none."""
    told = [f"{name}={fields[name]}" for name in EXPERTS if type(fields.get(name)) is int and fields[name] > 1]
    classes = fields.get("architectures")
    named = (
        [name for name in classes if isinstance(name, str) and "moe" in name.lower()]
        if isinstance(classes, list)
        else []
    )
    if "moe" in str(fields.get("model_type")).lower():
        named.append(f"model_type {fields['model_type']}")
    return ", ".join([*named, *told])


def _load_weights(
    path: str,
    network_class: type[DiffusionNetwork],
    config: PretrainedConfig,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    revision: str | None,
) -> tuple[DiffusionNetwork, str]:
    """Return the network on its devices, and the digest of its weights.

    Raises:
        UserError: A file of weights is missing or damaged, or a tensor does not fit; the message names it.
    """
    subject = f"path={path!r}"
    folder = local_folder("path", path, revision)
    if not Path(path).is_dir():
        folder = local_folder("path", path, revision, weights.files_to_fetch(subject, folder))
    tensors, files = weights.find_tensors(subject, folder)
    config._name_or_path = path
    with told_in_one_line(subject), torch.device("meta"):
        network = network_class(config)
    tensors = _without_tied_head(subject, tensors, network)
    fitting = weights.fit(subject, tensors, network.state_dict())
    kept = identity.KeptDigest(files, dtype)
    known = kept.read()
    digest = identity.WeightsDigest()
    places = devices_of_tensors(network, devices)
    state = weights.read(subject, fitting, dtype, places, digest.add if known is None else None)
    network.load_state_dict(state, assign=True)
    network.config.dtype = dtype
    if known is None:
        known = digest.hexdigest()
        kept.write(known)
    elif not kept.unchanged:  # somebody writes to the files at this moment
        known = identity.weights_digest(state)
    return network.eval(), known


def _without_tied_head(
    subject: str, tensors: dict[str, weights.Stored], network: DiffusionNetwork
) -> dict[str, weights.Stored]:
    """Leave out a head that was saved though it is the embedding. A head of other values stays, and is refused."""
    embedding = network.get_input_embeddings()
    if network.head_name not in tensors or network.get_output_embeddings() is not embedding:
        return tensors
    name = next(name for name, weight in network.named_parameters() if weight is embedding.weight)
    if name not in tensors:
        return tensors
    pair = {key: tensors[key] for key in (name, network.head_name)}
    values = weights.read(subject, pair, torch.float32, dict.fromkeys(pair, torch.device("cpu")))
    if not values[name].equal(values[network.head_name]):
        return tensors
    return {key: stored for key, stored in tensors.items() if key != network.head_name}


def load_tokenizer(
    path: str | os.PathLike[str], config: PretrainedConfig, revision: str | None = None, key: str = "path"
) -> PreTrainedTokenizerBase:
    """Return the tokenizer beside the weights. No remote code is run, and nobody is asked whether to.

    What it decodes is not altered: `clean_up_tokenization_spaces` is off whatever the files say, since it removes
    spaces before punctuation, which programs and formulas need. `split_special_tokens` is off too, since with it a chat
    template's control tokens would be text.

    Args:
        path: A folder or a hub name, as for `load_model`.
        config: The loaded configuration. transformers would read it again, and ask on the terminal about the code that
            its auto_map names.
        revision: The revision of the hub repository.
        key: The argument's name, for messages.

    Raises:
        UserError: There is none, or it is damaged.
    """
    path = path_text(key, path)
    folder = local_folder(key, path, revision)
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            check_file(f"{key}={path!r}: the tokenizer could not be loaded", folder / name)
    with told_in_one_line(
        f"{key}={path!r}: the tokenizer could not be loaded",
        "expected tokenizer_config.json and tokenizer.json, or vocab.json and merges.txt",
    ):
        described = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        options: dict[str, Any] = {"trust_remote_code": False}
        named = described.get("extra_special_tokens")
        if isinstance(named, list):  # as transformers 5 writes them; version 4 fails on a list of that name
            options["extra_special_tokens"] = {}
        if described.get("tokenizer_class") == DreamTokenizer.__name__:
            tokenizer = DreamTokenizer.from_pretrained(folder, **options)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, config=config, **options)
        if isinstance(named, list):
            tokenizer.add_special_tokens({"additional_special_tokens": named})
        tokenizer.clean_up_tokenization_spaces = False
        tokenizer.split_special_tokens = False
        return cast(PreTrainedTokenizerBase, tokenizer)


def _spec(path: str, network: DiffusionNetwork, tokenizer: PreTrainedTokenizerBase, digest: str) -> ModelSpec:
    config = network.config
    named = tokenizer.special_tokens_map
    mask_id = config.mask_token_id
    if mask_id is None and "mask_token" in named:
        mask_id = tokenizer.convert_tokens_to_ids(named["mask_token"])
    if mask_id is None:  # the hub's files of LLaDA2 and Fast-dLLM v2 do not name it
        published = type(config)().mask_token_id
        known = published is not None and published < len(tokenizer)
        named_mask = known and "mask" in str(tokenizer.convert_ids_to_tokens(published)).lower()
        mask_id = published if named_mask else None
    if mask_id is None:
        raise UserError(
            f"path={path!r}: no mask token: config.json names no mask_token_id, and the tokenizer has no mask_token"
        )
    if not _is_id(mask_id, config.vocab_size):
        raise UserError(
            f"path={path!r}: no mask token: {_stated(config.mask_token_id, 'mask', mask_id)}, expected {_range(config)}"
        )
    if tokenizer.convert_ids_to_tokens(mask_id) is None:
        last = len(tokenizer) - 1
        raise UserError(
            f"path={path!r}: the tokenizer has no mask token: config.json says id {mask_id}, "
            f"the tokenizer ends at {last}"
        )
    config.mask_token_id = mask_id
    stated = config.eos_token_id
    if stated is None and "eos_token" in named:
        stated = tokenizer.convert_tokens_to_ids(named["eos_token"])
    if stated is None:
        raise UserError(
            f"path={path!r}: no end-of-text token: config.json names no eos_token_id, "
            "and the tokenizer has no eos_token"
        )
    ends = [*stated] if isinstance(stated, list) else [stated]
    if not ends or not all(_is_id(end, config.vocab_size) for end in ends):
        raise UserError(
            f"path={path!r}: no end-of-text token: {_stated(config.eos_token_id, 'eos', stated)}, "
            f"expected {_range(config)}"
        )
    ends += [tokenizer.convert_tokens_to_ids(token) for token in END_OF_TURN_TOKENS if token in tokenizer.get_vocab()]
    return ModelSpec(
        name=shown_name(path),
        mask_id=int(mask_id),
        eot_ids=tuple(dict.fromkeys(ends)),
        # any token can serve as padding, since no query sees it
        pad_id=config.pad_token_id if _is_id(config.pad_token_id, config.vocab_size) else ends[0],
        vocab_size=int(config.vocab_size),
        max_length=int(config.max_position_embeddings),
        shifted_logits=network.shifted_logits,
        causal_block=network.causal_block,
        fingerprint=identity.fingerprint(config, digest),
        vocabulary=tokenizer.get_vocab(),
        special_tokens=tuple(tokenizer.all_special_tokens),
        text_of=functools.partial(tokenizer.decode, skip_special_tokens=True),
    )


def _stated(in_config: Any, name: str, value: Any) -> str:
    """Say which file states the id of a token."""
    return (
        f"the tokenizer's {name}_token has the id {value!r}"
        if in_config is None
        else f"config.json says {name}_token_id={value!r}"
    )


def _range(config: PretrainedConfig) -> str:
    return f"an id from 0 to {config.vocab_size - 1}"


def _is_id(value: Any, vocab_size: int) -> bool:
    return type(value) is int and 0 <= value < vocab_size


def fingerprint(network: DiffusionNetwork) -> str:
    """Return the identity of a network in memory. It equals `ModelSpec.fingerprint` of a freshly loaded network."""
    return identity.fingerprint(network.config, identity.weights_digest(network.state_dict()))
