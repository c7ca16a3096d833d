"""learn2pd: record what an oracle decoder of a diffusion LLM would have done, train a tiny decoding policy on it, decode with it."""

from learn2pd.decoding.api import decode
from learn2pd.decoding.caches import BlockCache, DSBCache, LookaheadCache, NoCache
from learn2pd.decoding.proposals import Sampling
from learn2pd.decoding.schedulers import AdaBlockScheduler, BlocksScheduler, DSBScheduler, LookaheadScheduler
from learn2pd.decoding.stops import AnywhereStop, EotpPaperStop, EotStop, NoStop
from learn2pd.errors import UserError
from learn2pd.models.causal import load_verifier
from learn2pd.models.loading import load_model
from learn2pd.policies.apd import APDPolicy, LeftToRightPolicy
from learn2pd.policies.export import load_policy, save_policy
from learn2pd.policies.factor import FactorPolicy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.localleap import LocalLeapPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy

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
