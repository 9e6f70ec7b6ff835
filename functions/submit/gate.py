"""Who asks: an API key or a JSON web token names the tenant and what may be done. Nothing else of a request does.

Without a file of keys and an issuer there is nothing to know: everybody is the one tenant, with all rights.
"""

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import urllib3

from engine.contract.errors import Forbidden, Unauthorized, Unavailable
from engine.contract.job import is_tenant
from engine.contract.settings import Settings
from functions.keys import SCOPES, KeyFile, is_key
from functions.submit.route import Caller

_LOG = logging.getLogger(__name__)
# Never as the token says: "none", and HMAC with a public key, are how tokens are forged.
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
_SCOPE_PREFIX = "cinevent:"
_KEYS_AGE_S = 600.0
# A token with an unknown key makes us ask the issuer; tokens are free to make, so not each of them does.
_ASK_AGAIN_S = 10.0
_LEEWAY_S = 30
_ISSUER_TIMEOUT_S = 3.0
_RETRY_AFTER_S = 5.0


class Gate:
    """Tells callers apart by their credentials."""

    def __init__(self, settings: Settings) -> None:
        self._keys = KeyFile(Path(settings.keys_file)) if settings.keys_file else None
        self._tokens = _Tokens(settings) if settings.oidc_issuer else None
        self._everybody = Caller(tenant=settings.tenant, name="everybody", scopes=frozenset(SCOPES))
        if self.is_open:
            _LOG.warning(
                "no keys: whoever reaches this port is tenant %s; set CINEVENT_KEYS_FILE or CINEVENT_OIDC_ISSUER",
                settings.tenant,
            )

    @property
    def is_open(self) -> bool:
        """Whether nobody has to say who they are."""
        return self._keys is None and self._tokens is None

    def admit(self, headers: Mapping[str, str], *, scope: str) -> Caller:
        """Who asks, if they may do this. Raises Unauthorized, Forbidden, Unavailable."""
        caller = self._everybody if self.is_open else self._known(headers.get("Authorization", ""))
        if not {scope, "admin"} & caller.scopes:
            raise Forbidden(f"this needs the scope {scope}; {caller.name} has {', '.join(sorted(caller.scopes))}")
        return caller

    def _known(self, authorization: str) -> Caller:
        scheme, _, credential = authorization.partition(" ")
        credential = credential.strip()
        if scheme.lower() != "bearer" or not credential:
            raise Unauthorized("send `Authorization: Bearer` and a key or a token")
        if self._keys and is_key(credential):
            key = self._keys.find(credential)
            if key is None:
                raise Unauthorized("this key is not known, or it has expired")
            return Caller(tenant=key.tenant, name=f"key {key.id}", scopes=frozenset(key.scopes))
        if self._tokens:
            return self._tokens.caller(credential)
        raise Unauthorized("this is no key; one begins with cvk_")


class _Tokens:
    """JSON web tokens of one issuer (RFC 7519), by the keys that it publishes (RFC 7517)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._http = urllib3.PoolManager(retries=False, timeout=_ISSUER_TIMEOUT_S)
        self._keys: dict[str, Any] = {}
        self._asked_at = float("-inf")
        self._lock = threading.Lock()

    def caller(self, token: str) -> Caller:
        """Who the token speaks of. Raises Unauthorized, Unavailable."""
        import jwt

        settings = self._settings
        try:
            kid = str(jwt.get_unverified_header(token).get("kid", ""))
            claims = jwt.decode(
                token,
                self._key(kid),
                algorithms=_ALGORITHMS,
                audience=settings.oidc_audience,
                issuer=settings.oidc_issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthorized(f"this token is not taken: {error}") from error
        tenant = claims.get(settings.oidc_tenant_claim)
        if not isinstance(tenant, str) or not is_tenant(tenant):
            raise Unauthorized(f"the token's claim {settings.oidc_tenant_claim} names no tenant")
        name = f"subject {str(claims.get('sub', ''))[:80]}"
        return Caller(tenant=tenant, name=name, scopes=_scopes(claims.get("scope")))

    def _key(self, kid: str) -> Any:
        with self._lock:
            age_s = time.monotonic() - self._asked_at
            if age_s > (_KEYS_AGE_S if kid in self._keys else _ASK_AGAIN_S):
                self._keys = self._ask()
                self._asked_at = time.monotonic()
        if kid not in self._keys:
            raise Unauthorized("the token is signed with a key that its issuer does not publish")
        return self._keys[kid]

    def _ask(self) -> dict[str, Any]:
        import jwt

        url = self._settings.oidc_jwks_url
        if not url:
            issuer = self._settings.oidc_issuer.rstrip("/")
            url = str(self._get(f"{issuer}/.well-known/openid-configuration").get("jwks_uri", ""))
        try:
            return {key.key_id or "": key for key in jwt.PyJWKSet.from_dict(self._get(url)).keys}
        except (jwt.PyJWTError, AttributeError) as error:
            raise Unavailable(f"{url} has no keys: {error}", retry_after_s=_RETRY_AFTER_S) from error

    def _get(self, url: str) -> dict[str, Any]:
        try:
            answer = self._http.request("GET", url)
            found = answer.json() if answer.status == 200 else None
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise Unavailable(f"the issuer does not answer at {url}", retry_after_s=_RETRY_AFTER_S) from error
        if not isinstance(found, dict):
            raise Unavailable(f"the issuer answers {answer.status} at {url}", retry_after_s=_RETRY_AFTER_S)
        return found


def _scopes(claim: Any) -> frozenset[str]:
    """What a token may do: what its scope says; one without any is for the usual work."""
    if claim is None:
        return frozenset(("read", "write"))
    words = claim.split() if isinstance(claim, str) else [str(word) for word in claim]
    return frozenset(word.removeprefix(_SCOPE_PREFIX) for word in words if word.startswith(_SCOPE_PREFIX)) & set(SCOPES)
