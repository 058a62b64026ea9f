"""What is read of a real vLLM: its answers were recorded, and are read again as they were then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recorded_cases import asked, recorded

FILES = sorted((Path(__file__).parent / "data" / "servers").glob("*.json"))


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def content(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    return found


def test_the_answers_of_a_real_server_are_read_as_when_they_were_recorded(content: dict[str, Any]) -> None:
    exchanges = content["exchanges"]
    with recorded(exchanges) as url:
        found = json.loads(json.dumps(asked(url, content["model"])))
    port = content["found"]["refused"].partition("refused")[0]
    found["refused"] = port + "refused" + found["refused"].partition("refused")[2]
    assert found == content["found"]


def test_a_real_vllm_says_what_it_is_scores_prompts_and_ends_texts(content: dict[str, Any]) -> None:
    found, answers = content["found"], content["found"]["answers"]
    assert found["facts"]["server"] == "vLLM"
    assert found["scores"]
    assert found["tokenizes"]
    assert answers["0"]["logprob"] > answers["1"]["logprob"]
    assert (answers["2"]["finish"], answers["2"]["tokens"]) == ("length", 5)
    assert answers["3"]["finish"] == "eos", "vLLM's null reason is the end token, although stop strings were given"
    assert "Answer in one word." in found["prompt"]
    assert "if it is too long, start the server with a longer context" in found["refused"]
