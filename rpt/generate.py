"""Shows what a model thinks at cuts of a text, and which thoughts predict what comes next.

    python -m rpt.generate --workdir=W --text='Once upon a time'
    python -m rpt.generate --workdir=W --file=story.txt --cuts=3,10 --thoughts=4
    python -m rpt.generate --config=configs/X.py --weights=PATH|fetch:smollm2 --text='...'

Without --cuts, the positions of highest entropy are taken. Template and sampling are those of the
run, or of --config. A thought is rewarded if the bytes of its prediction are the text's next ones
and end where one of its tokens ends.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
import rich.console
import rich.text
from absl import flags

from kernels.logprob import api as logprob
from rpt import (
    cli,
    evaluate,
    evaluation_measure,
    evaluation_positions,
    hosts,
    phases,
    predictions,
    rewards,
    rollout,
    scoring,
)
from rpt.model import transformer

_ROW_MULTIPLE = 64  # trunk rows are padded to it, so that texts share programs
_SHOWN_CONTEXT = 200  # characters before a cut


@dataclasses.dataclass(frozen=True)
class Thought:
    """One branch: its text up to the answer (all of it without one), prediction, reward."""

    text: str
    prediction: bytes | None
    reward: int
    diagnosis: str


@dataclasses.dataclass(frozen=True)
class Cut:
    """One cut of the text.

    Attributes:
      index: the token to predict, counted from the text's first.
      before: the text before it.
      target: bytes of the token that stands there.
      entropy_nats: of the next token without a thought, under the header.
      no_think: the most probable next token's bytes, without a thought.
      no_think_prob: its probability.
      no_think_reward: whether it is right.
      thoughts: what the branches did.
    """

    index: int
    before: str
    target: bytes
    entropy_nats: float
    no_think: bytes
    no_think_prob: float
    no_think_reward: int
    thoughts: tuple[Thought, ...]


def think_at(
    opened: evaluate.Opened,
    tokens: np.ndarray,
    cuts: Sequence[int] | int,
    thoughts: int,
    seed: int,
) -> list[Cut]:
    """Thinks `thoughts` times at each cut of a document.

    Args:
      opened: the model, and the config with its template, rollout and positions.
      tokens: int32 ids of the document.
      cuts: indices of tokens to predict, or how many cuts to take, those of highest entropy.
      thoughts: per cut.
      seed: of the sampling.

    Raises:
      ValueError: the text is too short, or a cut lies outside it.
    """
    loaded, config = opened.loaded, opened.config
    least = max(config.positions.min_context, 1)
    if len(tokens) <= (least if isinstance(cuts, int) else 1):
        raise ValueError(
            f"the text has {len(tokens)} tokens, shorter than the minimum context of {least} "
            "tokens and one to predict: give a longer text, or --cuts"
        )
    if not isinstance(cuts, int) and not all(0 < cut < len(tokens) for cut in cuts):
        raise ValueError(f"cuts must lie between 1 and {len(tokens) - 1}, not {list(cuts)}")
    row = evaluation_positions.Row("text", 0, 0, tokens, len(tokens), {})
    subject = evaluation_measure.subject(config, loaded, 0)
    window = -(-len(tokens) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    inputs = evaluation_measure.trunk_rows([row], subject.header, window, 1)
    scores, kv = scoring.score_trunk(loaded.model, loaded.params, *inputs)
    entropy_S = np.asarray(scores.entropy_BS)[0, len(subject.header) :]
    if isinstance(cuts, int):
        (eligible,) = evaluation_positions.eligible_by_row(
            [row], loaded.tokenizer, config.rollout.answer_format, least
        )
        if not len(eligible):
            raise ValueError("no token of this text can be asked for; give --cuts or another text")
        cuts = np.sort(eligible[np.argsort(-entropy_S[eligible], kind="stable")[:cuts]]).tolist()
    cut_BC = np.array([cuts], np.int32) + len(subject.header)
    settings = dataclasses.replace(config.rollout, group_size=thoughts)
    sampled = rollout.rollout(
        loaded.model,
        settings,
        rollout.make_sampler(loaded.model, loaded.params, kv),
        phases.make_tables(loaded.tokenizer, subject.template, loaded.model.vocab_size),
        cut_BC,
        np.ones_like(cut_BC, bool),
        seed=seed,
        step=0,
        document_ids_B=np.zeros(1, np.int64),
    )
    probs_CV = np.asarray(_probabilities(loaded.model, loaded.params, *inputs, cut_BC[0]))
    return _read(subject, settings, tokens, cut_BC, sampled, entropy_S, probs_CV)


@functools.partial(jax.jit, static_argnames=("model",))
def _probabilities(model, params, tokens_BS, segments_BS, positions_BS, cut_C) -> jax.Array:
    """[C, V]: the next token's distribution at each cut of the only row."""
    hidden_BSD, _ = transformer.trunk(model, params, tokens_BS, segments_BS, positions_BS)
    logits_CV = logprob.logits(hidden_BSD[0, cut_C - 1], transformer.unembedding(model, params))
    return jax.nn.softmax(logits_CV, axis=-1)


