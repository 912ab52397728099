"""The batch on a real Slurm of two nodes, both on loopback: jobs are cancelled, killed, lose their node, and end the same."""

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
from mixshare.files import project_root

DAEMONS, CLIENTS, ETC = (
    ("munged", "slurmctld", "slurmd"),
    ("sbatch", "squeue", "scancel", "srun", "sinfo"),
    Path("/etc/slurm"),
)
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
SlurmdTimeout=15
KillWait=2
ReturnToService=2
GresTypes=gpu
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n1} CPUs=4 RealMemory=16000 Gres=gpu:1
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n2} CPUs=4 RealMemory=16000 Gres=gpu:1
PartitionName=main Nodes=n1,n2 Default=YES LLN=YES MaxTime=60 State=UP
"""
RUNNING = (
    "--noheader",
    "--states=RUNNING",
    "--format=%i %k",
)  # a job's number and Snakemake's comment
GRES_CONF = "NodeName=n1 Name=gpu File=/dev/null\nNodeName=n2 Name=gpu File=/dev/null\n"


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
        self.ports = dict(
            zip(("slurmctld", "n1", "n2"), (each.getsockname()[1] for each in sockets))
        )
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

    def start(self, wait_for):
        socket_, key, conf = self.folder / "munge.socket", self.folder / "munge.key", str(self.conf)
        own = [f"--{name}-file={self.folder}/munged.{name}" for name in ("pid", "log", "seed")]
        self._start(
            "munged", ["munged", "--force", "-F", f"--key-file={key}", f"--socket={socket_}", *own]
        )
        wait_for("munged", socket_.exists)
        self._start("slurmctld", ["slurmctld", "-D", "-c", "-f", conf])
        for node in ("n1", "n2"):
            self._start(node, ["slurmd", "-D", "-N", node, "-f", conf])
        wait_for(
            "two idle nodes",
            lambda: self.ask("sinfo", "-h", "-N", "-o", "%t").split() == ["idle"] * 2,
            every=0.5,
        )

    def _start(self, name, command):
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = psutil.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.env
            )

    @property
    def env(self):
        return os.environ | {"SLURM_CONF": str(self.conf)}

    def processes(self) -> list[psutil.Process]:
        """The daemons, and who talks to them."""
        return with_environment("SLURM_CONF", str(self.conf))

    def ask(self, *command) -> str:
        return subprocess.run(command, env=self.env, capture_output=True, text=True).stdout

    def lose(self, node):
        """A node's death: its slurmd, and all that runs there."""
        daemon = self.running.pop(node)
        tasks = with_environment("SLURMD_NODENAME", node)
        steps = []
        for task in tasks:
            with suppress(psutil.NoSuchProcess):  # ended meanwhile
                steps += [
                    parent
                    for parent in (task.parent(),)
                    if parent and parent.name() == "slurmstepd"
                ]
        for process in dict.fromkeys([daemon, *steps, *tasks]):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        daemon.wait()

    def ends(self) -> dict[str, list[tuple[str, str, int, int]]]:
        """How each job ended, once or more: its state, its node, the minutes and the megabytes that it had asked for."""
        found = {}
        for line in (self.folder / "finished-jobs").read_text().splitlines():
            told = dict(word.split("=", 1) for word in line.split() if "=" in word)
            asked = int(told["TimeLimit"]), int(re.search(r"mem=(\d+)M", line)[1])
            found.setdefault(told["JobId"], []).append((told["JobState"], told["NodeList"], *asked))
        return found

    def listens(self) -> set[str]:
        """The addresses on which any of its processes listens."""
        found = set()
        for process in (
            *self.processes(),
            *with_environment("SLURMD_NODENAME", "n1"),
            *with_environment("SLURMD_NODENAME", "n2"),
        ):
            try:
                found |= {
                    each.laddr.ip
                    for each in process.net_connections("inet")
                    if each.status == psutil.CONN_LISTEN
                }
            except psutil.NoSuchProcess:
                continue
        return found

    def stop(self):
        for node in ("n1", "n2"):
            self.lose(node) if node in self.running else None
        for name in ("slurmctld", "munged"):  # the one says goodbye with the other's help
            if name in self.running:
                self.running[name].terminate()
                psutil.wait_procs([self.running[name]], 10)
        for process in self.processes():  # where a test failed, a batch is still under way
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, wait_for):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    links = [
        ETC / name for name in ("slurm.conf", "gres.conf", "cgroup.conf")
    ]  # where srun looks, inside a job
    made = not ETC.exists()
    ETC.mkdir(exist_ok=True)
    try:
        for link in links:
            link.unlink() if link.is_symlink() else None  # of a test that was killed
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
    """A batch by Snakemake, on the committed profile for Slurm, under way: smoke runs of so many epochs, and the chapter on them."""

    def __init__(self, cluster: Cluster, seeds: list[int], epochs: int):
        self.outputs, grid = cluster.folder / "outputs", cluster.folder / "long.yml"
        self.outputs.mkdir()
        grid.write_text(
            f"profile: smoke\nmethods: [single]\nseeds: {seeds}\noverrides: [{{epochs: {epochs}}}]\n"
        )
        self.said = cluster.folder / "batch.log"
        command = [
            Path(sys.executable).with_name("snakemake"),
            "--snakefile",
            project_root() / "workflow" / "Snakefile",
        ]
        command += [
            "--workflow-profile",
            project_root() / "workflow" / "profiles" / "slurm",
            "--directory",
            self.outputs,
        ]
        command += [
            "--slurm-init-seconds-before-status-checks",
            "2",
            "--group-components",
            "short=2",
        ]  # sooner, and more than one job
        command += ["--config", f"grid={grid}"]
        env = cluster.env | {"MIXSHARE_OUTPUTS": str(self.outputs)}
        with self.said.open("wb") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def caught(self, trainer, but: str = "") -> psutil.Process | None:
        """A process that trains a run, for another Slurm job than `but`: stopped, for a run may end sooner than a test acts."""
        for process in filter(None, map(trainer, self.outputs.glob("smoke/*/seed-*"))):
            try:
                if process.environ()["SLURM_JOB_ID"] != but:
                    process.suspend()
                    return process
            except psutil.NoSuchProcess:  # ended meanwhile: another may train
                continue
        return None


