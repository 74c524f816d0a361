"""A workspace that keeps the contract, for tests that break it in one place."""

from __future__ import annotations

from typing import Any

import httpx

from workspace_adapter.testing import FakePlatform

CARD = {"name": "a workspace", "url": "http://127.0.0.1:8000", "skills": []}

REGISTRATION: dict[str, Any] = {
    "id": "ws-test",
    "url": "http://127.0.0.1:8000",
    "agent_card": CARD,
    "delivery_mode": "push",
    "boot_id": "one",
}

BEAT: dict[str, Any] = {
    "workspace_id": "ws-test",
    "active_tasks": 0,
    "is_busy": False,
    "current_task": "",
    "error_rate": 0.0,
    "sample_error": "",
    "uptime_seconds": 1,
    "runtime_state": "",
    "runtime_metadata": {
        "capabilities": {
            "heartbeat": False,
            "scheduler": False,
            "session": True,
            "status_mgmt": False,
            "retry": False,
            "activity_decoration": False,
            "channel_dispatch": False,
        },
        "idle_timeout_seconds": 1800,
    },
    "agent_card": CARD,
    "observed_generation": None,
    "boot_id": "one",
}


class Sidecar:
    """What a test says as the workspace."""

    def __init__(self, platform: FakePlatform) -> None:
        self.client = httpx.Client(base_url=platform.url, timeout=10, verify=False)
        self.token: str | None = None

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        bearer = {"authorization": f"Bearer {self.token}"} if self.token else {}
        return self.client.post(path, json=body, headers={**bearer, **headers})

    def register(self, **changes: Any) -> httpx.Response:
        reply = self.post("/registry/register", {**REGISTRATION, **changes})
        if reply.status_code == 200 and "auth_token" in reply.json():
            self.token = reply.json()["auth_token"]
        return reply

    def beat(self, **changes: Any) -> httpx.Response:
        return self.post("/registry/heartbeat", {**BEAT, **changes})
