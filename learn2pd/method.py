"""A decoding method as a value: policy, scheduler, cache and stop rule that go together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from learn2pd.arguments import check_argument, checked
from learn2pd.caches.none import NoCache
from learn2pd.errors import UserError, check_options
from learn2pd.kinds import shown
from learn2pd.registry import Provided, build, name_of
from learn2pd.roles import ROLES, Cache, Policy, Role, Scheduler, StopRule
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.stops.eot import EotStop
from learn2pd.types import ModelSpec


@dataclass(frozen=True)
class Method:
    """Policy, scheduler, cache and stop rule.

    Attributes:
        policy: It decides which proposals are committed, and which commits are taken back.
        scheduler: It decides where the policy may commit. None makes blocks of 32 tokens, or of the only window width
            with which the policy works.
        cache: It decides which columns a step recomputes. The default recomputes everything.
        stop: It decides where a row ends. The default ends a row behind a committed end-of-text.

    Raises:
        UserError: A part is no component of its role.
    """

    policy: Policy
    scheduler: Scheduler = None  # type: ignore[assignment]
    cache: Cache = field(default_factory=NoCache)
    stop: StopRule = field(default_factory=EotStop)

    def __post_init__(self) -> None:
        for role, part in self.parts.items():
            if role != "scheduler" or part is not None:
                check_argument(role, part, ROLES[role], "; Method.from_names takes names")
        if self.scheduler is None:
            object.__setattr__(self, "scheduler", BlocksScheduler(self.policy.window_width or 32))

    @classmethod
    @checked(advice=dict.fromkeys(ROLES, "; Method(...) takes components themselves"))
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
            policy: The name of the policy.
            scheduler: The name of the scheduler.
            cache: The name of the cache.
            stop: The name of the stop rule.
            options: The options of the policy, by the names of its constructor's parameters.
            scheduler_options: The options of the scheduler.
            cache_options: The options of the cache.
            stop_options: The options of the stop rule.
            provided: Values that a component receives where the caller gives no option for them, such as the token ids
                of delimiters or the block length.

        Returns:
            The method.

        Raises:
            UserError: A name or an option is unknown, or a component refuses a value.
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
    @checked()
    def from_dict(cls, described: Mapping[str, Any], provided: Provided | None = None) -> Method:
        """Build the method that `to_dict` described.

        Args:
            described: The name and the options of each component, by role.
            provided: As for `from_names`.

        Returns:
            The method.

        Raises:
            UserError: As for `from_names`; or there is no policy, another role, or a part without name and options.
        """
        check_options("the method", described, ROLES)
        if "policy" not in described:
            raise UserError(f"the method has no policy: it has {', '.join(described) or 'nothing'}")
        return cls(**{role: _described_part(role, part, provided or {}) for role, part in described.items()})

    def to_dict(self) -> dict[str, Any]:
        """Describe the method by the names and options of its components.

        Returns:
            JSON values, by role.

        Raises:
            UserError: A component has no name by which it could be built again, such as a policy that is not saved.
        """
        return {role: {"name": name_of(role, part), "options": part.describe()} for role, part in self.parts.items()}

    @property
    def parts(self) -> dict[str, Role]:
        """The four components by role."""
        return {"policy": self.policy, "scheduler": self.scheduler, "cache": self.cache, "stop": self.stop}

    @property
    def needs(self) -> frozenset[str]:
        """The extras of the prediction that any of the four components reads."""
        return frozenset[str]().union(*(part.needs for part in self.parts.values()))

    @property
    def learned(self) -> bool:
        """Whether any of the four components was trained."""
        return any(part.learned for part in self.parts.values())

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the four components and their options.

        They do not depend on the code of this package.
        """
        return hashlib.sha256("/".join(part.fingerprint for part in self.parts.values()).encode()).hexdigest()[:16]

    def check(self, spec: ModelSpec) -> None:
        """Refuse components that do not fit the model or each other.

        Args:
            spec: The facts about the model.

        Raises:
            UserError: Two sides do not fit; the message names both.
        """
        for part in self.parts.values():
            part.check(spec, self)


def _described_part(role: str, part: Any, provided: Provided) -> Any:
    """Build a component from its name and its options."""
    if not isinstance(part, Mapping) or part.keys() != {"name", "options"}:
        raise UserError(f"{role}={shown(part)}: expected a mapping with name and options")
    name = check_argument(f"{role}.name", part["name"], str)
    return build(role, name, check_argument(f"{role}.options", part["options"], Mapping[str, Any]), provided)
