"""What a device's backend is told to leave behind where a collective times out."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch

from frontier.launch import process_group as rooms
from frontier.launch.ranks import discover


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of it before, none after."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("TORCH_FR_", "TORCH_NCCL_"))}
    monkeypatch.setattr(os, "environ", environ | {"SLURM_JOB_ID": "41"})


def told() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.startswith(("TORCH_FR_", "TORCH_NCCL_"))}


def test_dumps_go_to_the_node_and_the_users_word_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TORCH_NCCL_TRACE_BUFFER_SIZE", "20")
    rooms._record_flight()
    where = os.path.join(tempfile.gettempdir(), "frontier_flight_41_rank_")
    assert told() == {
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "20",  # by its older name, and not set again by the newer
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": where,
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": where,
    }


def test_gloo_has_none() -> None:
    with rooms.process_group(discover({}), torch.device("cpu"), 30):
        assert told() == {}
