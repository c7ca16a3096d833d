"""Whatever an argument of a public function is, a wrong one is refused by one line that names it."""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, NewType, Protocol, TypedDict

import numpy as np
import pytest
import torch

from learn2pd import (
    AutoregressiveMethod,
    Method,
    NoCache,
    OraclePolicy,
    PearlMethod,
    Policy,
    Sampling,
    SpeculativeMethod,
    ThresholdPolicy,
    UserError,
    Verifier,
    Window,
    block_step,
    decode,
    export_policy,
    generate,
    load_apple,
    load_causal_model,
    load_keep,
    load_model,
    load_policy,
    load_verifier,
    pull_prompts,
    push_prompts,
    save_policy,
    start_block,
)
from learn2pd.decoding import _check_fixed
from learn2pd.files import shipped_folder
from learn2pd.kinds import matches, type_name
from learn2pd.loop.block import check_block_policy
from learn2pd.policies.oracle import GuidedPolicy
from learn2pd.predictors.accepting import Acceptance
from learn2pd.registry import COMPONENTS, build
from learn2pd.runtime import check_model, read_policy
from tests.autoregressive.helpers import tiny_pair
from tests.contract.helpers import random_apple, random_predictor, tiny_verifier

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
BLOCK = {"tokens": torch.zeros(1, 2, dtype=torch.long), "masked": torch.ones(1, 2, dtype=torch.bool), "mask_id": 1}
CALLS = {  # by function, arguments with which it works or says that the place holds nothing
    decode: {"prompts": IDS, "policy": "threshold", "gen_length": 2},
    generate: {"prompts": IDS, "gen_length": 2},
    Method: {"policy": ThresholdPolicy()},
    Method.from_names: {"policy": "threshold"},
    Method.from_dict: {"described": {"policy": {"name": "threshold", "options": {}}}},
    Sampling: {},
    block_step: {"policy": ThresholdPolicy(), "logits": torch.zeros(1, 2, 4)}
    | {"window": Window(torch.tensor([0]), torch.tensor([2]))}
    | BLOCK,
    check_block_policy: {"policy": ThresholdPolicy()},
    check_model: {"policy": ThresholdPolicy(), "engine": "the engine"},
    export_policy: {"to": "sglang", "policy": "nowhere/at/all", "output_dir": "nowhere"},
    load_apple: {"folder": "nowhere"},
    load_causal_model: {"path": "nowhere/at/all"},
    load_keep: {"folder": FILTER},
    load_model: {"path": MODEL},
    load_policy: {"folder": FILTER},
    load_verifier: {"path": "nowhere/at/all"},
    read_policy: {"folder": FILTER},
    save_policy: {"policy": None, "folder": "nowhere"},
    start_block: {"policy": ThresholdPolicy(), "vocab_size": 4} | BLOCK,
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


def component_class(target: str) -> type:
    """The class of a registered name, which names a class or the function that builds one."""
    module, _, attribute = target.partition(":")
    made = getattr(importlib.import_module(module), attribute)
    return made if inspect.isclass(made) else inspect.signature(made, eval_str=True).return_annotation


REGISTERED = {component_class(target) for table in COMPONENTS.values() for target in table.values()}
CLASSES = sorted({*REGISTERED, Acceptance, GuidedPolicy}, key=lambda kind: kind.__name__)
KINDS = {"LearnedStop": "end_of_text", "LearnedAdaBlockScheduler": "boundary"}
WRONG = (True, 2.5, 8, "x", b"x", None, [1.5], {}, object(), print, ThresholdPolicy, torch.zeros(1, 2), NoCache())
TAKEN = {float: (int, float)}  # every other type takes its own values
FUNCTIONS = ("StillRight", "Labelled")  # what can be called is a function to them


def needed(kind: type) -> dict[str, object]:
    """Values for the parameters of a component that have no default."""
    values = {
        "delimiter_ids": [3],
        "keeper": random_predictor("keep"),
        "labelled": None,
        "network": random_apple(),
        "policy": ThresholdPolicy(),
        "predictor": random_predictor(KINDS.get(kind.__name__, "filter"), "conv"),
        "reference": torch.zeros(1, 4, dtype=torch.long),
        "still_right": None,
        "strings": "x",
        "verifier": tiny_verifier(),
    }
    parameters = inspect.signature(kind).parameters.values()
    return {each.name: values[each.name] for each in parameters if each.default is each.empty}


def is_wrong(value: object, kind: Any) -> bool:
    """Whether a value of `WRONG` is of another type than an annotation, without asking the package."""
    united = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if any(getattr(each, "__name__", "") in FUNCTIONS for each in united) and callable(value):
        return False
    return type(value) not in [one for each in united for one in TAKEN.get(each, (each,))]


PARAMETERS = [(kind, name) for kind in CLASSES for name in inspect.signature(kind).parameters]


@pytest.mark.parametrize(("kind", "name"), PARAMETERS, ids=lambda value: getattr(value, "__name__", value))
def test_a_component_refuses_every_argument_of_another_type(kind, name):
    annotated = typing.get_type_hints(kind.__init__)[name]
    wrong = [value for value in WRONG if is_wrong(value, annotated)]
    assert len(wrong) >= 8
    for value in wrong:
        message = refusal(kind, **needed(kind) | {name: value})
        assert message.startswith(f"{name}="), (value, message)
        assert ": expected " in message
        assert "\n" not in message


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_component_takes_its_own_options(kind):
    component = kind(**needed(kind))
    assert kind(**needed(kind) | component.options()).fingerprint == component.fingerprint


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, table in COMPONENTS.items() for name in table])
def test_the_registry_refuses_every_option_of_another_type(role, name):
    module, _, attribute = COMPONENTS[role][name].partition(":")
    for option in inspect.signature(getattr(importlib.import_module(module), attribute)).parameters:
        for value in (object(), b"x", {"a": 1}):
            with pytest.raises(UserError) as error:
                build(role, name, {option: value}, {})
            assert f"{option}=" in str(error.value)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [AutoregressiveMethod, SpeculativeMethod, PearlMethod, Verifier])
