"""Inputs with several faults: the first in reading order counts, after the size of the input and its UTF-8."""

from collections.abc import Iterator

from strict_reader import MAX_DEPTH

FAULTS = {
    "duplicate_key": '{"a":1,"a":2}',
    "lone_surrogate": '"\\ud800"',
    "integer_out_of_range": "9007199254740992",
    "number_out_of_range": "1e309",
    "non_finite_number": "NaN",
    "depth_exceeded": "[" * MAX_DEPTH,  # inside one array
    "syntax": "01",
}


def fault_order() -> Iterator[tuple[str, bytes, str, dict]]:
    """Description, input, reason, limits."""
    for first, fault in FAULTS.items():
        for second, other in FAULTS.items():
            yield f"{first} before {second}", f"[{fault},{other}]".encode(), first, {}
            if first != "depth_exceeded":
                yield f"{first} before {second}, in an object", f'{{"x":{fault},"y":[{other}]}}'.encode(), first, {}
        yield f"{first} in a text that is cut off", f"[{fault}".encode(), first, {}
        yield f"{first}, then something behind the value", f"[{fault}]]".encode(), first, {}
        yield f"{first}, then a byte that is no UTF-8", f"[{fault}]".encode() + b"\xff", "invalid_utf8", {}
        yield f"{first}, and over the limit", f"[{fault}]".encode(), "size_exceeded", {"max_bytes": 3}
        yield f"{first} behind the value", f"[] {fault}".encode(), "trailing_data", {}
    for description, content, reason in within_one_token():
        yield description, content.encode(), reason, {}
    yield "a key again whose value is too deep", ('{"a":1,"a":' + "[" * MAX_DEPTH).encode(), "duplicate_key", {}
    yield "too deep before a key comes again", ('{"a":' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + ',"a":1}').encode(), "depth_exceeded", {}
    yield "a canonical form over the limit, and a fault", b"[1e20,1e20,NaN]", "non_finite_number", {"max_bytes": 20}
    yield "a canonical form over the limit, and something behind it", b"[1e20,1e20] 1", "trailing_data", {"max_bytes": 20}


def within_one_token() -> Iterator[tuple[str, str, str]]:
    yield "a key again, and no colon", '{"a":1,"a"}', "duplicate_key"
    yield "a key again, and its value is too large", '{"a":1,"a":9007199254740992}', "duplicate_key"
    yield "a value too large, then its key again", '{"a":9007199254740992,"a":1}', "integer_out_of_range"
    yield "a key again that holds half a pair", '{"\\ud800":1,"\\ud800":2}', "lone_surrogate"
    yield "a key again inside, before the outer one", '{"a":{"b":1,"b":2},"a":3}', "duplicate_key"
    yield "a high half before an unknown escape", '"\\ud800\\x"', "lone_surrogate"
    yield "a high half before an escape that is not whole", '"\\ud800\\u12"', "syntax"
    yield "a high half before an escape with a wrong digit", '"\\ud800\\uzzzz"', "syntax"
    yield "a low half before an escape that is not whole", '"\\udc00\\u12"', "lone_surrogate"
    yield "a high half, then the end", '"\\ud800', "lone_surrogate"
    yield "a high half and a backslash, then the end", '"\\ud800\\', "lone_surrogate"
    yield "a high half and \\u, then the end", '"\\ud800\\u', "syntax"
    yield "a high half, then a raw control", '"\\ud800\n"', "lone_surrogate"
    yield "two high halves and a low one", '"\\ud800\\ud800\\udc00"', "lone_surrogate"
    yield "a raw control, then half a pair", '"\n\\ud800"', "syntax"
    yield "an integer too large, then a letter", "[9007199254740992x]", "integer_out_of_range"
    yield "an integer too large, then a point", "[9007199254740992.]", "syntax"
    yield "an integer too large, then an exponent without digits", "[9007199254740992e]", "syntax"
    yield "an integer too large with a leading zero", "[09007199254740992]", "syntax"
    yield "a double too large, then a letter", "[1e309x]", "number_out_of_range"
    yield "a double too large, then a point", "[1e309.]", "number_out_of_range"
    yield "an integer too large in place of a key", "{9007199254740992:1}", "syntax"
    yield "NaN in place of a key", "{NaN:1}", "syntax"
    yield "NaN and letters", "[NaNa]", "non_finite_number"
    yield "Infinity and digits", "[Infinity1]", "non_finite_number"
    yield "-Infinity and letters", "-InfinityNaN", "non_finite_number"
    yield "NaN behind a minus", "[-NaN]", "syntax"
    yield "NaN behind a plus", "[+NaN]", "syntax"
    yield "NaN where a comma should be", "[1 NaN]", "syntax"
    yield "NaN behind the value", "1 NaN", "trailing_data"
    yield "a number with letters, at the top", "1x", "trailing_data"
    yield "two numbers with one leading zero, at the top", "00", "syntax"
    yield "a word with letters, at the top", "nullx", "trailing_data"
    yield "a byte order mark before NaN", "\ufeffNaN", "syntax"
    yield "a comma before a bracket that is too deep", "[" * MAX_DEPTH + ",[", "syntax"
    yield "a bracket too deep in place of a key", "[" * (MAX_DEPTH - 1) + "{[", "syntax"
    yield "a bracket too deep behind a key again", "[" * (MAX_DEPTH - 1) + '{"a":1,"a":[', "duplicate_key"
    yield "brackets too deep that do not match", "[" * MAX_DEPTH + "{}]", "depth_exceeded"


CLASS = fault_order
