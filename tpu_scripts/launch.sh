#!/usr/bin/env bash
# Runs a module of this checkout on a Cloud TPU, and keeps it running until it has finished.
#
#   tpu_scripts/launch.sh --name=rpt --zone=us-east5-b --type=v6e-16 --spot \
#       --workdir=gs://BUCKET/runs/first -- --config=configs/smollm2_pydoc.py \
#       --config.data.weights=gs://BUCKET/weights/smollm2.gguf \
#       --config.train.batch_size=16 --config.data.shards=4
#
# Gets the TPU (or takes the one of that name), copies the checkout to all workers, installs, starts
# `python -m rpt.train --workdir=... ARGS` on all of them, prints what worker 0 prints, and watches.
# If the TPU is preempted or a host is lost, it is replaced and the same command is started again,
# which goes on from the last checkpoint. If a program fails on one worker, the others are stopped
# and that worker is named. Ctrl-C ends the watching only; the same command takes it up again.
#
#   --name=NAME --zone=ZONE       what the TPU is or will be called, and where
#   --type=TYPE                   accelerator type: v4-8, v5litepod-16, v5p-32, v6e-16, ...
#   --version=VERSION             runtime; default: the one for the type
#   --spot                        a spot TPU: cheap, and can be preempted
#   --queued                      through a queued resource: waits for capacity, for --valid-until
#   --valid-until=24h             how long the request may wait in the queue
#   --create-flag=--FLAG=VALUE    one more flag of gcloud's create command; may be repeated
#   --workdir=gs://BUCKET/PATH    the run directory; a TPU's own disk is lost with it
#   --module=rpt.train            what to run; --workdir is needed for rpt.train and rpt.pretrain
#   --env-file=FILE               NAME=value lines (secrets) for the program; copied, never printed.
#                                 bash reads them: quote what holds spaces or $
#   --log=FILE                    append what worker 0 prints to FILE too
#   --delete                      delete the TPU when the run has finished or failed
#   --single-host                 fail unless the TPU has one worker
#   --max-creates=20              tries in a row to get a TPU
#   --max-restarts=50             restarts of the run after preemptions and lost hosts
#   --backoff-seconds=30          before the second try; doubles, up to --backoff-max-seconds=900
#   --ssh-retries=5               tries again of one ssh or API call
#   --ready-minutes=30            for a TPU to be made, repaired or deleted
#   --poll-seconds=20             between looks at the run
#   --grace-seconds=120           from SIGTERM to SIGKILL, to save a checkpoint
#   --project=ID --internal-ip    as for gcloud
#   --dry-run                     print the commands, for a TPU that is not there yet; run none
#   -- ARGS                       for the module, passed on as they are
#
# Exit status: 0 finished, 1 a mistake or nothing more to do, 3 the program failed on a worker,
# 4 tries used up, 5 stopped or deleted by someone else.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tpu_scripts/common.sh
source tpu_scripts/obtain.sh

# ---- arguments -----------------------------------------------------------------------------------

check_arguments() {
  check_place
  [[ -n $flag_type ]] || die "--type is missing, such as --type=v6e-8"
  [[ $flag_type != tpu7x* ]] || die "--type=$flag_type: the Cloud TPU API has no TPU7x; docs/tpu.md, GKE"
  check "$flag_type" 'v[0-9]+[a-z]*-[0-9]+' "--type=$flag_type is no accelerator type, such as v6e-8"
  [[ -n $flag_version ]] || flag_version=$(default_version "$flag_type")
  check "$flag_version" '[a-z0-9][-a-z0-9.]*' "--version=$flag_version is no runtime version"
  check "$flag_valid_until" '[0-9]+[smhd]' "--valid-until=$flag_valid_until is no duration, such as 6h"
  check_number flag_max_creates max-creates
  check_number flag_max_restarts max-restarts
  check_number flag_backoff_max_seconds backoff-max-seconds
  check_number flag_ready_minutes ready-minutes
  ((flag_max_creates > 0)) || die "--max-creates=0 would never ask for a TPU"
  local flag
  for flag in ${create_flags[@]+"${create_flags[@]}"}; do
    check "$flag" '--[a-z][-a-z0-9]*(=.*)?' "--create-flag=$flag is no flag; --create-flag=--network=NET"
  done
  check_program
  check_env_file
  check_log
}

