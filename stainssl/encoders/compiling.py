"""Networks as `torch.compile` runs them; where it cannot, they run as they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stainssl.encoders.tensors import first_line

log = logging.getLogger(__name__)


class CompiledNetwork(nn.Module):
    """A network that is compiled at its first batch, in seconds to minutes.

    Its answers are the network's own but for rounding. A compiler that fails (a machine without
    one, a layer that it does not know) costs its speed alone: the log says so, and the network
    runs as it is.

    Args:
        network: in evaluation mode.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._compiled: Callable[[Tensor], Any] | None = torch.compile(network)

    def forward(self, images: Tensor) -> Any:
        """What the network gives for (B, 3, S, S)."""
        if self._compiled is not None:
            try:
                return self._compiled(images)
            except torch.OutOfMemoryError:  # fewer at a time may fit
                raise
            except Exception as error:  # of dynamo, inductor, the C++ or the Triton compiler
                log.warning("torch.compile failed, it goes on without: %s", first_line(error))
                self._compiled = None
        return self.network(images)
