"""GitHub's webhook deliveries, signed as GitHub signs them."""

import hashlib
import hmac
import uuid


def signature(secret, body):
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def webhook_headers(event, delivery, body, secret):
    """What GitHub sends with a delivery."""
    return {
        "content-type": "application/json",
        "user-agent": "GitHub-Hookshot/e2e",
        "x-github-event": event,
        "x-github-delivery": delivery,
        "x-hub-signature-256": signature(secret, body),
    }


EXTERNAL_NAMESPACE = uuid.UUID(int=0x61656769732D65787465726E616C3031)


def external_event_id(tenant, delivery, adapter="github"):
    """The event id that follows from a delivery: UUIDv5 over tenant, adapter and delivery id."""
    return str(uuid.uuid5(EXTERNAL_NAMESPACE, f"{tenant}\0{adapter}\0{delivery}"))


GITHUB_EVENTS = "/v1/audit/events?kind=external_event:github_webhook"
