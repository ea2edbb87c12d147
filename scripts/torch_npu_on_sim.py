#!/usr/bin/env python3
"""Runs torch-npu on the simulated driver against torch on the CPU: `torch_npu_on_sim.py LOG [STEP…]`.

The environment leads torch-npu to the driver; torch-npu-on-sim.sh makes it. Each step is a line, ok or what went wrong:
the steps that work, which must go on doing so, and then one for each thing that is known to be missing.
"""

import json
import math
import os
import subprocess
import sys
import traceback

WORKING, MISSING = {}, {}


def step(function):
    WORKING[function.__name__] = function
    return function


def missing(name, symbols):
    """What cannot work: the functions of the driver that torch-npu looks up for it and the simulator lacks."""

    def book(function):
        MISSING[name] = (function, symbols)
        return function

    return book


def same(on_npu, on_cpu, **tolerance):
    """Equal to what the CPU gives, within what torch's own tests allow its kernels of that dtype."""
    torch.testing.assert_close(on_npu.cpu(), on_cpu, **tolerance)


def both(function, *tensors, **tolerance):
    """A function of tensors, on the device and on the CPU."""
    got = function(*(tensor.npu() for tensor in tensors))
    want = function(*tensors)
    if isinstance(want, torch.Tensor):
        got, want = [got], [want]
    for a, b in zip(got, want, strict=True):
        assert a.device.type == "npu", f"the result is on {a.device}"
        same(a, b, **tolerance)


def normal(*shape, dtype=None):
    return torch.randn(shape).to(dtype or torch.float32)


@step
def devices():
    assert torch.npu.is_available() and torch.npu.device_count() == 2, torch.npu.device_count()
    assert torch.npu.get_device_name(0).startswith("Ascend"), torch.npu.get_device_name(0)
    assert torch.npu.mem_get_info(0)[1] > 0


@step
def copy():
    floats, integers = ("float32", "float16", "bfloat16"), ("int64", "int32", "int8", "uint8", "bool")
    for dtype in (getattr(torch, name) for name in floats + integers):
        x = (normal(5, 7) * 9).to(dtype)
        assert torch.equal(x.npu().cpu(), x), dtype
    x = normal(6, 8)
    assert torch.equal(x.t()[1::2].npu().cpu(), x.t()[1::2])
    assert torch.equal(x.npu().t()[1::2].cpu(), x.t()[1::2])
    assert torch.equal(x.npu().clone().half().float().cpu(), x.half().float())
    assert torch.equal(x.pin_memory().to("npu:0", non_blocking=True).cpu(), x)
    assert torch.equal(x.npu().to("npu:1").cpu(), x)


@step
def fill():
    same(torch.zeros(3, 4, device="npu"), torch.zeros(3, 4))
    same(torch.ones(3, 4, device="npu"), torch.ones(3, 4))
    same(torch.full((2, 3), 7.5, device="npu"), torch.full((2, 3), 7.5))
    same(torch.arange(3, 20, 2, device="npu"), torch.arange(3, 20, 2))
    x = torch.ones(4, 4)
    y = x.npu()
    x[1:3, ::2] = 5
    y[1:3, ::2] = 5
    same(y, x)
    same(y.zero_(), x.zero_())
    both(torch.tril, normal(5, 6))
    both(torch.triu, normal(5, 6))


@step
def add():
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64):
        both(torch.add, normal(4, 5).to(dtype), normal(4, 5).to(dtype))
    both(lambda a, b: torch.add(a, b, alpha=0.5), normal(4, 1, 3), normal(5, 1))
    both(lambda a: a + 2, normal(4, 5))
    both(lambda a, b: a.clone().add_(b), normal(4, 5), normal(5))


