"""`frontier shards …` as its user types it."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.command import main
from frontier.cli import main as frontier
from frontier.errors import EXIT_OK, EXIT_USER


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("command") / "shards"
    arguments = ["write", "--scenes", "40", "--size", "16", "--sensors", "rgb,s2", "--seed", "4", str(out)]
    assert main(arguments) == EXIT_OK
    return out


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert main([*map(str, arguments), "--json"]) == EXIT_OK
    return json.loads(capsys.readouterr().out)


def test_write_prints_one_line(image_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["write", "--from", str(image_folder), str(out)]) == EXIT_OK
    printed = capfd.readouterr()
    assert re.fullmatch(
        rf"{out}: 200 samples \(train 160, test 40\), 2 classes, 2 shards \(2 written, 0 kept\), .* MiB in .* s\n",
        printed.out,
    )
    assert printed.err == "", "no progress where nobody watches"


def test_write_shows_progress_on_a_terminal(image_folder: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "frontier", "shards", "write", "--from", str(image_folder), str(tmp_path / "out")]
    done = subprocess.run(command, stderr=follower, stdout=subprocess.PIPE, check=True)
    os.close(follower)
    assert b"200/200 samples" in os.read(leader, 10000)
    os.close(leader)
    assert done.stdout.count(b"\n") == 1


def test_write_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "write", "--scenes", "8", "--size", "16", tmp_path / "out")
    assert found["samples"] == 8
    assert found["files_written"] == 1
    again = answer(capsys, "write", "--scenes", "8", "--size", "16", tmp_path / "out")
    assert again["files_kept"] == 1
    assert again["fingerprint"] == found["fingerprint"]


def test_info(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "info", shards)
    assert found["samples"] == 40
    assert found["splits"]["train"]["samples"] == 32
    assert set(found["splits"]["train"]["labels"].values()) == {4}
    assert found["images"]["s2"]["bands"][0] == "B01"
    assert main(["info", str(shards)]) == EXIT_OK
    text = capsys.readouterr().out
    assert "12x16x16" in text
    assert "residential" in text


def test_stats(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "stats", shards)
    assert found["image"]["count"] == [32 * 16 * 16] * 3
    assert len(found["s2"]["mean"]) == 12
    main(["stats", str(shards)])
    assert "B8A" in capsys.readouterr().out


def test_verify(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "verify", shards, "--deep") == {"ok": True, "shards": 2, "problems": []}
    file = shards / "train-00000.h5"
    raw = file.read_bytes()
    try:
        file.write_bytes(raw[:-1])
        assert main(["verify", str(shards)]) == EXIT_USER
        assert "train-00000.h5: truncated" in capsys.readouterr().out
    finally:
        file.write_bytes(raw)


def test_bench(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "bench", shards, "--seconds", "0.1", "--column", "s2", "--block", "8")
    assert set(found["readers"]) == {"shards", "h5py", "plain"}
    assert all(reader["samples_per_s"] > 0 for reader in found["readers"].values())
    assert found["readers"]["plain"]["of_plain"] == 1
    main(["bench", str(shards), "--seconds", "0.1"])
    assert "measured" in capsys.readouterr().out


def test_card(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(shards), "--output", str(tmp_path / "card.md")]) == EXIT_OK
    text = (tmp_path / "card.md").read_text()
    assert text.startswith("# generated-scenes\n")
    assert "| B8A | 864.7 | 21 |" in text
    assert "CC0-1.0" in text
    assert "not recorded" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "nowhere"], "nowhere: does not exist"),
        (["write", "--from", "nowhere", "out"], "--from nowhere: does not exist"),
        (["write", "--scenes", "4", "--sensors", "s2,sar", "out"], "no sensor 'sar'"),
        (["write", "--scenes", "4", "--workers", "0", "out"], "--workers 0"),
        (["write", "--scenes", "4", "--test-fraction", "2", "out"], "--test-fraction 2"),
        (["bench", "SHARDS", "--column", "s1"], "no image column 's1'"),
        (["bench", "SHARDS", "--split", "val"], "no split 'val'"),
        (["bench", "SHARDS", "--block", "0"], "--block"),
        (["write", "--scenes", "1000000000000", "out"], "--scenes 1000000000000: give 1 to 10,000,000"),
        (["write", "--scenes", "4"], "required: OUT; `frontier shards write --help`"),
        (["write", "--scenes", "4", "--from", "in", "out"], "--from: not allowed with argument --scenes"),
        (["wrte"], "invalid choice: 'wrte'"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(shards) if argument == "SHARDS" else argument for argument in arguments]
    assert frontier(["shards", *arguments]) == EXIT_USER
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_is_quick_and_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in ("write", "verify", "stats", "info", "bench", "card"))


def mpiexec() -> list[str]:
    """The launcher beside this Python, or the one on the path; skips the test where MPI is not installed."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("no mpiexec")
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    return [found, *(["--allow-run-as-root", "--oversubscribe"] if "Open" in version else [])]


