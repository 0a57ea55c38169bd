# shellcheck shell=bash disable=SC2034,SC2154 # variables of common.sh and launch.sh
# Getting a TPU, and getting rid of it; sourced by launch.sh, whose `end` and `restarts` it uses.

stop_file() { echo "build/tpu-$flag_name-$flag_zone.stop"; }

# The one of flag_name, READY.
obtain_tpu() {
  local failures=0 seen="" deadline=0
  while true; do
    tpu_state
    [[ $TPU_STATE != ABSENT || -z $flag_queued ]] || queue_state
    if [[ $TPU_STATE/$QUEUE_STATE != "$seen" ]]; then
      seen=$TPU_STATE/$QUEUE_STATE
      deadline=$((SECONDS + 60 * flag_ready_minutes))
      say "$flag_name is $TPU_STATE${flag_queued:+, its request ${QUEUE_STATE:-unknown}}"
    fi
    case $TPU_STATE in
      READY) return 0 ;;
      ABSENT)
        [[ ! -e $(stop_file) ]] || end 5 "stop.sh was called for $flag_name"
        if [[ -n $flag_queued ]]; then ask_queue; else ask_node; fi
        ;;
      PREEMPTED | TERMINATED) drop_tpu ;;
      STOPPED)
        persist capture compute tpus tpu-vm start "$flag_name" "${where[@]}" ||
          die "$flag_name cannot be started: $last_error"
        ;;
      *) wait_for_change ;;
    esac
  done
}

ask_node() {
  say "asking for $flag_type"
  local command=(compute tpus tpu-vm create "$flag_name" "${where[@]}"
    "--accelerator-type=$flag_type" "--version=$flag_version" ${flag_spot:+--spot}
    ${create_flags[@]+"${create_flags[@]}"})
  if capture "${command[@]}"; then DRY_STATE=READY; else refused; fi
}

ask_queue() {
  local command=(compute tpus queued-resources create "$flag_name" "${where[@]}"
    "--node-id=$flag_name" "--accelerator-type=$flag_type" "--runtime-version=$flag_version"
    "--valid-until-duration=$flag_valid_until" ${flag_spot:+--spot}
    ${create_flags[@]+"${create_flags[@]}"})
  case $QUEUE_STATE in
    ABSENT)
      say "asking for $flag_type, in the queue for at most $flag_valid_until"
      if capture "${command[@]}"; then DRY_STATE=READY; else refused; fi
      ;;
    FAILED | SUSPENDED)
      last_error="the request is $QUEUE_STATE"
      drop_tpu
      try_again
      ;;
    # The request itself says how long it may wait.
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES) pause "$flag_poll_seconds" ;;
    *) wait_for_change ;;
  esac
}

# After create failed: no capacity is worth another try, a mistake is not. A quota is a mistake at
# first; later it may still be held by the TPU that was preempted.
refused() {
  local final=$hopeless_words
  ((restarts > 0)) || final+='|quota'
  local passing='capacity|RESOURCE_EXHAUSTED|stockout|UNAVAILABLE|unavailable|[Ii]nternal|ABORTED'
  passing+='|INTERNAL|DEADLINE_EXCEEDED|timed out|ALREADY_EXISTS|already exists|[Qq]uota'
  if grep -iqE "$final" "$scratch/err" || ! grep -qE "$passing" "$scratch/err"; then
    die "no TPU: $last_error"
  fi
  try_again
}

try_again() {
  failures=$((failures + 1))
  ((failures < flag_max_creates)) ||
    end 4 "no TPU after $failures tries; the last answer: $last_error"
  say "no TPU yet ($last_error); try $((failures + 1)) of $flag_max_creates in $(backoff "$failures") s"
  pause "$(backoff "$failures")"
}

wait_for_change() {
  ((SECONDS < deadline)) ||
    end 4 "$flag_name has been $TPU_STATE/$QUEUE_STATE for $flag_ready_minutes minutes (--ready-minutes)"
  pause "$flag_poll_seconds"
}

# Deletes what there is under this name.
drop_tpu() {
  say "deleting $flag_name, which is $TPU_STATE"
  if [[ -n $flag_queued ]]; then
    queue_state
    if [[ $QUEUE_STATE != ABSENT ]]; then
      persist delete_queued || die "the request $flag_name cannot be deleted: $last_error"
      return 0
    fi
  fi
  persist delete_node || die "$flag_name cannot be deleted: $last_error"
}
