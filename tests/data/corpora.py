"""Small corpora in every format, all with the same documents."""

import gzip
import json
import pathlib

import array_record.python.array_record_module as array_record
import pyarrow as pa
import pyarrow.parquet as parquet
import zstandard

TEXTS = [f"document {i} of a fine corpus\né 漢 " + "word " * (i % 7) for i in range(60)]


def texts_of(source):
    return [source[index].text for index in range(len(source))]


def json_lines(texts=TEXTS) -> bytes:
    return b"".join(
        json.dumps({"text": text, "n": n}, ensure_ascii=n % 2 == 0).encode() + b"\n"
        for n, text in enumerate(texts)
    )


def write_jsonl(path: pathlib.Path, texts=TEXTS):
    raw = json_lines(texts)
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    elif path.suffix == ".zst":
        # Two frames, as tools that write in parallel make them.
        half = raw.index(b"\n", len(raw) // 2) + 1
        compress = zstandard.ZstdCompressor().compress
        raw = compress(raw[:half]) + compress(raw[half:])
    path.write_bytes(raw)


def write_parquet(path: pathlib.Path, texts=TEXTS):
    parquet.write_table(pa.table({"n": range(len(texts)), "text": texts}), path, row_group_size=16)


def write_arrow(path: pathlib.Path, texts=TEXTS):
    table = pa.table({"n": range(len(texts)), "text": texts})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=16)


def write_hf(folder: pathlib.Path, texts=TEXTS):
    """What `Dataset.save_to_disk` writes, as far as it is read."""
    folder.mkdir()
    write_arrow(folder / "data-00000-of-00002.arrow", texts[:30])
    write_arrow(folder / "data-00001-of-00002.arrow", texts[30:])
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))


def write_array_record(path: pathlib.Path, raws):
    writer = array_record.ArrayRecordWriter(str(path), "group_size:4")
    for raw in raws:
        writer.write(raw)
    writer.close()


def write_all(folder: pathlib.Path, texts=TEXTS) -> dict[str, str]:
    """Writes the corpus in every format; name of the format -> spec."""
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst"):
        write_jsonl(folder / name, texts)
    write_parquet(folder / "d.parquet", texts)
    write_hf(folder / "e", texts)
    write_array_record(folder / "f.array_record", [text.encode() for text in texts])
    write_array_record(folder / "g.array_record", json_lines(texts).splitlines())
    (folder / "h").mkdir()
    for number, text in enumerate(texts):
        (folder / "h" / f"{number:02d}.txt").write_text(text)
    (folder / "i.txt").write_text("\n\n".join(texts))
    (folder / "j.txt").write_text("<>".join(texts))
    return specs_of(folder)


def specs_of(folder: pathlib.Path) -> dict[str, str]:
    return {
        "jsonl": f"jsonl:{folder}/a.jsonl",
        "jsonl_gz": f"jsonl:{folder}/b.jsonl.gz",
        "jsonl_zst": f"jsonl:{folder}/c.jsonl.zst",
        "parquet": f"parquet:{folder}/d.parquet",
        "hf": f"hf:{folder}/e",
        "array_record": f"array_record:{folder}/f.array_record",
        "array_record_json": f"array_record:{folder}/g.array_record?form=json",
        "folder": f"folder:{folder}/h",
        "text": f"text:{folder}/h/*.txt",
        "text_separated": f"text:{folder}/j.txt?separator=<(>)",
        "text_blank": f"text:{folder}/i.txt?separator=blank",
    }