@step
def arithmetic():
    a, b = normal(7, 9), normal(7, 9)
    for name in ("sub", "mul", "div", "maximum", "minimum"):
        both(getattr(torch, name), a, b)
    for name in ("neg", "abs", "exp", "sin", "cos", "tanh", "sigmoid", "relu", "reciprocal", "floor", "sign", "erf"):
        both(getattr(torch, name), a)
    for name in ("log", "sqrt", "rsqrt"):
        both(getattr(torch, name), a.abs() + 0.1)
    both(lambda x: x**2, a)
    both(lambda x: x * 3 - 1, a)
    both(lambda x: 1 / x, a)
    both(lambda x: x.clamp(-0.5, 0.5), a)
    both(torch.nn.functional.silu, a)
    # Before the 950 torch-npu calls aclnnGelu for either form, which is the one with tanh.
    exact = torch.npu.get_device_name(0).startswith("Ascend950")
    both(lambda x: torch.nn.functional.gelu(x, approximate="none" if x.is_npu or exact else "tanh"), a)
    both(lambda x: torch.nn.functional.gelu(x, approximate="tanh"), a)


@step
def compare():
    a, b = normal(6, 6), normal(6, 6)
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        both(getattr(torch, name), a, b)
        both(lambda x, name=name: getattr(torch, name)(x, 0), a)
    both(lambda x, y: torch.where(x > y, x, y), a, b)
    both(lambda x: x.masked_fill(x > 0, -1), a)
    both(lambda x, y: (x > 0) & (y > 0), a, b)
    both(lambda x: (x > 0).logical_not(), a)
    both(torch.isnan, a)


@step
def reduce():
    a = normal(5, 6, 7)
    both(lambda x: x.sum(), a)
    both(lambda x: x.sum(-1), a)
    both(lambda x: x.mean((0, 2), keepdim=True), a)
    both(lambda x: x.amax(1), a)
    both(lambda x: x.max(), a)
    both(lambda x: tuple(x.max(-1)), a)
    both(lambda x: x.argmax(-1), a)
    both(lambda x: x.cumsum(1), a)


@step
def sort():
    a = normal(5, 33)
    both(lambda x: tuple(torch.topk(x, 4)), a)
    both(lambda x: tuple(torch.sort(x, stable=True)), a)
    both(lambda x: torch.argsort(x, descending=True), a)


@step
def matmul():
    both(torch.matmul, normal(17, 33), normal(33, 9), rtol=1e-5, atol=1e-5)
    both(lambda a, b: a @ b.t(), normal(17, 33), normal(9, 33), rtol=1e-5, atol=1e-5)
    both(torch.matmul, normal(3, 17, 33), normal(3, 33, 9), rtol=1e-5, atol=1e-5)
    both(torch.matmul, normal(2, 3, 17, 33), normal(33, 9), rtol=1e-5, atol=1e-5)
    both(torch.matmul, normal(33, 17), normal(17), rtol=1e-5, atol=1e-5)
    both(torch.addmm, normal(9), normal(17, 33), normal(33, 9), rtol=1e-5, atol=1e-5)
    both(torch.nn.functional.linear, normal(2, 5, 33), normal(9, 33), normal(9), rtol=1e-5, atol=1e-5)
    for dtype in (torch.float16, torch.bfloat16):
        both(torch.matmul, normal(17, 33).to(dtype), normal(33, 9).to(dtype), rtol=1.6e-2, atol=1e-2)


@step
def softmax():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        both(lambda x: x.softmax(-1), normal(5, 33).to(dtype))
    both(lambda x: x.softmax(1), normal(5, 6, 7))
    both(lambda x: x.log_softmax(-1), normal(5, 33))


@step
def arrange():
    a, b = normal(4, 5, 6), normal(4, 5, 6)
    both(lambda x, y: torch.cat([x, y], 1), a, b)
    both(lambda x, y: torch.stack([x, y], 0), a, b)
    both(lambda x: x.permute(2, 0, 1).contiguous(), a)
    both(lambda x: x.reshape(20, 6).t().reshape(-1), a)
    both(lambda x: tuple(x.chunk(2, -1)), a)
    both(lambda x: x[:, 1:4:2, None].expand(4, 2, 3, 6) + 0, a)
    both(lambda x: x.repeat(2, 1, 3), a)
    both(lambda x: x.flip(1), a)
    both(lambda x: torch.nn.functional.pad(x, (1, 2)), a)
    both(lambda x: x.roll(2, 1), a)


