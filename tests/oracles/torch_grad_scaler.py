"""Records what torch's GradScaler does, for tests/test_loss_scale.py.

Run it with torch and NumPy installed, from anywhere: `python tests/oracles/torch_grad_scaler.py`. It writes
tests/data/torch_grad_scaler.npz, the same bytes every time as long as torch's numbers do not change:

    description        JSON: torch's version and the names of the settings
    settings           [sequence, setting], float64: first scale, growth factor, backoff factor, growth interval
    finite             [sequence, step], whether the gradients of that step were finite
    scale, tracker     [sequence, step]: torch's scale and its count of finite steps, after that step
"""

import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).parents[1] / "data" / "torch_grad_scaler.npz"
SEQUENCES, STEPS = 80, 48
NAMES = ("init_scale", "growth_factor", "backoff_factor", "growth_interval")


def random_settings_and_overflows():
    """Settings such that no sequence leaves the range of float32.

    The factors are float32 numbers: torch multiplies the scale, a float32, by a float64 factor, which is then the same as
    multiplying in float32. Half of them are powers of two, as they are in practice.
    """
    rng = np.random.default_rng(20240301)
    dyadic = np.arange(SEQUENCES) % 2 == 0
    settings = np.stack(
        [
            np.where(dyadic, 2.0 ** rng.integers(0, 25, SEQUENCES), rng.uniform(1, 1e5, SEQUENCES)),
            np.where(dyadic, 2.0 ** rng.integers(1, 3, SEQUENCES), rng.uniform(1.01, 4, SEQUENCES)),
            np.where(dyadic, 2.0 ** rng.integers(-2, 0, SEQUENCES), rng.uniform(0.25, 0.99, SEQUENCES)),
            rng.integers(1, 8, SEQUENCES),
        ],
        axis=1,
    )
    rates = rng.uniform(0, 0.5, (SEQUENCES, 1))
    return settings.astype(np.float32).astype(np.float64), rng.uniform(size=(SEQUENCES, STEPS)) >= rates


def history(setting, finite):
    """Torch's scale and growth tracker after each step."""
    # Imported here because pytest imports this module when it looks for doctests, and the tests run without torch.
    import torch

    init, growth, backoff, interval = setting
    scaler = torch.amp.GradScaler("cpu", init, growth, backoff, int(interval))
    param = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([param], lr=0.0)
    rows = []
    for good in finite:
        loss = scaler.scale(param.sum() * 0)  # which makes the scaler create its state
        optimizer.zero_grad()
        loss.backward()
        param.grad.fill_(1.0 if good else float("inf"))
        scaler.step(optimizer)
        scaler.update()
        rows.append((scaler.get_scale(), scaler._get_growth_tracker()))
    return rows


def main():
    import torch

    settings, finite = random_settings_and_overflows()
    rows = np.array([history(*pair) for pair in zip(settings, finite, strict=True)])
    description = {"torch": torch.__version__, "settings": NAMES}
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        FILE,
        description=json.dumps(description),
        settings=settings,
        finite=finite,
        scale=rows[..., 0].astype(np.float32),
        tracker=rows[..., 1].astype(np.int32),
    )
    print(f"torch {torch.__version__}: {SEQUENCES} sequences, {FILE.stat().st_size} bytes in {FILE.name}")


if __name__ == "__main__":
    main()
