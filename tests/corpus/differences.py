"""Whether answers agree, and how a difference is shown: the vector, its input so that it can be read and copied, what each language said."""

import base64
import json

import languages

# Differences that are printed; the rest is counted.
SHOWN = 20
# Bytes of an input that are shown escaped, and of which all follow in base64.
SHOWN_BYTES, COPIED_BYTES = 400, 16_384
NO_ANSWER = "no answer"


def agree(entry_id: str, answers: dict[str, languages.Answers]) -> bool:
    """The same from all, as JSON: 1, 1.0 and true are three answers."""
    said = [answer.get(entry_id) for answer in answers.values()]
    return said[0] is not None and len({json.dumps(one, sort_keys=True) for one in said}) == 1


def described(entry: dict, answers: dict[str, languages.Answers]) -> str:
    data = base64.b64decode(entry["input"])
    cut = "" if len(data) <= SHOWN_BYTES else f"… of {len(data)} bytes"
    lines = [f"DIFFERENCE {entry['id']} ({entry.get('class', 'no class')}: {entry.get('description', 'no description')})"]
    lines.append(f"  input       {escaped(data[:SHOWN_BYTES])}{cut}")
    lines += [f"  in base64   {entry['input']}"] if len(data) <= COPIED_BYTES else []
    lines += [f"  {name:<11} {json.dumps(entry[name])}" for name in ("limits", "roots") if entry.get(name)]
    for name, answer in answers.items():
        said = answer.get(entry["id"], NO_ANSWER)
        lines.append(f"  {name:<11} {said if isinstance(said, str) else json.dumps(said, sort_keys=True)}")
    return "\n".join(lines)


def escaped(data: bytes) -> str:
    try:
        return data.decode("utf-8").encode("unicode_escape").decode("ascii")
    except UnicodeDecodeError:
        return repr(data)[2:-1]
