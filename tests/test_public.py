"""What `learn2pd` exports: every component that a name stands for, each with a docstring and a short repr."""

from __future__ import annotations

import importlib
import inspect

import pytest

import learn2pd
from learn2pd import Method, decode, load_policy
from learn2pd.registry import COMPONENTS
from tests.contract.helpers import CACHES, SCHEDULERS, STOPS, policies

TARGETS = [(role, name, target) for role, table in COMPONENTS.items() for name, target in table.items()]
LONGEST = 200  # characters


@pytest.mark.parametrize("name", learn2pd.__all__)
def test_every_exported_name_has_a_docstring(name):
    assert inspect.getdoc(getattr(learn2pd, name))


@pytest.mark.parametrize(("role", "name", "target"), TARGETS)
def test_the_class_of_every_registered_name_is_exported(role, name, target):
    module, _, attribute = target.partition(":")
    made = getattr(importlib.import_module(module), attribute)
    component = made if inspect.isclass(made) else inspect.signature(made, eval_str=True).return_annotation
    assert getattr(learn2pd, component.__name__) is component


@pytest.mark.parametrize(
    "component",
    [*policies().values(), *SCHEDULERS.values(), *CACHES.values(), *STOPS.values()],
    ids=lambda part: part.name,
)
def test_the_repr_of_a_component_is_short(component):
    assert len(repr(component)) < LONGEST or "delimiter_ids" in repr(component)
    assert repr(component).startswith(type(component).__name__)
    assert " at 0x" not in repr(component)


def test_the_repr_of_models_methods_and_results_is_short(tiny_model, make_prompts):
    policy = load_policy("checkpoints/tiny-llada-filter")
    result = decode(tiny_model, make_prompts([3]), policy="threshold", gen_length=8)
    assert repr(tiny_model).startswith("Model('tiny_model")
    for value in (tiny_model, policy, policy.predictor, Method(policy), result):
        assert "\n" not in repr(value)
        assert len(repr(value)) < LONGEST + 50
