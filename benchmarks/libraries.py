"""One training step of each library on a batch of activations, as its own trainer makes it.

Imported by ``worker.py`` in the project's environment (``tsae``) or in that of the peers; each
library is imported only where it is asked for. Every step holds forward, backward, clipping (where
the library clips), Adam and what the library does to its decoder. Methods: topk, batchtopk,
matryoshka (whose five blocks are those of ``tsae``), and for ``tsae`` any other variant.
"""

import sys
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

BLOCKS = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
SEQ_LEN = 128


class Library:
    """An SAE in training; ``step`` trains on [N, d], ``codes`` gives x_hat and z of [N, d]."""

    def step(self, x_ND: Tensor) -> float:
        raise NotImplementedError

    def codes(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """x_hat [N, d] and z [N, F] as the library encodes at inference."""
        raise NotImplementedError


class Tsae(Library):
    """This project's trainer step."""

    def __init__(
        self, method, d, F, k, steps, lr, warmup, seed, mean, device, grad_clip=1.0, **options
    ):
        from tsae import saes
        from tsae.kernels.memory import keep_freed_blocks
        from tsae.training.schedule import learning_rate
        from tsae.training.train import TrainConfig, training_step

        keep_freed_blocks()  # as the trainer does once
        torch.manual_seed(seed)
        if method == "matryoshka":
            options = {"act": "batchtopk", "blocks": BLOCKS, **options}
        self.sae = saes.build(method, d_in=d, d_sae=F, k=k, **options).to(device).train()
        self.sae.initialise(mean)
        self.config = TrainConfig(
            steps=steps, lr=lr, warmup_steps=warmup, seed=seed, device=device, grad_clip=grad_clip
        )
        self.optimizer = torch.optim.AdamW(self.sae.parameters(), lr, weight_decay=0.0, fused=True)
        self.training_step, self.learning_rate, self.done = training_step, learning_rate, 0

    def step(self, x_ND: Tensor) -> float:
        self.sae.start_step(self.done, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(min(self.done, self.config.steps - 1), self.config)
        batch = SimpleNamespace(x_BTD=x_ND.unflatten(0, (-1, SEQ_LEN)), context=None)
        terms, _ = self.training_step(self.sae, batch, self.optimizer, self.config)
        self.done += 1
        return float(terms["total"])

    @torch.no_grad()
    def codes(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        out = self.sae.eval()(x_ND[None])
        self.sae.train()
        return out.x_hat[0], out.z[0]


class DictionaryLearning(Library):
    """saprmarks/dictionary_learning; its buffer alone needs nnsight, which is not installed."""

    def __init__(self, method, d, F, k, steps, lr, warmup, seed, mean, device):
        absent = ModuleType("nnsight")
        absent.LanguageModel = object
        sys.modules.setdefault("nnsight", absent)
        from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

        options = {}
        if method == "matryoshka":
            options = {"group_fractions": list(BLOCKS)}
        cls = {
            "topk": top_k.TopKTrainer,
            "batchtopk": batch_top_k.BatchTopKTrainer,
            "matryoshka": matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer,
        }[method]
        self.trainer = cls(
            steps=steps,
            activation_dim=d,
            dict_size=F,
            k=k,
            layer=0,
            lm_name="",
            lr=lr,
            warmup_steps=warmup,
            decay_start=int(0.8 * steps),
            threshold_start_step=min(1000, steps // 4),
            threshold_beta=0.99,
            seed=seed,
            device=device,
            **options,
        )
        self.method, self.done = method, 0

    def step(self, x_ND: Tensor) -> float:
        loss = self.trainer.update(self.done, x_ND)
        self.done += 1
        return loss

    @torch.no_grad()
    def codes(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        ae = self.trainer.ae
        z = ae.encode(x_ND, use_threshold=self.method != "topk")
        return ae.decode(z), z


class SAELens(Library):
    """decoderesearch/SAELens: the step of its ``SAETrainer``."""

    def __init__(self, method, d, F, k, steps, lr, warmup, seed, mean, device):
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes import batchtopk_sae, matryoshka_batchtopk_sae, topk_sae
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(seed)
        shape = {"d_in": d, "d_sae": F, "k": k, "device": device, "dtype": "float32"}
        if method == "topk":
            sae = topk_sae.TopKTrainingSAE(topk_sae.TopKTrainingSAEConfig(**shape))
        elif method == "batchtopk":
            config = batchtopk_sae.BatchTopKTrainingSAEConfig(**shape)
            sae = batchtopk_sae.BatchTopKTrainingSAE(config)
        else:
            widths = (torch.tensor(BLOCKS).cumsum(0) * F).round().int().tolist()
            config = matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAEConfig(
                **shape, matryoshka_widths=widths
            )
            sae = matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAE(config)
        with torch.no_grad():
            sae.b_dec.copy_(mean)
        batch = 2048
        settings = SAETrainerConfig(
            total_training_samples=steps * batch,
            train_batch_size_samples=batch,
            lr=lr,
            lr_end=0.0,
            lr_warm_up_steps=warmup,
            lr_decay_steps=int(0.2 * steps),
            device=device,
        )
        self.trainer, self.method = SAETrainer(settings, sae, iter(())), method

    def step(self, x_ND: Tensor) -> float:
        output = self.trainer.step(x_ND)
        self.trainer.n_training_steps += 1
        return float(output.loss.detach())

    @torch.no_grad()
    def codes(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        sae = self.trainer.sae
        z, pre = sae.encode_with_hidden_pre(x_ND)
        if self.method != "topk":
            z = pre.relu() * (pre > sae.topk_threshold)
        z = z.to_dense() if z.is_sparse else z
        return sae.decode(z), z


class Sparsify(Library):
    """EleutherAI/sparsify: its coder and, with Adam, the steps of its trainer in their order."""

    def __init__(self, method, d, F, k, steps, lr, warmup, seed, mean, device):
        from sparsify.config import SparseCoderConfig
        from sparsify.sparse_coder import SparseCoder
        from transformers import get_linear_schedule_with_warmup

        if method != "topk":
            raise ValueError(f"sparsify has no {method}")
        torch.manual_seed(seed)
        self.sae = SparseCoder(d, SparseCoderConfig(num_latents=F, k=k), device, torch.float32)
        self.sae.b_dec.data = mean.clone()
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=lr)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, warmup, steps)
        self.idle = torch.zeros(F, dtype=torch.long, device=device)

    def step(self, x_ND: Tensor) -> float:
        self.sae.set_decoder_norm_to_unit_norm()
        out = self.sae(x_ND, dead_mask=self.idle > 10_000_000)
        fired = torch.zeros_like(self.idle, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        self.idle += len(x_ND)
        self.idle[fired] = 0
        loss = out.fvu + out.auxk_loss / 32
        loss.backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return float(loss.detach())

    @torch.no_grad()
    def codes(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        top = self.sae.encode(x_ND)
        z = x_ND.new_zeros(len(x_ND), self.sae.num_latents).scatter_(1, top[1], top[0])
        return self.sae.decode(top[0], top[1]), z


class Gemm:
    """The product of a batch and an encoder alone: the machine's peak in this run."""

    def __init__(self, method, d, F, k, steps, lr, warmup, seed, mean, device):
        self.weight_DF = torch.randn(d, F, device=device)
        self.out = None

    def step(self, x_ND: Tensor) -> float:
        if self.out is None:
            self.out = x_ND.new_empty(len(x_ND), self.weight_DF.shape[1])
        torch.mm(x_ND, self.weight_DF, out=self.out)
        return 0.0


LIBRARIES = {
    "tsae": Tsae,
    "dictionary_learning": DictionaryLearning,
    "sae_lens": SAELens,
    "sparsify": Sparsify,
    "gemm": Gemm,
}
