"""Fixtures every test may use: small real models and prompts of many lengths."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from learn2pd.data.tasks import problems
from learn2pd.embedded.tokenizer import MASK, train_tokenizer
from learn2pd.models.dream import DreamConfig, DreamModel
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.models.loading import Model, load_model
from learn2pd.registry import GENERATED_TASKS, build_task, import_family

torch.set_num_threads(1)

MAX_LENGTH = 512


def save_scaled(model, tokenizer, folder: Path) -> Path:
    """Scale the head so that confidences spread over 0..1 and end-of-text is proposed now and then, and save all."""
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head *= 4.0
        head[tokenizer.eos_token_id] *= 1.5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_model(folder: Path, tokenizer, n_kv_heads: int = 4) -> Path:
    """A random model in the hub's layout.

    Its head is scaled so that confidences spread over 0..1 and end-of-text is proposed now and then.
    """
    config = LLaDAConfig(
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=n_kv_heads,
        mlp_hidden_size=64,
        vocab_size=len(tokenizer),
        max_sequence_length=MAX_LENGTH,
        init_std=0.25,
        **special_ids(tokenizer),
    )
    return save_random(LLaDAModelLM, config, tokenizer, folder)


def special_ids(tokenizer) -> dict[str, int]:
    """The ids of a tokenizer that a configuration names."""
    mask_id = tokenizer.convert_tokens_to_ids(MASK)
    return {"mask_token_id": mask_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def save_random(network_class, config, tokenizer, folder: Path) -> Path:
    """Save a network whose weights are drawn from seed 0, with its head scaled."""
    torch.manual_seed(0)
    return save_scaled(network_class(config), tokenizer, folder)


@pytest.fixture(scope="session")
def tokenizer():
    drawn = (itertools.islice(problems(build_task(name), "train", 0), 100) for name in GENERATED_TASKS)
    return train_tokenizer(
        (text for stream in drawn for p in stream for text in (p.prompt, p.answer)),
        vocab_size=400,
        max_length=MAX_LENGTH,
    )


@pytest.fixture(scope="session")
def tiny_model_folder(tokenizer, tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny_model"), tokenizer)


def load_wide(folder: Path) -> Model:
    """The tiny model in float64.

    A batch rounds otherwise than its rows alone do, in a way that depends on the processor, and no test may hang on
    such a tie.
    """
    model = load_model(str(folder), device="cpu")
    model.adapter.network.double()
    return model


@pytest.fixture(scope="session")
def tiny_model(tiny_model_folder) -> Model:
    return load_wide(tiny_model_folder)


@pytest.fixture(scope="session")
def tiny_model_grouped(tokenizer, tmp_path_factory) -> Model:
    """Two key-value heads for four query heads."""
    return load_wide(save_tiny_model(tmp_path_factory.mktemp("tiny_model_grouped"), tokenizer, n_kv_heads=2))


@pytest.fixture(scope="session")
def tiny_dream(tokenizer, tmp_path_factory) -> Model:
    """Two key-value heads for four query heads, logits shifted by one."""
    config = DreamConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.25,
        bos_token_id=tokenizer.eos_token_id,
        **special_ids(tokenizer),
    )
    return load_wide(save_random(DreamModel, config, tokenizer, tmp_path_factory.mktemp("tiny_dream")))


@pytest.fixture(scope="session")
def make_prompts() -> Callable[..., list[list[int]]]:
    """Random token ids without special ones: `make_prompts([3, 17], seed=0)`."""

    def make(lengths: list[int], seed: int = 0) -> list[list[int]]:
        rng = random.Random(seed)
        return [[rng.randrange(10, 300) for _ in range(length)] for length in lengths]

    return make


def undraw_plots(monkeypatch) -> None:
    """Let plots become empty files, for tests of runs to which only their names matter; tests/end_to_end draws them."""

    def touch(*arguments, **options):
        next(argument for argument in arguments if isinstance(argument, Path)).touch()

    for name in ("plot_tradeoff", "plot_fastest", "plot_reliability", "plot_commit_steps"):
        monkeypatch.setattr(f"learn2pd.evaluation.plots.{name}", touch)
    monkeypatch.setattr("learn2pd.embedded.pretraining.plot_losses", touch)


@pytest.fixture
def undrawn_plots(monkeypatch):
    undraw_plots(monkeypatch)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
CAUSAL_BLOCK = 8  # tokens, of the tiny block-causal models
# the module and class of each further family, and the fields of its tiny configuration
TINY_FAMILIES = {
    "sdar": ("sdar:SDARForCausalLM", {"intermediate_size": 64, "head_dim": 12, "block_size": CAUSAL_BLOCK}),
    "sdar_moe": (
        "sdar:SDARMoeForCausalLM",
        {"intermediate_size": 64, "head_dim": 12, "block_size": CAUSAL_BLOCK}
        | {"moe_intermediate_size": 16, "num_experts": 6, "num_experts_per_tok": 2, "mlp_only_layers": [0]},
    ),
    "llada2": (
        "llada2:LLaDA2MoeModelLM",
        {"intermediate_size": 64, "head_dim": 8, "block_size": CAUSAL_BLOCK, "moe_intermediate_size": 16}
        | {"num_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2},
    ),
    "llada_moe": (
        "llada_moe:LLaDAMoEModelLM",
        {"dense_intermediate_size": 64, "expert_intermediate_size": 16, "num_experts": 6, "num_experts_per_tok": 2}
        | {"moe_layer_freq": [0, 1]},
    ),
    "fast_dllm_v2": ("fast_dllm_v2:Fast_dLLM_QwenForCausalLM", {"intermediate_size": 64, "bd_size": CAUSAL_BLOCK}),
}


def save_tiny_family(name: str, folder: Path, tokenizer, **changes) -> Path:
    """A random model of one of `TINY_FAMILIES` in the hub's layout; its head is scaled as in `save_tiny_model`."""
    target, fields = TINY_FAMILIES[name]
    network_class = import_family(f"learn2pd.models.{target}")
    config = network_class.config_class(
        **SIZES | fields | changes,
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.25,
        bos_token_id=tokenizer.eos_token_id,
        **special_ids(tokenizer),
    )
    return save_random(network_class, config, tokenizer, folder)


@pytest.fixture(scope="session")
def tiny_family(tokenizer, tmp_path_factory) -> Callable[[str], Model]:
    """The tiny model of a family, by its name in `TINY_FAMILIES`."""

    @functools.cache
    def load(name: str) -> Model:
        return load_wide(save_tiny_family(name, tmp_path_factory.mktemp(name), tokenizer))

    return load
