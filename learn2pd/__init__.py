"""learn2pd trains small decoding policies for diffusion LLMs and decodes with them.

The toolkit records the decisions of an oracle decoder, trains a tiny policy on the record, and decodes with the policy.
`import learn2pd` loads no heavy library: each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learn2pd.autoregressive.generation import generate as generate
    from learn2pd.autoregressive.methods import AutoregressiveMethod as AutoregressiveMethod
    from learn2pd.autoregressive.methods import PearlMethod as PearlMethod
    from learn2pd.autoregressive.methods import SpeculativeMethod as SpeculativeMethod
    from learn2pd.autoregressive.model import CausalModel as CausalModel
    from learn2pd.autoregressive.model import load_causal_model as load_causal_model
    from learn2pd.caches.causal_block import CausalBlockCache as CausalBlockCache
    from learn2pd.caches.dsb import DSBCache as DSBCache
    from learn2pd.caches.fast_dllm import DualCache as DualCache
    from learn2pd.caches.fast_dllm import PrefixCache as PrefixCache
    from learn2pd.caches.grow import GrowCache as GrowCache
    from learn2pd.caches.lookahead import LookaheadCache as LookaheadCache
    from learn2pd.caches.none import NoCache as NoCache
    from learn2pd.caches.sub_block import SubBlockCache as SubBlockCache
    from learn2pd.decoding import decode as decode
    from learn2pd.errors import UserError as UserError
    from learn2pd.exporters.export import export_policy as export_policy
    from learn2pd.exporters.transformers import register as register
    from learn2pd.loop.block import BlockStep as BlockStep
    from learn2pd.loop.block import block_step as block_step
    from learn2pd.loop.block import start_block as start_block
    from learn2pd.loop.observing import Observer as Observer
    from learn2pd.method import Method as Method
    from learn2pd.models.loading import Model as Model
    from learn2pd.models.loading import load_model as load_model
    from learn2pd.policies.apd import APDPolicy as APDPolicy
    from learn2pd.policies.apd import LeftToRightPolicy as LeftToRightPolicy
    from learn2pd.policies.apple import ApplePolicy as ApplePolicy
    from learn2pd.policies.apple import load_apple as load_apple
    from learn2pd.policies.credit import CreditPolicy as CreditPolicy
    from learn2pd.policies.dawn import DawnPolicy as DawnPolicy
    from learn2pd.policies.dparallel import DParallelPolicy as DParallelPolicy
    from learn2pd.policies.edit import EditPolicy as EditPolicy
    from learn2pd.policies.entropy_bound import EntropyBoundPolicy as EntropyBoundPolicy
    from learn2pd.policies.entropy_sum import EntropySumPolicy as EntropySumPolicy
    from learn2pd.policies.factor import FactorPolicy as FactorPolicy
    from learn2pd.policies.fixed import FixedPolicy as FixedPolicy
    from learn2pd.policies.hierarchical import HierarchicalPolicy as HierarchicalPolicy
    from learn2pd.policies.klass import KlassPolicy as KlassPolicy
    from learn2pd.policies.label_oracle import LabelOracle as LabelOracle
    from learn2pd.policies.localleap import LocalLeapPolicy as LocalLeapPolicy
    from learn2pd.policies.low_confidence import LowConfidencePolicy as LowConfidencePolicy
    from learn2pd.policies.mean_field import MeanFieldPolicy as MeanFieldPolicy
    from learn2pd.policies.oracle import OraclePolicy as OraclePolicy
    from learn2pd.policies.prophet import ProphetPolicy as ProphetPolicy
    from learn2pd.policies.remask import RemaskPolicy as RemaskPolicy
    from learn2pd.policies.search import SearchPolicy as SearchPolicy
    from learn2pd.policies.slowfast import SlowFastPolicy as SlowFastPolicy
    from learn2pd.policies.threshold import ThresholdPolicy as ThresholdPolicy
    from learn2pd.policies.verifier import Verifier as Verifier
    from learn2pd.policies.verifier import load_verifier as load_verifier
    from learn2pd.policies.wino import WinoPolicy as WinoPolicy
    from learn2pd.predictors.boundary import LearnedAdaBlockScheduler as LearnedAdaBlockScheduler
    from learn2pd.predictors.end_of_text import LearnedStop as LearnedStop
    from learn2pd.predictors.filter import FilterPolicy as FilterPolicy
    from learn2pd.predictors.filter import load_policy as load_policy
    from learn2pd.predictors.filter import save_policy as save_policy
    from learn2pd.predictors.keep import KeepPolicy as KeepPolicy
    from learn2pd.predictors.keep import load_keep as load_keep
    from learn2pd.predictors.saving import Predictor as Predictor
    from learn2pd.prompt_sets import pull_prompts as pull_prompts
    from learn2pd.prompt_sets import push_prompts as push_prompts
    from learn2pd.roles import Cache as Cache
    from learn2pd.roles import Policy as Policy
    from learn2pd.roles import Scheduler as Scheduler
    from learn2pd.roles import StopRule as StopRule
    from learn2pd.schedulers.adablock import AdaBlockScheduler as AdaBlockScheduler
    from learn2pd.schedulers.blocks import BlocksScheduler as BlocksScheduler
    from learn2pd.schedulers.dsb import DSBScheduler as DSBScheduler
    from learn2pd.schedulers.lookahead import LookaheadScheduler as LookaheadScheduler
    from learn2pd.schedulers.sub_blocks import SubBlocksScheduler as SubBlocksScheduler
    from learn2pd.stops.anywhere import AnywhereStop as AnywhereStop
    from learn2pd.stops.eot import EotStop as EotStop
    from learn2pd.stops.eot_filled import EotFilledStop as EotFilledStop
    from learn2pd.stops.eotp import EotpPaperStop as EotpPaperStop
    from learn2pd.stops.none import NoStop as NoStop
    from learn2pd.stops.text import TextStop as TextStop
    from learn2pd.types import Commit as Commit
    from learn2pd.types import DecodeResult as DecodeResult
    from learn2pd.types import DecodeState as DecodeState
    from learn2pd.types import ModelSpec as ModelSpec
    from learn2pd.types import Prediction as Prediction
    from learn2pd.types import RowMemory as RowMemory
    from learn2pd.types import Sampling as Sampling
    from learn2pd.types import Step as Step
    from learn2pd.types import Window as Window

__version__ = "0.2.0"
_MODULES = {
    "APDPolicy": "policies.apd",
    "AdaBlockScheduler": "schedulers.adablock",
    "AnywhereStop": "stops.anywhere",
    "ApplePolicy": "policies.apple",
    "AutoregressiveMethod": "autoregressive.methods",
    "BlockStep": "loop.block",
    "BlocksScheduler": "schedulers.blocks",
    "Cache": "roles",
    "CausalBlockCache": "caches.causal_block",
    "CausalModel": "autoregressive.model",
    "Commit": "types",
    "CreditPolicy": "policies.credit",
    "DParallelPolicy": "policies.dparallel",
    "DSBCache": "caches.dsb",
    "DSBScheduler": "schedulers.dsb",
    "DawnPolicy": "policies.dawn",
    "DecodeResult": "types",
    "DecodeState": "types",
    "DualCache": "caches.fast_dllm",
    "EditPolicy": "policies.edit",
    "EntropyBoundPolicy": "policies.entropy_bound",
    "EntropySumPolicy": "policies.entropy_sum",
    "EotFilledStop": "stops.eot_filled",
    "EotStop": "stops.eot",
    "EotpPaperStop": "stops.eotp",
    "FactorPolicy": "policies.factor",
    "FilterPolicy": "predictors.filter",
    "FixedPolicy": "policies.fixed",
    "GrowCache": "caches.grow",
    "HierarchicalPolicy": "policies.hierarchical",
    "KeepPolicy": "predictors.keep",
    "KlassPolicy": "policies.klass",
    "LabelOracle": "policies.label_oracle",
    "LearnedAdaBlockScheduler": "predictors.boundary",
    "LearnedStop": "predictors.end_of_text",
    "LeftToRightPolicy": "policies.apd",
    "LocalLeapPolicy": "policies.localleap",
    "LookaheadCache": "caches.lookahead",
    "LookaheadScheduler": "schedulers.lookahead",
    "LowConfidencePolicy": "policies.low_confidence",
    "MeanFieldPolicy": "policies.mean_field",
    "Method": "method",
    "Model": "models.loading",
    "ModelSpec": "types",
    "NoCache": "caches.none",
    "NoStop": "stops.none",
    "Observer": "loop.observing",
    "OraclePolicy": "policies.oracle",
    "PearlMethod": "autoregressive.methods",
    "Policy": "roles",
    "Prediction": "types",
    "Predictor": "predictors.saving",
    "PrefixCache": "caches.fast_dllm",
    "ProphetPolicy": "policies.prophet",
    "RemaskPolicy": "policies.remask",
    "RowMemory": "types",
    "Sampling": "types",
    "Scheduler": "roles",
    "SearchPolicy": "policies.search",
    "SlowFastPolicy": "policies.slowfast",
    "SpeculativeMethod": "autoregressive.methods",
    "Step": "types",
    "StopRule": "roles",
    "SubBlockCache": "caches.sub_block",
    "SubBlocksScheduler": "schedulers.sub_blocks",
    "TextStop": "stops.text",
    "ThresholdPolicy": "policies.threshold",
    "UserError": "errors",
    "Verifier": "policies.verifier",
    "Window": "types",
    "WinoPolicy": "policies.wino",
    "block_step": "loop.block",
    "decode": "decoding",
    "export_policy": "exporters.export",
    "generate": "autoregressive.generation",
    "load_apple": "policies.apple",
    "load_causal_model": "autoregressive.model",
    "load_keep": "predictors.keep",
    "load_model": "models.loading",
    "load_policy": "predictors.filter",
    "load_verifier": "policies.verifier",
    "pull_prompts": "prompt_sets",
    "push_prompts": "prompt_sets",
    "register": "exporters.transformers",
    "save_policy": "predictors.filter",
    "start_block": "loop.block",
}
__all__ = [
    "APDPolicy",
    "AdaBlockScheduler",
    "AnywhereStop",
    "ApplePolicy",
    "AutoregressiveMethod",
    "BlockStep",
    "BlocksScheduler",
    "Cache",
    "CausalBlockCache",
    "CausalModel",
    "Commit",
    "CreditPolicy",
    "DParallelPolicy",
    "DSBCache",
    "DSBScheduler",
    "DawnPolicy",
    "DecodeResult",
    "DecodeState",
    "DualCache",
    "EditPolicy",
    "EntropyBoundPolicy",
    "EntropySumPolicy",
    "EotFilledStop",
    "EotStop",
    "EotpPaperStop",
    "FactorPolicy",
    "FilterPolicy",
    "FixedPolicy",
    "GrowCache",
    "HierarchicalPolicy",
    "KeepPolicy",
    "KlassPolicy",
    "LabelOracle",
    "LearnedAdaBlockScheduler",
    "LearnedStop",
    "LeftToRightPolicy",
    "LocalLeapPolicy",
    "LookaheadCache",
    "LookaheadScheduler",
    "LowConfidencePolicy",
    "MeanFieldPolicy",
    "Method",
    "Model",
    "ModelSpec",
    "NoCache",
    "NoStop",
    "Observer",
    "OraclePolicy",
    "PearlMethod",
    "Policy",
    "Prediction",
    "Predictor",
    "PrefixCache",
    "ProphetPolicy",
    "RemaskPolicy",
    "RowMemory",
    "Sampling",
    "Scheduler",
    "SearchPolicy",
    "SlowFastPolicy",
    "SpeculativeMethod",
    "Step",
    "StopRule",
    "SubBlockCache",
    "SubBlocksScheduler",
    "TextStop",
    "ThresholdPolicy",
    "UserError",
    "Verifier",
    "Window",
    "WinoPolicy",
    "block_step",
    "decode",
    "export_policy",
    "generate",
    "load_apple",
    "load_causal_model",
    "load_keep",
    "load_model",
    "load_policy",
    "load_verifier",
    "pull_prompts",
    "push_prompts",
    "register",
    "save_policy",
    "start_block",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'learn2pd' has no attribute {name!r}")
    return getattr(importlib.import_module(f"learn2pd.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