@step
def index():
    table, rows = normal(11, 6), torch.tensor([[3, 0, 10], [7, 7, 1]])
    both(lambda t, i: torch.nn.functional.embedding(i, t), table, rows)
    both(lambda t, i: t[i], table, rows)
    both(lambda t, i: t.index_select(0, i), table, rows[0])
    both(lambda t, i: t.gather(0, i), table, torch.randint(0, 11, (4, 6)))
    both(lambda t, i, s: t.scatter(0, i, s), table, torch.stack([torch.randperm(11)[:6] for _ in range(2)]), normal(2, 6))
    both(lambda t, i, s: t.index_add(0, i, s), table, rows[0], normal(3, 6))

    def put(t, i, s):
        t = t.clone()
        t[i] = s
        return t

    both(put, table, rows[0], normal(3, 6))


@step
def norm():
    f = torch.nn.functional
    both(lambda x, w, b: f.layer_norm(x, (24,), w, b), normal(3, 5, 24), normal(24), normal(24))
    both(lambda x, w: f.rms_norm(x, (24,), w, 1e-6), normal(3, 5, 24), normal(24))
    x, w = normal(3, 24), normal(24)
    same(torch_npu.npu_rms_norm(x.npu(), w.npu(), 1e-6)[0], f.rms_norm(x, (24,), w, 1e-6))
    both(lambda x, w, b: f.group_norm(x, 4, w, b), normal(2, 8, 5), normal(8), normal(8))


@step
def attention():
    f = torch.nn.functional
    q, k, v = (normal(2, 4, 9, 16) for _ in range(3))
    both(lambda *t: f.scaled_dot_product_attention(*t), q, k, v, rtol=1e-5, atol=1e-5)
    both(lambda *t: f.scaled_dot_product_attention(*t, is_causal=True), q, k, v, rtol=1e-5, atol=1e-5)
    mask = torch.rand(9, 9) > 0.4
    mask[:, 0] = True
    both(lambda q, k, v, m: f.scaled_dot_product_attention(q, k, v, attn_mask=m), q, k, v, mask, rtol=1e-5, atol=1e-5)


@step
def fused_attention():
    """In 16 bits torch-npu takes a fused operator of the driver."""
    f = torch.nn.functional
    for dtype in (torch.float16, torch.bfloat16):
        q, k, v = (normal(2, 4, 16, 32).to(dtype) for _ in range(3))
        both(lambda *t: f.scaled_dot_product_attention(*t), q, k, v, rtol=1.6e-2, atol=2e-2)
        both(lambda *t: f.scaled_dot_product_attention(*t, is_causal=True), q, k, v, rtol=1.6e-2, atol=2e-2)


