#!/usr/bin/env bash
# Run a real Slurm, private to DIR and to loopback, with one virtual node for each NODE_PORT; needs no root.
#
#   tests/support/slurm_daemons.sh DIR CONTROLLER_PORT NODE_PORT...
#
# Prints "ready" when SLURM_CONF=DIR/slurm.conf accepts jobs. Then "kill nodeK" on standard input cuts the power of a
# node, and "boot nodeK" starts it again; the answer to each is "ready". Ends with its standard input, and therefore
# with the process at the other end, however that ends. All users must be allowed to enter DIR (munge).
# The exit status is 3 where the kernel does not allow virtual nodes.
set -euo pipefail

DIR=$1
CONTROLLER_PORT=$2
NODE_PORTS=("${@:3}")
CPUS=4 # of each node, by its own account
export SLURM_CONF=$DIR/slurm.conf PATH=$PATH:/usr/sbin:/sbin
PIDS=()
declare -A NODE_PIDS
NAMESPACES=(unshare --uts --mount --pid --ipc --fork --mount-proc --kill-child=KILL)
if [ "$(id -u)" != 0 ]; then NAMESPACES+=(--user --map-current-user --keep-caps); fi

main() {
  exec 3<&0 </dev/null # the daemons must not read the input that keeps this script alive
  "${NAMESPACES[@]}" mount -t tmpfs tmpfs /dev/shm || exit 3 # as in many containers; unshare has said why
  trap stop EXIT
  write_configuration
  start munged --foreground --key-file="$DIR/munge/key" --socket="$DIR/munge/socket" \
    --pid-file="$DIR/munge/pid" --log-file="$DIR/munge/log" --seed-file="$DIR/munge/seed"
  start slurmctld -D -c
  for node in "${!NODE_PORTS[@]}"; do start_node "node$((node + 1))"; done
  wait_until_idle ${#NODE_PORTS[@]}
  echo ready
  while read -r command node <&3; do
    "${command}_node" "$node"
    echo ready
  done
}

start() {
  "$@" >>"$DIR/log/$1" 2>&1 3<&- &
  PIDS+=($!)
}

# A node has its own host name, processes and shared memory, as on a cluster. Its bash is process 1, which reaps the
# orphaned processes of jobs; it dies with unshare, and all processes of the node with it.
start_node() {
  mkdir -p "$DIR/tmp/$1"
  # shellcheck disable=SC2016 # expanded inside
  start "${NAMESPACES[@]}" bash -euc '
    hostname "$2"
    mount --bind "$1/hosts" /etc/hosts
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    slurmd -D -N "$2" &
    wait' bash "$DIR" "$1"
  NODE_PIDS[$1]=$!
}

kill_node() {
  kill -KILL "${NODE_PIDS[$1]}"
}

# Drained at first: slurmctld still has to kill the former jobs of the node, and a requeued job, which has the same
# number, must not start there before.
boot_node() {
  rm -rf "$DIR/tmp/$1" "$DIR/spool/$1"
  scontrol update nodename="$1" state=drain reason=boot
  start_node "$1"
  sleep 4
  scontrol update nodename="$1" state=resume
}

wait_until_idle() {
  local attempt
  for ((attempt = 0; attempt < 300; attempt++)); do
    if [ "$(timeout 5 sinfo -h -N -o %T 2>/dev/null | grep -c idle)" = "$1" ]; then return; fi
    sleep 0.1
  done
  echo "slurm_daemons.sh: the nodes are not idle after 30 s; the logs end with" >&2
  tail --lines=5 "$DIR"/log/* >&2
  exit 1
}

stop() {
  kill -KILL "${PIDS[@]}" || true
  wait
} 2>/dev/null # bash reports each killed process

write_configuration() {
  mkdir "$DIR"/{log,state,spool,tmp}
  mkdir -m 711 "$DIR/munge"
  (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge/key")
  # shellcheck disable=SC2016 # expanded by Slurm for each task
  printf '#!/bin/sh\necho "export TMPDIR=%s/tmp/$SLURMD_NODENAME"\n' "$DIR" >"$DIR/taskprolog"
  chmod +x "$DIR/taskprolog"
  echo "127.0.0.1 localhost $(hostname) $(seq -s ' ' -f 'node%g' ${#NODE_PORTS[@]})" >"$DIR/hosts"
  {
    settings
    for node in "${!NODE_PORTS[@]}"; do
      echo "NodeName=node$((node + 1)) NodeHostname=localhost NodeAddr=127.0.0.1 Port=${NODE_PORTS[node]} CPUs=$CPUS"
    done
    echo "PartitionName=test Nodes=ALL Default=YES"
  } >"$SLURM_CONF"
}

settings() {
  cat <<CONF
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort=$CONTROLLER_PORT
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
# With credentials that expire soon, a requeued job starts after 6 s instead of 2 minutes.
AuthInfo=socket=$DIR/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
# PMIx and Open MPI name files by process numbers, which are the same on all virtual nodes.
TmpFS=$DIR/tmp/%n
TaskProlog=$DIR/taskprolog
SlurmctldPidFile=$DIR/state/slurmctld.pid
SlurmdPidFile=$DIR/state/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MailProg=/bin/true
KillWait=5
# A lost node is marked down after some 20 s, and used again as soon as it is back.
SlurmctldTimeout=10
SlurmdTimeout=10
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
CONF
}

main
