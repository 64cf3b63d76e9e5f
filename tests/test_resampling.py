"""Resampling of dead latents: what it sets, what it draws, and when."""

import torch
from fake_store import FakeStore
from test_train import build, config, optimizer_of, rows

from tsae import saes
from tsae.saes import SequenceContext
from tsae.store import Batch
from tsae.training import train
from tsae.training.resampling import due, resample

STORE = FakeStore()


def batch_of(x_BTD):
    return Batch(x_BTD, None, None, SequenceContext().filled(x_BTD), {})


def test_resampling_replaces_the_dead_and_only_the_dead():
    sae, dead = build("l1"), [3, 17]
    optimizer = optimizer_of(sae)
    batch = STORE.batch("train", range(4))
    train.training_step(sae, batch, optimizer, config())
    sae.idle_tokens[dead] = sae.cfg.dead_after
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    error_ND = (batch.x_BTD - sae(batch.x_BTD, batch.context).x_hat)[batch.context.mask_BT]
    directions_ND = torch.nn.functional.normalize(error_ND.detach(), dim=1)

    assert resample(sae, optimizer, [batch]) == 2
    alive = [i for i in range(32) if i not in dead]
    assert torch.equal(sae.W_dec[alive], before["W_dec"][alive])
    assert torch.equal(sae.W_enc[:, alive], before["W_enc"][:, alive])
    assert torch.equal(sae.b_enc[alive], before["b_enc"][alive])
    picked = (sae.W_dec[dead] @ directions_ND.t()).max(1)
    torch.testing.assert_close(picked.values, torch.ones(2))
    assert len(set(picked.indices.tolist())) == 2  # two latents never take the same token
    scale = 0.2 * before["W_enc"][:, alive].norm(dim=0).mean()
    torch.testing.assert_close(sae.W_enc[:, dead], scale * sae.W_dec[dead].t())
    assert sae.b_enc[dead].tolist() == [0.0, 0.0]
    assert sae.idle_tokens[dead].tolist() == [0, 0] and not sae.dead_latents().any()
    for parameter in (sae.W_dec, sae.W_enc, sae.b_enc):
        for moment in ("exp_avg", "exp_avg_sq"):
            values = optimizer.state[parameter][moment]
            values = values.t() if parameter is sae.W_enc else values
            assert values[dead].abs().sum() == 0 and values[alive].abs().sum() > 0


def test_resampling_draws_by_squared_loss():
    """Half the tokens have |e|^2 = 1, half 9, so they are drawn 1 : 81 (2.4 of 200, not 20)."""
    sae = saes.build("l1", d_in=2, d_sae=400, k=4)
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)  # no latent fires, so the error is x itself
        sae.idle_tokens[:200] = sae.cfg.dead_after
    x_BTD = torch.zeros(8, 1000, 2)
    x_BTD[:, ::2, 0], x_BTD[:, 1::2, 1] = 1.0, 3.0
    torch.manual_seed(0)
    assert resample(sae, optimizer_of(sae), [batch_of(x_BTD)]) == 200
    small = sae.W_dec[:200, 0] == 1.0
    assert torch.equal(sae.W_dec[:200][small], torch.tensor([1.0, 0.0]).expand(int(small.sum()), 2))
    assert torch.equal(sae.W_dec[:200][~small][:, 1], torch.ones(int((~small).sum())))
    assert 0 < int(small.sum()) < 10


def test_resampling_takes_no_more_latents_than_there_are_errors():
    sae = saes.build("l1", d_in=2, d_sae=8, k=2)
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
        sae.idle_tokens.fill_(sae.cfg.dead_after)
    x_BTD = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]])
    assert resample(sae, optimizer_of(sae), [batch_of(x_BTD)]) == 2
    assert sae.dead_latents().tolist() == [False] * 2 + [True] * 6
    assert resample(sae, optimizer_of(sae), [batch_of(torch.zeros(1, 3, 2))]) == 0


def test_resampling_is_due_for_relu_alone_and_not_late():
    asked = config(steps=20, resample_every=4, resample_until=0.6)
    assert [s for s in range(1, 21) if due(build("l1"), s, asked)] == [4, 8, 12]
    assert not any(due(build("topk"), s, asked) for s in range(1, 21))
    assert not any(due(build("l1"), s, config(resample_every=0)) for s in range(1, 21))


def test_a_run_resamples_its_dead_latents(tmp_path):
    sae = build("l1", dead_after=60)
    with torch.no_grad():
        sae.b_enc[:5] = -100.0
    train.train(sae, STORE, tmp_path, config(), progress=False)
    assert [row["dead"] for row in rows(tmp_path)][:4] == [5, 5, 5, 0]  # 60 valid tokens a step
    assert [row["step"] for row in rows(tmp_path) if row.get("resampled")] == [4]
