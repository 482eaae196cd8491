"""EDM's networks against a written-out forward, and their exported folders as teachers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.makers import zero_temporal
from torch import Tensor, nn
from torch.nn import functional

from dsno.backbones.edm import DhariwalUNet, SongUNet, call_edm, edm_sites
from dsno.diffusion.denoisers import Denoiser
from dsno.diffusion.schedules import EDMSchedule
from dsno.operator.dsno import DSNO
from dsno.operator.lift import LiftConfig, lift
from dsno.operator.temporal import SliceLayout
from dsno.support.errors import InputError
from dsno.teachers.edm import load_edm

Weights = Mapping[str, Tensor]
Mix = Callable[[str, Tensor], Tensor]

DDPMPP: dict[str, Any] = {
    "img_resolution": 16,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 4,
    "augment_dim": 9,
    "model_channels": 8,
    "channel_mult": [1, 2, 3],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
NCSNPP = {
    **DDPMPP,
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
SKIPS = {**DDPMPP, "encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]}
ADM = {**DDPMPP, "model_channels": 32, "channel_mult": [2, 4], "attn_resolutions": [16, 8]}
CASES = {
    "ddpm++": (SongUNet, DDPMPP),
    "ncsn++": (SongUNet, NCSNPP),
    "skips": (SongUNet, SKIPS),
    "adm": (DhariwalUNet, ADM),
}
LABELS = torch.tensor([2, 4])  # 4 is the null class
X = torch.sin(torch.arange(2 * 3 * 16 * 16, dtype=torch.float64) * 0.37).reshape(2, 3, 16, 16)
TOLD = torch.tensor([-1.3, 0.7], dtype=torch.float64)


def fill(network: nn.Module) -> nn.Module:
    """Weights from a formula, large enough that each matters."""
    for i, (name, value) in enumerate(sorted(network.state_dict().items())):
        if name.endswith("resample_filter"):
            continue
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 1.7 + i)
        if value.ndim > 1:
            wave = wave / value[0].numel() ** 0.5
        elif "norm" in name and name.endswith("weight"):
            wave = 1 + 0.3 * wave
        value.copy_(wave.reshape(value.shape))
    return network.eval()


def made(case: str, **changes: Any) -> nn.Module:
    kind, arguments = CASES[case]
    return fill(kind(**{**arguments, **changes}))


# --- the networks once more, as functions of their state dicts ---


def down(x: Tensor, taps: list[int]) -> Tensor:
    """Every other pixel of a filtered image, zero beyond the border."""
    if taps == [1, 1]:
        return functional.avg_pool2d(x, 2)
    return inner_down(functional.pad(x, (1, 1, 1, 1)))


def inner_down(x: Tensor) -> Tensor:
    for _ in range(2):
        x = (x[..., :-3:2] + 3 * x[..., 1:-2:2] + 3 * x[..., 2:-1:2] + x[..., 3::2]) / 8
        x = x.transpose(2, 3)
    return x


def up(x: Tensor, taps: list[int]) -> Tensor:
    for _ in range(2):
        if taps == [1, 1]:
            x = x.repeat_interleave(2, -1)
        else:
            wide = functional.pad(x, (1, 1))
            even, odd = (wide[..., :-2] + 3 * x) / 4, (3 * x + wide[..., 2:]) / 4
            x = torch.stack([even, odd], -1).flatten(-2)
        x = x.transpose(2, 3)
    return x


def conv(s: Weights, name: str, x: Tensor) -> Tensor:
    weight = s[f"{name}.weight"]
    return functional.conv2d(x, weight, s[f"{name}.bias"], padding=weight.shape[-1] // 2)


def dense(s: Weights, name: str, x: Tensor) -> Tensor:
    out = torch.einsum("oi,bi->bo", s[f"{name}.weight"], x)
    return out + s[f"{name}.bias"] if f"{name}.bias" in s else out


def norm(s: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    groups = x.unflatten(1, (min(32, x.shape[1] // 4), -1))
    centred = groups - groups.mean((2, 3, 4), keepdim=True)
    scaled = centred / (centred.square().mean((2, 3, 4), keepdim=True) + eps).sqrt()
    shape = (1, -1, 1, 1)
    return scaled.flatten(1, 2) * s[f"{name}.weight"].view(shape) + s[f"{name}.bias"].view(shape)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def attention(s: Weights, name: str, x: Tensor, heads: int, eps: float) -> Tensor:
    width = x.shape[1] // heads
    packed = conv(s, f"{name}.qkv", norm(s, f"{name}.norm2", x, eps)).flatten(2)
    outputs = []
    for head in range(heads):
        rows = packed[:, 3 * width * head : 3 * width * (head + 1)]
        q, k, v = rows[:, 0::3], rows[:, 1::3], rows[:, 2::3]
        weights = (torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(width)).exp()
        weights = weights / weights.sum(2, keepdim=True)
        outputs.append(torch.einsum("bqk,bck->bcq", weights, v))
    return conv(s, f"{name}.proj", torch.cat(outputs, 1).reshape(x.shape))


def written_out(
    kind: type[nn.Module],
    config: Mapping[str, Any],
    s: Weights,
    labels: Tensor | None,
    mix: Mix,
    x: Tensor = X,
) -> Tensor:
    """F at x and `TOLD`; `mix(name, h)` is called after every block where time is mixed."""
    adm = kind is DhariwalUNet
    taps = config.get("resample_filter", [1, 1])
    eps, factor = (1e-5, 1.0) if adm else (1e-6, 0.5**0.5)

    def block(name: str, x: Tensor, resize: Any = None, attends: bool = False) -> Tensor:
        def sized(h: Tensor) -> Tensor:
            return h if resize is None else resize(h, taps)

        h = conv(s, f"{name}.conv0", sized(swish(norm(s, f"{name}.norm0", x, eps))))
        told = dense(s, f"{name}.affine", embedding)[..., None, None]
        if adm:
            half = told.shape[1] // 2
            h = norm(s, f"{name}.norm1", h, eps) * (1 + told[:, :half]) + told[:, half:]
        else:
            h = norm(s, f"{name}.norm1", h + told, eps)
        h = conv(s, f"{name}.conv1", swish(h))
        skip = sized(x)
        if f"{name}.skip.weight" in s:
            skip = conv(s, f"{name}.skip", skip)
        h = (h + skip) * factor
        if attends:
            heads = h.shape[1] // 64 if adm else 1
            h = (h + attention(s, name, h, heads, eps)) * factor
        return h

    # the embedding
    width = config["model_channels"] * config.get("channel_mult_noise", 1)
    if config.get("embedding_type") == "fourier":
        phase = TOLD[:, None] * s["map_noise.freqs"] * 2 * math.pi
    else:
        last = width // 2 if adm else width // 2 - 1
        phase = torch.stack([TOLD * 10000 ** (-i / last) for i in range(width // 2)], 1)
    waves = [phase.sin(), phase.cos()]
    told = torch.cat(waves[::-1] if adm else waves, 1)
    rows = torch.zeros(2, 4, dtype=X.dtype)
    if labels is not None:
        for i, label in enumerate(labels.tolist()):
            rows[i, label : label + 1] = 1  # none for the null class
    if labels is not None and not adm:
        told = told + dense(s, "map_label", rows * 2)  # the root of 4 classes
    embedding = dense(s, "map_layer1", swish(dense(s, "map_layer0", told)))
    if labels is not None and adm:
        embedding = embedding + dense(s, "map_label", rows)
    embedding = swish(embedding)

    # down
    levels = [config["img_resolution"] >> i for i in range(len(config["channel_mult"]))]
    h, aux, skips = x, x, []
    for level, size in enumerate(levels):
        at = f"enc.{size}x{size}_"
        h = block(at + "down", h, down) if level else conv(s, at + "conv", h)
        if level and config.get("encoder_type") == "skip":
            aux = down(aux, taps)
            h = h + conv(s, at + "aux_skip", aux)
        if level and config.get("encoder_type") == "residual":
            weight, bias = s[at + "aux_residual.weight"], s[at + "aux_residual.bias"]
            wide = functional.conv2d(aux, weight, padding=2)
            h = aux = (h + inner_down(wide) + bias[:, None, None]) / 2**0.5
        skips.append(h)
        h = block(at + "block0", h, attends=size in config["attn_resolutions"])
        h = mix(at + "block0", h)
        skips.append(h)

    # up
    image: Tensor | None = None
    for level, size in reversed(list(enumerate(levels))):
        at = f"dec.{size}x{size}_"
        if size == levels[-1]:
            h = mix(at + "in0", block(at + "in0", h, attends=True))
            h = block(at + "in1", h)
        else:
            h = block(at + "up", h, up)
        for i in range(2):
            attends = size in config["attn_resolutions"] and (adm or i == 1)
            h = block(f"{at}block{i}", torch.cat([h, skips.pop()], 1), attends=attends)
            h = mix(f"{at}block{i}", h)
        if not adm and (level == 0 or config.get("decoder_type") == "skip"):
            added = conv(s, at + "aux_conv", swish(norm(s, at + "aux_norm", h, eps)))
            image = added if image is None else up(image, taps) + added
    if adm:
        return conv(s, "out_conv", swish(norm(s, "out_norm", h, eps)))
    assert image is not None
    return image


def unmixed(_name: str, h: Tensor) -> Tensor:
    return h


@pytest.mark.parametrize("labelled", [True, False], ids=["conditional", "unconditional"])
@pytest.mark.parametrize("case", CASES)
def test_a_network_is_its_written_out_forward(case: str, labelled: bool) -> None:
    changes = {} if labelled else {"label_dim": 0}
    network = made(case, **changes)
    labels = LABELS if labelled else None
    exact = {k: v.double() for k, v in network.state_dict().items()}
    expected = written_out(type(network), network.config, exact, labels, unmixed)
    with torch.no_grad():
        got = network(X.float(), TOLD.float(), labels)
        torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)
        got = network.double()(X, TOLD, labels)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-7)


# What the code published with the paper gives for these weights: three pixels of each image, and
# the mean magnitude.
PUBLISHED: dict[str, tuple[list[list[float]], float]] = {
    "ddpm++": ([[0.261734, 0.776493, -0.116934], [0.190338, 0.795496, -0.076821]], 0.3536166),
    "ncsn++": ([[0.261069, 0.740292, -0.12218], [0.19095, 0.766622, -0.086111]], 0.3572616),
    "skips": ([[0.87497, 0.016083, 0.576478], [0.864286, 0.034341, 0.584982]], 0.5018924),
    "adm": ([[0.752937, 0.858741, -0.683243], [0.757847, 0.860105, -0.684249]], 0.7779662),
}


@pytest.mark.parametrize("case", CASES)
def test_a_network_gives_the_published_codes_numbers(case: str) -> None:
    pixels, magnitude = PUBLISHED[case]
    with torch.no_grad():
        got = made(case)(X.float(), TOLD.float(), LABELS)
    spots = torch.stack([got[:, 0, 0, 0], got[:, 1, 7, 8], got[:, 2, 15, 3]], 1)
    torch.testing.assert_close(spots, torch.tensor(pixels), atol=1e-5, rtol=1e-5)
    assert float(got.abs().mean()) == pytest.approx(magnitude, rel=1e-5)


def test_published_sizes() -> None:
    """Parameters of CIFAR-10's DDPM++ and NCSN++ and of ImageNet-64's ADM."""
    cifar = {"img_resolution": 32, "channel_mult": [2, 2, 2], "augment_dim": 9}
    ncsn = {k: NCSNPP[k] for k in NCSNPP if NCSNPP[k] != DDPMPP.get(k)}
    with torch.device("meta"):
        networks = [
            SongUNet(in_channels=3, out_channels=3, **cifar),
            SongUNet(in_channels=3, out_channels=3, **cifar, **ncsn),
            DhariwalUNet(64, 3, 3, label_dim=1000),
        ]
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert counts == [55_733_891, 56_397_827, 295_899_267]
    assert [len(edm_sites(network)) for network in networks] == [28, 28, 29]


@pytest.mark.parametrize("case", CASES)
def test_a_network_is_rebuilt_from_its_configuration(case: str) -> None:
    network = made(case)
    twin = type(network)(**json.loads(json.dumps(network.config)))
    twin.load_state_dict(network.state_dict(), strict=True)
    with torch.no_grad():
        arguments = (X.float(), TOLD.float(), LABELS)
        assert torch.equal(twin.eval()(*arguments), network(*arguments))


def test_labels_are_never_dropped_in_training() -> None:
    network = made("ddpm++", dropout=0.0, label_dropout=0.9)
    with torch.no_grad():
        quiet = network(X.float(), TOLD.float(), LABELS)
        assert torch.equal(network.train()(X.float(), TOLD.float(), LABELS), quiet)


def test_half_precision_weights_still_hear_the_time_in_float32() -> None:
    """The two times are one number in bfloat16."""
    network, told = made("ddpm++", label_dim=0), torch.tensor([1.003, 1.0])
    rows = X[:1].float().repeat(2, 1, 1, 1)
    with torch.no_grad():
        exact = network(rows, told)
        got = network.bfloat16()(rows.bfloat16(), told)
    assert got.dtype == torch.bfloat16
    assert not torch.equal(got[0], got[1])
    assert (got - exact).abs().mean() < 0.05 * exact.abs().mean()


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"embedding_type": "positinal"}, "embedding_type 'positinal'.*'positional'"),
        ({"encoder_type": "resid"}, "encoder_type 'resid'.*'residual'"),
        ({"decoder_type": "residual"}, "decoder_type 'residual'.*'skip'"),
        ({"model_channels": "8"}, "`model_channels`.*at least 1, not '8'"),
        ({"model_channels": 10}, "`model_channels` must be a multiple of 4, not 10"),
        ({"num_blocks": True}, "`num_blocks`.*not True"),
        ({"label_dim": -1}, "`label_dim`.*at least 0, not -1"),
        ({"channel_mult": [1, 0]}, r"`channel_mult`.*not \[1, 0\]"),
        ({"channel_mult": 2}, "`channel_mult` must be a list of numbers, not 2"),
        ({"channel_mult": []}, "one to as many levels as can be"),
        ({"channel_mult": [1] * 6}, "16x16 cannot be halved 5 times"),
        ({"dropout": 1.5}, "`dropout`.*less than 1, not 1.5"),
        ({"resample_filter": [1, 2, 1]}, r"even count.*not \[1, 2, 1\]"),
        ({"resample_filter": [1, -1]}, "positive sum"),
        ({"num_blocks": 10**9}, "up to 64 blocks per level.*1000000000"),
        ({"img_resolution": 2**40}, "up to 65536 pixels"),
        ({"model_channels": 132}, "132 channels cannot be normalised in 32 groups"),
    ],
)
def test_arguments_that_make_no_network_are_refused(changes: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        SongUNet(**{**DDPMPP, **changes})
    assert str(caught.value).endswith((".", "?"))


def test_widths_that_cannot_be_split_among_heads_are_refused() -> None:
    with pytest.raises(InputError, match="224 channels cannot be split among 3 attention heads"):
        DhariwalUNet(**{**ADM, "model_channels": 224, "channel_mult": [1]})


@pytest.mark.parametrize(
    ("label_dim", "condition", "sentence"),
    [
        (4, {}, r"class-conditional \(4 classes\): give labels"),
        (0, {"class_labels": LABELS}, "unconditional: it takes no class labels"),
        (4, {"class_labels": torch.eye(5)[LABELS]}, "give indices, not one-hot rows"),
        (4, {"labels": LABELS}, "'class_labels' only, not 'labels'"),
    ],
)
def test_labels_are_given_exactly_when_wanted(
    label_dim: int, condition: Any, sentence: str
) -> None:
    network = SongUNet(**{**DDPMPP, "label_dim": label_dim})
    with pytest.raises(InputError, match=sentence):
        call_edm(network, X.float(), TOLD.float(), condition)


# --- as a denoiser ---


def denoiser_of(network: nn.Module, sigma_data: float = 0.5) -> Denoiser:
    return Denoiser(
        network,
        EDMSchedule(),
        prediction_type="edm",
        sample_shape=(3, 16, 16),
        sigma_data=sigma_data,
        call=call_edm,
    )


@pytest.mark.parametrize("sigma", [0.002, 0.05, 0.5, 4.0, 80.0])
def test_a_denoiser_is_the_papers_formula(sigma: float) -> None:
    """Table 1: c_skip, c_out, c_in and c_noise."""
    network, d = made("ddpm++").double(), 0.6
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    t = torch.tensor((sigma ** (1 / 7) - low) / (high - low), dtype=torch.float64)
    x = X * sigma
    with torch.no_grad():
        told = torch.full((2,), math.log(sigma) / 4, dtype=torch.float64)
        f = network(x / math.sqrt(sigma**2 + d**2), told, LABELS)
        skip, out = d**2 / (sigma**2 + d**2), sigma * d / math.sqrt(sigma**2 + d**2)
        got = denoiser_of(network, d)(x, t, {"class_labels": LABELS})
    torch.testing.assert_close(got, skip * x + out * f, rtol=1e-6, atol=1e-9)


# --- where time is mixed ---


def test_sites_are_the_blocks_that_keep_the_resolution() -> None:
    assert edm_sites(made("ncsn++")) == [
        *(f"enc.{n}x{n}_block0" for n in (16, 8, 4)),
        "dec.4x4_in0",
        *(f"dec.{n}x{n}_block{i}" for n in (4, 8, 16) for i in (0, 1)),
    ]
    with pytest.raises(InputError, match=r"Linear is not a network of EDM.*student\.sites"):
        edm_sites(nn.Linear(2, 2))


@pytest.mark.parametrize("case", CASES)
def test_hooks_are_the_papers_placement_written_out(case: str) -> None:
    """Time is mixed before each skip is taken, and nowhere else."""
    network = made(case)
    condition = {"class_labels": LABELS[:1]}
    config = LiftConfig(edm_sites(network), slices=2)
    lifted = lift(denoiser_of(network), config, condition=condition)
    for part in lifted.temporal.parameters():
        nn.init.normal_(part, std=0.1)
    lifted.double()
    layers, used = dict(zip(lifted.config.sites, lifted.temporal, strict=True)), []

    def mix(name: str, h: Tensor) -> Tensor:
        used.append(name)
        return layers[name](h, SliceLayout(2))

    exact = {k: v.double() for k, v in network.state_dict().items()}
    x, labels = (
        X[:1].expand_as(X),
        LABELS[:1].expand_as(LABELS),
    )  # one sample at two times
    with torch.no_grad():
        expected = written_out(type(network), network.config, exact, labels, mix, x)
        plain = written_out(type(network), network.config, exact, labels, unmixed, x)
        got = call_edm(lifted.network, x, TOLD, {"class_labels": labels})
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
    assert (got - plain).abs().mean() > 0.01 * plain.abs().mean()
    assert used == edm_sites(network)


@pytest.mark.parametrize("case", CASES)
def test_a_network_whose_weights_alone_are_cast_runs(case: str) -> None:
    """A library that loads weights in bfloat16 may leave the filters in float32."""
    network = made(case)
    exact = network(X.float(), TOLD.float(), LABELS)
    for parameter in network.parameters():
        parameter.data = parameter.data.bfloat16()
    rough = network(X.bfloat16(), TOLD.float(), LABELS)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("slices", [1, 2, 4])
@pytest.mark.parametrize("case", ["ncsn++", "adm"])
def test_a_student_without_mixing_is_its_teacher(case: str, slices: int) -> None:
    """Its answer at t = 1 is the teacher's one-step guess."""
    teacher = denoiser_of(made(case))
    condition = {"class_labels": LABELS}
    one = {"class_labels": LABELS[:1]}
    student = DSNO.from_teacher(
        teacher,
        LiftConfig(edm_sites(teacher.network), slices=slices, modes=1),
        condition=one,
        output="state",
    )
    zero_temporal(student)
    noise = X.float()
    with torch.no_grad():
        states = student(noise, condition)
        start = student(noise, condition, times=torch.ones(1))[:, 0]
        told = torch.ones((), dtype=torch.float64)
        expected = teacher(80 * noise, told, condition) * math.sqrt(80**2 + 0.5**2) / 0.5
    assert states.shape == (2, slices, 3, 16, 16)
    assert states.isfinite().all()
    torch.testing.assert_close(start, expected, rtol=1e-5, atol=1e-3)


