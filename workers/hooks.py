"""Call what plugins marked with `on_start`, `on_stop` and `on_dead`."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextvars import copy_context

from identity_webhooks.answers import wrong_return
from identity_webhooks.handlers import Dead, Misuse
from service import logs
from service.inbox import Claim, Progress
from workers.held import Signals
from workers.router import Failed, Hook, Plugin, Router

DEAD_LIMIT = 60.0
"""Seconds that an `on_dead` function has; then the event ends without waiting for it."""

log = logs.get(__name__)


class Hooks:
    """The hooks of a process: of all plugins, or of these."""

    def __init__(self, router: Router, plugins: Collection[Plugin] | None = None) -> None:
        self._hooks = [hook for hook in router.hooks if plugins is None or hook.plugin in plugins]
        self._plugins = {handler.name: handler.plugin for handler in router.handlers}

    def start(self) -> None:
        """Call what is marked `on_start`; its exceptions are passed on.

        Signal handlers that it sets are put back: the worker could not be stopped.
        """
        for hook in self._hooks:
            if hook.moment == "start":
                signals = Signals()
                try:
                    _run(hook)
                except Failed as failed:
                    log.exception("hook_failed", handler=hook.name, reason=failed.reason)
                    raise
                if changed := signals.restore():
                    faults = [f"{what}{place}" for what, place in changed]
                    log.error("signals_restored", handler=hook.name, faults=faults)

    def stop(self) -> None:
        """Call what is marked `on_stop`, the last plugin first; what it raises is logged."""
        for hook in reversed(self._hooks):
            if hook.moment == "stop":
                _call(hook)

    def tell_dead(self, claim: Claim, handler: str, progress: Progress) -> None:
        """Call what the handler's plugin marked `on_dead`; what it raises is logged."""
        plugin, name = self._plugins.get(handler), handler.rpartition(".")[0]
        key = f"{claim.identity}:{handler}"
        dead = Dead(claim.event, handler, progress.attempts, progress.reason, key)
        for hook in self._hooks:
            # Of a handler that is no longer there only the name is left.
            owns = hook.plugin is plugin if plugin else hook.plugin.name == name
            if hook.moment == "dead" and owns:
                # On a thread of its own, so that one that hangs holds up no event. What it logs
                # names the event, as what handlers log.
                in_context = copy_context().run
                thread = threading.Thread(target=in_context, args=(_call, hook, dead), daemon=True)
                thread.start()
                thread.join(DEAD_LIMIT)
                if thread.is_alive():
                    log.error("hook_hangs", handler=hook.name)


def _run(hook: Hook, *arguments: object) -> None:
    try:
        answer = hook.function(*arguments)
    except Misuse as misuse:
        raise Failed(str(misuse)) from misuse
    if wrong := wrong_return(answer):
        raise Failed(wrong)


def _call(hook: Hook, *arguments: object) -> None:
    try:
        _run(hook, *arguments)
    except Failed as failed:
        log.exception("hook_failed", handler=hook.name, reason=failed.reason)
    except BaseException:
        log.exception("hook_failed", handler=hook.name)
