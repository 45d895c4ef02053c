"""The recurrent mixers: built as flash-linear-attention builds them, refused in a sentence, right on a GPU."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from icl_eval.models import GLA, RWKV, RWKV7, DeltaNet, GatedDeltaNet, Mamba2, MixerConfig, ModelConfig, Softmax
from icl_eval.models.mixers.fla import base

GEOMETRY = {"width": 128, "num_heads": 2}
MIXERS = {config.name: config(**GEOMETRY) for config in (RWKV7, GatedDeltaNet, Mamba2, GLA, DeltaNet)}
THROUGH_FLA = ["rwkv7", "gla", "deltanet"]
"""Those whose kernels are right on every GPU and Triton."""
CUDA = torch.device("cuda", 0)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that claims a Hopper GPU with the package there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(base, "fla_operator", lambda name: name)
    base.fla_problem.cache_clear()
    yield
    base.fla_problem.cache_clear()


@pytest.mark.parametrize(("triton", "refused"), [((3, 3, 1), False), ((3, 6, 0), True), ((3, 7, 1), False)])
def test_scalar_decay_is_refused_where_its_kernels_are_wrong(
    hopper: None, monkeypatch: pytest.MonkeyPatch, triton: tuple[int, ...], refused: bool
) -> None:
    monkeypatch.setattr(base, "triton_version", lambda: triton)
    problem = base.fla_problem(GatedDeltaNet.operator, True, CUDA)
    assert (problem is not None) == refused
    assert problem is None or "wrong gradients on Hopper GPUs under Triton 3.4 to 3.7.0" in problem
    assert base.fla_problem(RWKV7.operator, False, CUDA) is None


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError("No module named 'fla'")

    monkeypatch.setattr(base, "fla_operator", absent)
    base.fla_problem.cache_clear()
    problem = base.fla_problem(GLA.operator, False, CUDA)
    base.fla_problem.cache_clear()
    assert problem == "it needs flash-linear-attention (pip install 'icl-eval[fla]'; No module named 'fla')"
    with pytest.raises(ImportError):
        base.fla_operator("icl_eval.no_such_function")


@pytest.mark.parametrize("name", sorted(set(MIXERS) - {"mamba2"}))
def test_kernels_are_refused_on_a_cpu(name: str) -> None:
    mixer = replace(MIXERS[name], backend="fla").build()
    with pytest.raises(ValueError, match=r"backend = 'fla': .* need a CUDA GPU, .* on cpu; use 'torch', which runs"):
        mixer(torch.randn(1, 8, 128))


def test_a_problem_under_auto_is_a_warning_that_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "fla_problem", lambda *arguments: "it needs a thing (get it)")
    base.warn_once.cache_clear()

    class OnGPU:
        is_cuda, device, dtype = True, CUDA, torch.bfloat16

    mixer = MIXERS["gla"].build()
    with pytest.warns(
        UserWarning, match=r"gla: it needs a thing \(get it\). Until then it runs in plain torch"
    ) as all_:
        refused = [mixer._uses_fla(OnGPU()) for _ in range(2)]
    assert refused == [False, False]
    assert len(all_) == 1


def test_kernels_without_float32_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "fla_problem", lambda *arguments: None)
    mixer = replace(MIXERS["deltanet"], backend="fla").build()
    with pytest.raises(ValueError, match="flash-linear-attention take bfloat16, float16, not float32; use 'torch'"):
        mixer(torch.randn(1, 8, 128))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RWKV7(rotary_base=10_000.0), "RWKV7.rotary_base = 10000.0: must be None: rwkv7 has no rotary"),
        (lambda: GLA(num_kv_heads=2), "GLA.num_kv_heads = 2: must be None: the heads of gla are not grouped"),
        (lambda: DeltaNet(qk_norm=True), "DeltaNet.qk_norm = True: must be False"),
        (lambda: Mamba2(backend="fla"), "Mamba2.backend = 'fla': must be 'auto' or 'torch'"),
        (lambda: GatedDeltaNet(width=12, num_heads=2), "num_heads = 2: must be such that the size of heads"),
        (lambda: GLA(backend="triton"), "backend = 'triton': must be 'auto' or 'fla' or 'torch'"),
    ],
)
def test_impossible_mixers_are_refused_in_a_sentence(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_rwkv7_starts_as_published() -> None:
    """Values of the published formulae at both ends of the channels, for heads of 64."""
    model = ModelConfig(num_layers=3, mixers=(MIXERS["rwkv7"],), backbone=RWKV()).build()
    for number, layer in enumerate(model.layers):
        mixer = layer.mixer
        assert layer.mixer_shift is None
        assert not mixer.out_proj.weight.any()
        assert not mixer.decay.down.weight.any()
        torch.testing.assert_close(mixer.q_proj.weight @ mixer.q_proj.weight.T, torch.eye(128), rtol=0, atol=1e-5)
        torch.testing.assert_close(mixer.k_proj.weight @ mixer.k_proj.weight.T, torch.eye(128) / 100, rtol=0, atol=1e-5)
        up = mixer.decay.up.weight
        torch.testing.assert_close(up.T @ up, torch.eye(up.shape[1]) / 100, rtol=0, atol=1e-5)
        assert mixer.decay.up.bias[[0, -1]].tolist() == pytest.approx([-6 + 0.5 - 2.5, 0.5 + 2.5])
        assert mixer.rate.up.bias[[0, -1]].tolist() == pytest.approx([-0.19 - 0.3 - 0.2, -0.19 + 0.3 + 0.2])
        assert (mixer.value_rate is None) == (number == 0)
        if mixer.value_rate is not None:
            assert mixer.value_rate.up.bias[[0, -1]].tolist() == pytest.approx([0.73 + 0.2, 0.73 - 0.2])
            assert not mixer.value_rate.down.weight.any()
        assert mixer.key_scale[[0, -1]].tolist() == pytest.approx([0.76, 0.66])
        assert mixer.out_norm.weight.unique().tolist() == pytest.approx([((number + 1) / 3) ** 0.7])
        assert mixer.shift_w[64].item() == pytest.approx(1 - 0.5 ** (0.9 * (1 - number / 3)))


def test_later_layers_mix_in_the_values_of_the_first() -> None:
    torch.manual_seed(0)
    config = MIXERS["rwkv7"]
    mixer = config.build()
    torch.nn.init.normal_(mixer.out_proj.weight)
    torch.nn.init.normal_(mixer.value_rate.down.weight)
    x, first = torch.randn(2, 2, 30, config.width)
    alone, state = mixer(x)
    y, mixed, handed_on = mixer.mix(x, None, first, return_state=True)
    assert handed_on is first
    assert not torch.allclose(mixed.S, state.S)
    # What is handed its own values is as one that is handed none, whatever it would mix.
    shifted = x + mixer.shift_v * (torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1) - x)
    own = mixer.v_proj(shifted)
    torch.testing.assert_close(mixer.mix(x, None, own, return_state=False)[0], alone)
    # A layer without the mixing, whose projection gives the mixed values, is the same layer.
    without = replace(config, value_residual=False).build()
    without.load_state_dict(mixer.state_dict(), strict=False)
    share = mixer.value_rate(shifted).sigmoid()
    without.v_proj.register_forward_hook(lambda *_: own + share * (first - own))
    torch.testing.assert_close(without(x)[0], y)


def test_the_first_layer_of_its_kind_has_no_values_to_mix_in() -> None:
    rwkv7, softmax = MIXERS["rwkv7"], Softmax(width=128, num_heads=2)
    config = ModelConfig(num_layers=4, mixers=(softmax, rwkv7))
    assert [getattr(mixer, "value_residual", None) for mixer in config.layers] == [None, False, None, True]
    model = config.build()
    tokens = torch.randint(0, 256, (1, 9))
    torch.nn.init.normal_(model.layers[3].mixer.out_proj.weight)
    logits, _ = model(tokens)
    (gradient,) = torch.autograd.grad(logits.sum(), model.layers[1].mixer.v_proj.weight)
    # The first layer's own output starts at zero: its values can only act through the last layer's.
    assert not model.layers[1].mixer.out_proj.weight.any()
    assert gradient.norm() > 0


def test_decays_start_within_the_published_ranges() -> None:
    for config, low in ((GatedDeltaNet, 0), (Mamba2, 1)):
        mixer = config(width=2048, num_heads=256).build()
        rate, step = mixer.A_log.exp(), torch.nn.functional.softplus(mixer.dt_bias)
        assert low <= rate.min() < low + 1
        assert 15 < rate.max() <= 16
        assert 0.00099 < step.min() < 0.0015
        assert 0.07 < step.max() < 0.1001
    other = [GatedDeltaNet().build().A_log for _ in range(2)]
    assert not torch.equal(*other)


def on_gpu(config: MixerConfig, dtype: torch.dtype, T: int = 300, cut: int = 170) -> dict[str, torch.Tensor]:
    """Outputs of a whole pass and of one in three parts, and gradients of the first; float64 is the gold."""
    torch.manual_seed(0)
    mixer = config.build().cuda()
    for parameter in mixer.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, T, config.width, device="cuda", requires_grad=True)
    weights = torch.randn(2, T, config.width, device="cuda")
    if dtype == torch.float64:
        mixer, x, weights = mixer.double(), x.detach().double().requires_grad_(), weights.double()
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y, _ = mixer(x, return_state=False)
        with torch.no_grad():
            first, state = mixer(x[:, :cut])
            second, state = mixer(x[:, cut : T - 1], state)
            last, _ = mixer.step(x[:, -1], state)
    gradients = torch.autograd.grad((y * weights).sum(), [x, *mixer.parameters()])
    names = ["x", *(name for name, _ in mixer.named_parameters())]
    parts = torch.cat([first, second, last[:, None]], dim=1)
    return {"y": y, "in parts": parts, **dict(zip(names, gradients, strict=True))}


@pytest.mark.gpu
@pytest.mark.timeout(1200)  # fla times many settings of each kernel first: minutes, where others use the GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MIXERS)
def test_kernels_on_a_gpu_are_as_right_as_the_torch_form(name: str, dtype: torch.dtype) -> None:
    """Against float64, they may err thrice as much as the torch form at the same precision, and a little more."""
    pytest.importorskip("fla")
    config = MIXERS[name].after(())  # on its own it has no other layer's values to mix in, and no gradient of that
    gold, torch_form = (on_gpu(replace(config, backend="torch"), d) for d in (torch.float64, dtype))
    kernels = on_gpu(config, dtype)
    for part, want in gold.items():
        errors = [((got[part].double() - want).norm() / want.norm()).item() for got in (kernels, torch_form)]
        assert errors[0] < 3 * errors[1] + 5e-3, (part, errors)


@pytest.mark.gpu
@pytest.mark.parametrize("name", THROUGH_FLA)
def test_insisting_on_the_kernels_works_where_they_are_right(name: str) -> None:
    pytest.importorskip("fla")
    mixer = replace(MIXERS[name], backend="fla").build().cuda()
    with torch.autocast("cuda", torch.bfloat16):
        y, state = mixer(torch.randn(1, 200, 128, device="cuda"))
    assert torch.isfinite(y).all()
    assert state.S.dtype == torch.float32


@pytest.mark.gpu
def test_gated_deltanet_insisting_on_the_kernels_runs_or_says_why() -> None:
    pytest.importorskip("fla")
    mixer = replace(MIXERS["gated_deltanet"], backend="fla").build().cuda()
    problem = base.fla_problem(GatedDeltaNet.operator, True, CUDA)
    x = torch.randn(1, 200, 128, device="cuda")
    if problem is None:
        assert torch.isfinite(mixer(x)[0]).all()
    else:
        with pytest.raises(ValueError, match=r"install Triton 3\.7\.1 or newer; use 'torch'"):
            mixer(x)


def fla_in_plain_torch(name: str):  # type: ignore[no-untyped-def]
    """A function with the signature of fla's kernel, over the package's own reference in plain torch."""
    if name == "gla":
        from fla.ops.gla.naive import naive_recurrent_gla

        def chunk_gla(q, k, v, g, scale, **options):  # type: ignore[no-untyped-def]
            return naive_recurrent_gla(q * (scale * q.shape[-1] ** 0.5), k, v, g, **options)

        return chunk_gla
    if name == "gated_deltanet":
        from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

        def chunk_gated_delta_rule(q, k, v, g, beta, scale, **options):  # type: ignore[no-untyped-def]
            return naive_recurrent_gated_delta_rule(q, k, v, beta, g, scale, **options)

        return chunk_gated_delta_rule
    heads_first = lambda *tensors: [tensor.transpose(1, 2) for tensor in tensors]  # noqa: E731
    if name == "deltanet":
        from fla.ops.delta_rule.naive import delta_rule_recurrence

        def chunk_delta_rule(q, k, v, beta, scale, **options):  # type: ignore[no-untyped-def]
            q = q * (scale * q.shape[-1] ** 0.5)
            y, state = delta_rule_recurrence(*heads_first(q, k, v, beta), **options)
            return y.transpose(1, 2), state

        return chunk_delta_rule
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

    def chunk_rwkv7(r, w, k, v, a, b, scale, safe_gate, lower_bound, chunk_size, **options):  # type: ignore[no-untyped-def]
        assert safe_gate
        assert lower_bound <= w.min()
        assert w.max() < 0
        y, state = dplr_recurrence(*heads_first(r * scale * r.shape[-1] ** 0.5, k, v, a, b, w), **options)
        return y.transpose(1, 2), state

    return chunk_rwkv7


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MIXERS) - {"mamba2"}))
def test_what_the_kernels_are_handed_is_what_the_torch_form_computes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fla")
    torch.manual_seed(0)
    mixer = MIXERS[name].build()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim == 2 else None
    x = torch.randn(2, 40, 128)
    expected, expected_state = mixer(x)
    monkeypatch.setattr(base, "fla_problem", lambda *arguments: None)
    monkeypatch.setattr(type(MIXERS[name]), "kernel_dtypes", (torch.float32,))
    monkeypatch.setattr(base, "fla_operator", lambda operator: fla_in_plain_torch(name))
    mixer.config = replace(mixer.config, backend="fla")
    first, state = mixer(x[:, :15])
    second, state = mixer(x[:, 15:], state)
    # Norms, since a token's group norm magnifies the rounding of a head whose output is nearly zero.
    for got, right in ((torch.cat([first, second], dim=1), expected), (state.S, expected_state.S)):
        assert (got - right).norm() < 1e-4 * right.norm()


@pytest.mark.slow
def test_parameters_are_those_of_flas_layers() -> None:
    pytest.importorskip("fla")
    from fla.layers import DeltaNet as TheirDeltaNet
    from fla.layers import GatedDeltaNet as TheirGatedDeltaNet
    from fla.layers import GatedLinearAttention
    from fla.layers.mamba2 import Mamba2 as TheirMamba2
    from fla.layers.rwkv7 import RWKV7Attention

    theirs = {
        "deltanet": TheirDeltaNet(hidden_size=128, num_heads=2),
        "gated_deltanet": TheirGatedDeltaNet(hidden_size=128, num_heads=2, head_dim=48, expand_v=2),
        "gla": GatedLinearAttention(hidden_size=128, num_heads=2),
        "mamba2": TheirMamba2(hidden_size=128, head_dim=64),
        "rwkv7": RWKV7Attention(hidden_size=128, head_dim=64, layer_idx=1, num_hidden_layers=3),
    }
    for name, module in theirs.items():
        mine = MIXERS[name].build()
        assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in module.parameters()), name
    published, started = dict(theirs["rwkv7"].named_parameters()), RWKV().build(MIXERS["rwkv7"], 1, 3).mixer
    for here, there in {"decay": "w_lora", "rate": "a_lora", "value_rate": "v_lora"}.items():
        torch.testing.assert_close(getattr(started, here).up.bias, published[f"{there}.lora.2.bias"])
    for letter in "rwkvag":
        torch.testing.assert_close(getattr(started, f"shift_{letter}"), published[f"x_{letter}"].flatten())


@pytest.mark.slow
def test_mamba2_is_flas_layer() -> None:
    pytest.importorskip("fla")
    from fla.layers.mamba2 import Mamba2 as TheirMamba2

    torch.manual_seed(0)
    theirs, mine = TheirMamba2(hidden_size=128, head_dim=64), MIXERS["mamba2"].build()
    names = {
        "conv1d.weight": "conv.conv.weight",
        "conv1d.bias": "conv.conv.bias",
        "D": "skip",
        "norm.weight": "out_norm.weight",
    }
    mine.load_state_dict({names.get(name, name): tensor for name, tensor in theirs.state_dict().items()})
    x = torch.randn(2, 300, 128)
    silu = torch.nn.functional.silu
    # The activation and the norm are Triton kernels of theirs; everything else of the layer is plain torch.
    theirs.act = silu
    theirs.norm.forward = lambda y, gate: torch.nn.functional.rms_norm(y * silu(gate), (256,), theirs.norm.weight, 1e-5)
    expected, _, _ = theirs(x)
    torch.testing.assert_close(mine(x)[0], expected, rtol=1e-4, atol=1e-5)
