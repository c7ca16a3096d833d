"""Rules that look at more than one confidence a position, or take back: each decides for one row in plain loops.

`decode` calls the network on the whole sequence in every step. A rule is made anew for each row, since it may remember
what it saw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class Look:
    """What a rule is shown in a step, by position of the canvas.

    Attributes:
        canvas: The tokens.
        masked: Whether a position is still to be decoded.
        start, stop: The window.
        step: The number of the step.
        logits: The float64 logits of each position, the mask token at -inf.
        leave_one_out: A function that gives the probability of the token at a position when it alone is hidden.
        attention: How much each column attends to each, prompt included.
        prompt: The number of tokens before the canvas.
    """

    canvas: list[int]
    masked: list[bool]
    start: int
    stop: int
    step: int
    logits: torch.Tensor
    leave_one_out: object
    attention: torch.Tensor
    prompt: int

    def __post_init__(self) -> None:
        self.p = self.logits.softmax(-1)
        self.conf = [float(value) for value in self.p.amax(-1)]
        self.token = self.logits.argmax(-1).tolist()
        self.window = range(self.start, self.stop)
        self.masks = [i for i in self.window if self.masked[i]]
        self.standing = [i for i in self.window if not self.masked[i]]
        self.ranked = sorted(self.masks, key=lambda i: -self.conf[i])

    def entropy(self, i: int) -> float:
        """In nats."""
        return -sum(x * math.log(x) for x in self.p[i].tolist() if x > 0)


@dataclass
class Decision:
    """What a rule decides: tokens by position, positions to take back, whether it looks once more at the window."""

    write: dict[int, int] = field(default_factory=dict)
    revoke: set[int] = field(default_factory=set)
    stay: bool = False


def proposals(look: Look, positions) -> Decision:
    """The commit of the proposals at some positions."""
    return Decision({i: look.token[i] for i in positions})


class EntropyBound:
    def __init__(self, bound):
        self.bound = bound

    def __call__(self, look):
        ranked = sorted(look.masks, key=look.entropy)
        fits = [k for k in range(1, len(ranked) + 1) if sum(map(look.entropy, ranked[: k - 1])) <= self.bound]
        return proposals(look, ranked[: max(fits, default=0)])


class DParallel:
    def __init__(self, threshold):
        self.threshold = threshold

    def __call__(self, look):
        lowest = min(look.masks, key=look.entropy)
        return proposals(look, {i for i in look.masks if look.entropy(i) <= self.threshold} | {lowest})


class Hierarchical:
    def __init__(self, threshold, low, remask=None):
        self.threshold, self.low, self.remask = threshold, low, remask

    def __call__(self, look):
        doubtful = {i for i in look.standing if self.remask is not None and look.conf[i] < self.remask}
        candidates = {*look.masks, *doubtful}
        picked = {i for i in candidates if look.conf[i] > self.threshold}
        segment: list[int] = []
        for i in [*look.window, None]:
            if i in candidates:
                segment.append(i)
                continue
            if segment:
                best = max(segment, key=lambda j: look.conf[j])
                if look.conf[best] > self.low:
                    picked.add(best)
            segment = []
        if self.remask is not None:
            for i in sorted(candidates - picked, key=lambda i: -look.conf[i]):
                if len(picked) < len(doubtful) + 1:
                    picked.add(i)
        decision = proposals(look, {i for i in picked if look.masked[i] or look.token[i] != look.canvas[i]})
        decision.revoke = doubtful - picked
        return decision


class Credit:
    def __init__(self, threshold, weight, boost, decay):
        self.threshold, self.weight, self.boost, self.decay = threshold, weight, boost, decay
        self.credit: dict[int, dict[int, float]] = {}

    def __call__(self, look):
        fused = {}
        for i in look.masks:
            mine = self.credit.setdefault(i, {})
            for token in mine:
                mine[token] *= self.decay
            mine[look.token[i]] = mine.get(look.token[i], 0.0) + look.conf[i] ** self.boost
            logits = look.logits[i].clone()
            for token, value in mine.items():
                logits[token] += self.weight * math.log(1 + value)
            fused[i] = (float(logits.softmax(-1).amax()), int(logits.argmax()))
        bar = min(self.threshold, max(conf for conf, _ in fused.values()) - 1e-5)
        return Decision({i: token for i, (conf, token) in fused.items() if conf >= bar})


class Klass:
    def __init__(self, threshold, kl_threshold, history):
        self.threshold, self.kl_threshold, self.history = threshold, kl_threshold, history
        self.last: dict[int, torch.Tensor] = {}
        self.kls: dict[int, list[float]] = {}
        self.block, self.steps = -1, 0

    def __call__(self, look):
        for i, is_masked in enumerate(look.masked):
            if is_masked:
                now, before = look.p[i], self.last.get(i, torch.zeros_like(look.p[i]))
                kl = float((now * ((now + 1e-12).log() - (before + 1e-12).log())).sum())
                self.kls.setdefault(i, []).append(kl)
                self.last[i] = now
        self.steps = self.steps + 1 if look.start == self.block else 0
        self.block = look.start
        ready = [
            i
            for i in look.masks
            if self.steps >= self.history - 1
            and look.conf[i] > self.threshold
            and len(self.kls[i]) >= self.history
            and all(kl < self.kl_threshold for kl in self.kls[i][-self.history :])
        ]
        return proposals(look, ready)


class SlowFast:
    def __init__(self, threshold, sight, exploration, stability, deviation):
        self.threshold, self.sight, self.exploration = threshold, sight, exploration
        self.stability, self.deviation = stability, deviation
        self.block, self.first, self.estimates, self.length = -1, 0, [], 0

    def __call__(self, look):
        if look.start != self.block:
            self.block, self.first, self.estimates, self.length = look.start, look.start, [], 0
        slow = len(self.estimates) < self.exploration
        inside = [i for i in look.masks if i >= self.first and (slow or i < self.first + self.length)]
        if not slow and not inside:
            self.first, self.estimates, self.length, slow = self.first + self.length, [], 0, True
            inside = [i for i in look.masks if i >= self.first]
        if slow:
            seen = [i for i in inside if look.conf[i] >= self.sight]
            self.estimates.append(max(seen) - self.first + 1 if seen else 1)
            last = self.estimates[-self.stability :]
            mean = sum(last) / len(last)
            spread = math.sqrt(sum((x - mean) ** 2 for x in last) / len(last))
            if not self.length and len(self.estimates) >= self.stability and spread < self.deviation:
                self.length = self.estimates[-1]
            if not self.length and len(self.estimates) == self.exploration:
                self.length = int(mean)
        sure = [i for i in inside if look.conf[i] >= self.threshold]
        return proposals(look, sure if len(sure) > 1 else [i for i in look.ranked if i in inside][:1])


class Prophet:
    def __init__(self, early, middle, late, answer_start):
        self.bars, self.answer_start = (early, middle, late), answer_start

    def __call__(self, look):
        first = int(self.answer_start * len(look.canvas))
        looked_at = look.logits[first : first + 5].topk(2).values
        mean = float((looked_at[:, 0] - looked_at[:, 1]).mean())
        progress = (look.step + 1) / len(look.canvas)
        bar = self.bars[0] if progress < 0.33 else self.bars[1] if progress < 0.67 else self.bars[2]
        every = [i for i, is_masked in enumerate(look.masked) if is_masked]
        return proposals(look, every if mean >= bar else look.ranked[:1])


class Dawn:
    def __init__(self, threshold, induced, low, sink, edge):
        self.threshold, self.induced, self.low, self.sink, self.edge = threshold, induced, low, sink, edge

    def __call__(self, look):
        a = look.attention
        columns = [j for j in range(len(a)) if float(a[:, j].mean()) <= self.sink]

        def attends(i, column):
            row = look.prompt + i
            return column != row and column in columns and float(a[row, column]) >= self.edge

        anchors = list(range(look.prompt)) + [
            look.prompt + j for j in range(look.stop) if not look.masked[j] and look.conf[j] >= self.threshold
        ]
        taken = [i for i in look.masks if look.conf[i] >= self.threshold]
        for i in look.masks:
            if i not in taken and look.conf[i] >= self.induced and any(attends(i, column) for column in anchors):
                taken.append(i)
        for i in look.ranked:
            if i not in taken and look.conf[i] >= self.low and not any(attends(i, look.prompt + j) for j in taken):
                taken.append(i)
        return proposals(look, taken)


class MeanField:
    def __init__(self, threshold, interaction, rounds):
        self.threshold, self.interaction, self.rounds = threshold, interaction, rounds

    def __call__(self, look):
        def logit(x):
            x = min(max(x, 1e-6), 1 - 1e-6)
            return math.log(x / (1 - x))

        def divergence(p, q):
            mixture = (p + q) / 2
            kl = [float((x * (x / mixture).log()).nan_to_num(0).sum()) for x in (p, q)]
            return sum(kl) / 2

        overlap = {
            (i, j): 1 - divergence(look.p[i], look.p[j]) / math.log(2) for i in look.masks for j in look.masks if i != j
        }
        unary = {i: logit(look.conf[i]) - logit(self.threshold) for i in look.masks}
        q = {i: 1 / (1 + math.exp(-value)) for i, value in unary.items()}
        for _ in range(self.rounds):
            held = {i: sum(overlap[i, j] * (1 - look.conf[j]) * q[j] for j in look.masks if j != i) for i in look.masks}
            q = {i: 1 / (1 + math.exp(self.interaction * held[i] - unary[i])) for i in look.masks}
        return proposals(look, [i for i in look.masks if q[i] > 0.5])


class Wino:
    def __init__(self, threshold, back):
        self.threshold, self.back, self.last = threshold, back, 1

    def __call__(self, look):
        limit = min(max(int(0.7 * len(look.masks)), 5), 20)
        drafted = [i for i in look.ranked if look.conf[i] > self.threshold][:limit] or look.ranked[:1]
        decision = proposals(look, drafted)
        if len(drafted) > 1:
            by_others = {i: look.leave_one_out(i) for i in look.standing}
            doubtful = sorted((i for i, value in by_others.items() if value < self.back), key=by_others.get)
            decision.revoke = set(doubtful[: self.last - 1])
        self.last = len(drafted)
        return decision


class TakingBack:
    """The filter that takes back, with a network whose probability is the confidence."""

    def __init__(self, threshold, take_back, per_position, one_more, confidence_threshold):
        self.threshold, self.take_back, self.per_position = threshold, take_back, per_position
        self.one_more, self.confidence_threshold = one_more, confidence_threshold
        self.times: dict[int, int] = {}

    def __call__(self, look):
        bars = {i: 1 - (1 - self.threshold) / 5 ** self.times.get(i, 0) for i in look.masks}
        accepted = [
            i
            for i in look.masks
            if look.conf[i] > bars[i] or (not self.times.get(i) and look.conf[i] > self.confidence_threshold)
        ]
        new = [i for i in look.ranked if i not in accepted and not self.times.get(i)]
        accepted += [i for i in new if look.conf[i] > self.one_more][:1]
        accepted = accepted or look.ranked[:1]
        decision = proposals(look, accepted)
        by_others = {i: look.leave_one_out(i) for i in look.standing if self.times.get(i, 0) < self.per_position}
        doubtful = sorted((i for i, value in by_others.items() if value < self.take_back), key=by_others.get)
        decision.revoke = set(doubtful[: len(accepted) - 1])
        for i in decision.revoke:
            self.times[i] = self.times.get(i, 0) + 1
        return decision


class Checked:
    """Editing where `edit` is given, targeted remasking where `remask` is."""

    def __init__(self, threshold, most_checks, edit=None, remask=None, per_position=3, share=0.25):
        self.threshold, self.most_checks, self.edit, self.remask = threshold, most_checks, edit, remask
        self.per_position, self.share = per_position, share
        self.block, self.checks = -1, 0
        self.times_taken_back: dict[int, int] = {}

    def __call__(self, look):
        if look.start != self.block:
            self.block, self.checks = look.start, 0
        self.checks += not look.masks
        decision = proposals(look, [i for i in look.masks if look.conf[i] > self.threshold] or look.ranked[:1])
        left = set(look.masks) - set(decision.write)
        if self.edit is not None:
            for i in look.standing:
                if look.token[i] != look.canvas[i] and look.conf[i] > self.edit:
                    decision.write[i] = look.token[i]
        if self.remask is not None:
            now = {i: float(look.p[i, look.canvas[i]]) for i in look.standing}
            below = [i for i in now if now[i] < self.remask and self.times_taken_back.get(i, 0) < self.per_position]
            decision.revoke = set(sorted(below, key=now.get)[: max(1, int(self.share * len(now)))])
            for i in decision.revoke:
                self.times_taken_back[i] = self.times_taken_back.get(i, 0) + 1
        changed = bool(decision.write or decision.revoke)
        decision.stay = changed and not left and not decision.revoke and self.checks < self.most_checks
        return decision


@dataclass
class Outcome:
    """One decoded row."""

    canvas: list[int]
    forwards: int = 0
    revoked: int = 0
    edited: int = 0
    flip_flops: int = 0


def decode(network: nn.Module, prompt: list[int], gen_length: int, block: int, mask_id: int, rule) -> Outcome:
    """Decode one prompt in blocks with a model whose logits are not shifted."""
    canvas, masked = [mask_id] * gen_length, [True] * gen_length
    outcome = Outcome(canvas)
    last: dict[int, int] = {}
    start, stay = 0, False
    while any(masked) or stay:
        start = start if stay else masked.index(True) // block * block
        with torch.no_grad():
            logits, attention = forward(network, [*prompt, *canvas])
        logits[:, mask_id] = -torch.inf
        look = Look(
            list(canvas),
            list(masked),
            start,
            min(start + block, gen_length),
            outcome.forwards,
            logits[len(prompt) :],
            lambda i: hidden_alone(network, prompt, canvas, i, mask_id),
            attention,
            len(prompt),
        )
        decision = rule(look)
        if look.masks and not set(decision.write) & set(look.masks):
            decision.write[look.ranked[0]] = look.token[look.ranked[0]]
        for i, token in decision.write.items():
            outcome.edited += not masked[i]
            outcome.flip_flops += masked[i] and last.get(i) == token
            canvas[i], masked[i] = token, False
        for i in decision.revoke:
            last[i], canvas[i], masked[i] = canvas[i], mask_id, True
            outcome.revoked += 1
        stay = decision.stay
        outcome.forwards += 1
    return outcome


def forward(network: nn.Module, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of each column, and the attention of the last layer as the mean over its heads."""
    seen: list[torch.Tensor] = []
    blocks = network.model.transformer.blocks
    hook = blocks[-1].attn_norm.register_forward_hook(lambda module, given, normed: seen.append(normed))
    logits = network(torch.tensor([ids])).logits[0].double()
    hook.remove()
    config = network.config
    width = config.hidden_size // config.num_attention_heads

    def turned(x):
        x = x[0].view(len(ids), -1, width)
        inverse = 1.0 / config.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
        angles = (torch.arange(len(ids), dtype=torch.float32)[:, None] * inverse)[:, None]
        a, b = x[..., : width // 2], x[..., width // 2 :]
        return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1)

    q, k = turned(blocks[-1].q_proj(seen[0])), turned(blocks[-1].k_proj(seen[0]))
    shared_by = q.shape[1] // k.shape[1]
    heads = [(q[:, h] @ k[:, h // shared_by].T / math.sqrt(width)).softmax(-1) for h in range(q.shape[1])]
    return logits, sum(heads) / len(heads)


def hidden_alone(network: nn.Module, prompt: list[int], canvas: list[int], position: int, mask_id: int) -> float:
    """The probability of a token from one more column, which sees all but the token and which nobody sees."""
    tokens = [*prompt, *canvas]
    length, column = len(tokens), len(prompt) + position
    seen = torch.ones(1, length + 1, length + 1, dtype=torch.bool)
    seen[0, :length, length] = False
    seen[0, length, column] = False
    with torch.no_grad():
        places = torch.tensor([[*range(length), column]])
        hidden = network.hidden(torch.tensor([[*tokens, mask_id]]), places, seen)
        logits = network.score(hidden[0, -1]).double()
    logits[mask_id] = -torch.inf
    return float(logits.softmax(-1)[tokens[column]])
