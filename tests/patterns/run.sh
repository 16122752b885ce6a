#!/usr/bin/env bash
# Row patterns by public conformance cases: Trino's own test classes of MATCH_RECOGNIZE (Apache License 2.0) are fetched from Maven Central, read,
# and asked of the real program. Nothing of them is kept in this repository.
# `run.sh [--if-there]`: with it, a machine without Maven is a check that is skipped, and said to be.
set -euo pipefail

cd "$(dirname "$0")"
: "${AEGIS_BIN:?set AEGIS_BIN to the built program, or run \`make test-patterns\`}"
version=476
sha256=95d0821b74ae0e7cc2f635fdaec7171b5d9bc8d8652ea6668037536266fdeecc
classes=(TestRowPatternMatching TestAggregationsInRowPatternMatching TestCopyAggregationStateInRowPatternMatching TestExpressionRewriteInRowPatternMatching)
# So many of the cases were the same when this version was first read.
least=136

cache="${AEGIS_CACHE:-$HOME/.cache/aegis}/trino-$version"
jar="$cache/trino-main-$version-test-sources.jar"
if ! [ -f "$jar" ]; then
    if ! command -v mvn >/dev/null; then
        if [ "${1:-}" = --if-there ]; then
            echo "row patterns: SKIPPED, no case was run: mvn is missing, which fetches them (Debian: maven)"
            exit 0
        fi
        echo "row patterns: mvn is missing, which fetches the cases; install Maven (Debian: maven)" >&2
        exit 2
    fi
    mkdir -p "$cache"
    mvn --quiet --batch-mode org.apache.maven.plugins:maven-dependency-plugin:3.8.1:get \
        -Dtransitive=false -Dartifact="io.trino:trino-main:$version:jar:test-sources"
    mvn --quiet --batch-mode org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
        -Dartifact="io.trino:trino-main:$version:jar:test-sources" -DoutputDirectory="$cache"
fi
echo "$sha256  $jar" | sha256sum --check --quiet

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
files=()
python3 -m zipfile -e "$jar" "$folder"
for class in "${classes[@]}"; do
    files+=("$folder/io/trino/sql/query/$class.java")
done
PYTHONDONTWRITEBYTECODE=1 python3 conformance.py --least "$least" "${files[@]}"
