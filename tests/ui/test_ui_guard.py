"""Nobody but who has the key from the terminal, at this machine, gets an answer."""

import pytest
from fastapi.testclient import TestClient

from taskfit.ui.app import make_app
from taskfit.ui.guard import COOKIE, key_of

ADDRESS = "http://127.0.0.1:8321"


def routes(app) -> list[tuple[str, str]]:
    """Every address of the server, with a method that it takes."""
    found = [("/", "GET"), ("/ui.js", "GET"), ("/openapi.json", "GET")]
    for path, operations in app.openapi()["paths"].items():
        place = path.replace("{name}", "toy").replace("{run}", "tfidf")
        found += [(place, method.upper()) for method in operations]
    return found


def test_every_address_is_refused_without_the_key_and_under_another_host(tmp_path) -> None:
    app = make_app(tmp_path)
    without = TestClient(app, base_url=ADDRESS)
    rebound = TestClient(app, base_url="http://evil.example:8321")
    rebound.cookies.set(f"{COOKIE}-8321", key_of(tmp_path))
    found = routes(app)
    assert len(found) > 12
    for path, method in found:
        assert without.request(method, path).status_code == 401, (method, path)
        assert rebound.request(method, path).status_code == 421, (method, path)


@pytest.mark.parametrize("host", ["127.0.0.1:8321", "localhost:9000", "[::1]:8321", "localhost"])
def test_names_of_this_machine_are_taken_as_hosts(tmp_path, host: str) -> None:
    app = make_app(tmp_path)
    browser = TestClient(app, base_url=f"http://{host}", follow_redirects=False)
    assert browser.get("/", params={"key": key_of(tmp_path)}).status_code == 303


@pytest.mark.parametrize(
    "host", ["127.0.0.1.evil.example", "evil.example", "127.0.0.1@evil.example", "", "10.0.0.1:80"]
)
def test_names_of_other_machines_are_not(tmp_path, host: str) -> None:
    browser = TestClient(make_app(tmp_path), base_url=ADDRESS)
    answer = browser.get("/", params={"key": key_of(tmp_path)}, headers={"Host": host})
    assert answer.status_code == 421


def test_the_key_leaves_the_address_for_a_cookie_that_other_sites_cannot_send(page) -> None:
    fresh = TestClient(page.browser.app, base_url=ADDRESS, follow_redirects=False)
    answer = fresh.get("/", params={"key": key_of(page.home)})
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert fresh.get("/", params={"key": "wrong"}).status_code == 200  # its cookie still counts
    assert TestClient(page.browser.app, base_url=ADDRESS).get("/?key=wrong").status_code == 401


def test_what_changes_something_must_come_from_a_page_of_this_server(page) -> None:
    for origin in ("http://evil.example", "http://127.0.0.1:9999", "null"):
        answer = page.browser.post("/api/projects", headers={"Origin": origin}, content=b"a,b\n")
        assert answer.status_code == 403, origin
    answer = page.browser.post(
        "/api/projects?name=a.csv", headers={"Origin": ADDRESS}, content=b"text,label\na,b\n"
    )
    assert answer.status_code == 201


def test_the_key_is_its_owners_and_stays_the_same(tmp_path) -> None:
    key = key_of(tmp_path)
    assert key_of(tmp_path) == key
    assert (tmp_path / ".key").stat().st_mode & 0o077 == 0
    assert len(key) >= 32


def test_a_page_runs_nothing_that_is_not_this_servers(page) -> None:
    policy = page.browser.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