def _read(
    subject: evaluation_measure.Subject,
    settings: rollout.RolloutConfig,
    tokens: np.ndarray,
    cut_BC: np.ndarray,
    sampled: rollout.Rollout,
    entropy_S: np.ndarray,
    probs_CV: np.ndarray,
) -> list[Cut]:
    valid_BC = np.ones_like(cut_BC, bool)
    answers = predictions.read(
        sampled,
        subject.token_bytes,
        subject.stop_ids,
        subject.template,
        settings.answer_format,
        valid_BC,
        settings.answer_tokens,
    )
    header = len(subject.header)
    targets = predictions.targets([tokens], header, cut_BC, valid_BC, subject.token_bytes)
    decode, group = subject.loaded.tokenizer.decode, settings.group_size
    found = []
    for c, target in enumerate(targets):
        assert target is not None
        thoughts = []
        for r in range(c * group, (c + 1) * group):
            start, length = int(sampled.answer_start_BR[0, r]), int(sampled.length_BR[0, r])
            stop = length if start < 0 or answers[r].answer is None else start
            thoughts.append(
                Thought(
                    text=decode(sampled.tokens_BRT[0, r, sampled.tail_length : stop]),
                    prediction=answers[r].answer,
                    reward=rewards.prefix_match(answers[r].answer, target),
                    diagnosis=rewards.diagnose(answers[r], target),
                )
            )
        best = int(probs_CV[c].argmax())
        direct = subject.next_token_bytes(best)
        found.append(
            Cut(
                index=target.cut,
                before=decode(tokens[: target.cut]),
                target=target.first_token,
                entropy_nats=float(entropy_S[target.cut]),
                no_think=direct,
                no_think_prob=float(probs_CV[c, best]),
                no_think_reward=rewards.prefix_match(direct, target),
                thoughts=tuple(thoughts),
            )
        )
    return found


def render(cuts: Sequence[Cut]) -> rich.text.Text:
    """Everything in readable, coloured lines; marks stand beside colours."""
    text = rich.text.Text()
    for cut in cuts:
        before = cut.before[-_SHOWN_CONTEXT:]
        dots = "..." if len(before) < len(cut.before) else ""
        text.append(f"cut at token {cut.index}", style="bold")
        text.append(f"  entropy {cut.entropy_nats:.2f} nats\n", style="dim")
        text.append(dots + before)
        text.append(_quote(cut.target), style="bold cyan underline")
        text.append("  <- comes next\n", style="dim")
        text.append("  without thought: ")
        _mark(text, cut.no_think, cut.no_think_reward)
        text.append(f"  probability {cut.no_think_prob:.3f}\n", style="dim")
        for number, thought in enumerate(cut.thoughts, 1):
            text.append(f"  thought {number}: ")
            text.append(thought.text.strip().replace("\n", "\n    "), style="italic")
            text.append("\n    predicts ")
            _mark(text, thought.prediction, thought.reward)
            reason = thought.diagnosis.replace("_", " ")
            text.append(f"  {reason}\n" if not thought.reward else "\n", style="dim")
        text.append("\n")
    return text


def _mark(text: rich.text.Text, prediction: bytes | None, reward: int) -> None:
    shown = "nothing" if prediction is None else _quote(prediction)
    text.append(shown, style="bold green" if reward else "bold red")
    text.append(" [rewarded]" if reward else " [not rewarded]", style="green" if reward else "red")


def _quote(data: bytes) -> str:
    """Between bars, because leading spaces count; bytes that are no UTF-8 are escaped."""
    shown = data.decode("utf-8", "backslashreplace").replace("\n", "\\n").replace("\t", "\\t")
    return f"|{shown}|"


def read_text(text: str, file: str) -> str:
    """The text of --text or --file.

    Raises:
      ValueError: neither or both are given, or the file is no text.
      FileNotFoundError: there is no such file.
    """
    if bool(text) == bool(file):
        raise ValueError("give either --text or --file")
    if text:
        return text
    path = pathlib.Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    try:
        found = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no UTF-8 text") from None
    if "\0" in found:
        raise ValueError(f"{file} is no text: it holds zero bytes")
    return found


def main(argv: list[str]) -> None:
    del argv
    hosts.refuse("rpt.generate")
    text = read_text(_TEXT.value, _FILE.value)
    opened = evaluate.open_model(_WORKDIR.value, _WEIGHTS.value, _STEP.value, _CONFIG.value)
    tokens = opened.loaded.tokenizer.encode(text)
    console = rich.console.Console(soft_wrap=True)
    if len(tokens) > _MAX_TOKENS.value:
        console.print(f"only the first {_MAX_TOKENS.value} of {len(tokens)} tokens are read")
        tokens = tokens[: _MAX_TOKENS.value]
    try:
        cuts = sorted({int(cut) for cut in _CUTS.value}) or _NUM_CUTS.value
    except ValueError:
        raise ValueError(f"--cuts must be integers such as 3,10, not {_CUTS.value}") from None
    found = think_at(opened, tokens, cuts, _THOUGHTS.value, _SEED.value)
    console.print(render(found), end="")
    total = [thought.reward for cut in found for thought in cut.thoughts]
    direct = sum(cut.no_think_reward for cut in found)
    console.print(
        f"{sum(total)} of {len(total)} thoughts rewarded; "
        f"{direct} of {len(found)} right without thought"
    )


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    _WORKDIR = flags.DEFINE_string("workdir", "", "Run directory.")
    _WEIGHTS = flags.DEFINE_string(
        "weights", "", "Instead of a run: a Hugging Face folder, a GGUF file, or fetch:NAME."
    )
    _STEP = flags.DEFINE_integer("step", None, "Checkpoint of the run; default the newest.")
    _TEXT = flags.DEFINE_string("text", "", "The text to think about.")
    _FILE = flags.DEFINE_string("file", "", "Or a UTF-8 file that holds it.")
    _CUTS = flags.DEFINE_list("cuts", [], "Tokens to predict, such as 3,10; the first is 0.")
    _NUM_CUTS = flags.DEFINE_integer("num_cuts", 4, "Without --cuts: how many.", lower_bound=1)
    _THOUGHTS = flags.DEFINE_integer("thoughts", 2, "Thoughts at each cut.", lower_bound=1)
    _MAX_TOKENS = flags.DEFINE_integer("max_tokens", 1024, "Of the text, at most.", lower_bound=2)
    _SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")
    cli.run(main)
