#!/usr/bin/env bash
# The processes that hold a test cluster together. Each is the first process of a pid namespace, so that
# the kernel ends everything in it when it ends, however it ends: daemons, job steps, ranks, and their mounts.
#
#   keeper.sh around FOLDER      outside: waits for the cluster's end, then removes its folder
#   keeper.sh cluster FOLDER     the whole cluster; ends as soon as nobody holds its standard input's other end
#   keeper.sh node FOLDER NAME   one node of it: killing this process is pulling the node's plug
set -uo pipefail
role=$1 folder=$2
new_space=(unshare --pid --fork --kill-child=KILL --mount --mount-proc --uts)

named() { # named NAME: the host's name, and name resolution that asks no server
  hostname "$1"
  mount --bind "$folder/etc/hosts" /etc/hosts
  if [[ -e /etc/resolv.conf ]]; then mount --bind "$folder/etc/resolv.conf" /etc/resolv.conf; fi
}

case $role in
around)
  "${new_space[@]}" "$0" cluster "$folder"
  if [[ ! -e $folder/keep ]]; then rm -rf --one-file-system -- "$folder"; fi
  ;;
cluster)
  named ctl
  munged --foreground --force --num-threads=2 --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" </dev/null &
  while read -r command argument; do
    case $command in
    controller) slurmctld -D -c -f "$folder/etc/slurm.conf" </dev/null & ;;
    node) "${new_space[@]}" "$0" node "$folder" "$argument" </dev/null & ;;
    run) "$argument" </dev/null & ;;
    esac
  done
  ;;
node)
  named "$3"
  mount --bind "$folder/nodes/$3" "$folder/scratch" # a path that is the same on all nodes, and other storage
  slurmd -f "$folder/etc/slurm.conf" -N "$3"
  while :; do sleep 3600; done # bash collects the orphans of this namespace meanwhile
  ;;
esac
