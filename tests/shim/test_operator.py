"""What an operator may do, and nobody else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.shim.front import ADMIN, FrontOfShim, front
from workspace_adapter.queueing import State, Verdict
from workspace_adapter.shim.provisioners.contract import common_problems
from workspace_adapter.shim.store.contract import Answer, Message, Settlement, Status


async def made(shim: FrontOfShim, name: str = "w", **more: object) -> str:
    reply = await shim.call("POST", "/workspaces", {"id": name, **more}, bearer=ADMIN)
    assert reply.status_code == 201, reply.text
    token: str = reply.json()["auth_token"]
    return token


async def queued(shim: FrontOfShim, key: str = "k", caller: str | None = None) -> str:
    message = Message(workspace_id="w", turn_key=key, content_hash="h", body=b"{}", caller=caller)
    return str((await shim.store.enqueue(message)).id)


async def test_a_workspace_is_made_once_and_its_token_shown_once(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        token = await made(shim, max_concurrent_tasks=3)
        again = await shim.call("POST", "/workspaces", {"id": "w"}, bearer=ADMIN)
        listed = await shim.call("GET", "/workspaces", bearer=ADMIN)
        shown = await shim.call("GET", "/workspaces/w", bearer=token)
        secret = (await shim.workspace()).secret

    assert again.status_code == 409
    assert [entry["id"] for entry in listed.json()] == ["w"]
    assert (shown.json()["max_concurrent_tasks"], shown.json()["queue_depth"]) == (3, 0)
    assert all(secret not in reply.text and token not in reply.text for reply in (again, listed, shown))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"id": "W"},
        {"id": "w", "provisioner": "magic"},
        {"id": "w", "provisioner": ["process"]},
        {"id": "w", "provisioner": {"process": 1}},
        {"id": "w", "max_concurrent_tasks": 0},
        {"id": "w", "max_concurent_tasks": 2},
        {"id": "w", "spec": []},
        {"id": "w", "spec": {"environ": {"A": "\0"}}},
        [],
    ],
)
async def test_a_workspace_that_cannot_be_is_not_made(tmp_path: Path, wrong: object) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        reply = await shim.call("POST", "/workspaces", wrong, bearer=ADMIN)

        assert (reply.status_code, bool(reply.json()["error"])) == (400, True)
        assert await shim.store.workspaces() == []


async def test_half_a_surrogate_pair_never_becomes_part_of_an_environment(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        body = b'{"id": "w", "provisioner": "process", "spec": {"environ": {"A": "\\ud800"}}}'
        reply = await shim.client.post("/workspaces", content=body)

        assert reply.status_code == 400
        assert await shim.store.workspaces() == []


async def test_a_workspace_is_changed_without_being_made_anew(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        await made(shim, provisioner="process", spec={"files": "keep"})
        at, shim.store.on_due = "/workspaces/w", shim.rung.append
        reply = await shim.call("PATCH", at, {"max_concurrent_tasks": 4}, bearer=ADMIN)
        assert (reply.status_code, reply.json()["max_concurrent_tasks"]) == (200, 4)
        assert shim.rung[-1:] == ["w"], "there may be room now"

        assert (await shim.call("PATCH", at, {"spec": {"files": "delete"}}, bearer=ADMIN)).status_code == 200
        changed = await shim.workspace()
        assert (changed.max_concurrent, changed.spec) == (4, {"files": "delete"})

        await shim.store.change_workspace("w", provisioner="lost")
        assert (await shim.call("PATCH", at, {"spec": {}}, bearer=ADMIN)).status_code == 409
        assert (await shim.call("PATCH", at, {"provisioner": "external"}, bearer=ADMIN)).status_code == 200
        changed = replace(changed, provisioner="external")

        wrongs: list[object] = [{"max_concurrent_tasks": 0}, {"spec": []}, {"provisioner": "docker"}, []]
        for wrong in wrongs:
            assert (await shim.call("PATCH", at, wrong, bearer=ADMIN)).status_code == 400
        assert (await shim.call("PATCH", "/workspaces/v", {}, bearer=ADMIN)).status_code == 404
        assert await shim.workspace() == changed


async def test_a_workspace_whose_card_has_no_readable_name_is_called_by_its_id(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        await shim.register(agent_card={"name": {"first": "W"}})

        assert (await shim.call("GET", "/workspaces/w")).json()["name"] == "w"
        assert (await shim.call("GET", "/registry/discover/w")).json()["name"] == "w"


async def test_what_is_refused_of_a_workspace_says_what_would_do(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        answer = await shim.call("POST", "/workspaces", {"id": "w", "provisioner": "command"}, bearer=ADMIN)
        assert "command needs SHIM_PROVISIONER_COMMAND" in answer.json()["error"]
    assert common_problems({"environment": {}}, frozenset()) == [
        "spec has no member environment; known are environ, files, inherit"
    ]


async def test_a_workspace_with_a_provisioner_is_started(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        await made(shim, provisioner="process", spec={"adapter": "echo"})
        history = (await shim.call("GET", "/workspaces/w/restarts", bearer=ADMIN)).json()

    assert [(cycle["aim"], cycle["step"]) for cycle in history] == [("revive", "asked")]


async def test_only_the_operator_does_what_is_the_operators(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        own = await made(shim)
        other = await made(shim, "v")
        caller = (await shim.call("POST", "/tokens", {"name": "ann"}, bearer=ADMIN)).json()["auth_token"]
        item = await queued(shim)
        for_operators = [
            ("GET", "/workspaces"),
            ("POST", "/workspaces"),
            ("DELETE", "/workspaces/w"),
            ("POST", "/workspaces/w/pause"),
            ("POST", "/workspaces/w/resume"),
            ("GET", "/workspaces/w/tokens"),
            ("POST", "/workspaces/w/tokens"),
            ("GET", "/tokens"),
            ("POST", "/tokens"),
            ("DELETE", "/tokens/0"),
            ("POST", f"/workspaces/w/a2a/queue/{item}/replay"),
            ("POST", f"/workspaces/w/a2a/queue/{item}/drop"),
        ]
        for_itself = [
            ("GET", "/workspaces/w"),
            ("GET", "/workspaces/w/restarts"),
            ("GET", "/workspaces/w/a2a/queue"),
            ("GET", f"/workspaces/w/a2a/queue/{item}"),
            ("POST", "/workspaces/w/restart"),
        ]

        async def codes(bearer: str | None, calls: list[tuple[str, str]]) -> set[int]:
            return {
                (await shim.call(method, path, {} if method == "POST" else None, bearer=bearer)).status_code
                for method, path in calls
            }

        assert await codes(None, for_operators + for_itself) == {401}
        assert await codes("no-token", for_operators + for_itself) == {401}
        assert await codes(caller, for_operators + for_itself) == {403}
        assert await codes(other, for_operators + for_itself) == {403}
        assert await codes(own, for_operators) == {403}
        assert await codes(own, for_itself) == {200, 202}


async def test_a_token_is_shown_once_listed_without_what_it_is_and_taken_back(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        await made(shim)
        new = (await shim.call("POST", "/workspaces/w/tokens", {"label": "spare"}, bearer=ADMIN)).json()
        assert (await shim.call("GET", "/workspaces/w", bearer=new["auth_token"])).status_code == 200
        listed = await shim.call("GET", "/workspaces/w/tokens", bearer=ADMIN)
        assert [token["name"] for token in listed.json()] == ["first", "spare"]
        assert new["auth_token"] not in listed.text

        gone = await shim.call("DELETE", f"/workspaces/w/tokens/{new['id']}", bearer=ADMIN)
        assert gone.status_code == 200
        assert (await shim.call("GET", "/workspaces/w", bearer=new["auth_token"])).status_code == 401
        again = await shim.call("DELETE", f"/workspaces/w/tokens/{new['id']}", bearer=ADMIN)
        assert again.status_code == 404


async def test_another_operator_may_be_made(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        body = {"role": "operator", "name": "night"}
        new = (await shim.call("POST", "/tokens", body, bearer=ADMIN)).json()["auth_token"]
        assert (await shim.call("GET", "/workspaces", bearer=new)).status_code == 200
        for wrong in ({"role": "workspace", "name": "x"}, {"name": "system:x"}, {}):
            assert (await shim.call("POST", "/tokens", wrong, bearer=ADMIN)).status_code == 400


async def test_a_restart_is_asked_for_and_shown(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        await shim.register()
        first = await shim.call("POST", "/workspaces/w/restart", {"reason": "a new secret"})
        await shim.call("POST", "/workspaces/w/restart")
        waited = await shim.call("POST", "/workspaces/w/restart?wait=1")
        (cycle,) = (await shim.call("GET", "/workspaces/w/restarts")).json()

    assert first.status_code == waited.status_code == 202
    assert (cycle["reason"], cycle["requests"], cycle["step"]) == ("a new secret", 3, "asked")


async def test_a_pause_is_ended_only_by_a_resumption(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        await shim.register()
        assert (await shim.call("POST", "/workspaces/w/resume")).status_code == 409
        await shim.store.set_status("w", Status.PAUSED, were=[Status.ONLINE])
        assert "resume" in (await shim.call("POST", "/workspaces/w/restart")).json()["error"]
        assert (await shim.call("POST", "/workspaces/w/resume")).status_code == 202


async def test_an_item_is_shown_to_who_sent_it_and_to_whom_it_is_for(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        own, other = await made(shim), await made(shim, "v")
        third = await made(shim, "u")
        item = await queued(shim, caller="v")
        at = f"/workspaces/w/a2a/queue/{item}"

        codes = [
            (await shim.call("GET", at, bearer=token)).status_code for token in (own, other, third, ADMIN)
        ]
        assert codes == [200, 200, 403, 200]


@pytest.mark.parametrize(
    ("body", "shown"), [(b'{"result": 1}', {"result": 1}), (b"\xff no JSON", "\ufffd no JSON")]
)
async def test_an_answer_is_shown_also_where_it_is_no_json(
    tmp_path: Path, body: bytes, shown: object
) -> None:
    async with front(tmp_path) as shim:
        await shim.call("POST", "/workspaces", {"id": "w"})
        await shim.store.register("w", url="http://127.0.0.1:9", boot_id="b")
        item = await queued(shim)
        (lease,) = await shim.store.claim("w", "o")
        verdict = Verdict(state=State.COMPLETED, because="answered")
        answer = Answer(status=200, body=body)
        await shim.store.settle([Settlement(lease=lease, verdict=verdict, answer=answer)])
        told = (await shim.call("GET", f"/workspaces/w/a2a/queue/{item}")).json()

    assert (told["queue_id"], told["status"], told["response_body"]) == (item, "completed", shown)
    assert told["completed_at"].endswith("Z")


async def test_what_was_dropped_is_replayed_and_what_waits_is_not(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        await shim.register()
        item = await queued(shim)
        at = f"/workspaces/w/a2a/queue/{item}"

        def word(reply: httpx.Response) -> tuple[int, str]:
            return reply.status_code, reply.json().get("state", "")

        assert word(await shim.call("POST", f"{at}/replay")) == (409, "")
        assert word(await shim.call("POST", f"{at}/drop", {"reason": "not wanted"})) == (200, "dropped")
        assert (await shim.call("GET", at)).json()["last_error"] == "not wanted"
        assert word(await shim.call("POST", f"{at}/drop")) == (409, "")
        assert word(await shim.call("POST", f"{at}/replay")) == (200, "queued")
        assert shim.rung == ["w"]


@pytest.mark.parametrize("item", ["0", "x", "9" * 40, "1.5", "-1"])
async def test_an_item_that_is_not_there_may_come_later(tmp_path: Path, item: str) -> None:
    async with front(tmp_path) as shim:
        reply = await shim.call("GET", f"/workspaces/w/a2a/queue/{item}")

        assert (reply.status_code, reply.json()) == (
            404,
            {"error": "queue item not found", "retryable": True},
        )


async def test_a_queue_is_listed_by_state_and_in_pages(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        await shim.register()
        items = [await queued(shim, key=f"k{number}") for number in range(3)]
        await shim.call("POST", f"/workspaces/w/a2a/queue/{items[0]}/drop")

        async def listed(query: str) -> list[str]:
            reply = await shim.call("GET", f"/workspaces/w/a2a/queue?{query}")
            return [entry["queue_id"] for entry in reply.json()]

        assert await listed("") == items
        assert await listed("state=queued") == items[1:]
        assert await listed("limit=1") == items[:1]
        assert await listed(f"after={items[1]}") == items[2:]
        for wrong in ("state=lost", "after=x", "limit=1e9"):
            assert (await shim.call("GET", f"/workspaces/w/a2a/queue?{wrong}")).status_code == 400


async def test_dead_letters_are_the_operators_to_see(tmp_path: Path) -> None:
    async with front(tmp_path, admin_token=ADMIN) as shim:
        own = await made(shim)
        assert (await shim.call("GET", "/dead-letters", bearer=own)).status_code == 403
        await queued(shim)
        await shim.store.register("w", url="http://w", boot_id="b")
        (lease,) = await shim.store.claim("w", "o")
        given_up = Verdict(state=State.FAILED, because="in vain", strike=True)
        last = Answer(status=500, body=b'{"error": "the model is away"}')
        await shim.store.settle([Settlement(lease=lease, verdict=given_up, answer=last)])
        (letter,) = (await shim.call("GET", "/dead-letters", bearer=ADMIN)).json()
        assert (letter["workspace_id"], letter["status"], letter["last_error"]) == ("w", "failed", "in vain")
        at = f"/workspaces/w/a2a/queue/{letter['queue_id']}"
        whole = (await shim.call("GET", at, bearer=ADMIN)).json()
        assert (whole["response_status"], whole["response_body"]) == (500, {"error": "the model is away"})


async def test_a_peer_is_found_at_the_shim_itself(tmp_path: Path) -> None:
    """Its own address would be no use: whoever calls it must have its secret."""
    async with front(tmp_path, admin_token=ADMIN) as shim:
        own, _ = await made(shim), await made(shim, "v")
        found = await shim.call("GET", "/registry/discover/v", bearer=own)
        peers = await shim.call("GET", "/registry/w/peers", bearer=own)

        url = "http://127.0.0.1:8080/workspaces/v/a2a"
        assert (found.json()["id"], found.json()["name"], found.json()["url"]) == ("v", "v", url)
        assert [peer["url"] for peer in peers.json()] == [url]
        assert (await shim.call("GET", "/registry/v/peers", bearer=own)).status_code == 403
        assert (await shim.call("GET", "/registry/discover/x", bearer=own)).status_code == 404


async def test_workspaces_are_listed_in_pages(tmp_path: Path) -> None:
    async with front(tmp_path) as shim:
        for name in ("a", "b", "c"):
            await shim.register(name)

        async def listed(query: str) -> list[str]:
            return [entry["id"] for entry in (await shim.call("GET", f"/workspaces?{query}")).json()]

        assert await listed("") == ["a", "b", "c"]
        assert await listed("limit=2") == ["a", "b"]
        assert await listed("after=b") == ["c"]
        assert (await shim.call("GET", "/workspaces?after=%00")).status_code == 400
        assert [peer["id"] for peer in (await shim.call("GET", "/registry/b/peers?limit=1")).json()] == ["a"]
