#!/usr/bin/env bash
# Train the grid of recipes/randlora.tsv: RoBERTa-base and -large, seeds 1-5, six tasks, three adapters, 180 runs.
#
#   bash train_all.sh                        all of it, one run after the other; finished runs are skipped
#   DRY_RUN=1 bash train_all.sh              only print the commands, one a line
#   bash train_all.sh --dataset_path glue    any flag of run_glue.py goes to every run, and overrides the recipe
#
# What to run, each a list with spaces (default: all that the recipe has):
#   MODELS    models; one that the recipe doesn't have takes the rows of its first model
#   ADAPTERS  adapters; lora:8 is LoRA with another rank; none is full fine-tuning and needs --learning_rate
#   TASKS     tasks; one that the recipe doesn't have takes the row of its first task
#   SEEDS     seeds (default: 1 2 3 4 5)
# And where, and with what:
#   RESULTS   the root of the results (default: finetuned_results)
#   TAG       added to the adapter's folder, so that variants don't share one (TAG=_lr3e-4)
#   PYTHON    the interpreter (default: python)
#
# A run's folder is RESULTS/<adapter><rank>[_large]TAG/<seed>/<task>, as parse_results.py reads it; a model that the
# recipe doesn't have adds its name in place of _large.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
script=$here/run_glue.py
[ "$here" != . ] || script=run_glue.py
recipe=$here/recipes/randlora.tsv
glue_tasks="cola mnli mrpc qnli qqp rte sst2 stsb wnli"
results=${RESULTS:-finetuned_results}

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
    local item flag
    for flag in "$@"; do
        case ${flag%%=*} in
        --model_name_or_path) usage_error "--model_name_or_path: set MODELS instead" ;;
        --adapter_name | --rank) usage_error "$flag: set ADAPTERS instead, e.g. ADAPTERS=lora:8" ;;
        --task_name) usage_error "--task_name: set TASKS instead" ;;
        --seed) usage_error "--seed: set SEEDS instead" ;;
        --output_dir) usage_error "--output_dir: set RESULTS or TAG instead" ;;
        esac
    done
    for item in $wanted_adapters; do
        [[ " $known_adapters" == *" ${item%%:*} "* || $item == none ]] ||
            usage_error "ADAPTERS: no $item in $recipe; allowed are ${known_adapters}none, each with :RANK"
        [[ $item != *:* || ${item#*:} =~ ^[1-9][0-9]*$ ]] || usage_error "ADAPTERS: $item is not <adapter>:<rank>"
        [[ $item != none || " $*" == *" --learning_rate"* ]] ||
            usage_error "ADAPTERS=none: the recipe has no full fine-tuning, give --learning_rate"
    done
    for item in $wanted_tasks; do
        [[ " $glue_tasks " == *" $item "* ]] || usage_error "TASKS: unknown task $item; allowed are $glue_tasks"
    done
    for item in $seeds; do
        [[ $item =~ ^[0-9]+$ ]] || usage_error "SEEDS: $item is not a whole number"
    done
}

print_grid() { # one line a run: its folder, a tab, its command
    local adapter model tasks rank rate epochs batch length flags wanted_model wanted_adapter
    tail -n +2 "$recipe" | while IFS=$'\t' read -r adapter model tasks rank rate epochs batch length flags _; do
        for wanted_model in $wanted_models; do
            matches "$wanted_model" "$model" "$known_models" || continue
            for wanted_adapter in $wanted_adapters; do
                matches "${wanted_adapter%%:*}" "$adapter" "$known_adapters" || continue
                print_runs "$@"
            done
        done
    done
}

print_runs() { # the lines of one row of the recipe; reads print_grid's variables
    local name=${wanted_adapter%%:*} size='' method seed task folder command
    method=(--adapter_name "$name")
    if [ "$name" != none ]; then
        [[ $wanted_adapter != *:* ]] || rank=${wanted_adapter#*:}
        method+=(--rank "$rank")
        name+=$rank
    fi
    case $wanted_model in
    FacebookAI/roberta-base) ;;
    FacebookAI/roberta-large) size=_large ;;
    *) size=_$(basename "$wanted_model") ;;
    esac
    for seed in $seeds; do
        for task in $wanted_tasks; do
            [[ ",$tasks," == *",$task,"* ]] || matches "$task" "${tasks%%,*}" "$known_tasks" || continue
            folder=$results/$name$size${TAG:-}/$seed/$task
            # shellcheck disable=SC2206 # the recipe's flags are words
            command=("${PYTHON:-python}" "$script" --model_name_or_path "$wanted_model" --task_name "$task" --do_train
                --do_eval --max_seq_length "$length" --per_device_train_batch_size "$batch" --learning_rate "$rate"
                --num_train_epochs "$epochs" $flags "${method[@]}" --seed "$seed" --output_dir "$folder" --resume "$@")
            printf '%s\t%s\n' "$folder" "$(printf '%q ' "${command[@]}" | sed 's/ $//')"
        done
    done
}

known_models=$(known 2) known_adapters=$(known 1) known_tasks=$(known 3)
wanted_models=${MODELS:-$known_models} wanted_adapters=${ADAPTERS:-$known_adapters} wanted_tasks=${TASKS:-$known_tasks}
seeds=${SEEDS:-1 2 3 4 5}
check_wanted "$@"
if [ -n "${DRY_RUN:-}" ]; then
    print_grid "$@" | cut -f 2
    exit
fi

finished=0 skipped=0 failed=()
while IFS=$'\t' read -r -u 3 folder command; do
    if [ -f "$folder/run.json" ]; then
        skipped=$((skipped + 1))
        continue
    fi
    echo "== $folder"
    status=0
    bash -c "$command" || status=$?
    [ "$status" -ne 130 ] || exit 130 # Ctrl-C ends the sweep, not only the run
    if [ "$status" -eq 0 ]; then finished=$((finished + 1)); else failed+=("$folder (exit status $status)"); fi
done 3< <(print_grid "$@")

echo "train_all.sh: $finished runs done, $skipped skipped because they were finished, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[@]}" && exit 1; }
