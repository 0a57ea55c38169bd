"""seqio: sources, a Task or Mixture that the user's module registers.

Its examples are streamed once into the cache, in seqio's own order without shuffling, one epoch. A
Mixture is sampled by its rates with seqio's fixed seed, and ends where seqio ends it: when the
first of its tasks is used up.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from data import extras, fields, records, sources_prepared


def open_seqio(path: str, options: dict[str, str], guard: records.Guard) -> records.Source:
    """`name` of a task or mixture, registered by `module=package.module`."""
    chosen = fields.take(options, "targets")
    subset = options.pop("subset", "train")
    module = options.pop("module", None)
    if not path:
        raise ValueError("the source 'seqio' needs a name, as in 'seqio:my_task?module=my.tasks'")
    # TensorFlow and seqio say much at the start that no user asked for.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    library = extras.load("seqio", "seqio")
    registered = None if module is None else extras.load_of_user(module)
    try:
        provider = library.get_mixture_or_task(path)
    except ValueError as error:
        raise ValueError(
            f"seqio knows no task or mixture {path!r}: name the module that registers it, module="
        ) from error
    if subset not in provider.splits:
        known = ", ".join(provider.splits)
        raise ValueError(f"{path!r} of seqio has no subset {subset!r} (subsets: {known})")
    code = None if registered is None else registered.__file__
    identity = {
        "name": f"seqio {path}[{subset}]",
        "key": ["seqio", path, subset, list(chosen.names), chosen.join],
        "seqio": library.__version__,
        # The data behind a task has no stamp; the code that registers it has.
        "module": None if code is None else [code, *_stamp(code)],
        "examples": _known_examples(provider, subset),
    }
    items = _items(provider, path, subset, chosen, guard)
    return sources_prepared.open_cached_items(identity, items, guard)


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _known_examples(provider: Any, subset: str) -> int | None:
    try:
        return provider.num_input_examples(subset)
    except (ValueError, KeyError, TypeError):
        return None


def _items(provider: Any, name: str, subset: str, chosen: fields.Fields, guard: records.Guard):
    is_mixture = hasattr(provider, "total_rate")
    place = f"seqio {name}[{subset}]"

    def items(start: int) -> Iterator[records.Record | records.Fault]:
        settings = {"sequence_length": None, "split": subset, "shuffle": False, "num_epochs": 1}
        settings["try_in_mem_cache"] = False
        if is_mixture:
            # Its tasks must agree in what they have, and it drops what it is not asked to keep.
            settings["copy_pretokenized"] = all(
                f"{field}_pretokenized" in task.get_dataset(**settings).element_spec
                for task in provider.tasks
                if subset in task.splits
                for field in chosen.names
            )
        dataset = provider.get_dataset(**settings)
        index = start
        try:
            for index, example in enumerate(dataset.skip(start).as_numpy_iterator(), start):
                try:
                    where = f"{place}: example {index}"
                    yield _record(example, provider.output_features, chosen, where, guard)
                except records.Fault as fault:
                    yield fault
        except Exception as error:
            yield extras.fault_of_tensorflow(error, f"{place}, after example {index},")

    return items


def _record(
    example: Mapping[str, Any],
    features: Mapping[str, Any],
    chosen: fields.Fields,
    where: str,
    guard: records.Guard,
) -> records.Record:
    values: dict[str, object] = dict(example)
    for name in chosen.names:
        pretokenized = example.get(f"{name}_pretokenized")
        if isinstance(pretokenized, bytes):
            values[name] = pretokenized
        elif name in features and not isinstance(example.get(name), bytes):
            # Without the text before it was tokenised, the text that the tokens stand for.
            values[name] = features[name].vocabulary.decode(example[name].tolist())
    text = chosen.text_of(values, where)
    if (size := len(text.encode())) > guard.max_bytes:
        raise guard.too_long(where, size)
    return records.of_text(text)
