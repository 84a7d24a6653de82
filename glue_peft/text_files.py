"""CSV and JSON files of a user's own, read as text: "001", "null" and "NA" are what they are in every column."""

import contextlib
import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets

from glue_peft.errors import UsageError, is_disk_full


def read_text_file(path: Path, cache_dir: str | None) -> datasets.Dataset:
    """Read a CSV or JSON file with every column as text, through the cache of `datasets`, keyed by the content.

    Raises UsageError, which names the file and the row (the first below a CSV's header is row 1).
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 (byte {error.start} is {content[error.start]:#04x})") from error
    rows = list(csv_rows(path, text) if path.suffix == ".csv" else json_rows(path, text))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        raise UsageError(f"{path}: has no rows")
    with faults_of_cache(cache_dir):
        return datasets.Dataset.from_generator(
            lambda: ({name: row.get(name) for name in columns} for row in rows),
            features=datasets.Features({name: datasets.Value("string") for name in columns}),
            cache_dir=cache_dir,
            fingerprint=hashlib.sha256(b"as text 1" + path.suffix.encode() + content).hexdigest()[:32],
        )


@contextlib.contextmanager
def faults_of_cache(cache_dir: str | None) -> Iterator[None]:
    """Raise UsageError where what the system refuses is the cache of `datasets`, and not a file that is read.

    A full disk stays what it is.
    """
    try:
        yield
    except (OSError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        if is_disk_full(cause):
            raise cause from error
        if getattr(cause, "errno", None) is None:  # pyarrow's own, of a file's content
            raise
        where = f"--cache_dir {cache_dir or datasets.config.HF_DATASETS_CACHE}"
        raise UsageError(f"{where}: can't be written or read: {cause.strerror}") from error


def csv_rows(path: Path, text: str) -> Iterable[dict[str, str]]:
    """Yield the rows of a CSV file; a column without a name, as pandas writes its index, is left out."""
    csv.field_size_limit(sys.maxsize)  # the library's own limit is 131,072 letters
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise UsageError(f"{path}: two columns have the same name: {', '.join(header)}")
        number = 0
        for fields in filter(None, reader):  # an empty line is none
            number += 1
            if len(fields) != len(header):
                raise UsageError(
                    f"{path}: row {number} has {len(fields)} fields, the header has {len(header)}: "
                    f"{','.join(fields)[:60]!r}; a text with commas goes in double quotes"
                )
            yield {name: field for name, field in zip(header, fields, strict=True) if name}
    except csv.Error as error:
        raise UsageError(f"{path}: not a CSV file: line {reader.line_num}: {error}") from error


def json_rows(path: Path, text: str) -> Iterable[dict[str, str | None]]:
    """Yield the rows of a JSON file: one object a line, or one list of objects; numbers stay as they are written."""
    numbers_as_text = {"parse_int": str, "parse_float": str, "parse_constant": str}
    try:
        try:
            content = json.loads(text, **numbers_as_text)
        except json.JSONDecodeError:  # several values: an object a line
            content = [json.loads(line, **numbers_as_text) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON, neither one object a line nor a list of objects: {error}") from error
    for number, row in enumerate(content if isinstance(content, list) else [content], start=1):
        if not isinstance(row, dict):
            raise UsageError(f"{path}: row {number} is not an object but {json.dumps(row)[:60]}")
        for name, value in row.items():
            if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise UsageError(
                    f"{path}: row {number}: {name!r} holds half a letter (a lone surrogate): {ascii(value)}"
                )
            if isinstance(value, dict | list):
                raise UsageError(f"{path}: row {number}: {name!r} is not a text or a number: {json.dumps(value)[:60]}")
        yield {name: str(value).lower() if isinstance(value, bool) else value for name, value in row.items()}
