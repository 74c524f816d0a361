"""What answers on the network mean, and what no answer does.

Told facts, it says what they mean; it looks at nothing itself.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from .finding import Finding, broken, ok, skipped, warning


def unreachable(url: str, why: str) -> Finding:
    """Say that the platform cannot be reached."""
    return broken(
        f"PLATFORM_URL={url} cannot be reached: {why}",
        "check the address, and that this container may connect to it",
    )


def platform(url: str, *, status: int, token: bool, json: bool, said: str) -> Finding:
    """Say what the platform thinks of our token.

    Args:
        status: of its answer to a question that asks for a token and changes nothing.
        token: whether we have one to show.
        json: whether that is what it answers.
        said: its own words, if any.
    """
    told = f" ({said})" if said else ""
    if status == 401 and token:
        return broken(
            f"PLATFORM_URL={url} does not accept the token in CONFIGS_DIR{told}",
            "have the platform provision the workspace anew: it then writes a token it knows",
        )
    if status == 401:
        return warning(
            f"PLATFORM_URL={url} answers, and there is no token in CONFIGS_DIR yet{told}",
            "none before the first registration, which brings one; if a sidecar runs, look at its log",
        )
    if status == 429 or (200 <= status < 300 and json):
        return ok(f"PLATFORM_URL={url} answers{', and knows our token' if token else ''}")
    if status >= 500:
        return warning(
            f"PLATFORM_URL={url} answers with an error of its own, {status}{told}",
            "look at the platform's log; the sidecar goes on trying",
        )
    return broken(
        f"PLATFORM_URL={url} answers {status} where it should show our own activity{told}",
        "check PLATFORM_URL, WORKSPACE_ID and WORKSPACE_ORG_ID: is that the platform, or a proxy before it?",
    )


def url_host(url: str, *, platform_url: str | None) -> Finding | None:
    """Say whether the platform can mean us by the registered address; ``None`` if it may."""
    host = urlsplit(url).hostname or ""
    if platform_url is None or not is_loopback(host) or is_loopback(urlsplit(platform_url).hostname or ""):
        return None
    return warning(
        f"WORKSPACE_URL={url} means the machine of whoever reads it: only a platform on the host that"
        " publishes this port finds us there",
        "set it to a name and port that the platform reaches this container by",
    )


def url(url: str, *, boot_id: str | None, answered: str | None, why: str) -> Finding:
    """Say whether the registered address leads to us.

    Args:
        boot_id: the running sidecar's; ``None`` where none runs.
        answered: the boot id of whoever answers there; empty where it is no sidecar,
            ``None`` where nobody does.
        why: nobody answers.
    """
    if answered is None:
        if boot_id is None:
            return skipped(f"WORKSPACE_URL={url}: no sidecar runs that could answer there")
        return warning(
            f"WORKSPACE_URL={url} does not answer from here: {why}",
            "see that the platform reaches it; from within a container a published port may not be reachable",
        )
    if answered != boot_id:
        return broken(
            f"WORKSPACE_URL={url} is answered by somebody else ({answered or 'no sidecar'}): messages for"
            " this workspace go there",
            "set it to an address of this container, or end the other one",
        )
    return ok(f"WORKSPACE_URL={url} leads to this workspace")


def port(at: str, *, boot_id: str | None, answered: str | None, why: str) -> Finding:
    """Say who is on our port; see :func:`url` for the arguments."""
    if answered is None:
        if boot_id is None:
            return ok(f"{at} is free")
        return broken(
            f"the sidecar does not answer on {at}: {why}",
            "look at its log; if its event loop is blocked, restart the container: what runs is continued",
        )
    if boot_id is None:
        return broken(
            f"{at} is taken by another process ({answered or 'no sidecar'}), and no sidecar runs on this"
            " state directory",
            "end that process, or set WORKSPACE_PORT to another port",
        )
    if answered != boot_id:
        return broken(
            f"{at} is answered by another process ({answered or 'no sidecar'}) than the sidecar of this state"
            " directory",
            "end one of them, or give them ports of their own",
        )
    return ok(f"the sidecar answers on {at}")


def not_ours(at: str, why: str) -> Finding:
    """Say that our own address leads nowhere."""
    return broken(
        f"{at}, where the sidecar would listen, is no address of this container: {why}",
        "set WORKSPACE_HOST to one; 0.0.0.0 is all of them",
    )


def readiness(ready: bool, why: str) -> Finding:
    """Say whether messages are taken."""
    if ready:
        return ok("messages are taken")
    return warning(
        f"no message is taken: {why}", "see The workspace does not get ready in docs/operations.md"
    )


def authentication(*, secret: bool, required: bool, public: bool) -> Finding:
    """Say who is heard.

    Args:
        secret: there is one to compare a bearer with.
        required: by ``WORKSPACE_REQUIRE_AUTH``.
        public: it listens on more than this machine's own address.
    """
    if required and not secret:
        return broken(
            "WORKSPACE_REQUIRE_AUTH is on, and CONFIGS_DIR holds no .platform_inbound_secret: everybody is"
            " refused",
            "have the platform write it there, or write one line of your own",
        )
    if required:
        return ok("messages and signals need the platform's inbound secret")
    if public:
        return warning(
            "without WORKSPACE_REQUIRE_AUTH whoever reaches the port is heard, also with an unsigned restart"
            " signal",
            "set it if your platform signs, or see that only the platform reaches the port",
        )
    return ok("only this machine reaches the port")


def bearer(*, wrong: int, right: int | None) -> Finding:
    """Say how the running sidecar takes bearers.

    Args:
        wrong: the status that a wrong one gets.
        right: the status that the inbound secret gets; ``None``, there is no secret.
    """
    if wrong != 401:
        return broken(
            f"the running sidecar answers a wrong bearer with {wrong}, not 401",
            "see what stands between it and its port: it never does so itself",
        )
    if right is not None and right != 200:
        return broken(
            f"the running sidecar answers the inbound secret of CONFIGS_DIR with {right}",
            "it reads another CONFIGS_DIR than this command: run this with the sidecar's own environment",
        )
    return ok(
        "the running sidecar tells a right bearer from a wrong one" if right else "a wrong bearer gets 401"
    )


def is_loopback(host: str) -> bool:
    """Whether a host name means the machine that reads it."""
    return host == "localhost" or host.endswith(".localhost") or host == "::1" or host.startswith("127.")
