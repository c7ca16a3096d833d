"""learn2pd: record what an oracle decoder of a diffusion LLM would have done, train a tiny decoding policy on it, decode with it."""

from learn2pd.decoding.api import decode
from learn2pd.decoding.schedulers import BlocksScheduler
from learn2pd.decoding.stops import EotpPaperStop, EotStop, NoStop
from learn2pd.errors import UserError
from learn2pd.models.loading import load_model
from learn2pd.policies.export import load_policy, save_policy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy

__version__ = "0.1.0"
__all__ = [
    "BlocksScheduler",
    "EotStop",
    "EotpPaperStop",
    "FixedPolicy",
    "NoStop",
    "OraclePolicy",
    "ThresholdPolicy",
    "UserError",
    "decode",
    "load_model",
    "load_policy",
    "save_policy",
]
