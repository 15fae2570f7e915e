"""Inside the libraries that people train with: the real packages, with torch.optim.AdamW in the same place to compare.

A run that is saved and resumed ends with the same bits. All in float64.
"""

import itertools
import pickle
import warnings

import pytest
import torch
from problem import error

from optim import MADA, Adam, Coefficient, RuleOptimizer

MATHS = {"lr": 0.02, "weight_decay": 0.1}
LEARNING = {**MATHS, "hyper_lr": dict.fromkeys(MADA.table, 0.05)}
STEPS, HALF = 8, 4


def need(name: str):
    return pytest.importorskip(name, reason=f'{name} is not here: pip install -c constraints.txt ".[test]"')


def adam(params) -> Adam:
    return Adam(params, eps=1e-6, **MATHS)


def adamw(params) -> torch.optim.AdamW:
    return torch.optim.AdamW(params, betas=(0.9, 0.95), eps=1e-6, **MATHS)


def mada(params) -> MADA:
    return MADA(params, **LEARNING)


class Net(torch.nn.Module):
    """A language model of two words and a head tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.hidden = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 7)
        self.head.weight = self.embedding.weight
        self.double()

    def forward(self, x, labels):
        logits = self.head(torch.tanh(self.hidden(self.embedding(x).sum(1))))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Words(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4 * STEPS

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        words = torch.randint(0, 7, (3,), generator=torch.Generator().manual_seed(i))
        return {"x": words[:2], "labels": words[2]}


def batches(count: int = STEPS) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(torch.utils.data.Subset(Words(), range(4 * count)), batch_size=4)


def weights(net: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def ends_equal(net, optimizer, other, resumed) -> None:
    assert all(map(torch.equal, weights(net), weights(other))) and len(weights(net)) > 3
    assert optimizer.coefficients == resumed.coefficients and optimizer.coefficients["beta1"] != 0.9
    assert optimizer.hypergradients == resumed.hypergradients


# ------------------------------------------------------------------------------------------------------ accelerate


class Accelerated:
    """Gradients of two batches accumulated and clipped, a learning rate that falls."""

    def __init__(self, make) -> None:
        self.accelerator = need("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=2)
        net = Net()
        optimizer = make(net.parameters())
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        self.net, self.optimizer, self.batches, self.scheduler = self.accelerator.prepare(
            net, optimizer, batches(), scheduler
        )

    def train(self, start: int, stop: int) -> None:
        for batch in itertools.islice(self.batches, start, stop):
            with self.accelerator.accumulate(self.net):
                self.accelerator.backward(self.net(**batch)["loss"])
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()


def test_accelerate_trains_it_as_adamw() -> None:
    results = []
    for make in (adam, adamw):
        run = Accelerated(make)
        run.train(0, STEPS)
        results.append(weights(run.net))
    assert error(*results) < 1e-12 and len(results[0]) == 4


def test_accelerate_saves_all_weights_and_resumes(tmp_path) -> None:
    safetensors = need("safetensors.torch")
    run = Accelerated(mada)
    run.train(0, HALF)
    run.accelerator.save_model(run.net, tmp_path / "model")
    saved = safetensors.load_file(tmp_path / "model" / "model.safetensors")
    assert {k for k in run.net.state_dict() if k not in saved} in ({"head.weight"}, {"embedding.weight"})  # tied
    assert all(torch.equal(run.net.state_dict()[k], v) for k, v in saved.items()) and len(saved) == 4

    run.accelerator.save_state(tmp_path / "state")
    run.train(HALF, STEPS)
    other = Accelerated(mada)
    other.accelerator.load_state(tmp_path / "state")
    other.train(HALF, STEPS)
    ends_equal(run.net, run.optimizer.optimizer, other.net, other.optimizer.optimizer)


# ------------------------------------------------------------------------------------------------------- Lightning


def fit(make, epochs: int, folder, resume=None):
    """A net and its optimizer after so many epochs of HALF steps; the checkpoint is saved in `folder`. (Lightning does
    not find its place within an epoch again.)"""
    lightning = need("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch, i):
            return self.net(**batch)["loss"]

        def configure_optimizers(self):
            optimizer = make(self.net.parameters())
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that more workers would load faster
        trainer.fit(module, batches(HALF), ckpt_path=resume, weights_only=True)
    assert trainer.global_step == epochs * HALF
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return module.net, trainer.optimizers[0]


def test_lightning_trains_it_as_adamw(tmp_path) -> None:
    results = [weights(fit(make, 2, tmp_path)[0]) for make in (adam, adamw)]
    assert error(*results) < 1e-12 and len(results[0]) == 4


def test_lightning_saves_and_resumes(tmp_path) -> None:
    fit(mada, 1, tmp_path)
    resumed = fit(mada, 2, tmp_path, tmp_path / "1.ckpt")
    ends_equal(*fit(mada, 2, tmp_path), *resumed)


# ---------------------------------------------------------------------------------------------- Hugging Face Trainer


class Text(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4 * STEPS

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, 7, (5,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": tokens, "labels": tokens}


def trained(kind, keywords: dict, folder, **more):
    """GPT-2 with dropout, its head tied to its embedding, and its optimizer; checkpoints are saved in `folder`."""
    need("accelerate")
    transformers = need("transformers")
    arguments = transformers.TrainingArguments(
        output_dir=folder, per_device_train_batch_size=4, max_steps=STEPS, save_steps=HALF, report_to="none",
        use_cpu=True, disable_tqdm=True, weight_decay=0.1, learning_rate=0.02, warmup_steps=2, logging_strategy="no",
    )  # fmt: skip
    torch.manual_seed(0)
    net = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=7, n_positions=5, n_embd=8, n_layer=1, n_head=2, bos_token_id=0,
                                eos_token_id=0)
    ).double()  # fmt: skip
    start = weights(net)
    trainer = transformers.Trainer(net, arguments, train_dataset=Text(), optimizer_cls_and_kwargs=(kind, keywords))
    trainer.train(**more)
    return net, trainer.optimizer.optimizer, start


def test_the_trainer_trains_it_as_adamw(tmp_path) -> None:
    net, optimizer, start = trained(Adam, {"lr": 0.02, "eps": 1e-6}, tmp_path)
    expected = trained(torch.optim.AdamW, {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-6}, tmp_path)[0]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert error(weights(net), weights(expected)) < 1e-11 and error(weights(net), start) > 0.1


def test_the_trainer_saves_all_weights_and_resumes_from_its_checkpoint(tmp_path) -> None:
    safetensors = need("safetensors.torch")
    keywords = {"lr": 0.02, "hyper_lr": LEARNING["hyper_lr"]}
    net, optimizer, _ = trained(MADA, keywords, tmp_path)
    saved = safetensors.load_file(tmp_path / f"checkpoint-{STEPS}" / "model.safetensors")
    assert saved.keys() == net.state_dict().keys() - {"lm_head.weight"}
    assert all(torch.equal(net.state_dict()[k], v) for k, v in saved.items())
    resumed = trained(MADA, keywords, tmp_path, resume_from_checkpoint=str(tmp_path / f"checkpoint-{HALF}"))
    ends_equal(net, optimizer, *resumed[:2])


# ----------------------------------------------------------------------------------------- cloudpickle, huggingface_hub


def test_cloudpickle_takes_a_rule_of_a_notebook_along() -> None:
    """pickle cannot: the class is not in a module that can be imported."""
    cloudpickle = need("cloudpickle")

    class Momentum(RuleOptimizer):
        table = {"beta": Coefficient(0.9, 0.0, 0.99, "decay", hyper_lr=0.05)}
        learns = ("beta",)
        State = MADA.State

        @staticmethod
        def advance(q, s, g, t):
            m = s.m + (1 - q.beta) * (g - s.m)
            return m, s._replace(m=m)

    def steps(net, optimizer) -> None:
        for batch in itertools.islice(batches(), HALF):
            optimizer.zero_grad()
            net(**batch)["loss"].backward()
            optimizer.step()

    net = Net()
    optimizer = Momentum(net.parameters(), **MATHS)
    steps(net, optimizer)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(optimizer)
    other, copied = pickle.loads(cloudpickle.dumps((net, optimizer)))
    before = weights(net)
    steps(other, copied)
    assert all(map(torch.equal, weights(net), before))
    steps(net, optimizer)
    assert all(map(torch.equal, weights(net), weights(other)))
    assert optimizer.coefficients == copied.coefficients != {"beta": 0.9}


def test_the_hub_s_mixin_saves_and_loads_what_is_trained(tmp_path) -> None:
    hub = need("huggingface_hub")

    class Ours(Net, hub.PyTorchModelHubMixin):
        pass

    net = Ours()
    optimizer = mada(net.parameters())
    net(**next(iter(batches())))["loss"].backward()
    optimizer.step()
    net.save_pretrained(tmp_path)
    loaded = Ours.from_pretrained(tmp_path)
    assert all(map(torch.equal, weights(net), weights(loaded))) and not torch.equal(weights(net)[0], weights(Net())[0])
    assert loaded.head.weight is loaded.embedding.weight
