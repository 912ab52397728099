"""What a process that may be killed does: in a module of its own, since it goes there by this module's name."""

import os
import time
from pathlib import Path

import mixshare


def sitting(
    config: mixshare.RunConfig,
    outputs: Path,
    log: Path,
    gate: Path | None = None,
    dies_writing: str = "",
) -> None:
    """Output goes to `log`, with a line for each start and resume; epochs wait for the file `gate`; SIGKILL hits at a file's move."""
    from mixshare import training

    os.environ["MIXSHARE_OUTPUTS"] = str(outputs)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    training.CHECKPOINT_SECONDS = 0
    epoch, restore, replace = training.Training.epoch, training.Training.restore, os.replace

    def logged_restore(self, path):
        restore(self, path)
        print("resumed after epochs:", len(self.history), flush=True)

    def gated_epoch(self, step):
        print("trains epoch", len(self.history), flush=True)
        while gate and not gate.exists():
            time.sleep(0.001)
        yield from epoch(self, step)

    def deadly_replace(source, target):
        if Path(target).name == dies_writing:
            os.kill(os.getpid(), 9)
        replace(source, target)

    training.Training.restore, training.Training.epoch, os.replace = (
        logged_restore,
        gated_epoch,
        deadly_replace,
    )
    mixshare.train(config)
