"""The training module: what happens in one step, and everything that a checkpoint must carry."""

from __future__ import annotations

import math
import time
from copy import deepcopy
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from egnn_md.errors import TrainingError
from egnn_md.graph import ParticleGraph
from egnn_md.kernels import accelerate
from egnn_md.kernels.fast_silu import use_fast_silu
from egnn_md.models import Potential, evaluate
from egnn_md.training.config import RunConfig, TrainConfig
from egnn_md.training.loss import potential_loss
from egnn_md.training.ranks import Ranks
from egnn_md.training.schedule import CosineSchedule
from egnn_md.training.share import Share

STATE_KEY = "egnn_md"
STATE_VERSION = 1


def moving_average(decay: float) -> Any:
    """Update rule for torch's ``AveragedModel`` whose decay ramps up from 0.1 to ``decay``.

    With a constant decay the first weights, which are random, would stay in the average for several times
    ``1 / (1 - decay)`` steps.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        number = float(count)
        weight = 1.0 - min(decay, (1.0 + number) / (10.0 + number))
        torch._foreach_lerp_(averaged, current, weight)

    return update


class TrainingModule(LightningModule):
    """One model being trained, with an average of its weights: what potentials and propagators share.

    Args:
        model: what to start from; a copy of it is optimised, and lives under the name :attr:`role`.
        config: the run.
        schedule: learning rate and end of the run.
        data_digest: of the training set; a checkpoint refuses to go on with other data.
        ranks: this process and the others that train the same model; None is alone.
    """

    role: ClassVar[str]
    remedy: ClassVar[str] = ""  #: what else can help when the loss is not finite

    def __init__(
        self,
        model: nn.Module,
        config: RunConfig,
        schedule: CosineSchedule,
        data_digest: str,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__()
        self.ranks = ranks or Ranks(config.device)
        self.add_module(self.role, accelerate(self.prepare(deepcopy(model)), device=self.ranks.device))
        self.config = config
        self.schedule = schedule
        self.data_digest = data_digest
        self.averaged: AveragedModel | None = None
        if config.ema_decay > 0:
            self.averaged = AveragedModel(
                deepcopy(self.trained), multi_avg_fn=moving_average(config.ema_decay)
            ).requires_grad_(False)
        self.elapsed_before = 0.0
        self.started = time.monotonic()
        self.best = math.inf
        self.best_step = -1
        self.validations_since_best = 0
        self.stopped_early = False
        self.stop_requested = False
        self.stop_settled = False  # what all ranks know of it
        self.clock = 0.0  # rank 0's, as all ranks know it
        self.window: dict[str, float] = {}
        self.grad_norm = 0.0

    def prepare(self, model: nn.Module) -> nn.Module:
        """Change the copy that is trained; weights and their names must stay."""
        return model

    def loss_parts(self, share: Share) -> dict[str, Tensor]:
        """What this rank brings to the ``loss`` of one batch, and to the parts of it that the log shows."""
        raise NotImplementedError

    @property
    def trained(self) -> nn.Module:
        """The weights that are optimised."""
        return self.get_submodule(self.role)

    @property
    def validated(self) -> nn.Module:
        """The weights that are validated and saved: the average, or the plain ones if it is off."""
        if self.averaged is None:
            return self.trained
        module = self.averaged.module
        assert isinstance(module, nn.Module)
        return module

    def elapsed(self) -> float:
        """Seconds of training so far, interrupted parts included."""
        return self.elapsed_before + time.monotonic() - self.started

    def settled_time(self) -> float:
        """:meth:`elapsed` for decisions: the same number on all ranks, that of the last step if there are several."""
        return self.elapsed() if self.ranks.alone else self.clock

    def finished(self) -> bool:
        """A limit of the run is reached, or it was stopped early."""
        return self.stopped_early or self.schedule.finished(self.global_step, self.settled_time())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW or Adam; weight decay on the matrices of linear maps only."""
        settings = self.config.optimizer
        matrices = {id(layer.weight) for layer in self.trained.modules() if isinstance(layer, nn.Linear)}
        trained = [p for p in self.trained.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if id(p) in matrices], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if id(p) not in matrices], "weight_decay": 0.0},
        ]
        kind: type[torch.optim.Adam | torch.optim.AdamW]
        kind = torch.optim.Adam if getattr(settings, "kind", "adamw") == "adam" else torch.optim.AdamW
        return kind(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            fused=trained[0].device.type in ("cpu", "cuda"),  # one call instead of ten a parameter
        )

    def transfer_batch_to_device(
        self, batch: ParticleGraph, device: torch.device, dataloader_idx: int
    ) -> ParticleGraph:
        """Lightning's own walk through containers does not know frozen records."""
        return batch.to(device=device)

    def on_fit_start(self) -> None:
        """The clock starts when the steps do, not when the data are read."""
        self.started = time.monotonic()

    def on_train_batch_start(self, batch: ParticleGraph, batch_idx: int) -> None:
        """Set the learning rate of this step: it is a function of step and time, with no state to restore."""
        factor = self.schedule.factor(self.global_step, self.settled_time())
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.config.optimizer.lr * factor

    def training_step(self, batch: ParticleGraph, batch_idx: int) -> Tensor:
        """This rank's share of the loss of one batch; the loss is refused if it is not finite."""
        parts = self.loss_parts(self.ranks.take(batch))
        # one transfer for all of them: each one waits for the device
        numbers = torch.stack([value.detach().double() for value in parts.values()]).tolist()
        numbers, self.stop_settled, self.clock = self.ranks.settle(numbers, self.stop_requested, self.elapsed())
        for name, number in zip(parts, numbers, strict=True):
            if not math.isfinite(number):
                raise TrainingError(
                    f"step {self.global_step}: the {name} error is {number}. The last checkpoint is from "
                    f"before; start again with a smaller optimizer.lr or clip_norm{self.remedy}"
                )
            self.window[name] = self.window.get(name, 0.0) + number
        self.window["count"] = self.window.get("count", 0.0) + 1.0
        return parts["loss"]

    def on_after_backward(self) -> None:
        """What is differentiated is the sum of all ranks' losses: sum their gradients, before they are clipped."""
        self.ranks.sum_gradients([p for p in self.trained.parameters() if p.requires_grad])

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients together, and remember it for the log."""
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        trained = [p for p in self.trained.parameters() if p.requires_grad]
        self.grad_norm = float(torch.nn.utils.clip_grad_norm_(trained, limit, foreach=True))

    def on_train_batch_end(self, outputs: Any, batch: ParticleGraph, batch_idx: int) -> None:
        """Follow with the average, and stop between steps, where the state is whole."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.trained)
        # one that came since the loss was settled is known to this rank alone, and waits for the next step
        stop = self.stop_requested if self.ranks.alone else self.stop_settled
        if stop or self.finished():
            self.trainer.should_stop = True

    def take_window(self) -> dict[str, float]:
        """Mean errors since the last call."""
        count = self.window.pop("count", 0.0)
        means = {name: total / count for name, total in self.window.items()} if count else {}
        self.window = {}
        return means

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Plain values and tensors only, so that the file loads with ``weights_only=True``."""
        checkpoint[STATE_KEY] = {
            "version": STATE_VERSION,
            "config": self.config.model_dump_json(),
            "data_digest": self.data_digest,
            "elapsed": self.elapsed(),
            "best": self.best,
            "best_step": self.best_step,
            "validations_since_best": self.validations_since_best,
            "stopped_early": self.stopped_early,
            "window": dict(self.window),
            "rng": torch.get_rng_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The counterpart of :meth:`on_save_checkpoint`."""
        state = checkpoint[STATE_KEY]
        self.elapsed_before = self.clock = float(state["elapsed"])
        self.best = float(state["best"])
        self.best_step = int(state["best_step"])
        self.validations_since_best = int(state["validations_since_best"])
        self.stopped_early = bool(state["stopped_early"])
        self.window = {str(name): float(value) for name, value in state["window"].items()}
        torch.set_rng_state(state["rng"].cpu())


class PotentialModule(TrainingModule):
    """Energy, force and stress training of a potential."""

    role = "potential"
    remedy = ", or without hard structures (data.max_force)"
    config: TrainConfig

    def prepare(self, model: nn.Module) -> nn.Module:
        """With a SiLU whose second derivative is cheap: the loss on forces is differentiated twice."""
        use_fast_silu(model)
        return model

    def loss_parts(self, share: Share) -> dict[str, Tensor]:
        """Forces and stress keep their graph, because the loss is differentiated again."""
        settings = self.config.loss
        potential = self.trained
        assert isinstance(potential, Potential)
        with share.communicating(potential):
            prediction = evaluate(
                potential, share.graph, forces=settings.forces > 0, stress=settings.stress > 0, training=True
            )
        return potential_loss(prediction, share.graph, settings, share)
