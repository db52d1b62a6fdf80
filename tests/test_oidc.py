"""OpenID Connect by a client library that is not ours (Authlib over httpx), on a real port; and what attackers try there."""

import asyncio
import base64
import contextlib
import html
import re
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from authlib.common.security import generate_token
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from harness import Harness
from identity_city import Citizen, City, Phone, make_provider
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet

from yikatong.bench.certificates import make_certificates
from yikatong.clients.assertions import Verifier
from yikatong.clients.embedded import EmbeddedServer, ServerFailed
from yikatong.core import limits
from yikatong.core.access.certificates import Subject, write_pair
from yikatong.core.config import Settings
from yikatong.core.identity import login, portals
from yikatong.core.identity.assertions import ES256, ID_TOKEN_TYPE, SM2, Key
from yikatong.core.identity.identity_service import Identity, IdentityOptions
from yikatong.core.identity.oidc import OidcPort
from yikatong.core.identity.portals import Portal
from yikatong.core.keys import p256
from yikatong.core.metrics import Metrics
from yikatong.core.types import Deny, DocumentKind

BACK = "https://library.example/login"
SECRET, DIGEST = portals.new_secret()
KEY = p256.PrivateKey.make()
LIBRARY = Portal(
    "library", "City <library>", bytes.fromhex(DIGEST), None, (BACK, BACK + "?app=1"), ("name", "rider"), "library account",
    "consent", ES256,
)  # fmt: skip
PORTALS = {
    "library": LIBRARY,
    "museum": LIBRARY._replace(id="museum"),
    "archive": LIBRARY._replace(id="archive", id_token_alg=SM2),
    "signing": LIBRARY._replace(id="signing", secret_digest=b"", key=Key(ES256, KEY.public_pem())),
}


class World:
    """A city whose identity is served over HTTP, and a browser."""

    def __init__(self, city: City, port: OidcPort, metrics: Metrics, ca: Path | None = None) -> None:
        self.city, self.port, self.metrics = city, port, metrics
        self.issuer = port.issuer
        self.citizen: Citizen = city.add_citizen()
        self.phone: Phone = city.phone(self.citizen)
        self.verify: Any = True if ca is None else ssl.create_default_context(cafile=ca)
        self.browser = httpx.AsyncClient(trust_env=False, verify=self.verify)
        self.verifier = generate_token(48)

    def client(self, name: str = "library", **more: Any) -> AsyncOAuth2Client:
        given = {
            "client_id": name, "client_secret": SECRET, "redirect_uri": BACK, "scope": "openid profile rider",
            "code_challenge_method": "S256", "trust_env": False, "verify": self.verify,
        } | more  # fmt: skip
        return AsyncOAuth2Client(**given)

    async def begin(self, client: AsyncOAuth2Client, **more: Any) -> httpx.Response:
        """The browser is sent to the authorisation endpoint, and stays where it is sent on."""
        found = (await self.browser.get(f"{self.issuer}/.well-known/openid-configuration")).json()
        url, self.state = client.create_authorization_url(
            found["authorization_endpoint"], code_verifier=self.verifier, nonce="nonce-1", **more
        )
        return await self.browser.get(url)

    async def page(self, client: AsyncOAuth2Client, **more: Any) -> tuple[str, str]:
        """Address of the login's page, and what its QR code holds."""
        sent = await self.begin(client, **more)
        assert sent.status_code == 303, sent.text
        shown = await self.browser.get(sent.headers["Location"])
        assert shown.status_code == 200
        (login_id,) = re.findall(r"/authorize/(.+)", sent.headers["Location"])
        kept = login.get(self.city.core.memory, base64.urlsafe_b64decode(login_id + "=="))
        assert kept is not None
        return sent.headers["Location"], login.qr_content(self.city.rules, kept)

    async def code(self, client: AsyncOAuth2Client, **more: Any) -> tuple[str, dict[str, str]]:
        """A whole way to the portal's address: where the browser lands, and the parameters there."""
        page, content = await self.page(client, **more)
        self.city.scan(content, self.phone)
        assert "已扫码" in (await self.browser.get(page)).text
        self.city.answer(content, self.phone, fields=("name",))
        landed = (await self.browser.get(page)).headers["Location"]
        return landed, {name: values[0] for name, values in parse_qs(urlsplit(landed).query).items()}

    async def token(self, client: AsyncOAuth2Client, landed: str, **more: Any) -> dict[str, Any]:
        given = {"authorization_response": landed, "state": self.state, "code_verifier": self.verifier} | more
        token: dict[str, Any] = await client.fetch_token(f"{self.issuer}/token", **given)
        return token

    async def post(self, **form: str) -> httpx.Response:
        """The token endpoint by hand, with the library's secret unless the form says otherwise."""
        given = {
            "grant_type": "authorization_code", "client_id": "library", "client_secret": SECRET, "redirect_uri": BACK,
            "code_verifier": self.verifier,
        } | form  # fmt: skip
        return await self.browser.post(f"{self.issuer}/token", data={name: text for name, text in given.items() if text})