def test_a_method_with_other_models_refuses_every_argument_of_another_type(kind):
    target, draft = tiny_pair()
    models = {"target": target, "draft": draft, "network": target.network}
    parameters = inspect.signature(kind).parameters
    fitting = {name: model for name, model in models.items() if name in parameters}
    kind(**fitting)
    for name in parameters.keys() - {"network"}:
        for value in (5.5, b"x", [], {}, ThresholdPolicy()):
            assert refusal(kind, **fitting | {name: value}).startswith(f"{name}=")


def test_a_component_of_a_users_own_is_checked_as_far_as_its_types_exist():
    class Mine(Policy):
        name = "mine"

        def __init__(self, share: float, steps: int = 3) -> None:
            self.share = share
            self.steps = steps

    class Untyped(Mine):
        def __init__(self, share, other: OnlyForTheTypeChecker = None):  # noqa: F821
            super().__init__(share)
            self.other = other

    assert Mine(1, np.int64(4)).steps == 4
    assert refusal(Mine, share="x") == "share='x': expected a number, got str"
    assert refusal(Mine, share=0.5, steps=2.5) == "steps=2.5: expected a whole number, got float"
    assert Untyped(0.5, 7).other == 7
    assert refusal(Untyped, share="x") == "share='x': expected a number, got str"


class Shaped(Protocol):
    def shape(self) -> int: ...


class Named(TypedDict):
    name: str


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        ((1, "x"), tuple[int, str], True),
        (("x", 1), tuple[int, str], False),
        ((1,), tuple[int, str], False),
        ((1, 2, 3), tuple[int, ...], True),
        ((1, "x"), tuple[int, ...], False),
        ([1, "x"], typing.List, True),  # noqa: UP006
        (5, typing.List, False),  # noqa: UP006
        ([1], Sequence[int], True),
        ({1}, set[int], True),
        ([1], set[int], False),
        (print, Callable[[int], int], True),
        (5, Callable[[int], int], False),
        ("x", Literal["x", 1], True),
        ("y", Literal["x", 1], False),
        (5, Shaped, True),  # nothing can be asked of these kinds
        (5, Named, True),
        (5, NewType("Number", str), True),
        (range(3), Sequence[int], True),
        ("abc", Sequence[str], False),
        (b"abc", Sequence[int], False),
    ],
)
def test_kinds_of_annotations(value, kind, fits):
    assert matches(value, kind) is fits
    assert type_name(kind)


