"""A small builder of tensorflow-datasets, and what it writes to disk."""

import tensorflow_datasets as tfds

TEXTS = [f"example {i} of a builder, é 漢" for i in range(25)]


class SmallText(tfds.core.GeneratorBasedBuilder):
    """Texts with a number each."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"text": tfds.features.Text(), "title": tfds.features.Text()}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(25), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        for index, text in enumerate(TEXTS[:count]):
            yield index, {"text": text, "title": f"title {index}"}


def write(data_dir, file_format):
    builder = SmallText(data_dir=data_dir, file_format=file_format)
    builder.download_and_prepare()
    return builder