@contextlib.asynccontextmanager
async def world(folder: Path, ca: Path | None = None, **settings: Any) -> AsyncIterator[World]:
    with Harness(folder / "data") as core:
        core.now_us = time.time_ns() // 1000
        city = City(core, make_provider(folder), portals=PORTALS)

        async def submit(work: Any) -> Any:
            return core.ask(lambda memory, _, time_us: work.command(memory, time_us), None)

        identity = Identity(city.provider, IdentityOptions(portals=PORTALS), submit)
        metrics = Metrics()
        given = {"data": "x", "insecure": True, "oidc_port": 0} | settings
        port = await OidcPort.listen(identity, Settings(**given), metrics)
        city.rules = identity.rules
        made = World(city, port, metrics, ca)
        try:
            yield made
        finally:
            await made.browser.aclose()
            await port.stop(0)


def run(folder: Path, test: Callable[[World], Awaitable[None]], ca: Path | None = None, **settings: Any) -> None:
    async def within() -> None:
        async with world(folder, ca, **settings) as made:
            await test(made)

    asyncio.run(within())


# ---- the way that it is meant ----


@pytest.mark.parametrize("way", ["client_secret_basic", "client_secret_post"])
def test_a_client_library_logs_somebody_in(tmp_path: Path, way: str) -> None:
    async def test(it: World) -> None:
        async with it.client(token_endpoint_auth_method=way) as client:
            found = (await it.browser.get(f"{it.issuer}/.well-known/openid-configuration")).json()
            assert found["issuer"] == it.issuer
            assert set(found["code_challenge_methods_supported"]) == {"S256"}
            landed, answer = await it.code(client)
            assert landed.startswith(BACK + "?")
            assert answer["iss"] == it.issuer
            assert answer["state"] == it.state
            token = await it.token(client, landed)
            assert (token["token_type"], token["scope"], token["expires_in"]) == ("Bearer", "openid name", limits.LOGIN_SESSION_S)
            published = KeySet.import_key_set((await it.browser.get(found["jwks_uri"])).json())
            claims = jwt.decode(token["id_token"], published, algorithms=[ES256]).claims
            wanted = {
                "iss": {"essential": True, "value": it.issuer}, "aud": {"essential": True, "value": "library"},
                "nonce": {"essential": True, "value": "nonce-1"}, "exp": {"essential": True}, "sub": {"essential": True},
            }  # fmt: skip
            jwt.JWTClaimsRegistry(**wanted).validate(claims)
            user = (await client.get(found["userinfo_endpoint"])).json()
            assert user == {"sub": claims["sub"], "name": it.citizen.data.name}  # not the rider, to which nobody consented

    run(tmp_path, test)