# --- exported folders ---


def exported(folder: Path, case: str = "ddpm++", **description: Any) -> Path:
    """A folder as tools/export_edm.py writes it."""
    network = made(case)
    folder.mkdir(exist_ok=True)
    tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
    save_file(tensors, folder / "network.safetensors")
    arguments = CASES[case][1]
    text = {
        "format": 1,
        "precond": "EDMPrecond",
        "sigma_min": 0.0,
        "sigma_max": None,
        "sigma_data": 0.5,
        "network": {"class": type(network).__name__, "arguments": arguments},
        **description,
    }
    (folder / "network.json").write_text(json.dumps(text))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_an_exported_network_is_a_frozen_denoiser(case: str, tmp_path: Path) -> None:
    denoiser = load_edm(exported(tmp_path, case))
    assert denoiser.preconditioning == denoiser_of(made(case)).preconditioning
    assert denoiser.sample_shape == (3, 16, 16)
    assert not denoiser.network.training
    assert not any(p.requires_grad for p in denoiser.parameters())
    condition, t = {"class_labels": LABELS}, torch.tensor([0.3, 0.8])
    with torch.no_grad():
        expected = denoiser_of(made(case))(X.float(), t, condition)
        assert torch.equal(denoiser(X.float(), t, condition), expected)


