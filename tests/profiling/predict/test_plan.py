"""`frontier plan` as its users call it."""

import json

import pytest

from frontier.errors import UserError
from frontier_profiling.predict.command import main
from tests.conftest import ROOT, run_frontier

KEYS = {
    "model", "strategy", "nodes", "devices", "micro_batch", "memory_gib", "fits", "minimum_devices", "step_s", "images_per_s", "mfu",
    "node_hours",
}  # fmt: skip
MEMORY = {"parameters", "gradients", "optimizer", "activations", "gathered", "buffers", "total_allocated", "peak"}


def plan(*args: str) -> dict:
    done = run_frontier("plan", *args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_auto_ranks_all_strategies_and_says_why():
    found = plan("--model", "vit_5b", "--system", "frontier", "--nodes", "128", "--strategy", "auto")
    rows = found["rows"]
    assert all(set(row) >= KEYS and set(row["memory_gib"]) >= MEMORY for row in rows)
    fitting = [row["images_per_s"] for row in rows if row["fits"]]
    assert fitting == sorted(fitting, reverse=True) and len(fitting) > 10
    assert rows[0]["strategy"] == "hybrid_8" and rows[0]["tensor"] == 1
    words = {row["strategy"] for row in rows}
    assert {"hybrid_1", "hybrid_2", "hybrid_16", "shard_grad_op", "full_shard"} <= words
    (said,) = found["auto"]
    assert "hybrid_8 is the quickest" in said["why"] and "hybrid_1 does not fit" in said["why"]
    assert said["free"][0]["images_per_s"] > rows[0]["images_per_s"]
    assert not any(row["fits"] for row in rows if row["strategy"] == "hybrid_1" and row["tensor"] == 1)


def test_a_grid_of_models_nodes_and_strategies():
    found = plan(
        "--model", "vit_base,vit_3b", "--nodes", "1,64", "--strategy", "hybrid_1,full_shard", "--samples", "1000000000"
    )
    assert [(r["model"], r["nodes"], r["strategy"]) for r in found["rows"]] == [
        (m, n, s) for m in ("vit_base", "vit_3b") for n in (1, 64) for s in ("hybrid_1", "full_shard")
    ]
    row = found["rows"][0]
    assert row["node_hours"] == pytest.approx(1e9 / row["images_per_s"] / 3600)


def test_a_published_point_is_named_beside_the_prediction():
    done = run_frontier("plan", "--model", "vit_3b", "--nodes", "64", "--strategy", "hybrid_1", "--as-published")
    assert done.returncode == 0, done.stderr
    assert "published: 5,141 images/s" in done.stdout and "published: max_allocated 47.33 GiB" in done.stdout


def test_what_does_not_fit_is_a_row_with_the_fewest_devices():
    done = run_frontier("plan", "--model", "vit_15b", "--nodes", "1", "--strategy", "hybrid_2")
    assert done.returncode == 0 and "DOES NOT FIT" in done.stdout and ": 4" in done.stdout
    row = plan("--model", "vit_15b", "--nodes", "1", "--strategy", "hybrid_2")["rows"][0]
    assert row["status"] == "oom" and row["images_per_s"] is None and row["minimum_devices"] == 4


def test_from_the_config_of_a_run():
    config = ROOT / "jobs" / "configs" / "mae_vit_3b.yaml"
    row = plan(
        "--config",
        str(config),
        "--nodes",
        "8",
        "--strategy",
        "hybrid_8",
        "--global-batch",
        "2048",
        "--micro-batch",
        "8",
    )["rows"][0]
    assert row["workload"] == "mae" and row["model"] == "vit_3b"
    assert (row["micro_batch"], row["accumulation"], row["global_batch"]) == (8, 4, 2048)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--model", "vit_4b"), "did you mean"),
        (("--system", "frontir"), "did you mean 'frontier'"),
        (("--nodes", "0"), "positive"),
        (("--nodes", "many"), "positive"),
        (("--strategy", "hybrid_3"), "choose among"),
        (("--global-batch", "100"), "does not divide"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--system", "nowhere.yaml"), "doctor --write-system"),
        (("--ranks", "9"), "8 devices"),
        (("--image-size", "100"), "multiple of patch"),
    ],
)
def test_mistakes_are_one_line(args, said):
    done = run_frontier("plan", *args)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and said in done.stderr


def test_no_torch_is_loaded():
    """The answer comes at once."""
    import subprocess
    import sys

    code = "import sys; from frontier.cli import main; main(['plan', '--model', 'vit_15b', '--nodes', '64']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


MISTAKES = [
    ("--nodes ²", "positive"),
    ("--global-batch 0", "--global-batch 0"),
    ("--tensor 0", "positive"),
    ("--tensor 3", "heads"),
    ("--tensor 16", "does not divide 8 ranks"),
    ("--as-published --workload mae", "workload vit alone"),
    ("--as-published --offload", "offload False alone"),
    ("--as-published --activation-checkpointing none", "checkpointing full alone"),
    ("--mask-ratio 0.5", "--workload mae"),
    ("--strategy full_shard,ddp --prefetch 2", "no effect under strategy ddp"),
    ("--ranks 3 --nodes 4", "25 to 32"),
    ("--mod vit_base", "unrecognized"),
    ("--prefetch x", "invalid int"),
]