def test_an_exporter_checks_its_options(tmp_path):
    pytest.importorskip("diffusers")
    folder = shipped_folder("checkpoints") / "tiny-llada-filter"
    for wrong in ("x", 2.5, True, [], 0, -1):
        given = {"to": "diffusers", "policy": folder, "output_dir": tmp_path / "exported", "block_length": wrong}
        assert refusal(export_policy, **given).startswith(f"block_length={wrong!r}: expected ")
        assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("function", [pull_prompts, push_prompts], ids=["pull", "push"])
def test_the_names_of_prompt_sets_are_texts(function, tmp_path):
    fitting = {"path": tmp_path} if function is push_prompts else {}
    for name in inspect.signature(function).parameters:
        for wrong in (5, b"x", ["x"], object()):
            assert refusal(function, **fitting | {"repo_id": "nobody/nothing"} | {name: wrong}).startswith(f"{name}=")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": BLOCK["tokens"][0]}, "tokens is a tensor of shape [2] and type torch.int64: expected shape [B, W]"),
        ({"tokens": BLOCK["tokens"].int()}, "tokens is a tensor of shape [1, 2] and type torch.int32"),
        ({"masked": BLOCK["masked"].long()}, "masked is a tensor of shape [1, 2] and type torch.int64"),
        ({"masked": BLOCK["masked"][:, :1]}, "masked is a tensor of shape [1, 1] and type torch.bool"),
        ({"mask_id": 4}, "mask_id=4: expected an id from 0 to 3"),
        ({"mask_id": -1}, "mask_id=-1: expected an id from 0 to 3"),
        ({"logits": torch.zeros(1, 3, 4)}, "logits is a tensor of shape [1, 3, 4] and type torch.float32"),
        ({"logits": torch.zeros(1, 2)}, "logits is a tensor of shape [1, 2]"),
        ({"logits": torch.zeros(1, 2, 4).long()}, "logits is a tensor of shape [1, 2, 4] and type torch.int64"),
        ({"window": Window(torch.tensor([0.0]), torch.tensor([2]))}, "window.start is a tensor of shape [1] and type"),
        ({"window": Window(torch.tensor([0]), torch.tensor([2, 2]))}, "window.stop is a tensor of shape [2] and type"),
        ({"least": torch.tensor([1, 1])}, "least is a tensor of shape [2] and type torch.int64"),
        ({"seed": torch.tensor([1, 1])}, "seed is a tensor of shape [2] and type torch.int64"),
        ({"step": torch.tensor([1.5])}, "step is a tensor of shape [1] and type torch.float32"),
    ],
)
def test_a_block_of_other_shapes_and_types_is_refused(changed, message):
    functions = [
        each for each in (block_step, start_block) if changed.keys() <= inspect.signature(each).parameters.keys()
    ]
    assert functions
    for function in functions:
        assert refusal(function, **CALLS[function] | changed).startswith(message)


def test_the_memory_of_another_block_is_refused():
    memory = block_step(**CALLS[block_step]).memory
    wide = {"tokens": torch.zeros(1, 3).long(), "masked": torch.ones(1, 3).bool(), "logits": torch.zeros(1, 3, 4)}
    assert refusal(block_step, **CALLS[block_step] | wide, memory=memory).startswith(
        "memory.state.tokens is a tensor of shape [1, 2] and type torch.int64: expected shape [1, 3]"
    )


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


@pytest.mark.parametrize("reference", [torch.zeros(3), torch.zeros(3).long(), torch.zeros(1, 4)])
def test_the_answers_of_the_oracle_are_rows_of_ids(reference):
    for oracle in (OraclePolicy, lambda wrong: GuidedPolicy(ThresholdPolicy(), wrong)):
        with pytest.raises(ValueError, match=r"^reference is a tensor of shape .* expected shape \[prompts, canvas\]"):
            oracle(reference)


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
