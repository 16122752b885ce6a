#!/usr/bin/env python3
"""The matrix feature × language of sdks/README.md, from what the tests of each language have proved.

    matrix.py --check LANGUAGE PROVED.json   fails where LANGUAGE proved other features than sdks/LANGUAGE/features.json says, or the table is stale
    matrix.py --write LANGUAGE PROVED.json   writes both

PROVED.json is a sorted list of ids from sdks/features.json: those of which every test ran and passed. Every language's test run writes one.
"""

import json
import pathlib
import sys

SDKS = pathlib.Path(__file__).resolve().parent
LANGUAGES = {"python": "Python", "typescript": "TypeScript", "go": "Go"}
# What a language is not meant to have: agent frameworks that it does not have, and what one language has for all.
NOT_MEANT = {"typescript": {"cli"}, "go": {"adapter-openai-agents", "adapter-langchain", "adapter-mcp", "cli"}}
BEGIN, END = "<!-- matrix: made by matrix.py -->\n", "<!-- matrix: end -->\n"


def main(arguments):
    if len(arguments) != 3 or arguments[0] not in ("--check", "--write") or arguments[1] not in LANGUAGES:
        sys.exit(__doc__)
    verb, language, path = arguments
    known = json.loads((SDKS / "features.json").read_text())
    proved = json.loads(pathlib.Path(path).read_text())
    if unknown := sorted(set(proved) - set(known)):
        sys.exit(f"sdks/features.json does not know {', '.join(unknown)}")
    kept = SDKS / language / "features.json"
    if verb == "--write":
        kept.write_text(json.dumps(proved, indent=2) + "\n")
    elif not kept.exists() or json.loads(kept.read_text()) != proved:
        was = json.loads(kept.read_text()) if kept.exists() else []
        sys.exit(f"{language} proved other features than {kept.relative_to(SDKS.parent)} says: {sorted(set(was) ^ set(proved))}")
    if missing := sorted(set(known) - set(proved) - NOT_MEANT.get(language, set())):
        sys.exit(f"{language} does not prove {', '.join(missing)}")
    readme = SDKS / "README.md"
    text = readme.read_text()
    made = with_table(text, known)
    if verb == "--write":
        readme.write_text(made)
    elif made != text:
        sys.exit("sdks/README.md is stale; run matrix.py --write")
    print(f"sdks: {language} proves {len(proved)} of {len(known)} features")


def with_table(text, known):
    proved = {}
    for language in LANGUAGES:
        path = SDKS / language / "features.json"
        proved[language] = set(json.loads(path.read_text())) if path.exists() else set()
    lines = [f"| feature | {' | '.join(LANGUAGES.values())} |", f"|---|{'---|' * len(LANGUAGES)}"]
    for feature, description in known.items():
        cells = ["✓" if feature in proved[language] else "–" if feature in NOT_MEANT.get(language, ()) else "" for language in LANGUAGES]
        lines.append(f"| {description} | {' | '.join(cells)} |")
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + "\n".join(lines) + "\n\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    main(sys.argv[1:])
