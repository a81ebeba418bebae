#!/bin/sh
# Everything that must hold for contracts/: build, format, tests, gas figures, properties, release, artifacts.
# Without an argument 64 sequences of every invariant and 512 runs of every fuzz test, with `ci` 1,000 and 512, with
# `deep` 10,000 and 10,000; some fuzz tests set their own number. Needs Node with npm; the first run installs
# node_modules.
set -eu
cd -- "${0%/*}/.."

for program in node npm python3; do
    if ! command -v "$program" >/dev/null 2>&1; then
        echo "contracts: $program is missing; it is needed to build and test the contracts (using them needs neither)" >&2
        exit 1
    fi
done

# npm writes .package-lock.json last: it is there, and as new as our lock, only after a complete install.
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
    npm ci --ignore-scripts --no-audit --no-fund
fi
forge=node_modules/.bin/forge
if [ ! -x "$forge" ]; then
    echo "contracts: no forge for this platform in package.json (linux x64 and macOS arm64 are listed)" >&2
    exit 1
fi

export FOUNDRY_PROFILE="${1:-default}"
"$forge" fmt --check src test symbolic
"$forge" build
"$forge" test --no-match-contract GasTest
FOUNDRY_PROFILE=default FORGE_SNAPSHOT_CHECK=true "$forge" test --isolate --match-contract GasTest
python3 tools/check_properties.py
python3 tools/check_pragma.py
python3 tools/export_artifacts.py --check
python3 tools/release.py --check
echo "contracts: all checks passed"
