"""One training step: the loss, the optimizer, the learning rate, and the step as a CUDA graph."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshare import mixing
from mixshare.batch import Batches
from mixshare.config import RunConfig
from mixshare.files import first_line
from mixshare.plan import Plan

# Uncaptured steps before a capture, which wants gradients, momentum and cuDNN's choices made.
WARM_UP = 3


class Step:
    """One training step, a pure function of (weights, the epoch's draws, the step's number).

    All that it reads and writes lies on the device, in the same place for the whole run: an
    epoch's draws and losses, and the number of the next step. So a GPU replays a captured step
    with one launch (and one for the rate), and nothing comes back before an epoch's end.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        config: RunConfig,
    ):
        self.model, self.optimizer, self.batches, self.config = model, optimizer, batches, config
        self.device = batches.padded.device
        self.number = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.draws: dict[str, Tensor] = {}
        # A capture needs a stream other than the default one.
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.capture_error: str | None = None  # why the step goes on uncaptured
        self.calls = 0

    def __enter__(self) -> "Step":
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the steps so far, also where an error ends them: they use what is freed now."""
        if self.stream:
            self.stream.synchronize()

    def begin(self, plan: Plan) -> None:
        """Copy an epoch's draws to the device, once for all of its steps."""
        draws = plan.tensors()
        self._join_stream()
        if not self.draws:
            self.draws = {k: torch.empty_like(v, device=self.device) for k, v in draws.items()}
            self.losses = torch.zeros(len(plan.cut), device=self.device)
        for name, value in draws.items():
            self.draws[name].copy_(value)
        self.number.zero_()
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def __call__(self, rate: float) -> None:
        """Train on the epoch's next draws at this learning rate; the loss is kept in `losses`."""
        with torch.cuda.stream(self.stream):  # without a GPU there is none, and nothing changes
            self._set_rate(rate)
            if self.stream and self.config.capture:
                self._replay()
            else:
                self._step()

    def end(self) -> Tensor:
        """Return the epoch's losses (S,), on the processor, once all of its steps are done."""
        self._join_stream()
        return self.losses.to("cpu", copy=True)

    def _join_stream(self) -> None:
        """Make the main stream wait for the steps so far."""
        if self.stream:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _step(self) -> None:
        draws = {k: v.index_select(0, self.number).squeeze(0) for k, v in self.draws.items()}
        losses = member_losses(self.model, self.batches, self.config, draws)
        self.optimizer.zero_grad()
        losses.sum().backward()
        self.optimizer.step()
        self.losses.index_copy_(0, self.number, losses.detach().sum(dim=0, keepdim=True))
        self.number += 1

    def _replay(self) -> None:
        self.calls += 1
        if self.calls == WARM_UP + 1:
            self._capture()
        if self.graph:
            self.graph.replay()
        else:
            self._step()

    def _capture(self) -> None:
        """Record the step as a graph; where that fails, warn, and go on without one."""
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        try:
            # A notebook's other threads may call CUDA meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self._step()  # recorded, not run
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            while isinstance(error.__context__, Exception):  # ending the capture fails as well
                error = error.__context__
            self.capture_error = first_line(error)
            warnings.warn(f"training goes on uncaptured: {self.capture_error}", stacklevel=2)
        else:
            self.graph = graph


def member_losses(
    model: nn.Module, batches: Batches, config: RunConfig, draws: dict[str, Tensor]
) -> Tensor:
    """Return each member's weighted cross-entropy, averaged over the rows: (M,).

    Their sum is the training loss without its l2 term, which is the optimizer's weight decay.
    """
    batch = batches(draws)
    half = config.precision == "bfloat16"
    with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=half):
        logits = model(batch.inputs, batch.masks, unmix=config.unmix)
    losses = _cross_entropy(logits, batch.labels)
    if batch.partner_labels is not None:
        partner = _cross_entropy(logits, batch.partner_labels)
        losses = batch.own_share * losses + (1 - batch.own_share) * partner
    weights = mixing.loss_weights(mixing.mask_ratios(batch.masks), config.loss_root)
    return (weights * losses).mean(dim=1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each member and row: (M, B, classes), (M, B) to (M, B)."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return flat.view(labels.shape)


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.SGD:
    """Return Nesterov SGD over all parameters.

    The loss's term l2 * sum of squares over ALL parameters is a weight decay of 2 * l2 (MixMo).
    """
    parameters = list(model.parameters())
    device, rate = parameters[0].device, config.learning_rate
    return torch.optim.SGD(
        parameters,
        # a captured graph reads the rate on the device
        lr=torch.tensor(rate, device=device) if device.type == "cuda" else rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=2 * config.l2,
        fused=device.type != "mps",
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state, but keep the learning rate's tensor, where a captured graph reads it."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def learning_rate(config: RunConfig, epoch: int, step: int, steps: int) -> float:
    """Return the rate of a step (appendix A).

    Args:
        config: The run.
        epoch, step: Counted from 0.
        steps: Of an epoch.
    """
    # Linear warm-up, a step at a time, ending with the full rate.
    warm_steps = config.warmup_epochs * steps
    warm_up = min(1.0, (epoch * steps + step + 1) / warm_steps) if warm_steps else 1.0
    # Times `decay` from each milestone on.
    decays = sum(epoch >= milestone for milestone in config.milestones)
    return config.learning_rate * warm_up * config.decay**decays
