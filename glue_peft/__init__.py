"""The map of the code: one line a module, in the order in which a run and then its results go through them.

errors             UsageError and its kin, and how a script ends: one line and an exit status
tasks              GLUE's tasks: columns, metrics, names, labels; the only list of them
flags              what another value of a flag means: nothing, another run, other scores (no torch, unlike arguments)
flag_effects       Trainer's flags: which have an effect, which lack a package, which hold what nobody can use
arguments          the flags of run_glue.py, and what is refused at once
run_folder         a run's folder: names, lock, atomic writes, checkpoints, failures
run_state          is the run in a folder finished, open, broken, or another one?
grid               train_all.sh's variables and a recipe -> the runs of the grid, each with its folder and command
preflight          every distinct command of a grid is parsed and checked before anything starts
tuning             TUNE=1: the search of each method's rate on held-out rows, and what it comes to
sweep_messages     what a sweep says: what will run, time left, how it ended, the command for the table
sweep              train_all.sh: the runs of a grid, in turn or several at once, or one line of a Slurm array
text_files         a user's own CSV and JSON files, every column as text
grouped_split      which rows --selection_fraction holds out: rows with the same texts together
data               files or hub -> splits -> task -> tokens
methods            PEFT's methods and settings: which a run can train as they are meant, and names that must fit
adalora            AdaLoRA's call after every step, and which of its ranks are saved
adapter_state      what an adapter stands on, by hash, and what its checkpoints hold beyond PEFT's own file
trials             what can only be tried, before training: does a method run on a model, can it be merged?
adapters           head, bases and counts; PEFT config files; adding, loading and starting from adapters; merging
fast_adapters      RandLoRA, VeRA and LoRA layers in weight space: the same results in less time
unpadded_encoder   BERT's and RoBERTa's encoders on the real tokens alone
metric             GLUE's metrics
trainer            Trainer that stops on a signal, resumes to the bit and fails in one line
record             run.json: everything that made a run's numbers
resuming           what a start makes of the folder that it finds: refuse it, skip the run, resume it or clear it
tables.read        a run's folder -> its score and record, or why it has none
tables.collapse    runs that learnt nothing or diverged
tables.results     the tables' options; folders of runs -> rows
tables.costs       parameters, files, time and memory of rows
tables.protocol    how rows were made: settings, starts, share of the data; a table's caption
tables.health      what is missing, wrong or odd among the runs
tables.paired_tests  means, deviations, and comparisons of rows paired by seed
tables.published   the papers' rows (published_glue.csv beside it)
tables.records     the numbers of the tables, for CSV and JSON
tables.formats     tables as text, Markdown, LaTeX, CSV, JSON
tables.status      how far a sweep is
tables.figure_style  colours, marks and files of the figures
"""
