"""Shell that runs a cell and passes SIGTERM on to it: what the scripts of clusters share."""

# Runs "$@". A shell runs a trap only between commands, hence the cell behind and `wait`, which a
# signal ends early, with 143, be the cell over by then or not: the last `wait` tells how it ended,
# or 127 where that was told before. Afterwards `status` is the cell's, and `told` is 1 where it was
# told to stop. A signal may come when the cell runs already and its number is not yet noted.
RUN_FORWARDING_SIGTERM = """\
cell= told= passed=
trap 'told=1; [ -z "$cell" ] || { passed=1; kill -TERM "$cell"; }' TERM
"$@" &
cell=$!
[ -z "$told" ] || [ -n "$passed" ] || kill -TERM "$cell"
wait "$cell"; status=$?
while kill -0 "$cell" 2>/dev/null; do wait "$cell"; status=$?; done
[ -z "$told" ] || { wait "$cell"; last=$?; [ "$last" -eq 127 ] || status=$last; } 2>/dev/null
"""
