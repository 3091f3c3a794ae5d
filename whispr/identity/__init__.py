"""Who is calling: tokens verified, ended sessions refused, every RPC authorised.

Every process has one `Identity`. `AuthInterceptor` puts it in front of every RPC.
"""

from whispr.identity.access import (
    OPERATOR_SERVICES,
    PUBLIC_SERVICES,
    AuthInterceptor,
    access_of,
    client_address,
    service_of,
)
from whispr.identity.actors import (
    ACTOR_KEY,
    CLIENT_ADDRESS_KEY,
    VOUCHER_KEY,
    Actor,
    actor_of,
    actor_on,
    bearer_of,
    current_actor,
    host_of,
)
from whispr.identity.revocations import REVOKED_KEY, REVOKED_SUBJECT, Revocation
from whispr.identity.verifying import REFETCH_S, Identity, answers_from, keys_from

__all__ = [
    "ACTOR_KEY",
    "CLIENT_ADDRESS_KEY",
    "OPERATOR_SERVICES",
    "PUBLIC_SERVICES",
    "REFETCH_S",
    "REVOKED_KEY",
    "REVOKED_SUBJECT",
    "VOUCHER_KEY",
    "Actor",
    "AuthInterceptor",
    "Identity",
    "Revocation",
    "access_of",
    "actor_of",
    "actor_on",
    "answers_from",
    "bearer_of",
    "client_address",
    "current_actor",
    "host_of",
    "keys_from",
    "service_of",
]
