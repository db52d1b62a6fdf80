"""OpenID Connect Core 1.0 for portals that exist already: authorisation code flow with PKCE (RFC 7636) over the scan login.

The page of the authorisation endpoint shows the login's QR code and loads itself again until the phone has answered: HTML without
script. The code that the portal gets is the login's ticket, its access token the login's session; both end as login.py says.
ID tokens are ES256, which clients know, or SM2 for a portal that is registered with that. Redirect URIs are compared character by
character, each code is good once, and a code that comes again ends the session (RFC 6749, 4.1.2). The page belongs to the browser
that asked for it, by a cookie. How often one address may ask is bounded, and how often one portal: before it is known who calls,
and after.

aiohttp serves it, on the loop that is there: one library, kept well for long, which also calls foreign code services
(core/identity/foreign_codes.py)."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import html
import logging
import math
import re
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote_plus, urlencode

import segno
from aiohttp import web

from yikatong.core import limits
from yikatong.core.access.callers import Caller
from yikatong.core.access.rate_limits import MethodClass, RateLimits, Rates
from yikatong.core.change import Change
from yikatong.core.config import Settings
from yikatong.core.errors import ConfigError, InvalidRequest, Overloaded, RateLimited, Unavailable, YikatongError
from yikatong.core.identity import assertions, login
from yikatong.core.identity.assertions import ES256, ID_TOKEN_TYPE, SM2, AssertionWrong, check_times, decode, encode, open_token
from yikatong.core.identity.identity_expiry import put_expiry
from yikatong.core.identity.identity_service import Identity
from yikatong.core.identity.portals import Portal
from yikatong.core.identity.visibility import FIELDS
from yikatong.core.journal import sm3
from yikatong.core.keys.provider import Purpose
from yikatong.core.memory import Memory
from yikatong.core.metrics import Metrics
from yikatong.core.types import DocumentKind, Result
from yikatong.v1 import access_pb2
from yikatong.v1 import identity_service_pb2 as protos

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

COOKIE: Final = "yikatong_login"
POLL_S: Final = 2
FORM_BYTES_MAX: Final = 32_768
CLIENT_ASSERTION_S_MAX: Final = 3_600
CLIENT_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
SCOPES: Final = {"profile": ("name",)} | {name: (name,) for name in FIELDS}
"""What a scope asks for, beside `openid`."""
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Pragma": "no-cache",
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_PAGE: Final = """<!doctype html>
<html lang="zh"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">{refresh}
<title>{title}</title>
<style>body{{font-family:sans-serif;text-align:center;margin:2em}}img{{width:16em;height:16em}}</style></head>
<body><h1>{title}</h1>{body}</body></html>
"""


class TokenRefused(YikatongError):
    """An error of the token endpoint (RFC 6749, 5.2); `code` is what the client is told."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class _Redemption(NamedTuple):
    """What the token endpoint was given."""

    portal: Portal
    code: str
    redirect_uri: str
    verifier: str


