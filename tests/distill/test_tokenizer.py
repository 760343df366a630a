"""The default tokenizer: fixed special ids, whole known words, spelled unknown ones."""

from __future__ import annotations

import numpy as np

from liveedit.distill.tokenizer import encode_prompts, train_tokenizer


def test_ids_and_graceful_unknown_words() -> None:
    tokenizer = train_tokenizer()
    assert [tokenizer.token_to_id(t) for t in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    assert tokenizer.get_vocab_size() <= 1024
    known = tokenizer.encode("make the yellow box blue")
    assert known.tokens == ["make", "the", "yellow", "box", "blue", "</s>"]
    assert tokenizer.encode("Make the YELLOW box, blue!").ids == known.ids
    unknown = tokenizer.encode("make the zebra quixotic")
    assert 2 not in unknown.ids
    assert len(unknown.ids) > 5
    assert 2 in tokenizer.encode("日本").ids


def test_training_is_deterministic() -> None:
    assert train_tokenizer().to_str() == train_tokenizer().to_str()


def test_batches_are_padded_and_cut() -> None:
    ids, mask = encode_prompts(train_tokenizer(), ["make it sepia", "red " * 40], 12)
    assert ids.shape == mask.shape == (2, 12)
    assert mask[0].sum() == 4
    assert (ids[0, 4:] == 0).all()
    assert mask[1].all()
    assert ids[1, -1] == 1
    assert ids.dtype == np.int64
