"""The layers of one network on several devices, for a dLLM that is too large for one.

The embedding, the last norm and the head are on the first device, so that the loop works as it does with one device.
The layers follow each other from device to device, and only what a layer reads crosses between two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learn2pd.models.layers import Asked, LayerCall
from learn2pd.models.network import DiffusionNetwork


def devices_of_layers(network: DiffusionNetwork, devices: Sequence[torch.device]) -> list[torch.device]:
    """Share the layers out, so that each device holds about as many bytes as the others.

    Args:
        network: A network of any device, the device `meta` included.
        devices: The devices. The first one also holds what is in no layer.

    Returns:
        The device of each layer.
    """
    sizes = [sum(tensor.nbytes for tensor in layer.state_dict().values()) for layer in network.parts().layers]
    whole = sum(tensor.nbytes for tensor in network.state_dict().values())
    before = whole - sum(sizes)
    places = []
    for size in sizes:
        places.append(devices[min(len(devices) - 1, int((before + size / 2) * len(devices) / whole))])
        before += size
    return places


def devices_of_tensors(network: DiffusionNetwork, devices: Sequence[torch.device]) -> dict[str, torch.device]:
    """Return the device of every tensor of a network, by its name.

    Args:
        network: As for `devices_of_layers`.
        devices: As for `devices_of_layers`.
    """
    places = dict.fromkeys(network.state_dict(), devices[0])
    names = {module: name for name, module in network.named_modules()}
    for layer, device in zip(network.parts().layers, devices_of_layers(network, devices), strict=True):
        places |= {f"{names[layer]}.{name}": device for name in layer.state_dict()}
    return places


def connect(network: DiffusionNetwork) -> None:
    """Let every layer bring its inputs to its own device, and the last norm bring them back to the first one.

    Args:
        network: A network whose layers are on their devices; it is changed.
    """
    parts = network.parts()
    carriers: dict[torch.device, _Carrier] = {}
    for layer in parts.layers:
        device = next(layer.parameters()).device
        layer.register_forward_pre_hook(carriers.setdefault(device, _Carrier(device)))
    first = next(parts.embedding.parameters()).device
    parts.norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(first),))


class _Carrier:
    """Brings the inputs of the layers of one device there, and once a forward what all its layers read alike.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.given: LayerCall | None = None
        self.brought: tuple[Any, Any] = (None, None)

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, call = inputs
        if self.given is None or self.given.tables is not call.tables or self.given.mask is not call.mask:
            self.given = call._replace(kept=None, asked=None)
            self.brought = (self._bring(call.tables), self._bring(call.mask))
        tables, mask = self.brought
        return self._bring(x), call._replace(tables=tables, mask=mask, asked=self._bring(call.asked))

    def _bring(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.device, non_blocking=True)
        if isinstance(value, tuple):
            return tuple(self._bring(part) for part in value)
        if isinstance(value, Asked):
            return Asked(self._bring(value.places), self._bring(value.tables), self._bring(value.mask))
        return value
