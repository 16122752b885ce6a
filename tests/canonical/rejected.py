"""The inputs that have no canonical form, a function for each class. Each input has one fault, by construction."""

from collections.abc import Iterator
from decimal import Decimal, getcontext

from corpus import Vector, text

getcontext().prec = 1200  # enough for the exact decimal form of every double and of every halfway point


def duplicate_keys() -> Iterator[Vector]:
    nested = lambda levels, inner: '{"x":' * levels + inner + "}" * levels
    for description, content in [
        ("at the top", '{"a":1,"a":1}'),
        ("not next to each other", '{"a":1,"b":2,"c":3,"a":4}'),
        ("the empty key", '{"":1,"":2}'),
        ("equal after unescaping a letter", r'{"a":1,"\u0061":2}'),
        ("equal after unescaping, the escape first", r'{"\u0061":1,"a":2}'),
        ("equal after unescaping a solidus", r'{"a/b":1,"a\/b":2}'),
        ("equal after unescaping a control", r'{"\n":1,"\u000a":2}'),
        ("equal after unescaping, hex in either case", r'{"\u00e9":1,"\u00E9":2}'),
        ("equal after unescaping, raw and escaped", r'{"é":1,"\u00e9":2}'),
        ("equal after joining surrogates", r'{"😀":1,"\ud83d\ude00":2}'),
        ("with equal values that are objects", '{"a":{},"a":{}}'),
        ("inside an array", '[1,[{"a":1,"a":2}]]'),
        ("in the second of two objects", '[{"a":1},{"a":1,"a":2}]'),
        ("three times", '{"a":1,"a":2,"a":3}'),
        ("a name with a meaning elsewhere", '{"__proto__":1,"__proto__":2}'),
        ("a value of null", '{"a":null,"a":1}'),
        ("in the parameters of an action", '{"tool":"t","action":"x","resource":null,"mutates_state":false,"parameters":{"to":"a","to":"b"}}'),
        ("mutates_state twice", '{"tool":"t","action":"x","resource":null,"mutates_state":true,"mutates_state":false,"parameters":{}}'),
        ("at depth 2", nested(1, '{"a":1,"a":2}')),
        ("at depth 64", nested(63, '{"a":1,"a":2}')),
        ("at depth 128", nested(127, '{"a":1,"a":2}')),
        ("the outer key again after a nested object", '{"a":{"b":1},"b":2,"a":3}'),
        ("among 100 keys", "{" + ",".join(f'"k{index % 99}":{index}' for index in range(100)) + "}"),
    ]:
        yield text(description, content)


def lone_surrogates() -> Iterator[Vector]:
    for description, content in [
        ("high alone", r'"\ud800"'), ("low alone", r'"\udc00"'), ("the highest high", r'"\udbff"'), ("the highest low", r'"\udfff"'),
        ("high, then a letter", r'"\ud83da"'), ("high, then an escaped letter", r'"\ud83d\u0041"'),
        ("high, then a short escape", r'"\ud83d\n"'), ("high, then an escaped backslash", r'"\ud83d\\ude00"'),
        ("high twice", r'"\ud83d\ud83d"'), ("high twice, then low", r'"\ud83d\ud83d\ude00"'),
        ("low, then high", r'"\ude00\ud83d"'), ("a pair, then low", r'"\ud83d\ude00\ude00"'),
        ("a pair, then high", r'"\ud83d\ude00\ud83d"'), ("high, then a raw astral character", '"\\ud83d😀"'),
        ("high, then U+E000", r'"\ud83d\ue000"'), ("in upper case", r'"\uD83D"'), ("in a key", r'{"\ud800":1}'),
        ("low in a key", r'{"a\udc00b":1}'), ("deep in a document", r'{"a":[1,{"b":["\udead"]}]}'), ("between letters", r'"ab\udfffcd"'),
        ("halves in two strings", r'["\ud83d","\ude00"]'),
    ]:
        yield text(description, content)


def unsafe_integers() -> Iterator[Vector]:
    for number in [2**53, 2**53 + 1, 2**53 + 2, 10**16, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**20, 10**21, 10**100, 10**308]:
        yield text(f"{str(number)[:30]} with {len(str(number))} digits", str(number))
        yield text(f"-{str(number)[:30]} with {len(str(number))} digits", f"-{number}")
    yield text("in an object", '{"id":9007199254740992}')
    yield text("deep in a document", '{"a":[{"b":[1,2,-9007199254740992]}]}')
    yield text("400 digits, which is beyond doubles too", "9" * 400)
    yield text("5000 digits", "1" + "0" * 4999)


