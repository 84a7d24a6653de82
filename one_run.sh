# shellcheck shell=bash disable=SC2154 # work, retries and gpus are the caller's
# One run of a sweep: its log, its GPU, another try where it failed, and its end on a signal. Read by train_all.sh, and
# exported to the shells of GNU parallel, which start it too. Wants $work, $retries and, with a slot, $gpus.

held() { # FOLDER: is a run working in it?
    # flock says 1 where the lock is taken; where it can't work at all, the run itself decides.
    (exec 9<"$1/run.lock" && { flock -s -n 9; [ $? -eq 1 ]; }) 2>/dev/null
}

elsewhere() { # FOLDER: does another sweep work in it, or has it finished it since this one looked?
    [ "$1/run.json" -nt "$work/begin" ] || held "$1"
}

stop() { # on a signal: the run saves a checkpoint and ends, and no other starts
    stopping=$1 signalled=1
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}

await() { # wait for $child and put its exit status into $status; a signal cuts bash's wait short
    status=0 signalled=''
    wait "$child" || status=$?
    while [ -n "$signalled" ]; do
        status=0 signalled=''
        wait "$child" || status=$?
    done
    child=''
}

run_one() { # FOLDER COMMAND [SLOT]: one run; its log is in its folder, its outcome a line of $work/outcomes
    local folder=$1 command=$2 slot=${3:-} left=$((retries + 1)) log=$1/run.log gpu_list outcome shown=''
    child='' stopping=${stopping:-} status=75
    trap 'stop 130' INT
    trap 'stop 75' TERM
    if elsewhere "$folder"; then
        printf 'elsewhere\t%s\t\n' "$folder" >>"$work/outcomes"
        return 0
    fi
    if [ -n "$slot" ] && [ -n "$gpus" ]; then
        IFS=, read -r -a gpu_list <<<"$gpus"
        export CUDA_VISIBLE_DEVICES=${gpu_list[(slot - 1) % ${#gpu_list[@]}]}
    fi
    if ! { mkdir -p "$folder" && : >>"$log"; } 2>/dev/null; then
        exec 4>&1 # the run itself will say what is wrong with its folder
    elif [ -n "$slot" ]; then
        exec 4>>"$log"
    else
        exec 4> >(trap '' INT TERM && exec tee -a "$log") && shown=$!
    fi
    while [ "$left" -gt 0 ] && [ -z "$stopping" ]; do
        printf '== %(%F %T)T %s\n' -1 "$folder" >&4
        bash -c "exec $command" >&4 2>&1 4>&- &
        child=$!
        [ -z "$stopping" ] || kill -TERM "$child" # the signal came just before there was a child
        await
        echo "== ended with exit status $status" >&4
        case $status in 0 | 2 | 75 | 130 | 143) left=0 ;; *) left=$((left - 1)) ;; esac
        ! grep -qs '"kind": "diverged"' "$folder/failure.json" || left=0 # it would again
    done
    exec 4>&-
    [ -z "$shown" ] || wait "$shown"
    case $status in
    0) outcome='done' ;;
    75 | 130 | 143) outcome=stopped ;;
    2) if elsewhere "$folder"; then outcome=elsewhere; else outcome=failed; fi ;;
    *) outcome=failed ;;
    esac
    printf '%s\t%s\t%s\n' "$outcome" "$folder" "$status" >>"$work/outcomes"
    [ -z "$slot" ] || echo "$outcome: $folder"
    return "$status"
}
