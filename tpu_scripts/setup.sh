#!/usr/bin/env bash
# Copies the checkout to all workers of a TPU and installs what it needs there.
#
#   tpu_scripts/setup.sh --name=rpt --zone=us-east5-b
#
# launch.sh does this itself. Alone it is for a TPU on which one wants to work by hand: afterwards
# `cd rpt-launch/code-* && ../venv/bin/python -m rpt.train ...` works on every worker. May be repeated.
#
#   --name=NAME --zone=ZONE       which TPU; it must be READY
#   --env-file=FILE               NAME=value lines (secrets), read by bash; copied to ~/.rpt-env
#   --ssh-retries=5 --backoff-seconds=30      tries again of one call, and the first pause
#   --project=ID --internal-ip    as for gcloud
#   --dry-run                     print the commands; run none

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tpu_scripts/common.sh

parse_flags "name= zone= project= env-file= ssh-retries= backoff-seconds= internal-ip dry-run" "$@"
check_place
check_env_file
make_scratch
set_ssh_copy
DRY_STATE=READY
tpu_state
[[ $TPU_STATE == READY ]] ||
  die "$flag_name is $TPU_STATE, not READY; tpu_scripts/launch.sh makes a TPU and sets it up"
set_up_workers || die "$trouble"
[[ -n $flag_dry_run ]] || say "$(workers_installed) worker(s) ready"