def numbers_too_large() -> Iterator[Vector]:
    for literal in ["1e309", "-1e309", "1e400", "-1E+400", "1.7976931348623159e308", "-1.7976931348623159e308", "179769313486231580793e289",
                    "1e99999999999999999999", "[1e400]", '{"a":-1e400}', "123456789e301", "0.1e310", "1" + "0" * 309 + ".0"]:
        yield text(f"{literal[:30]}", literal)
    limit = (Decimal(2) ** 1024 + Decimal(1.7976931348623157e308)) / 2
    yield text("halfway above the largest double, which rounds to infinity", f"{limit:f}.0")


def non_finite() -> Iterator[Vector]:
    for literal in ["NaN", "Infinity", "-Infinity", "[NaN]", "[1,Infinity]", '{"a":-Infinity}', ' \n{"a":[NaN]}']:
        yield text(literal.strip(), literal)


def too_deep() -> Iterator[Vector]:
    for levels in (129, 130, 200, 1000):
        yield text(f"{levels} arrays", "[" * levels + "]" * levels)
        yield text(f"{levels} objects", '{"a":' * levels + "1" + "}" * levels)
    yield text("129 levels, arrays and objects in turn", '[{"a":' * 64 + "[]" + "}]" * 64)
    yield text("10,000 brackets that are never closed", "[" * 10_000)
    yield text("129 levels in the second member", '{"a":1,"b":' + "[" * 128 + "]" * 128 + "}")
    yield text("129 levels beside brackets in a string", '["]]]]",' + "[" * 128 + "]" * 128 + "]")


def invalid_utf8() -> Iterator[Vector]:
    for description, raw in [
        ("a continuation byte alone", b"\x80"), ("the last continuation byte alone", b"\xbf"), ("Latin-1 e acute", b"\xe9"),
        ("two of three bytes", b"\xe2\x82"), ("three of four bytes", b"\xf0\x9f\x98"), ("one of two bytes", b"\xc3"),
        ("overlong NUL", b"\xc0\x80"), ("overlong solidus, two bytes", b"\xc0\xaf"), ("overlong solidus, three bytes", b"\xe0\x80\xaf"),
        ("overlong solidus, four bytes", b"\xf0\x80\x80\xaf"), ("overlong quote", b"\xc0\xa2"), ("overlong U+007F", b"\xc1\xbf"),
        ("overlong U+07FF", b"\xe0\x9f\xbf"), ("overlong U+FFFF", b"\xf0\x8f\xbf\xbf"), ("the surrogate U+D800", b"\xed\xa0\x80"),
        ("the surrogate U+DFFF", b"\xed\xbf\xbf"), ("a pair of surrogates (CESU-8)", b"\xed\xa0\xbd\xed\xb8\x80"),
        ("U+110000", b"\xf4\x90\x80\x80"), ("a lead byte of five", b"\xf8\x88\x80\x80\x80"), ("a lead byte of six", b"\xfc\x84\x80\x80\x80\x80"),
        ("0xFE", b"\xfe"), ("0xFF", b"\xff"), ("a lead byte, then ASCII", b"\xc3A"), ("a good character, then a bad one", b"\xc3\xa9\xc3"),
    ]:
        yield f"{description}, in a string", b'"a' + raw + b'b"'
    yield "in a key", b'{"\xff":1}'
    yield "outside any string", b"\xff"
    yield "after the value", b"1 \xfe"
    yield "cut off at the end of the input", b'"\xe2\x82'
    yield "UTF-16 little endian with its mark", b"\xff\xfe" + '{"a":1}'.encode("utf-16-le")
    yield "UTF-16 big endian with its mark", b"\xfe\xff" + '{"a":1}'.encode("utf-16-be")
    yield "Windows-1252 quotes", b'["\x93a\x94"]'


