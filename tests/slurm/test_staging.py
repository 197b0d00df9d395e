"""The environment on every node's own disk (jobs/pack_env.sh, jobs/staging.sh), in jobs of a real Slurm whose nodes have a disk of 300 MB each.

The packed environment is a small one: it reads the packages from the one that the tests run in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster

JOB = """\
#!/bin/bash
#SBATCH -N 2
set -euo pipefail
cd {root}
source jobs/common.sh
source jobs/staging.sh
each() {{ srun --overlap -N "$1" -w "$2" bash -c "$3"; }}
job_begin
disk=$FRONTIER_LOCAL
{body}
"""
STAGE = 'stage_environment; echo "runs ${python[*]}, ${FRONTIER_ENV_STAGE_S:-not} staged"\n'


class Done(NamedTuple):
    code: int
    text: str


def make_venv(folder: Path) -> Path:
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    (site / "packages.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    (site / "one-1.0.dist-info").mkdir()
    (folder / "bin" / "where").write_text(f"#!{folder}/bin/python\nimport sys; print('where', sys.prefix)\n")
    (folder / "bin" / "where").chmod(0o755)
    return folder


def program(path: Path, body: str) -> Path:
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def pack(*words: str | Path, **env: str) -> Done:
    done = subprocess.run(
        [ROOT / "jobs" / "pack_env.sh", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )
    return Done(done.returncode, done.stdout + done.stderr)


def info(archive: Path) -> dict[str, str]:
    lines = archive.with_name(archive.name + ".info").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def submit(cluster: Cluster, folder: Path, body: str, env: Path, archive: Path | str, **more: str) -> Done:
    """The body as a job of two nodes, to its end."""
    script, out = folder / "job.sh", folder / "job.out"
    script.write_text(JOB.format(root=ROOT, body=body))
    settings = {"FRONTIER_SITE": "local", "FRONTIER_VENV": str(env), "FRONTIER_PACK": str(archive)}
    settings |= {"FRONTIER_LOCAL": f"/mnt/bb/{folder.name}", **more}
    done = cluster.run("sbatch", "--parsable", "-o", out, script, **settings)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    cluster.wait(job)
    code = re.search(r"ExitCode=(\d+)", cluster.run("scontrol", "show", "job", job).stdout)
    assert code is not None
    return Done(int(code[1]), out.read_text())


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    env = make_venv(tmp_path_factory.mktemp("shared") / "env")
    archive = env.parent / "env.tar.gz"
    done = pack(env, archive)
    assert done.code == 0, done.text
    assert "packages.pth adds" in done.text
    return env, archive


def test_runs_from_the_copy_and_uses_it_again(cluster: Cluster, tmp_path: Path, packed: tuple[Path, Path]) -> None:
    body = f"""{STAGE}
    each 2 n1,n2 '"$stage_dest/bin/python" -c "import sys, numpy, socket; print(socket.gethostname(), sys.prefix)"; "$stage_dest/bin/where"; ls "$stage_folder"'
    JOB_ID=later; python=(); {STAGE}
    each 1 n2 'rm "$stage_dest/bin/where"' # as a cleaner of /tmp would
    JOB_ID=last; {STAGE}
    each 1 n2 'where'
    """
    done = submit(cluster, tmp_path, body, *packed)
    assert done.code == 0, done.text
    name = f"frontier-env-{info(packed[1])['sha256'][:16]}"
    place = f"/mnt/bb/{tmp_path.name}/{name}"
    for host in ("n1", "n2"):
        assert f"{host} {place}\n" in done.text
    assert done.text.count(f"where {place}\n") == 3
    assert "tar.gz" not in done.text  # the archive is gone
    first, second, third = (line for line in done.text.splitlines() if line.startswith("job: environment on 2 nodes: "))
    assert "broadcast " in first and " s, unpacked " in first
    assert "reused, in all " in second
    assert "broadcast " in third
    assert done.text.count(f"runs {place}/bin/python, ") == 3 and "not staged" not in done.text


def test_stays_on_the_shared_file_system_where_there_is_no_other(
    cluster: Cluster, tmp_path: Path, packed: tuple[Path, Path]
) -> None:
    env, _ = packed
    body = f"""
    FRONTIER_LOCAL=/nonexistent; {STAGE}
    FRONTIER_LOCAL=; {STAGE}
    each 1 n1 "mkdir -p $disk"
    FRONTIER_LOCAL=$disk/below; {STAGE}
    FRONTIER_PACK=; {STAGE}
    each 2 n1,n2 '! ls -d /nonexistent'
    """
    done = submit(cluster, tmp_path, body, *packed)
    assert done.code == 0, done.text
    assert "no node-local storage at /nonexistent on any of 2 nodes: the environment stays" in done.text
    assert "site local names no node-local storage" in done.text
    assert f"no node-local storage at /mnt/bb/{tmp_path.name}/below on n2: the environment stays" in done.text
    assert done.text.count(f"runs {env}/bin/python, not staged") == 4


def test_a_full_or_broken_disk_ends_the_job_with_one_line(
    cluster: Cluster, tmp_path: Path, packed: tuple[Path, Path]
) -> None:
    body = """
    each 2 n1,n2 "mkdir -p $disk"
    each 1 n2 "dd if=/dev/zero of=/mnt/bb/filler bs=1M status=none" || echo filled
    (stage_environment) && exit 1 || echo "exit $?"
    each 1 n2 "rm /mnt/bb/filler; mount -t tmpfs -o ro none $disk"
    (stage_environment) && exit 1 || echo "exit $?"
    each 1 n2 "umount $disk"
    each 2 n1,n2 "ls -A $disk"
    FRONTIER_PACK=$PWD/none.tar.gz; stage_environment
    """
    done = submit(cluster, tmp_path, body, *packed)
    place = f"/mnt/bb/{tmp_path.name}"
    assert done.code == 2, done.text
    assert "filled" in done.text
    assert (
        f"job: {place} is too full on n2 (0 MiB): the environment takes 1 MiB, archive and unpacked: make room"
        in done.text
    )
    assert f"job: {place} cannot be written on n2: leave the node out" in done.text
    assert done.text.count("exit 2") == 2
    assert done.text.splitlines()[-1].startswith(
        f"job: FRONTIER_PACK={ROOT}/none.tar.gz: no such file: make it with jobs/pack_env.sh"
    )
    assert "frontier-env" not in done.text


def test_a_failure_on_the_way_falls_back_and_leaves_nothing(
    cluster: Cluster, tmp_path: Path, packed: tuple[Path, Path]
) -> None:
    env, good = packed
    spoilt, lying = tmp_path / "spoilt.tar.gz", tmp_path / "lying.tar.gz"
    data = bytearray(good.read_bytes())
    data[len(data) // 2] ^= 1
    spoilt.write_bytes(data)
    shutil.copy(f"{good}.info", f"{spoilt}.info")
    lying.write_bytes(data)  # the checksum is that of the damaged archive: tar finds out
    body = f"""
    {STAGE}
    FRONTIER_PACK={lying}; {STAGE}
    FRONTIER_PACK={good}
    each 1 n2 "mkdir -p $disk/frontier-env-{info(good)["sha256"][:16]}.$JOB_ID.tar.gz/in_the_way"
    {STAGE}
    each 2 n1,n2 "ls $disk | grep -v lock || true"
    """
    done = submit(cluster, tmp_path, body, env, spoilt)
    assert done.code == 0, done.text
    warnings = [line for line in done.text.splitlines() if "not staged:" in line]
    assert "n1: the archive that arrived is not the one that was packed (sha256)" in warnings[0]
    assert "n2: the archive" in warnings[0]
    assert "n1: tar: " in warnings[1]
    assert "the broadcast to /mnt/bb/" in warnings[2] and "failed (exit" in warnings[2]
    assert len(warnings) == 3 and all(line.endswith(f"it is read from {env}") for line in warnings)
    assert done.text.count(f"runs {env}/bin/python, not staged") == 3
    assert "frontier-env" not in done.text.split("runs")[-1]


def test_makes_room_and_warns_of_a_change(cluster: Cluster, tmp_path: Path) -> None:
    """Two versions do not fit: the older goes, unless a process uses it."""
    env, old, new = make_venv(tmp_path / "env"), tmp_path / "old.tar.gz", tmp_path / "new.tar.gz"
    (env / "weights").write_bytes(os.urandom(20 << 20))
    shutil.copy(sys.executable, env / "program")
    assert pack(env, old).code == 0
    (env / "weights").write_bytes(os.urandom(20 << 20))
    (next(env.glob("lib/python3*/site-packages")) / "two-2.0.dist-info").mkdir()
    assert pack(env, new).code == 0
    body = f"""
    {STAGE}
    each 2 n1,n2 "fallocate -l 240M /mnt/bb/filler; touch -d '1 hour ago' $stage_dest/.frontier-pack"
    srun --overlap -N 1 -w n2 "$stage_dest/program" -c 'import time; time.sleep(60)' & user=$!
    sleep 2
    FRONTIER_PACK={new}
    (stage_environment) && exit 1 || echo "exit $?"
    kill $user; wait $user || true
    {STAGE}
    each 1 n2 "ls $disk; rm -rf $disk /mnt/bb/filler"
    each 1 n1 "rm -rf $disk /mnt/bb/filler"
    """
    done = submit(cluster, tmp_path, body, env, old)
    assert done.code == 0, done.text
    assert (
        f"old.tar.gz was packed {info(old)['packed']} from {env}, and {env} is not the same (newest package 2"
        in done.text
    )
    assert done.text.count("not the same") == 1
    assert re.search(r"is too full on n\d \(\d\d MiB\)", done.text)
    names = [f"frontier-env-{info(archive)['sha256'][:16]}" for archive in (old, new)]
    assert f"\n{names[1]}\n" in done.text and f"\n{names[0]}\n" not in done.text


def test_two_starts_at_once_unpack_once(cluster: Cluster, tmp_path: Path, packed: tuple[Path, Path]) -> None:
    slow = program(tmp_path / "bin" / "pigz", f"hostname >>{tmp_path}/unpacked; sleep 1; exec gzip $*")
    body = f"""
    each 2 n1,n2 "mkdir -p $disk"
    export PATH={slow.parent}:$PATH SLURM_OVERLAP=1
    (JOB_ID=a; stage_environment) & first=$!
    (JOB_ID=b; stage_environment) & second=$!
    wait $first; wait $second
    each 2 n1,n2 "ls $disk"
    """
    done = submit(cluster, tmp_path, body, *packed)
    assert done.code == 0, done.text
    assert done.text.count("job: environment on 2 nodes: broadcast") == 2
    assert "tar.gz" not in done.text
    assert sorted((tmp_path / "unpacked").read_text().split()) == ["n1", "n2"]


@pytest.mark.parametrize("launcher", ["none", "pbs"])
def test_copies_where_there_is_no_sbcast(launcher: str, tmp_path: Path, packed: tuple[Path, Path]) -> None:
    """Without a scheduler, and as under PBS: MPICH's mpiexec on a list of one node."""
    env, archive = packed
    script = tmp_path / "job.sh"
    script.write_text(JOB.format(root=ROOT, body=STAGE + 'where; ls "$stage_folder"'))
    more = {
        "FRONTIER_SITE": "local",
        "FRONTIER_VENV": env,
        "FRONTIER_PACK": archive,
        "FRONTIER_LOCAL": tmp_path / "disk",
    }
    if launcher == "pbs":
        if not (Path(sys.executable).parent / "mpiexec").exists():
            pytest.skip("no mpiexec in this environment (requirements-test.txt)")
        (tmp_path / "nodes").write_text("localhost\n")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        more |= {"PBS_JOBID": "12.host", "PBS_NODEFILE": tmp_path / "nodes", "PATH": path}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", script], capture_output=True, text=True, env=clean | {k: str(v) for k, v in more.items()}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "environment on 1 nodes: copied " in done.stdout
    assert f"where {tmp_path}/disk/frontier-env-" in done.stdout
    assert "tar.gz" not in done.stdout


