"""The plugin for SGLang, in the loops of SGLang's own wheel; see sglang_wheel.py."""

from __future__ import annotations

import sys
import tomllib
import types
from pathlib import Path

import pytest
import torch
import yaml

from learn2pd import BlocksScheduler, NoStop, UserError, decode, export_policy
from learn2pd.exporters.sglang import policy_of
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.networks import MLP, Conv
from learn2pd.predictors.saving import Contract, Predictor
from tests.exporters.sglang_wheel import VARIABLE, imported, wheel

WIDTH = 8
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def policy(tiny_model) -> FilterPolicy:
    torch.manual_seed(0)
    network = Conv(hidden=8)
    with torch.no_grad():
        network.leave.weight *= 6
    return FilterPolicy(Predictor("filter", network, 0.5, Contract.of(tiny_model.spec)))


@pytest.fixture
def exported(policy, tmp_path) -> Path:
    folder = tmp_path / "exported"
    told = export_policy("sglang", policy, folder)
    assert "--dllm-algorithm Learn2PD --dllm-algorithm-config" in told
    return folder


def test_the_exported_settings_name_the_policy(exported, policy):
    settings = yaml.safe_load((exported / "learn2pd.yaml").read_text(encoding="utf-8"))
    assert policy_of(settings).predictor.fingerprint == policy.predictor.fingerprint
    assert policy_of(settings | {"threshold": 0.25}).threshold == 0.25


