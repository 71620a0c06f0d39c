"""A day's work at the page, in a real browser, with real guests."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from supervisor import bridge  # noqa: F401  it takes the place of asyncio's policy
from supervisor.api.auth import tokens
from supervisor.caller import Role
from tests.vm.conftest import PATIENCE_S, started, started_with_template, workplace
from tests.vm.test_parties import LINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

#: It prints what would be markup if it were not shown as text.
ALGORITHM = b"print('<img src=x onerror=alert(1)>')\n" + LINE
DATA = b"x,y\n" + b"".join(b"%d,%d\n" % (x, 3 * x + 7) for x in range(1000))
SERIOUS = {"serious", "critical"}


@contextmanager
def browser() -> Iterator[Browser]:
    """Its event loop is asyncio's own, and not the one of trio-asyncio, which is for trio alone."""
    asyncio.set_event_loop_policy(asyncio.get_event_loop_policy())
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield opened
        opened.close()


@contextmanager
def looking(at: Browser, url: str, told: list[str], **how: Any) -> Iterator[Page]:
    """A page whose errors are in *told*."""
    context = at.new_context(**how)
    context.set_default_timeout(PATIENCE_S * 1000)
    page = context.new_page()
    page.on("console", lambda line: told.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.goto(url)
    yield page
    context.close()


def check(page: Page) -> None:
    """Nothing that axe finds serious; nothing wider than the window."""
    found = Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in SERIOUS]
    assert not serious, [(one["id"], one["nodes"][0]["html"]) for one in serious]
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, wide


def sign_in(page: Page, token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def task(page: Page, words: str) -> Any:
    return page.get_by_role("region", name="Tasks").get_by_role("listitem").filter(has_text=words)


def answer(page: Page, name: str) -> None:
    page.get_by_role("dialog").get_by_role("button", name=name).click()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_day_at_the_page(tmp_path: Path) -> None:
    expect.set_options(timeout=PATIENCE_S * 1000)
    told: list[str] = []
    settings = {"MANAGER_AUTH": "on", "MANAGER_HTTP_PORT": str(free_port())}
    with workplace() as tmp, browser() as chromium:
        _, token = tokens.create(tmp / "tokens.json", "olivia", Role.OPERATE, None, tokens.now())
        _, reader = tokens.create(tmp / "tokens.json", "rita", Role.READ, None, tokens.now())
        with started(tmp, **settings) as supervisor:
            url = f"http://127.0.0.1:{settings['MANAGER_HTTP_PORT']}/"
            with looking(chromium, url, told) as page:
                check(page)
                sign_in(page, "qms_nobodys")
                expect(page.get_by_role("alert")).to_contain_text("the token is not known here")
                sign_in(page, token)
                expect(page.get_by_text("olivia (operate)")).to_be_visible()
                expect(page.get_by_text("No VM runs.")).to_be_visible()
                assert all("401" in line for line in told), told
                told.clear()
                vm_id = _run(page)
                _watch(page, vm_id)
                _type(page)
                assert told == []
                supervisor.end(signal.SIGTERM)
                expect(page.get_by_text("The supervisor has not answered since")).to_be_visible()
                check(page)
                told.clear()  # each try that fails is an error to the browser
                with started(tmp, **settings):
                    expect(page.get_by_text("has not answered since")).to_be_hidden()
                    told.clear()
                    _end(page, vm_id)
                    _read(chromium, url, reader, told)
                    _phone(chromium, url, token, told)
                    assert told == []


def _run(page: Page) -> str:
    page.get_by_role("link", name="Run a computation").click()
    check(page)
    page.get_by_label("Labels").fill("team=a")
    page.locator("[name=algorithm]").set_input_files(
        {"name": "line.py", "mimeType": "text/x-python", "buffer": ALGORITHM}
    )
    page.locator("[name=data]").set_input_files(
        {"name": "points.csv", "mimeType": "text/csv", "buffer": DATA}
    )
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("running")
    expect(task(page, "Run")).to_contain_text("computed in")
    found = re.search(r"#/vms/([0-9a-f-]{36})", page.url)
    assert found
    return found[1]


def _watch(page: Page, vm_id: str) -> None:
    check(page)
    expect(page.get_by_text("ready, at 127.0.0.1:")).to_be_visible()
    page.get_by_role("link", name="Result").click()
    page.get_by_role("button", name="Show the result").click()
    expect(page.get_by_label("Result", exact=True)).to_have_text("1000 rows: 3.00 x + 7.0")
    expect(page.get_by_label("stdout")).to_contain_text("<img src=x")
    with page.expect_download() as saving:
        page.get_by_role("button", name="Save the result").click()
    assert saving.value.path().read_bytes() == b"1000 rows: 3.00 x + 7.0"
    check(page)
    # One that fails, and why.
    page.locator("[name=algorithm]").set_input_files(
        {"name": "bad.py", "mimeType": "text/x-python", "buffer": b"raise SystemExit('no data')"}
    )
    page.get_by_role("button", name="Compute").click()
    expect(task(page, "Compute in")).to_contain_text("failed: ")
    expect(page.get_by_label("stderr")).to_contain_text("no data")
    page.get_by_role("link", name="Logs").click()
    expect(page.get_by_role("log")).to_contain_text("] up")
    page.get_by_role("combobox").select_option("its algorithms")
    expect(page.get_by_role("log")).to_contain_text("<img src=x onerror=alert(1)>")
    check(page)
    page.get_by_role("link", name="Events").click()
    expect(page.get_by_role("row").filter(has_text="compute")).not_to_have_count(0)
    page.get_by_role("link", name="Command line").click()
    expect(page.get_by_label("Command line")).to_contain_text(vm_id)
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("running")
    page.get_by_role("link", name="Host").click()
    expect(page.get_by_role("row").filter(has_text="sev-snp")).not_to_have_count(0)
    expect(page.get_by_role("button", name="Check again")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="QEMU")).not_to_have_count(0)
    check(page)
    page.get_by_role("link", name="VMs", exact=True).click()
    expect(page.get_by_role("row").filter(has_text=vm_id[:8])).to_contain_text("olivia")
    expect(page.get_by_role("row").filter(has_text=vm_id[:8])).to_contain_text("MiB")
    check(page)
    page.get_by_role("link", name=vm_id[:8]).first.click()


