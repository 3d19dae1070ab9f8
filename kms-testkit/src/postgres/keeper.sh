# Keeps a PostgreSQL cluster for a test: keeper.sh BIN DIR
#
# Reads one command a line and answers each with the process id of the server, or `none`:
#   start PORT         starts it
#   INT | QUIT         ends it, orderly or at once, and waits for the end
# When its input ends, which also a killed test does, it ends the server and removes DIR.
trap '' HUP INT TERM
bin=$1 dir=$2 pid=
while read -r command port; do
    case $command in
        start)
            "$bin/postgres" -D "$dir/data" -p "$port" -k "$dir/socket" </dev/null >>"$dir/log" 2>&1 &
            pid=$! ;;
        *)
            kill -s "$command" "$pid"
            wait "$pid"
            pid= ;;
    esac
    echo "${pid:-none}"
done
if [ -n "$pid" ]; then
    kill -s QUIT "$pid"
    # One that was stopped, or has no handler yet, does not hear it.
    { sleep 10; kill -s KILL "$pid"; } </dev/null >/dev/null 2>&1 &
    guard=$!
    wait "$pid"
    kill -s KILL "$guard"
fi
rm -rf "$dir"
