"""Around the steps: logs, validation with the averaged weights, checkpoints, early stop, progress."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import nn

from egnn_md.checkpoint import model_digest
from egnn_md.training.logs import CsvLog
from egnn_md.training.module import TrainingModule

CHECKPOINT_NAME = "last.ckpt"
TRAIN_COLUMNS = ("step", "epoch", "lr", "loss")
TRAIN_END = ("grad_norm", "elapsed")
VALID_COLUMNS = ("step", "elapsed", "loss")
Errors = dict[str, float]


@dataclass(frozen=True)
class Measurements:
    """What a task logs and measures.

    Attributes:
        parts: names of the loss's parts, columns of ``train.csv``.
        errors: names of the validation errors beside ``loss``, columns of ``valid.csv``.
        validate: errors of a model on the validation set, ``loss`` among them.
        describe: one line out of them for the terminal or a log file.
        note: a few words for the progress bar.
    """

    parts: tuple[str, ...]
    errors: tuple[str, ...]
    validate: Callable[[nn.Module], Errors]
    describe: Callable[[Errors], str]
    note: Callable[[Errors], str]


class Bookkeeper(Checkpoint):
    """Logs each window, validates when due, and saves a checkpoint at the end of every round.

    It is a ``Checkpoint`` so that the trainer calls it after all other callbacks. Files are replaced
    atomically: a kill at any moment leaves the previous checkpoint whole.

    Of several ranks all validate together, and each gets the same bits of the errors, so that all of them come to the
    same decision; one of them writes.

    Args:
        directory: of the run; None on a rank that writes nothing.
        measurements: what to log and how to validate.
        samples: size of the training set, to count epochs.
        save_best: called with the module when the monitored error improved.
        resume_at: the step the run continues from, or None.
    """

    def __init__(
        self,
        directory: Path | None,
        measurements: Measurements,
        samples: int,
        save_best: Callable[[TrainingModule, Errors], None],
        resume_at: int | None = None,
    ) -> None:
        self.directory = directory
        self.measurements = measurements
        self.samples = samples
        self.save_best = save_best
        self.train_log: CsvLog | None = None
        self.valid_log: CsvLog | None = None
        if directory is not None:
            train_columns = (*TRAIN_COLUMNS, *measurements.parts, *TRAIN_END)
            self.train_log = CsvLog(directory / "train.csv", train_columns, resume_at)
            self.valid_log = CsvLog(directory / "valid.csv", (*VALID_COLUMNS, *measurements.errors), resume_at)
        self.last_errors: Errors = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A row of the log every ``log_every`` steps."""
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if step % pl_module.config.log_every:
            return
        row: dict[str, float] = {
            "step": step,
            "epoch": step * pl_module.config.batch_size / self.samples,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "grad_norm": pl_module.grad_norm,
            "elapsed": pl_module.elapsed(),
            **pl_module.take_window(),
        }
        self._write(self.train_log, trainer, "train", row)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End of a round (Lightning's epoch): validate if due, then save everything."""
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if step and (step % pl_module.config.validate_every == 0 or pl_module.finished()):
            self._validate(trainer, pl_module)
        if not pl_module.ranks.alone:  # machines that round differently would drift apart unseen
            pl_module.ranks.agree(weights=model_digest(pl_module.trained))
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write ``last.ckpt`` beside its place, to the disk, then move it there."""
        if self.directory is None:
            return
        target = self.directory / CHECKPOINT_NAME
        temporary = target.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)

    def _validate(self, trainer: Trainer, module: TrainingModule) -> None:
        config = module.config
        model = module.validated
        was_training = model.training
        model.eval()
        with torch.random.fork_rng(devices=[]):
            errors = self.measurements.validate(model)
        model.train(was_training)
        self.last_errors = errors
        row = {"step": trainer.global_step, "elapsed": module.elapsed(), **errors}
        self._write(self.valid_log, trainer, "valid", row)
        monitored = errors[config.monitor]
        if monitored < module.best:
            if monitored < module.best - config.early_stopping.min_delta:
                module.validations_since_best = 0
            else:
                module.validations_since_best += 1
            module.best, module.best_step = monitored, trainer.global_step
            if self.directory is not None:
                self.save_best(module, errors)
        else:
            module.validations_since_best += 1
        patience = config.early_stopping.patience
        if patience is not None and module.validations_since_best >= patience:
            module.stopped_early = True
            trainer.should_stop = True

    @staticmethod
    def _write(log: CsvLog | None, trainer: Trainer, prefix: str, row: dict[str, float]) -> None:
        if log is not None:
            log.append(row)
        values = {f"{prefix}/{key}": value for key, value in row.items() if key != "step"}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=int(row["step"]))


class ProgressReport(Callback):
    """A bar with errors and time left on a terminal; a line a validation where the output is a file."""

    def __init__(self, bookkeeper: Bookkeeper, console: Console) -> None:
        self.bookkeeper = bookkeeper
        self.console = console
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.reported: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        if not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            refresh_per_second=2,
        )
        self.bar.start()
        self.task = self.bar.add_task("training", total=1.0, note="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar now and then: drawing must not cost what training needs."""
        assert isinstance(pl_module, TrainingModule)
        if self.bar is None or self.task is None or trainer.global_step % 10:
            return
        done = self._done(trainer, pl_module)
        elapsed = pl_module.elapsed()
        left = elapsed / done * (1 - done) if done > 0 else 0.0
        errors = self.bookkeeper.last_errors
        note = f"step {trainer.global_step}, {left / 60:.1f} min left"
        if errors:
            note += f", valid {self.bookkeeper.measurements.note(errors)}"
        self.bar.update(self.task, completed=done, note=note)

    @staticmethod
    def _done(trainer: Trainer, module: TrainingModule) -> float:
        schedule = module.schedule
        parts = [0.0]
        if schedule.max_steps:
            parts.append(trainer.global_step / schedule.max_steps)
        if schedule.budget_seconds:
            parts.append(module.elapsed() / schedule.budget_seconds)
        return min(1.0, max(parts))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the validation before this round measured."""
        self._report(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._report(trainer, pl_module)
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self.close()

    def close(self) -> None:
        """Stop drawing."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        errors = self.bookkeeper.last_errors
        if not errors or errors is self.reported:
            return
        assert isinstance(pl_module, TrainingModule)
        self.reported = errors
        self.console.print(
            f"step {trainer.global_step:>7}  {pl_module.elapsed() / 60:7.1f} min  valid: "
            f"{self.bookkeeper.measurements.describe(errors)}",
            highlight=False,
            soft_wrap=True,
        )


class StopOnSignals(Callback):
    """SIGINT and SIGTERM end the run after the current step, with a checkpoint; a second SIGINT at once.

    If one of several ranks gets the signal, all of them stop after the same step.

    Set when the steps begin, after Lightning set its own handlers, which would end the process instead.
    """

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals (only a process's main thread can)."""
        assert isinstance(pl_module, TrainingModule)
        if threading.current_thread() is not threading.main_thread():
            return

        def stop(number: int, frame: Any) -> None:
            if pl_module.stop_requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            pl_module.stop_requested = True

        self.before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give them back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give them back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
