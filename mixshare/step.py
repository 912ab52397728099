"""One training step, from the draws of the plan to new weights: the loss, the optimizer, the rate, and the step as a CUDA graph."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshare import mixing
from mixshare.batch import Batches
from mixshare.config import RunConfig
from mixshare.plan import Plan

WARM_UP = 3  # uncaptured steps before a capture, which wants gradients, momentum and cuDNN's choices to be there


class Step:
    """One training step, a pure function of (weights, the epoch's draws, the step's number), captured and replayed where wanted.

    All that it reads and writes lies on the device, in the same place for the whole run: draws and losses of an epoch, and the
    number of the next step. So a GPU replays a step with one launch (and one for the rate), and nothing comes back before an
    epoch's end. On a GPU each run has a stream of its own, so that several small ones can fill it.
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
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls = 0

    def begin(self, plan: Plan, rates: Sequence[float]) -> None:
        """Take up an epoch: its draws go to the device once, its S learning rates are for the S calls to come."""
        self.rates = iter(rates)
        self._main_waits()
        if not self.draws:
            self.draws = {
                name: torch.empty_like(value, device=self.device)
                for name, value in plan.tensors().items()
            }
            self.losses, self.place = (
                torch.zeros(len(rates), device=self.device),
                torch.arange(len(rates), device=self.device),
            )
        for name, value in plan.tensors().items():
            self.draws[name].copy_(value)
        self.number.zero_()
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def __call__(self) -> None:
        """Train on the epoch's next draws; its loss is kept in `losses`."""
        rate = next(self.rates)
        if self.stream is None:
            self._set_rate(rate)
            self._step()
            return
        with torch.cuda.stream(self.stream):
            self._set_rate(rate)
            self._replay() if self.config.capture else self._step()

    def end(self) -> Tensor:
        """The epoch's losses (S,), on the processor, once all of its steps are done."""
        self._main_waits()
        return self.losses.to("cpu", copy=True)

    def _main_waits(self) -> None:
        """What the main stream does from now on, it does after the steps so far."""
        if self.stream:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else group.update(lr=rate)

    def _step(self) -> None:
        draws = {
            name: value.index_select(0, self.number).squeeze(0)
            for name, value in self.draws.items()
        }
        losses = member_losses(self.model, self.batches, self.config, draws)
        self.optimizer.zero_grad()
        losses.sum().backward()
        self.optimizer.step()
        self.losses.copy_(
            torch.where(self.place == self.number, losses.detach().sum(), self.losses)
        )
        self.number += 1

    def _replay(self) -> None:
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._step()
        if self.graph is None:
            self.optimizer.zero_grad()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):  # recorded, not run
                self._step()
        self.graph.replay()


def member_losses(
    model: nn.Module, batches: Batches, config: RunConfig, draws: dict[str, Tensor]
) -> Tensor:
    """Each member's weighted cross-entropy, averaged over the rows: (M,); their sum is the training loss without its l2 term."""
    batch = batches(draws)
    with torch.autocast(
        batch.inputs.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
    ):
        logits = model(batch.inputs, batch.masks, unmix=config.unmix)
    losses = _cross_entropy(logits, batch.labels)
    if batch.partner_labels is not None:
        losses = batch.own_share * losses + (1 - batch.own_share) * _cross_entropy(
            logits, batch.partner_labels
        )
    weights = mixing.loss_weights(mixing.mask_ratios(batch.masks), config.loss_root)
    return (weights * losses).mean(dim=1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view(
        labels.shape
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`load_state_dict`, but the learning rate stays the number or the tensor that it was, where a captured graph reads it."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.SGD:
    """Nesterov SGD; the loss term l2 * sum of squares over ALL parameters is a weight decay of 2 * l2 (MixMo)."""
    parameters = list(model.parameters())
    on_gpu = parameters[0].is_cuda
    return torch.optim.SGD(
        parameters,
        lr=torch.tensor(config.learning_rate, device=parameters[0].device)
        if on_gpu
        else config.learning_rate,  # a graph reads it there
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=2 * config.l2,
        fused=parameters[0].device.type != "mps",
    )


def learning_rate(config: RunConfig, epoch: int, step: int, steps: int) -> float:
    """The rate of a step, epoch and step counted from 0: linear warm-up, then times `decay` at each milestone (appendix A)."""
    warm = (
        min(1.0, (epoch * steps + step + 1) / (config.warmup_epochs * steps))
        if config.warmup_epochs
        else 1.0
    )
    return (
        config.learning_rate
        * warm
        * config.decay ** sum(epoch >= milestone for milestone in config.milestones)
    )
