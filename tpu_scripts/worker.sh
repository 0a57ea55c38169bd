#!/usr/bin/env bash
# shellcheck disable=SC2329 # main calls the functions by name
# Runs on every worker of a TPU; launch.sh and its kin copy it there and call it over ssh.
#
#   worker.sh install CODE              unpack ~/rpt-code-CODE.tar.gz and install what it needs
#   worker.sh start CODE ENV ARGS...    python -m ARGS in the background, unless it runs already
#   worker.sh status                    one line: rpt-status worker=N state=... exit=... time=...
#   worker.sh log OFFSET                what the program printed from that byte on, and a trailer
#   worker.sh tail                      the last lines that it printed
#   worker.sh stop SECONDS              SIGTERM, and after SECONDS SIGKILL; 0: SIGKILL at once
#
# Everything may be repeated. Exit status 3: another program runs. 4: the installation failed.
# 255 is ssh's own and never ours: gcloud would run the command again.

set -euo pipefail

root="$HOME/rpt-launch"
run="$root/run"
metadata="http://metadata.google.internal/computeMetadata/v1/instance/attributes"

# As JAX numbers its processes on Cloud TPU.
worker_number() {
  curl -sf --max-time 5 -H 'Metadata-Flavor: Google' "$metadata/agent-worker-number" || hostname
}

# ---- install -------------------------------------------------------------------------------------

install() {
  local code="$root/code-$1" wanted
  mkdir -p "$root"
  if [[ ! -d $code ]]; then
    rm -rf "$code.part"
    mkdir "$code.part"
    tar -xzf "$HOME/rpt-code-$1.tar.gz" -C "$code.part"
    mv "$code.part" "$code"
  fi
  rm -f "$HOME/rpt-code-$1.tar.gz"
  wanted=$(cksum <"$code/setup.py")
  if [[ ! -f $root/installed || $(<"$root/installed") != "$wanted" ]]; then
    if ! install_packages "$code" >"$root/install.log" 2>&1; then
      echo "worker $(worker_number): the installation failed; the end of rpt-launch/install.log:"
      tail -n 20 "$root/install.log"
      exit 4
    fi
    printf '%s' "$wanted" >"$root/installed"
  fi
  echo "rpt-installed worker=$(worker_number)"
}

install_packages() {
  if [[ ! -x $root/venv/bin/python ]]; then
    make_environment || return 1
  fi
  "$root/venv/bin/python" -m pip install -e "$1[tpu]"
}

# The images of TPU VMs carry Python 3.10, which is too old for jax; uv brings another.
make_environment() {
  rm -rf "$root/venv"
  if python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python3 -m venv "$root/venv"
  else
    python3 -m pip install --user 'uv>=0.9,<1' &&
      python3 -m uv venv --seed --python 3.12 "$root/venv"
  fi
}

# ---- the program ---------------------------------------------------------------------------------

# Whether the supervisor lives. A number can be another process's after a reboot.
alive() {
  pid=$(cat "$run/pid" 2>/dev/null) || return 1
  grep -qs supervise "/proc/$pid/cmdline"
}

start() {
  local code="$root/code-$1" env=$2 line
  shift 2
  line=$(printf '%q ' "$@")
  mkdir -p "$run"
  exec 9>"$run/lock"
  flock 9
  if alive; then
    if [[ $(<"$run/command") == "$line" ]]; then
      echo "rpt-started worker=$(worker_number) already"
      return 0
    fi
    echo "worker $(worker_number) runs something else: python -m $(<"$run/command")"
    exit 3
  fi
  [[ ! -f $HOME/.rpt-env ]] || chmod 600 "$HOME/.rpt-env"
  rm -f "$run/ended" "$run/asked" "$run/log"
  printf '%s' "$line" >"$run/command"
  # A session of its own: the end of ssh does not end it. The copy in the code's folder stays as it
  # is while bash reads it; this one is written anew by every launch.
  setsid bash "$code/tpu_scripts/worker.sh" supervise "$code" "$env" "$@" \
    </dev/null >"$run/log" 2>&1 9>&- &
  echo $! >"$run/pid"
  # Known to be alive once it carries its own name.
  until alive || [[ -f $run/ended ]] || ! kill -0 "$!" 2>/dev/null; do sleep 0.01; done
  echo "rpt-started worker=$(worker_number) new"
}

# Waits for the program and writes down how it ended: 'exited', or 'stopped' if a signal came.
supervise() {
  local code=$1 env=$2
  child="" status=1 state=exited signalled=""
  shift 2
  trap write_end EXIT
  trap 'signalled=1; state=stopped; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM
  cd "$code"
  if [[ $env == env && -f $HOME/.rpt-env ]]; then
    set -a
    # shellcheck disable=SC1091 # the user's file
    . "$HOME/.rpt-env"
    set +a
  fi
  # The workers find each other; one worker alone is a run of one process.
  export PYTHONUNBUFFERED=1 PYTHONPATH="$code" RPT_HOSTS="${RPT_HOSTS:-auto}"
  "$root/venv/bin/python" -m "$@" &
  child=$!
  while true; do
    signalled="" status=0
    wait "$child" || status=$?
    # A signal ends wait, not the program: wait again.
    [[ -n $signalled ]] || break
  done
}

write_end() {
  printf '%s %s %s' "$state" "$status" "$(date +%s)" >"$run/ended.part"
  mv "$run/ended.part" "$run/ended"
}

# running; exited or stopped (with the exit status and the time); asked, when worker.sh stop did it;
# lost, when the host went down under it; none.
status() {
  local state="none" code=0 time=0
  # Alive first: the end is written before the supervisor is gone.
  if alive; then
    state=running
  elif [[ -f $run/ended ]]; then
    read -r state code time <"$run/ended" || true
    [[ ! -f $run/asked ]] || state=asked
  elif [[ -f $run/command ]]; then
    state=lost
    [[ ! -f $run/asked ]] || state=asked
  fi
  echo "rpt-status worker=$(worker_number) state=$state exit=$code time=$time"
}

# At most 1 MB. The trailer says where the next call goes on.
log() {
  local size=0
  [[ ! -f $run/log ]] || size=$(wc -c <"$run/log")
  ((size - $1 <= 1000000)) || size=$(($1 + 1000000))
  ((size <= $1)) || tail -c "+$(($1 + 1))" "$run/log" | head -c "$((size - $1))" || true
  printf '\nrpt-log %s\n' "$((size > $1 ? size : $1))"
}

stop() {
  if alive; then
    touch "$run/asked"
    ended_by_itself "$1" || kill -KILL -- "-$pid" 2>/dev/null || true
  fi
  status
}

# Within so many seconds of SIGTERM. A timeout of 0 would be none.
ended_by_itself() {
  [[ ! $1 =~ ^0+$ ]] || return 1
  kill -TERM "$pid" 2>/dev/null || true
  timeout "$1" tail --pid="$pid" -s 0.1 -f /dev/null
}

main() {
  case ${1:-} in
    install | start | status | log | stop) "$@" ;;
    tail) tail -n 30 "$run/log" 2>/dev/null || echo "it printed nothing" ;;
    supervise) supervise "${@:2}" ;;
    *) echo "error: see the comment at the top of $0" >&2 && exit 2 ;;
  esac
}

# In one piece, which bash reads before it runs it: the file may be written anew meanwhile.
{
  main "$@"
  exit
}
