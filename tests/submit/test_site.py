"""Sites as data: what the shipped ones say against their machines, and what a broken one is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from frontier.errors import UserError
from frontier.submit.shell import site_shell
from frontier.submit.site import load_site, shipped
from frontier_profiling.predict.system import load_system
from tests.conftest import ROOT

MINIMAL = """
name: mine
title: A cluster
sources: {DOC: its manual of 2026}
scheduler: slurm
ranks_per_node: 4
device: cuda
partition: gpu
partitions: {gpu: {source: DOC, limits: [{first: 1, last: 8, hours: 24}, {first: 9, last: 64, hours: 6}]}}
directives: [{text: "--gpus-per-node={ranks_per_node}", source: DOC}]
"""


def _write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_the_shipped_sites_are_the_machines_that_the_predictor_knows() -> None:
    assert shipped() == ["aurora", "frontier", "jupiter", "local", "lumi", "perlmutter"]
    for name in shipped():
        site = load_site(name)
        assert site.name == name
        if site.system is None:
            assert name == "local"
            continue
        machine = load_system(site.system)
        assert (site.ranks_per_node, site.scheduler) == (machine.node.devices, machine.node.scheduler), name
        assert site.device == machine.device.type, name
        assert site.cores_per_rank is not None and machine.node.cores is not None
        assert site.cores_per_rank * site.ranks_per_node <= machine.node.cores, name


@pytest.mark.parametrize("name", shipped())
def test_every_source_is_cited_and_dated(name: str) -> None:
    site = load_site(name)
    cited = {word for _, source in site.cited() for word in re.findall(r"\w+", source)}
    cited |= {word for line in site.left_out for word in re.findall(r"\w+", line.why)}
    assert set(site.sources) <= cited
    for line in site.lines():
        assert line.why or not line.source.startswith("suite"), f"{line.text}: say why the suite wants it"


def test_what_frontier_installs_is_a_torch_that_this_package_takes() -> None:
    words = " ".join(line.text for line in load_site("frontier").install)
    (torch,) = re.findall(r"torch==([\d.]+) --index-url \S+/rocm(?=7\.1\b)", words)
    (rocm,) = [line.text.split("/")[1] for line in load_site("frontier").modules if line.text.startswith("rocm/")]
    (least,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "setup.py").read_text())
    assert rocm.startswith("7.1.") and [*map(int, torch.split("."))] >= [*map(int, least.split("."))]
    assert not any(line.text in site_shell(load_site("frontier")) for line in load_site("frontier").install)


def test_limits_of_frontier_by_the_bins_of_its_user_guide() -> None:
    site = load_site("frontier")
    hours = {nodes: site.longest(nodes) for nodes in (1, 91, 92, 183, 184, 1881, 9472)}
    assert hours == {1: 2, 91: 2, 92: 6, 183: 6, 184: 12, 1881: 12, 9472: 12}
    assert site.longest(64, "extended") == 24
    assert site.longest(64, "a_reservation") is None
    with pytest.raises(UserError, match=r"^partition extended of frontier takes jobs of 1-64 nodes, not of 65$"):
        site.longest(65, "extended")
    with pytest.raises(UserError, match="9473"):
        site.longest(9473)
    assert load_site("perlmutter").longest(9) is None  # unknown


def test_masks_of_lumi_are_the_cores_next_to_each_gcd() -> None:
    """The map of the LUMI AI guide's README: core 0 of each L3 region belongs to the system."""
    first = {0: 49, 1: 57, 2: 17, 3: 25, 4: 1, 5: 9, 6: 33, 7: 41}
    (word,) = [line.text for line in load_site("lumi").step if "mask_cpu" in line.text]
    masks = [int(mask, 16) for mask in word.split("mask_cpu=")[1].split(",")]
    cores = {rank: [core for core in range(64) if mask >> core & 1] for rank, mask in enumerate(masks)}
    assert cores == {rank: list(range(core, core + 7)) for rank, core in first.items()}


def test_binding_of_aurora_gives_each_rank_cores_of_its_own_socket() -> None:
    (word,) = [line.text for line in load_site("aurora").step]
    ranges = [tuple(map(int, part.split("-"))) for part in word.split("list:")[1].split(":")]
    cores = [set(range(low, high + 1)) for low, high in ranges]
    assert [len(own) for own in cores] == [4] * 12
    assert len(set.union(*cores)) == 48
    assert not set.union(*cores) & {0, 52}
    assert all(own <= set(range(52)) for own in cores[:6]) and all(own <= set(range(52, 104)) for own in cores[6:])


def test_a_site_of_your_own_by_its_path(tmp_path: Path) -> None:
    site = load_site(_write(tmp_path, MINIMAL))
    assert (site.longest(9), site.tested, site.queue_flag) == (6, "not run", "-p")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modlues": []}, "unknown key 'modlues': did you mean 'modules'?"),
        ({"step": [{"text": "-c7", "source": "DOC", "wy": "x"}]}, "unknown key 'step.0.wy': did you mean 'step.why'?"),
        ({"step": [{"text": "-c7", "source": "MANUAL p. 3"}]}, "'-c7' names the source 'MANUAL', which `sources` lacks"),
        ({"partitions": {"gpu": {"source": "HEARSAY"}}}, "'partition gpu' names the source 'HEARSAY'"),
        ({"partitions": {"gpu": {"source": "DOC", "limits": [{"first": 9, "last": 8, "hours": 1}]}}}, "first 9 is more than last 8"),
        (
            {"partitions": {"gpu": {"source": "DOC", "limits": [{"first": 1, "last": 8, "hours": 1}, {"first": 8, "last": 9, "hours": 1}]}}},
            "partitions.gpu.limits: 1-8 and 8-9 nodes overlap",
        ),
        ({"partition": "cpu"}, "partition 'cpu' is none of `partitions`: gpu"),
        ({"directives": [{"text": "--time={hours}", "source": "DOC"}]}, "{hours} is none of nodes, ranks_per_node, time"),
        ({"environment": [{"text": "export A=1\nexport B=2", "source": "DOC"}]}, "environment.0.text: holds a line break"),
        ({"container": [{"text": "apptainer exec", "source": "DOC"}]}, 'no word holds "$FRONTIER_CONTAINER"'),
        ({"scheduler": "pbs"}, "PBS names a queue by -q"),
        ({"scheduler": "lsf"}, "scheduler: Input should be 'slurm' or 'pbs'"),
        ({"name": "my cluster"}, "name: String should match pattern"),
        ({"device": None}, "device:"),
    ],
)  # fmt: skip
def test_a_broken_site_is_refused_with_one_line(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = _write(tmp_path, yaml.safe_dump({**yaml.safe_load(MINIMAL), **change}))
    with pytest.raises(UserError) as told:
        load_site(path)
    assert words in str(told.value)
    assert str(told.value).startswith(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "words"), [("a: [1", "line 1 is not YAML"), ("- a", "must hold a mapping"), ("", "must hold a mapping")]
)
def test_a_file_that_is_no_site(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_site(_write(tmp_path, text))


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"^no site 'perlmuter': did you mean perlmutter\?$"):
        load_site("perlmuter")
    with pytest.raises(UserError, match="the sites are aurora, frontier, jupiter, local, lumi, perlmutter"):
        load_site("x")
