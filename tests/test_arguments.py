"""Whatever an argument of a public function is, a wrong one is refused by one line that names it."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from learn2pd import (
    AutoregressiveMethod,
    Method,
    NoCache,
    OraclePolicy,
    Sampling,
    ThresholdPolicy,
    UserError,
    decode,
    generate,
    load_apple,
    load_keep,
    load_model,
    load_policy,
    save_policy,
)
from learn2pd.decoding import _check_fixed
from tests.autoregressive.helpers import tiny_pair

IDS = [[11, 12, 13]]
ANYTHING = [
    5,
    -1,
    2.5,
    float("nan"),
    True,
    None,
    "x",
    "",
    b"x",
    [],
    ["x"],
    {},
    {"x": 1},
    {"policy": 5},
    object(),
    print,
]
ANYTHING += [ThresholdPolicy, ThresholdPolicy(), NoCache(), Method(ThresholdPolicy()), torch.zeros(1, 2), np.float64(2)]
FILTER = "checkpoints/tiny-llada-filter"
MODEL = "checkpoints/tiny-llada"
CALLS = {  # by function, arguments with which it works or says that the place holds nothing
    decode: {"prompts": IDS, "policy": "threshold", "gen_length": 2},
    generate: {"prompts": IDS, "gen_length": 2},
    Method: {"policy": ThresholdPolicy()},
    Method.from_names: {"policy": "threshold"},
    Method.from_dict: {"described": {"policy": {"name": "threshold", "options": {}}}},
    Sampling: {},
    load_apple: {"folder": "nowhere"},
    load_keep: {"folder": FILTER},
    load_model: {"path": MODEL},
    load_policy: {"folder": FILTER},
    save_policy: {"policy": None, "folder": "nowhere"},
}
TRIED = [
    (function, name)
    for function in CALLS
    for name in inspect.signature(function).parameters
    # tests/models/ tries the others; a target without a tokenizer, as here, takes token ids alone
    if (function is not load_model or name in ("compile", "family")) and (function, name) != (generate, "prompts")
]


@pytest.fixture(scope="module")
def models(tiny_model):
    return {decode: {"model": tiny_model}, generate: {"method": AutoregressiveMethod(tiny_pair()[0])}}


def refusal(function, **arguments) -> str:
    """The message with which a call is refused, empty where it is not."""
    refused = ValueError if function is Sampling else UserError
    try:
        function(**arguments)
    except refused as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("function", "name"), TRIED, ids=lambda value: getattr(value, "__name__", value))
def test_no_argument_gives_a_traceback(function, name, models):
    takes_functions = name in ("on_step", "progress")  # what a function of the caller's raises is the caller's
    for wrong in (value for value in ANYTHING if not (takes_functions and callable(value))):
        message = refusal(function, **models.get(function, {}) | CALLS[function] | {name: wrong})
        assert "\n" not in message


@pytest.mark.parametrize(
    ("function", "name"),
    [
        *((decode, name) for name in ("gen_length", "max_new_tokens", "batch_size", "seed")),
        *((generate, name) for name in ("gen_length", "batch_size", "seed")),
        (Sampling, "top_k"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_whole_numbers_are_wanted_and_those_of_numpy_are_taken(function, name, models):
    arguments = models.get(function, {}) | CALLS[function]
    if name == "max_new_tokens":
        del arguments["gen_length"]
    for wrong in ("8", 8.0, True, np.float64(8), np.True_):
        assert f"{name}={wrong!r}: expected a whole number, got" in refusal(function, **arguments | {name: wrong})
    for number in (np.int64(3), np.int32(3), np.uint8(3)):
        assert not refusal(function, **arguments | {name: number})


def test_components_take_the_numbers_of_numpy_and_are_described_by_those_of_python():
    options = {"delimiter_ids": [np.int64(3)], "block_length": np.int32(8), "delimiter_threshold": np.float32(0.5)}
    method = Method.from_names("threshold", "adablock", scheduler_options=options)
    assert method.to_dict()["scheduler"]["options"] == {
        "delimiter_ids": (3,),
        "block_length": 8,
        "delimiter_threshold": 0.5,
    }
    assert Method.from_dict(method.to_dict()).fingerprint == method.fingerprint


@pytest.mark.parametrize("policy", ["threshold", ThresholdPolicy(0.9)])
def test_a_policy_in_the_place_of_a_method_is_told_its_place(policy, tiny_model):
    with pytest.raises(UserError, match=r"expected Method, got .*; give a policy, or its name, as policy="):
        decode(tiny_model, IDS, policy)


@pytest.mark.parametrize("role", ["policy", "scheduler", "cache", "stop"])
def test_a_component_of_another_role_and_a_class_are_refused(role, tiny_model):
    other = ThresholdPolicy() if role == "cache" else NoCache()
    for call in (lambda **part: decode(tiny_model, IDS, **{"policy": "fixed"} | part), Method):
        arguments = {"policy": ThresholdPolicy()} | {role: other}
        assert f"{role}={other!r}: expected" in refusal(call, **arguments)
        assert f"; build it first, as {type(other).__name__}(...) does" in refusal(
            call, **arguments | {role: type(other)}
        )


@pytest.mark.parametrize(
    "described",
    [
        {},
        {"polcy": {"name": "threshold", "options": {}}},
        {"cache": {"name": "none", "options": {}}},
        *({"policy": part} for part in (5, {}, {"name": "threshold"}, {"options": {}})),
        *({"policy": {"name": name, "options": {}}} for name in (5, None, ["threshold"])),
        *({"policy": {"name": "threshold", "options": options}} for options in (5, None, ["threshold"])),
    ],
)
def test_a_description_that_makes_no_method_is_one_line(described):
    assert "policy" in refusal(Method.from_dict, described=described)


def test_the_oracle_needs_an_answer_for_every_prompt(tiny_model):
    method = Method(OraclePolicy(torch.zeros(1, 4, dtype=torch.long)))
    assert "it has 1 answers, and none for prompt 1" in refusal(
        decode, model=tiny_model, prompts=IDS * 2, method=method, gen_length=4
    )


def test_the_mask_alone_stands_nowhere(tiny_model):
    mask_id = tiny_model.spec.mask_id
    nothing = torch.full((2, 4), -1)
    alone = nothing.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(mask_id))
    words = f"holds the mask token {mask_id} alone at position 2 of prompt 1"
    for name, values in (
        ("given", alone),
        ("allowed", alone[..., None]),
        ("allowed", torch.stack((alone, nothing), 2)),
    ):
        with pytest.raises(UserError, match=f"{name} {words}"):
            decode(tiny_model, IDS * 2, policy="threshold", gen_length=4, **{name: values})
    beside = torch.stack((alone, torch.full((2, 4), 7)), 2)
    _check_fixed(tiny_model, 2, 4, nothing, beside)
    _check_fixed(tiny_model, 0, 4, nothing[:0], beside[:0])
