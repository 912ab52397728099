"""The batch on a real Slurm of two nodes, both on this machine's loopback: jobs are cancelled, killed, lose their node, and end the same."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import filelock
import psutil
import pytest

from mixshare import runs, targets
from mixshare.files import project_root

DAEMONS, CLIENTS, ETC = ("munged", "slurmctld", "slurmd"), ("sbatch", "squeue", "scancel", "srun", "sinfo"), Path("/etc/slurm")
MISSING = [name for name in DAEMONS + CLIENTS if not shutil.which(name)]
PROBLEM = (
    f"without {', '.join(MISSING)}: apt-get install -y --no-install-recommends slurm-wlm munge"
    if MISSING
    else "only root may start a Slurm and link its configuration in /etc/slurm"
    if os.geteuid()
    else f"{ETC}/slurm.conf is there: this machine has a Slurm of its own"
    if (ETC / "slurm.conf").exists()
    else ""
)
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM)]

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
SlurmdTimeout=10
KillWait=2
ReturnToService=2
GresTypes=gpu
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n1} CPUs=2 RealMemory=16000 Gres=gpu:1
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n2} CPUs=2 RealMemory=16000 Gres=gpu:1
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""
GRES_CONF = "NodeName=n1 Name=gpu File=/dev/null\nNodeName=n2 Name=gpu File=/dev/null\n"


def wait_for(what, condition, seconds=90.0, every=0.02):
    """What `condition` returns as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(every)
    return found


def with_environment(name: str, value: str) -> list[psutil.Process]:
    """The processes that have an environment variable of this value."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value:
                found.append(process)
        except psutil.Error:  # ended meanwhile, or not ours to ask
            continue
    return found


class Cluster:
    """munged, slurmctld and two slurmd in the foreground, each ended by its process id."""

    def __init__(self, folder: Path):
        self.folder, self.conf, self.running = folder, folder / "slurm.conf", {}
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        self.ports = dict(zip(("slurmctld", "n1", "n2"), (each.getsockname()[1] for each in sockets)))
        for each in sockets:
            each.close()
        for name in ("state", "spool-n1", "spool-n2"):
            (folder / name).mkdir()
        self.conf.write_text(SLURM_CONF.format(folder=folder, **self.ports))
        (folder / "gres.conf").write_text(GRES_CONF)
        (folder / "cgroup.conf").touch()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        folder.chmod(0o755)

    def start(self):
        socket_, key, conf = self.folder / "munge.socket", self.folder / "munge.key", str(self.conf)
        own = [f"--{name}-file={self.folder}/munged.{name}" for name in ("pid", "log", "seed")]
        self._start("munged", ["munged", "--force", "-F", f"--key-file={key}", f"--socket={socket_}", *own])
        wait_for("munged", socket_.exists)
        self._start("slurmctld", ["slurmctld", "-D", "-c", "-f", conf])
        for node in ("n1", "n2"):
            self._start(node, ["slurmd", "-D", "-N", node, "-f", conf])
        wait_for("two idle nodes", lambda: self.ask("sinfo", "-h", "-N", "-o", "%t").split() == ["idle"] * 2, every=0.5)

    def _start(self, name, command):
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = psutil.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.env)

    @property
    def env(self):
        return os.environ | {"SLURM_CONF": str(self.conf)}

    def ask(self, *command) -> str:
        return subprocess.run(command, env=self.env, capture_output=True, text=True).stdout

    def lose(self, node):
        """A node's death: its slurmd, and all that runs there."""
        daemon = self.running.pop(node)
        tasks = with_environment("SLURMD_NODENAME", node)
        steps = [parent for task in tasks if (parent := task.parent()) and parent.name() == "slurmstepd"]
        for process in dict.fromkeys([daemon, *steps, *tasks]):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        daemon.wait()

    def finished_jobs(self) -> list[dict[str, str]]:
        """Every end of a job that Slurm has noted."""
        lines = (self.folder / "finished-jobs").read_text().splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def listens(self) -> set[str]:
        """The addresses on which any of its processes listens."""
        own = [*self.running.values(), *with_environment("SLURM_CONF", str(self.conf)), *with_environment("SLURMD_NODENAME", "n1")]
        found = set()
        for process in own:
            try:
                found |= {each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN}
            except psutil.NoSuchProcess:
                continue
        return found

    def stop(self):
        for node in ("n1", "n2"):
            self.lose(node) if node in self.running else None
        for name in ("slurmctld", "munged"):  # the one says goodbye with the other's help
            if name in self.running:
                self.running[name].terminate()
                gone, alive = psutil.wait_procs([self.running[name]], 10)
                for process in alive:
                    process.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    links = [ETC / name for name in ("slurm.conf", "gres.conf", "cgroup.conf")]  # where srun looks, inside a job
    made = not ETC.exists()
    ETC.mkdir(exist_ok=True)
    try:
        for link in links:
            link.symlink_to(cluster.folder / link.name)
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        for link in links:
            link.unlink(missing_ok=True)
        if made:
            ETC.rmdir()