def test_a_node_that_hangs_costs_a_bounded_time(cluster: Cluster, tmp_path: Path, packed: tuple[Path, Path]) -> None:
    hangs = program(tmp_path / "bin" / "pigz", "[ $(hostname) = n1 ] && exec gzip $*\nexec sleep 60")
    body = f"""
    export PATH={hangs.parent}:$PATH
    stage_limit_s=4 SECONDS=0
    {STAGE}
    [ $SECONDS -lt 20 ] || echo "took $SECONDS s"
    each 2 n1,n2 "ls $disk | grep -v lock || true"
    """
    env, archive = packed
    done = submit(cluster, tmp_path, body, env, archive)
    assert done.code == 0, done.text
    assert f"1 of 2 nodes answered within 4 s (exit 124); it is read from {env}" in done.text
    assert "took" not in done.text
    # n1's copy is whole: it stays for the next start
    assert done.text.split("staged\n")[-1].split() == [f"frontier-env-{info(archive)['sha256'][:16]}"]


def test_pack_says_what_is_wrong(tmp_path: Path, packed: tuple[Path, Path]) -> None:
    env, _ = packed
    (tmp_path / "conda" / "bin").mkdir(parents=True)
    (tmp_path / "conda" / "conda-meta").mkdir()
    (tmp_path / "conda" / "bin" / "python").symlink_to(sys.executable)
    for words, expected in [
        ([tmp_path], "no bin/python there"),
        ([env, tmp_path / "a.zip"], "name it .tar.gz or .tar.zst"),
        ([env, env / "a.tar.gz"], "lies inside the environment"),
        ([env, tmp_path / "no" / "a.tar.gz"], "its folder is not there"),
        ([tmp_path / "conda"], "conda install -p"),
    ]:
        done = pack(*words, PATH=os.defpath)  # no conda-pack
        assert done.code == 2 and expected in done.text and len(done.text.splitlines()) == 1, done.text
    assert not list(tmp_path.glob("*.tar*"))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["tar.gz", "tar.zst"])
