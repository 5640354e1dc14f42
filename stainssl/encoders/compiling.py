"""Networks compiled by `torch.compile`, which run uncompiled if compilation fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stainssl.encoders.tensors import first_line

log = logging.getLogger(__name__)


class CompiledNetwork(nn.Module):
    """A network that is compiled at its first batch, which takes seconds to minutes.

    Outputs equal those of the network up to rounding. If compilation fails (no compiler on the
    machine, an unsupported layer), a warning is logged and the network runs uncompiled.

    Args:
        network: in evaluation mode.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._compiled: Callable[[Tensor], Any] | None = torch.compile(network)

    def forward(self, images: Tensor) -> Any:
        """Output of the network for (B, 3, S, S).

        Raises:
            torch.OutOfMemoryError: the batch is too large for the device.
        """
        if self._compiled is not None:
            try:
                return self._compiled(images)
            except torch.OutOfMemoryError:  # the caller can try a smaller batch
                raise
            except Exception as error:  # of dynamo, inductor, the C++ or the Triton compiler
                log.warning("torch.compile failed, it goes on without: %s", first_line(error))
                self._compiled = None
        return self.network(images)