@pytest.mark.parametrize(("flags", "said"), MISTAKES)
def test_more_mistakes_are_user_errors(flags, said):
    with pytest.raises(UserError) as error:
        main(flags.split())
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_published_engine_is_never_planned_without_checkpointing(capsys):
    """Its memory is known with checkpointing alone: the free search must not offer anything else."""
    assert main(["--as-published", "--nodes", "2", "--model", "vit_1b", "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)["auto"]
    assert {row["activation_checkpointing"] for row in said["free"]} == {"full"}


def test_prefetch_is_not_claimed_where_nothing_is_gathered(capsys):
    assert main(["--prefetch", "3", "--nodes", "2", "--model", "vit_1b", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["strategy"] for row in rows if row["prefetch"] == 1} == {"hybrid_1", "shard_grad_op"}


def test_offload_costs_time_and_its_host_must_hold_it(tmp_path):
    import yaml

    from frontier_profiling.predict.case import Case
    from frontier_profiling.predict.predict import predict
    from frontier_profiling.predict.system import FOLDER, load_system

    case = Case("vit_3b", load_system("frontier"), 1, "full_shard")
    plain, away = predict(case), predict(case.but(offload=True))
    assert away.memory_gib["peak"] < plain.memory_gib["peak"] and away.step_s > plain.step_s
    assert sum(away.step_parts_s[p] for p in ("compute", "launch", "optimizer", "exposed", "data")) == pytest.approx(
        away.step_s
    )
    assert any("assumed, not fitted" in note for note in away.notes)
    small = yaml.safe_load((FOLDER / "frontier.yaml").read_text())
    small["node"]["memory_gib"] = 10
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    row = predict(case.but(offload=True, system=load_system(str(tmp_path / "small.yaml"))))
    assert row.status == "oom" and "on a node's host, it has 10" in row.error and "a device" not in row.error


def test_a_peak_close_to_the_limit_is_said():
    from frontier_profiling.predict.case import Case
    from frontier_profiling.predict.predict import predict
    from frontier_profiling.predict.system import load_system

    case = Case("vit_15b", load_system("frontier"), 128, "hybrid_256", activation_checkpointing="none")
    close, roomy = predict(case), predict(case.but(activation_checkpointing="full"))
    assert close.fits and close.memory_gib["peak"] > 0.95 * 63.98
    assert any(note.startswith("close") for note in close.notes)
    assert not any(note.startswith("close") for note in roomy.notes)


def test_a_node_in_part_still_draws_its_hosts_power():
    from frontier_profiling.predict.case import Case
    from frontier_profiling.predict.predict import predict
    from frontier_profiling.predict.system import load_system

    system = load_system("frontier")
    one = predict(Case("vit_base", system, 1, "no_shard", ranks=1)).power_w
    assert one > system.node.host_w + system.node.devices * system.node.device_idle_w


def test_settings_that_differ_are_all_named(capsys):
    assert (
        main(["--model", "vit_base,vit_3b", "--global-batch", "2048", "--nodes", "1,8", "--strategy", "hybrid_1"]) == 0
    )
    head = capsys.readouterr().out.splitlines()[0]
    assert "197, 257" in head and "32 x 8, 32 x 1" in head


def test_a_system_where_nothing_was_measured_says_so(capsys):
    assert main(["--system", "h200", "--strategy", "hybrid_1,full_shard"]) == 0
    assert "nothing was measured on h200" in capsys.readouterr().out


@pytest.mark.parametrize("strategy", ["full_shard", "hybrid_1", "zero_1", "zero_2", "zero_3"])
def test_json_has_every_part_of_memory_under_offload(capsys, strategy):
    assert main(["--offload", "--strategy", strategy, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert set(row["memory_gib"]) >= MEMORY and row["memory_gib"]["optimizer"] == 0.0


def test_a_config_with_sizes_of_its_own(toy, tmp_path, capsys):
    """Counts and memory are those of the module that `frontier pretrain` builds, not the preset's; flags go before the config."""
    import yaml

    from frontier.config.load import load_config
    from frontier.models.registry import ImageShape, family
    from frontier.train.memory import MemoryCase, memory_of

    config = yaml.safe_load(toy.read_text())
    config["model"] |= {"width": 48, "depth": 3, "heads": 4, "patch": 4, "decoder": {"width": 24}}
    config["parallel"] |= {"strategy": "full_shard"}
    toy.write_text(yaml.safe_dump(config))

    def planned(*args):
        assert main(["--config", str(toy), "--nodes", "1", "--ranks", "2", *args, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["rows"][0]

    row, parallel = planned(), load_config(str(toy)).parallel
    mae = family("mae")
    real = MemoryCase.of_family(mae, config["model"], ImageShape(32, 3), parallel, 2, row["micro_batch"])
    assert row["parameters"] == sum(p.numel() for p in real.model.parameters() if p.requires_grad)
    assert row["flops_per_image"] == pytest.approx(mae.flops(real.model))
    assert row["memory_gib"]["total_allocated"] == pytest.approx(memory_of(real)[0]["peak"], rel=0.02)
    assert "sizes: vit_debug with width 48, depth 3, heads 4, patch 4, decoder.width 24" in row["notes"]
    larger = planned("--image-size", "40")
    assert larger["image_size"] == 40 and larger["tokens"] > row["tokens"]
    assert planned("--workload", "vit", "--micro-batch", "4")["parameters"] < row["parameters"]
    assert planned("--model", "vit_tiny")["parameters"] > 20 * row["parameters"]
    with pytest.raises(UserError, match="--check-memory"):
        main(["--config", str(toy), "--nodes", "1", "--check-memory"])
    config["model"]["texture"] = {"weight": 1.0}
    toy.write_text(yaml.safe_dump(config))
    assert "not counted: the further targets of model.texture" in planned()["notes"]