check_log() {
  [[ -n $flag_log ]] || return 0
  flag_log=$(as_given "$flag_log")
  [[ -n $flag_dry_run || -d ${flag_log%/*}/ ]] || die "--log=$flag_log: there is no folder ${flag_log%/*}"
}

check_program() {
  check "$flag_module" '[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*' "--module=$flag_module is no module"
  [[ -f ${flag_module//.//}.py ]] || die "--module=$flag_module: ${flag_module//.//}.py does not exist here"
  if [[ -n $flag_workdir ]]; then
    check "$flag_workdir" 'gs://[a-z0-9][-a-z0-9_.]{1,61}[a-z0-9]/[^[:space:]]+' \
      "--workdir=$flag_workdir must be gs://BUCKET/PATH; a TPU's own disk is lost with it"
  elif [[ $flag_module == rpt.train || $flag_module == rpt.pretrain ]]; then
    die "--workdir is missing: gs://BUCKET/PATH, where checkpoints go"
  fi
  local arg path
  for arg in ${program_args[@]+"${program_args[@]}"}; do
    case $arg in
      --workdir | --workdir=*) die "give --workdir before the --, where it is checked" ;;
      --config=*)
        path=${arg#--config=} && path=${path%%:*}
        [[ $path != /* ]] || die "$arg: a path within the checkout, which is what the workers get"
        [[ -f $path ]] || die "$arg: $path does not exist here"
        ! git check-ignore -q -- "$path" || die "$arg: git ignores $path, so it is not copied"
        ;;
    esac
  done
}

# docs.cloud.google.com/tpu/docs/runtimes: the images for JAX.
default_version() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) die "--type=$1 is not known here; give --version too" ;;
  esac
}

# ---- the run -------------------------------------------------------------------------------------

# 0: started, or running already. 1: not; trouble says why.
start_run() {
  set_up_workers || return 1
  if [[ -n $flag_single_host && -z $flag_dry_run ]] && (($(workers_installed) != 1)); then
    die "$flag_name has $(workers_installed) workers; this needs a TPU of one host"
  fi
  local words=(bash worker.sh start "$code" "${flag_env_file:+env}" "$flag_module"
    ${flag_workdir:+"--workdir=$flag_workdir"} ${program_args[@]+"${program_args[@]}"}) status=0
  words[4]=${words[4]:-none}
  say "starting python -m $(quoted "${words[@]:5}")"
  persist on_workers all "$(quoted "RPT_COMMIT=$(commit)" "${words[@]}")" || status=$?
  if ((status == 3)); then
    die "another program runs on $flag_name ($(grep -m 1 'runs something else' "$scratch/out"));" \
      "end it first: tpu_scripts/stop.sh $(place) --keep"
  fi
  ((status == 0)) || unreached || return 1
  ! grep -q already "$scratch/out" || say "it runs already; watching it"
}

# Prints what worker 0 has printed since, and sets offset. 1: no answer, and nothing is lost.
offset=0
show_log() {
  local next size
  while true; do
    on_workers 0 "bash worker.sh log $offset" || return 1
    [[ -z $flag_dry_run ]] || return 0
    next=$(tail -n 1 "$scratch/out")
    [[ $next =~ ^rpt-log\ [0-9]+$ ]] || return 1
    # Without the trailer and the newline before it.
    size=$(($(wc -c <"$scratch/out") - ${#next} - 2))
    head -c "$size" "$scratch/out" | tee -a "${flag_log:-/dev/null}"
    next=${next#rpt-log }
    # Long logs come in pieces.
    ((next - offset >= 1000000)) || break
    offset=$next
  done
  offset=$next
}

show_the_end() { persist show_log || say "what worker 0 printed last could not be had: $last_error"; }

# Sets outcome: finished, failed, stopped, gone, lost (start again), broken (replace the TPU first).
outcome=""
watch_run() {
  local misses=0
  offset=0 outcome=""
  while [[ -z $outcome ]]; do
    if on_workers all "bash worker.sh status"; then
      misses=0
      grep '^rpt-status ' "$scratch/out" >"$scratch/status" || true
      judge
      [[ -n $outcome ]] || show_log || true
      [[ -n $outcome ]] || pause "$flag_poll_seconds"
    else
      misses=$((misses + 1))
      unreachable "$misses"
    fi
  done
}

# A call to the workers failed: is the TPU gone, or the network slow?
unreachable() {
  local why=$last_error who
  who=$(failed_workers)
  if tpu_lost; then return 0; fi
  if (($1 > flag_ssh_retries)); then
    say "$who cannot be reached, though $flag_name is READY: $why"
    outcome=broken
  else
    say "no answer ($why); try $(($1 + 1)) in $(backoff "$1") s"
    pause "$(backoff "$1")"
  fi
}

# Whether the TPU is no longer READY; then sets outcome.
tpu_lost() {
  tpu_state
  case $TPU_STATE in
    READY) return 1 ;;
    # Preemption leaves a node behind, in the state PREEMPTED; deleting is what people do.
    ABSENT | DELETING) if [[ -n $flag_queued ]]; then queue_lost; else outcome=gone; fi ;;
    *) outcome=lost ;;
  esac
  say "$flag_name is $TPU_STATE"
}

# The service deletes the nodes of a suspended request itself.
queue_lost() {
  queue_state
  if [[ $QUEUE_STATE == ABSENT || $QUEUE_STATE == DELETING ]]; then outcome=gone; else outcome=lost; fi
}

count() { grep -c "state=$1" "$scratch/status" || true; }

# What the states of all workers mean together.
judge() {
  if [[ -n $flag_dry_run ]]; then
    show_log
    outcome=finished
    return 0
  fi
  # The first to fail, by the clock: the others end because it is gone.
  local first
  first=$(sed -n 's/.*worker=\(.*\) state=exited exit=\([1-9][0-9]*\) time=\(.*\)/\3 \1 \2/p' \
    "$scratch/status" | sort -n | head -n 1)
  if (($(count running) == $(wc -l <"$scratch/status"))); then
    return 0
  elif (($(count asked) > 0)); then
    outcome=stopped
  elif (($(count lost) + $(count stopped) + $(count none) > 0)); then
    say "interrupted: $(grep -vE 'state=(running|exited)' "$scratch/status" | cut -d ' ' -f 2,3 | paste -sd, -)"
    stop_others
    tpu_lost || outcome=lost
  elif [[ -n $first ]]; then
    stop_others
    tpu_lost || blame "$first"
  elif (($(count exited) == $(wc -l <"$scratch/status"))); then
    outcome=finished
    show_the_end
  fi
}

stop_others() {
  say "stopping the program on all workers"
  on_workers all "bash worker.sh stop $flag_grace_seconds" || say "not all answered: $last_error"
}

blame() {
  local worker status
  read -r _ worker status <<<"$1"
  outcome=failed
  failure="the program failed on worker $worker (exit status $status); the other workers were stopped"
  show_the_end
  [[ $worker != 0 ]] || return 0
  say "the last lines of worker $worker:"
  if on_workers "$worker" "bash worker.sh tail"; then cat "$scratch/out"; fi
}

# ---- from start to end ---------------------------------------------------------------------------

place() { quoted "--name=$flag_name" "--zone=$flag_zone" ${flag_project:+"--project=$flag_project"}; }

# end STATUS MESSAGE: --delete is for these ends only, not for Ctrl-C or a mistake.
end() {
  trap - EXIT
  [[ $1 == 0 ]] || say "$2"
  if [[ -n $flag_delete && $1 != 5 ]]; then
    tpu_state
    [[ $TPU_STATE == ABSENT && -z $flag_queued ]] || drop_tpu
    DRY_STATE=ABSENT
    TPU_STATE=ABSENT
  fi
  leave
  [[ $1 == 0 ]] || die_status=$1 die "$2"
  say "$2"
  exit 0
}

leave() {
  rm -rf "$scratch"
  [[ -n $flag_dry_run || -z $TPU_STATE || $TPU_STATE == ABSENT ]] ||
    say "$flag_name may still be there and cost money; to end that: tpu_scripts/stop.sh $(place)"
}

main() {
  parse_flags "name= zone= project= type= version= spot queued valid-until= create-flag= workdir= \
    module= env-file= log= delete single-host max-creates= max-restarts= backoff-seconds= \
    backoff-max-seconds= ssh-retries= ready-minutes= poll-seconds= grace-seconds= internal-ip dry-run --" "$@"
  check_arguments
  make_scratch
  set_ssh_copy
  trap leave EXIT
  trap 'say "the run goes on without being watched; the same command watches it again"; exit 130' INT
  [[ -n $flag_dry_run ]] || rm -f "$(stop_file)"
  restarts=0
  local quick=0 began
  while true; do
    obtain_tpu
    began=$SECONDS
    if start_run; then
      watch_run
    elif ! tpu_lost; then
      # At first that is a mistake, such as a key that is missing; later it was none.
      ((restarts > 0)) || die "$trouble"
      say "$trouble"
      outcome=broken
    fi
    case $outcome in
      finished) end 0 "finished${flag_workdir:+; the run is in $flag_workdir}" ;;
      failed) end 3 "$failure" ;;
      stopped) end 5 "the run was stopped by worker.sh or stop.sh, not by itself" ;;
      gone) end 5 "$flag_name was deleted meanwhile; it is not made again" ;;
      broken) drop_tpu ;;
    esac
    restarts=$((restarts + 1))
    ((restarts <= flag_max_restarts)) || end 4 "$flag_max_restarts restarts are used up (--max-restarts)"
    # A run that lived for a while was well: back to the shortest pause.
    if ((SECONDS - began < 600)); then quick=$((quick + 1)); else quick=1; fi
    say "restart $restarts of $flag_max_restarts in $(backoff "$quick") s"
    pause "$(backoff "$quick")"
  done
}

main "$@"
