"""docs/openapi.yaml, and what it says of one exchange."""

import collections
import json
import pathlib
import re
import urllib.parse

import jsonschema
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
METHODS = ("get", "post", "put", "delete")
# What the router itself answers, whatever the path.
ROUTER = {404: "unknown_route", 405: "method_not_allowed"}

DOCUMENT = yaml.safe_load((REPOSITORY / "docs/openapi.yaml").read_text(encoding="utf-8"))
REGISTRY = Registry().with_resource("urn:openapi", Resource(contents=DOCUMENT, specification=DRAFT202012))

Operation = collections.namedtuple("Operation", "method path definition")


def operations():
    """Every operation of the document."""
    return [Operation(method.upper(), path, item[method]) for path, item in DOCUMENT["paths"].items() for method in METHODS if method in item]


def _pattern(path):
    return re.compile("/".join("[^/]+" if part.startswith("{") else re.escape(part) for part in path.split("/")))


# Paths with fewer variable parts first: `/v1/receipts/export` is no receipt's id.
PATTERNS = sorted(((_pattern(op.path), op) for op in operations()), key=lambda entry: entry[1].path.count("{"))


def operation_of(method, path):
    """The operation that a request reaches, or None."""
    path = urllib.parse.urlsplit(path).path
    return next((op for pattern, op in PATTERNS if op.method == method and pattern.fullmatch(path)), None)


def _resolved(value):
    while "$ref" in value:
        found = DOCUMENT
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def _absolute(schema):
    """The schema with references that hold outside of the document."""
    return json.loads(json.dumps(schema).replace('"#/components', '"urn:openapi#/components'))


def validator(schema):
    """Validates a value against a schema of the document."""
    return jsonschema.Draft202012Validator(_absolute(schema), registry=REGISTRY, format_checker=jsonschema.FormatChecker(formats=["date-time"]))


def complaints(method, path, status, content_type, body):
    """What is wrong with a reply, by the document."""
    operation = operation_of(method, path)
    if operation is None or status == 405:
        return _complaints_of_router(status, body)
    response = operation.definition["responses"].get(str(status))
    if response is None:
        if status == 404 and b"unknown_route" in body:
            return []
        return [f"HTTP {status} is not in the document: {body[:200]!r}"]
    contents = _resolved(response).get("content")
    if contents is None:
        return []
    media = contents.get((content_type or "").split(";")[0])
    if media is None:
        return [f"content type {content_type} is not in the document"]
    if not content_type.startswith("application/json"):
        return []
    errors = validator(media["schema"]).iter_errors(json.loads(body))
    return [f"{error.json_path}: {error.message[:300]}" for error in errors]


def complaints_about_request(method, path, body):
    """What the document has against a request that the program took."""
    operation = operation_of(method, path)
    content = operation.definition.get("requestBody", {}).get("content", {}) if operation else {}
    if not body or "application/json" not in content:
        return []
    try:
        value = json.loads(body)
    except ValueError:
        return []
    errors = validator(content["application/json"]["schema"]).iter_errors(value)
    return [f"the document refuses a request that was taken: {error.json_path}: {error.message[:300]}" for error in errors]


def _complaints_of_router(status, body):
    code = ROUTER.get(status)
    said = json.loads(body or b"{}").get("error", {}).get("code") if body[:1] == b"{" else None
    # A path that cannot be decoded ends earlier.
    return [] if code == said or (status == 400 and said == "invalid_path") else [f"HTTP {status} {said} from the router, which knows {ROUTER}"]