def test_mpi_ranks_write_the_same_bytes(tmp_path: Path) -> None:
    launcher = mpiexec()
    command = [sys.executable, "-m", "frontier", "shards", "write", "--scenes", "40", "--size", "16"]
    command += ["--samples-per-shard", "5"]
    assert main([*command[4:], str(tmp_path / "alone")]) == EXIT_OK
    done = subprocess.run(
        [*launcher, "-n", "3", *command, str(tmp_path / "three")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    alone, three = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("alone", "three"))
    assert alone == three
    # A mistake ends every rank, and is said once.
    done = subprocess.run(
        [*launcher, "-n", "3", *command, "--size", "17", str(tmp_path / "three")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == EXIT_USER
    assert done.stderr.count("another plan") == 1


def test_mpi_ranks_share_the_scan_and_its_errors(tmp_path: Path, image_folder: Path) -> None:
    """Four ranks decode a folder of 200 images; one damaged file is named once, and skipped by choice."""
    import shutil as files

    launcher = mpiexec()
    folder = tmp_path / "in"
    files.copytree(image_folder, folder)
    (folder / "blobs" / "007.png").write_bytes(b"damaged")
    command = [sys.executable, "-m", "frontier", "shards", "write", "--from", str(folder)]
    done = subprocess.run(
        [*launcher, "-n", "4", *command, str(tmp_path / "out")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == EXIT_USER, done.stderr
    assert done.stderr.count("blobs/007.png") == 1 and "Traceback" not in done.stderr
    for name, words in (("four", [*launcher, "-n", "4"]), ("alone", [])):
        done = subprocess.run(
            [*words, *command, str(tmp_path / name), "--on-error", "skip", "--samples-per-shard", "30"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == EXIT_OK, done.stderr
    alone, four = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("alone", "four"))
    assert alone == four
    assert json.loads(alone["manifest.json"])["notes"]["skipped"] == 1


def test_verify_on_ranks_and_workers_says_the_same(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["write", "--scenes", "40", "--size", "16", "--samples-per-shard", "5", str(out)]) == EXIT_OK
    command = [sys.executable, "-m", "frontier", "shards", "verify", "--deep", "--json", str(out)]

    def answers() -> list[tuple[int, str]]:
        ways = [command, [*command, "--workers", "2"], [*mpiexec(), "-n", "3", *command]]
        done = [subprocess.run(way, capture_output=True, text=True, timeout=60) for way in ways]
        assert all("Traceback" not in one.stderr for one in done)
        return [(one.returncode != 0, one.stdout) for one in done]

    whole = answers()
    assert whole == [whole[0]] * 3
    assert json.loads(whole[0][1]) == {"ok": True, "shards": 9, "problems": []}
    damaged = bytearray((out / "train-00002.h5").read_bytes())
    damaged[5000] ^= 1
    (out / "train-00002.h5").write_bytes(damaged)
    found = answers()
    assert found == [found[0]] * 3
    assert found[0][0] and "train-00002.h5" in found[0][1]


@pytest.mark.parametrize(
    "options",
    [
        ("--gap-km", "nan"),
        ("--gap-km", "-3"),
        ("--block-km", "nan", "--split-by", "place"),
        ("--shard-mib", "nan"),
        ("--shard-mib", "inf"),
        ("--shard-mib", "1", "--samples-per-shard", "4"),
        ("--disk-mib-s", "0", "--compression", "auto"),
        ("--disk-mib-s", "nan", "--compression", "auto"),
        ("--workers", "0"),
    ],
)
def test_numbers_without_sense_are_refused(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by a dry run, and before anything is looked at."""
    out = tmp_path / "out"
    assert frontier(["shards", "write", "--scenes", "8", "--dry-run", *options, str(out)]) == EXIT_USER
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert options[0] in printed.err
    assert not out.exists()


def test_ground_distance_is_above_zero(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("nan", "-5"):
        command = ["shards", "write", "--from", str(image_folder), "--gsd-m", value, str(tmp_path / "out")]
        assert frontier(command) == EXIT_USER
        assert f"--gsd-m {value}: give a size above 0" in capsys.readouterr().err