def test_jobs_killed_or_cancelled_or_whose_node_is_lost_are_made_again_and_end_the_same(
    cluster, finished, contents, trainer, wait_for
):
    seeds, epochs = (
        [1, 2, 3],
        20,
    )  # some seconds of training, so that none is over before it is seen
    batch = Batch(
        cluster, seeds, epochs
    )  # a job of two short runs, one of the third, a node each, then the chapter that reads all three
    kernel = wait_for("a training", lambda: batch.caught(trainer))
    killed = kernel.environ()["SLURM_JOB_ID"]
    another = wait_for("a training of the other job", lambda: batch.caught(trainer, but=killed))
    lost, node = another.environ()["SLURM_JOB_ID"], another.environ()["SLURMD_NODENAME"]
    kernel.kill()
    assert cluster.listens() == {"127.0.0.1"}
    cluster.lose(node)
    cancelled = wait_for(
        "the chapter's job",
        lambda: re.findall(r"^(\d+) rule_study", cluster.ask("squeue", *RUNNING), re.M),
        300,
        0.5,
    )[0]
    subprocess.run(["scancel", cancelled], env=cluster.env, check=True)
    assert batch.process.wait(200) == 0, batch.said.read_text()

    said = batch.said.read_text()
    assert (
        "mixshare: 4 made, 0 reused, 0 failed, 0 not begun" in said
        and said.count("Trying to restart job") == 2
    )
    assert (
        "the process that ran" in said
        and "was killed: perhaps it wanted more memory than there is" in said
        and "Traceback" not in said
    )
    (other,) = {"n1", "n2"} - {node}
    again, chapter = sorted(set(ends := cluster.ends()) - {killed, lost, cancelled}, key=int)
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
