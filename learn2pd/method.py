"""A decoding method as a value: policy, scheduler, cache and stop rule that go together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from learn2pd.caches.none import NoCache
from learn2pd.registry import Provided, build, name_of
from learn2pd.roles import Cache, Policy, Role, Scheduler, StopRule
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.stops.eot import EotStop
from learn2pd.types import ModelSpec


@dataclass(frozen=True)
class Method:
    """Policy, scheduler, cache and stop rule.

    Attributes:
        policy: what to commit, and what to take back.
        scheduler: where; None gives blocks of 32 tokens, or of the only width that the policy works at.
        cache: what is recomputed; nothing is kept by default.
        stop: where a row ends; by default after a committed end-of-text.
    """

    policy: Policy
    scheduler: Scheduler = None  # type: ignore[assignment]
    cache: Cache = field(default_factory=NoCache)
    stop: StopRule = field(default_factory=EotStop)

    def __post_init__(self) -> None:
        if self.scheduler is None:
            object.__setattr__(self, "scheduler", BlocksScheduler(self.policy.window_width or 32))

    @classmethod
    def from_names(
        cls,
        policy: str,
        scheduler: str = "blocks",
        cache: str = "none",
        stop: str = "eot",
        *,
        options: Mapping[str, Any] | None = None,
        scheduler_options: Mapping[str, Any] | None = None,
        cache_options: Mapping[str, Any] | None = None,
        stop_options: Mapping[str, Any] | None = None,
        provided: Provided | None = None,
    ) -> Method:
        """Build a method from registered names, or from `package.module:Class`.

        Args:
            policy, scheduler, cache, stop: names.
            options: of the policy, by the names of its constructor's parameters; the others likewise.
            provided: what components get without being told, such as the tokenizer or the block length.

        Raises:
            UserError: an unknown name or option, a value that a component refuses, or parts that do not go together.
        """
        known = provided or {}
        parts = {
            "policy": build("policy", policy, options or {}, known),
            "scheduler": build("scheduler", scheduler, scheduler_options or {}, known),
            "cache": build("cache", cache, cache_options or {}, known),
            "stop": build("stop", stop, stop_options or {}, known),
        }
        return cls(**parts)

    @classmethod
    def from_dict(cls, described: Mapping[str, Any], provided: Provided | None = None) -> Method:
        """The method that `to_dict` described.

        Raises:
            UserError: as `from_names`.
        """
        parts = {role: build(role, part["name"], part["options"], provided or {}) for role, part in described.items()}
        return cls(**parts)

    def to_dict(self) -> dict[str, Any]:
        """Names and options as JSON values.

        Raises:
            UserError: a component cannot be named, such as a policy that is not saved yet.
        """
        return {role: {"name": name_of(role, part), "options": part.describe()} for role, part in self.parts.items()}

    @property
    def parts(self) -> dict[str, Role]:
        """The four components by role."""
        return {"policy": self.policy, "scheduler": self.scheduler, "cache": self.cache, "stop": self.stop}

    @property
    def needs(self) -> frozenset[str]:
        """Extras of the prediction that any of the four reads."""
        return frozenset[str]().union(*(part.needs for part in self.parts.values()))

    @property
    def learned(self) -> bool:
        """Whether any of the four was trained."""
        return any(part.learned for part in self.parts.values())

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that the method decodes by, but the package's own code."""
        return hashlib.sha256("/".join(part.fingerprint for part in self.parts.values()).encode()).hexdigest()[:16]

    def check(self, spec: ModelSpec) -> None:
        """Refuse parts that do not fit the model or each other.

        Raises:
            UserError: naming both sides.
        """
        for part in self.parts.values():
            part.check(spec, self)
