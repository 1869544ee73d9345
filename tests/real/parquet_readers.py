"""Reads blocks of every version with readers of Parquet that are not ours, and compares with what was sent.

    cargo run -p rubato-storage --example blocks -- FOLDER
    python parquet_readers.py FOLDER

pyarrow reads every column and decodes it to spans; duckdb reads every column and counts.
"""

import json
import pathlib
import sys

import duckdb
import pyarrow.parquet as parquet

VERSIONS = ["vParquet2", "vParquet3", "vParquet4", "vParquet5"]


def items(value):
    """The elements of a list, whether it is a LIST group or a repeated field."""
    return value if value is not None else []


def present(value):
    """How many values an attribute's own column has: one or none, in vParquet5 a list."""
    return len(value) if isinstance(value, list) else int(value is not None)


def spans_of(row):
    return [span for resource in items(row["rs"]) for scope in items(resource["ss"]) for span in items(scope["Spans"])]


def trace(row):
    """A row in the words of expected.ndjson."""
    spans, attributes, events = [], 0, 0
    for span in spans_of(row):
        own = [span.get(name) for name in ("HttpMethod", "HttpUrl", "HttpStatusCode")]
        own += (span.get("DedicatedAttributes") or {}).values()
        attributes += len(items(span["Attrs"])) + sum(map(present, own))
        events += len(items(span["Events"]))
        spans.append([
            span["SpanID"].hex(),
            span["ParentSpanID"].hex(),
            span["Name"],
            span["StartTimeUnixNano"],
            span["DurationNano"],
            span["Kind"],
        ])
    return {"trace": row["TraceID"].hex(), "spans": sorted(spans), "attributes": attributes, "events": events}


def main(folder):
    expected = [json.loads(line) for line in (folder / "expected.ndjson").read_text().splitlines()]
    for line in expected:
        line["spans"].sort()
    for version in VERSIONS:
        path = folder / version / "data.parquet"
        meta = json.loads((folder / version / "meta.json").read_text())
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        assert file.num_row_groups == meta["totalRecords"] > 1, version
        rows = file.read().to_pylist()
        assert [row["TraceIDText"] for row in rows] == [line["trace"].lstrip("0") for line in expected], version
        for row, line in zip(rows, expected, strict=True):
            assert trace(row) == line, f"{version}: {line['trace']}"
            start = min(span["StartTimeUnixNano"] for span in spans_of(row))
            assert row["StartTimeUnixNano"] == start, f"{version}: {line['trace']}"
            if version == "vParquet5":
                scopes = [scope for resource in row["rs"] for scope in resource["ss"]]
                assert all(scope["SpanCount"] == len(scope["Spans"]) for scope in scopes), line["trace"]

        table = duckdb.read_parquet(str(path))
        # Every column of every row is decoded; the sum of durations is that of pyarrow.
        assert len(table.fetchall()) == len(expected), version
        ((duration,),) = table.aggregate("sum(DurationNano)").fetchall()
        assert duration == sum(row["DurationNano"] for row in rows), version
        print(f"{version}: {len(rows)} rows in {file.num_row_groups} row groups, {len(file.schema)} columns, read as sent")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
