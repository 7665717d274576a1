"""Call what plugins marked with `on_start`, `on_stop` and `on_dead`."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from identity_webhooks.handlers import Dead
from service import logs
from service.inbox import Claim, Progress
from workers.router import Hook

DEAD_LIMIT = 60.0
"""Seconds that an `on_dead` function has; then the event ends without waiting for it."""

log = logs.get(__name__)


class Hooks:
    """The hooks of a process."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self._hooks = list(hooks)

    def start(self) -> None:
        """Call what is marked `on_start`; what that raises is the caller's."""
        for hook in self._hooks:
            if hook.moment == "start":
                hook.function()

    def stop(self) -> None:
        """Call what is marked `on_stop`, the last plugin first; what it raises is logged."""
        for hook in reversed(self._hooks):
            if hook.moment == "stop":
                _call(hook)

    def tell_dead(self, claim: Claim, handler: str, progress: Progress) -> None:
        """Call what the handler's plugin marked `on_dead`; what it raises is logged."""
        plugin = handler.rpartition(".")[0]
        key = f"{claim.identity}:{handler}"
        dead = Dead(claim.event, handler, progress.attempts, progress.reason, key)
        for hook in self._hooks:
            if hook.moment == "dead" and hook.plugin == plugin:
                # On a thread of its own, so that one that hangs holds up no event.
                thread = threading.Thread(target=_call, args=(hook, dead), daemon=True)
                thread.start()
                thread.join(DEAD_LIMIT)
                if thread.is_alive():
                    log.error("hook_hangs", handler=hook.name)


def _call(hook: Hook, *arguments: object) -> None:
    try:
        hook.function(*arguments)
    except BaseException:
        log.exception("hook_failed", handler=hook.name)