def test_half_precision_files_are_read_as_float32(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    path = folder / "network.safetensors"
    halves = {k: v.half() for k, v in load_file(path).items()}
    save_file(halves, path)
    loaded = load_edm(folder).network.state_dict()
    assert {v.dtype for v in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[k], v.float()) for k, v in halves.items())


@pytest.mark.parametrize(
    ("given", "schedule"),
    [
        ({"sigma_max": math.inf}, EDMSchedule(0.002, 80, 7)),
        ({"sigma_min": None, "sigma_max": None, "rho": None}, EDMSchedule(0.002, 80, 7)),
        ({"sigma_min": 0.01, "sigma_max": 50, "rho": 5}, EDMSchedule(0.01, 50, 5)),
    ],
)
def test_sigmas_are_the_files_where_they_are_finite(
    given: Any, schedule: EDMSchedule, tmp_path: Path
) -> None:
    assert load_edm(exported(tmp_path, sigma_data=0.7, **given)).schedule == schedule


def network_of(kind: str = "SongUNet", **arguments: Any) -> dict[str, Any]:
    return {"network": {"class": kind, "arguments": {**DDPMPP, **arguments}}}


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ({"format": 2}, "format 2, not 1.*export_edm"),
        ({"precond": "VPPrecond"}, "preconditioning 'VPPrecond'.*only EDMPrecond"),
        ({"sigma_data": None}, "`sigma_data`.*positive number, not None"),
        ({"sigma_data": "0.5"}, "`sigma_data`.*not '0.5'"),
        ({"sigma_min": -1}, "`sigma_min`.*not -1"),
        ({"sigma_max": True}, "`sigma_max`.*not True"),
        ({"rho": math.nan}, "`rho`.*not nan"),
        ({"sigma_max": 0.001}, "0 < sigma_min < sigma_max"),
        ({"network": ["SongUNet"]}, "class and arguments"),
        (network_of("SongUnet"), "'SongUnet'.*'SongUNet'"),
        (network_of(model_chanels=8), "cannot be built.*'model_chanels'"),
        (network_of(model_channels=-8), r"In .*network\.json: `model_channels`"),
        (network_of(model_channels=4 * 10**9), "cannot be built"),
        (network_of(model_channels=4 * 10**40), "`model_channels`.*not 4e.40"),
        (network_of(model_channels=2**18), "of another shape: .* and [0-9]+ more"),
        (network_of(num_blocks=64), "do not fit the network .missing: "),
        (network_of(out_channels=6), "of another shape: dec.16x16_aux_conv.bias"),
    ],
)
def test_descriptions_that_lie_are_refused(description: Any, sentence: str, tmp_path: Path) -> None:
    """Those with huge sizes would need terabytes if they were believed."""
    with pytest.raises(InputError, match=sentence) as caught:
        load_edm(exported(tmp_path, **description))
    assert "\n" not in str(caught.value)


