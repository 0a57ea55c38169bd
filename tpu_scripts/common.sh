# shellcheck shell=bash disable=SC2034 # what is set here is read by the scripts
# Shared by the scripts of this folder; sourced, not run.
#
# The states come from the Cloud TPU API: of a node (tpu-vm) and of a queued resource; ABSENT is ours.
# Two properties of `gcloud compute tpus tpu-vm ssh` shape everything here. It runs the command again,
# up to ten times, when ssh itself fails (exit status 255): so every remote command may be repeated
# without harm, and none exits with 255. With --worker=all it returns only when every worker has: so
# nothing long runs in the foreground there; worker.sh starts it and launch.sh asks.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash 4.4 or newer is needed, this is ${BASH_VERSION}; on a Mac: brew install bash" >&2
  exit 1
fi

# The scripts have just gone to the checkout.
caller=$OLDPWD

flag_name="" flag_zone="" flag_project="" flag_internal_ip="" flag_dry_run="" flag_env_file=""
flag_type="" flag_version="" flag_spot="" flag_queued="" flag_valid_until="24h"
flag_workdir="" flag_module="rpt.train" flag_delete="" flag_single_host="" flag_log="" flag_keep=""
flag_max_creates="20" flag_max_restarts="50" flag_ssh_retries="5" flag_ready_minutes="30"
flag_poll_seconds="${RPT_POLL_SECONDS:-20}" flag_backoff_seconds="${RPT_BACKOFF_SECONDS:-30}"
flag_backoff_max_seconds="900" flag_grace_seconds="120"
create_flags=() program_args=()

TPU_STATE="" QUEUE_STATE="" DRY_STATE="ABSENT"
where=() ssh_where=()
scratch="" last_error=""

say() { printf '%s\n' "[tpu] $*" >&2; }

# One line, whatever it quotes.
die() {
  printf '%s\n' "error: $*" | tr '\n' ' ' | sed 's/ *$//' >&2
  echo >&2
  exit "${die_status:-1}"
}

# ---- flags ---------------------------------------------------------------------------------------

# The comment at the top of the script.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# parse_flags "switch value= ..." "$@": sets flag_*; what follows -- goes to program_args.
parse_flags() {
  local known=" $1 " name value
  shift
  while (($#)); do
    case $1 in
      --help | -h) usage && exit 0 ;;
      --)
        [[ $known == *" -- "* ]] || die "unexpected argument --; --help lists the flags"
        program_args=("${@:2}")
        break
        ;;
      --*) name=${1%%=*} && name=${name#--} ;;
      *) die "unexpected argument '$1'; flags look like --name=value" ;;
    esac
    if [[ $known == *" $name= "* ]]; then
      value=${1#*=}
      [[ $1 == *=* && -n $value ]] || die "--$name needs a value: --$name=VALUE"
    elif [[ $known == *" $name "* ]]; then
      [[ $1 != *=* ]] || die "--$name takes no value"
      value=yes
    else
      die "unknown flag --$name; --help lists the flags"
    fi
    if [[ $name == create-flag ]]; then
      create_flags+=("$value")
    else
      printf -v "flag_${name//-/_}" '%s' "$value"
    fi
    shift
  done
}

# check VALUE PATTERN MESSAGE: the whole value matches the extended regular expression.
check() { [[ $1 =~ ^($2)$ ]] || die "$3"; }

check_number() { check "${!1}" '[0-9]{1,6}' "--$2=${!1} is not a whole number"; }

# The flags that every script has; fills `where`.
check_place() {
  [[ -n $flag_name ]] || die "--name is missing: what the TPU is, or will be, called"
  check "$flag_name" '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' \
    "--name=$flag_name: a lower-case letter, then at most 39 letters, digits and hyphens"
  [[ -n $flag_zone ]] || die "--zone is missing, such as --zone=us-east5-b"
  check "$flag_zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' "--zone=$flag_zone is no zone, such as us-east5-b"
  where=("--zone=$flag_zone")
  if [[ -n $flag_project ]]; then
    check "$flag_project" '[a-z][-a-z0-9.:]*[a-z0-9]' "--project=$flag_project is no project id"
    where+=("--project=$flag_project")
  fi
  check_number flag_poll_seconds poll-seconds
  check_number flag_backoff_seconds backoff-seconds
  check_number flag_ssh_retries ssh-retries
  check_number flag_grace_seconds grace-seconds
  if [[ -z $flag_dry_run ]] && ! command -v gcloud >/dev/null; then
    die "gcloud is not on the PATH; docs/tpu.md says how to get it"
  fi
  where+=(--quiet)
  # A host that is gone is noticed in a minute instead of never.
  ssh_where=("${where[@]}" --ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=15)
  [[ -z $flag_internal_ip ]] || ssh_where+=(--internal-ip)
}