@step
def encoder_layer():
    """torch's own transformer layer, operator by operator: as one it is left to the CPU."""
    torch.backends.mha.set_fastpath_enabled(False)
    torch.manual_seed(3)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True).eval()
    x = normal(2, 7, 32)
    with torch.no_grad():
        want = layer(x)
        same(layer.npu()(x.npu()), want, rtol=1e-5, atol=1e-5)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def llama_layer(x, weights, heads=4, kv_heads=2):
    f = torch.nn.functional
    batch, length, width = x.shape
    size = width // heads
    at = torch.arange(length, device=x.device)[:, None] * 10000 ** (-torch.arange(0, size, 2, device=x.device) / size)
    cos, sin = torch.cat([at, at], -1).cos().to(x.dtype), torch.cat([at, at], -1).sin().to(x.dtype)
    y = f.rms_norm(x, (width,), weights["norm1"], 1e-6)
    split = lambda t, n: t.view(batch, length, n, size).transpose(1, 2)
    q = rotate(split(y @ weights["q"], heads), cos, sin)
    k = rotate(split(y @ weights["k"], kv_heads), cos, sin).repeat_interleave(heads // kv_heads, 1)
    v = split(y @ weights["v"], kv_heads).repeat_interleave(heads // kv_heads, 1)
    y = f.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + y.transpose(1, 2).reshape(batch, length, width) @ weights["o"]
    y = f.rms_norm(x, (width,), weights["norm2"], 1e-6)
    return x + (f.silu(y @ weights["gate"]) * (y @ weights["up"])) @ weights["down"]


def llama_weights(width=32, inner=48, kv=16):
    shapes = {"q": (width, width), "k": (width, kv), "v": (width, kv), "o": (width, width)}
    shapes |= {"gate": (width, inner), "up": (width, inner), "down": (inner, width)}
    weights = {name: normal(*shape) / math.sqrt(shape[0]) for name, shape in shapes.items()}
    return weights | {"norm1": 1 + normal(width) / 9, "norm2": 1 + normal(width) / 9}


@step
def layer():
    """A layer as Llama's, forward."""
    weights, x = llama_weights(), normal(2, 7, 32)
    want = llama_layer(x, weights)
    got = llama_layer(x.npu(), {name: weight.npu() for name, weight in weights.items()})
    same(got, want, rtol=1e-5, atol=1e-5)


@step
def layer_bf16():
    weights, x = llama_weights(), normal(2, 16, 32)
    want = llama_layer(x, weights)
    half = {name: weight.npu().bfloat16() for name, weight in weights.items()}
    same(llama_layer(x.npu().bfloat16(), half).float(), want, rtol=5e-2, atol=5e-2)


@step
def decoding():
    """Two layers choose the next of 40 tokens, eight times, as the CPU does."""
    layers, table = [llama_weights(), llama_weights()], normal(40, 32)

    def greedy(device):
        here = [{name: weight.to(device) for name, weight in weights.items()} for weights in layers]
        rows, tokens = table.to(device), torch.tensor([[1, 5, 9]], device=device)
        for _ in range(8):
            x = torch.nn.functional.embedding(tokens, rows)
            for weights in here:
                x = llama_layer(x, weights)
            tokens = torch.cat([tokens, (x[:, -1] @ rows.t()).argmax(-1, keepdim=True)], 1)
        return tokens.cpu()

    assert torch.equal(greedy("npu"), greedy("cpu"))


@step
def training():
    """Linear regression: five steps of gradient descent."""
    x, target, start = normal(16, 12), normal(16, 3), normal(12, 3)
    found = {}
    for device in ("cpu", "npu"):
        weight = torch.nn.Parameter(start.to(device, copy=True))
        optimizer = torch.optim.SGD([weight], lr=0.05, momentum=0.9, foreach=False)
        for _ in range(5):
            optimizer.zero_grad()
            (x.to(device) @ weight - target.to(device)).square().mean().backward()
            optimizer.step()
        found[device] = weight.detach().cpu()
    same(found["npu"], found["cpu"], rtol=1e-4, atol=1e-5)


@step
def convolution():
    torch.npu.conv.allow_hf32 = False
    x, w, b = normal(2, 3, 8, 8), normal(4, 3, 3, 3), normal(4)
    both(lambda x, w, b: torch.nn.functional.conv2d(x, w, b, padding=1), x, w, b, rtol=1e-5, atol=1e-5)
    both(lambda x: torch.nn.functional.avg_pool2d(x, 2), normal(2, 3, 8, 8))


@step
def streams():
    x = normal(64, 64)
    a, b = torch.npu.Stream(), torch.npu.Stream()
    y = x.npu()
    ready = torch.npu.Event()
    ready.record()
    with torch.npu.stream(a):
        a.wait_event(ready)
        z = y @ y
        z.record_stream(b)
    b.wait_stream(a)
    with torch.npu.stream(b):
        w = z + y
    b.synchronize()
    same(w, x @ x + x, rtol=1e-5, atol=1e-5)


@step
def graph():
    """A captured graph, replayed on new input."""
    x, w = normal(8, 8), normal(8, 8)
    held, weight = x.npu(), w.npu()
    (held @ weight).relu()
    torch.npu.synchronize()
    captured = torch.npu.NPUGraph()
    with torch.npu.graph(captured):
        out = (held @ weight).relu()
    for _ in range(2):
        fresh = normal(8, 8)
        held.copy_(fresh)
        captured.replay()
        same(out, (fresh @ w).relu(), rtol=1e-5, atol=1e-5)


def gradients():
    """Of a layer as Llama's."""
    weights, x = llama_weights(), normal(2, 7, 32)
    found = {}
    for device in ("cpu", "npu"):
        leaves = {name: weight.to(device).detach().requires_grad_() for name, weight in weights.items()}
        llama_layer(x.to(device), leaves).square().mean().backward()
        found[device] = [leaf.grad.cpu() for leaf in leaves.values()]
    for got, want in zip(found["npu"], found["cpu"], strict=True):
        same(got, want, rtol=1e-4, atol=1e-5)


def register_missing():
    """In the order of what a program meets first."""
    f = torch.nn.functional
    a, square, image = normal(5, 6), normal(6, 6), normal(2, 3, 8, 8)
    labels = torch.arange(5)

    def each(name, symbols, function, *tensors):
        missing(name, symbols)(lambda: both(function, *tensors))

    missing("printing", "aclnnIsFinite")(lambda: repr(a.npu()))
    missing("equal", "aclnnEqual")(lambda: torch.equal(a.npu(), a.npu()))
    each("any", "aclnnAny", lambda x: (x > 0).any(), a)
    each("all", "aclnnAll", lambda x: (x > 0).all(), a)
    each("boolean_index", "aclnnNonzeroV2", lambda x: x[x > 0], a)
    each("bitwise_not", "aclnnBitwiseNot", lambda x: ~(x > 0), a)
    each("variance", "aclnnVarCorrection", lambda x: x.var(-1), a)
    each("vector_norm", "aclnnLinalgVectorNorm", lambda x: x.norm(dim=-1), a)
    each("log_sum_exp", "aclnnLogSumExp", lambda x: x.logsumexp(-1), a)
    each("argmin", "aclnnArgMin", lambda x: x.argmin(-1), a)
    each("cross_entropy", "aclnnNLLLoss", lambda x, y: f.cross_entropy(x, y), a, labels)
    each("mean_squares_loss", "aclnnMseLoss", f.mse_loss, a, a + 1)
    each("max_pool", "aclnnMaxPool2dWithMask", lambda x: f.max_pool2d(x, 2), image)
    each("batch_norm", "aclnnBatchNorm", lambda x, m, v: f.batch_norm(x, m, v), image, torch.zeros(3), torch.ones(3))
    each("inverse", "aclnnInverse", torch.inverse, square)
    each("foreach", "aclnnForeachMulScalarV2", lambda x: torch._foreach_mul([x, x], 2.0), a)
    missing("gradients", "aclnnSiluBackward, aclnnFlashAttentionScoreGrad")(gradients)
    missing("uniform", "aclnnInplaceUniform")(lambda: torch.rand(9, device="npu").cpu())
    missing("normal", "aclnnInplaceNormal")(lambda: torch.randn(9, device="npu").cpu())
    missing("dropout", "aclnnDropoutGenMaskV2")(lambda: f.dropout(a.npu(), 0.5).cpu())


def brief(error):
    """An error in one line: what was said first, and what the driver said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines[1:] if line.startswith("aclnn")]
    return " | ".join([type(error).__name__, *lines[:1], *told[:1]])


def run(names):
    """In a process of its own: steps that work until one does not, or all of those that are missing."""
    global torch, torch_npu
    import torch
    import torch_npu

    torch.manual_seed(7)
    register_missing()
    for name in names or MISSING:
        torch.manual_seed(7)
        function = WORKING[name] if names else MISSING[name][0]
        try:
            function()
            torch.npu.synchronize()
            print(f"\n=ok {name}", flush=True)
        except Exception as error:
            traceback.print_exc()
            symbols = "" if names else f"needs {MISSING[name][1]}; "
            print(f"\n=no {name} {symbols}{brief(error)}", flush=True)
            if names:
                os._exit(1)


def child(log, names):
    """In a process of its own: rows of (ok or no, name, why), and what the driver found wrong at the end of it."""
    environment = dict(os.environ)
    if not names:  # So that an error is told by the call that it comes from, and is not the last.
        environment["TASK_QUEUE_ENABLE"] = "0"
    command = [sys.executable, __file__, "--run", *names]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    text = done.stdout.decode(errors="replace")
    log.write(text)
    log.flush()
    lines, rows, reports, left_to_cpu, stopped = text.splitlines(), [], [], "", False
    for line in lines:
        if "will fall back to run on the CPU" in line:
            left_to_cpu = line.partition("Warning: ")[2]
        elif "at aclFinalize: " in line:
            reports.append(json.loads(line.partition("at aclFinalize: ")[2]))
        elif line.startswith(("=ok ", "=no ")):
            state, name, *why = line[1:].split(" ", 2)
            stopped = stopped or state == "no"
            # A step that torch-npu leaves to the CPU proves nothing.
            state, why = ("no", [left_to_cpu]) if state == "ok" and left_to_cpu else (state, why)
            rows.append((state, name, "".join(why)))
            left_to_cpu = ""
    if stopped and names:
        return rows, []
    if done.returncode or len(rows) < len(names):
        last = next((line for line in reversed(lines) if line.strip()), "")
        ended = f"the process ended with {done.returncode}: {last}"
        return ([*rows, ("no", names[len(rows)], ended)], []) if len(rows) < len(names) else (rows, [ended])
    wrong = [] if reports else ["the driver was not finalised"]
    for report in reports:
        wrong += [f"{key}: {report[key]}" for key in ("damage", "violations") if report[key]]
        wrong += [f"{key} memory held: {report['memory'][key]}" for key in ("device", "host") if report["memory"][key]]
    return rows, wrong


def main(log, names):
    names, works, fails, lacks = list(names) or list(WORKING), 0, 0, 0
    everything = len(names) == len(WORKING)
    if unknown := [name for name in names if name not in WORKING]:
        sys.exit(f"no steps: {' '.join(unknown)}; there are {' '.join(WORKING)}")
    while names:
        rows, wrong = child(log, names)
        for state, name, why in rows:
            names.remove(name)
            works, fails = works + (state == "ok"), fails + (state == "no")
            print(f"ok      {name}" if state == "ok" else f"FAILED  {name}: {why}", flush=True)
        if wrong:
            fails += 1
            print(f"FAILED  at the end of the process: {'; '.join(wrong)}", flush=True)
    rows, wrong = child(log, []) if everything else ([], [])
    for state, name, why in rows:
        lacks += state == "no"
        print(f"works   {name}, listed as missing" if state == "ok" else f"missing {name}: {why}", flush=True)
    if wrong:
        print(f"after what is missing: {'; '.join(wrong)}", flush=True)
    print(f"torch-npu on the simulated driver: {works} steps ok, {fails} failed, {lacks} known to be missing")
    return 1 if fails else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2:])
    elif len(sys.argv) > 1:
        with open(sys.argv[1], "w") as log:
            status = main(log, sys.argv[2:])
        sys.exit(status)
    else:
        sys.exit(__doc__)
