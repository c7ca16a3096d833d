"""learn2pd: record what an oracle decoder of a diffusion LLM would have done, train a tiny decoding policy on it, decode with it."""

from learn2pd.caches.dsb import DSBCache
from learn2pd.caches.fast_dllm import BlockCache
from learn2pd.caches.lookahead import LookaheadCache
from learn2pd.caches.none import NoCache
from learn2pd.errors import UserError
from learn2pd.loop.decode import decode
from learn2pd.models.loading import load_model
from learn2pd.policies.apd import APDPolicy, LeftToRightPolicy
from learn2pd.policies.factor import FactorPolicy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.localleap import LocalLeapPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.policies.verifier import load_verifier
from learn2pd.predictors.filter import load_policy, save_policy
from learn2pd.schedulers.adablock import AdaBlockScheduler
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.schedulers.dsb import DSBScheduler
from learn2pd.schedulers.lookahead import LookaheadScheduler
from learn2pd.stops.anywhere import AnywhereStop
from learn2pd.stops.eot import EotStop
from learn2pd.stops.eotp import EotpPaperStop
from learn2pd.stops.none import NoStop
from learn2pd.types import Sampling

__version__ = "0.1.0"
__all__ = [
    "APDPolicy",
    "AdaBlockScheduler",
    "AnywhereStop",
    "BlockCache",
    "BlocksScheduler",
    "DSBCache",
    "DSBScheduler",
    "EotStop",
    "EotpPaperStop",
    "FactorPolicy",
    "FixedPolicy",
    "LeftToRightPolicy",
    "LocalLeapPolicy",
    "LookaheadCache",
    "LookaheadScheduler",
    "NoCache",
    "NoStop",
    "OraclePolicy",
    "Sampling",
    "ThresholdPolicy",
    "UserError",
    "decode",
    "load_model",
    "load_policy",
    "load_verifier",
    "save_policy",
]
