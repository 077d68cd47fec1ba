"""Shell that runs a cell and passes SIGTERM on to it: what the scripts of clusters share."""

# Runs "$@". A shell runs a trap only between commands, hence the cell behind and a loop: a signal
# that comes as dash begins to `wait` is not heard before the cell ends. A signal may also come when
# the cell runs already and its number is not yet noted. One that ends the first `wait` makes it say
# 143: the last one tells how the cell ended, or 127 where that was told before. Afterwards `status`
# is the cell's, and `told` is 1 where it was told to stop.
RUN_FORWARDING_SIGTERM = """\
cell= told= passed=
trap 'told=1; [ -z "$cell" ] || { passed=1; kill -TERM "$cell"; }' TERM
"$@" &
cell=$!
[ -z "$told" ] || [ -n "$passed" ] || kill -TERM "$cell"
while kill -0 "$cell" 2>/dev/null; do sleep 1; done
wait "$cell"; status=$?
[ -z "$told" ] || { wait "$cell"; last=$?; [ "$last" -eq 127 ] || status=$last; } 2>/dev/null
"""
