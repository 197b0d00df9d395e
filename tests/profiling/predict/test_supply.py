"""What a step waits for storage: rates of system files, and of a run's own samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from frontier.errors import UserError
from frontier_profiling.predict.case import Case
from frontier_profiling.predict.command import main
from frontier_profiling.predict.predict import predict
from frontier_profiling.predict.system import Storage, System, load_system

FRONTIER = load_system("frontier")


def with_storage(**storage: float) -> System:
    return FRONTIER.model_copy(update={"storage": Storage(**storage)})


def rows(capsys: pytest.CaptureFixture[str], *args: str) -> list[dict]:
    assert main([*args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["rows"]


def test_nodes_add_up_to_what_the_shared_file_system_has() -> None:
    assert with_storage().read_gb_per_s(8) is None
    assert with_storage(read_gb_per_s_per_node=5.5).read_gb_per_s(8) == 44
    shared = with_storage(read_gb_per_s=240)
    assert shared.read_gb_per_s(1) == FRONTIER.network.node_gb_per_s == 100 and shared.read_gb_per_s(8) == 240
    both = with_storage(read_gb_per_s=240, read_gb_per_s_per_node=10)
    assert [both.read_gb_per_s(n) for n in (1, 8, 64)] == [10, 80, 240]


def test_a_step_lasts_as_long_as_the_slower_of_work_and_reading() -> None:
    case = Case("vit_base", FRONTIER, 4, "hybrid_1")
    plain = predict(case)
    samples_s = plain.images_per_s * 3 * 224**2 / 1e9  # GB/s that the step takes
    for factor in (0.25, 4.0):
        system = with_storage(read_gb_per_s_per_node=factor * samples_s / 4)
        row = predict(case.but(system=system, data="shards"))
        assert row.images_per_s == pytest.approx(min(1.0, factor) * plain.images_per_s)
        assert row.data_supply_ratio == pytest.approx(factor)
        assert row.step_parts_s["data"] == pytest.approx(max(0.0, 1 / factor - 1) * plain.step_s)
        assert sum(row.step_parts_s[p] for p in ("compute", "launch", "optimizer", "exposed", "data")) == pytest.approx(
            row.step_s
        )
        assert row.limit == ("data" if factor < 1 else plain.limit)
        assert predict(case.but(system=system)).step_s == plain.step_s  # synthetic images are not read
    assert plain.data_supply_ratio is None and plain.step_parts_s["data"] == 0.0


def test_an_unknown_rate_is_said_and_is_not_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    row = predict(Case("vit_base", with_storage(), 4, "hybrid_1", data="shards"))
    assert "data" not in row.step_parts_s and row.data_supply_ratio is None and row.images_per_s
    assert any(note.startswith("not predicted") for note in row.notes)
    args = ["--model", "vit_base", "--system", "jupiter", "--strategy", "hybrid_1,full_shard", "--data", "shards"]
    assert main(args) == 0 and "not predicted: how long" in capsys.readouterr().out
    assert main([*args[:5], "hybrid_1", *args[6:]]) == 0
    assert any(line.split() == ["data", "unknown"] for line in capsys.readouterr().out.splitlines())


def test_published_peaks_are_called_assumed_and_measured_rates_are_not() -> None:
    case = Case("vit_base", FRONTIER, 1, "hybrid_1", data="shards")
    assert any("5.5 GB/s" in note and note.startswith("assumed") for note in predict(case).notes)
    assert not any("GB/s" in note for note in predict(case.but(data="synthetic")).notes)
    measured = FRONTIER.model_copy(update={"efficiency": {"launch_s": {"value": 1e-3, "from": "measured"}}})
    assert not any("GB/s" in note for note in predict(case.but(system=measured)).notes)


def test_a_rate_of_the_users_own(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--model", "vit_base", "--strategy", "hybrid_1", "--data", "shards"]
    (row,) = rows(capsys, *args, "--read-gb-per-s", "0.01")
    assert row["images_per_s"] == pytest.approx(0.01e9 / (3 * 224**2)) and row["limit"] == "data"
    for wrong in (["--data", "shards", "--read-gb-per-s", "0"], ["--read-gb-per-s", "1"]):
        with pytest.raises(UserError, match="--read-gb-per-s"):
            main(wrong)


def test_a_config_tells_its_images_by_its_shards(toy: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As stored: size, bands and bytes; the config's size goes before them; without shards here, 224 px."""
    image = json.loads((shards / "manifest.json").read_text())["images"]["image"]
    channels, side, _ = image["shape"]
    stored = channels * side * side
    config = yaml.safe_load(toy.read_text())
    config["data"].pop("image_size", None)

    def planned(*args: str) -> dict:
        toy.write_text(yaml.safe_dump(config))
        (row,) = rows(capsys, "--config", str(toy), "--nodes", "1", "--ranks", "2", *args)
        return row

    slow = planned("--read-gb-per-s", "1e-6")
    assert (slow["image_size"], slow["channels"], slow["data"]) == (side, channels, "shards")
    assert slow["images_per_s"] == pytest.approx(1e3 / stored)
    assert planned("--data", "synthetic")["data_supply_ratio"] is None
    config["data"]["image_size"] = 2 * side
    larger = planned("--read-gb-per-s", "1e-6")
    assert larger["image_size"] == 2 * side and larger["images_per_s"] == pytest.approx(1e3 / stored)
    config["data"]["shards"] = "nowhere"
    config["data"].pop("image_size")
    unseen = planned()
    assert unseen["image_size"] == 224 and "assumed: 3 bands of 224 px, for nowhere is not here" in unseen["notes"]
    assert planned("--image-size", "64", "--channels", "5")["channels"] == 5
    config["data"] = {"synthetic": {"channels": 5}, "image_size": side}
    made = planned()
    assert (made["image_size"], made["channels"], made["data"]) == (side, 5, "synthetic")
