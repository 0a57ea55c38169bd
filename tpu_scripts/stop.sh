#!/usr/bin/env bash
# Stops the run on a TPU (it saves a checkpoint), deletes the TPU, and with it the bill.
#
#   tpu_scripts/stop.sh --name=rpt --zone=us-east5-b
#
# Deletes the TPU VM and the queued resource of that name and checks that both are gone. What lies in
# the bucket stays. May be repeated. End a launch.sh on another machine first (Ctrl-C).
#
#   --name=NAME --zone=ZONE       which TPU
#   --keep                        stop the run only; the TPU stays, and costs money
#   --grace-seconds=120           from SIGTERM to SIGKILL, to save a checkpoint; 0 stops at once
#   --ssh-retries=5 --backoff-seconds=30      tries again of one call, and the first pause
#   --project=ID --internal-ip    as for gcloud
#   --dry-run                     print the commands, for a TPU that is there; run none

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tpu_scripts/common.sh

stop_run() {
  if on_workers all "if [ -f worker.sh ]; then bash worker.sh stop $flag_grace_seconds; fi"; then
    say "no program runs on $flag_name any more"
  elif [[ -n $flag_keep ]]; then
    die "the run may still be on: $last_error"
  else
    say "the run could not be stopped gently ($last_error); it keeps its last checkpoint"
  fi
}

parse_flags "name= zone= project= keep grace-seconds= ssh-retries= backoff-seconds= internal-ip dry-run" "$@"
check_place
make_scratch
DRY_STATE=READY
# A launch.sh that watches from this checkout must not make the TPU again.
if [[ -z $flag_dry_run && -z $flag_keep ]]; then
  mkdir -p build
  touch "build/tpu-$flag_name-$flag_zone.stop"
fi

tpu_state
[[ $TPU_STATE != READY ]] || stop_run
if [[ -n $flag_keep ]]; then
  say "$flag_name is $TPU_STATE; unless it is ABSENT it still costs money"
  exit 0
fi

queue_state
if [[ $QUEUE_STATE != ABSENT ]]; then
  say "deleting the queued resource $flag_name and its TPU"
  persist delete_queued || die "the queued resource $flag_name is still there: $last_error"
fi
[[ -n $flag_dry_run ]] || tpu_state
if [[ $TPU_STATE != ABSENT ]]; then
  say "deleting the TPU $flag_name"
  persist delete_node || die "the TPU $flag_name is still there and costs money: $last_error"
fi

DRY_STATE=ABSENT
tpu_state
queue_state
[[ $TPU_STATE/$QUEUE_STATE == ABSENT/ABSENT ]] ||
  die "$flag_name is still there (TPU $TPU_STATE, request $QUEUE_STATE) and may cost money; run this again"
say "nothing called $flag_name is left in $flag_zone; it costs nothing any more"
