"""`workers.plugins`: three sources, one rule, every fault of every plugin in one message."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from pydantic import SecretStr

from service.settings import Settings
from workers import plugins
from workers.plugins import PluginError
from workers.router import Handler

ONE = """
from identity_webhooks import Verification, on

@on("verified")
def handle(v: Verification) -> None: ...
"""
NEEDY = ONE.replace('"verified"', '"verified", needs=["verified_outputs.dob"]')
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write files into a folder that Python imports from."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text), encoding="utf-8")
        importlib.invalidate_caches()
        return tmp_path

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(sys.modules[name].__spec__):  # a library is not loaded twice
            del sys.modules[name]


@pytest.fixture
def install(write: Write) -> Callable[..., None]:
    """Put the metadata of a distribution beside the modules, as an installer does."""

    def install(
        distribution: str, group: str = "identity_webhooks.handlers", **points: str
    ) -> None:
        folder = write() / f"{distribution}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\n")
        lines = [f"{name} = {target}" for name, target in points.items()]
        text = "\n".join([f"[{group}]", *lines, ""])
        (folder / "entry_points.txt").write_text(text)
        importlib.invalidate_caches()

    return install


API_KEY = SecretStr("sk_test_51Hb7Zk")
"""Every worker has one."""


def load(*handlers: str, restricted: bool = False) -> dict[str, Handler]:
    key = SecretStr("rk_test_51Hb7Zk") if restricted else None
    settings = Settings(handlers=handlers, stripe_restricted_key=key, stripe_api_key=API_KEY)
    router = plugins.load(settings)
    return {handler.name: handler for handler in router.handlers}


def faults(*handlers: str) -> list[str]:
    with pytest.raises(PluginError) as caught:
        load(*handlers)
    heading, *lines = str(caught.value).split("\n")
    assert heading == "plugins that cannot be used:"
    return lines


def test_what_is_built_in_is_loaded_like_every_other_plugin() -> None:
    assert load()["audit.log_event"].origin == "file workers.handlers.audit"


def test_audit_can_be_switched_off() -> None:
    assert "audit.log_event" not in [h.name for h in plugins.load(Settings(audit=False)).handlers]


def test_a_built_in_handler_is_off_until_it_is_configured() -> None:
    def names(**given: Any) -> set[str]:
        return {handler.name for handler in plugins.load(Settings(**given)).handlers}

    secret = SecretStr("whsec_Rm9yd2FyZFNlY3JldE9mMzJCeXRlczEyMzQ1Njc4")
    urls = ("https://crm.example/a?token=1", "http://[::1]:8001/b")
    assert names() == names(forward_secret=secret) == {"audit.log_event"}
    assert names(audit=False, identity_database=SecretStr("sqlite:///x.db")) == {"database.save"}
    assert names(audit=False, forward_to=urls, forward_secret=secret) == {
        "forward-crm.example.send",
        "forward-1-8001.send",
    }


def test_forwarding_without_a_secret_is_refused() -> None:
    with pytest.raises(PluginError, match="forward: FORWARD_SECRET: missing"):
        plugins.load(Settings(forward_to=("https://a.example",)))


def test_a_missing_driver_is_named() -> None:
    with pytest.raises(PluginError, match="No module named 'pg8000'"):
        plugins.load(Settings(identity_database=SecretStr("postgresql+pg8000://db/shop")))


def test_a_module_is_named_by_its_last_word(write) -> None:
    write(acme__hooks=ONE)
    assert load("acme.hooks")["hooks.handle"].origin == "HANDLERS acme.hooks"


def test_an_object_in_a_module_or_deep_in_one(write) -> None:
    write(
        acme="""
        from identity_webhooks import on

        class Crm:
            @on("verified")
            def save(self, v): ...

        crm = Crm()
        class registry:
            second = Crm()
        """
    )
    found = load("acme:crm", "acme:registry.second")
    assert found["crm.save"].origin == "HANDLERS acme:crm"
    assert found["second.save"].origin == "HANDLERS acme:registry.second"


def test_an_installed_distribution(write, install) -> None:
    write(acme=ONE)
    install("acme-identity", acme="acme")
    assert load()["acme.handle"].origin == "entry point acme of acme-identity"


@pytest.mark.parametrize(
    "group",
    [
        *("identity_webhook.handlers", "identity_webhooks.handler", "identity-webhooks.handlers"),
        *("identity_webhooks_handlers", "identity_webhooks", "identity_webhooks.plugins"),
        *("Identity_Webhooks.Handlers", "identiy_webhooks.handlers", "identity_webhooks. handlers"),
    ],
)
def test_a_misspelt_group_of_entry_points_is_refused(group, write, install) -> None:
    write(acme=ONE)
    install("acme-identity", group, acme="acme")
    assert faults() == [
        f"entry point acme of acme-identity: is in the group {group!r}, which nothing reads: write"
        ' [project.entry-points."identity_webhooks.handlers"] in its pyproject.toml'
    ]


@pytest.mark.parametrize("group", ["console_scripts", "stripe_webhooks.handlers", "acme.handlers"])
def test_groups_of_others_are_let_be(group, write, install) -> None:
    write(acme=ONE)
    install("acme-identity", group, acme="acme")
    assert "acme.handle" not in load()


def test_the_order_is_files_paths_distributions(write, install) -> None:
    write(first=ONE, second=ONE, third=ONE)
    install("one", zulu="second")
    install("two", alpha="third")
    names = list(load("first"))
    assert names[-3:] == ["first.handle", "alpha.handle", "zulu.handle"]
    assert names[0] == "audit.log_event"


def test_needs_take_a_restricted_key(write) -> None:
    write(acme=NEEDY)
    assert faults("acme") == [
        "HANDLERS acme: acme.handle needs verified_outputs.dob: set STRIPE_RESTRICTED_KEY (rk_...)"
    ]
    assert load("acme", restricted=True)["acme.handle"].needs == {"verified_outputs.dob"}


IMPORTS = {
    **{
        path: (path, "", f"{said}: write package.module, or package.module:object, as Python")
        for path, said in {
            "nowhere": "ModuleNotFoundError: No module named 'nowhere'",
            "nowhere.at.all": "ModuleNotFoundError: No module named 'nowhere'",
            "acme.f": "ModuleNotFoundError: No module named 'acme.f'; 'acme' is not a package",
            "acme.py": "ModuleNotFoundError: No module named 'acme.py'; 'acme' is not a package",
            ":f": "ValueError: Empty module name",
            "acme:x": "AttributeError: module 'acme' has no attribute 'x'",
        }.items()
    },
    "missing library": (
        "acme",
        "import nowhere",
        "ModuleNotFoundError: No module named 'nowhere': install what holds nowhere beside the",
    ),
    "syntax": ("acme", "def", "SyntaxError: invalid syntax (acme.py, line 1)"),
    "exit": ("acme", "import sys; sys.exit('stop')", "SystemExit: stop"),
    "secret": ("acme", "raise OSError('redis://:pw@h')", "OSError: redis://***@h"),
    "lines": ("acme", "raise OSError('a\\nb')", "OSError: a b"),
    "str raises": (
        "acme",
        """
        class Bad(Exception):
            def __str__(self):
                raise SystemExit
        raise Bad
        """,
        "Bad: <Bad>",
    ),
}


@pytest.mark.parametrize(("path", "source", "fault"), IMPORTS.values(), ids=IMPORTS)
def test_a_plugin_that_cannot_be_imported(path, source, fault, write) -> None:
    write(acme=source)
    (found,) = faults(path)
    assert found.startswith(f"HANDLERS {path}: cannot be imported: {fault}")
    if source:  # then it is the plugin's own line that is wrong, or the one after the class
        assert re.search(r"acme\.py:[15]\)$", found)


def test_every_fault_of_every_plugin_in_one_message(write, install) -> None:
    write(
        typo=ONE.replace('"verified"', '"verifed"'),
        empty="",
        needy=NEEDY,
        good=ONE,
        twin__good=ONE,
        broken="import nowhere",
    )
    install("acme", acme="broken")
    assert [
        line.split(":")[0] for line in faults("typo", "empty", "needy", "good", "twin.good")
    ] == [
        "HANDLERS typo",
        "HANDLERS empty",
        "HANDLERS twin.good",
        "entry point acme of acme",
        "HANDLERS needy",
    ]


SECRETS = (
    *("ACME_KEY", "acme_api_key", "ACME_KEY_2", "CLIENT_SECRET", "SecretOfAcme", "ACME_TOKEN"),
    *("DB_PASSWORD", "DB_PASSWD", "SMTP_PASSWORD_FILE", "DB_PWD", "SENTRY_DSN", "AcmeCredentials"),
    *("CRM_URL", "crm_url", "MONGO_URI", "ACME_AUTH", "BASIC_AUTHORIZATION"),
)
PLAIN = ("ACME_REGION", "URL_OF_CRM", "ACME_PORT", "LANG")
"""Names of variables whose values are secrets, and of such whose values help to see the fault."""


@pytest.mark.parametrize("where", ["import", "settings"])
@pytest.mark.parametrize("name", [*SECRETS, *PLAIN])
def test_of_the_environment_secrets_are_not_shown_and_all_else_is(
    name, where, write, monkeypatch
) -> None:
    monkeypatch.setenv(name, "qwzj")
    monkeypatch.setenv(f"{name}_OTHER_KEY", "qwzjlonger")
    monkeypatch.setenv("ACME_SHORT_KEY", "not")  # too short to be one
    words = "could not use qwzj nor qwzjlonger"
    raised = {
        "import": f"raise ValueError({words!r})",
        "settings": f"""
        from pydantic import model_validator
        from pydantic_settings import BaseSettings

        class Crm(BaseSettings):
            @model_validator(mode="after")
            def check(self):
                raise ValueError({words!r})

        Crm()
        """,
    }
    write(acme=raised[where])
    (said,) = faults("acme")
    shown = "qwzj" if name in PLAIN else "***"
    assert f"could not use {shown} nor ***" in said
    assert "longer" not in said


def test_of_settings_no_value_that_was_given_is_shown(write, monkeypatch) -> None:
    given = {"CRM_PORT": "qwzj", "CRM_MODE": "qwzj2", "CRM_PEOPLE": '["qwzj3", "qwzj45"]'}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    write(
        acme="""
        from pydantic import SecretStr, model_validator
        from pydantic_settings import BaseSettings
        from identity_webhooks import on

        class Crm(BaseSettings):
            model_config = {"env_prefix": "crm_"}
            port: str
            mode: SecretStr
            people: list[str]
            flag: bool = True
            nobody: str | None = None
            short: str = "is"

            @model_validator(mode="after")
            def check(self):
                mode = self.mode.get_secret_value()
                raise ValueError(f"{self.port} {mode} {self.people} is {self.flag}, {self.nobody}")

            @on("verified")
            def handle(self, v): ...
        """
    )
    (said,) = faults("acme")
    expected = "HANDLERS acme: settings Crm: Value error, *** *** ['***', '***'] is True, None ("
    assert said.startswith(expected)


def test_settings_that_a_module_builds_are_named_by_their_variables(write) -> None:
    """Of several classes of one name the newest with these fields has failed."""
    write(
        acme="""
        from pydantic import AliasChoices, Field
        from pydantic_settings import BaseSettings

        class Crm(BaseSettings):
            model_config = {"env_prefix": "old_"}
            token: str

        class Crm(BaseSettings):
            model_config = {"env_prefix": "crm_", "title": "Accounts"}
            token: str
            url: str = Field(validation_alias="accounts_url")
            port: int = Field(validation_alias=AliasChoices("accounts_port", "PORT_OF_ACCOUNTS"))

        Crm(tokn="x")
        """,
        other="""
        from pydantic_settings import BaseSettings

        class Crm(BaseSettings):
            model_config = {"env_prefix": "old_"}
            token: str

        class Crm(BaseSettings):
            model_config = {"env_prefix": "Crm_", "case_sensitive": True}
            token: str

        Crm()
        """,
    )
    missing = "Field required: set it in the environment of the worker"
    found = [line.rpartition(" (")[0] for line in faults("acme", "other")]
    assert found == [
        f"HANDLERS acme: setting CRM_TOKEN: {missing}",
        f"HANDLERS acme: setting ACCOUNTS_URL: {missing}",
        f"HANDLERS acme: setting ACCOUNTS_PORT: {missing}",
        "HANDLERS acme: setting TOKN: Extra inputs are not permitted",
        f"HANDLERS other: setting Crm_token: {missing}",
    ]


def test_the_place_is_the_plugins_line_and_the_one_it_led_to(write) -> None:
    folder = write(
        acme="import between",
        between="import below",
        below="# a line\nraise LookupError('no')",
    )
    assert faults("acme") == [
        "HANDLERS acme: cannot be imported: LookupError: no"
        f" ({folder}/acme.py:1 > {folder}/below.py:2)"
    ]


def test_one_mark_that_is_kept_marks_several_functions(write) -> None:
    write(
        acme="""
        from identity_webhooks import on

        when = on("verified")

        @when
        def one(v): ...

        @when
        def two(v): ...
        """
    )
    assert {"acme.one", "acme.two"} <= load("acme").keys()


def test_a_mark_that_is_kept_is_reported_where_it_is_used(write) -> None:
    folder = write(
        acme="""
        from identity_webhooks import on

        when = on("verifed")

        @when
        def one(v): ...
        """
    )
    (said,) = faults("acme")
    assert said.endswith(f"({folder}/acme.py:6)")


def test_a_class_of_pythons_that_is_marked_is_refused_in_words(write) -> None:
    write(acme='from identity_webhooks import on\n\non("verified")(dict)\n')
    (said,) = faults("acme")
    assert said.startswith("HANDLERS acme: dict is a class: write @on(...) above a method of it")