class Batch:
    """A smoke batch by Snakemake, on the committed profile for Slurm, under way."""

    def __init__(self, cluster: Cluster, seeds: list[int]):
        self.outputs = cluster.folder / "outputs"
        self.outputs.mkdir()
        self.said = cluster.folder / "batch.log"
        command = [Path(sys.executable).with_name("snakemake"), "--snakefile", project_root() / "workflow" / "Snakefile"]
        command += ["--workflow-profile", project_root() / "workflow" / "profiles" / "slurm", "--directory", self.outputs]
        command += ["--slurm-init-seconds-before-status-checks", "2", "--group-components", "short=2"]  # sooner, and more than one job
        command += ["--config", "profile=smoke", "methods=single", f"seeds={','.join(map(str, seeds))}"]
        env = cluster.env | {"MIXSHARE_OUTPUTS": str(self.outputs)}
        with self.said.open("wb") as log:
            self.process = subprocess.Popen(list(map(str, command)), env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def in_training(self) -> dict[str, psutil.Process]:
        """The kernels that train a run at this moment, by their Slurm job."""
        found = {}
        for kernel in with_environment("MIXSHARE_OUTPUTS", str(self.outputs)):
            try:
                if any("ipykernel_launcher" in word for word in kernel.cmdline()) and any(
                    Path(file.path).name == ".lock" for file in kernel.open_files()
                ):
                    found[kernel.environ()["SLURM_JOB_ID"]] = kernel
            except psutil.NoSuchProcess:
                continue
        return found

    def next_training(self, but=()) -> tuple[str, psutil.Process]:
        """A Slurm job, none of `but`, that has just begun to train a run, and the kernel that does."""
        return wait_for("a training", lambda: next(((job, k) for job, k in self.in_training().items() if job not in but), None), 180)


def test_jobs_that_are_cancelled_killed_or_lose_their_node_are_made_again_and_end_the_same(cluster, finished, contents):
    seeds = [1, 2, 3]
    batch = Batch(cluster, seeds)  # two jobs: of two short runs, and of one
    cancelled, _ = batch.next_training()
    subprocess.run(["scancel", cancelled], env=cluster.env, check=True)
    killed, kernel = batch.next_training(but=[cancelled])
    kernel.kill()
    assert cluster.listens() == {"127.0.0.1"}
    lost, kernel = batch.next_training(but=[cancelled, killed])
    node = kernel.environ()["SLURMD_NODENAME"]
    cluster.lose(node)
    assert batch.process.wait(300) == 0, batch.said.read_text()

    said = batch.said.read_text()
    assert said.count("Trying to restart job") == 2 and "mixshare: 4 made, 0 reused, 0 failed, 0 not begun" in said
    ends = [(job["JobId"], job["JobState"], job["NodeList"] == node) for job in cluster.finished_jobs()]
    assert (cancelled, "CANCELLED", True) in ends or (cancelled, "CANCELLED", False) in ends
    for seed in seeds:
        run = finished("single", seed)
        one, two = contents(run.folder), contents(runs.run_folder(run.config, batch.outputs))
        assert [name for name in runs.RUN_FILES if one[name] != two[name]] == []
