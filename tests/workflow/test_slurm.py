"""The batch on a real Slurm of two nodes, both on loopback.

Jobs are cancelled, killed, lose their node, and end the same.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mixshare import runs

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "squeue", "scancel", "srun", "sinfo")
ETC = Path("/etc/slurm")


def obstacle() -> str:
    """Return why no Slurm can be started here, if so."""
    missing = [name for name in DAEMONS + CLIENTS if not shutil.which(name)]
    if missing:
        remedy = "apt-get install -y --no-install-recommends slurm-wlm munge"
        return f"without {', '.join(missing)}: {remedy}"
    if os.geteuid():
        return "only root may start a Slurm and link its configuration in /etc/slurm"
    if (ETC / "slurm.conf").exists():
        return f"{ETC}/slurm.conf exists: this machine has a Slurm of its own"
    return ""


pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(bool(obstacle()), reason=obstacle()),
]

SLURM_CONF = """
ClusterName=toy
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CryptoType=crypto/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/finished-jobs
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
SwitchType=switch/none
MinJobAge=3600
SlurmdTimeout=15
KillWait=2
ReturnToService=2
GresTypes=gpu
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n1} CPUs=4 RealMemory=16000 Gres=gpu:1
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n2} CPUs=4 RealMemory=16000 Gres=gpu:1
PartitionName=main Nodes=n1,n2 Default=YES LLN=YES MaxTime=60 State=UP
"""
GRES_CONF = "NodeName=n1 Name=gpu File=/dev/null\nNodeName=n2 Name=gpu File=/dev/null\n"
# A running job's number and Snakemake's comment.
RUNNING = ("squeue", "--noheader", "--states=RUNNING", "--format=%i %k")


def with_environment(name: str, value: str) -> list[psutil.Process]:
    """Return the processes that have an environment variable of this value."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # ended meanwhile, or another user's
            if process.environ().get(name) == value:
                found.append(process)
    return found


def kill(processes) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def listens_on(process: psutil.Process) -> set[str]:
    """Return the addresses on which a process listens."""
    with suppress(psutil.NoSuchProcess):
        connections = process.net_connections("inet")
        return {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
    return set()


class Cluster:
    """munged, slurmctld and two slurmd in the foreground, each ended by its process id."""

    def __init__(self, folder: Path):
        self.folder, self.conf, self.running = folder, folder / "slurm.conf", {}
        names = ("slurmctld", "n1", "n2")
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
        ports = [each.getsockname()[1] for each in sockets]
        for each in sockets:
            each.close()
        for name in ("state", "spool-n1", "spool-n2"):
            (folder / name).mkdir()
        text = SLURM_CONF.format(folder=folder, **dict(zip(names, ports, strict=True)))
        self.conf.write_text(text)
        (folder / "gres.conf").write_text(GRES_CONF)
        (folder / "cgroup.conf").touch()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        folder.chmod(0o755)

    def start(self, wait_for):
        munge, conf = self.folder / "munge.socket", str(self.conf)
        command = ["munged", "--force", "-F", f"--socket={munge}"]
        command += [f"--key-file={self.folder / 'munge.key'}"]
        command += [f"--{name}-file={self.folder}/munged.{name}" for name in ("pid", "log", "seed")]
        self._start("munged", command)
        wait_for("munged", munge.exists)
        self._start("slurmctld", ["slurmctld", "-D", "-c", "-f", conf])
        for node in ("n1", "n2"):
            self._start(node, ["slurmd", "-D", "-N", node, "-f", conf])
        states = ("sinfo", "-h", "-N", "-o", "%t")
        wait_for("two idle nodes", lambda: self.ask(*states).split() == ["idle"] * 2, every=0.5)

    def _start(self, name, command):
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = psutil.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.env
            )

    @property
    def env(self):
        return os.environ | {"SLURM_CONF": str(self.conf)}

    def processes(self) -> list[psutil.Process]:
        """Return the daemons and their clients."""
        return with_environment("SLURM_CONF", str(self.conf))

    def ask(self, *command) -> str:
        return subprocess.run(command, env=self.env, capture_output=True, text=True).stdout

    def lose(self, node):
        """Kill a node's slurmd and all that runs on it."""
        daemon = self.running.pop(node)
        tasks = with_environment("SLURMD_NODENAME", node)
        parents = []
        for task in tasks:
            with suppress(psutil.NoSuchProcess):  # ended meanwhile
                parents.append(task.parent())
        steps = [parent for parent in parents if parent and parent.name() == "slurmstepd"]
        kill(dict.fromkeys([daemon, *steps, *tasks]))
        daemon.wait()

    def ends(self) -> dict[str, list[tuple[str, str, int, int]]]:
        """Return each job's ends: its state, node, and the minutes and megabytes it had."""
        ends = {}
        for line in (self.folder / "finished-jobs").read_text().splitlines():
            fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
            size, unit = re.search(r"mem=(\d+)([MG])", line).groups()  # 2048M is 2G
            asked = int(fields["TimeLimit"]), int(size) * (1024 if unit == "G" else 1)
            end = (fields["JobState"], fields["NodeList"], *asked)
            ends.setdefault(fields["JobId"], []).append(end)
        return ends

    def listens(self) -> set[str]:
        """Return the addresses on which any of its processes listens."""
        on_nodes = [with_environment("SLURMD_NODENAME", node) for node in ("n1", "n2")]
        return set().union(*map(listens_on, sum(on_nodes, self.processes())))

    def stop(self):
        for node in ("n1", "n2"):
            if node in self.running:
                self.lose(node)
        for name in ("slurmctld", "munged"):  # the first needs the second to end in order
            if name in self.running:
                self.running[name].terminate()
                psutil.wait_procs([self.running[name]], 10)
        kill(self.processes())  # where a test failed, a batch is still under way


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, wait_for):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    # Where srun looks, inside a job.
    links = [ETC / name for name in ("slurm.conf", "gres.conf", "cgroup.conf")]
    made = not ETC.exists()
    ETC.mkdir(exist_ok=True)
    try:
        for link in links:
            if link.is_symlink():  # of a test that was killed
                link.unlink()
            link.symlink_to(cluster.folder / link.name)
        cluster.start(wait_for)
        yield cluster
    finally:
        cluster.stop()
        for link in links:
            link.unlink(missing_ok=True)
        if made:
            ETC.rmdir()