def test_a_network_with_other_channels_out_than_in_is_no_denoiser(tmp_path: Path) -> None:
    folder = exported(tmp_path, **network_of(out_channels=6))
    wide = fill(SongUNet(**{**DDPMPP, "out_channels": 6}))
    save_file(dict(wide.state_dict()), folder / "network.safetensors")
    with pytest.raises(InputError, match="takes 3 channels and gives 6"):
        load_edm(folder)


def test_the_first_three_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    path = folder / "network.safetensors"
    tensors = load_file(path)
    for name in sorted(tensors)[:5]:
        del tensors[name]
    tensors["map_layer0.bias"] = torch.zeros(7)
    tensors["extra"] = torch.zeros(1)
    save_file(tensors, path)
    with pytest.raises(InputError) as caught:
        load_edm(folder)
    first = "dec.16x16_aux_conv.bias, dec.16x16_aux_conv.weight, dec.16x16_aux_norm.bias"
    assert f"missing: {first} and 2 more; extra: extra" in str(caught.value)
    assert "of another shape: map_layer0.bias)" in str(caught.value)


def test_weights_of_whole_numbers_are_refused(tmp_path: Path) -> None:
    path = exported(tmp_path) / "network.safetensors"
    save_file({k: v.long() for k, v in load_file(path).items()}, path)
    with pytest.raises(InputError, match=r"network\.safetensors is of type int64"):
        load_edm(tmp_path)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no EDM network description.*export_edm\.py"):
        load_edm(tmp_path)
    folder = exported(tmp_path)
    path = folder / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"network\.safetensors cannot be read"):
        load_edm(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"network\.safetensors cannot be read"):
        load_edm(folder)


def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    pickled = tmp_path / "network-snapshot.pkl"
    pickled.write_bytes(b"no pickle either")
    for source, verb in ((pickled, "is"), (tmp_path, "holds")):
        with pytest.raises(InputError, match=rf"{verb} a pickle.*run code.*tools/export_edm\.py"):
            load_edm(source)
    load_edm(exported(tmp_path))  # one beside an export is not looked at