def _type(page: Page) -> None:
    page.get_by_role("link", name="Console").click()
    expect(page.get_by_role("status")).to_contain_text("connected")
    check(page)
    page.get_by_role("button", name="Take over typing").click()
    expect(page.get_by_role("status")).to_contain_text("You type.")
    page.keyboard.type("typed-1\n")
    expect(page.locator(".xterm-accessibility")).to_contain_text("typed-1")


def _end(page: Page, vm_id: str) -> None:
    expect(page.get_by_role("status")).to_contain_text("connected")
    # Nobody types: who begins does.
    page.locator(".xterm-helper-textarea").focus()
    page.keyboard.type("typed-2\n")
    expect(page.locator(".xterm-accessibility")).to_contain_text("typed-2")
    page.keyboard.press("Control+]")
    expect(page.locator(".xterm-helper-textarea")).not_to_be_focused()
    page.get_by_role("button", name="Shut down").click()
    expect(page.get_by_role("dialog")).to_contain_text(f"Shut down VM {vm_id[:8]} (team=a)?")
    check(page)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("button", name="Shut down").click()
    answer(page, "Shut down")
    expect(page.get_by_role("heading", level=1)).to_contain_text("shutoff")
    page.get_by_role("link", name="VMs", exact=True).click()
    page.get_by_role("link", name="ended").click()
    page.get_by_role("row").filter(has_text=vm_id[:8]).get_by_role("link").click()
    page.get_by_role("link", name="Result").click()
    expect(page.get_by_label("stderr")).to_contain_text("no data")