class Batch:
    """A batch under way with the profile for Slurm: smoke runs, and the chapter on them."""

    def __init__(self, cluster: Cluster, seeds: list[int], epochs: int, words_of):
        self.outputs, grid = cluster.folder / "outputs", cluster.folder / "long.yml"
        self.outputs.mkdir()
        head = f"profile: smoke\nmethods: [single]\nseeds: {seeds}\n"
        grid.write_text(head + f"overrides: [{{epochs: {epochs}}}]\n")
        # Asked sooner than by default, and more than one job.
        options = ["--slurm-init-seconds-before-status-checks", "2"]
        options += ["--group-components", "short=2"]
        command = [str(Path(sys.executable).with_name("snakemake"))]
        command += words_of(self.outputs, *options, where="slurm", grid=str(grid))
        self.log = cluster.folder / "batch.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=cluster.env | {"MIXSHARE_OUTPUTS": str(self.outputs)},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def suspended(self, trainer, but: str = "") -> psutil.Process | None:
        """Suspend a process that trains a run, in another Slurm job than `but`, and return it.

        Otherwise the run might end before a test acts.
        """
        for process in filter(None, map(trainer, self.outputs.glob("smoke/*/seed-*"))):
            with suppress(psutil.NoSuchProcess):  # ended meanwhile: another may train
                if process.environ()["SLURM_JOB_ID"] != but:
                    process.suspend()
                    return process
        return None


def test_jobs_killed_or_cancelled_or_whose_node_is_lost_are_made_again_and_end_the_same(
    cluster, snakemake_words, finished, contents, trainer, wait_for
):
    # Some seconds of training, so that no run is over before it is seen. A job of two short runs,
    # and one of the third, have a node each; then comes the chapter that reads all three.
    seeds, epochs = [1, 2, 3], 20
    batch = Batch(cluster, seeds, epochs, snakemake_words)
    kernel = wait_for("a training", lambda: batch.suspended(trainer))
    killed = kernel.environ()["SLURM_JOB_ID"]
    another = wait_for("a training of the other job", lambda: batch.suspended(trainer, but=killed))
    lost, node = another.environ()["SLURM_JOB_ID"], another.environ()["SLURMD_NODENAME"]
    kernel.kill()
    assert cluster.listens() == {"127.0.0.1"}
    cluster.lose(node)

    def chapters_jobs() -> list[str]:
        return re.findall(r"^(\d+) rule_study", cluster.ask(*RUNNING), re.M)

    cancelled = wait_for("the chapter's job", chapters_jobs, 300, 0.5)[0]
    subprocess.run(["scancel", cancelled], env=cluster.env, check=True)
    assert batch.process.wait(600) == 0, batch.log.read_text()

    log = batch.log.read_text()
    assert "mixshare: 4 made, 0 reused, 0 failed, 0 not begun" in log
    assert log.count("Trying to restart job") == 2 and "Traceback" not in log
    assert "was killed: perhaps it wanted more memory than there is" in log
    (other,) = {"n1", "n2"} - {node}
    ends = cluster.ends()
    again, chapter = sorted(set(ends) - {killed, lost, cancelled}, key=int)
    asked = {job: ends[job][0][2:] for job in ends}
    assert ends == {
        killed: [("FAILED", other, *asked[killed])],
        again: [("COMPLETED", other, *(2 * number for number in asked[killed]))],
        lost: [("NODE_FAIL", node, *asked[lost]), ("COMPLETED", other, *asked[lost])],
        cancelled: [("CANCELLED", other, *asked[cancelled])],
        chapter: [("COMPLETED", other, *(2 * number for number in asked[cancelled]))],
    }
    for seed in seeds:
        run = finished("single", seed, epochs=epochs)
        one, two = contents(run.folder), contents(runs.run_folder(run.config, batch.outputs))
        assert [name for name in runs.RUN_FILES if one[name] != two[name]] == []