@pytest.mark.parametrize(
    "name", ["mod-\N{GRINNING FACE}", "Modell für Zahlen", 'a "b": c # d', "模型", "a'b\\c", "\x7f\x85"]
)
def test_the_settings_name_a_folder_of_any_name(name, policy, tmp_path):
    export_policy("sglang", policy, tmp_path / name)
    settings = yaml.safe_load((tmp_path / name / "learn2pd.yaml").read_text(encoding="utf-8"))
    assert settings["policy"] == str(tmp_path / name)
    assert policy_of(settings).predictor.fingerprint == policy.predictor.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "names no policy: expected policy: FOLDER"),
        ({"policy": "nowhere"}, "policy='nowhere': this is no folder"),
        ({"policy": "x", "treshold": 1}, "unknown option 'treshold'; did you mean 'threshold'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        policy_of(settings)


def test_a_policy_for_blocks_behind_the_prompt_is_refused(tiny_model, tmp_path):
    contract = Contract.of(tiny_model.spec, block_length=8, alignment="prompt")
    policy = FilterPolicy(Predictor("filter", MLP(8, 4), 0.5, contract))
    with pytest.raises(UserError, match="trained for alignment 'prompt', SGLang has 'grid'"):
        export_policy("sglang", policy, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_the_plugin_is_imported_without_sglang_and_without_transformers():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = [each for each in contracts["contracts"] if "learn2pd.runtime" in each.get("source_modules", ())]
    assert "learn2pd.exporters.sglang" in contract["source_modules"]
    assert "transformers" in contract["forbidden_modules"]


needs_wheel = pytest.mark.skipif(wheel() is None, reason=f"{VARIABLE} names no folder of an unzipped wheel of SGLang")


@pytest.fixture
def algorithm(tmp_path):
    """The class as SGLang's own plugin loader makes it known, by the entry point that pyproject.toml names."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    described = tmp_path / "site" / "plugin-1.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n", encoding="utf-8")
    lines = [f"[{group}]\n" + "\n".join(f"{key} = {value}" for key, value in groups[group].items()) for group in groups]
    (described / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    sys.path.insert(0, str(described.parent))
    try:
        with imported(wheel()):
            from sglang.srt.plugins import load_plugins

            load_plugins()
            from sglang.srt.dllm.algorithm import algo_name_to_cls
            from sglang.srt.dllm.algorithm.base import DllmAlgorithm

            assert {"Learn2PD", "LowConfidence"} <= set(algo_name_to_cls)
            assert issubclass(algo_name_to_cls["Learn2PD"], DllmAlgorithm)
            yield algo_name_to_cls["Learn2PD"]
    finally:
        sys.path.remove(str(described.parent))


def config(model, folder: Path, fdfo: bool = False, **changes):
    from sglang.srt.dllm.config import DllmConfig

    settings = yaml.safe_load((folder / "learn2pd.yaml").read_text(encoding="utf-8"))
    fields = {
        "algorithm": "Learn2PD",
        "algorithm_config": settings,
        "block_size": WIDTH,
        "mask_id": model.spec.mask_id,
        "max_running_requests": 4,
        "first_done_first_out_mode": fdfo,
    }
    return DllmConfig(**fields | changes)


class Runner:
    """A model runner: the model on the sequence of prefix and block."""

    def __init__(self, model) -> None:
        self.model = model
        self.calls = 0

    @torch.no_grad()
    def forward(self, batch, pp_proxy_tensors=None):
        self.calls += 1
        blocks = batch.input_ids.view(batch.batch_size, WIDTH).tolist()
        rows = [
            self.model.adapter.network(torch.tensor([prefix + block])).logits[0, -WIDTH:]
            for prefix, block in zip(batch.prefix, blocks, strict=True)
        ]
        return types.SimpleNamespace(
            logits_output=types.SimpleNamespace(full_logits=torch.cat(rows)), can_run_graph=False
        )


def batch_of(prefixes, blocks, prompt_mask=None):
    ids = torch.tensor([token for block in blocks for token in block])
    return types.SimpleNamespace(prefix=prefixes, input_ids=ids, batch_size=len(blocks), dllm_prompt_mask=prompt_mask)


def ours(model, prompts, policy, length):
    scheduler = BlocksScheduler(WIDTH, "grid")
    return decode(model, prompts, policy=policy, scheduler=scheduler, stop=NoStop(), gen_length=length)


@needs_wheel
def test_the_synchronous_loop_writes_what_our_loop_writes(algorithm, exported, policy, tiny_model, make_prompts):
    prompts = make_prompts([16, 8])
    wanted = ours(tiny_model, prompts, policy, WIDTH)
    runner = Runner(tiny_model)
    masks = [[tiny_model.spec.mask_id] * WIDTH for _ in prompts]
    _, tokens, *_ = algorithm(config(tiny_model, exported)).run(runner, batch_of(prompts, masks))
    assert [row.tolist() for row in tokens] == wanted.tokens.tolist()
    assert runner.calls == int(wanted.forwards.max()) + 1  # one more, which keeps the final keys and values


@needs_wheel
def test_requests_that_join_and_leave_get_what_our_loop_writes(algorithm, exported, policy, tiny_model, make_prompts):
    prompts = make_prompts([16, 8, 24])
    wanted = ours(tiny_model, prompts, policy, WIDTH)
    made = algorithm(config(tiny_model, exported, fdfo=True))
    runner = Runner(tiny_model)
    waiting = [0, 1, 2]
    running: dict[int, tuple] = {}
    finished = {}
    forwards = dict.fromkeys(waiting, 0)
    while len(finished) < len(prompts):
        if waiting:  # one request joins in each round
            running[waiting.pop(0)] = ([tiny_model.spec.mask_id] * WIDTH, None)
        order = sorted(running, reverse=True)
        batch = batch_of([prompts[number] for number in order], [running[number][0] for number in order])
        _, ids, accepted, states, _ = made.run(runner, batch, [running[number][1] for number in order])
        for number, row, accept, state in zip(order, ids, accepted, states, strict=True):
            forwards[number] += 1
            if accept:
                finished[number] = row
                del running[number]
            else:
                running[number] = (row, state)
    assert [finished[number] for number in range(3)] == wanted.tokens.tolist()
    assert [forwards[number] for number in range(3)] == (wanted.forwards + 1).tolist()


@needs_wheel
@pytest.mark.parametrize("with_mask", [True, False])
def test_the_end_of_a_prompt_in_the_block_stays(with_mask, algorithm, exported, policy, tiny_model, make_prompts):
    (prompt,) = make_prompts([WIDTH + 3])
    mask = tiny_model.spec.mask_id
    if with_mask:
        prompt[WIDTH + 1] = mask  # the prompt holds the literal mask token
    wanted = ours(tiny_model, [prompt], policy, WIDTH - 3)
    given = torch.tensor([[True] * 3 + [False] * (WIDTH - 3)]) if with_mask else None
    block = prompt[WIDTH:] + [mask] * (WIDTH - 3)
    batch = batch_of([prompt[:WIDTH]], [block], given)
    _, tokens, *_ = algorithm(config(tiny_model, exported)).run(Runner(tiny_model), batch)
    assert tokens[0].tolist() == wanted.tokens[0].tolist()
    assert batch.input_ids[:3].tolist() == prompt[WIDTH:]


@needs_wheel
def test_a_block_of_prompt_alone_is_only_encoded(algorithm, exported, tiny_model, make_prompts):
    (prompt,) = make_prompts([WIDTH])
    runner = Runner(tiny_model)
    for fdfo in (False, True):
        algorithm(config(tiny_model, exported, fdfo=fdfo)).run(runner, batch_of([[5]], [prompt]))
    assert runner.calls == 2


@needs_wheel
def test_another_model_and_requests_that_draw_are_refused(algorithm, exported, tiny_model, tmp_path):
    with pytest.raises(UserError, match=r"trained for mask id \d+, SGLang has 156895"):
        algorithm(config(tiny_model, exported, mask_id=156895))
    narrow = torch.zeros(WIDTH, 300)
    made = algorithm(config(tiny_model, exported))
    batch = batch_of([[5]], [[tiny_model.spec.mask_id] * WIDTH])
    with pytest.raises(UserError, match="a vocabulary of 400 tokens, SGLang gives 300 logits"):
        made.step(batch, narrow, made.init_step_state(batch))
    for top_k, refused in ((1, False), (-1, True), (5, True)):
        request = types.SimpleNamespace(sampling_params=types.SimpleNamespace(top_k=top_k))
        assert bool(algorithm.validate_request(request)) == refused
