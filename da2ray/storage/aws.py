"""The AWS configuration, as AWS tools resolve it. Both clients for S3 take theirs from here.

botocore reads profiles, their `services` sections and the credentials. A variable of the environment goes before the file, each
field by itself, and an empty variable counts as not set.
"""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import botocore.session  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]
from botocore.utils import validate_region_name  # type: ignore[import-untyped]

from da2ray.errors import UserError
from da2ray.storage.base import NO_CREDENTIALS
from da2ray.storage.redaction import printable, redact

if TYPE_CHECKING:
    import botocore.credentials  # type: ignore[import-untyped]
    from obstore.store import S3Credential

CREDENTIAL_LIFE: Final = timedelta(minutes=15)
"""How long a credential is used before botocore is asked again, which renews those of a role or an instance in time."""
DEFAULT_REGION: Final = "us-east-1"
"""The region of S3 clients without a configured one. Stores other than AWS accept it."""


@dataclass(frozen=True)
class AwsConfig:
    """What both clients are given.

    Attributes:
        session: botocore's, which finds the credentials.
        endpoint: URL of a store other than AWS's; None for AWS's own.
        region: its name.
        ca_bundle: path of a file with the certificates to trust besides the system's.
        anonymous: requests are not signed.
        virtual_hosts: the bucket is part of the host name (`addressing_style = virtual`).
    """

    session: Any
    endpoint: str | None
    region: str
    ca_bundle: str | None
    anonymous: bool
    virtual_hosts: bool

    @cached_property
    def url(self) -> str:
        """The URL of the endpoint, also of AWS's own: regions in China have another domain, and FIPS and dual stack other hosts.

        Raises:
            UserError: AWS has no such endpoint.
        """
        if self.endpoint:
            return self.endpoint
        with _user_errors():
            # The keys are not used; without them botocore would look for some.
            client = self.session.create_client(
                "s3",
                region_name=self.region,
                aws_access_key_id="-",
                aws_secret_access_key="-",  # noqa: S106
            )
        return str(client.meta.endpoint_url)

    def bucket_url(self, bucket: str) -> str | None:
        """The URL of a bucket if the bucket is part of the host name; else None."""
        if not self.virtual_hosts:
            return None
        scheme, _, rest = self.url.partition("://")
        return self.url if rest.startswith(f"{bucket}.") else f"{scheme}://{bucket}.{rest}"

    def root_certificates(self) -> bytes | None:
        """The content of the CA bundle."""
        return Path(self.ca_bundle).read_bytes() if self.ca_bundle else None

    def credentials(self) -> "BotocoreCredentials":
        """The provider of credentials for obstore.

        Raises:
            PermissionError: there are none.
            UserError: they are incomplete, or a profile says how to get them and is wrong.
        """
        with _user_errors():
            found = self.session.get_credentials()
        if found is None:
            raise PermissionError(
                "no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, "
                "or AWS_SKIP_SIGNATURE=true for a public bucket"
            )
        return BotocoreCredentials(found)


def aws_config(session_class: Any = botocore.session.Session) -> AwsConfig:
    """Resolve the configuration of S3 in this process's environment and files.

    Args:
        session_class: botocore's, or one derived from it.

    Raises:
        UserError: a profile, a region, an endpoint or a CA bundle is not as it must be.
    """
    return _resolved(session_class, _inputs())


_VARIABLES: Final = ("AWS_", "BOTO_", "REQUESTS_CA_BUNDLE", "HOME")
_FILES: Final = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}


def _inputs() -> tuple[object, ...]:
    """What a configuration depends on. A forked child gets a configuration of its own, since sessions hold locks."""
    variables = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_VARIABLES)))
    stamps: list[tuple[int, int] | None] = []
    for variable, usual in _FILES.items():
        try:
            status = os.stat(os.path.expanduser(os.environ.get(variable) or usual))  # noqa: PTH111, PTH116
            stamps.append((status.st_mtime_ns, status.st_size))
        except OSError:
            stamps.append(None)
    return (os.getpid(), variables, *stamps)