check_env_file() {
  [[ -n $flag_env_file ]] || return 0
  flag_env_file=$(as_given "$flag_env_file")
  [[ -f $flag_env_file && -r $flag_env_file ]] || die "--env-file=$flag_env_file cannot be read"
  # shellcheck disable=SC2012 # stat has other flags on a Mac; the mode is all that is read.
  [[ $(ls -ld -- "$flag_env_file" | cut -c5-10) == "------" ]] ||
    die "--env-file=$flag_env_file can be read by others; chmod 600 it"
}

# A path of a flag: from where the script was called, not from the checkout, where it works.
as_given() { if [[ $1 == /* ]]; then echo "$1"; else echo "$caller/$1"; fi; }

# ---- gcloud --------------------------------------------------------------------------------------

# The words as one would type them.
quoted() {
  local word out="" escaped="'\\''"
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      out+=" $word"
    else
      out+=" '${word//\'/$escaped}'"
    fi
  done
  printf '%s' "${out# }"
}

make_scratch() {
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
}

# Runs gcloud with its output in $scratch/out, or prints the command; last_error is one line.
capture() {
  local status=0
  if [[ -n $flag_dry_run ]]; then
    printf '%s\n' "$(quoted gcloud "$@")"
    : >"$scratch/out"
    return 0
  fi
  gcloud "$@" </dev/null >"$scratch/out" 2>"$scratch/err" || status=$?
  ((status > 0)) || return 0
  last_error=$(tr '\n' ' ' <"$scratch/err" | sed 's/.*ERROR: //; s/ *$//' | cut -c 1-400)
  [[ -n $last_error ]] || last_error="gcloud exited with status $status"
  return "$status"
}

# Seconds before try n+1: base, 2 base, 4 base, ... up to the largest.
backoff() {
  local seconds=$flag_backoff_seconds i
  for ((i = 1; i < $1 && seconds < flag_backoff_max_seconds; i++)); do seconds=$((2 * seconds)); done
  ((seconds <= flag_backoff_max_seconds)) || seconds=$flag_backoff_max_seconds
  echo "$seconds"
}

pause() { [[ -n $flag_dry_run ]] || sleep "$1"; }

# What no further try mends: no login or permission, a mistake. In gcloud's own words only: what a
# worker prints stands in the same file.
hopeless_words='PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|not enabled|reauthenticat'
hopeless_words+='|active account|invalid_grant|not currently set'
hopeless() { grep -iqE "^ERROR: \(gcloud.*($hopeless_words)" "$scratch/err"; }

# persist COMMAND...: again after ssh trouble and faults of the service. Final are 2 (gcloud does not
# understand the flags), the statuses with which worker.sh refuses, and what is hopeless.
persist() {
  local tries=0 status
  while true; do
    status=0
    "$@" || status=$?
    [[ ! $status =~ ^[0234]$ ]] || return "$status"
    ! hopeless || return "$status"
    tries=$((tries + 1))
    ((tries <= flag_ssh_retries)) || return "$status"
    say "try $tries of $flag_ssh_retries failed ($last_error); again in $(backoff "$tries") s"
    pause "$(backoff "$tries")"
  done
}

absent() { grep -qiE 'NOT_FOUND|was not found' "$scratch/err"; }

# describe KIND FORMAT: the state, or ABSENT, is in $scratch/out.
describe() {
  capture compute tpus "$1" describe "$flag_name" "${where[@]}" "--format=$2" || {
    local status=$?
    absent || return "$status"
    echo ABSENT >"$scratch/out"
  }
}

# Of the node, into TPU_STATE.
tpu_state() {
  persist describe tpu-vm 'value(state)' || die "the state of $flag_name is unknown: $last_error"
  TPU_STATE=$(<"$scratch/out")
  [[ -z $flag_dry_run ]] || TPU_STATE=$DRY_STATE
}

# Of the queued resource, into QUEUE_STATE.
queue_state() {
  persist describe queued-resources 'value(state.state)' ||
    die "the state of the queued resource $flag_name is unknown: $last_error"
  QUEUE_STATE=$(<"$scratch/out")
  [[ -z $flag_dry_run ]] || QUEUE_STATE=$DRY_STATE
}

delete_node() { capture compute tpus tpu-vm delete "$flag_name" "${where[@]}" || absent; }

# --force: with its node.
delete_queued() {
  capture compute tpus queued-resources delete "$flag_name" "${where[@]}" --force || absent
}

# ---- workers -------------------------------------------------------------------------------------

# on_workers WHICH COMMAND: over ssh; WHICH is a number or all.
on_workers() {
  capture compute tpus tpu-vm ssh "$flag_name" "${ssh_where[@]}" "--worker=$1" "--command=$2"
}

# The workers that gcloud says failed in the last call, such as "worker 1 (exit status 4)".
failed_workers() {
  local found
  found=$(sed -n 's/.*execution on \(worker [0-9]*\) failed with exit status \([0-9]*\).*/\1 (exit status \2)/p' \
    "$scratch/err" | sort -u | paste -sd, - | sed 's/,/, /g')
  echo "${found:-worker 0}"
}

# A name for the content of the checkout: tracked files and new ones, not those that git ignores.
code_hash() {
  local files
  files=$(listed_files | tr '\0' '\n') || return 1
  { echo "$files" && echo "$files" | git hash-object --stdin-paths; } | git hash-object --stdin | cut -c 1-12
}

# For run.json, as the workers have no git folder: '+' if the checkout differs.
commit() {
  local found
  found=$(git rev-parse --verify -q HEAD) || found=unknown
  echo "$found$([[ -z $(git status --porcelain) ]] || echo +)"
}

listed_files() {
  local file
  git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    [[ ! -f $file ]] || printf '%s\0' "$file"
  done
}

# The checkout's files as an archive. Each step for itself: `set -e` does not count under an `if`.
pack_code() {
  if [[ -n $flag_dry_run ]]; then
    echo "# the checkout's files, packed into $1"
    return 0
  fi
  if ! { mkdir -p build && listed_files | tar --null -T - -czf "$1.part" && mv "$1.part" "$1"; }; then
    die "the checkout could not be packed into $PWD/$1; see above"
  fi
}

# Code and environment to all workers, and what they need installed. Sets code; may be repeated.
# Returns 1 when that cannot be done, for the caller to find out why; trouble says what was met.
code="" trouble=""
set_up_workers() {
  git rev-parse --is-inside-work-tree >/dev/null 2>&1 || die "$PWD is not a git checkout"
  code=$(code_hash) || die "git cannot list the files of $PWD; see above"
  local archive="build/rpt-code-$code.tar.gz" status=0
  pack_code "$archive"
  say "copying the code to all workers"
  persist capture compute tpus tpu-vm scp "$archive" tpu_scripts/worker.sh "$flag_name:" \
    "${ssh_copy[@]}" || unreached || return 1
  if [[ -n $flag_env_file ]]; then
    persist capture compute tpus tpu-vm scp "$flag_env_file" "$flag_name:.rpt-env" \
      "${ssh_copy[@]}" || unreached || return 1
  fi
  say "installing on all workers (minutes on a new TPU)"
  persist on_workers all "bash worker.sh install $code" || status=$?
  grep -v '^rpt-installed' "$scratch/out" >&2 || true
  ((status != 0)) || return 0
  unreached || true
  ((status != 4)) || trouble="the installation failed on $(failed_workers); see above"
  return 1
}

unreached() {
  trouble="the workers of $flag_name cannot be reached: $last_error"
  return 1
}

# scp has no --ssh-flag; gcloud's own flags only.
ssh_copy=()
set_ssh_copy() {
  ssh_copy=("${where[@]}" --worker=all)
  [[ -z $flag_internal_ip ]] || ssh_copy+=(--internal-ip)
}

workers_installed() { grep -c '^rpt-installed' "$scratch/out" || true; }
