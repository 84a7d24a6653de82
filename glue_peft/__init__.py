"""The map of the code: one line a module, in the order in which a run and then its results go through them.

errors             UsageError and its kin, and how a script ends: one line and an exit status
tasks              GLUE's tasks: columns, metrics, names, labels; the only list of them
flags              what another value of a flag means: nothing, another run, other scores (no torch, unlike arguments)
learning_rates     rates by the names of parameters, and the optimizer's groups for them
flag_effects       Trainer's flags: which have an effect, which lack a package, which hold what nobody can use
arguments          the flags of run_glue.py, and what is refused at once
run_folder         a run's folder: names, lock, atomic writes, checkpoints, failures
run_state          is the run in a folder finished, open, broken, or another one?
recipe             what a recipe says of itself: seeds, statistic, epoch, published rows
grid               train_all.sh's variables and a recipe -> the runs of the grid, each with its folder and command
preflight          every distinct command of a grid is parsed and checked before anything starts
tuning             TUNE=1: the search of each method's rate on held-out rows, and what it comes to
sweep_messages     what a sweep says: what will run, time left, how it ended, the command for the table
mps                NVIDIA's MPS, where a sweep's runs share a GPU
sweep              train_all.sh: the runs of a grid, in turn or several at once, or one line of a Slurm array
text_files         a user's own CSV and JSON files, every column as text
grouped_split      which rows --selection_fraction holds out: rows with the same texts together
data               files or hub -> splits -> task -> tokens
methods            PEFT's methods and settings: which a run can train as they are meant, and names that must fit
adalora            AdaLoRA's call after every step, and which of its ranks are saved
paper_bases        RandLoRA's random bases as its authors' code draws them
adapter_state      what an adapter stands on, by hash, and what its checkpoints hold beyond PEFT's own file
trials             what can only be tried, before training: does a method run on a model, can it be merged?
adapters           head, bases and counts; PEFT config files; adding, loading and starting from adapters; merging
fast_adapters      RandLoRA, VeRA, LoRA in weight space, all layers of a shape at once: the same results in less time
unpadded_encoder   BERT's and RoBERTa's encoders on the real tokens alone
metric             GLUE's metrics
eval_predictions   the logits of every validation row, of the last, the best and the selected epoch
progress           what one sees while a run trains
trainer            Trainer that stops on a signal, resumes to the bit and fails in one line
record             run.json: everything that made a run's numbers
model_card         README.md of a run's folder, and its upload to the hub
resuming           what a start makes of the folder that it finds: refuse it, skip the run, resume it or clear it
tables.read        a run's folder -> its score and record, or why it has none
tables.collapse    runs that learnt nothing or diverged
tables.results     the tables' options; folders of runs -> rows
tables.costs       parameters, files, time and memory of rows
tables.protocol    how rows were made: settings, starts, share of the data; a table's caption
tables.health      what is missing, wrong or odd among the runs
tables.estimates   means, medians and deviations of a few seeds, Welch's comparison of two, Holm's correction
tables.comparisons  rows against rows: one family of tests, verdicts, what so many seeds can show
tables.aggregates  further columns that sum up a row: ranks, interquartile mean, collapse rate
tables.equivalence  is a result the published one: equivalent, different, or not to be told
tables.published   the papers' rows (published_glue.csv beside it)
tables.published_seeds  published scores seed by seed (published_seeds.csv beside it)
tables.reproduce     a recipe's runs against its paper's numbers: parse_results.py --reproduce
tables.search      what a search of learning rates found: its runs, the rate chosen, smaller budgets
tables.search_figure  the figure of a search
tables.budgets     what the search behind each row cost and chose; verdicts between unequal budgets are withheld
tables.answers     what runs answered on each validation row: how far seeds agree, McNemar's test of two runs
tables.resampled   GLUE's metrics of many runs on many draws of validation rows
tables.bootstrap   intervals over validation rows and seeds
tables.records     the numbers of the tables, for CSV and JSON
tables.formats     tables as text, Markdown, LaTeX, CSV, JSON
tables.latex       LaTeX: a tabular, or a document
tables.status      how far a sweep is
tables.score_figures  the figures of a table: scores, and scores against costs
tables.page          --format html: one page of tables, figures, health, protocol, costs and commands
tables.figure_style  colours, marks and files of the figures
"""
