#!/bin/sh
# The Go SDK: format, vet, staticcheck, the module that is published, and every test, with the race detector, against the real program.
# AEGIS_BIN names the program. `test.sh TEST...` runs the tests of these names alone. AEGIS_SDK_MATRIX=--write takes over what was proved.
set -eu

cd "$(dirname "$0")"
: "${AEGIS_BIN:?set AEGIS_BIN to the built program, or run \`make test-sdks\`}"
if [ ! -x "$AEGIS_BIN" ]; then
    echo "sdks/go: $AEGIS_BIN is not there; build it with \`cargo build --release\`" >&2
    exit 2
fi
AEGIS_BIN="$(cd "$(dirname "$AEGIS_BIN")" && pwd)/$(basename "$AEGIS_BIN")"
export AEGIS_BIN GOFLAGS="-mod=readonly" GOTOOLCHAIN=local GOWORK=off
tools="${AEGIS_CACHE:-$HOME/.cache/aegis}/sdk-go"

unformatted="$(gofmt -l .)"
if [ -n "$unformatted" ]; then
    echo "sdks/go: gofmt would change $unformatted" >&2
    exit 1
fi
# The version that conformance/go.sum pins.
go -C conformance build -o "$tools/staticcheck" honnef.co/go/tools/cmd/staticcheck
for module in . conformance; do
    (cd "$module" && go vet ./... && "$tools/staticcheck" ./...)
done

if [ $# -gt 0 ]; then
    exec go test -race -count 1 -timeout 15m -p 1 -run "$(IFS='|'; echo "$*")" ./...
fi
results="$(mktemp -d)"
trap 'rm -rf "$results"' EXIT
failed=0
go test -json -race -count 1 -timeout 15m -p 1 ./... >"$results/sdk" || failed=1
go -C conformance test -json -count 1 -timeout 15m -p 1 ./... >"$results/conformance" || failed=1
go run ./internal/cmd/proved "$results/proved.json" "$results/sdk" "$results/conformance" || failed=1
[ "$failed" = 0 ]
python3 ../matrix.py "${AEGIS_SDK_MATRIX:---check}" go "$results/proved.json"
