"""The page of one member, in a real browser: VMs of both hosts are alike to it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from playwright.sync_api import expect

from tests.fleet.test_events import SOUTH, ZONE, post
from tests.support.world import PATIENCE_S
from tests.vm.test_page import CHROMIUM, answer, browser, check, looking, task

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.fleet.conftest import Fleet
    from tests.support.guest import Apart

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


async def test_a_members_page_shows_the_vms_of_all(fleet: Fleet) -> None:
    async with fleet.serve_both(MANAGER_FLEET_LABELS=ZONE) as (a, b):
        here, there = await post(a, {"computation": [1]}), await post(a, SOUTH)
        await trio.to_thread.run_sync(partial(_look, a, b, here, there))


def _look(a: Apart, b: Apart, here: str, there: str) -> None:
    expect.set_options(timeout=PATIENCE_S * 1000)
    told: list[str] = []
    with browser() as chromium, looking(chromium, f"http://localhost:{a.http_port}/", told) as page:
        expect(page.get_by_text("qmp-supervisor at a")).to_be_visible()
        for vm_id, host in ((here, "a"), (there, "b")):
            expect(page.get_by_role("row").filter(has_text=vm_id[:8])).to_contain_text(host)
        check(page)
        page.get_by_label("Host").select_option("b")
        expect(page.get_by_role("row").filter(has_text=here[:8])).to_be_hidden()
        page.get_by_role("link", name=there[:8]).click()
        _use(page, there)
        _see_hosts(page, b)
        assert told == []
        trio.from_thread.run(b.kill)
        page.get_by_role("link", name="VMs", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("No answer of b")
        expect(page.get_by_role("row").filter(has_text=here[:8])).to_be_visible()
        check(page)
        page.get_by_role("navigation", name="Parts").get_by_role("link", name="Host").click()
        expect(page.get_by_role("row").filter(has_text="lost")).to_contain_text("ago")
        check(page)


def _use(page: Page, vm_id: str) -> None:
    """A VM of the other host."""
    expect(page.get_by_role("heading", level=1)).to_contain_text("running")
    expect(page.locator("dt:text-is('Host') + dd")).to_have_text("b")
    check(page)
    page.get_by_role("link", name="Events").click()
    expect(page.get_by_role("row").filter(has_text="answered")).to_be_visible()
    page.get_by_role("link", name="Console").click()
    expect(page.get_by_role("status")).to_contain_text("connected")
    page.get_by_role("button", name="Take over typing").click()
    expect(page.get_by_role("status")).to_contain_text("You type.")
    page.keyboard.type("typed\n")
    expect(page.locator(".xterm-accessibility")).to_contain_text("typed")
    page.get_by_role("link", name="Logs").click()
    expect(page.get_by_role("log")).to_contain_text("typed")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("running")
    page.get_by_role("button", name="Delete").click()
    answer(page, "Delete")
    expect(task(page, "Delete")).to_contain_text("done")
    expect(page.get_by_text("There is no such VM any more")).to_be_visible()


def _see_hosts(page: Page, b: Apart) -> None:
    page.get_by_role("navigation", name="Parts").get_by_role("link", name="Host").click()
    expect(page.get_by_role("row").filter(has_text="a (this one)")).to_contain_text("more VMs")
    expect(page.get_by_role("row").filter(has_text=ZONE)).to_contain_text("ready")
    trio.from_thread.run(partial(b.http.post, "/host/drain"))
    expect(page.get_by_role("row").filter(has_text=ZONE)).to_contain_text("draining")
    expect(page.get_by_role("button", name="Check again")).to_be_visible()
    check(page)
