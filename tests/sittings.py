"""What a started process runs, in a module of its own: a process finds it by its name."""

import os
import signal
import time
from pathlib import Path

import mixshare

# Overrides of a smoke run that make it about four times as fast, for tests of mechanics.
QUICK = dict(width=0.5, batch_repetition=1)


def sitting(
    config: mixshare.RunConfig,
    outputs: Path,
    log: Path,
    gate: Path | None = None,
    dies_writing: str = "",
) -> None:
    """Train a run, with a checkpoint after each epoch.

    Args:
        config: The run.
        outputs: The outputs folder.
        log: Gets all output, with a line for each epoch that starts and for each resume.
        gate: A file; no epoch trains before it exists.
        dies_writing: Where a file of this name is moved into place, SIGKILL ends the process.
    """
    from mixshare import training

    os.environ["MIXSHARE_OUTPUTS"] = str(outputs)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    train_epoch, restore = training.Training.train_epoch, training.Training.restore
    replace = os.replace

    def logged_restore(self, path):
        restore(self, path)
        print("resumed after epochs:", len(self.history), flush=True)

    def gated_epoch(self, step):
        print("trains epoch", len(self.history), flush=True)
        while gate and not gate.exists():
            time.sleep(0.001)
        train_epoch(self, step)

    def deadly_replace(source, target):
        if Path(target).name == dies_writing:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    training.CHECKPOINT_SECONDS = 0
    training.Training.restore = logged_restore
    training.Training.train_epoch = gated_epoch
    os.replace = deadly_replace
    mixshare.train(config)
