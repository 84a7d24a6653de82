"""Make tiny models and GLUE-shaped data that need no network: `python tests/make_tiny.py FOLDER`.

FOLDER/roberta and FOLDER/bert are models of random weights with a tokenizer that knows the data's words; FOLDER/glue
has nyu-mll/glue's layout. The labels follow from single words, so that a few steps of training beat chance clearly.
Used by `make smoke` and by the tests.
"""

import random
import sys
from pathlib import Path

import datasets
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

# One group of words a label; the other words carry no label.
CLUES = [["awful", "dull", "stale"], ["great", "fresh", "bright"], ["plain", "usual", "even"]]
GRADES = [["never"], ["hardly"], ["partly"], ["mostly"], ["nearly"], ["wholly"]]  # STS-B's scores 0 to 5
FILLERS = "the a film story man woman city river walks sees takes gives near under old new red blue with and".split()
SHAPES = {
    "cola": (("sentence",), ["unacceptable", "acceptable"]),
    "sst2": (("sentence",), ["negative", "positive"]),
    "mrpc": (("sentence1", "sentence2"), ["not_equivalent", "equivalent"]),
    "rte": (("sentence1", "sentence2"), ["entailment", "not_entailment"]),
    "qnli": (("question", "sentence"), ["entailment", "not_entailment"]),
    "mnli": (("premise", "hypothesis"), ["entailment", "neutral", "contradiction"]),
    "ax": (("premise", "hypothesis"), ["entailment", "neutral", "contradiction"]),  # test rows only
    "stsb": (("sentence1", "sentence2"), None),
}
SPECIAL = {
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "bert": ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"],
}


def make_sentence(rng: random.Random, clues: list[str]) -> str:
    """A few words in random order, about every third of them one of the clues."""
    length = rng.randint(2, 14)
    words = rng.choices(FILLERS, k=length) + (rng.choices(clues, k=1 + length // 3) if clues else [])
    rng.shuffle(words)
    return " ".join(words)


def make_split(task: str, rows: int, seed: int, labelled: bool) -> datasets.Dataset:
    """Rows of one split, with the columns, types and label names of the hub's."""
    rng = random.Random(f"{task} {seed}")
    columns, names = SHAPES[task]
    groups = GRADES if names is None else CLUES[: len(names)]
    content: dict[str, list] = {name: [] for name in (*columns, "label", "idx")}
    for idx in range(rows):
        label = rng.randrange(len(groups))
        for name in columns:
            content[name].append(make_sentence(rng, groups[label] if name == columns[-1] else []))
        content["label"].append((float(label) if names is None else label) if labelled else -1)
        content["idx"].append(idx)
    label_feature = datasets.Value("float32") if names is None else datasets.ClassLabel(names=names)
    features = {name: datasets.Value("string") for name in columns}
    features |= {"label": label_feature, "idx": datasets.Value("int32")}
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def make_glue(folder: Path, rows: int = 512) -> None:
    """Write every task's splits as parquet files."""
    for task in SHAPES:
        endings = ["_matched", "_mismatched"] if task == "mnli" else [""]
        splits = {}
        if task != "ax":
            splits = {"train": (rows, True)}
            splits |= {f"validation{ending}": (rows // 4, True) for ending in endings}
        splits |= {f"test{ending}": (rows // 8, False) for ending in endings}
        (folder / task).mkdir(parents=True, exist_ok=True)
        for seed, (split, (count, labelled)) in enumerate(splits.items()):
            dataset = make_split(task, count, seed, labelled)
            dataset.to_parquet(folder / task / f"{split}-00000-of-00001.parquet")


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words with the special tokens of RoBERTa or BERT."""
    start, pad, end, unknown, mask = SPECIAL[kind]
    words = sorted({word for group in [*CLUES, *GRADES, FILLERS] for word in group})
    vocabulary = {word: i for i, word in enumerate([*SPECIAL[kind], *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = f"{start} $A {end} {end} $B {end}" if kind == "roberta" else f"{start} $A {end} $B:1 {end}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", pair=pair, special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token=start,
        bos_token=start,
        pad_token=pad,
        sep_token=end,
        eos_token=end,
        unk_token=unknown,
        mask_token=mask,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"] + ["token_type_ids"] * (kind == "bert"),
    )


def make_model(kind: str, folder: Path) -> None:
    """Save a model of random weights, two layers wide enough to learn the clues, with its tokenizer."""
    tokenizer = make_tokenizer(kind)
    config_class, model_class = {
        "roberta": (RobertaConfig, RobertaModel),
        "bert": (BertConfig, BertModel),
    }[kind]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=66 if kind == "roberta" else 64,
        type_vocab_size=1 if kind == "roberta" else 2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,  # weights of 0.02 would leave the rows nearly alike at this width
    )
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(folder: Path) -> None:
    """Write both models and all tasks into `folder`."""
    make_glue(folder / "glue")
    for kind in SPECIAL:
        make_model(kind, folder / kind)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
