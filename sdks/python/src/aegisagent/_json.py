"""JSON as it was written and read when this package was loaded.

Whoever puts another `json.dumps` or `json.loads` in the place of the library's later (a faster one, a laxer one) changes neither what is
sent nor what runs.
"""

from __future__ import annotations

import json

# The text of a plain value, without spaces; what it must not hold (NaN, lone surrogates) was refused before.
written = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
# The value of a text that `written` made.
read = json.JSONDecoder().decode
