#!/usr/bin/env bash
# A stand-in for gcloud: writes down every call, and is a small Cloud TPU in a folder.
#
# $STANDIN/calls/1, 2, ...   the calls, in order: their words, each ended by a zero byte
# $STANDIN/rules             what goes wrong: KIND, which calls of that kind (" 1 3 ", " * "), DO, WITH
# $STANDIN/node, queue       states of the TPU and of its queued resource; no file: absent
# $STANDIN/workers/N/        home of worker N; `ssh` runs its command there, `scp` copies there
#
# A KIND is `create`, `describe`, `delete`, `start`, `scp`, `queue create`, `queue describe`,
# `queue delete`, or `ssh` with worker.sh's word, such as `ssh status`. DO is `node` or `queue` (sets
# the state to WITH), `fail` (exits with the status WITH, printing $STANDIN/message), `unreachable`
# (ssh to worker WITH fails) or `kill` (what runs on worker WITH). Messages are those of gcloud 528.
# In bash, which starts ten times faster than Python: a test makes dozens of calls.

set -uo pipefail
shopt -s nullglob

flag() {
  local word
  for word in "${words[@]}"; do [[ $word != "--$1="* ]] || printf '%s' "${word#*=}"; done
}

answer() {
  [[ -z ${2:-} ]] || echo "ERROR: (gcloud.${words[0]}.${words[1]}.${words[2]}.${words[3]}) $2" >&2
  exit "$1"
}

# All that runs there, as when the power goes.
power_off() {
  local pid
  pid=$(cat "$1/rpt-launch/run/pid" 2>/dev/null) && kill -KILL -- "-$pid" 2>/dev/null
}

set_state() {
  if [[ -z $2 ]]; then rm -f "$STANDIN/$1"; else printf '%s' "$2" >"$STANDIN/$1"; fi
  [[ $1 == node && ! $2 =~ ^(READY|REPAIRING)$ ]] || return 0
  local home
  for home in "$STANDIN"/workers/*; do power_off "$home"; done
  [[ -n $2 ]] || rm -rf "$STANDIN/workers"
}

on_worker() {
  local home="$STANDIN/workers/$1" status=0
  mkdir -p "$home"
  if [[ $unreachable == *" $1 "* ]]; then
    echo "ssh: connect: Connection timed out" >&2
    status=255
  else
    (cd "$home" && HOME=$home WORKER=$1 PATH="$STANDIN/worker_bin:$SYSTEM_PATH" bash -c "$command") || status=$?
  fi
  ((status == 0 || chosen == 1)) ||
    echo "##### Command execution on worker $1 failed with exit status $status. Continuing." >&2
  return "$status"
}

ssh_to_workers() {
  local command first=0 chosen=$workers number
  command=$(flag command) number=$(flag worker)
  if [[ $number != all ]]; then
    chosen=1
    on_worker "$number"
    exit $?
  fi
  for ((number = 0; number < workers; number++)); do
    on_worker "$number" || { status=$? && ((first > 0)) || first=$status; }
  done
  exit "$first"
}

scp_to_workers() {
  local paths=() word number
  for word in "${words[@]:4}"; do [[ $word == --* ]] || paths+=("$word"); done
  for ((number = 0; number < workers; number++)); do
    mkdir -p "$STANDIN/workers/$number"
    cp -p "${paths[@]:0:${#paths[@]}-1}" "$STANDIN/workers/$number/${paths[-1]#*:}" || exit 1
  done
}

words=("$@")
calls=("$STANDIN"/calls/*)
printf '%s\0' "$@" >"$STANDIN/calls/$((${#calls[@]} + 1))"
workers=$(<"$STANDIN/worker_count")

case $3/$4 in
  queued-resources/*) what=queue kind="queue $4" ;;
  tpu-vm/ssh) what=node kind=$(flag command) && kind=${kind##*worker.sh } && kind="ssh ${kind%% *}" ;;
  *) what=node kind=$4 ;;
esac

echo >>"$STANDIN/count ${kind//;/}"
mapfile -t lines <"$STANDIN/count ${kind//;/}"
unreachable=" "
while IFS=$'\t' read -r on nth action with; do
  [[ $on == "$kind" && ($nth == " * " || $nth == *" ${#lines[@]} "*) ]] || continue
  case $action in
    node | queue) set_state "$action" "$with" ;;
    kill) power_off "$STANDIN/workers/$with" ;;
    unreachable) unreachable+="$with " ;;
    fail) cat "$STANDIN/message" >&2 && exit "$with" ;;
  esac
done <"$STANDIN/rules"

now=$(cat "$STANDIN/$what" 2>/dev/null)
if [[ $4 == create ]]; then
  [[ -z $now ]] || answer 1 "ALREADY_EXISTS: Resource already exists"
  [[ $what == node ]] || set_state queue ACTIVE
  set_state node READY
  exit
fi
[[ -n $now ]] || answer 1 "NOT_FOUND: Resource '$5' was not found"
case $4 in
  describe) echo "$now" ;;
  delete) set_state node "" && set_state "$what" "" ;;
  start) set_state node READY ;;
  *)
    [[ $now == READY ]] || answer 1 "This TPU has terminal state \"$now\", so it cannot be used anymore."
    if [[ $4 == ssh ]]; then ssh_to_workers; else scp_to_workers; fi
    ;;
esac
