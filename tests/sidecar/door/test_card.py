from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.types.a2a_pb2 import AgentCard
from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]

from workspace_adapter.errors import SettingsError
from workspace_adapter.settings import Settings
from workspace_adapter.sidecar.door.card import card


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return tmp_path


def read(configs: Path, **more: Any) -> dict[str, Any]:
    settings = Settings(workspace_id="ws-1", configs_dir=str(configs), url="http://ws-1:8000", **more)
    return card(settings, adapter_name="echo")


def test_where_nothing_is_said_it_names_the_workspace_and_its_runtime(configs: Path) -> None:
    told = read(configs)
    assert told["name"] == "ws-1"
    assert "echo" in told["description"]
    assert [skill["id"] for skill in told["skills"]] == ["chat"]
    assert told["capabilities"] == {"streaming": True, "pushNotifications": False}


def test_both_dialects_find_their_way(configs: Path) -> None:
    told = read(configs)
    assert [(i["protocolBinding"], i["protocolVersion"], i["url"]) for i in told["supportedInterfaces"]] == [
        ("JSONRPC", "1.0", "http://ws-1:8000"),
        ("HTTP+JSON", "1.0", "http://ws-1:8000"),
        ("JSONRPC", "0.3", "http://ws-1:8000"),
    ]
    assert (told["url"], told["preferredTransport"], told["protocolVersion"]) == (
        "http://ws-1:8000",
        "JSONRPC",
        "0.3",
    )


def test_a_bearer_is_declared_where_one_is_required(configs: Path) -> None:
    assert "securitySchemes" not in read(configs)
    told = read(configs, require_auth=True)
    assert told["securitySchemes"]["bearer"]["httpAuthSecurityScheme"]["scheme"] == "bearer"
    assert told["securityRequirements"] == [{"schemes": {"bearer": {}}}]
    assert told["security"] == [{"bearer": []}]


@pytest.mark.parametrize("require_auth", [False, True])
def test_the_sdk_would_write_the_same_card(configs: Path, require_auth: bool) -> None:
    told = read(configs, require_auth=require_auth)
    understood = ParseDict(told, AgentCard(), ignore_unknown_fields=True)
    assert agent_card_to_dict(understood) == told
    assert told["defaultInputModes"], "and it understood more than nothing"


def test_it_says_what_the_settings_say_of_the_agent(configs: Path) -> None:
    told = read(configs, name="Ada", description="Writes code.", version="7", skills=("review", "plan"))
    assert (told["name"], told["description"], told["version"]) == ("Ada", "Writes code.", "7")
    assert [skill["id"] for skill in told["skills"]] == ["chat", "review", "plan"]


def test_skills_are_named_once_and_in_bounds(configs: Path) -> None:
    many = tuple(f"skill-{number}" for number in range(1000))
    told = read(configs, skills=("plan", "chat", "plan", "x" * 1000, *many))
    ids = [skill["id"] for skill in told["skills"]]
    assert ids[:3] == ["chat", "plan", "skill-0"]
    assert len(ids) == len(set(ids)) == 101


def test_it_offers_no_streams_where_the_settings_say_so(configs: Path) -> None:
    assert read(configs, offers_streams=False)["capabilities"] == {
        "streaming": False,
        "pushNotifications": False,
    }


def test_a_file_of_the_operators_is_merged_over_it(configs: Path) -> None:
    path = configs / "card.json"
    path.write_text(
        json.dumps(
            {"name": "Eve", "provider": {"organization": "us"}, "capabilities": {"x": 1}, "skills": None}
        )
    )
    told = read(configs, agent_card=str(path))
    assert told["name"] == "Eve"
    assert told["provider"] == {"organization": "us"}
    assert told["capabilities"] == {"streaming": True, "pushNotifications": False, "x": 1}
    assert "skills" not in told


@pytest.mark.parametrize(
    "content",
    [
        *(None, "{", "[]", '{"x": NaN}', '{"x": "\\ud800"}', '{"x": ' + "[" * 100 + "]" * 100 + "}"),
        '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"x": "' + "y" * (1 << 20) + '"}',
    ],
    ids=["none", "torn", "a list", "no number", "half a character", "too deep", "far too deep", "too large"],
)
def test_a_file_that_cannot_be_used_is_named_with_its_setting(configs: Path, content: str | None) -> None:
    path = configs / "card.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=f"WORKSPACE_AGENT_CARD={path}"):
        read(configs, agent_card=str(path))


def test_a_device_in_its_place_is_not_read(configs: Path) -> None:
    with pytest.raises(SettingsError, match="WORKSPACE_AGENT_CARD=/dev/zero cannot be read: it is no file"):
        read(configs, agent_card="/dev/zero")
