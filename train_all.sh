#!/usr/bin/env bash
# Train the grid of a recipe. The default, recipes/randlora.tsv, is 180 runs: RoBERTa-base and -large, seeds 1-5, six
# tasks, three adapters. Started again it goes on where it was, whatever ended it.
#
#   bash train_all.sh                        all of it, one run after the other; finished runs are skipped
#   JOBS=4 bash train_all.sh                 four at a time, through GNU parallel
#   DRY_RUN=1 bash train_all.sh              only print the commands, one a line, each whole: `| parallel` takes them
#   STATUS=1 bash train_all.sh               what is finished, running, failed and missing, and the time left
#   sbatch --array=1-180%16 train_all.sh     one line of the dry run a Slurm task
#   MISSING=1 bash train_all.sh              the numbers of the lines still to be run, for --array
#   bash train_all.sh --dataset_path glue    any flag of run_glue.py goes to every run, and overrides the recipe
#
# What to run, each a list with spaces (default: all that the recipe has):
#   RECIPE    one of recipes/ (default: randlora)
#   MODELS    models; one that the recipe doesn't have takes the rows of its first model
#   ADAPTERS  adapters; lora:8 is LoRA with another rank; none is full fine-tuning and needs --learning_rate
#   TASKS     tasks; one that the recipe doesn't have takes the row of its first task, if that serves several
#   SEEDS     seeds (default: 1 2 3 4 5)
# Where, and with what:
#   RESULTS   the root of the results (default: finetuned_results)
#   TAG       added to the adapter's folder, so that variants don't share one (TAG=_lr3e-4)
#   PYTHON    the interpreter (default: python)
# And how:
#   JOBS          runs at a time (default: one, without GNU parallel; with GPUS or JOBS_PER_GPU: as many as these give)
#   GPUS          the GPUs to use, as in 0,1 (default: all); each run sees one
#   JOBS_PER_GPU  runs that share a GPU (default: 1)
#   RETRIES       how often a run that failed is started again (default: 1)
#   OMP_NUM_THREADS  threads of a run (default with JOBS: the cores divided by JOBS)
#
# A run's folder is RESULTS/<adapter><rank>[_large]TAG/<seed>/<task>, as parse_results.py reads it; a model that the
# recipe doesn't have adds its name in place of _large. What the run prints goes to run.log there. Ctrl-C or SIGTERM
# lets the runs save a checkpoint and end. Exit status: 0 all is finished, or left to another sweep that works on it, 1 a
# run failed or was refused, 2 a mistake in the call, 75 or 130 stopped.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
if [ ! -f "$here/run_glue.py" ] && [ -n "${SLURM_JOB_ID:-}" ]; then # sbatch runs a copy in a folder of its own
    here=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null || true)
    here=$(sed -n 's|^ *Command=\(.*\)/train_all\.sh.*|\1|p' <<<"$here" | head -n 1)
    [[ $here == /* ]] || here=${SLURM_SUBMIT_DIR:-.}${here:+/$here} # it stands there as it was given to sbatch
fi
prefix=$here/
[ "$here" != . ] || prefix=
recipe=${prefix}recipes/${RECIPE:-randlora}.tsv
glue_tasks="cola mnli mrpc qnli qqp rte sst2 stsb wnli"
results=${RESULTS:-finetuned_results} python=${PYTHON:-python}

# shellcheck source=one_run.sh
source "${prefix}one_run.sh"

usage_error() {
    echo "train_all.sh: error: $1" >&2
    exit 2
}

known() { # NUMBER: the distinct values of a column of the recipe
    tail -n +2 "$recipe" | cut -f "$1" | tr ',' '\n' | awk '!seen[$0]++' | tr '\n' ' '
}

matches() { # ITEM VALUE KNOWN: does the row with VALUE serve ITEM? A stranger is served by the first known value.
    [ "$1" = "$2" ] || { [[ " $3" != *" $1 "* ]] && [[ $3 == "$2 "* ]]; }
}

check_wanted() { # refuse what would mix up folders or train with guessed values
    local item flag flags=' ' first_tasks
    for flag in "$@"; do
        [[ $flag != --* ]] || flag=${flag%%=*} flag=--${flag//-/_} flag=${flag/--__/--} flags+="$flag "
        case $flag in
        --model_name_or_path) usage_error "--model_name_or_path: set MODELS instead" ;;
        --adapter_name | --rank) usage_error "$flag: set ADAPTERS instead, e.g. ADAPTERS=lora:8" ;;
        --task_name) usage_error "--task_name: set TASKS instead" ;;
        --seed) usage_error "--seed: set SEEDS instead" ;;
        --output_dir) usage_error "--output_dir: set RESULTS or TAG instead" ;;
        esac
    done
    [[ "$* $results $python" != *[$'\t\n']* ]] || usage_error "a tab or a line break in a flag, RESULTS or PYTHON"
    for item in $wanted_adapters; do
        [[ " $known_adapters" == *" ${item%%:*} "* || $item == none ]] ||
            usage_error "ADAPTERS: no $item in $recipe; allowed are ${known_adapters% }, as in lora:8, and with randlora none"
        [[ $item != *:* || ${item#*:} =~ ^[1-9][0-9]*$ ]] || usage_error "ADAPTERS: $item is not <adapter>:<rank>"
        [[ $item != none || ${RECIPE:-randlora} == randlora ]] || usage_error "ADAPTERS=none: only with RECIPE=randlora"
        [[ $item != none || $flags == *" --learning_rate "* ]] ||
            usage_error "ADAPTERS=none: the recipe has no full fine-tuning, give --learning_rate"
    done
    first_tasks=$(sed -n 2p "$recipe" | cut -f 3)
    for item in $wanted_tasks; do
        [[ " $glue_tasks " == *" $item "* ]] || usage_error "TASKS: unknown task $item; allowed are $glue_tasks"
        [[ " $known_tasks" == *" $item "* || $first_tasks == *,* ]] ||
            usage_error "TASKS: $recipe has no values for $item; it has ${known_tasks% }"
    done
    for item in $seeds; do
        [[ $item =~ ^(0|[1-9][0-9]*)$ ]] || usage_error "SEEDS: $item is not a whole number"
    done
    for item in JOBS JOBS_PER_GPU; do
        [[ ${!item:-1} =~ ^[1-9][0-9]*$ ]] || usage_error "$item: ${!item} is not a number of runs"
    done
    [[ $retries =~ ^[0-9]+$ ]] || usage_error "RETRIES: $retries is not a whole number"
    [[ ${GPUS:-0} =~ ^[^\ ,]+(,[^\ ,]+)*$ ]] || usage_error "GPUS: $GPUS is not a list like 0,1,2"
}

print_grid() { # one line a run: its folder, a tab, its command
    local row adapter model tasks rank rate epochs batch length flags wanted_model wanted_adapter
    while IFS=$'\t' read -r -a row || [ ${#row[@]} -gt 0 ]; do # the last line may have no end
        read -r adapter model tasks rank rate epochs batch length <<<"${row[*]:0:8}"
        [ ${#row[@]} -eq 10 ] || usage_error "$recipe: the row of $adapter, $tasks needs 10 columns, none of them empty"
        flags=${row[8]}
        for wanted_model in $wanted_models; do
            matches "$wanted_model" "$model" "$known_models" || continue
            for wanted_adapter in $wanted_adapters; do
                matches "${wanted_adapter%%:*}" "$adapter" "$known_adapters" || continue
                print_runs "$@"
            done
        done
    done < <(tail -n +2 "$recipe")
}

print_runs() { # the lines of one row of the recipe; reads print_grid's variables
    local rank=$rank name=${wanted_adapter%%:*} size='' method seed task folder command line word
    method=(--adapter_name "$name")
    if [[ $flags == *--adapter_config* ]]; then
        [[ $wanted_adapter != *:* ]] || usage_error "ADAPTERS: $name has its settings in a file, not as a rank"
        method=()
    elif [ "$name" != none ]; then
        [[ $wanted_adapter != *:* ]] || rank=${wanted_adapter#*:}
        method+=(--rank "$rank")
    fi
    [ "$name" = none ] || name+=$rank
    case $wanted_model in
    FacebookAI/roberta-base) ;;
    FacebookAI/roberta-large) size=_large ;;
    *) size=_$(basename "$wanted_model") ;;
    esac
    for seed in $seeds; do
        for task in $wanted_tasks; do
            [[ ",$tasks," == *",$task,"* ]] || matches "$task" "${tasks%%,*}" "$known_tasks" || continue
            check_known
            folder=$results/$name$size${TAG:-}/$seed/$task
            # shellcheck disable=SC2206 # the recipe's flags are words
            command=("$python" "${prefix}run_glue.py" --model_name_or_path "$wanted_model" --task_name "$task" --do_train
                --do_eval --max_seq_length "$length" --per_device_train_batch_size "$batch" --learning_rate "$rate"
                --num_train_epochs "$epochs" $flags "${method[@]}" --seed "$seed" --output_dir "$folder" --resume "$@")
            command=("${command[@]//\{mnli\}/"${folder%/*}/mnli"}")
            command=("${command[@]//\{recipes\}/"${prefix}recipes"}")
            line=''
            for word in "${command[@]}"; do # printf %q may write $'...', which only bash reads
                [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
                line+="$word "
            done
            printf '%s\t%s\n' "$folder" "${line% }"
        done
    done
}

check_known() { # refuse a row of the recipe with a ?
    local columns unknown='' i previous=''
    [[ " ${row[*]} " == *" ? "* ]] || return 0
    IFS=$'\t' read -r -a columns < <(head -n 1 "$recipe")
    for i in {0..7}; do
        [ "${row[i]}" != "?" ] || unknown+=" ${columns[i]}"
    done
    for i in $flags; do
        [ "$i" != "?" ] || unknown+=" $previous"
        previous=$i
    done
    usage_error "$recipe: the row of $adapter, $model, $tasks has a ? for$unknown; narrow ADAPTERS, MODELS or TASKS"
}

retries=${RETRIES:-1}
cores=${SLURM_CPUS_ON_NODE:-$(nproc)} # what Slurm gave may be less than the machine has
[ -f "$recipe" ] || usage_error "RECIPE: no $recipe; there are $(cd "${prefix:-.}" && echo recipes/*.tsv)"
known_models=$(known 2) known_adapters=$(known 1) known_tasks=$(known 3)
wanted_models=${MODELS:-$known_models} wanted_adapters=${ADAPTERS:-$known_adapters} wanted_tasks=${TASKS:-$known_tasks}
seeds=${SEEDS:-1 2 3 4 5}
check_wanted "$@"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
print_grid "$@" >"$work/grid"
twice=$(cut -f 1 "$work/grid" | sort | uniq -d)
[ -z "$twice" ] || usage_error "two runs would share ${twice%%$'\n'*}: change MODELS, ADAPTERS, TASKS or SEEDS"
if [ -n "${DRY_RUN:-}" ]; then
    cut -f 2 "$work/grid"
    exit
elif [ -n "${MISSING:-}" ]; then
    PYTHONPATH=${prefix:-.}${PYTHONPATH:+:$PYTHONPATH} "$python" -m glue_peft.sweep missing "$work"
    exit
elif [ -n "${STATUS:-}" ]; then
    mapfile -t roots < <(cut -f 1 "$work/grid" | sed 's|/[^/]*/[^/]*$||' | awk '!seen[$0]++')
    mapfile -t tasks < <(cut -f 1 "$work/grid" | sed 's|.*/||' | awk '!seen[$0]++')
    read -r -a seed_list <<<"$seeds"
    [ ${#seed_list[@]} -gt 1 ] || seed_list=("${seed_list[0]}-${seed_list[0]}") # 7 alone would mean 1 to 7
    IFS=,
    "$python" "${prefix}parse_results.py" --status "${roots[@]}" "${seed_list[*]}" --tasks "${tasks[*]}"
    exit
elif [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    count=$(wc -l <"$work/grid")
    ((SLURM_ARRAY_TASK_ID >= 1 && SLURM_ARRAY_TASK_ID <= count)) ||
        usage_error "--array: the grid has the lines 1 to $count, no $SLURM_ARRAY_TASK_ID"
    sed -i -n "${SLURM_ARRAY_TASK_ID}p" "$work/grid"
fi
[ -s "$work/grid" ] || usage_error "the grid has no line at all"
touch "$work/begin"
PYTHONPATH=${prefix:-.}${PYTHONPATH:+:$PYTHONPATH} "$python" -m glue_peft.sweep plan "$work"

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ] && IFS=$'\t' read -r folder command <"$work/lines"; then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-$cores}}
    echo "line $SLURM_ARRAY_TASK_ID of the grid; its output goes to $folder/run.log"
    rm -rf "$work"
    mkdir -p "$folder" && exec >>"$folder/run.log" 2>&1
    printf '== %(%F %T)T %s\n' -1 "$folder"
    exec bash -c "exec $command" # so that Slurm's signals reach python itself
fi

run_in_turn() { # LINES
    local folder command
    while [ -z "$stopping" ] && IFS=$'\t' read -r -u 3 folder command; do
        run_one "$folder" "$command" || [ $? -ne 130 ] || stopping=130
    done 3<"$1"
}

run_parallel() { # LINES: hand them to GNU parallel
    [ -s "$1" ] && [ -z "$stopping" ] || return 0
    PARALLEL_SHELL=$BASH parallel --will-cite --jobs "$jobs" --colsep '\t' --termseq TERM,600000,KILL,25 \
        "${bar[@]}" --joblog "+$results/joblog.tsv" run_one "{1}" "{2}" "{%}" <"$1" &
    child=$!
    await
    if [ "$status" -eq 255 ] && [ -z "$stopping" ]; then
        echo "train_all.sh: GNU parallel failed, or somebody stopped it" >&2
        stopping=1
    fi
}

visible_gpus() { # as in 0,1
    if [ -n "${GPUS:-${CUDA_VISIBLE_DEVICES+set}}" ]; then
        echo "${GPUS:-$CUDA_VISIBLE_DEVICES}"
    elif command -v nvidia-smi >/dev/null; then
        seq -s , 0 $(($(nvidia-smi -L | grep -c '^GPU') - 1))
    fi
}

share_the_machine() { # set jobs, gpus and the threads of each run
    [[ $(parallel --version 2>/dev/null) == GNU* ]] ||
        usage_error "JOBS, GPUS and JOBS_PER_GPU need GNU parallel (conda install -c conda-forge parallel)"
    gpus=$(visible_gpus)
    local commas=${gpus//[^,]/}
    [ -n "$gpus" ] || [ -n "${JOBS:-}" ] || usage_error "JOBS_PER_GPU: there is no GPU here, set JOBS"
    jobs=${JOBS:-$(((${#commas} + 1) * ${JOBS_PER_GPU:-1}))}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > jobs ? cores / jobs : 1))}
    bar=() && [ ! -t 2 ] || bar=(--bar)
    mkdir -p "$results"
    [ -s "$results/joblog.tsv" ] ||
        printf 'Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n' >"$results/joblog.tsv"
    export work retries gpus
    export -f held elsewhere stop await run_one
}

child='' stopping=''
trap 'stop 130' INT
trap 'stop 75' TERM USR1
if [ -z "${JOBS:-}${GPUS:-}${JOBS_PER_GPU:-}" ]; then
    run_in_turn "$work/lines"
else
    share_the_machine
    grep -v -- --init_adapter_from "$work/lines" >"$work/first" || true
    grep -- --init_adapter_from "$work/lines" >"$work/second" || true # what starts from another run's adapter
    run_parallel "$work/first"
    run_parallel "$work/second"
fi

status=0
PYTHONPATH=${prefix:-.}${PYTHONPATH:+:$PYTHONPATH} "$python" -m glue_peft.sweep summary "$work" || status=$?
exit "${stopping:-$status}"
