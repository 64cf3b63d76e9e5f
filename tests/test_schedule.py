"""Learning rates and phases by hand; a phase moves its own parameters and no others."""

import pytest
import torch
from fake_store import FakeStore
from test_train import build, config, rows

from tsae import saes
from tsae.errors import UserError
from tsae.saes import Phase
from tsae.training import train
from tsae.training.schedule import learning_rate, phase_ends, set_trainable
from tsae.training.train import TrainConfig

STORE = FakeStore()


def test_learning_rate_of_20_steps_with_4_of_warmup_and_4_of_decay():
    asked = TrainConfig(steps=20, lr=0.4, warmup_steps=4, decay_share=0.2)
    shares = [0.25, 0.5, 0.75, *[1.0] * 14, 0.75, 0.5, 0.25]
    assert [learning_rate(s, asked) for s in range(20)] == pytest.approx([0.4 * s for s in shares])


def test_learning_rate_without_warmup_and_decay_is_flat():
    asked = TrainConfig(steps=3, lr=0.4, warmup_steps=0, decay_share=0.0)
    assert [learning_rate(s, asked) for s in range(3)] == [0.4, 0.4, 0.4]


def test_phase_ends_are_rounded_cumulative_shares():
    shares = (0.3, 0.3, 0.4)
    phases = tuple(Phase(name, share) for name, share in zip("abc", shares, strict=True))
    assert phase_ends(phases, 10) == [3, 6, 10]
    assert phase_ends(phases, 11) == [3, 7, 11]  # 3.3, 6.6, 11
    assert phase_ends((Phase("a", 2.0), Phase("b", 6.0)), 8) == [2, 8]  # shares need not sum to 1
    with pytest.raises(UserError, match="Phase 'a' gets none of 1 steps"):
        phase_ends(phases, 1)


class Phased(saes.SAE):
    """A static SAE trained in three phases, as data."""

    def phases(self):
        return (
            Phase("bias", 0.25, ("b_",)),
            Phase("encoder", 0.25, ("W_enc", "b_enc")),
            Phase("all", 0.5),
        )


def phased(seed=0):
    torch.manual_seed(seed)
    sae = Phased(saes.SAEConfig(d_in=16, d_sae=32, k=4))
    sae.name = "topk"
    return sae


def test_a_phase_moves_its_parameters_and_no_others(tmp_path, monkeypatch):
    history, sae = [], phased()
    step = train.training_step

    def recorded(sae, *rest):
        out = step(sae, *rest)
        history.append({name: p.detach().clone() for name, p in sae.named_parameters()})
        return out

    monkeypatch.setattr(train, "training_step", recorded)
    train.train(sae, STORE, tmp_path, config(), progress=False)
    moving = [("b_enc", "b_dec")] * 3 + [("W_enc", "b_enc")] * 3
    moving += [("W_enc", "W_dec", "b_enc", "b_dec")] * 6
    for at, (earlier, later) in enumerate(zip(history, history[1:], strict=False), start=1):
        moved = {name for name in later if not torch.equal(earlier[name], later[name])}
        assert moved == set(moving[at]), f"step {at + 1}"
    assert [row["phase"] for row in rows(tmp_path)] == ["bias"] * 3 + ["encoder"] * 3 + ["all"] * 6
    assert all(p.requires_grad for p in sae.parameters())


def test_a_phase_prefix_that_fits_nothing_is_named():
    with pytest.raises(ValueError, match="trainable='W_encoder' is not allowed.*W_enc, b_enc"):
        set_trainable(build(), Phase("a", 1.0, ("W_encoder",)), [])
