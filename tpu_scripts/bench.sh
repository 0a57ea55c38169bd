#!/usr/bin/env bash
# Runs the benchmarks on a TPU of one host and keeps what they print in runs/tpu/NAME/.
#
#   tpu_scripts/bench.sh --name=bench --zone=us-east5-b --type=v6e-1 --delete
#
# Gets the TPU as launch.sh does, runs benchmarks.ops, benchmarks.step and benchmarks.decode in
# bfloat16, one after the other, and writes ops.txt, step.txt and decode.txt.
#
#   --name=NAME --zone=ZONE --type=TYPE      as for launch.sh; a type of one host: v6e-1 to v6e-8,
#                                            v5litepod-1 to v5litepod-8, v5p-8, v4-8
#   --only=ops                               one of ops, step, decode
#   --delete                                 delete the TPU afterwards, whatever came of it; not
#                                            after Ctrl-C
#   --version= --spot --queued --project= --internal-ip --dry-run ...    as for launch.sh
#   -- ARGS                                  more flags, for the benchmark that --only names

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tpu_scripts/common.sh

flag_only=""
parse_flags "name= zone= project= type= version= spot queued valid-until= create-flag= only= delete \
  max-creates= max-restarts= backoff-seconds= backoff-max-seconds= ssh-retries= ready-minutes= \
  poll-seconds= grace-seconds= internal-ip dry-run --" "$@"
check_place
[[ -z $flag_only ]] || check "$flag_only" 'ops|step|decode' "--only=$flag_only: one of ops, step, decode"
((${#program_args[@]} == 0)) || [[ -n $flag_only ]] || die "arguments after -- need --only=BENCHMARK"

# launch.sh checks the rest. All but --only, --delete and what follows -- is for it as it is.
passed=()
for argument in "$@"; do
  case $argument in
    --) break ;;
    --only=* | --delete) ;;
    *) passed+=("$argument") ;;
  esac
done

status=0
for benchmark in ${flag_only:-ops step decode}; do
  results="runs/tpu/$flag_name/$benchmark.txt"
  arguments=(--dtype=bfloat16)
  [[ $benchmark != ops ]] || arguments+=("--implementations=chunked,pallas")
  arguments+=(${program_args[@]+"${program_args[@]}"})
  if [[ -z $flag_dry_run ]]; then
    mkdir -p "$(dirname "$results")"
    : >"$results"
  fi
  tpu_scripts/launch.sh "${passed[@]}" --single-host "--module=benchmarks.$benchmark" \
    "--log=$results" -- "${arguments[@]}" || status=$?
  ((status == 0)) || break
  [[ -n $flag_dry_run ]] || say "$benchmark: $results"
done

# After Ctrl-C the benchmark runs on, as launch.sh has said.
if [[ -n $flag_delete ]] && ((status != 130)); then
  tpu_scripts/stop.sh "--name=$flag_name" "--zone=$flag_zone" \
    ${flag_project:+"--project=$flag_project"} ${flag_dry_run:+--dry-run}
fi
exit "$status"
