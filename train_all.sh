#!/bin/sh
# Train the grid of a recipe. The default, recipes/randlora.tsv, is 180 runs: RoBERTa-base and -large, seeds 1-5, six
# tasks, three adapters. Started again it goes on where it was, whatever ended it.
#
#   bash train_all.sh                        all of it, one run after the other; finished runs are skipped
#   JOBS=4 bash train_all.sh                 four at a time
#   DRY_RUN=1 bash train_all.sh              only print the commands, one complete command a line
#   STATUS=1 bash train_all.sh               what is finished, running, failed and missing, and the time left
#   TUNE=1 bash train_all.sh                 first search each method's learning rate, with equal effort
#   sbatch --array=1-180%16 train_all.sh     one line of the dry run a Slurm task
#   MISSING=1 bash train_all.sh              the numbers of the lines still to be run, for --array
#   bash train_all.sh --dataset_path glue    any flag of run_glue.py goes to every run, and overrides the recipe
#   bash train_all.sh --help                 this text
#
# All commands, seeds aside, are checked before anything starts; a mistake is one line, and nothing has started.
#
# What to run, each a list with spaces or commas (default: all that the recipe has):
#   RECIPE    one of recipes/, or the path of a .tsv file (default: randlora)
#   MODELS    models; one that the recipe doesn't have takes the rows of its first model
#   ADAPTERS  adapters; lora:8 is LoRA with another rank; path/to/hra.json is a method of PEFT by its config file, in the
#             folder hra, with the values of the recipe's first adapter; none is full fine-tuning, which needs a rate
#             (the recipe's, --learning_rate, or with TUNE LEARNING_RATES)
#   TASKS     tasks; one that the recipe doesn't have takes the row of its first task, if that serves several; with
#             --train_file or --dataset_name a name of yours for those data (TASKS=messages)
#   SEEDS     seeds and ranges of seeds (default: the recipe's)
# With TUNE=1, for each model, adapter and task (the final SEEDS are 1-8 then):
#   RATE_FACTORS        what each adapter's own rate is multiplied by (default: 0.1 0.3 1 3 10)
#   LEARNING_RATES      in place of that, rates for all; a recipe's rate may be a list too (RECIPE=tuned)
#   SEARCH_SEEDS        seeds of the search (default: 101-103)
#   SELECTION_FRACTION  the share of the training rows on which it is scored (default: 0.1)
# Where, and with what:
#   RESULTS   the root of the results (default: finetuned_results)
#   TAG       added to the adapter's folder, so that variants don't share one (TAG=_lr3e-4)
#   PYTHON    the interpreter, 3.11 or later (default: python)
# And how:
#   JOBS          runs at a time (default: one; with GPUS or JOBS_PER_GPU: as many as these give)
#   GPUS          the GPUs to use, as in 0,1 or 0-3 (default: all); each run sees one
#   JOBS_PER_GPU  runs that share a GPU (default: 1)
#   MPS           0: without NVIDIA's MPS, through which runs that share a GPU compute at the same time
#   RETRIES       how often a run that failed is started again (default: 1)
#   OMP_NUM_THREADS  threads of a run (default with JOBS: the cores divided by JOBS)
#
# A run's folder is RESULTS/<adapter><rank>[_large]TAG/<seed>/<task>, as parse_results.py reads it; a model that the
# recipe doesn't have adds its name in place of _large. What the run prints goes to run.log there; RESULTS/joblog.tsv
# has the start, seconds and exit status of every one. Ctrl-C, SIGTERM, SIGUSR1 and a closed terminal let the runs save
# a checkpoint and end. Exit status: 0 all is finished, or left to another sweep that works on it, 1 a run failed or
# was refused, 2 a mistake in the call, 75 or 130 stopped.
set -eu

for word in "$@"; do
    case $word in
    -h | --help)
        sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
        exit
        ;;
    esac
done
here=$(dirname "$0")
if [ ! -f "$here/run_glue.py" ] && [ -n "${SLURM_JOB_ID:-}" ]; then # sbatch runs a copy in a folder of its own
    here=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's|^ *Command=\(.*\)/train_all\.sh.*|\1|p')
    here=$(printf '%s\n' "$here" | head -n 1)
    case $here in
    /*) ;;
    *) here=${SLURM_SUBMIT_DIR:-.}${here:+/$here} ;; # it stands there as it was given to sbatch
    esac
fi
here=$(CDPATH='' cd -- "$here" && pwd)
python=${PYTHON:-python}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "train_all.sh: error: PYTHON: $python is not a Python of version 3.11 or later" >&2
    exit 2
fi
# -P: no module of the folder in which this was called comes before the package's or Python's own.
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} exec "$python" -P -m glue_peft.sweep "$@"