@lru_cache(maxsize=8)
def _resolved(session_class: Any, _: tuple[object, ...]) -> AwsConfig:
    """A configuration, once for all stores of a process: a session costs 20 ms, and maybe a request for a role's credentials."""
    with _user_errors():
        session = session_class(session_vars=_session_variables())
        region = session.get_config_variable("region") or DEFAULT_REGION
        validate_region_name(region)
        bundle = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or None
        style = session.get_scoped_config().get("s3", {})
        virtual = isinstance(style, dict) and style.get("addressing_style") == "virtual"
        anonymous = is_true(os.environ.get("AWS_SKIP_SIGNATURE"))
        return AwsConfig(session, _endpoint(session), region, _checked_bundle(bundle), anonymous, virtual)


def _session_variables() -> dict[str, tuple[str | None, list[str], None, None]]:
    """botocore's variables of a session, without the empty ones of the environment, and with AWS_REGION, which botocore leaves to
    other AWS tools.
    """
    names = {
        "profile": (None, ("AWS_DEFAULT_PROFILE", "AWS_PROFILE")),
        "region": ("region", ("AWS_REGION", "AWS_DEFAULT_REGION")),
        "ca_bundle": ("ca_bundle", ("AWS_CA_BUNDLE",)),
    }
    return {
        name: (key, [variable for variable in variables if os.environ.get(variable)], None, None)
        for name, (key, variables) in names.items()
    }


def _endpoint(session: Any) -> str | None:
    """The configured endpoint of S3, looked up in the order of the AWS SDKs
    (https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html).
    """
    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if url := os.environ.get(variable):
            return _checked_endpoint(variable, url)
    profile = session.get_scoped_config()
    if name := profile.get("services"):
        services = session.full_config.get("services", {}).get(name)
        if services is None:
            raise UserError(
                f"the AWS profile names services {printable(name)}, and the config file has no such section"
            )
        s3 = services.get("s3", {})
        if isinstance(s3, dict) and (url := s3.get("endpoint_url")):
            return _checked_endpoint(f"endpoint_url of services {name}", url)
    url = profile.get("endpoint_url")
    return _checked_endpoint("endpoint_url of the AWS profile", url) if url else None


def _checked_endpoint(where: str, url: str) -> str:
    """The URL itself, if clients can use it. obstore panics if it has no scheme."""
    try:
        split = urlsplit(url)
        usable = split.scheme.lower() in {"http", "https"} and bool(split.hostname) and split.port != 0
    except ValueError:  # a port that is not a number
        usable = False
    if not usable or not url.isascii() or any(char.isspace() for char in url):
        raise UserError(f"{where} is {printable(redact(url))!r}: it must be http://HOST:PORT or https://HOST")
    return url.rstrip("/")


def _checked_bundle(path: str | None) -> str | None:
    if path is None:
        return None
    path = os.path.expanduser(path)  # noqa: PTH111 - keeps the text as it is
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:
        raise UserError(f"AWS_CA_BUNDLE {printable(path)}: not a file of certificates in PEM: {error}") from error
    return path


class BotocoreCredentials:
    """obstore's credential provider over botocore's chain: environment, profiles, SSO, roles, containers, instances.

    obstore ships one, but it imports boto3, which s3fs does not bring along.
    """

    def __init__(self, credentials: "botocore.credentials.Credentials") -> None:
        self._credentials = credentials

    def __call__(self) -> "S3Credential":
        try:
            frozen = self._credentials.get_frozen_credentials()
        except BotoCoreError as error:
            # The text alone passes through obstore.
            raise PermissionError(f"{NO_CREDENTIALS}{error}") from error
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + CREDENTIAL_LIFE,
        }


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn errors of botocore, all of which are about the configuration here, into a UserError."""
    try:
        yield
    except BotoCoreError as error:
        raise UserError(f"AWS configuration: {printable(error)}") from error


def is_true(value: str | None) -> bool:
    """Whether a variable of the environment says yes."""
    return value is not None and value.lower() in {"1", "true", "yes", "on"}
