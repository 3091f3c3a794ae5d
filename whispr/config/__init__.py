"""Settings: read once from TOML and the environment, validated as a whole, then passed explicitly.

Precedence, highest first: `WHISPR_…` variables, the variables of the systems Whispr replaces
(`GRPC_PORT`, `USER_SERVICE_GRPC_ENDPOINT`, …), the TOML file, defaults. A section's key is its variable:
`[limits] user_sockets` is `WHISPR_LIMITS_USER_SOCKETS`. Everything wrong is reported at once, each by its
key and the place it came from, so that a deployment is mended in one round.
"""

from whispr.config.fields import Section
from whispr.config.limits import Limits
from whispr.config.loading import ConfigError, Loaded, load, without_password
from whispr.config.sections import AuthSettings
from whispr.config.settings import PREFIX, Settings

__all__ = [
    "PREFIX",
    "SERVICES",
    "AuthSettings",
    "ConfigError",
    "Limits",
    "Loaded",
    "Section",
    "Settings",
    "load",
    "without_password",
]

SERVICES = ("auth", "user", "media", "notification", "messaging", "chat", "stream")
"""The services this build can serve, in starting order."""