def _read(chromium: Browser, url: str, token: str, told: list[str]) -> None:
    """One who may look and nothing else is shown nothing else."""
    with looking(chromium, f"{url}#/vms?all", told) as page:
        sign_in(page, token)
        page.get_by_role("row").last.get_by_role("link").click()
        expect(page.get_by_role("link", name="Events")).to_be_visible()
        for name in ("Run", "Logs", "Console", "Result"):
            expect(page.get_by_role("link", name=name, exact=True)).to_have_count(0)
        expect(page.get_by_role("button")).to_have_count(1)  # Sign out
        # In another tab nobody is asked again.
        other = page.context.new_page()
        other.goto(url)
        expect(other.get_by_text("rita (read)")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(other.get_by_role("heading", name="Sign in")).to_be_visible()
        told[:] = [line for line in told if "401" not in line]


def _phone(chromium: Browser, url: str, token: str, told: list[str]) -> None:
    """At a small dark one: another tab, which must sign in; then the VM is deleted."""
    small = {"width": 360, "height": 700}
    with looking(chromium, f"{url}#/vms?all", told, viewport=small, color_scheme="dark") as page:
        sign_in(page, token)
        expect(page.get_by_role("row")).to_have_count(1)
        told.clear()
        check(page)
        page.clock.install()
        page.get_by_role("row").get_by_role("link").click()
        check(page)
        page.get_by_role("button", name="Delete").click()
        answer(page, "Delete")
        expect(page.get_by_text("There is no such VM any more")).to_be_visible()
        # Whoever asks for it again gets a 404, which is told.
        page.clock.fast_forward(60_000)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        told[:] = [line for line in told if "401" not in line]


def test_parties_at_the_page(tmp_path: Path) -> None:
    """Each sends what is its own and sees no more; who gets the result has it computed."""
    expect.set_options(timeout=PATIENCE_S * 1000)
    told: list[str] = []
    settings = {"MANAGER_AUTH": "on", "MANAGER_HTTP_PORT": str(free_port())}
    url = f"http://127.0.0.1:{settings['MANAGER_HTTP_PORT']}/"
    with (
        workplace() as tmp,
        browser() as chromium,
        started_with_template(tmp, **settings),
    ):
        names = ("olga", "alice", "bob", "dave")
        shown = {
            name: tokens.create(tmp / "tokens.json", name, Role.RUN, None, tokens.now())[1]
            for name in names
        }
        parties = {"algorithm": "alice", "data": ["bob"], "result": ["dave"]}
        answer_ = httpx.post(
            f"{url}run",
            json={"computation": "e30=", "parties": parties},
            headers={"Authorization": f"Bearer {shown['olga']}"},
            timeout=PATIENCE_S,
        )
        vm_id = answer_.raise_for_status().json()["id"]
        of_vm = f"{url}#/vms/{vm_id}"
        with looking(chromium, f"{of_vm}/result", told) as page:
            sign_in(page, shown["alice"])
            page.get_by_label("File").set_input_files(
                {"name": "line.py", "mimeType": "text/x-python", "buffer": ALGORITHM}
            )
            page.get_by_role("button", name="Send algorithm").click()
            expect(task(page, "Send algorithm")).to_contain_text("done")
            expect(page.get_by_text("The result is for dave.")).to_be_visible()
            for name in ("Delete", "Pause", "Compute", "Send data/0"):
                expect(page.get_by_role("button", name=name)).to_have_count(0)
            check(page)
        with looking(chromium, f"{of_vm}/result", told) as page:
            sign_in(page, shown["bob"])
            page.get_by_role("button", name="Send data/0").click()
            expect(page.get_by_role("alert")).to_contain_text("Choose the file for data/0")
            page.get_by_label("File").set_input_files(
                {"name": "points.csv", "mimeType": "text/csv", "buffer": DATA}
            )
            page.get_by_role("button", name="Send data/0").click()
            expect(task(page, "Send data/0")).to_contain_text("done")
        _compute(chromium, of_vm, shown["dave"], told)
        _see_no_result(chromium, of_vm, shown["olga"], told)
    assert all("401" in line for line in told), told


def _compute(chromium: Browser, of_vm: str, token: str, told: list[str]) -> None:
    with looking(chromium, f"{of_vm}/result", told) as page:
        sign_in(page, token)
        page.get_by_role("button", name="Compute").click()
        expect(task(page, "Compute in")).to_contain_text("computed in")
        result = page.get_by_label("Result", exact=True)
        expect(result).to_have_text("1000 rows: 3.00 x + 7.0")
        page.get_by_role("link", name="Logs").click()
        expect(page.get_by_role("log")).to_contain_text("<img src=x")


def _see_no_result(chromium: Browser, of_vm: str, token: str, told: list[str]) -> None:
    with looking(chromium, of_vm, told) as page:
        sign_in(page, token)
        expect(page.get_by_text("algorithm: alice, sent; data/0: bob, sent")).to_be_visible()
        page.get_by_role("link", name="Result").click()
        expect(page.get_by_text("The result is for dave.")).to_be_visible()
        page.get_by_role("button", name="Delete").click()
        answer(page, "Delete")
        expect(page.get_by_text("There is no such VM any more")).to_be_visible()
