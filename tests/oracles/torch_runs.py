"""Records whole checkpoints of torch in the middle of a run, and how torch went on, for tests/test_interop_torch_runs.py.

Run it with torch and NumPy installed, from anywhere: `python tests/oracles/torch_runs.py`. It writes tests/data/torch_runs.npz,
the same bytes every time as long as torch's numbers do not change:

    description              JSON: torch's version, and by run the dictionaries of the checkpoint that hold no tensors
    inputs, targets          [step, ...]: the batches of all runs
    RUN/model/NAME           the model's state_dict in the middle
    RUN/state/O/I/KEY        the state of the I-th parameter of the O-th optimizer in the middle
    RUN/end/NAME             the model's parameters at the end
    RUN/rates                [step, group], the rates that the updates used
    RUN/scale                [step, 2]: scale and count of finite steps of the GradScaler after each step
"""

import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).parents[1] / "data" / "torch_runs.npz"
ROWS, WIDTH, CLASSES, BATCH = 7, 4, 3, 5
STEPS, MIDDLE, WARMUP = 20, 6, 10
SCALER = {"init_scale": 2.0**10, "growth_interval": 4}
# Of the run "plateau", which observes one of these after each update.
PLATEAU = {"factor": 0.5, "patience": 1, "cooldown": 1, "min_lr": 1e-3}
METRICS = [1.0, 1.0, 1.0, 1.0, 0.8, 0.9, 0.85, 0.85, 0.85, 0.85, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.6, 0.6, 0.6, 0.6]
# The order in which the optimizers get the parameters, group by group, is another one than the model's.
GROUPS = [
    {"names": ["head.weight", "body.weight"], "lr": 0.01, "weight_decay": 0.1},
    {"names": ["embed.weight", "head.bias", "body.bias"], "lr": 0.03, "weight_decay": 0.0},
]
# The scaler finds an infinity in this step of the run "skipped".
SKIPPED = 2


def batches():
    generator = np.random.default_rng(0)
    return generator.integers(ROWS, size=(STEPS, BATCH)), generator.normal(size=(STEPS, BATCH, CLASSES)).astype(np.float32)


def factor(k):
    return min(1.0, (k + 1) / WARMUP)


def make_model():
    import torch

    torch.manual_seed(0)
    layers = {"embed": torch.nn.Embedding(ROWS, WIDTH), "body": torch.nn.Linear(WIDTH, WIDTH)}
    return torch.nn.ModuleDict({**layers, "head": torch.nn.Linear(WIDTH, CLASSES)})


def loss(model, inputs, targets):
    import torch

    hidden = torch.tanh(model["body"](model["embed"](torch.tensor(inputs))))
    return ((model["head"](hidden) - torch.tensor(targets)) ** 2).mean()


def make_optimizers(run, model):
    """The optimizers and the schedulers of a run."""
    import torch

    schedulers = torch.optim.lr_scheduler
    params = dict(model.named_parameters())
    own = [{**{k: v for k, v in g.items() if k != "names"}, "params": [params[name] for name in g["names"]]} for g in GROUPS]
    if run == "two_optimizers":
        optimizers = [torch.optim.AdamW(own[:1]), torch.optim.SGD(own[1:], momentum=0.9)]
        return optimizers, [schedulers.LambdaLR(optimizer, factor) for optimizer in optimizers]
    optimizer = torch.optim.AdamW(own)
    if run == "plateau":
        return [optimizer], [schedulers.ReduceLROnPlateau(optimizer, **PLATEAU)]
    return [optimizer], [schedulers.LambdaLR(optimizer, factor)]


class Run:
    """A training run of torch's, from a model, optimizers, schedulers and a scaler."""

    def __init__(self, name):
        import torch

        self.name, self.model = name, make_model()
        self.optimizers, self.schedulers = make_optimizers(name, self.model)
        self.scaler = torch.amp.GradScaler("cpu", enabled=name in ("warmup", "skipped"), **SCALER)

    def step(self, step, inputs, targets):
        """One step; the rates that it used, and the scaler's state after it."""
        rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        self.model.zero_grad()
        self.scaler.scale(loss(self.model, inputs, targets)).backward()
        if self.name == "skipped" and step == SKIPPED:
            self.model["embed"].weight.grad[0, 0] = float("inf")
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        for scheduler in self.schedulers:
            scheduler.step(*[METRICS[step]] if self.name == "plateau" else [])
        return rates, (self.scaler.get_scale(), self.scaler._get_growth_tracker())

    def params(self):
        return {name: value.detach().numpy().copy() for name, value in self.model.named_parameters()}

    def checkpoint(self):
        """What is saved in the middle, arrays and the rest apart."""
        arrays = {f"model/{name}": value.numpy().copy() for name, value in self.model.state_dict().items()}
        saved = [optimizer.state_dict() for optimizer in self.optimizers]
        for i, one in enumerate(saved):
            for index, entry in one["state"].items():
                arrays |= {f"state/{i}/{index}/{key}": value.numpy().copy() for key, value in entry.items()}
        schedulers = [scheduler.state_dict() for scheduler in self.schedulers]
        rest = {"param_groups": [one["param_groups"] for one in saved], "schedulers": schedulers}
        return arrays, {**rest, "scaler": self.scaler.state_dict()}


RUNS = ("warmup", "skipped", "plateau", "two_optimizers")


def main():
    import torch

    inputs, targets = batches()
    values, rest = {"inputs": inputs, "targets": targets}, {}
    for name in RUNS:
        run, rates, scales = Run(name), [], []
        for step in range(STEPS):
            if step == MIDDLE:
                arrays, rest[name] = run.checkpoint()
                values |= {f"{name}/{key}": value for key, value in arrays.items()}
            rate, scale = run.step(step, inputs[step], targets[step])
            rates.append(rate)
            scales.append(scale)
        values |= {f"{name}/end/{key}": value for key, value in run.params().items()}
        values |= {f"{name}/rates": np.array(rates), f"{name}/scale": np.array(scales)}
    description = {"torch": torch.__version__, "runs": rest}
    np.savez_compressed(FILE, description=json.dumps(description, sort_keys=True), **values)


if __name__ == "__main__":
    main()
