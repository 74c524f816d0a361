"""The page of the shim, held to the addresses there are."""

from __future__ import annotations

import re
from pathlib import Path

from workspace_adapter.shim.front import edge

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "shim.md").read_text()


def test_every_address_is_on_the_page_and_no_other() -> None:
    source = (ROOT / "src" / "workspace_adapter" / "shim" / "app.py").read_text()
    declared = re.findall(r'Route\(\s*f?(?:"([^"]+)"|at|edge\.(\w+)), .*?methods=\["(\w+)"\]', source)
    plain = (edge.REGISTER, edge.HEARTBEAT, edge.UPDATE_CARD, "/workspaces/{id}/a2a")
    served = {("POST", path) for path in plain}
    for text, constant, method in declared:
        path = getattr(edge, constant) if constant else text or "{at}"
        path = path.replace("{at}", "/workspaces/{id}").replace("{{", "{").replace("}}", "}")
        served.add((method, path))
    shown = set(re.findall(r"`(GET|POST|PATCH|DELETE) (/[^\s`?]*)`", PAGE))

    assert len(served) > 20
    assert served - shown == set()
    ours = {(method, path) for method, path in shown if not re.search("activity|notify|delegat", path)}
    assert ours - served == set()
