"""A real Slurm of several nodes on this one machine, for tests: its own folder, ports, munge key and socket; no /etc, no services.

    with running(Path("/tmp/somewhere")) as cluster:
        cluster.run("sbatch", "job.sh")

Every node has a host name and a loopback address of its own (n1 is 127.0.0.11) by a namespace for its slurmd, so that jobs
see what they see on a real machine: SLURM_STEP_NODELIST names hosts that resolve, and hostname() differs between nodes.
Each has a disk of its own at /mnt/bb (300 MB of memory), the feature nvme, and eight GPUs as far as Slurm knows (empty files: it
grants and refuses them; no rank can use one). Whole nodes only, as on Frontier; a requeued job waits 6 s instead of two minutes.
`python -m tests.slurm.cluster` keeps one up to try things by hand. Accounting (sacct) is not there: it needs a database.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from frontier.launch.local import end_with_parent, free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scontrol", "scancel", "unshare", "mount")

CONF = """\
ClusterName=frontier-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={base}/munge/socket,cred_expire=5
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmdPidFile={base}/slurmd.%n.pid
SlurmctldPidFile={base}/slurmctld.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.%n.log
TmpFS={base}/tmp/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={base}/log/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
KillWait={kill_wait_s}
SlurmdTimeout=10
GresTypes=gpu
MinJobAge=300
JobRequeue=1
{nodes}
PartitionName=batch Nodes=ALL Default=YES OverSubscribe=EXCLUSIVE MaxTime=UNLIMITED PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL OverSubscribe=EXCLUSIVE MaxTime=UNLIMITED PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str:
    """Why no cluster can run here, in one line; "" where it can."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root: slurmd starts jobs as their users"
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return (
            f"no {', '.join(missing)} here: run tools/system_packages.sh (Debian: slurmctld slurmd slurm-client munge)"
        )
    done = subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, text=True)
    if done.returncode:
        return f"no namespaces here, so nodes cannot have names of their own: {done.stderr.strip()}"
    return ""


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@dataclass
class Cluster:
    """A running Slurm. `env` is what its commands and programs that call them need."""

    base: Path
    nodes: tuple[str, ...]
    env: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, *words: str | Path, timeout: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        """One of Slurm's commands, or any other that is to see this cluster."""
        return subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**self.env, **more},
            cwd=self.base,
        )

    def inside(self, node: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A command that sees what a node's jobs see: its disk and its name."""
        return self.run("nsenter", f"--target={self.daemons[node].pid}", "--mount", "--uts", *words)

    def state(self, job: str) -> str:
        """Of a job, as squeue says it: PENDING, RUNNING, COMPLETING, COMPLETED, …; "" where it is no longer known."""
        done = self.run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}", timeout=20)
        return done.stdout.strip()

    def wait(self, job: str, *states: str, seconds: float = 240) -> str:
        """Until the job is in one of the states (default: ended, however); returns its state."""
        live = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "SIGNALING")
        found = ""

        def there() -> bool:
            nonlocal found
            with contextlib.suppress(subprocess.TimeoutExpired):  # lost on a busy machine: asked again
                found = self.state(job)
            return found in states if states else found not in live

        until(there, seconds, lambda: f"job {job} is {found}, not {states or 'over'}\n{self.words()}")
        return found

    def processes(self, keep: Callable[[psutil.Process], bool] = lambda process: True) -> list[psutil.Process]:
        """The tasks of jobs and their slurmstepd: all that carry this cluster's SLURM_CONF and a job's id.

        Args:
            keep: which of them; asked inside, since a process may end between being found and being asked.
        """
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                env = process.environ()
                is_job = "SLURM_JOB_ID" in env or process.name().startswith("slurmstepd")
                if env.get("SLURM_CONF") == self.env["SLURM_CONF"] and is_job and keep(process):
                    found.append(process)
        return found

    def words(self) -> str:
        """The end of every log, for a test that failed."""
        logs = sorted((self.base / "log").glob("*.log"))
        return "\n".join(f"== {log.name}\n" + "\n".join(_tail(log, 15)) for log in logs)

    def lose(self, node: str) -> None:
        """kill -9 of the node's slurmd and of all that runs there, as if it had lost power."""
        daemon = self.daemons[node]
        here = os.readlink(f"/proc/{daemon.pid}/ns/uts")  # the node's host name is its own, and of all that it started
        daemon.kill()
        daemon.wait()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.readlink(f"/proc/{process.pid}/ns/uts") == here:
                    process.kill()

    def bring_back(self, node: str) -> None:
        """Start the slurmd of a lost node again, until it takes jobs."""
        _start_node(self, node)

        def idle() -> bool:
            self.run("scontrol", "update", f"nodename={node}", "state=resume")
            return self.run("sinfo", "--noheader", f"--nodes={node}", "--format=%t").stdout.split()[:1] == ["idle"]

        until(idle, 60, lambda: f"{node} does not come back\n{self.words()}")
        # A job that was requeued off a dead node is still counted as its only user (Slurm 22.05): no exclusive job would get the node
        # again, idle as it looks. Reading the configuration counts anew.
        self.run("scontrol", "reconfigure")
        until(idle, 60, lambda: f"{node} does not come back\n{self.words()}")

    def stop(self) -> None:
        """Cancel all jobs, end every daemon and whatever they left; by process id, never by name."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.run("scancel", "--full", "--signal=KILL", "--user=root", timeout=10)
        self._kill_tasks()  # a daemon waits for its steps
        _end([process for name, process in self.daemons.items() if name != "munged"])  # which they need to say goodbye
        _end([self.daemons["munged"]] if "munged" in self.daemons else [])
        self._kill_tasks()

    def _kill_tasks(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextlib.contextmanager
def running(base: Path | None = None, nodes: int = 4, cpus: int = 64, kill_wait_s: int = 2) -> Iterator[Cluster]:
    """A cluster of `nodes` nodes n1, n2, … of `cpus` cores in name, all on this machine; it ends with the block.

    Args:
        base: its folder, made where it is missing; default: a temporary one that is removed. Not too deep: a socket's
            path has at most 107 characters.
        kill_wait_s: between SIGTERM and SIGKILL at a job's end.

    Raises:
        RuntimeError: it did not come up; the message holds the ends of its logs.
    """
    with contextlib.ExitStack() as stack:
        if base is None:
            base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        cluster = _prepare(base, tuple(f"n{i}" for i in range(1, nodes + 1)), cpus, kill_wait_s)
        stack.callback(cluster.stop)
        _start(cluster)
        yield cluster


def _prepare(base: Path, nodes: tuple[str, ...], cpus: int, kill_wait_s: int) -> Cluster:
    base.mkdir(parents=True, exist_ok=True)
    for name in ("munge", "state", "spool", "log", *(f"{part}/{node}" for part in ("spool", "tmp") for node in nodes)):
        (base / name).mkdir(parents=True, exist_ok=True)
    base.chmod(0o755)
    key = base / "munge" / "key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    host, ports = socket.gethostname(), set[int]()
    while len(ports) <= len(nodes):
        ports.add(free_port())
    first, *rest = ports
    lines = [
        f"NodeName={node} NodeAddr={_address(i)} Port={port} CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} "
        "ThreadsPerCore=1 RealMemory=16000 Features=nvme Gres=gpu:8"
        for i, (node, port) in enumerate(zip(nodes, rest, strict=True))
    ]
    text = CONF.format(base=base, host=host, port=first, kill_wait_s=kill_wait_s, nodes="\n".join(lines))
    (base / "slurm.conf").write_text(text)
    for i in range(8):
        (base / f"gpu{i}").touch()
    (base / "gres.conf").write_text(f"NodeName=n[1-{len(nodes)}] Name=gpu File={base}/gpu[0-7]\n")
    hosts = Path("/etc/hosts").read_text().rstrip("\n").splitlines()
    (base / "hosts").write_text("\n".join([*hosts, *(f"{_address(i)} {n}" for i, n in enumerate(nodes))]) + "\n")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
    env |= {"SLURM_CONF": str(base / "slurm.conf"), "PATH": _path()}
    return Cluster(base, nodes, env)


def _address(index: int) -> str:
    return f"127.0.0.{11 + index}"


def _start(cluster: Cluster) -> None:
    base = cluster.base
    munge = base / "munge"
    # --force: the folder may lie under a private temporary one; the key is of this cluster alone.
    _spawn(cluster, "munged", "munged", "--foreground", "--force", f"--socket={munge / 'socket'}", f"--key-file={munge / 'key'}",
           f"--pid-file={munge / 'pid'}", f"--seed-file={munge / 'seed'}", f"--log-file={base / 'log' / 'munged.log'}")  # fmt: skip
    until((munge / "socket").exists, 10, lambda: f"munged did not start\n{cluster.words()}")
    _spawn(cluster, "slurmctld", "slurmctld", "-D", "-i")
    for node in cluster.nodes:
        _start_node(cluster, node)

    def idle() -> bool:
        done = cluster.run("sinfo", "--noheader", "--Node", "--partition=batch", "--format=%N %t")
        return sorted(done.stdout.splitlines()) == sorted(f"{node} idle" for node in cluster.nodes)

    until(idle, 60, lambda: f"no cluster: {cluster.run('sinfo').stdout}\n{cluster.words()}")


def _start_node(cluster: Cluster, node: str) -> None:
    inside = 'hostname "$1" && mount --bind "$2" /etc/hosts && mount -t tmpfs none /mnt && mkdir /mnt/bb && mount -t tmpfs -o size=300m nvme /mnt/bb && exec slurmd -D -N "$1"'
    _spawn(cluster, node, "unshare", "--mount", "--uts", "sh", "-c", inside, "sh", node, str(cluster.base / "hosts"))


def _spawn(cluster: Cluster, name: str, *words: str) -> None:
    with open(cluster.base / "log" / f"{name}.out.log", "ab") as log:
        cluster.daemons[name] = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=cluster.env,
            preexec_fn=end_with_parent(),  # a test run that is killed leaves no Slurm behind
        )


def _end(processes: Sequence[subprocess.Popen[bytes]], patience_s: float = 3) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + patience_s
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tail(path: Path, lines: int) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-lines:]


def until(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Wait for the condition. Raises RuntimeError with what() where it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(what())
        time.sleep(0.2)


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(reason)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job would ignore Ctrl-C's
        signal.signal(number, lambda *_: sys.exit(0))
    with running() as here:
        print(f"export SLURM_CONF={here.env['SLURM_CONF']} PATH=$PATH:/usr/sbin   # Ctrl-C ends it", flush=True)
        signal.pause()