def test_a_portal_signs_instead_of_having_a_secret(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        pem = KEY.private_pem().decode()

        async def fetch(key: str, audience: str, name: str = "signing") -> dict[str, Any]:
            client = it.client(name, client_secret=ECKey.import_key(key), token_endpoint_auth_method="private_key_jwt")
            client.register_client_auth_method(PrivateKeyJWT(audience, alg=ES256))
            async with client:
                landed, _ = await it.code(client)
                return await it.token(client, landed)

        assert "id_token" in await fetch(pem, f"{it.issuer}/token")
        for key, audience, name in (
            (p256.PrivateKey.make().private_pem().decode(), f"{it.issuer}/token", "signing"),
            (pem, "https://other.example/token", "signing"),
            (pem, f"{it.issuer}/token", "library"),
        ):
            with pytest.raises(Exception, match="invalid_client"):
                await fetch(key, audience, name)
        # The same assertion is good once.
        now = int(time.time())
        signed = jwt.encode(
            {"alg": ES256}, {"iss": "signing", "sub": "signing", "aud": it.issuer, "iat": now, "exp": now + 60, "jti": "1"},
            ECKey.import_key(pem),
        )  # fmt: skip
        form = {"client_id": "signing", "client_secret": "", "client_assertion": signed, "code": "AAAA",
                "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}  # fmt: skip
        errors = [(await it.post(**form)).json()["error"] for _ in range(2)]
        assert errors == ["invalid_grant", "invalid_client"]

    run(tmp_path, test)


def test_sm2_id_tokens_for_who_is_registered_with_them(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        async with it.client("archive") as client:
            landed, _ = await it.code(client)
            token = await it.token(client, landed)
        found = (await it.browser.get(f"{it.issuer}/.well-known/openid-configuration")).json()
        keys = (await it.browser.get(found["yikatong_sm2_jwks_uri"])).json()
        verifier = Verifier(keys, it.issuer, "archive", algorithm=SM2, token_type=ID_TOKEN_TYPE)
        assert verifier.verify(token["id_token"], "nonce-1").acr == "e-card"
        es256 = KeySet.import_key_set((await it.browser.get(found["jwks_uri"])).json())
        with pytest.raises(JoseError):
            jwt.decode(token["id_token"], es256, algorithms=[ES256])

    run(tmp_path, test)


def test_the_page_shows_a_code_without_script_and_is_the_browsers_own(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        async with it.client() as client:
            page, content = await it.page(client)
            shown = await it.browser.get(page)
            assert "<script" not in shown.text
            assert "City &lt;library&gt;" in shown.text
            assert 'http-equiv="refresh"' in shown.text
            assert content not in shown.text
            assert "default-src 'none'" in shown.headers["Content-Security-Policy"]
            assert (shown.headers["X-Frame-Options"], shown.headers["Cache-Control"]) == ("DENY", "no-store")
            (cookie,) = [each for each in it.browser.cookies.jar if page.endswith(each.name.removeprefix("yikatong_login_"))]
            assert cookie.has_nonstandard_attr("HttpOnly")
            it.city.scan(content, it.phone)
            it.city.answer(content, it.phone)
            async with httpx.AsyncClient(trust_env=False) as other:
                assert (await other.get(page)).status_code == 404
                other.cookies.set(cookie.name, "x" * 43)
                assert (await other.get(page)).status_code == 404
            for path in ("/authorize/AAAA", "/authorize/" + "A" * 22, "/authorize/%00"):
                assert (await it.browser.get(it.issuer + path)).status_code == 404
            assert (await it.browser.get(page)).status_code == 303

    run(tmp_path, test)


# ---- what goes wrong at the authorisation endpoint ----


def test_nobody_is_sent_where_the_portal_is_not_registered(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        for change in (
            {"redirect_uri": BACK + "/"}, {"redirect_uri": BACK + "?app=2"}, {"redirect_uri": BACK.upper()},
            {"redirect_uri": "https://evil.example/"}, {"redirect_uri": ""}, {"client_id": "nobody"}, {"client_id": ""},
        ):  # fmt: skip
            query = {"client_id": "library", "redirect_uri": BACK, "response_type": "code", "scope": "openid"} | change
            sent = await it.browser.get(f"{it.issuer}/authorize", params=query)
            assert (sent.status_code, sent.headers.get("Location")) == (400, None)
        twice = await it.browser.get(f"{it.issuer}/authorize?client_id=library&client_id=museum")
        assert twice.status_code == 400
        assert not list(it.city.core.memory.documents.scan(DocumentKind.LOGIN))

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("error", "change"),
    [
        ("unsupported_response_type", {"response_type": "token"}),
        ("invalid_scope", {"scope": "profile"}),
        ("invalid_scope", {"scope": "openid citizen_number"}),
        ("invalid_request", {"code_challenge_method": "plain"}),
        ("invalid_request", {"code_challenge": ""}),
        ("invalid_request", {"code_challenge": "short"}),
        ("invalid_request", {"response_mode": "fragment"}),
        ("invalid_request", {"nonce": "x" * 600}),
        ("login_required", {"prompt": "none"}),
        ("request_not_supported", {"request_uri": "https://evil.example/"}),
    ],
)
def test_errors_go_back_to_the_portal(tmp_path: Path, error: str, change: dict[str, str]) -> None:
    async def test(it: World) -> None:
        query = {
            "client_id": "library", "redirect_uri": BACK, "response_type": "code", "scope": "openid", "state": "s&x=1",
            "code_challenge": create_s256_code_challenge(it.verifier), "code_challenge_method": "S256",
        } | change  # fmt: skip
        sent = await it.browser.get(f"{it.issuer}/authorize", params=query)
        answer = parse_qs(urlsplit(sent.headers["Location"]).query)
        assert sent.headers["Location"].startswith(BACK + "?")
        assert answer["error"] == [error]
        assert answer["iss"] == [it.issuer]
        assert answer.get("state", ["s&x=1"]) == ["s&x=1"]

    run(tmp_path, test)


def test_a_denial_and_a_timeout_go_back_to_the_portal(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        for how in ("deny", "wait"):
            async with it.client(redirect_uri=BACK + "?app=1") as client:
                page, content = await it.page(client)
                if how == "deny":
                    it.city.scan(content, it.phone)
                    it.city.answer(content, it.phone, consent=False)
                else:
                    it.city.core.pass_time(limits.LOGIN_QR_S)
                landed = (await it.browser.get(page)).headers["Location"]
                assert landed.startswith(BACK + "?app=1&error=access_denied")
                assert parse_qs(urlsplit(landed).query)["state"] == [it.state]

    run(tmp_path, test)


# ---- what attackers try at the token endpoint ----


def test_a_code_is_good_once_and_a_second_time_ends_the_session(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        async with it.client() as client:
            _, answer = await it.code(client)
        first = await it.post(code=answer["code"])
        assert first.status_code == 200
        assert (first.headers["Cache-Control"], first.headers["Pragma"]) == ("no-store", "no-cache")
        bearer = {"Authorization": f"Bearer {first.json()['access_token']}"}
        assert (await it.browser.get(f"{it.issuer}/userinfo", headers=bearer)).status_code == 200
        again = await it.post(code=answer["code"])
        assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
        ended = await it.browser.get(f"{it.issuer}/userinfo", headers=bearer)
        assert (ended.status_code, ended.json()["error"]) == (401, "invalid_token")

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("status", "error", "change"),
    [
        (400, "invalid_grant", {"redirect_uri": BACK + "?app=1"}),
        (400, "invalid_grant", {"code_verifier": "x" * 43}),
        (400, "invalid_grant", {"client_id": "museum"}),
        (400, "invalid_grant", {"code": "A" * 43}),
        (400, "invalid_request", {"code_verifier": ""}),
        (400, "invalid_request", {"code_verifier": "short"}),
        (400, "invalid_request", {"redirect_uri": ""}),
        (400, "invalid_request", {"code": ""}),
        (400, "unsupported_grant_type", {"grant_type": "password"}),
        (401, "invalid_client", {"client_secret": "x"}),
        (401, "invalid_client", {"client_secret": ""}),
        (401, "invalid_client", {"client_id": "nobody"}),
        (401, "invalid_client", {"client_id": "signing"}),
        (401, "invalid_client", {"client_assertion": "e30.e30.e30"}),
    ],
)
def test_what_is_wrong_gets_nothing_and_spends_nothing(tmp_path: Path, status: int, error: str, change: dict[str, str]) -> None:
    async def test(it: World) -> None:
        async with it.client() as client:
            _, answer = await it.code(client)
        refused = await it.post(**({"code": answer["code"]} | change))
        assert (refused.status_code, refused.json()["error"]) == (status, error)
        assert answer["code"] not in refused.text
        assert (await it.post(code=answer["code"])).status_code == 200

    run(tmp_path, test)


def test_more_that_is_wrong(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        async with it.client() as client:
            landed, answer = await it.code(client)
            with pytest.raises(Exception, match="state"):  # a forged answer, at the portal
                await it.token(client, landed, state="another")
        form = {"grant_type": "authorization_code", "code": answer["code"], "redirect_uri": BACK,
                "code_verifier": it.verifier}  # fmt: skip
        basic = "Basic " + base64.b64encode(f"library:{SECRET}".encode()).decode()
        url = f"{it.issuer}/token"
        both = await it.browser.post(url, data=form | {"client_secret": SECRET}, headers={"Authorization": basic})
        assert both.status_code == 401
        for headers in ({"Authorization": "Basic !"}, {"Authorization": "Bearer x"}, {"Authorization": basic[:-4]}):
            sent = await it.browser.post(url, data=form, headers=headers)
            assert sent.status_code == 401
            assert sent.headers["WWW-Authenticate"].startswith("Basic")
        assert (await it.browser.post(url, json=form, headers={"Authorization": basic})).status_code == 400
        assert (await it.browser.post(url + "?code=1", data=form, headers={"Authorization": basic})).status_code == 400
        twice = "&".join(f"{name}={value}" for name, value in form.items()) + "&code=x"
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (await it.browser.post(url, content=twice, headers={"Authorization": basic} | kind)).status_code == 400
        assert (await it.browser.post(url, data=form | {"x": "y" * 40_000}, headers={"Authorization": basic})).status_code == 413
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer " + "A" * 43}):
            assert (await it.browser.get(f"{it.issuer}/userinfo", headers=headers)).status_code == 401
        assert (await it.browser.get(url)).status_code == 405

    run(tmp_path, test)


def test_expired_codes_and_lost_cards_open_nothing(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        async with it.client() as client:
            codes = [(await it.code(client))[1]["code"] for _ in range(2)]
            it.city.deny(it.citizen, Deny.LOSS)
            assert (await it.post(code=codes[0])).json()["error"] == "invalid_grant"
            it.city.deny(it.citizen, 0)
            given = (await it.post(code=codes[0])).json()
            it.city.core.pass_time(limits.LOGIN_TICKET_S)
            assert (await it.post(code=codes[1])).json()["error"] == "invalid_grant"
            bearer = {"Authorization": f"Bearer {given['access_token']}"}
            assert (await it.browser.post(f"{it.issuer}/userinfo", headers=bearer)).status_code == 200
            it.city.deny(it.citizen, Deny.FROZEN)
            assert (await it.browser.get(f"{it.issuer}/userinfo", headers=bearer)).status_code == 401
            it.city.deny(it.citizen, 0)
            it.city.core.pass_time(limits.LOGIN_SESSION_S)
            assert (await it.browser.get(f"{it.issuer}/userinfo", headers=bearer)).status_code == 401

    run(tmp_path, test)


# ---- TLS, and how often ----


def test_a_client_library_logs_somebody_in_over_tls(tmp_path: Path) -> None:
    authority = make_certificates(tmp_path)
    files = {"tls_certificate": str(tmp_path / "server.pem"), "tls_key": str(tmp_path / "server.key")}

    def shown(port: int) -> str:
        return ssl.get_server_certificate(("127.0.0.1", port))

    async def test(it: World) -> None:
        assert it.issuer.startswith("https://127.0.0.1:")
        async with it.client() as client:
            landed, _ = await it.code(client)
            token = await it.token(client, landed)
            told = (await client.get(f"{it.issuer}/userinfo")).json()
        keys = KeySet.import_key_set((await it.browser.get(f"{it.issuer}/jwks")).json())
        claims = jwt.decode(token["id_token"], keys, algorithms=[ES256]).claims
        assert (claims["iss"], claims["sub"], told["name"]) == (it.issuer, told["sub"], it.citizen.data.name)
        assert all("Secure" in cookie for cookie in (await it.begin(it.client())).headers.get_list("Set-Cookie"))
        async with httpx.AsyncClient(trust_env=False) as stranger:
            with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
                await stranger.get(f"{it.issuer}/jwks")
            with pytest.raises(httpx.RemoteProtocolError):
                await stranger.get(f"{it.issuer}/jwks".replace("https://", "http://"))
        before = await asyncio.to_thread(shown, it.port.port)
        (tmp_path / "server.key").write_text("half a key")
        it.port.take_up_certificate()
        assert await asyncio.to_thread(shown, it.port.port) == before
        write_pair(authority, tmp_path / "server", Subject(dns=("localhost",), ips=("127.0.0.1",)), days=1)
        it.port.take_up_certificate()
        assert await asyncio.to_thread(shown, it.port.port) != before

    run(tmp_path, test, tmp_path / "ca.pem", insecure=False, **files)


def test_one_address_may_not_ask_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OIDC_PEER_PER_S", 5.0)

    async def test(it: World) -> None:
        answers = [await it.browser.get(f"{it.issuer}/jwks") for _ in range(15)]
        assert [each.status_code for each in answers[:10]] == [200] * 10  # RATE_BURST_S of them
        last = answers[-1]
        assert (last.status_code, last.json()) == (429, {"error": "temporarily_unavailable"})
        assert int(last.headers["Retry-After"]) >= 1
        assert it.metrics.registry.get_sample_value("yikatong_rate_limited_total", {"method_class": "general"})

    run(tmp_path, test)


@pytest.mark.parametrize("which", ["general", "proof", "personal"])
def test_one_portal_may_not_ask_without_end(tmp_path: Path, which: str) -> None:
    """Beginning logins, redeeming codes, asking for people's fields; an address that is refused is no other's loss."""

    async def test(it: World) -> None:
        async def ask() -> httpx.Response:
            if which == "general":
                return await it.begin(it.client())
            if which == "proof":
                return await it.post(code="none")
            return await it.browser.get(f"{it.issuer}/userinfo", headers={"Authorization": "Bearer none"})

        statuses = [(await ask()).status_code for _ in range(6)]
        assert statuses[0] == {"general": 303, "proof": 400, "personal": 401}[which]
        assert statuses[-1] == 429
        if which != "personal":
            async with it.client("museum") as other:
                assert (await it.begin(other)).status_code == 303

    run(tmp_path, test, **{f"rate_{which}_per_s": 1.0})


# ---- in a server ----


def test_a_server_serves_it_on_a_port_of_its_own(tmp_path: Path, key_file: Path) -> None:
    portal = tmp_path / "portals.toml"
    portal.write_text(
        f'[[portal]]\nid = "library"\ntitle = "City library"\nsecret_digest = "{DIGEST}"\nredirect_uris = ["{BACK}"]\n'
        'fields = ["name"]\npurpose = "library account"\nlegal_basis = "consent"\n'
    )
    arguments = ("--portals", str(portal), "--oidc-port", "0")
    with EmbeddedServer(tmp_path / "data", key_file, *arguments) as server, httpx.Client(trust_env=False) as browser:
        issuer = f"http://127.0.0.1:{server.ports['oidc_port']}"
        assert browser.get(f"{issuer}/.well-known/openid-configuration").json()["issuer"] == issuer
        assert [key["kid"] for key in browser.get(f"{issuer}/jwks").json()["keys"]] == ["oidc-1-1"]
        verifier = secrets.token_urlsafe(32)
        query = {
            "client_id": "library", "redirect_uri": BACK, "response_type": "code", "scope": "openid name",
            "code_challenge": create_s256_code_challenge(verifier), "code_challenge_method": "S256",
        }  # fmt: skip
        page = browser.get(f"{issuer}/authorize", params=query, follow_redirects=True)
        assert "City library" in page.text
        assert html.unescape(page.text).count("data:image/svg+xml") == 1
        assert server.stop() == 0
    log = server.log_path.read_text()
    assert f"OpenID Connect on 127.0.0.1:{server.ports['oidc_port']}" in log
    assert str(page.url).rsplit("/", 1)[1] not in log
    with pytest.raises(ServerFailed, match="issuer"):
        EmbeddedServer(tmp_path / "data", key_file, *arguments, "--issuer", "city")