def test_with_its_base_it_reads_nothing_of_the_shared_one(cluster: Cluster, tmp_path: Path, suffix: str) -> None:
    if sys.base_prefix == "/usr":
        pytest.skip("this Python is the system's own: there is no base to pack")
    env, archive = tmp_path / "env", tmp_path / f"env.{suffix}"
    venv.create(env, symlinks=True)
    done = pack("--with-base", env, archive)
    assert done.code == 0, done.text
    body = f"""{STAGE}
    each 2 n1,n2 "python -c '
import json, ssl, sqlite3, sys, sysconfig, os, socket
assert os.path.isfile(sysconfig.get_path(\\"include\\") + \\"/Python.h\\")
maps = [line.split()[-1] for line in open(\\"/proc/self/maps\\")]
files = [module.__file__ for module in sys.modules.values() if getattr(module, \\"__file__\\", None)]
print(socket.gethostname(), sys.prefix == sys.base_prefix, sum(path.startswith(\\"{sys.base_prefix}\\") for path in maps + files), len(files) > 20)
'; rm -rf $disk"
    """
    done = submit(cluster, tmp_path, body, env, archive)
    assert done.code == 0, done.text
    assert "n1 True 0 True" in done.text and "n2 True 0 True" in done.text


@pytest.mark.slow
def test_a_conda_environment(cluster: Cluster, tmp_path: Path) -> None:
    """By the real conda-pack; the environment is a Python in a folder of its own with conda's records beside it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if shutil.which("conda-pack", path=path) is None:
        pytest.skip("no conda-pack here (pip install conda-pack)")
    env, archive, base = tmp_path / "env", tmp_path / "env.tar.gz", Path(sys.base_prefix)
    short = f"python3.{sys.version_info.minor}"
    shutil.copytree(
        base / "lib" / short,
        env / "lib" / short,
        symlinks=True,
        ignore=shutil.ignore_patterns("site-packages", "test", "config-*"),
    )
    (env / "lib" / short / "site-packages").mkdir()
    for library in base.glob("lib/libpython*"):
        shutil.copy(library, env / "lib", follow_symlinks=False)
    (env / "bin").mkdir()
    shutil.copy(base / "bin" / short, env / "bin" / "python")
    (env / "bin" / "where").write_text(f"#!{env}/bin/python\nimport sys; print('where', sys.prefix)\n")
    (env / "bin" / "where").chmod(0o755)
    (env / "conda-meta").mkdir()
    (env / "conda-meta" / "history").touch()
    record = {"name": "python", "version": sys.version.split()[0], "build": "0", "depends": [], "files": []}
    record |= {
        "paths_data": {"paths": [], "paths_version": 1},
        "link": {"source": "/nonexistent", "type": 1},
        "url": "",
    }
    (env / "conda-meta" / "python.json").write_text(json.dumps(record))
    done = pack(env, archive, PATH=path)
    assert done.code == 0, done.text
    assert info(archive)["kind"] == "conda"
    done = submit(cluster, tmp_path, f"""{STAGE}\neach 2 n1,n2 'where; rm -rf "$stage_folder"'""", env, archive)
    assert done.code == 0, done.text
    assert done.text.count(f"where /mnt/bb/{tmp_path.name}/frontier-env-") == 2
