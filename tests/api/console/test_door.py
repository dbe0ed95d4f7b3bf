"""Who gets into the console, and what browsers are told so that nobody else does things there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
from structlog.testing import capture_logs
from temporalio.client import Client

from api.console import create_console
from api.console.door import Guarded
from api.console.session import Sessions
from api.guesses import Guesses
from tests.api.console.desks import actions, logged_in
from tests.houses import TOKENS, House, open_house


def addresses(method: str) -> Iterator[str]:
    """Every address of the console that takes the method, as far as it wants a session."""
    for path, operations in create_console("token", "installation", Guesses()).openapi()["paths"].items():
        if method.lower() in operations and not path.startswith("/console/login"):
            yield re.sub(r"\{\w+\}", "x", path)


async def log_in(house: House, token: str, wanted: str = "/console/orders", **headers: str) -> httpx.Response:
    """Post the login form with a cookie jar of its own."""
    async with httpx.AsyncClient(base_url=str(house.http.base_url)) as http:
        return await http.post("/console/login", data={"token": token, "next": wanted}, headers=headers)


async def test_strangers_are_asked_to_log_in_and_led_on_to_where_they_wanted(quiet_house: House) -> None:
    for path in ("/console", "/console/login"):
        answer = await quiet_house.http.get(path)
        assert (answer.status_code, "Admin token" in answer.text) == (200, True)
    wanted = [path for path in addresses("GET") if path not in ("/console", "/console/")]
    assert len(wanted) > 10
    for path in wanted:
        answer = await quiet_house.http.get(f"{path}?status=FAILED")
        assert (answer.status_code, answer.text) == (303, "")
        login = await quiet_house.http.get(answer.headers["location"])
        assert f'name="next" value="{path}?status=FAILED"' in login.text
    answer = await log_in(quiet_house, TOKENS["admin"])
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/orders")


async def test_a_page_whose_session_ended_while_it_was_open_says_so_and_is_not_led_away(quiet_house: House) -> None:
    for method in ("GET", "POST"):
        answer = await quiet_house.http.request(method, "/console/failures", headers={"HX-Request": "true"})
        assert (answer.status_code, "The session is over; nothing was done." in answer.text) == (401, True)
        assert "hx-redirect" not in answer.headers


async def test_nobody_gets_in_without_the_admin_token(quiet_house: House) -> None:
    for token in ("wrong", "", TOKENS["client"], TOKENS["courier"], "admin-tokén", "\0"):
        answer = await log_in(quiet_house, token)
        assert (answer.status_code, "This is not the admin token." in answer.text) == (401, True), token
        assert "set-cookie" not in answer.headers, token


async def test_no_link_leads_out_of_the_console(quiet_house: House) -> None:
    for wanted in (
        "//evil.example",
        "https://evil.example",
        "/console/../../evil",
        "/console/%2e%2E/evil",
        "/consoleevil",
        "\\\\evil",
    ):
        assert (await log_in(quiet_house, TOKENS["admin"], wanted)).headers["location"] == "/console", wanted


async def test_the_cookie_is_for_this_site_alone_and_no_script_reads_it(quiet_house: House) -> None:
    cookie = (await log_in(quiet_house, TOKENS["admin"])).headers["set-cookie"]
    for attribute in ("HttpOnly", "SameSite=strict", "Path=/console", "Max-Age=43200"):
        assert attribute in cookie
    assert "Secure" not in cookie
    behind_tls = await log_in(quiet_house, TOKENS["admin"], **{"X-Forwarded-Proto": "https"})
    assert "Secure" in behind_tls.headers["set-cookie"]
    assert TOKENS["admin"] not in cookie


def test_a_session_is_known_to_every_api_process_until_it_is_over() -> None:
    sessions, others = Sessions("token", "waybill"), Sessions("token", "waybill")
    cookie = sessions.open()
    found = others.find(cookie)
    assert found is not None
    assert found == sessions.find(cookie)
    assert found != sessions.find(sessions.open())  # forms of one session are not another's
    claim, _, signature = cookie.rpartition(".")
    later = f"{int(claim.partition('.')[0]) + 1}.{claim.partition('.')[2]}"
    forged = [
        None,
        "",
        ".",
        "a.b.c",
        claim,
        f"{claim}.",
        f"{later}.{signature}",
        f"{cookie}0",
        "é.é.é",
        "9999999999.x.y",
    ]
    assert [sessions.find(each) for each in forged] == [None] * len(forged)
    assert sessions.find(sessions.open(0)) is None
    assert Sessions("other token", "waybill").find(cookie) is None
    assert Sessions("token", "elsewhere").find(cookie) is None


async def test_no_form_is_taken_that_this_sessions_pages_did_not_make(quiet_house: House) -> None:
    posts = list(addresses("POST"))
    assert len(posts) > 5
    async with logged_in(quiet_house) as desk, logged_in(quiet_house) as other:
        for path in posts:
            for csrf in ({}, {"csrf": ""}, {"csrf": "00"}, {"csrf": "é"}, {"csrf": await other.csrf()}):
                answer = await desk.http.post(path, data={"reason": "forged", **csrf})
                assert (answer.status_code, "Nothing was done." in answer.text) == (403, True), path
    assert (await quiet_house.get("/api/admin/ops/actions"))["items"] == []


async def test_no_form_is_taken_from_another_site(quiet_house: House) -> None:
    foreign: list[dict[str, str]] = [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://x@[::1"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ]
    async with logged_in(quiet_house) as desk:
        for headers in foreign:
            answer = await desk.post("/assignment/north/settings", {"maxBatch": "7"}, **headers)
            assert (answer.status_code, "another site" in answer.text) == (403, True), headers
            login = await log_in(quiet_house, TOKENS["admin"], **headers)
            assert (login.status_code, "set-cookie" in login.headers) == (403, False), headers
        assert await actions(quiet_house, "assignment.settings") == []
        own = str(quiet_house.http.base_url).rstrip("/")
        answer = await desk.post("/assignment/north/settings", {"maxBatch": "7"}, Origin=own)
        assert answer.status_code == 200
    assert len(await actions(quiet_house, "assignment.settings")) == 1


async def test_logging_out_ends_the_session_whoever_has_its_cookie_and_at_every_api_process(
    quiet_house: House, client: Client
) -> None:
    settings = quiet_house.settings
    elsewhere = open_house(settings.database_url or "", client, settings.installation, worker=False)
    async with logged_in(quiet_house) as desk, logged_in(quiet_house) as other, elsewhere as second:
        stolen = {"Cookie": "; ".join(f"{name}={value}" for name, value in desk.http.cookies.items())}
        for house in (quiet_house, second):
            assert (await house.http.get("/console/orders", headers=stolen)).status_code == 200
        answer = await desk.post("/logout")
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/login")
        assert "Admin token" in await desk.get("")
        for house in (quiet_house, second):
            assert (await house.http.get("/console/orders", headers=stolen)).status_code == 303
            news = await house.http.get("/console/badges", headers={**stolen, "HX-Request": "true"})
            assert (news.status_code, "The session is over" in news.text) == (401, True)
        forged = await quiet_house.http.post("/console/cross-check", data={"reason": "x"}, headers=stolen)
        assert forged.headers["location"].startswith("/console/login")
        assert "Orders" in await other.get("/orders")  # a session of somebody else's


async def test_ended_sessions_are_forgotten_once_they_would_be_over_anyway(quiet_house: House) -> None:
    await quiet_house.sql(
        "INSERT INTO ended_sessions VALUES ('old', now() - interval '25 hours'), ('new', now() - interval '1 hour')"
    )
    async with logged_in(quiet_house) as desk:
        await desk.post("/logout")
    kept = await quiet_house.sql("SELECT session_id, expires_at < now() + interval '12 hours' FROM ended_sessions")
    assert len(kept) == 2
    assert ("old", True) not in kept
    assert {within for _, within in kept} == {True}


async def test_many_wrong_tokens_at_the_api_and_the_console_are_one_warning_in_the_log_and_lock_nobody_out(
    quiet_house: House,
) -> None:
    with capture_logs() as told:
        for number in range(8):
            guess = f"guess {number}"
            at_the_console = await log_in(quiet_house, guess)
            assert (at_the_console.status_code, "set-cookie" in at_the_console.headers) == (401, False)
            assert "This is not the admin token." in at_the_console.text
            at_the_api = await quiet_house.http.get("/api/orders", headers={"Authorization": f"Bearer {guess}"})
            assert at_the_api.status_code == 401
    assert [each["log_level"] for each in told if "wrong tokens" in each["event"]] == ["warning"]
    assert "guess" not in str(told)
    assert (await log_in(quiet_house, TOKENS["admin"])).status_code == 303


def test_after_a_minute_wrong_tokens_are_counted_anew() -> None:
    now = 1000.0
    guesses = Guesses(lambda: now)
    with capture_logs() as told:
        for wrong in (9, 9, 9):
            for _ in range(wrong):
                guesses.wrong("192.0.2.7")
            now += 60.0
        assert told == []
        for _ in range(11):
            guesses.wrong("192.0.2.7")
    assert [each["last_address"] for each in told] == ["192.0.2.7"]


async def test_every_answer_tells_browsers_to_load_frame_and_keep_nothing(quiet_house: House) -> None:
    async with logged_in(quiet_house) as desk:
        own = [await desk.http.get(f"/console{path}") for path in ("", "/charts", "/nothing", "/orders?cursor=!")]
    others = [
        await quiet_house.http.get(path) for path in ("/console", "/console/orders", "/console/static/console.js")
    ]
    assert [answer.status_code for answer in own + others] == [200, 200, 404, 422, 200, 303, 200]
    for answer in own + others:
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == ("no-cache" if "static" in str(answer.url) else "no-store")


async def test_even_a_bugs_page_tells_browsers_to_load_and_keep_nothing() -> None:
    console = create_console("token", "installation", Guesses())  # without services, every page that reads meets a bug
    session = {"cookie": f"{console.state.sessions.cookie}={console.state.sessions.open()}"}
    transport = httpx.ASGITransport(Guarded(console), raise_app_exceptions=False)
    caller = httpx.AsyncClient(transport=transport, base_url="http://console", headers=session)
    async with caller as http:
        with capture_logs():  # writing the traceback out takes seconds
            answer = await http.get("/console/failures")
    assert (answer.status_code, "Something went wrong on our side." in answer.text) == (500, True)
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_a_session_opens_no_door_of_the_api(quiet_house: House) -> None:
    async with logged_in(quiet_house) as desk:
        assert (await desk.http.get("/api/admin/ops/health")).status_code == 401
        assert (await desk.http.get("/consoleevil")).status_code == 401