def syntax() -> Iterator[Vector]:
    for description, content in [
        ("empty input", ""), ("spaces alone", " \t\r\n"), ("NUL alone", "\x00"), ("NUL after an opening bracket", "[\x00]"),
        ("a byte order mark before a value", "\ufeff{}"), ("a byte order mark after spaces", " \ufeff1"), ("a byte order mark alone", "\ufeff"),
        ("trailing comma in an array", "[1,]"), ("trailing comma in an object", '{"a":1,}'), ("comma alone in an array", "[,]"),
        ("comma alone in an object", "{,}"), ("two commas", "[1,,2]"), ("leading comma", "[,1]"), ("missing comma in an array", "[1 2]"),
        ("missing comma in an object", '{"a":1 "b":2}'), ("missing colon", '{"a" 1}'), ("two colons", '{"a"::1}'), ("equals for a colon", '{"a"=1}'),
        ("missing value", '{"a":}'), ("missing key", "{:1}"), ("key alone", '{"a"}'), ("a number as a key", "{1:1}"), ("null as a key", "{null:1}"),
        ("an array as a key", "{[]:1}"), ("a bare key", "{a:1}"), ("single quotes", "{'a':1}"), ("a single-quoted value", "['a']"),
        ("typographic quotes", "[“a”]"), ("line comment before", "// no\n1"), ("line comment inside", "[1 // no\n]"), ("block comment", "[/* no */1]"),
        ("hash comment", "# no\n1"), ("leading zero", "01"), ("leading zeros", "[001]"), ("minus and a leading zero", "-01"), ("leading zero before a point", "00.5"),
        ("plus sign", "+1"), ("plus sign before zero", "[+0]"), ("no digit before the point", ".5"), ("minus before a point", "-.5"), ("no digit after the point", "1."),
        ("point before the exponent", "1.e5"), ("no digit in the exponent", "1e"), ("a sign alone in the exponent", "1e+"), ("fraction in the exponent", "[1e1.5]"),
        ("two points", "[1.2.3]"), ("minus alone", "-"), ("two minus signs", "--1"), ("minus and a space", "- 1"), ("hexadecimal", "[0x1F]"), ("octal", "[0o17]"),
        ("binary", "[0b1]"), ("digit separators", "[1_000]"), ("thousands commas in an object", '{"a":1,000}'), ("big integer suffix", "[1n]"), ("float suffix", "[1.0f]"),
        ("full-width digit", "[１]"), ("Arabic-Indic digit", "[١]"), ("full-width digit after a digit", "[1１]"),
        ("True", "True"), ("TRUE", "TRUE"), ("None", "None"), ("nil", "nil"), ("undefined", "undefined"), ("nan in lower case", "nan"), ("inf", "inf"), ("-inf", "-inf"),
        ("+Infinity", "[+Infinity]"), ("-NaN", "[-NaN]"), ("half of true", "tru"), ("half of null", "[nul]"), ("truefalse in an array", "[truefalse]"), ("a bare word", "[abc]"),
        ("unclosed array", "[1"), ("unclosed empty array", "["), ("unclosed object", '{"a":1'), ("unclosed empty object", "{"), ("unclosed string", '"abc'),
        ("unclosed key", '{"abc'), ("ends after a comma", "[1,"), ("ends after a colon", '{"a":'), ("ends after a key", '{"a"'), ("ends after a backslash", '"a\\'),
        ("ends inside a \\u escape", '"\\u00'), ("brackets that do not match", "[1}"), ("braces that do not match", '{"a":1]'), ("closing bracket alone", "]"),
        ("closing brace alone", "}"), ("a colon alone", ":"), ("a comma alone", ","), ("crossed brackets", '[{"a":1]}'),
        ("unknown escape", r'"\x41"'), ("octal escape", r'"\012"'), ("escaped single quote", r'''"\'"'''), ("escaped line feed", '"\\\n"'), ("\\v", r'"\v"'), ("\\a", r'"\a"'),
        ("\\U with eight digits", r'"\U0001F600"'), ("\\u with braces", r'"\u{1F600}"'), ("\\u with three digits", r'"\u00e"'), ("\\u with no digits", r'"\u"'),
        ("\\u with a letter that is no hex digit", r'"\u00g0"'), ("\\u with a sign", r'"\u+041"'), ("\\u with a space", r'"\u 041"'), ("\\u with full-width digits", '"\\u００４１"'),
        ("escape outside a string", r"\u0031"), ("no-break space as whitespace", "[\u00a01]"), ("ideographic space as whitespace", "[1\u3000]"), ("next line as whitespace", "[1\u0085]"),
        ("line separator as whitespace", "[1\u2028]"), ("form feed as whitespace", "[1\x0c]"), ("vertical tab as whitespace", "[\x0b1]"), ("zero-width space as whitespace", "[\u200b1]"),
        ("UTF-16 without a mark", "[\x001\x00]\x00"), ("record separator before", "\x1e1"), ("a JSONP wrapper", "cb({})"), ("an XSSI guard", ")]}'\n{}"), ("YAML", "a: 1"), ("a tuple", "(1)"),
        ("spread", "[...[]]"), ("a template", "[`a`]"), ("adjacent strings", '["a" "b"]'),
    ]:
        yield text(description, content)
    for code in range(0x20):
        yield text(f"raw control U+{code:04X} in a string", f'"a{chr(code)}b"')
    yield text("raw line feed in a key", '{"a\nb":1}')


def trailing_data() -> Iterator[Vector]:
    for content in ["1 1", "{}{}", "[]]", "{}}", "null,", '"a""b"', "1,2", "true false", '{"a":1}\n{"b":2}', "[] // no", "1 \ufeff", "{}\x00", "[];", "truefalse", "nullnull", '""a']:
        yield text(f"{content!r}", content)


# The reason, and the class that is rejected for it.
CLASSES = [
    ("duplicate_key", duplicate_keys), ("lone_surrogate", lone_surrogates), ("integer_out_of_range", unsafe_integers),
    ("number_out_of_range", numbers_too_large), ("non_finite_number", non_finite), ("depth_exceeded", too_deep),
    ("invalid_utf8", invalid_utf8), ("syntax", syntax), ("trailing_data", trailing_data),
]  # fmt: skip