class OidcPort:
    """The HTTP port; made by `listen`."""

    def __init__(self, identity: Identity, issuer: str, rates: Rates, metrics: Metrics, *, secure: bool) -> None:
        self.issuer = issuer
        self.port = 0
        self._identity = identity
        self._metrics = metrics
        self._rates = RateLimits(rates, time.monotonic)
        self._peers = RateLimits(Rates(limits.OIDC_PEER_PER_S), time.monotonic)
        self._secure = secure
        self._runner: web.AppRunner | None = None
        self._take_up: Callable[[], None] = lambda: None

    def take_up_certificate(self) -> None:
        """New connections get the certificate that is in the file now; the one before, where it cannot be read."""
        try:
            self._take_up()
        except ConfigError as error:
            log.error("%s", error)

    @classmethod
    async def listen(cls, identity: Identity, settings: Settings, metrics: Metrics) -> "OidcPort":
        """Serve on `oidc_port`. Raises ConfigError."""
        tls = None
        if not settings.insecure:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # for browsers, which have no certificate of their own
            tls.minimum_version = ssl.TLSVersion.TLSv1_2
            _take_certificate(tls, settings)
        rates = Rates(settings.rate_general_per_s, settings.rate_personal_per_s, settings.rate_proof_per_s)
        port = cls(identity, settings.issuer, rates, metrics, secure=tls is not None)
        port._take_up = lambda: None if tls is None else _take_certificate(tls, settings)
        await port._start(settings.host, settings.oidc_port, tls)
        if not port.issuer:
            port.issuer = f"{'https' if tls else 'http'}://{settings.url(port.port)}"
            identity.rules = identity.rules._replace(issuer=port.issuer)
        if not port.issuer.startswith("https://" if tls else ("https://", "http://")) or port.issuer.endswith("/"):
            await port.stop(0)
            raise ConfigError("issuer", "with OpenID Connect, an https URL without a slash at its end is wanted")
        return port

    async def _start(self, host: str, number: int, tls: ssl.SSLContext | None) -> None:
        application = web.Application(client_max_size=FORM_BYTES_MAX, middlewares=[_guard, self._slow])
        application.add_routes(
            [
                web.get("/.well-known/openid-configuration", self.discovery),
                web.get("/jwks", self.key_set),
                web.get("/jwks/sm2", self.sm2_key_set),
                web.get("/authorize", self.authorize),
                web.get("/authorize/{login_id}", self.page),
                web.post("/token", self.token),
                web.get("/userinfo", self.user_info),
                web.post("/userinfo", self.user_info),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False)  # its log would hold codes
        await self._runner.setup()
        try:
            site = web.TCPSite(self._runner, host, number, ssl_context=tls)
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError("oidc_port", f"cannot listen on {host}:{number}") from error
        self.port = self._runner.addresses[0][1]

    @web.middleware
    async def _slow(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Nobody asks too often from one address."""
        self._take(self._peers, _peer(request), MethodClass.GENERAL)
        return await handler(request)

    def _take(self, rates: RateLimits, caller: Caller, of_class: MethodClass) -> None:
        """Count a call. Raises RateLimited."""
        try:
            rates.take(caller, of_class)
        except RateLimited:
            self._metrics.on_rate_limited(of_class.value)
            raise

    async def stop(self, drain_s: float) -> None:
        """Let calls in flight finish."""
        if self._runner is not None:
            await asyncio.wait_for(self._runner.cleanup(), drain_s + 5)

    # ---- what is published ----

    async def discovery(self, _: web.Request) -> web.Response:
        """OpenID Connect Discovery 1.0, 3."""
        return web.json_response(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "userinfo_endpoint": f"{self.issuer}/userinfo",
                "jwks_uri": f"{self.issuer}/jwks",
                "yikatong_sm2_jwks_uri": f"{self.issuer}/jwks/sm2",
                "response_types_supported": ["code"],
                "response_modes_supported": ["query"],
                "grant_types_supported": ["authorization_code"],
                "subject_types_supported": ["pairwise"],
                "id_token_signing_alg_values_supported": [ES256, SM2],
                "scopes_supported": ["openid", *SCOPES],
                "claims_supported": ["iss", "aud", "sub", "iat", "exp", "jti", "acr", "nonce", *FIELDS],
                "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
                "token_endpoint_auth_signing_alg_values_supported": [ES256, SM2],
                "code_challenge_methods_supported": ["S256"],
                "authorization_response_iss_parameter_supported": True,
                "request_uri_parameter_supported": False,
                "claims_parameter_supported": False,
            }
        )

    async def key_set(self, _: web.Request) -> web.Response:
        """RFC 7517, 5: keys on P-256 alone, since client libraries fail at a set with one on a curve that they do not know."""
        return web.json_response(await asyncio.to_thread(assertions.key_set, self._identity.rules.provider, [ES256]))

    async def sm2_key_set(self, _: web.Request) -> web.Response:
        """The same for portals whose ID tokens are SM2."""
        return web.json_response(await asyncio.to_thread(assertions.key_set, self._identity.rules.provider, [SM2]))

    # ---- the authorisation endpoint ----

    async def authorize(self, request: web.Request) -> web.StreamResponse:
        """Begin a login, and send the browser to its page. Nobody is sent to a redirect URI that is not the portal's."""
        asked = _once(request.query)
        portal = self._identity.rules.portals.get(asked.get("client_id", ""))
        redirect_uri = asked.get("redirect_uri", "")
        if portal is None or redirect_uri not in portal.redirect_uris:
            return _say("登录无法开始", "The portal is not registered, or not with this address.", status=400)
        fault = _authorization_fault(asked, portal)
        if fault is not None:
            return self._back(redirect_uri, error=fault[0], error_description=fault[1], state=asked.get("state", ""))
        self._take(self._rates, _caller(portal), MethodClass.GENERAL)
        fields = {name for scope in asked["scope"].split() for name in SCOPES.get(scope, ())}
        message = protos.StartLoginRequest(
            request_id=secrets.token_bytes(16),
            fields=[name for name in FIELDS if name in fields],
            purpose=portal.purpose,
            legal_basis=portal.legal_basis,
            state=asked.get("state", ""),
            nonce=asked.get("nonce", ""),
        )

        def start(rules: login.Rules, memory: Memory, _: Any, time_us: int, caller: Caller) -> Any:
            started = login.start(
                rules, memory, message, time_us, caller, redirect_uri=redirect_uri, code_challenge=asked["code_challenge"]
            )
            return started, login.get(memory, started.login_id)

        try:
            started, begun = await self._identity.ask(start, None, _caller(portal))
        except InvalidRequest as error:
            return self._back(redirect_uri, error="invalid_request", error_description=str(error), state="")
        if started.result != Result.ACCEPTED:
            return self._back(redirect_uri, error="invalid_scope", state=asked.get("state", ""))
        response = _see(f"{self.issuer}/authorize/{encode(started.login_id)}")
        response.set_cookie(
            f"{COOKIE}_{encode(started.login_id)}", login.browser(self._identity.rules, begun), path="/",
            max_age=limits.LOGIN_QR_S + limits.LOGIN_TICKET_S, httponly=True, samesite="Lax", secure=self._secure,
        )  # fmt: skip
        return response

    async def page(self, request: web.Request) -> web.StreamResponse:
        """The login's page: its QR code until the phone has answered, then back to the portal."""
        name = request.match_info["login_id"]
        try:
            login_id = decode(name)
        except AssertionWrong:
            login_id = b""

        def look(rules: login.Rules, memory: Memory, _: Any, time_us: int, caller: Caller) -> Any:
            found = login.get(memory, login_id)
            return found, None if found is None else login.state_at(found, time_us)

        found, state = await self._identity.ask(look, None, _NOBODY) if len(login_id) == login.LOGIN_ID_BYTES else (None, None)
        rules = self._identity.rules
        cookie = request.cookies.get(f"{COOKIE}_{name}", "").encode()
        if found is None or not found.redirect_uri or not hmac.compare_digest(cookie, login.browser(rules, found).encode()):
            return _say("登录已失效", "There is no such login in this browser, or not any more.", status=404)
        match state:
            case login.State.WAITING:
                code = segno.make(login.qr_content(rules, found), error="m").svg_data_uri(border=4)
                body = f'<p>请用电子社保卡扫码</p><img alt="QR" src="{html.escape(code)}">'
                return _page(rules.portals[found.portal_id].title, body, refresh=True)
            case login.State.SCANNED:
                return _page(rules.portals[found.portal_id].title, "<p>已扫码，请在手机上确认</p>", refresh=True)
            case login.State.CONSENTED:
                return self._back(found.redirect_uri, code=login.ticket(rules, found), state=found.state)
            case login.State.DENIED:
                return self._back(found.redirect_uri, error="access_denied", state=found.state)
            case login.State.EXPIRED:
                return self._back(
                    found.redirect_uri, error="access_denied", error_description="nobody answered in time", state=found.state
                )
            case _:
                return _say("登录已完成", "This login is done.", status=410)

    def _back(self, redirect_uri: str, **answer: str) -> web.StreamResponse:
        """To the portal, with an answer (RFC 6749, 4.1.2; RFC 9207)."""
        given = {name: text for name, text in answer.items() if text} | {"iss": self.issuer}
        joint = "&" if "?" in redirect_uri else "?"
        return _see(f"{redirect_uri}{joint}{urlencode(given, quote_via=quote)}")

    # ---- the token endpoint ----

    async def token(self, request: web.Request) -> web.StreamResponse:
        """RFC 6749, 4.1.3."""
        try:
            given = await self._redemption(request)
            self._take(self._rates, _caller(given.portal), MethodClass.PROOF)
            return await self._redeem(given)
        except TokenRefused as error:
            status = 401 if error.code == "invalid_client" else 400
            headers = {"WWW-Authenticate": 'Basic realm="yikatong"'} if status == 401 else {}
            return web.json_response({"error": error.code, "error_description": str(error)}, status=status, headers=headers)

    async def _redemption(self, request: web.Request) -> _Redemption:
        if request.content_type != "application/x-www-form-urlencoded" or request.query_string:
            raise TokenRefused("invalid_request", "a form in the body is wanted")
        form = _once({name: value for name, value in (await _form(request)).items() if isinstance(value, str)})
        portal = await self._client(request.headers.get("Authorization", ""), form)
        if form.get("grant_type") != "authorization_code":
            raise TokenRefused("unsupported_grant_type", "authorization_code is wanted")
        if not _VERIFIER.fullmatch(form.get("code_verifier", "")):
            raise TokenRefused("invalid_request", "code_verifier is missing, or is none")
        if not form.get("code") or not form.get("redirect_uri"):
            raise TokenRefused("invalid_request", "code and redirect_uri are wanted")
        return _Redemption(portal, form["code"], form["redirect_uri"], form["code_verifier"])

    async def _client(self, authorization: str, form: Mapping[str, str]) -> Portal:
        """The portal that makes the request, by one of three ways (OpenID Connect Core 1.0, 9)."""
        ways = [bool(authorization), "client_secret" in form, "client_assertion" in form]
        refused = TokenRefused("invalid_client", "the client is unknown, or does not prove who it is as it is registered")
        if sum(ways) != 1:
            raise refused
        client_id, secret = form.get("client_id", ""), form.get("client_secret", "")
        if authorization:
            client_id, secret = _basic(authorization)
        elif "client_assertion" in form:
            client_id = client_id or _unproved_subject(form["client_assertion"])
        portal = self._identity.rules.portals.get(client_id)
        if portal is None or form.get("client_id", client_id) != client_id:
            raise refused
        if "client_assertion" not in form:
            if not portal.has_secret(secret):
                raise refused
            return portal
        if portal.key is None or form.get("client_assertion_type") != CLIENT_ASSERTION_TYPE:
            raise refused
        try:
            claims = open_token(form["client_assertion"], {}, ID_TOKEN_TYPE, only=portal.key)
        except AssertionWrong:
            raise refused from None
        await self._check_client_assertion(portal, claims, refused)
        return portal

    async def _check_client_assertion(self, portal: Portal, claims: Mapping[str, Any], refused: TokenRefused) -> None:
        audience, token_id = claims.get("aud"), claims.get("jti")
        audiences = audience if isinstance(audience, list) else [audience]
        if claims.get("iss") != portal.id or claims.get("sub") != portal.id or not isinstance(token_id, str):
            raise refused
        if not {self.issuer, f"{self.issuer}/token"} & {text for text in audiences if isinstance(text, str)}:
            raise refused

        def use(_: login.Rules, memory: Memory, __: Any, time_us: int, caller: Caller) -> bool:
            try:
                check_times(claims, time_us / login.SECOND_US, CLIENT_ASSERTION_S_MAX, limits.LOGIN_TICKET_S)
            except AssertionWrong:
                return False
            key = b"j" + sm3(f"{portal.id}\0{token_id}".encode())
            if memory.documents.get(DocumentKind.IDENTITY_ANSWER, key) is not None:
                return False
            change = Change(memory, time_us)
            due_us = (claims["exp"] + 2 * limits.LOGIN_TICKET_S) * login.SECOND_US
            change.put(DocumentKind.IDENTITY_ANSWER, key, b"\1")
            put_expiry(change, due_us, DocumentKind.IDENTITY_ANSWER, key)
            change.commit("client-assertion-used")
            return True

        if not await self._identity.ask(use, None, _caller(portal)):
            raise refused

    async def _redeem(self, given: _Redemption) -> web.StreamResponse:
        message = protos.RedeemTicketRequest(request_id=secrets.token_bytes(16), ticket=given.code)
        challenge = encode(hashlib.sha256(given.verifier.encode()).digest())

        def redeem(rules: login.Rules, memory: Memory, _: Any, time_us: int, caller: Caller) -> login.Redeemed:
            begun = login.find_ticket(rules, memory, given.code)
            if begun is not None and begun.portal_id == given.portal.id:
                bound = begun.redirect_uri == given.redirect_uri and hmac.compare_digest(begun.code_challenge, challenge)
                if not bound:
                    return login.Redeemed(Result.LOGIN_UNKNOWN)
            return login.redeem(rules, memory, message, time_us, caller, by_oidc=True)

        done: login.Redeemed = await self._identity.ask(redeem, None, _caller(given.portal))
        if done.login is None:
            raise TokenRefused("invalid_grant", "the code is not good, was used, or belongs to something else")
        purpose = Purpose.ASSERTION if given.portal.id_token_alg == SM2 else Purpose.OIDC
        claims = login.claims(self._identity.rules, done.login)
        id_token = await asyncio.to_thread(assertions.sign, self._identity.rules.provider, purpose, ID_TOKEN_TYPE, claims)
        return web.json_response(
            {
                "access_token": login.session(self._identity.rules, done.login),
                "token_type": "Bearer",
                "expires_in": limits.LOGIN_SESSION_S,
                "id_token": id_token,
                "scope": " ".join(["openid", *done.login.consented_fields]),
            }
        )

    # ---- user information ----

    async def user_info(self, request: web.Request) -> web.StreamResponse:
        """OpenID Connect Core 1.0, 5.3: the fields that were consented to."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return web.json_response({}, status=401, headers={"WWW-Authenticate": 'Bearer realm="yikatong"'})

        self._take(self._rates, _peer(request), MethodClass.PERSONAL)

        def show(rules: login.Rules, memory: Memory, _: Any, time_us: int, caller: Caller) -> login.Redeemed:
            return login.show_session(rules, memory, token, time_us)

        done: login.Redeemed = await self._identity.ask(show, None, _NOBODY)
        if done.login is None or done.person is None:
            challenge = {"WWW-Authenticate": 'Bearer realm="yikatong", error="invalid_token"'}
            return web.json_response({"error": "invalid_token"}, status=401, headers=challenge)
        fields = {field.name: value for field, value in done.person.ListFields()}
        return web.json_response({"sub": done.login.subject} | fields)


_NOBODY: Final = Caller(access_pb2.ROLE_DEPARTMENT, "nobody")


def _peer(request: web.Request) -> Caller:
    """Who asks, where no more than the address is known."""
    return Caller(access_pb2.ROLE_UNSPECIFIED, request.remote or "")


def _caller(portal: Portal) -> Caller:
    return Caller(access_pb2.ROLE_DEPARTMENT, portal.id)


def _take_certificate(context: ssl.SSLContext, settings: Settings) -> None:
    try:
        for each in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):  # what fails in the first leaves the other as it was
            each.load_cert_chain(Path(settings.tls_certificate), Path(settings.tls_key))
    except OSError as error:  # SSLError is one
        raise ConfigError("tls_certificate", f"cannot be read, or tls_key is not its key: {error}") from error


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Headers on every answer, and no error that tells more than it should."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        response = web.json_response({"error": "invalid_request"}, status=error.status, headers=allow)
    except InvalidRequest as error:
        response = web.json_response({"error": "invalid_request", "error_description": str(error)}, status=400)
    except RateLimited as error:
        again = {"Retry-After": str(math.ceil(error.retry_s))}
        response = web.json_response({"error": "temporarily_unavailable"}, status=429, headers=again)
    except (Overloaded, Unavailable):
        response = web.json_response({"error": "temporarily_unavailable"}, status=503, headers={"Retry-After": "1"})
    except Exception:
        log.exception("%s %s failed", request.method, request.rel_url.path)
        response = web.json_response({"error": "server_error"}, status=500)
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _once(given: Any) -> dict[str, str]:
    """Parameters; none may come twice (RFC 6749, 3.1)."""
    names = list(given.keys())
    if len(set(names)) != len(names):
        raise InvalidRequest("parameters", "one comes twice")
    return dict(given)


async def _form(request: web.Request) -> Any:
    form = await request.post()
    if len(set(form.keys())) != len(form):
        raise TokenRefused("invalid_request", "a parameter comes twice")
    return form


def _basic(authorization: str) -> tuple[str, str]:
    """Client id and secret (RFC 6749, 2.3.1); empty where it is another scheme or none."""
    scheme, _, text = authorization.partition(" ")
    try:
        pair = base64.b64decode(text, validate=True).decode() if scheme.lower() == "basic" else ""
    except (ValueError, binascii.Error):
        pair = ""
    client_id, _, secret = pair.partition(":")
    return unquote_plus(client_id), unquote_plus(secret)


def _unproved_subject(token: str) -> str:
    """Whose key a client's token says it is to be verified by."""
    try:
        claims = assertions.peek(token)
    except AssertionWrong:
        return ""
    return str(claims.get("sub", ""))


def _authorization_fault(asked: Mapping[str, str], portal: Portal) -> tuple[str, str] | None:
    """Error code and reason (RFC 6749, 4.1.2.1; OpenID Connect Core 1.0, 3.1.2.6)."""
    scopes = asked.get("scope", "").split()
    fields = {name for scope in scopes for name in SCOPES.get(scope, ())}
    if "request" in asked or "request_uri" in asked:
        return "request_not_supported", "parameters in the query are wanted"
    if asked.get("response_type") != "code":
        return "unsupported_response_type", "code is wanted"
    if asked.get("response_mode", "query") != "query":
        return "invalid_request", "response_mode query is wanted"
    if "openid" not in scopes:
        return "invalid_scope", "openid is wanted"
    if not fields <= set(portal.fields):
        return "invalid_scope", "a field that the portal is not registered for"
    if asked.get("code_challenge_method") != "S256" or not _CHALLENGE.fullmatch(asked.get("code_challenge", "")):
        return "invalid_request", "code_challenge with S256 is wanted"
    if asked.get("prompt") == "none":
        return "login_required", "nobody is logged in without being asked"
    return None


def _page(title: str, body: str, *, refresh: bool = False, status: int = 200) -> web.Response:
    meta = f'<meta http-equiv="refresh" content="{POLL_S}">' if refresh else ""
    text = _PAGE.format(title=html.escape(title), body=body, refresh=meta)
    return web.Response(text=text, content_type="text/html", status=status)


def _see(address: str) -> web.Response:
    return web.Response(status=303, headers={"Location": address})


def _say(title: str, text: str, *, status: int) -> web.Response:
    return _page(title, f"<p>{html.escape(text)}</p>", status=status)
