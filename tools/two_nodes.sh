#!/usr/bin/env bash
# Run an MPI program on two virtual nodes of this machine, which communicate over TCP like nodes of a cluster.
#
#   . tools/env.sh
#   tools/two_nodes.sh [--rate RATE] -n RANKS COMMAND...
#
# RATE limits what each node sends, in the units of tc, such as 100mbit; it needs the kernel's queueing discipline tbf.
#
# The first half of the ranks is on node-a, the rest on node-b. Each node has its own host name, network, /dev/shm and
# /sys; they share files, processors and processes, and their network connects them only. With MPICH or Open MPI 5.
#
# The exit status is that of the program, or 77 where the kernel does not allow virtual nodes, as in many containers.
# Needs no root where users may create namespaces. Leaves nothing behind, however it ends; several may run at once.
set -euo pipefail

export PATH=$PATH:/usr/sbin:/sbin
NODE=(unshare --net --uts --ipc --mount)
FILES=/dev/shm/two_nodes # in the /dev/shm of node-a

main() {
  if [ "${1:-}" = --help ]; then usage && exit; fi
  if [ "${1:-}" = --rate ] && [ $# -gt 1 ]; then export RATE=$2 && shift 2; else unset RATE; fi
  if [ $# -lt 3 ] || [ "$1" != -n ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]] || [ "$2" = 1 ]; then usage >&2 && exit 2; fi
  trap 'stop "${!:-}"' EXIT # the process in the background, if there is one by then
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  local nodes=("${NODE[@]}" --pid --fork --mount-proc --kill-child=KILL)
  if [ $EUID != 0 ]; then nodes+=(--user --map-current-user --keep-caps); fi
  if ! type -P hostname nsenter setpriv >/dev/null ||
    ! "${nodes[@]}" "$BASH" -c 'mount -t sysfs sysfs /sys && ip link add type veth'; then
    echo "two_nodes.sh: no virtual nodes here: they need root, or a kernel that lets users create namespaces;" \
      "and iproute2 and util-linux" >&2
    exit 77
  fi
  # In the background, since bash handles no signal while it waits for a command in the foreground; but with standard
  # input and SIGINT, which bash takes from such commands. Standard error bypasses unshare, which reports being killed.
  env --default-signal=INT,QUIT setpriv --pdeathsig KILL "${nodes[@]}" "$BASH" "$0" node_a "${@:2}" \
    <&0 3>&2 2>/dev/null &
  wait $!
}

usage() {
  sed -n '2,/^set/ s/^# \{0,1\}//p' "$0"
}

# Kill process 1 of the nodes, the child of unshare: with it the kernel ends all processes there, and the nodes.
stop() {
  if [ -z "$1" ]; then return; fi
  local one=
  read -r one <"/proc/$1/task/$1/children" || true
  kill -KILL "${one:-$1}" || true
  wait "$1" || true
} 2>/dev/null

# --- on the nodes ---

# Runs as process 1 of the nodes.
node_a() {
  exec 2>&3 3>&-
  mount -t tmpfs -o mode=1777 tmpfs /dev/shm
  mkdir $FILES
  printf '%s\n' '127.0.0.1 localhost' '10.0.0.1 node-a' '10.0.0.2 node-b' >$FILES/hosts
  mount --bind $FILES/hosts /etc/hosts
  become node-a
  coproc "${NODE[@]}" "$BASH" "$0" node_b
  read -r <&"${COPROC[0]}" # linked
  connect 10.0.0.1
  read -r <&"${COPROC[0]}" # connected
  launch "$COPROC_PID" "$@"
}

node_b() {
  mount -t tmpfs -o mode=1777 tmpfs /dev/shm
  become node-b
  ip link add eth0 type veth peer name eth0 netns 1
  echo linked
  connect 10.0.0.2
  echo connected
  exec sleep infinity
}

become() {
  hostname "$1"
  mount -t sysfs sysfs /sys # so that it shows the network of this node
  ip link set lo up
}

connect() {
  ip address add "$1/24" dev eth0
  ip link set eth0 up
  # At most 64 KiB at once, the largest packet of a virtual link; enough room that TCP, and no loss, sets the pace.
  if [ -n "${RATE:-}" ]; then tc qdisc add dev eth0 root tbf rate "$RATE" burst 64k limit 4m; fi
  # MPI ignores a link that is not up yet.
  until [ "$(</sys/class/net/eth0/operstate)" = up ]; do sleep 0.01; done
}

# launch NODE_B_PID RANKS COMMAND...
launch() {
  local on_a=$((($2 + 1) / 2)) on_b=$(($2 / 2)) options
  # Replaces ssh, and is called as: ssh [OPTIONS] node-b WORDS...
  cat >$FILES/ssh <<SSH
#!$BASH
while [ "\$1" != node-b ]; do shift; done
exec nsenter --target $1 --net --uts --ipc --mount --wd="\$PWD" "$BASH" -c "\${*:2}"
SSH
  chmod +x $FILES/ssh
  if [[ $(mpirun --version) == *"Open MPI"* ]]; then
    printf '%s slots=%d\n' node-a $on_a node-b $on_b >$FILES/hostfile
    # PRTE names files by process numbers, which are the same in every run: keep them out of the shared /tmp.
    options=(--hostfile "$FILES/hostfile" --map-by slot:nooversubscribe --prtemca prte_tmpdir_base /dev/shm
      --prtemca plm_ssh_agent "$FILES/ssh" --prtemca plm_ssh_no_tree_spawn 1)
    export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1} # ranks may outnumber processors
  else
    printf '%s:%d\n' node-a $on_a node-b $on_b >$FILES/hostfile
    options=(-f "$FILES/hostfile" -iface eth0 -launcher ssh -launcher-exec "$FILES/ssh")
    export HWLOC_XMLFILE=                                    # else a killed Hydra leaves a file in /tmp
    export MPIR_CVAR_CH4_NETMOD=${MPIR_CVAR_CH4_NETMOD:-ofi} # the fastest over TCP
  fi
  mpirun -n "$2" "${options[@]}" "${@:3}"
}

case ${1:-} in
  node_a | node_b) "$@" ;;
  *) main "$@" ;;
esac
