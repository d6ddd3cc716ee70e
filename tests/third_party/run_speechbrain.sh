#!/bin/sh
# SpeechBrain's own tests against our modules: run_speechbrain.sh CHECKOUT [pytest options].
# CHECKOUT is SpeechBrain's repository, of the installed version; nothing in it is changed.
set -eu
export SPEECHBRAIN_CHECKOUT="${1:?usage: $0 CHECKOUT [pytest options]}"
shift
exec "${PYTHON:-python}" -m pytest -p no:cacheprovider \
	"$(dirname "$0")/test_speechbrain.py" "$@"
